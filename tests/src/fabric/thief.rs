//! A stolen issuer's key in a mesh of real endpoints: a member signs with it and sends what it made to everybody.
//!
//! Owns: the statements of the thief, and in which order who hears them. Must not know: which of them count.
//! Driven by: a row of evidence, and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use gossamer_wire::NodeId;
use gossamer_wire::frame::Frame;
use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::statement::Change;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::Fabric;
use crate::sim::authority::Author;

/// Statements in one frame of the thief.
const BATCH: usize = 250;
/// Share of its statements that it sends twice.
const TWICE: f64 = 0.05;
/// How long all may take to know the same.
const AGREED_WITHIN: Duration = Duration::from_secs(30);

/// Who has a stolen key.
#[derive(Debug)]
pub struct Thief {
    key: Author,
    /// The member that sends.
    node: usize,
    /// The member whose key it was.
    holder: usize,
    statements: Vec<Vec<u8>>,
    rng: StdRng,
}

/// What nodes agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Digest of the statements.
    pub digest: [u8; 16],
    /// Statements that are kept.
    pub kept: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Nodes that are out.
    pub evicted: BTreeSet<NodeId>,
}

impl Thief {
    /// Signs one more eviction; a number may be used again.
    ///
    /// # Errors
    /// A bug.
    pub fn evict(&mut self, number: u64, out: NodeId) -> Result<()> {
        self.statements.push(self.key.say(number, Change::Evict(out))?);
        Ok(())
    }
}

impl Fabric {
    /// Lets the root add two issuers, the one that admitted all nodes and one at `holder`, whose key `node` has stolen.
    ///
    /// # Errors
    /// Not all hear of it.
    pub fn steal_issuer(&mut self, holder: usize, node: usize) -> Result<Thief> {
        let claims =
            IssuerClaims { node: self.id(holder)?, name: format!("n{holder}").parse()?, groups: Vec::new() };
        let (key, certificate) = self.authority.add_issuer(&claims)?;
        let admitting = self.authority.issuer_der().to_vec();
        let root = self.authority.root();
        let said = [admitting, certificate].into_iter().zip(0..);
        let said =
            said.map(|(der, number)| root.say(number, Change::AddIssuer(der))).collect::<Result<_>>()?;
        let to = self.id(0)?;
        anyhow::ensure!(self.mesh(node)?.peers.send_frame(to, &Frame::Statements(said)), "no link to node 0");
        let all = (0..self.nodes.len()).collect();
        self.run_until(AGREED_WITHIN, "the issuers known to all", |fabric| {
            Ok(fabric.agreed(&all)?.is_some_and(|agreed| agreed.kept == 2))
        })?;
        let rng = StdRng::seed_from_u64(self.seed);
        Ok(Thief { key, node, holder, statements: Vec::new(), rng })
    }

    /// Sends all statements of a thief to each of some nodes, to each in another order, some twice.
    ///
    /// # Errors
    /// The thief does not run.
    pub fn spread(&self, thief: &mut Thief, to: &BTreeSet<usize>) -> Result<()> {
        let peers = self.mesh(thief.node)?.peers.clone();
        let mut frames: Vec<(usize, Frame)> = Vec::new();
        for node in to.iter().filter(|node| **node != thief.node) {
            let mut statements = thief.statements.clone();
            let again = thief.statements.iter().filter(|_| thief.rng.random_bool(TWICE));
            statements.extend(again.cloned());
            statements.shuffle(&mut thief.rng);
            frames.extend(statements.chunks(BATCH).map(|batch| (*node, Frame::Statements(batch.to_vec()))));
        }
        // The batches of all nodes are mixed as well.
        frames.shuffle(&mut thief.rng);
        for (node, frame) in frames {
            let _ = peers.send_frame(self.id(node)?, &frame);
        }
        Ok(())
    }

    /// Lets the root remove the issuer whose key was stolen.
    ///
    /// # Errors
    /// The order is refused.
    pub fn remove_stolen(&self, thief: &Thief) -> Result<()> {
        let authority = self.mesh(0)?.authority.clone();
        let removing = authority.remove_issuer(self.id(thief.holder)?, format!("n{}", thief.holder), true);
        self.run(removing).context("the order")
    }

    /// Lets the root give the stolen key a budget of so many statements.
    ///
    /// # Errors
    /// The order is refused.
    pub fn grant_stolen(&self, thief: &Thief, numbers: u64) -> Result<()> {
        let authority = self.mesh(0)?.authority.clone();
        let granting = authority.grant(self.id(thief.holder)?, format!("n{}", thief.holder), numbers);
        self.run(granting).context("the order")
    }

    /// Returns what all of some nodes know; `None` when they differ.
    ///
    /// # Errors
    /// One of them does not run.
    pub fn agreed(&self, nodes: &BTreeSet<usize>) -> Result<Option<Agreed>> {
        let mut agreed = None;
        for node in nodes {
            let known = self.mesh(*node)?.authority.known();
            let next = Agreed {
                digest: known.digest,
                kept: known.statements.len(),
                bytes: known.statements.iter().map(Vec::len).sum(),
                evicted: known.evicted.as_ref().clone(),
            };
            if agreed.get_or_insert_with(|| next.clone()) != &next {
                return Ok(None);
            }
        }
        Ok(agreed)
    }

    /// Waits until some nodes know the same, and know no other thing two seconds later.
    ///
    /// # Errors
    /// They do not.
    pub fn agree(&mut self, nodes: &BTreeSet<usize>, what: &str) -> Result<Agreed> {
        self.run_for(Duration::from_secs(2));
        self.run_until(AGREED_WITHIN, what, |fabric| Ok(fabric.agreed(nodes)?.is_some()))?;
        self.run_for(Duration::from_secs(2));
        self.agreed(nodes)?.with_context(|| format!("{what}: they differ again"))
    }

    /// Returns how many statements each node has refused so far.
    ///
    /// # Errors
    /// One does not run.
    pub fn statements_refused(&self, nodes: &BTreeSet<usize>) -> Result<BTreeMap<usize, u64>> {
        let name = "gossamer_statements_refused_total";
        let refused = |node: &usize| Ok((*node, self.metrics(*node)?.get(name).copied().unwrap_or_default()));
        nodes.iter().map(refused).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stolen_key_signs_acts_up_to_its_budget_and_not_after_its_removal() {
        let mut fabric = Fabric::with_root_key(8, 5).expect("joined");
        let mut thief = fabric.steal_issuer(1, 2).expect("stolen");
        for number in 0..100 {
            thief.evict(number, NodeId::from_bytes([number as u8; 16])).expect("signs");
        }
        let all: BTreeSet<usize> = (0..8).collect();
        fabric.spread(&mut thief, &all).expect("sends");
        let agreed = fabric.agree(&all, "the evictions").expect("agree");
        assert_eq!((agreed.evicted.len(), agreed.kept), (64, 66));
        let refused = fabric.statements_refused(&all).expect("run");
        assert!(refused.iter().all(|(node, refused)| *node == 2 || *refused >= 36), "{refused:?}");
        fabric.remove_stolen(&thief).expect("removes");
        fabric.spread(&mut thief, &all).expect("sends");
        let agreed = fabric.agree(&all, "the removal").expect("agree");
        assert_eq!((agreed.evicted.len(), agreed.kept), (0, 3));
    }
}
