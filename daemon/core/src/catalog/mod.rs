//! The catalog: signed adverts of all nodes, kept equal on all nodes, and the services they name.
//!
//! Owns: publishing, judging, storing, pushing and repairing adverts, and the views on them (design section 6).
//! Must not know: sockets, how membership works, DNS, flows. Driven by: the catalog's owner loop in the daemon.
//!
//! Invariants: only the owner of an advert makes or changes it; within a slot the greater (epoch, seq) wins; a
//! record is deleted by absence from the next version of its fragment, so nothing withdrawn ever comes back.
//!
//! Parts, in the order of the data: `own` and `placement` publish, `push` and `tree` send, `accept` takes what
//! comes, `receive` judges it, `held` keeps what must wait, `store` and `owner` hold the rest, `repair`, `meet` and
//! `pull` mend differences, `view` answers readers. The clauses all this keeps are in `docs/replication.md`.

mod accept;
mod age;
mod denied;
mod fuzz;
mod held;
mod import;
mod meet;
mod own;
mod owner;
mod placement;
mod pull;
mod push;
mod receive;
mod repair;
mod store;
mod tree;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use gossamer_wire::advert::AdvertId;
use gossamer_wire::frame::{AdvertCopy, Frame};
use gossamer_wire::limits::HELD_FOR;
use gossamer_wire::{
    DecodeError, GroupName, InstanceName, NodeId, RegionName, ServiceName, ServiceRecord, ZoneName,
};
use rand::rngs::SmallRng;

use self::held::Route;
use self::owner::Owner;
use self::tree::Interval;
use crate::outputs::trimmed;
use crate::reach::{Denied, Deny};
use crate::time::Now;
use crate::trust::{Leaf, Sign, TrustBundle};

pub use fuzz::fuzz;
pub use import::{Import, ImportError, Imports};
pub use own::{CardContent, CardError};
pub use receive::Refusal;
pub use view::{InstanceState, InstanceView, Nearness, NodeView, ServiceView, Waiting};

/// A record within one node.
type Key = (ServiceName, InstanceName);

/// What the catalog must know of its own node.
#[derive(Clone, Debug)]
pub struct CatalogConfig {
    /// Own id.
    pub node: NodeId,
    /// Own group; decides what is visible.
    pub group: GroupName,
    /// Own zone, for nearness.
    pub zone: Option<ZoneName>,
    /// Own region, for nearness.
    pub region: Option<RegionName>,
    /// What this node takes from other groups behind short names.
    pub imports: Imports,
    /// Addresses of cards that are dropped: this node does not dial them and names nobody by them.
    pub deny: Deny,
    /// Members up to which an own change goes to all of them directly; from then on down trees. Usually
    /// [`DIRECT_UP_TO`].
    pub direct_up_to: usize,
    /// The version before the first one of this run within its epoch: random, so that a run which lost its state,
    /// and its epochs with it, does not sign other bytes under a version that others hold already.
    pub first_seq: u32,
}

/// Members up to which one node sends a change to all others itself: 256 sends of 1 kB leave in a few
/// milliseconds, and no other way is faster or simpler (design section 6).
pub const DIRECT_UP_TO: usize = 256;

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The complete set of own records; what changed against the last set is published. Nothing, not even a
    /// head, is published before the first set, so that a restart withdraws nothing by accident.
    Publish(Vec<ServiceRecord>),
    /// Own card; published when it differs. Comes before anything can be published.
    Card(CardContent),
    /// Digest of the statements this node holds, for its heads; one is published at once when it differs.
    Statements([u8; 16]),
    /// Own imports changed.
    Imports(Imports),
    /// Roots or issuers changed: everything held and stored is judged again.
    Trust(TrustBundle),
    /// All evicted nodes, from the statements: stored and passed on, not served.
    Evicted(BTreeSet<NodeId>),
    /// The control connection to a peer is up.
    Connected(NodeId),
    /// The control connection to a peer is gone.
    Disconnected(NodeId),
    /// Membership changed its mind about a node.
    Member {
        /// The node.
        node: NodeId,
        /// Its state.
        state: MemberLiveness,
    },
    /// A frame of a peer. Those that are not the catalog's are skipped.
    Frame {
        /// The peer.
        from: NodeId,
        /// The frame.
        frame: Frame,
    },
}

