//! The members that export the services: 80 of them in this process, each with its own key, connections and word.
//!
//! Owns: their endpoints and the one copy of the catalog they share. Must not know: DNS, what is measured.
//! Driven by: the suite, which has them publish and change records.
//!
//! Transport, membership and statements of each member are the shipped ones, and its first adverts are made by a catalog
//! core of its own, which knows nothing else; later ones by [`Signed`], which says why. What the mesh tells any of them
//! goes to one more core, the replica, which answers in the name of whoever was told: 80 replicas and indexes would
//! need two processors for themselves. It is the first member's, and hears of changes before it answers, of each fragment
//! the latest.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use gossamer::app::mesh::{self, Mesh, MeshParts, MeshStages};
use gossamer::catalog::{Command, Parts};
use gossamer::clock::Clock;
use gossamer::entropy::Entropy;
use gossamer::events::EventLog;
use gossamer::identity::{Identity, Lifetimes, NodeKey};
use gossamer::metrics::Metrics;
use gossamer::store::Store;
use gossamer::supervise::Stage;
use gossamer::transport::{ToCatalog, Udp};
use gossamer_core::catalog::{Imports, Input, Output};
use gossamer_core::dial::Source;
use gossamer_core::statements::Statements;
use gossamer_tests::forge::Forge;
use gossamer_tests::quic::{Credentials, identity_of};
use gossamer_wire::advert::{Advert, Slot};
use gossamer_wire::frame::{AdvertCopy, Frame};
use gossamer_wire::join::PeerHint;
use gossamer_wire::{NodeId, ServiceRecord};
use rcgen::SanType;
use tokio::sync::mpsc;

use super::signed::Signed;
use super::zone::{Catalog, MEMBERS};

/// Where a change goes: service, instance, new weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) service: usize,
    pub(super) instance: usize,
    pub(super) weight: u16,
}

/// Changes made before what they say is sent.
const CHANGES_A_TURN: usize = 8;

/// Longest wait between two looks at timers.
const TICK: Duration = Duration::from_millis(100);

/// One member.
struct Member {
    mesh: Mesh,
    parts: Parts,
    records: Vec<ServiceRecord>,
    signed: Signed,
}

/// All members, and what they know.
pub(super) struct Choir {
    members: Vec<Member>,
    /// What the replica has not heard yet.
    untold: BTreeMap<Slot, AdvertCopy>,
    daemon: NodeId,
    clock: Clock,
    stages: Vec<MeshStages>,
}

impl Choir {
    /// Makes members of the mesh whose keys are in `state_dir`; its daemon listens on `daemon`. They join at once and
    /// publish when [`Self::run`] runs.
    pub(super) fn start(state_dir: &Path, daemon: SocketAddr, dir: &Path, catalog: &Catalog) -> Result<Self> {
        let (forge, known) = (Forge::of(state_dir)?, identity_of(state_dir)?);
        let seed = PeerHint { node: known.node(), addresses: vec![daemon], lanes: Vec::new() };
        let (mut members, mut stages) = (Vec::new(), Vec::new());
        for number in 0..MEMBERS {
            let identity = identity(&forge, &known, number, &seed)?;
            let state = dir.join(format!("member-{number}"));
            let stage = MeshStages::from(Stage::default());
            let signed = Signed::new(Arc::clone(&identity.key));
            let (mesh, parts) = mesh::start_without_catalog(&stage, mesh_parts(identity, &state)?)?;
            members.push(Member { mesh, parts, records: catalog.records(number)?, signed });
            stages.push(stage);
        }
        let (untold, clock) = (BTreeMap::new(), Clock::default());
        let mut choir = Self { members, untold, daemon: known.node(), clock, stages };
        choir.introduce();
        Ok(choir)
    }

