//! How fast a change of one member is visible at all.
//!
//! Owns: the measurement. Must not know: how records travel. Driven by: `gossip`.
//!
//! One change at a time, ours and theirs in turn, each from the next member. Ours: t0 is when the request to expose a
//! service has reached the local API of the exporter, which checks the program behind it and writes to disk before
//! anything is sent; the end is the first answer over UDP with an address, asked every millisecond at ten daemons, and
//! the line of the watch stream at all. Theirs: t0 is when `event` has reached the RPC of an agent; the end is the line
//! in each log.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use gossamer_tests::dnsq::RecordType;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::dns::{Question, first_accepted};
use super::fleet::{Fleet, News, Product};
use super::http::Api;
use super::members::{SAMPLE, sample};
use super::ours::{Ours, exposed};
use super::serf::{Rpc, Serf};
use super::{Run, milliseconds, note, share_of};

/// How often each daemon of the sample is asked.
const EVERY: Duration = Duration::from_millis(1);

/// A change that is not visible for longer is lost.
const VISIBLE: Duration = Duration::from_secs(10);

/// Rest after each change, longer than what gossip of either system needs to calm down.
const REST: Duration = Duration::from_millis(300);

/// Rest after the start: all see all before all pairs are connected.
const SETTLE: Duration = Duration::from_secs(20);

/// Ports of the services: each has its own, as services have.
const PORTS: u16 = 20_000;

/// What one system needed, milliseconds.
#[derive(Default)]
struct Times {
    /// Each change at each member.
    each: Vec<f64>,
    /// Each change at the last member.
    all: Vec<f64>,
    lost: u32,
}

impl Times {
    fn add(&mut self, seen: &[f64], wanted: usize) {
        self.each.extend(seen);
        if seen.len() < wanted {
            self.lost += 1;
        } else {
            self.all.push(seen.iter().copied().fold(0.0, f64::max));
        }
    }
}

impl Run {
    /// Measures changes in turn.
    pub(super) async fn visible(&mut self) -> Result<()> {
        sleep(SETTLE).await;
        let (mut ours, mut theirs) = (Times::default(), Times::default());
        let mut rpcs: BTreeMap<usize, Rpc> = BTreeMap::new();
        for change in 0..self.scale.changes {
            let origin = change * 7 % self.ours.len();
            let seen = expose(&mut self.ours, origin, change).await?;
            ours.add(&seen, self.ours.len() - 1);
            sleep(REST).await;
            if let std::collections::btree_map::Entry::Vacant(entry) = rpcs.entry(origin) {
                entry.insert(Rpc::connect(self.theirs.namespace(origin)).await?);
            }
            if let Some(rpc) = rpcs.get_mut(&origin) {
                let seen = event(&mut self.theirs, rpc, origin, change).await?;
                theirs.add(&seen, self.theirs.len() - 1);
            }
            sleep(REST).await;
            if change % 20 == 0 {
                note(&format!(
                    "change {change}: {:?} and {:?} ms at all",
                    ours.all.last(),
                    theirs.all.last()
                ));
            }
        }
        let ours = self.times(Ours::SYSTEM, ours);
        let theirs = self.times(Serf::SYSTEM, theirs);
        self.ratio("record_p99", ours.0 / theirs.0);
        self.ratio("record_all", ours.1 / theirs.1);
        Ok(())
    }

    /// Keeps the rows of one system; returns the 99th percentiles of each and of all.
    fn times(&mut self, system: &'static str, mut times: Times) -> (f64, f64) {
        self.row(system, "visible_each", "ms", times.each.clone());
        let each = share_of(&mut times.each, 0.99);
        self.row(system, "visible_each_p99", "ms", vec![each]);
        self.row(system, "visible_all", "ms", times.all.clone());
        let all = share_of(&mut times.all, 0.99);
        self.row(system, "visible_all_p99", "ms", vec![all]);
        self.row(system, "visible_not_at_all", "changes", vec![f64::from(times.lost)]);
        (each, all)
    }
}

/// Exposes a service on one daemon; returns the milliseconds each other one needed. Withdraws it afterwards.
async fn expose(fleet: &mut Fleet<Ours>, origin: usize, change: usize) -> Result<Vec<f64>> {
    let service = format!("seen-{change}");
    let name = format!("{service}.mesh.internal");
    let question = Question::new(&name, RecordType::A, EVERY)?;
    let watched = fleet.product.watches();
    let mut askers = sample(fleet, origin, if watched { SAMPLE } else { fleet.len() })?;
    let mut api = fleet.product.api(origin).await?;
    fleet.drain();
    let wish = exposed(&service, PORTS + u16::try_from(change % 10_000)?);
    let begun = api.send("POST", "/v1/expose", &wish).await?;
    let end = begun + VISIBLE;
    let answered = first_accepted(&mut askers, &question, end, |answer| !answer.addresses().is_empty());
    let told = async { if watched { told(fleet, &service, origin, end).await } else { BTreeMap::new() } };
    let (answered, told, response) = tokio::join!(answered, told, api.response());
    response?;
    let mut last: BTreeMap<usize, Instant> = told;
    for (member, at) in answered {
        let entry = last.entry(member).or_insert(at);
        *entry = at.max(*entry);
    }
    // The daemon closes a connection on which nothing was asked for as long as a change may take.
    let mut api = fleet.product.api(origin).await?;
    withdraw(&mut api, &service).await?;
    Ok(last.values().map(|at| milliseconds(begun, *at)).collect())
}

async fn withdraw(api: &mut Api, service: &str) -> Result<()> {
    api.ask("POST", "/v1/withdraw", &json!({"service": service})).await.map(drop)
}

/// Sends an event from one agent; returns the milliseconds each other one needed.
async fn event(fleet: &mut Fleet<Serf>, rpc: &mut Rpc, origin: usize, change: usize) -> Result<Vec<f64>> {
    let event = format!("seen-{change}");
    fleet.drain();
    let sent = Instant::now();
    let end = sent + VISIBLE;
    let (begun, told) = tokio::join!(rpc.event(&event), told(fleet, &event, origin, end));
    let begun = begun?;
    Ok(told.values().map(|at| milliseconds(begun, *at)).collect())
}

/// Waits until all others say that a change is visible; returns when each did.
async fn told<P: Product>(
    fleet: &mut Fleet<P>,
    change: &str,
    origin: usize,
    end: Instant,
) -> BTreeMap<usize, Instant> {
    let mut times = BTreeMap::new();
    while times.len() < fleet.len() - 1 {
        let Some((at, observer, news)) = fleet.next(end).await else { break };
        if observer != origin && news == News::Change(change.to_owned()) {
            times.entry(observer).or_insert(at);
        }
    }
    times
}
