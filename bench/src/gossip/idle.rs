//! What a mesh costs when nothing happens.
//!
//! Owns: the readings of the system. Must not know: what the processes do. Driven by: `gossip`.
//!
//! After a time to settle, over one window, for both systems at once: bytes received by the machine's one link, with IP
//! and UDP or TCP headers and without Ethernet's; utime + stime of the process; RssAnon at the end. Handshakes are
//! counted by the router: a QUIC handshake has an Initial packet from either end, so half of those it forwarded is the
//! most there can have been. The rows with 10 and 100 records repeat it for ours.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use gossamer_tests::netns::{Counter, LINK_HEADER};
use tokio::time::{Instant, sleep};

use super::fleet::{Fleet, Product};
use super::ours::Ours;
use super::serf::Serf;
use super::{Run, mean, note};

/// Ticks of `utime` and `stime` a second: a constant of the kernel's interface (`proc(5)`).
const TICKS: f64 = 100.0;

/// Ports of the records, so that each has its own.
const PORTS: u16 = 10_000;

/// Requests that wait for an answer at once.
const AT_ONCE: usize = 16;

/// What one process has used since its start.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    bytes: f64,
    packets: f64,
    /// Seconds.
    cpu: f64,
    /// MiB at this moment.
    memory: f64,
}

/// What each process used in a window.
#[derive(Debug, Default)]
struct Window {
    bytes: Vec<f64>,
    packets: Vec<f64>,
    cpu: Vec<f64>,
    memory: Vec<f64>,
}

impl Run {
    /// Measures both idle meshes, then ours with records.
    pub(super) async fn idle(&mut self) -> Result<()> {
        note("idle: settling");
        sleep(self.scale.settle).await;
        let (before, begun) = (self.star.count(Counter::Initials)?.0, Instant::now());
        let (ours, theirs) = self.window().await?;
        let initials = self.star.count(Counter::Initials)?.0 - before;
        let minutes = begun.elapsed().as_secs_f64() / 60.0;
        let handshakes = initials as f64 / 2.0 / self.ours.len() as f64 / minutes;
        let ours = self.used(Ours::SYSTEM, ours);
        let theirs = self.used(Serf::SYSTEM, theirs);
        self.row(Ours::SYSTEM, "handshakes", "/min/node", vec![handshakes]);
        self.ratio("idle_bytes", ours[0] / theirs[0]);
        self.ratio("idle_cpu", ours[1] / theirs[1]);
        self.ratio("memory", ours[2] / theirs[2]);
        self.ratio("handshakes_per_minute", handshakes);
        let mut records = 0;
        let mut bytes = Vec::new();
        for (wanted, metric) in [(10, "idle_bytes_10"), (100, "idle_bytes_100")] {
            note(&format!("idle: exposing {wanted} records per node"));
            expose(&self.ours, records..wanted).await?;
            records = wanted;
            sleep(self.scale.settle).await;
            let (ours, _) = self.window().await?;
            self.row(Ours::SYSTEM, metric, "B/s/node", ours.bytes.clone());
            bytes.push(mean(&ours.bytes));
        }
        if let [few, many] = bytes[..] {
            self.ratio("idle_bytes_10_vs_100", few / many);
        }
        withdraw(&self.ours, records).await
    }

    /// Measures both meshes over one window.
    async fn window(&self) -> Result<(Window, Window)> {
        let before = (read_all(&self.ours)?, read_all(&self.theirs)?);
        let begun = Instant::now();
        sleep(self.scale.window).await;
        let after = (read_all(&self.ours)?, read_all(&self.theirs)?);
        let spent = begun.elapsed();
        Ok((Window::between(&before.0, &after.0, spent), Window::between(&before.1, &after.1, spent)))
    }

    /// Keeps the rows of one system; returns the means of bytes and CPU, and the median of memory.
    fn used(&mut self, system: &'static str, window: Window) -> [f64; 3] {
        let means = [mean(&window.bytes), mean(&window.cpu)];
        self.row(system, "idle_bytes", "B/s/node", window.bytes);
        self.row(system, "idle_packets", "/s/node", window.packets);
        self.row(system, "idle_cpu", "% of a core", window.cpu);
        let memory = self.row(system, "memory_anon", "MiB", window.memory);
        [means[0], means[1], memory]
    }
}

