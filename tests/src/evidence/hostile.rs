//! A member with a certificate that signs what no daemon would.
//!
//! Owns: what it sends, and what must be seen of it. Must not know: how daemons fend it off. Driven by: `evidence`.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use gossamer::identity::Identity;
use gossamer_core::trust::Sign as _;
use gossamer_wire::advert::{
    Advert, AdvertId, Card, Fragment, HEADER_BYTES, Head, Header, Kind, SERVICE_ENTRY, SIGNATURE_BYTES, Slot,
    Version,
};
use gossamer_wire::frame::{AdvertCopy, Frame};
use gossamer_wire::limits::{MAX_FRAGMENTS, MAX_RECORDS_PER_FRAGMENT};
use gossamer_wire::{Health, Port, Routing, ServiceRecord, Transport, Tries, Visibility};

use super::{Ci, Needs, Row, Run};
use crate::api::Api;
use crate::process::Node;
use crate::promise;
use crate::quic::{Credentials, identity_of, send_frames};
use crate::wait::until;

pub(super) const ROW: Row = Row {
    name: "3.7-bad-records",
    promise: "A member that signs oversized and nasty adverts, the greatest epoch, two contents for one version, records outside its claims and a million records: each is counted and its origin named, other services travel meanwhile, and no daemon ends",
    sabotage: "the member sends only what is in order",
    needs: Needs::Nothing,
    ci: Ci::Runs,
    check: bad_records,
};

/// How long a change may take to travel while the member floods, and how long until all is seen of it.
const TRAVEL: Duration = Duration::from_secs(10);
const SEEN: Duration = Duration::from_secs(30);
/// What the flood may add to the memory of a daemon, KiB.
const GROWTH_KIB: u64 = 32 * 1_024;
/// Records the member sends in all.
const RECORDS: usize = 1_000_000;
/// Adverts in one frame, within its 65,000 bytes.
const PER_FRAME: usize = 50;

fn bad_records(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut near = lab.node("near")?;
        near.init("default")?;
        let mut far = lab.node("far")?;
        far.join(&near.token(&[])?)?;
        far.sees("near", "alive", SEEN)?;
        let hostile = lab.node("hostile")?;
        let token = near.token(&["--allow-service", "web-*"])?;
        hostile.ok(&["join", &token, "--node", "hostile", "--no-start"])?;
        let hostile = Hostile(identity_of(&hostile.state_dir())?);
        let id = hostile.0.node().to_string();
        let (server, member) = (near.mesh_address()?, Credentials::of_identity(&hostile.0));

        let before = memory_kib(&near)?;
        let frames = hostile.frames(if run.sabotaged { 0 } else { RECORDS })?;
        let (closed, travelled) = std::thread::scope(|scope| -> Result<_> {
            let flood = scope.spawn(|| send_frames(server, &member, frames.into_iter(), SEEN / 3));
            let travelled = travel(&near, &far);
            let closed = flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
            Ok((closed, travelled?))
        })?;
        anyhow::ensure!(closed.is_none(), "the member was hung up on: {closed:?}");

        let _ = until("what the member did being seen", SEEN, || Ok(missing(&near, &id)?.is_empty()));
        let missing = missing(&near, &id)?;
        promise!(missing.is_empty(), "not seen: {}", missing.join(", "));
        far.status()?;
        let grown = memory_kib(&near)?.saturating_sub(before);
        promise!(grown <= GROWTH_KIB, "the flood cost {grown} KiB");
        Ok(format!(
            "{} kinds counted and named; {RECORDS} records cost {grown} KiB; another service travelled in {} ms meanwhile",
            COUNTED.len(),
            travelled.as_millis()
        ))
    })
}

/// Exposes a service near the member and returns how long the far node takes to answer for it.
fn travel(near: &Node, far: &Node) -> Result<Duration> {
    near.ok(&["expose", "honest:5432"])?;
    let begin = Instant::now();
    far.resolver()?.address("honest.mesh.internal", TRAVEL)?;
    Ok(begin.elapsed())
}

/// What must be counted, as the metrics call it.
const COUNTED: &[(&str, &str)] = &[
    ("oversized adverts and the greatest epoch", "gossamer_adverts_refused_total{reason=\"header\"}"),
    ("nasty content", "gossamer_adverts_quarantined"),
    ("two contents for one version", "gossamer_advert_twins_total"),
    ("records outside the claims", "gossamer_records_outside_claims"),
    ("a million records", "gossamer_adverts_taken_later_total"),
];

/// Returns what a daemon has not counted, or has not named the member for.
fn missing(node: &Node, id: &str) -> Result<Vec<&'static str>> {
    let (_, metrics) = Api::connect(&node.socket())?.request("GET", "/v1/metrics", &Value::Null)?;
    let count = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse::<f64>().ok()).unwrap_or_default()
    };
    let mut missing: Vec<_> =
        COUNTED.iter().filter(|(_, metric)| count(metric) == 0.0).map(|(what, _)| *what).collect();
    if count("gossamer_adverts_refused_total{reason=\"header\"}") < 2.0 {
        missing.push("both refusals");
    }
    let events = node.ok(&["events"])?;
    // The id stands for the name of a node whose card came just before, or comes just after.
    let is_its = |line: &str| line.contains(id) || line.contains("hostile");
    let names = |state: &str| events.lines().any(|line| line.contains(state) && is_its(line));
    for (state, what) in
        [("-> refused", "who was refused"), ("-> quarantined", "whose content"), ("-> two", "who runs twice")]
    {
        if !names(state) {
            missing.push(what);
        }
    }
    let nodes = node.json(&["nodes"])?;
    let row = nodes.as_array().into_iter().flatten().find(|row| row["name"] == "hostile");
    let shows = |key: &str| row.is_some_and(|row| row[key].as_u64().unwrap_or_default() > 0);
    if !(shows("quarantined") && shows("outside_claims")) {
        missing.push("the row of the member");
    }
    Ok(missing)
}

