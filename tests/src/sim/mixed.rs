//! Meshes that are not of one mind: half of the nodes speak a later version, and one publishes what nobody can read.
//!
//! Owns: what such nodes put on the wire in place of what their cores say, and what a quiet mesh of them costs.
//! Must not know: how frames travel. Driven by: the links, for every frame, and rows of evidence.
//!
//! All cores are the shipped ones. A core of a later version is one whose adverts are rewritten where they leave it,
//! under their own ids and with their owner's signature, and back where another of that version takes them; the
//! others see bodies of a version they do not know.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gossamer_core::trust::Sign as _;
use gossamer_wire::advert::{Advert, Fragment, HEADER_BYTES, Kind, SERVICE_ENTRY, SIGNATURE_BYTES, VERSION};
use gossamer_wire::frame::{AdvertCopy, Frame};

use super::Mesh;
use super::measure::{Run, Size};
use crate::scenario::World as _;

/// Who does not speak as the others do.
#[derive(Debug, Default)]
pub(super) struct Dialects {
    /// Nodes of a later version.
    later: BTreeSet<usize>,
    /// The node whose fragments nobody can decode.
    nasty: Option<usize>,
    /// Whether the nodes of this version throw away what they cannot read.
    drops_unread: bool,
}

impl Dialects {
    /// Whether all nodes speak as their cores do.
    pub(super) fn is_one(&self) -> bool {
        self.later.is_empty() && self.nasty.is_none() && !self.drops_unread
    }
}

/// What a mixed mesh is compared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// What cannot be read is stored and passed on, as the shipped cores do.
    Carried,
    /// It is lost on its way to each node that cannot read it.
    Dropped,
}

/// What a quiet mixed mesh costs.
#[derive(Clone, Copy, Debug)]
pub struct Mixed {
    /// Bytes per node and second of the same mesh with one version and nothing quarantined.
    pub plain: f64,
    /// Of the mixed one.
    pub mixed: f64,
    /// Fewest adverts that a node of this version holds and cannot read.
    pub unread: u64,
    /// Fewest fragments that a node beside their owner has quarantined.
    pub quarantined: u64,
}

impl Mixed {
    /// Returns the bytes of the mixed mesh by those of the plain one.
    pub fn ratio(&self) -> f64 {
        self.mixed / self.plain
    }
}

/// The header of the later version, and what it puts behind each body.
const LATER: u8 = VERSION + 1;
const MORE: &[u8] = b"later";

/// Lets a mesh become equal and be for so long, once with one version, once mixed.
///
/// # Errors
/// The nodes did not find each other, or did not come to hold the same.
pub fn mixed_idle(nodes: usize, seed: u64, length: Duration, unread: Unread) -> Result<Mixed> {
    let size = Size { nodes, loss: 0.0, seed, sabotage: None };
    let mut plain = Run::mesh(size, RECORDS, NEAR)?;
    let plain = idle(&mut plain, length)?;
    let mut mesh = Run::mesh(size, RECORDS, NEAR)?;
    let later: BTreeSet<usize> = (0..nodes).filter(|node| node % 2 == 1).collect();
    // Of this version, and not the one that the others know at their start.
    let nasty = 2;
    mesh.dialects =
        Dialects { later: later.clone(), nasty: Some(nasty), drops_unread: unread == Unread::Dropped };
    let bytes = idle(&mut mesh, length)?;
    let counters = |node: usize| mesh.nodes[node].process.as_ref().map(|process| process.catalog.counters());
    let of_this = (0..nodes).filter(|node| !later.contains(node));
    let unread = of_this.filter_map(counters).map(|counters| counters.unread).min();
    let others = (0..nodes).filter(|node| *node != nasty);
    let quarantined = others.filter_map(counters).map(|counters| counters.quarantined).min();
    Ok(Mixed {
        plain,
        mixed: bytes,
        unread: unread.context("nodes of this version")?,
        quarantined: quarantined.context("other nodes")?,
    })
}

