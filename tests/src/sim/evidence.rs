//! Checks that a scenario file cannot express: an attacker among the members, a long life, a large quiet mesh.
//!
//! Owns: what is done and what is counted. Must not know: how rows of evidence are printed. Driven by: rows.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use gossamer_core::membership::MemberState;
use gossamer_wire::Generation;
use gossamer_wire::swim::{self, Identity, SwimHeader, SwimMember, SwimMessage, SwimState};

use super::Mesh;
use super::measure::{Run, Size, resident_mib};
use crate::scenario::{Act, Disk, World as _};

/// What a member does to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// It says that it is down.
    Forge,
    /// Its machine ends, so that the claim is true.
    Kill,
}

/// What an attacker with a certificate reached with forged deaths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forged {
    /// Datagrams it sent.
    pub datagrams: u64,
    /// Honest nodes that held the victim for down at some time.
    pub fooled: usize,
    /// Samples of one honest view, ten a second, in which the victim was missing.
    pub missing: u64,
    /// Such samples in all.
    pub samples: u64,
    /// How often the victim had to renew its identity.
    pub renewals: u64,
    /// Honest nodes that named the attacker.
    pub naming: usize,
    /// Honest nodes that somebody honest named.
    pub slandered: usize,
}

/// A member says of another that it is down: in three datagrams to three nodes, then in a hundred a second to all
/// in turn, for 60 s.
///
/// # Errors
/// The nodes did not find each other.
pub fn forged_down(nodes: usize, seed: u64, attack: Attack) -> Result<Forged> {
    forge_in(joined(nodes, None, 0.0, seed)?, attack)
}

/// The same in a mesh with connections between so many members at most, so that many cannot ask the victim itself.
///
/// # Errors
/// The nodes did not find each other.
pub fn forged_down_cold(nodes: usize, warm: usize, loss: f64, seed: u64) -> Result<Forged> {
    forge_in(joined(nodes, Some(warm), loss, seed)?, Attack::Forge)
}

/// A mesh as soon as all see all, which is before all are connected.
fn joined(nodes: usize, warm: Option<usize>, loss: f64, seed: u64) -> Result<Mesh> {
    let mut mesh = Run::mesh(Size { nodes, loss, seed, sabotage: None }, 1, [0.2, 1.0])?;
    warm.into_iter().for_each(|limit| mesh.set_warm_limit(limit));
    mesh.start_all()?;
    mesh.run_until(Duration::from_secs(600), Mesh::agree).context("the nodes did not find each other")?;
    Ok(mesh)
}

fn forge_in(mut mesh: Mesh, attack: Attack) -> Result<Forged> {
    let nodes = mesh.nodes.len();
    let (attacker, victim) = (1, 2);
    let honest: Vec<usize> = (0..nodes).filter(|node| ![attacker, victim].contains(node)).collect();
    mesh.downs.clear();
    if attack == Attack::Kill {
        mesh.act(&Act::Kill(victim))?;
    }
    let mut result = Forged::default();
    for target in honest.iter().take(3) {
        result.datagrams += u64::from(mesh.forge(attacker, *target, victim)?);
    }
    watch_victim(&mut mesh, &honest, victim, 300, &mut result);
    for number in 0..6_000 {
        result.datagrams += u64::from(mesh.forge(attacker, honest[number % honest.len()], victim)?);
        mesh.run(mesh.now + Duration::from_millis(10));
        if number % 10 == 0 {
            sample(&mesh, &honest, victim, &mut result);
        }
    }
    watch_victim(&mut mesh, &honest, victim, 300, &mut result);
    let mut fooled: Vec<usize> = mesh
        .downs
        .iter()
        .filter(|down| down.node == victim && honest.contains(&down.by))
        .map(|down| down.by)
        .collect();
    fooled.sort_unstable();
    fooled.dedup();
    result.fooled = fooled.len();
    let naming = mesh.named.iter().filter(|(by, whom)| *whom == attacker && honest.contains(by));
    result.naming = naming.map(|(by, _)| *by).collect::<BTreeSet<_>>().len();
    let slandered = mesh.named.iter().filter(|(by, whom)| *whom != attacker && *by != attacker);
    result.slandered = slandered.map(|(_, whom)| *whom).collect::<BTreeSet<_>>().len();
    result.renewals = mesh.nodes[victim].renewals;
    Ok(result)
}

/// Records that come on top with each restart when they pile up: a fragment or so.
const PILE: usize = 12;

fn watch_victim(mesh: &mut Mesh, honest: &[usize], victim: usize, tenths: usize, result: &mut Forged) {
    for _ in 0..tenths {
        mesh.run(mesh.now + Duration::from_millis(100));
        sample(mesh, honest, victim, result);
    }
}

fn sample(mesh: &Mesh, honest: &[usize], victim: usize, result: &mut Forged) {
    for node in honest {
        let is_up = mesh.view(*node, victim).is_some_and(MemberState::is_up);
        result.missing += u64::from(!is_up);
        result.samples += 1;
    }
}