    /// Tells the members where the others are: in a whole mesh their catalogs would.
    fn introduce(&mut self) {
        let all: Vec<_> = self.members.iter().map(|member| (member.parts.me, member.mesh.listen)).collect();
        let until = self.clock.wall() + 24 * 3_600;
        for member in &mut self.members {
            for (node, address) in all.iter().filter(|(node, _)| *node != member.parts.me) {
                member.mesh.peers.learn(*node, vec![*address], Source::Card);
                member.mesh.peers.certified(*node, until);
            }
        }
    }

    /// Speaks and listens until the changes end, and leaves.
    ///
    /// # Errors
    /// A change is of something that was not published.
    pub(super) async fn run(mut self, changes: mpsc::Receiver<Change>) -> Result<()> {
        let ended = self.perform(changes).await;
        let leaving = self.stages.iter().map(|stage| stage.stop(Duration::from_secs(2)));
        futures_util::future::join_all(leaving).await;
        ended
    }

    async fn perform(&mut self, mut changes: mpsc::Receiver<Change>) -> Result<()> {
        loop {
            // Whoever has heard something first is served first; the rest has its turn within a tick.
            let change = tokio::time::timeout(self.pause(), changes.recv()).await;
            match change {
                Ok(Some(change)) => self.change(change)?,
                Ok(None) => return Ok(()),
                Err(_) => {}
            }
            for _ in 0..CHANGES_A_TURN {
                let Ok(change) = changes.try_recv() else { break };
                self.change(change)?;
            }
            // What was said leaves before more is.
            tokio::task::yield_now().await;
            for number in 0..self.members.len() {
                self.serve(number)?;
            }
        }
    }

    /// Returns how long nobody has anything to do by the clock; frames are looked for after a millisecond.
    fn pause(&self) -> Duration {
        let busy = self.members.iter().any(|member| !member.parts.inputs.is_empty());
        if busy { Duration::ZERO } else { TICK / 100 }
    }

    fn change(&mut self, change: Change) -> Result<()> {
        let slot = change.service * super::zone::INSTANCES + change.instance;
        let number = slot % MEMBERS;
        let daemon = self.daemon;
        let Some(member) = self.members.get_mut(number) else { return Ok(()) };
        // Records stand in the order of services, each member having every so many.
        let Some(record) = member.records.get_mut(slot / MEMBERS) else { return Ok(()) };
        record.weight = change.weight;
        if number == 0 {
            // The replica holds its own adverts as it made them.
            member.parts.core.handle(Input::Publish(member.records.clone()), self.clock.now());
            return self.drain(number);
        }
        let copy = member.signed.change(&record.service, &record.instance, change.weight)?;
        let told = Frame::Adverts { copies: vec![copy.clone()], forward: Vec::new() };
        member.mesh.peers.send_frame(daemon, &told);
        self.untold.insert(Advert::parse_shared(&copy.bytes)?.id().slot, copy);
        Ok(())
    }

    /// Takes what one member was told, and runs its timers.
    fn serve(&mut self, number: usize) -> Result<()> {
        while let Ok(command) = self.members[number].parts.commands.try_recv() {
            if let Command::Standing { trust, evicted, digest } = command {
                for input in [Input::Trust(*trust), Input::Evicted(evicted), Input::Statements(digest)] {
                    self.members[number].parts.core.handle(input, self.clock.now());
                }
            }
        }
        while let Ok(told) = self.members[number].parts.inputs.try_recv() {
            let now = self.clock.now();
            match told {
                ToCatalog::Connected(peer) if peer == self.daemon => {
                    // Pushed, not compared: a publisher does not answer comparisons.
                    let Member { parts, records, signed, mesh } = &mut self.members[number];
                    parts.core.handle(Input::Connected(peer), now);
                    parts.core.handle(Input::Card(parts.card.clone()), now);
                    let copies = signed.copies();
                    if copies.is_empty() {
                        parts.core.handle(Input::Publish(records.clone()), now);
                    } else {
                        mesh.peers.send_frame(peer, &Frame::Adverts { copies, forward: Vec::new() });
                    }
                }
                ToCatalog::Disconnected(peer) if peer == self.daemon => {
                    self.members[number].parts.core.handle(Input::Disconnected(peer), now);
                }
                ToCatalog::Frame { from, frame } if from == self.daemon => self.hear(number, frame),
                _ => {}
            }
        }
        self.members[number].parts.core.handle_timeout(self.clock.now());
        self.drain(number)
    }