/// State of a member, as membership sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberLiveness {
    /// It answers.
    Alive,
    /// It does not answer, for a short time; still used.
    Suspect,
    /// It is gone.
    Down,
    /// It said goodbye.
    Left,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a frame on the control connection to a peer; drop it when there is none.
    Send {
        /// The peer.
        to: NodeId,
        /// The frame.
        frame: Frame,
    },
    /// A card was learned or changed.
    NodeChanged(NodeId),
    /// The view of a service may differ. Once per service and drain.
    ServiceChanged(ServiceName),
    /// Somebody holds an advert of this node from an epoch that is over or never was: make an epoch of at least
    /// this durable, then call [`Catalog::set_epoch`].
    EpochBehind {
        /// The least epoch that is greater than the one seen.
        at_least: u64,
    },
    /// For the event log.
    Event(CatalogEvent),
}

/// A change of state worth a line in the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogEvent {
    /// A record is served from now on.
    Accepted {
        /// The service.
        service: ServiceName,
        /// The instance.
        instance: InstanceName,
        /// The node that said so.
        node: NodeId,
    },
    /// A record is not served any more. Those of a forgotten node go with [`Self::Forgotten`].
    Withdrawn {
        /// The service.
        service: ServiceName,
        /// The instance.
        instance: InstanceName,
        /// The node it ran on.
        node: NodeId,
    },
    /// A fragment is signed by its owner and does not decode here; stored and passed on, not served.
    Quarantined {
        /// The fragment.
        id: AdvertId,
        /// What is wrong with it.
        why: DecodeError,
    },
    /// A node has signed two adverts with one version: its identity runs twice. Said once per node.
    DuplicateIdentity {
        /// The node.
        node: NodeId,
    },
    /// A peer gave an advert that was refused. Said once per peer, reason and connection; counters have the rest.
    Refused {
        /// The peer.
        from: NodeId,
        /// The node the advert names, when it can be read.
        owner: Option<NodeId>,
        /// The reason.
        why: Refusal,
    },
    /// A node publishes FQDNs outside its certified suffixes; its records are served without them. Said when there
    /// are more of them than before.
    FqdnsDropped {
        /// The node.
        node: NodeId,
        /// How many there are.
        count: usize,
    },
    /// A node advertises addresses that are never dialled; the others of its card count. Said when they differ from before.
    AddressesDenied {
        /// The node.
        node: NodeId,
        /// The addresses, each with the reason; at least one.
        addresses: Vec<(SocketAddr, Denied)>,
    },
    /// A silent node was forgotten.
    Forgotten {
        /// The node.
        node: NodeId,
    },
    /// An own record breaks a limit or finds no room; the others are published.
    NotPublished {
        /// The service.
        service: ServiceName,
        /// The instance.
        instance: InstanceName,
    },
    /// The own card was not taken.
    CardRefused {
        /// The reason.
        why: CardError,
    },
}

/// Numbers for metrics. All but the first six only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Nodes whose card is held.
    pub nodes: u64,
    /// Adverts stored, own ones included.
    pub adverts: u64,
    /// Adverts that wait for a card or an issuer.
    pub held: u64,
    /// Stored fragments that do not decode here.
    pub quarantined: u64,
    /// Records outside the claims of their node, not served.
    pub outside_claims: u64,
    /// FQDNs outside the certified suffixes of their node, dropped.
    pub outside_suffixes: u64,
    /// Addresses that came in cards and are never dialled, by reason.
    pub addresses_denied: BTreeMap<Denied, u64>,
    /// Adverts of others taken, those restored included.
    pub accepted: u64,
    /// Copies of what was stored already.
    pub duplicates: u64,
    /// Copies older than what was stored.
    pub older: u64,
    /// Adverts with the version of the stored one and other bytes, signed by their owner.
    pub twins: u64,
    /// Adverts refused, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    /// Adverts stored and passed on without being read, of later versions.
    pub unread: u64,
    /// Own adverts pushed.
    pub pushes: u64,
    /// Copies handed to delegates of a tree.
    pub spread: u64,
    /// Adverts asked for.
    pub pulls: u64,
    /// Ids announced to far peers after they were learnt.
    pub announced: u64,
    /// Adverts over a rate, taken and passed on later, the latest of each slot.
    pub taken_later: u64,
    /// Announcements dropped because a peer made too many.
    pub announcements_cut: u64,
    /// Repairs this node began.
    pub repairs: u64,
    /// Bucket hashes of peers compared.
    pub buckets_compared: u64,
    /// Adverts given to peers that asked.
    pub repaired: u64,
    /// Answers cut short because a peer asked for too much.
    pub answers_cut: u64,
    /// Comparisons without the right number of buckets.
    pub malformed_lists: u64,
    /// Own records not published.
    pub not_published: u64,
}

