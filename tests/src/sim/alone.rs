//! One catalog core that holds the records of a mesh larger than can be simulated whole.
//!
//! Owns: the adverts of the other nodes, which their own cores make, and what is measured. Must not know: networks.
//! Driven by: the bench.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gossamer_core::catalog::{
    CardContent, Catalog, CatalogConfig, DIRECT_UP_TO, Imports, Input, MemberLiveness, Output,
};
use gossamer_core::time::Now;
use gossamer_wire::advert::{Advert, Kind};
use gossamer_wire::frame::{AdvertCopy, Frame};
use gossamer_wire::{InstanceName, NodeId, ServiceRecord};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::authority::{Authority, Identity, WALL};
use super::measure::resident_mib;
use super::node::{record, service};

/// What one catalog costs on one core.
#[derive(Clone, Copy, Debug)]
pub struct Alone {
    /// Adverts stored: cards, fragments and heads.
    pub adverts: u64,
    /// Records served.
    pub records: usize,
    /// Taking all of it in, one node after the other, signatures and certificates checked: seconds.
    pub load_seconds: f64,
    /// Resident memory that came with it, MiB.
    pub memory_mib: f64,
    /// Taking in one new version of a fragment, in the median: microseconds.
    pub change_us: f64,
    /// A peer's root hash that is equal, in the median: microseconds.
    pub equal_us: f64,
    /// A peer's bucket hashes of which one differs, answered with the ids of that bucket: microseconds.
    pub differ_us: f64,
    /// The whole catalog with ages, as it is written to the disk: seconds.
    pub export_seconds: f64,
}

/// Lets one catalog take in `records` records of each of `nodes` - 1 other nodes.
///
/// # Errors
/// The provider of cryptography refuses, or the catalog did.
pub fn alone(nodes: usize, records: usize, seed: u64) -> Result<Alone> {
    let mut world = World::new(seed)?;
    let mut own = world.catalog("large", 1)?.0;
    let mut others = (1..nodes).map(|number| world.adverts(number, records)).collect::<Result<Vec<_>>>()?;
    let first = others.first().context("at least two nodes")?.id;
    own.handle(Input::Connected(first), world.now);
    drain(&mut own);
    let (before, begin) = (resident_mib(), Instant::now());
    for other in &others {
        own.handle(Input::Member { node: other.id, state: MemberLiveness::Alive }, world.now);
        own.handle(adverts(other.id, other.copies.clone()), world.now);
        drain(&mut own);
    }
    let load_seconds = begin.elapsed().as_secs_f64();
    let memory_mib = resident_mib() - before;
    let served: usize = own.nodes(world.now).iter().map(|view| view.records).sum();
    ensure!(served == (nodes - 1) * records + 1, "{served} records are served");
    let change_us = world.changes(&mut own, &mut others)?;
    let [equal_us, differ_us] = world.comparisons(&mut own, first)?;
    let begin = Instant::now();
    let exported = own.export(world.now).len();
    let export_seconds = begin.elapsed().as_secs_f64();
    ensure!(exported as u64 == own.counters().adverts, "{exported} adverts are exported");
    Ok(Alone {
        adverts: own.counters().adverts,
        records: served,
        load_seconds,
        memory_mib,
        change_us,
        equal_us,
        differ_us,
        export_seconds,
    })
}

/// Another node: what it says, and its core where changes are to come from it.
struct Other {
    id: NodeId,
    copies: Vec<AdvertCopy>,
    changes: Option<(Catalog, Vec<ServiceRecord>)>,
}

struct World {
    authority: Authority,
    now: Now,
}

impl World {
    fn new(seed: u64) -> Result<Self> {
        let now = Now { mono: Instant::now(), wall: WALL };
        Ok(Self { authority: Authority::new(seed)?, now })
    }

    /// Makes a node with so many records.
    fn catalog(&mut self, name: &str, records: usize) -> Result<(Catalog, NodeId, Vec<ServiceRecord>)> {
        let Identity { node, leaf, key, .. } = self.authority.admit(name)?;
        let config = CatalogConfig {
            node,
            group: "west".parse()?,
            zone: None,
            region: None,
            imports: Imports::default(),
            deny: gossamer_core::reach::Deny::default(),
            direct_up_to: DIRECT_UP_TO,
            first_seq: 1,
        };
        let rng = SmallRng::seed_from_u64(1);
        let trust = self.authority.trust();
        let mut catalog = Catalog::new(config, trust, Box::new(key), rng, 1, Vec::new(), self.now);
        let instance: InstanceName = name.parse()?;
        let records: Vec<_> = (0..records).map(|number| record(service(number), instance.clone())).collect();
        catalog.handle(Input::Card(CardContent { leaf, ..CardContent::default() }), self.now);
        catalog.handle(Input::Publish(records.clone()), self.now);
        drain(&mut catalog);
        Ok((catalog, node, records))
    }

