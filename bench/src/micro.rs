//! Suite `micro`: what single functions cost on one core, without sockets.
//!
//! Owns: the inputs and the stopwatch. Must not know: the command line. Driven by: `main`.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use gossamer_core::trust::signature_holds;
use gossamer_core::vip::{Pool, VipName};
use gossamer_wire::advert::{Advert, Fragment, Kind};
use gossamer_wire::frame::{AdvertCopy, Frame, PREFIX_BYTES};
use gossamer_wire::{Health, Port, ServiceRecord, Transport, Visibility};

use crate::report::{Report, Row, machine};

mod mesh;

use mesh::Mesh;

/// How long one round of one row runs, at least: far above the clock's resolution and a time slice.
const ROUND: Duration = Duration::from_millis(50);

/// Records in the fragment that is measured: what a node with a few services publishes.
const RECORDS: usize = 8;

/// Nodes whose adverts are stored: a mesh of the size most people have.
const NODES: usize = 100;

pub(crate) fn run(rounds: u32) -> Result<Report> {
    let mut bench = Bench { rounds, rows: Vec::new() };
    bench.codec()?;
    bench.adverts()?;
    bench.vips()?;
    let (ratios, lines) = (BTreeMap::new(), Vec::new());
    Ok(Report { suite: "micro", machine: machine(), rounds, rows: bench.rows, ratios, lines })
}

struct Bench {
    rounds: u32,
    rows: Vec<Row>,
}

impl Bench {
    fn codec(&mut self) -> Result<()> {
        let record = record(0)?;
        let bytes = record.encode()?;
        self.each("record_encode", || record.encode());
        self.each("record_decode", || ServiceRecord::decode(&bytes));
        let fragment = Fragment::of(&(0..RECORDS).map(self::record).collect::<Result<Vec<_>>>()?)?;
        let body = fragment.encode()?;
        self.each("fragment_8_encode", || fragment.encode());
        self.each("fragment_8_decode", || Fragment::decode(&body).and_then(|fragment| fragment.records()));
        let copies = vec![AdvertCopy { age: 0, bytes: vec![7; 600].into() }; 16];
        let frame = Frame::Adverts { copies, forward: Vec::new() };
        let bytes = frame.encode()?;
        self.each("frame_16_adverts_encode", || frame.encode());
        let payload = bytes.get(PREFIX_BYTES..).unwrap_or_default();
        self.each("frame_16_adverts_decode", || Frame::decode(2, payload));
        Ok(())
    }

    fn adverts(&mut self) -> Result<()> {
        let mesh = Mesh::new()?;
        let node = mesh.node(0)?;
        let records: Vec<_> = (0..RECORDS).map(record).collect::<Result<_>>()?;
        let body = Fragment::of(&records)?.encode()?;
        self.each("advert_sign", || node.advert(Kind::Records, &body));
        let advert = node.advert(Kind::Records, &body)?;
        self.each("advert_parse", || Advert::parse(advert.bytes()));
        let key = node.public_key;
        self.each("advert_verify", || signature_holds(&key, &advert.signed(), advert.signature()));
        let leaf = node.leaf.clone();
        self.each("leaf_verify", || mesh.trust.verify(&leaf, &[], mesh::WALL));

        let nodes = (0..NODES).map(|number| mesh.node(number)).collect::<Result<Vec<_>>>()?;
        let cards = nodes.iter().map(|node| node.card()).collect::<Result<Vec<_>>>()?;
        let heads = nodes.iter().map(|node| node.head()).collect::<Result<Vec<_>>>()?;
        let fragments = nodes
            .iter()
            .enumerate()
            .map(|(number, node)| node.advert(Kind::Records, &Fragment::of(&[record(number)?])?.encode()?))
            .collect::<Result<Vec<_>>>()?;
        // A catalog takes an advert once, so each round begins with a new one.
        let stages = [("card_verify_and_store", cards), ("head_verify_and_store", heads)];
        let stages = stages.into_iter().chain([("fragment_verify_and_store", fragments)]);
        let stages: Vec<_> = stages.collect();
        let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); stages.len()];
        for _ in 0..self.rounds {
            let mut catalog = mesh.catalog()?;
            for ((_, adverts), values) in stages.iter().zip(&mut rounds) {
                let spent = stopwatch(|| adverts.iter().for_each(|advert| mesh::give(&mut catalog, advert)));
                values.push(nanoseconds(spent) / adverts.len() as f64);
            }
            anyhow::ensure!(catalog.counters().accepted == 3 * NODES as u64, "the catalog refused adverts");
        }
        for ((metric, _), values) in stages.iter().zip(rounds) {
            self.rows.push(Row::of(metric, "ns", values));
        }
        Ok(())
    }

    fn vips(&mut self) -> Result<()> {
        let name = VipName::Group("orders-db".parse()?, "west".parse()?);
        let pool = Pool::of_slot(0);
        self.each("vip_of_name", || pool.vip(name.hash(&mesh::MESH, 0)));
        Ok(())
    }

    /// Measures a function that can be repeated: nanoseconds a call.
    fn each<T>(&mut self, metric: &'static str, mut function: impl FnMut() -> T) {
        let mut calls = 1_u32;
        let mut repeat = |calls: u32| {
            stopwatch(|| {
                for _ in 0..calls {
                    black_box(function());
                }
            })
        };
        while repeat(calls) < ROUND && calls < 1 << 30 {
            calls *= 2;
        }
        let values = (0..self.rounds).map(|_| nanoseconds(repeat(calls)) / f64::from(calls)).collect();
        self.rows.push(Row::of(metric, "ns", values));
    }
}

fn nanoseconds(spent: Duration) -> f64 {
    spent.as_secs_f64() * 1e9
}

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn stopwatch(function: impl FnOnce()) -> Duration {
    let started = Instant::now();
    function();
    started.elapsed()
}

/// A record of usual length.
fn record(number: usize) -> Result<ServiceRecord> {
    Ok(ServiceRecord {
        service: format!("orders-db-{number}").parse()?,
        instance: "vm-b".parse()?,
        ports: vec![Port { name: 5432.into(), number: 5432, transport: Transport::Tcp }],
        visibility: Visibility::Groups(vec!["west".parse()?]),
        health: Health::Passing,
        weight: 100,
        draining: false,
        routing: gossamer_wire::Routing::default(),
        tries: gossamer_wire::Tries::default(),
        metadata: vec![("version".to_owned(), "15".to_owned())],
        fqdns: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_positive_time() {
        let mesh = Mesh::new().expect("mesh");
        let mut catalog = mesh.catalog().expect("catalog");
        let node = mesh.node(1).expect("node");
        mesh::give(&mut catalog, &node.card().expect("card"));
        assert_eq!(catalog.counters().accepted, 1, "{:?}", catalog.counters());
        let mut bench = Bench { rounds: 1, rows: Vec::new() };
        bench.vips().expect("measures");
        assert!(bench.rows[0].median > 0.0);
        assert_eq!(bench.rows[0].unit, "ns");
    }
}