/// The catalog core. `handle` and `handle_timeout`, then `next_output` until `None`, then `next_deadline`.
pub struct Catalog {
    config: CatalogConfig,
    trust: TrustBundle,
    rng: SmallRng,
    publisher: own::Publisher,
    own_leaf: Option<Leaf>,
    /// Own card that did not verify: tried again when the trust bundle changes.
    unverified_card: Option<CardContent>,
    evicted: BTreeSet<NodeId>,
    store: store::Store,
    held: held::Room,
    later: held::Room,
    rates: age::Rates,
    repair: repair::Repair,
    pulls: pull::Pulls,
    /// The epoch last asked for, so that it is asked for once.
    epoch_asked: u64,
    outputs: VecDeque<Output>,
    changed_nodes: BTreeSet<NodeId>,
    changed_services: BTreeSet<ServiceName>,
    /// Addresses of cards that are dropped, by node.
    denied: denied::Book,
    /// Refusals in the event log since the peer connected.
    said: BTreeSet<(NodeId, Refusal)>,
    counters: Counters,
}

impl Catalog {
    /// Makes a catalog. `epoch` is durable and greater than that of any earlier start. `restored` is what
    /// [`Self::export`] gave before, with the seconds of the stop added to each age; what it holds gets one
    /// fresh lease and is stale until word of its node comes.
    pub fn new(
        config: CatalogConfig,
        trust: TrustBundle,
        signer: Box<dyn Sign>,
        rng: SmallRng,
        epoch: u64,
        restored: Vec<AdvertCopy>,
        now: Now,
    ) -> Self {
        let node = config.node;
        let mut catalog = Self {
            publisher: own::Publisher::new(trust.mesh(), node, signer, (epoch, config.first_seq), now.mono),
            config,
            trust,
            rng,
            own_leaf: None,
            unverified_card: None,
            evicted: BTreeSet::new(),
            store: store::Store::new(node),
            held: held::Room::new(HELD_FOR),
            later: held::Room::new(age::LATER),
            rates: age::Rates::default(),
            repair: repair::Repair::new(now.mono),
            pulls: pull::Pulls::default(),
            epoch_asked: 0,
            outputs: VecDeque::new(),
            changed_nodes: BTreeSet::new(),
            changed_services: BTreeSet::new(),
            denied: denied::Book::default(),
            said: BTreeSet::new(),
            counters: Counters::default(),
        };
        catalog.restore(restored, now);
        catalog
    }