    fn adverts(&mut self, number: usize, records: usize) -> Result<Other> {
        let (catalog, id, records) = self.catalog(&format!("n{number}"), records)?;
        let copies = catalog.export(self.now);
        Ok(Other { id, copies, changes: (number <= CHANGES).then_some((catalog, records)) })
    }

    /// Changes one record of each of some nodes and returns how long the large catalog takes to take it in.
    fn changes(&mut self, own: &mut Catalog, others: &mut [Other]) -> Result<f64> {
        let mut times = Vec::new();
        for Other { id, changes, .. } in others {
            let Some((catalog, records)) = changes else { continue };
            self.now.mono += Duration::from_millis(100);
            records.iter_mut().take(1).for_each(|record| record.weight = 7);
            catalog.handle(Input::Publish(records.clone()), self.now);
            let copies = catalog.export(self.now).into_iter();
            let fragments = copies.filter(|copy| is_fragment(&copy.bytes)).collect();
            let before = own.counters().accepted;
            times.push(timed(|| {
                own.handle(adverts(*id, fragments), self.now);
                drain(own);
            }));
            ensure!(own.counters().accepted == before + 1, "a change was not taken");
        }
        Ok(median(times))
    }

    /// Compares with a peer, again and again.
    fn comparisons(&mut self, own: &mut Catalog, peer: NodeId) -> Result<[f64; 2]> {
        let (mut equal, mut differ) = (Vec::new(), Vec::new());
        let buckets = self.buckets(own, peer).context("the catalog never showed its buckets")?;
        for _ in 0..COMPARISONS {
            self.now.mono += Duration::from_secs(4);
            own.handle_timeout(self.now);
            drain(own);
            let root = Frame::Root(own.root_hash());
            equal.push(timed(|| own.handle(Input::Frame { from: peer, frame: root }, self.now)));
            // One bucket differs: what is listed is one in 256 of all ids.
            let mut hashes = buckets.clone();
            hashes.iter_mut().take(1).for_each(|hash| *hash ^= 1);
            let mut listed = Vec::new();
            differ.push(timed(|| {
                own.handle(Input::Frame { from: peer, frame: Frame::Buckets(hashes) }, self.now);
                listed = drain(own);
            }));
            let is_list = |output: &Output| matches!(output, Output::Send { frame: Frame::Ids { .. }, .. });
            ensure!(listed.iter().any(is_list), "no ids were listed");
        }
        Ok([median(equal), median(differ)])
    }
}

impl World {
    /// Shows another root hash until the catalog believes in the difference and answers with its buckets.
    fn buckets(&mut self, own: &mut Catalog, peer: NodeId) -> Option<Vec<u64>> {
        for _ in 0..4 {
            self.now.mono += Duration::from_secs(5);
            own.handle_timeout(self.now);
            drain(own);
            let root = Frame::Root(own.root_hash() ^ 1);
            own.handle(Input::Frame { from: peer, frame: root }, self.now);
            for output in drain(own) {
                if let Output::Send { frame: Frame::Buckets(hashes), .. } = output {
                    return Some(hashes);
                }
            }
        }
        None
    }
}

fn adverts(from: NodeId, copies: Vec<AdvertCopy>) -> Input {
    Input::Frame { from, frame: Frame::Adverts { copies, forward: Vec::new() } }
}

fn is_fragment(bytes: &[u8]) -> bool {
    Advert::parse(bytes).is_ok_and(|advert| advert.id().slot.kind == Kind::Records)
}

fn drain(catalog: &mut Catalog) -> Vec<Output> {
    std::iter::from_fn(|| catalog.next_output()).collect()
}

/// Returns how many microseconds something takes.
fn timed(act: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    act();
    begin.elapsed().as_secs_f64() * 1e6
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// Changes measured, each of another node.
const CHANGES: usize = 500;

/// Comparisons measured.
const COMPARISONS: usize = 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_alone_holds_what_it_was_given() {
        let alone = alone(20, 3, 1).expect("measures");
        assert_eq!((alone.records, alone.adverts), (19 * 3 + 1, 20 * 3));
        assert!(alone.load_seconds > 0.0 && alone.change_us > 0.0 && alone.equal_us < alone.change_us);
        assert!(alone.differ_us > 0.0 && alone.export_seconds < 1.0, "{alone:?}");
    }

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
        assert!(median(Vec::new()).is_infinite());
    }
}
