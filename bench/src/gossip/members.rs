//! How fast all know who is there: simultaneous starts, kills, restarts.
//!
//! Owns: the three measurements. Must not know: how a system says it. Driven by: `gossip`.
//!
//! Join: the first member runs; all others start at once, and t0 is when the last of them was started. Kill: t0 is
//! the SIGKILL; the end is when the last of the others says that the victim is down, and for ours also when the last
//! of ten daemons gives its last SRV answer naming it. Restart: t0 is the start of the killed member under its old
//! identity; the end is when all others say it is there and it sees all.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use gossamer_tests::dnsq::RecordType;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::dns::{Asker, Question, first_accepted, last_accepted};
use super::fleet::{Fleet, News, Product, name};
use super::ours::{Ours, PORT};
use super::serf::Serf;
use super::{Run, What, note, seconds};

/// All must see all within this time.
const COMPLETE: Duration = Duration::from_secs(900);

/// Between the start of the first member and that of the others: it must listen.
const FIRST: Duration = Duration::from_secs(1);

/// A death that is not noticed for longer is not noticed.
const NOTICED: Duration = Duration::from_secs(60);

/// Between two questions about a dead instance: precise enough for seconds, cheap enough for two processors.
const EVERY: Duration = Duration::from_millis(5);

/// An instance that was not named for this long does not come back.
const QUIET: Duration = Duration::from_secs(1);

/// Daemons that are asked.
pub(super) const SAMPLE: usize = 10;

/// Rest after each restart.
const REST: Duration = Duration::from_secs(2);

impl Run {
    /// Measures simultaneous starts in turn; both meshes are complete afterwards, where more is measured. Each has the
    /// machine for itself: a mesh goes on connecting when all see all, which the start of the other would feel.
    pub(super) async fn join(&mut self) -> Result<()> {
        let starts = if self.wants(What::Join) { self.scale.starts } else { 0 };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for start in 0..starts {
            ours.push(self.start_ours().await?);
            note(&format!("start {start}: {:?} s", ours.last()));
            self.ours.kill_all()?;
            theirs.push(start_all(&mut self.theirs).await?);
            note(&format!("start {start}: serf {:?} s", theirs.last()));
            self.theirs.kill_all()?;
        }
        if self.only != [What::Join] {
            self.start_ours().await?;
            sleep(REST).await;
            start_all(&mut self.theirs).await?;
            sleep(REST).await;
        }
        if self.wants(What::Join) {
            let ours = self.row(Ours::SYSTEM, "join_all", "s", ours);
            let theirs = self.row(Serf::SYSTEM, "join_all", "s", theirs);
            self.ratio("join_all", ours / theirs);
        }
        Ok(())
    }

    /// Kills and restarts members in turn.
    pub(super) async fn kill_and_restart(&mut self) -> Result<()> {
        let mut found = [const { Vec::new() }; 5];
        for number in 0..self.scale.kills {
            let victim = 1 + number * 13 % (self.ours.len() - 1);
            let (kill, named) = kill_ours(&mut self.ours, victim, number).await?;
            let restart = restart_member(&mut self.ours, victim).await?;
            withdraw(&self.ours, victim, number).await?;
            let kill_theirs = kill_theirs(&mut self.theirs, victim).await?;
            let restart_theirs = restart_member(&mut self.theirs, victim).await?;
            note(&format!(
                "kill {number}: {kill:.2} s (last SRV {named:.2}), serf {kill_theirs:.2}; restart {restart:.3}, serf {restart_theirs:.3}"
            ));
            for (values, value) in found.iter_mut().zip([kill, named, kill_theirs, restart, restart_theirs]) {
                values.push(value);
            }
        }
        let [kill, named, kill_theirs, restart, restart_theirs] = found;
        if self.wants(What::Kill) {
            let ours = self.row(Ours::SYSTEM, "kill_last", "s", kill);
            self.row(Ours::SYSTEM, "kill_last_srv", "s", named);
            let theirs = self.row(Serf::SYSTEM, "kill_last", "s", kill_theirs);
            self.ratio("kill_last", ours / theirs);
        }
        if self.wants(What::Restart) {
            let ours = self.row(Ours::SYSTEM, "restart_all", "s", restart);
            let theirs = self.row(Serf::SYSTEM, "restart_all", "s", restart_theirs);
            self.ratio("restart_all", ours / theirs);
        }
        Ok(())
    }
}