/// Returns the anonymous memory of a daemon, KiB.
fn memory_kib(node: &Node) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("its memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// The member.
pub(super) struct Hostile(pub(super) Identity);

impl Hostile {
    /// Returns what it sends to publish one record, as if it had just started.
    pub(super) fn publishing(&self, record: &ServiceRecord) -> Result<Frame> {
        let head = Head { n: 1, lease_seconds: 3_600, statement_digest: [0; 16] };
        let body = Fragment::of(std::slice::from_ref(record))?.encode()?;
        Ok(frame(&[
            self.sign((Kind::Card, 0), (1, 1), &self.card().encode()?),
            self.sign((Kind::Records, 0), (1, 1), &body),
            self.sign((Kind::Head, 0), (1, 1), &head.encode()?),
        ]))
    }

    /// Returns what it sends to say that it can be dialled at these addresses, with a card of this number.
    pub(super) fn advertising(&self, number: u64, addresses: Vec<SocketAddr>) -> Result<Frame> {
        let card = Card { addresses, ..self.card() };
        Ok(frame(&[self.sign((Kind::Card, 0), (1, number), &card.encode()?)]))
    }

    fn card(&self) -> Card {
        Card {
            leaf: self.0.leaf_der.clone(),
            addresses: Vec::new(),
            zone: None,
            region: None,
            labels: Vec::new(),
            relays: Vec::new(),
            protocol: (1, 1),
            capabilities: 0,
            lanes: Vec::new(),
        }
    }

    /// Returns what it sends: card and head, one of each fault, and fragments with so many records in all.
    fn frames(&self, records: usize) -> Result<Vec<Frame>> {
        let card = self.card();
        let head = Head { n: MAX_FRAGMENTS, lease_seconds: 3_600, statement_digest: [0; 16] };
        let introduction = vec![
            self.sign((Kind::Card, 0), (1, 1), &card.encode()?),
            self.sign((Kind::Records, 0), (1, 1), &fragment(&["web-1"])?),
            self.sign((Kind::Head, 0), (1, 1), &head.encode()?),
        ];
        if records == 0 {
            return Ok(vec![frame(&introduction)]);
        }
        let nasty = Fragment { entries: vec![(SERVICE_ENTRY, vec![0xff; 40])] }.encode()?;
        let faults = vec![
            // Longer than a fragment; what is longer than a card too costs the giver its connection.
            self.sign((Kind::Records, 1), (1, 2), &[0; 1_500]),
            self.sign((Kind::Records, 1), (u64::MAX, 3), &fragment(&["web-2"])?),
            self.sign((Kind::Records, 1), (1, 4), &nasty),
            self.sign((Kind::Records, 2), (1, 5), &fragment(&["web-3"])?),
            self.sign((Kind::Records, 2), (1, 5), &fragment(&["web-4"])?),
            self.sign((Kind::Records, 3), (1, 6), &fragment(&["orders"])?),
        ];
        let names: Vec<_> = (0..MAX_RECORDS_PER_FRAGMENT).map(|number| format!("web-x{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let most = (1..=names.len())
            .take_while(|count| fragment(&names[..*count]).is_ok_and(|body| body.len() < 980));
        let each = most.last().context("a record that fits")?;
        let body = fragment(&names[..each])?;
        let flood = (0..records.div_ceil(each)).map(|number| {
            // The slots of the faults above stay as they are.
            let k = 4 + (number % usize::from(MAX_FRAGMENTS - 4)) as u16;
            self.sign((Kind::Records, k), (1, 100 + number as u64), &body)
        });
        let flood: Vec<_> = flood.collect();
        Ok([&introduction[..], &faults].into_iter().chain(flood.chunks(PER_FRAME)).map(frame).collect())
    }

    /// Signs an advert, also one that may not be.
    fn sign(&self, (kind, k): (Kind, u16), (epoch, seq): (u64, u64), body: &[u8]) -> Vec<u8> {
        let id = AdvertId { slot: Slot { node: self.0.node(), kind, k }, version: Version { epoch, seq } };
        let header = Header { mesh: self.0.mesh, id };
        let empty = Advert::build(header, b"", |_| [0; SIGNATURE_BYTES]).expect("an empty body fits");
        let unsigned = [&empty.bytes()[..HEADER_BYTES], body].concat();
        let signature = self.0.key.sign(&[DOMAIN, &unsigned].concat());
        [unsigned, signature.to_vec()].concat()
    }
}

/// What is signed begins with this.
const DOMAIN: &[u8] = b"gossamer-advert-v1\0";

fn frame(adverts: &[Vec<u8>]) -> Frame {
    let copies = adverts.iter().map(|bytes| AdvertCopy { age: 0, bytes: bytes.clone().into() }).collect();
    Frame::Adverts { copies, forward: Vec::new() }
}

fn fragment(services: &[&str]) -> Result<Vec<u8>> {
    let records: Result<Vec<_>> = services.iter().map(|service| record(service)).collect();
    Ok(Fragment::of(&records?)?.encode()?)
}

pub(super) fn record(service: &str) -> Result<ServiceRecord> {
    Ok(ServiceRecord {
        service: service.parse()?,
        instance: "hostile".parse()?,
        ports: vec![Port { name: 80.into(), number: 80, transport: Transport::Tcp }],
        visibility: Visibility::All,
        health: Health::Passing,
        weight: 100,
        draining: false,
        routing: Routing::default(),
        tries: Tries::default(),
        metadata: Vec::new(),
        fqdns: Vec::new(),
    })
}