/// Starts a mesh, waits until it is settled, and returns bytes per node and second of the time after that.
fn idle(mesh: &mut Mesh, length: Duration) -> Result<f64> {
    mesh.start_all()?;
    let joined = mesh.run_until(JOIN_PATIENCE, Mesh::all_see_all);
    ensure!(joined.is_some(), "the nodes did not find each other");
    mesh.run(mesh.now + SETTLED);
    ensure!(mesh.dialects.drops_unread || mesh.catalogs_agree(), "the catalogs did not become equal");
    let nodes = mesh.nodes.len();
    let sent = |mesh: &mut Mesh| (0..nodes).map(|node| mesh.bytes_sent(node)).sum::<u64>();
    let before = sent(mesh);
    mesh.run(mesh.now + length);
    Ok((sent(mesh) - before) as f64 / nodes as f64 / length.as_secs_f64())
}

impl Mesh {
    /// Returns a frame as its sender puts it on the wire.
    pub(super) fn spoken(&self, from: usize, frame: Frame) -> Frame {
        let speaks_later = self.dialects.later.contains(&from);
        if !speaks_later && self.dialects.nasty != Some(from) {
            return frame;
        }
        self.each_copy(frame, |owner, advert| {
            let id = advert.id();
            if speaks_later && self.dialects.later.contains(&owner) && advert.is_readable() {
                return Some(self.signed_as(owner, advert, LATER, &[advert.body(), MORE].concat()));
            }
            if owner == from && self.dialects.nasty == Some(owner) && id.slot.kind == Kind::Records {
                let nasty = Fragment { entries: vec![(SERVICE_ENTRY, vec![0xff; 40])] }.encode().ok()?;
                return Some(self.signed_as(owner, advert, VERSION, &nasty));
            }
            Some(advert.bytes().to_vec())
        })
    }

    /// Returns a frame as its receiver understands it.
    pub(super) fn understood(&self, by: usize, frame: Frame) -> Frame {
        let reads_later = self.dialects.later.contains(&by);
        if !reads_later && !self.dialects.drops_unread && self.dialects.nasty != Some(by) {
            return frame;
        }
        self.each_copy(frame, |owner, advert| {
            // Its core never made the bytes that others hold of it.
            if owner == by && self.dialects.nasty == Some(by) {
                return None;
            }
            if advert.is_readable() {
                return Some(advert.bytes().to_vec());
            }
            if !reads_later {
                return (!self.dialects.drops_unread).then(|| advert.bytes().to_vec());
            }
            let body = advert.body().strip_suffix(MORE)?;
            Some(self.signed_as(owner, advert, VERSION, body))
        })
    }

    /// Rewrites the adverts of a frame; those without new bytes go.
    fn each_copy(&self, mut frame: Frame, rewrite: impl Fn(usize, &Advert) -> Option<Vec<u8>>) -> Frame {
        if let Frame::Adverts { copies, .. } | Frame::Spread { copies, .. } = &mut frame {
            copies.retain_mut(|AdvertCopy { bytes, .. }| {
                let Ok(advert) = Advert::parse(bytes) else { return true };
                let Some(owner) = self.number(advert.id().slot.node) else { return true };
                let written = rewrite(owner, &advert);
                let stays = written.is_some();
                *bytes = written.unwrap_or_default().into();
                stays
            });
        }
        frame
    }

    /// Returns an advert with another version of the header and another body, signed by its owner.
    fn signed_as(&self, owner: usize, advert: &Advert, version: u8, body: &[u8]) -> Vec<u8> {
        let header = advert.bytes().get(1..HEADER_BYTES).unwrap_or_default();
        let mut bytes = [&[version][..], header, body].concat();
        let unsigned = bytes.len();
        bytes.resize(unsigned + SIGNATURE_BYTES, 0);
        let signed =
            Advert::parse(&bytes).expect("the header is the same and a simulated body is short").signed();
        bytes.truncate(unsigned);
        bytes.extend(self.nodes[owner].identity.key.sign(&signed));
        bytes
    }
}

/// Records of each node.
const RECORDS: usize = 2;

/// One-way delays, milliseconds.
const NEAR: [f64; 2] = [0.2, 1.0];

/// Longest wait for all to see all.
const JOIN_PATIENCE: Duration = Duration::from_secs(120);

/// From then until the mesh counts as quiet, as the issue measures it.
const SETTLED: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixed_mesh_becomes_equal_and_costs_what_others_cost() {
        let mixed = mixed_idle(6, 1, Duration::from_secs(120), Unread::Carried).expect("runs");
        // Card, fragment and head of three nodes of the later version.
        assert_eq!((mixed.unread, mixed.quarantined), (9, 1), "{mixed:?}");
        assert!(mixed.ratio() <= 1.1, "{mixed:?}");
    }
}