/// How the memory of a mesh goes while its nodes come and go.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Simulated minutes, resident MiB of the process, entries in the cores of all nodes.
    pub samples: Vec<(f64, f64, u64)>,
    /// MiB per simulated hour over the second half.
    pub mib_per_hour: f64,
    /// Entries per simulated hour over the second half, by those at its beginning.
    pub entries_per_hour: f64,
}

/// Restarts one node in ten each minute; one record of each changes, or comes on top when records `pile_up`.
///
/// # Errors
/// The nodes did not find each other.
pub fn memory_of_churn(nodes: usize, minutes: u32, seed: u64, pile_up: bool) -> Result<Memory> {
    let (_, mut mesh) = Run::join(Size { nodes, loss: 0.0, seed, sabotage: None }, 10, [0.2, 1.0])?;
    mesh.has_disks = true;
    let (begin, mut next) = (mesh.now, 1);
    let mut samples = Vec::new();
    let each = (nodes / 10).max(1);
    for minute in 1..=minutes {
        for place in 0..each {
            // Node 0 is the one that new nodes know.
            next = next % (nodes - 1) + 1;
            let pause = Duration::from_secs(60) / u32::try_from(each)? * u32::try_from(place)?;
            mesh.run(begin + Duration::from_secs(60) * (minute - 1) + pause);
            mesh.act(&Act::Kill(next))?;
            mesh.run(mesh.now + Duration::from_millis(500));
            let count = if pile_up { PILE } else { 1 };
            mesh.act(&Act::Publish { node: next, count })?;
            if !pile_up {
                mesh.act(&Act::Withdraw { node: next, count })?;
            }
            mesh.act(&Act::Start { node: next, disk: Disk::Kept })?;
        }
        mesh.run(begin + Duration::from_secs(60) * minute);
        samples.push((f64::from(minute), resident_mib(), mesh.entries()));
    }
    let half = samples.len() / 2;
    let (first, last) = (samples[half], samples.last().copied().context("at least a minute")?);
    let hours = ((last.0 - first.0) / 60.0).max(f64::EPSILON);
    Ok(Memory {
        mib_per_hour: (last.1 - first.1) / hours,
        entries_per_hour: (last.2 as f64 / first.2.max(1) as f64 - 1.0) / hours,
        samples,
    })
}

impl Mesh {
    /// Returns who named whom for false claims, by number.
    pub fn named(&self) -> &[(usize, usize)] {
        &self.named
    }

    /// Lets a member send another a datagram that says a third is down. Whether there was a connection for it.
    fn forge(&mut self, attacker: usize, target: usize, victim: usize) -> Result<bool> {
        let generation_at = |mesh: &Self, at: usize, of: usize| {
            let process = mesh.nodes[at].process.as_ref()?;
            let id = mesh.id(of);
            process.membership.members().find(|member| member.node == id).map(|member| member.generation)
        };
        let me = self.nodes[attacker].process.as_ref().map(|process| process.membership.me().generation);
        let header = SwimHeader {
            from: me.unwrap_or_default(),
            incarnation: 0,
            to: generation_at(self, attacker, target).unwrap_or_default(),
            message: SwimMessage::Gossip,
        };
        let process = self.nodes[target].process.as_ref();
        let id = self.id(victim);
        let known = process.and_then(|process| process.membership.members().find(|member| member.node == id));
        let (generation, incarnation) = known
            .map_or_else(|| (Generation::default(), 0), |member| (member.generation, member.incarnation));
        let identity = Identity { node: id, generation };
        // Above the incarnation the target knows, so that the claim is the newest.
        let claim = SwimMember { identity, incarnation: incarnation + 1, state: SwimState::Down };
        let mut bytes = swim::encode(&header)?;
        bytes.extend(1_u16.to_be_bytes());
        bytes.extend(swim::encode(&claim)?);
        let is_connected = self.nodes[attacker]
            .process
            .as_ref()
            .is_some_and(|process| process.current.get(target).is_some());
        self.send_packet(attacker, target, bytes);
        Ok(is_connected)
    }

    /// Returns how one node sees another.
    fn view(&self, node: usize, other: usize) -> Option<MemberState> {
        let id = self.id(other);
        let process = self.nodes[node].process.as_ref()?;
        process.membership.members().find(|member| member.node == id).map(|member| member.state)
    }

    /// Returns the entries in the cores of all nodes: members, adverts, connections, dial book.
    fn entries(&self) -> u64 {
        let of = |process: &super::node::Process| {
            let counters = process.catalog.counters();
            process.membership.members().count() as u64
                + counters.adverts
                + counters.held
                + process.current.len() as u64
        };
        self.nodes.iter().filter_map(|node| node.process.as_deref()).map(of).sum()
    }
}