impl Window {
    fn between(before: &[Used], after: &[Used], spent: Duration) -> Self {
        let spent = spent.as_secs_f64();
        let mut window = Self::default();
        for (before, after) in before.iter().zip(after) {
            window.bytes.push((after.bytes - before.bytes) / spent);
            window.packets.push((after.packets - before.packets) / spent);
            window.cpu.push(100.0 * (after.cpu - before.cpu) / spent);
            window.memory.push(after.memory);
        }
        window
    }
}

fn read_all<P: Product>(fleet: &Fleet<P>) -> Result<Vec<Used>> {
    (0..fleet.len()).map(|member| used(fleet.pid(member)?)).collect()
}

/// Reads what a process has used; the link is that of its namespace.
fn used(pid: i32) -> Result<Used> {
    let read = |file: &str| {
        fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| format!("of process {pid}"))
    };
    let (bytes, packets) = received(&read("net/dev")?).context("no eth0")?;
    let cpu = ticks(&read("stat")?).context("no times")? / TICKS;
    let memory = anonymous(&read("status")?).context("no RssAnon")?;
    Ok(Used { bytes: bytes - packets * LINK_HEADER as f64, packets, cpu, memory })
}

/// Reads bytes and packets that were received by eth0.
fn received(text: &str) -> Option<(f64, f64)> {
    let mut fields = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"))?.split_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Reads utime + stime: fields 14 and 15, counted from behind the name, which may hold anything.
fn ticks(text: &str) -> Option<f64> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

/// Reads RssAnon in MiB.
fn anonymous(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1_024.0)
}

/// Exposes services on each daemon: the records from one number to another, some at once as a program that registers
/// all of its services does, so that they share writes and adverts.
async fn expose(fleet: &Fleet<Ours>, records: std::ops::Range<u16>) -> Result<()> {
    for member in 0..fleet.len() {
        for some in records.clone().collect::<Vec<_>>().chunks(AT_ONCE) {
            let exposed = some.iter().map(|record| async move {
                let mut api = fleet.product.api(member).await?;
                Fleet::expose(&mut api, &format!("idle-{record}"), PORTS + record).await
            });
            try_join_all(exposed).await.with_context(|| fleet.product.log(member))?;
        }
    }
    Ok(())
}

async fn withdraw(fleet: &Fleet<Ours>, records: u16) -> Result<()> {
    for member in 0..fleet.len() {
        let mut api = fleet.product.api(member).await?;
        for record in 0..records {
            let wish = serde_json::json!({"service": format!("idle-{record}")});
            api.ask("POST", "/v1/withdraw", &wish).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        let dev = "Inter-| Receive\n face |bytes\n    lo: 5 6 0 0\n  eth0: 1234 56 0 0 0 0 0 0 99 9\n";
        assert_eq!(received(dev), Some((1_234.0, 56.0)));
        let stat = "12 (a ) b) S 1 1 1 0 -1 4194304 1 2 3 4 70 30 0 0 20 0";
        assert_eq!(ticks(stat), Some(100.0));
        assert_eq!(anonymous("VmRSS:\t 9 kB\nRssAnon:\t    2048 kB\n"), Some(2.0));
        assert_eq!(anonymous(""), None);
    }

    #[test]
    fn a_window_is_what_was_used_in_it_a_second() {
        let before = Used { bytes: 100.0, packets: 1.0, cpu: 1.0, memory: 5.0 };
        let after = Used { bytes: 300.0, packets: 5.0, cpu: 1.5, memory: 6.0 };
        let window = Window::between(&[before], &[after], Duration::from_secs(2));
        assert_eq!((window.bytes[0], window.packets[0], window.cpu[0]), (100.0, 2.0, 25.0));
        assert_eq!(window.memory[0], 6.0);
    }

    #[test]
    fn this_process_uses_memory() {
        let own = i32::try_from(std::process::id()).expect("a process id");
        let status = fs::read_to_string(format!("/proc/{own}/status")).expect("own status");
        assert!(anonymous(&status).expect("a figure") > 0.0);
    }
}