    /// Has the replica, which is the first member's core, answer the daemon in the name of a member.
    fn hear(&mut self, number: usize, frame: Frame) {
        let now = self.clock.now();
        for (slot, copy) in std::mem::take(&mut self.untold) {
            let frame = Frame::Adverts { copies: vec![copy], forward: Vec::new() };
            self.members[0].parts.core.handle(Input::Frame { from: slot.node, frame }, now);
        }
        self.members[0].parts.core.handle(Input::Frame { from: self.daemon, frame }, now);
        while let Some(output) = self.members[0].parts.core.next_output() {
            if let Output::Send { to, frame } = output
                && to == self.daemon
            {
                self.members[number].mesh.peers.send_frame(to, &frame);
            }
        }
    }

    /// Sends what a member has to say: all of it for the first, who holds everything; for the others their own adverts.
    fn drain(&mut self, number: usize) -> Result<()> {
        let me = self.members[number].parts.me;
        while let Some(output) = self.members[number].parts.core.next_output() {
            let Output::Send { to, frame } = output else { continue };
            if number == 0 {
                self.members[0].mesh.peers.send_frame(to, &frame);
                continue;
            }
            if let Frame::Adverts { copies, .. } | Frame::Spread { copies, .. } = frame {
                copies.iter().try_for_each(|copy| self.members[number].signed.keep(copy))?;
                let known = Frame::Adverts { copies: copies.clone(), forward: Vec::new() };
                self.members[0].parts.core.handle(Input::Frame { from: me, frame: known }, self.clock.now());
                let told = Frame::Adverts { copies, forward: Vec::new() };
                self.members[number].mesh.peers.send_frame(to, &told);
            }
        }
        Ok(())
    }
}

fn mesh_parts(identity: Identity, state: &Path) -> Result<MeshParts> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(state)?;
    Ok(MeshParts {
        identity: Arc::new(identity),
        store: Store::open(state)?,
        udp: Udp::Bind("127.0.0.1:0".parse()?),
        advertise: Vec::new(),
        lanes: Vec::new(),
        own_zones: Vec::new(),
        deny: gossamer_core::reach::Deny::default(),
        zone: None,
        region: None,
        imports: Imports::default(),
        joiners: None,
        lifetimes: Lifetimes::default(),
        clock: Clock::default(),
        entropy: Entropy::System,
        metrics: Arc::new(Metrics::default()),
        events: EventLog::default(),
    })
}

fn identity(forge: &Forge, known: &Identity, number: usize, seed: &PeerHint) -> Result<Identity> {
    let uri = format!("spiffe://{}/group/{}/node/m{number:02}", known.mesh, known.group());
    let uri = SanType::URI(uri.try_into()?);
    let Credentials::Chain(chain, key) = forge.leaf(|leaf| leaf.subject_alt_names = vec![uri])? else {
        anyhow::bail!("a leaf has a chain")
    };
    let leaf_der = chain.first().context("a leaf")?.to_vec();
    let trust = known.trust.clone();
    let roots: Vec<_> = trust.roots().iter().map(|der| der.to_vec()).collect();
    Ok(Identity {
        mesh: known.mesh,
        mesh_name: known.mesh_name.clone(),
        leaf: trust.verify(&leaf_der, &[], Clock::default().wall())?,
        leaf_der,
        zone: None,
        region: None,
        key: Arc::new(NodeKey::read(key.secret_der()).context("an Ed25519 key")?),
        issuer: None,
        holds_root_key: false,
        seeds: vec![seed.clone()],
        by_lane: false,
        issuers: known.issuers.clone(),
        statements: Statements::new(trust.mesh(), &roots)?,
        trust,
    })
}