impl Run {
    /// Starts all daemons from what `join --no-start` has left.
    async fn start_ours(&mut self) -> Result<f64> {
        for member in 0..self.ours.len() {
            self.ours.product.restore(member)?;
        }
        start_all(&mut self.ours).await
    }
}

/// Starts all members; returns seconds from the last start until all see all.
async fn start_all<P: Product>(fleet: &mut Fleet<P>) -> Result<f64> {
    fleet.start(0)?;
    sleep(FIRST).await;
    let mut begun = Instant::now();
    for member in 1..fleet.len() {
        begun = fleet.start(member)?;
    }
    let all = fleet.complete(COMPLETE).await?;
    Ok(seconds(begun, all))
}

/// Starts a killed member; returns seconds until all others see it and it sees all.
async fn restart_member<P: Product>(fleet: &mut Fleet<P>, member: usize) -> Result<f64> {
    fleet.drain();
    let begun = fleet.start(member)?;
    let all = fleet.complete(COMPLETE).await.with_context(|| format!("restart of {}", name(member)))?;
    sleep(REST).await;
    Ok(seconds(begun, all))
}

/// Kills a member; returns seconds until the last of the others says so.
async fn kill_theirs<P: Product>(fleet: &mut Fleet<P>, victim: usize) -> Result<f64> {
    fleet.drain();
    let killed = fleet.kill(victim)?;
    let last = noticed(fleet, victim, killed + NOTICED).await?;
    Ok(seconds(killed, last))
}

/// Kills a daemon with an instance of a service; returns seconds until the last of the others says so, and until the
/// last SRV answer that names it.
async fn kill_ours(fleet: &mut Fleet<Ours>, victim: usize, number: usize) -> Result<(f64, f64)> {
    let service = format!("dies-{number}");
    for member in [0, victim] {
        let mut api = fleet.product.api(member).await?;
        Fleet::expose(&mut api, &service, PORT).await?;
    }
    let question = format!("_{PORT}._tcp.{service}.mesh.internal");
    let question = Question::new(&question, RecordType::SRV, EVERY)?;
    let mut askers = sample(fleet, victim, SAMPLE)?;
    let ready = Instant::now() + NOTICED;
    let both = first_accepted(&mut askers, &question, ready, |answer| answer.targets().len() == 2).await;
    if both.len() < askers.len() {
        bail!("{service} has two instances at {} of {} daemons", both.len(), askers.len());
    }
    fleet.drain();
    let dead = format!("{}.{service}.", name(victim));
    let killed = fleet.kill(victim)?;
    let end = killed + NOTICED;
    let naming = last_accepted(&mut askers, &question, (QUIET, end), |answer| {
        answer.targets().iter().any(|target| target.starts_with(&dead))
    });
    let (last, named) = tokio::join!(noticed(fleet, victim, end), naming);
    if named.len() < SAMPLE.min(fleet.len() - 1) {
        bail!("a dead instance of {service} is named for ever");
    }
    let named = named.iter().map(|(_, at)| *at).max().context("an answer")?;
    Ok((seconds(killed, last?), seconds(killed, named)))
}

/// Takes back what [`kill_ours`] exposed.
async fn withdraw(fleet: &Fleet<Ours>, victim: usize, number: usize) -> Result<()> {
    for member in [0, victim] {
        let wish = json!({"service": format!("dies-{number}")});
        fleet.product.api(member).await?.ask("POST", "/v1/withdraw", &wish).await?;
    }
    Ok(())
}

/// Waits until all others say that a member is down; returns when the last did.
async fn noticed<P: Product>(fleet: &mut Fleet<P>, victim: usize, end: Instant) -> Result<Instant> {
    let mut last = Instant::now();
    let mut missing: Vec<usize> = (0..fleet.len()).filter(|member| *member != victim).collect();
    while !missing.is_empty() {
        let Some((at, observer, news)) = fleet.next(end).await else {
            bail!("{}: {} do not notice the death of {}", P::SYSTEM, missing.len(), name(victim));
        };
        if news == News::Down(victim) {
            missing.retain(|member| *member != observer);
            last = at;
        }
    }
    Ok(last)
}

/// Returns clients of `count` daemons, or all if there are fewer, without one.
pub(super) fn sample(fleet: &Fleet<Ours>, except: usize, count: usize) -> Result<Vec<Asker>> {
    let others: Vec<usize> = (0..fleet.len()).filter(|member| *member != except).collect();
    let count = count.min(others.len());
    let spread = (0..count).map(|index| others[index * others.len() / count]);
    spread.map(|member| Asker::new(member, fleet.namespace(member))).collect()
}