    /// Takes one input. Own adverts that are due afterwards go out with its outputs.
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Publish(records) => self.publisher.set_records(records),
            Input::Card(card) => self.set_card(card, now),
            Input::Statements(digest) => self.publisher.set_statements(digest, now.mono),
            Input::Imports(imports) => {
                self.config.imports = imports;
                self.changed_services.extend(self.store.services().cloned());
            }
            Input::Trust(trust) => self.set_trust(trust, now),
            Input::Evicted(nodes) => self.set_evicted(nodes, now),
            Input::Connected(peer) => {
                self.repair.connect(peer, &mut self.rng, now.mono);
                self.greet(peer);
            }
            Input::Disconnected(peer) => {
                self.repair.disconnect(peer);
                self.pulls.disconnect(peer, now.mono);
                self.rates.drop_peer(peer);
                self.said.retain(|(from, _)| *from != peer);
            }
            Input::Member { node, state } => {
                let was_gone =
                    matches!(self.store.liveness(node), MemberLiveness::Down | MemberLiveness::Left);
                if self.store.set_member(node, state) {
                    if was_gone && state == MemberLiveness::Alive {
                        self.repair.come_back(node, &mut self.rng, now.mono);
                    }
                    self.settle(node, now);
                }
            }
            Input::Frame { from, frame } => self.handle_frame(from, frame, now),
        }
        self.publish(now);
        self.act(now);
    }

    /// Does what is due: leases, ages, own heads, repair. Early calls do nothing.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some(node) = self.store.next_due(now.mono) {
            self.settle(node, now);
        }
        while self.held.take_due(now.mono).is_some() {}
        self.take_later(now);
        self.publish(now);
        self.act(now);
    }

    /// Publishes everything again under a greater epoch, which the caller has made durable.
    pub fn set_epoch(&mut self, epoch: u64, now: Now) {
        self.publisher.set_epoch(epoch, now.mono);
        self.publish(now);
    }

    /// Returns the next thing to do; call until `None`.
    pub fn next_output(&mut self) -> Option<Output> {
        trimmed(&mut self.outputs)
            .pop_front()
            .or_else(|| self.changed_nodes.pop_first().map(Output::NodeChanged))
            .or_else(|| self.changed_services.pop_first().map(Output::ServiceChanged))
    }

    /// Returns when to call `handle_timeout` next, if no input comes before.
    pub fn next_deadline(&self) -> Option<Instant> {
        let waiting = self.held.deadline().into_iter().chain(self.later.deadline()).min();
        let exchange = self.repair.deadline().into_iter().chain(self.pulls.deadline()).min();
        [self.store.deadline(), self.publisher.deadline(), waiting, exchange].into_iter().flatten().min()
    }

    /// Returns every stored advert with its age, own ones included: what to persist.
    pub fn export(&self, now: Now) -> Vec<AdvertCopy> {
        self.store.owner_ids().into_iter().flat_map(|node| self.store.copies(node, now.mono)).collect()
    }

    /// Returns the root hash: equal on nodes that hold the same cards and fragments.
    pub const fn root_hash(&self) -> u64 {
        self.store.hash()
    }

    /// Returns the numbers for metrics.
    pub fn counters(&self) -> Counters {
        let mut counters = self.counters.clone();
        counters.held = self.held.len() as u64;
        for (_, owner) in self.store.owners() {
            counters.nodes += 1;
            counters.adverts += owner.adverts().count() as u64;
            counters.quarantined += owner.quarantined().count() as u64;
            counters.outside_claims += owner.outside_claims() as u64;
            counters.outside_suffixes += owner.outside_suffixes() as u64;
            counters.unread += owner.unread() as u64;
        }
        counters
    }

    /// Brings what readers see of one node up to date and notes what changed.
    fn settle(&mut self, node: NodeId, now: Now) {
        let dropped = |catalog: &Self| catalog.store.owner(node).map_or(0, Owner::outside_suffixes);
        let before = dropped(self);
        let changes = self.store.settle(node, now);
        let count = dropped(self);
        if count > before {
            self.event(CatalogEvent::FqdnsDropped { node, count });
        }
        for (service, instance) in changes.accepted {
            self.event(CatalogEvent::Accepted { service, instance, node });
        }
        for (service, instance) in changes.withdrawn {
            self.event(CatalogEvent::Withdrawn { service, instance, node });
        }
        if changes.is_forgotten {
            self.denied.forget(node);
            self.event(CatalogEvent::Forgotten { node });
            self.changed_nodes.insert(node);
        }
        self.changed_services.extend(changes.services);
    }

    fn handle_frame(&mut self, from: NodeId, frame: Frame, now: Now) {
        match frame {
            Frame::Adverts { copies, forward } => {
                self.take_copies(from, copies, &Route { forward, interval: None }, now);
            }
            Frame::Spread { copies, first, last } => {
                let interval = Some(Interval { first, last });
                self.take_copies(from, copies, &Route { forward: Vec::new(), interval }, now);
            }
            Frame::Root(hash) => self.handle_root(from, hash, now),
            Frame::Buckets(hashes) => self.handle_buckets(from, &hashes, now),
            Frame::Ids { buckets, ids, whole } => self.handle_ids(from, &buckets, ids, whole, now),
            Frame::Have(ids) => self.handle_have(from, ids, now),
            Frame::Want(ids) => self.handle_want(from, ids, now),
            _ => {}
        }
    }

    fn event(&mut self, event: CatalogEvent) {
        self.outputs.push_back(Output::Event(event));
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("node", &self.config.node)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
