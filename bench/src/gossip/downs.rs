//! How many members are declared down that are not.
//!
//! Owns: the conditions and the count. Must not know: probes. Driven by: `gossip`.
//!
//! Three conditions, each for both systems at once and from the same router: members stopped for 3 s one after the
//! other (SIGSTOP, the same number in both), 1 % and 5 % of all packets lost. One is counted for each observer that
//! says "down" of a member that runs, until both meshes are calm again.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::fleet::Product;
use super::ours::Ours;
use super::serf::Serf;
use super::{Run, note};

/// How long a member is stopped, and how long none is.
const STOPPED: Duration = Duration::from_secs(3);

/// After a condition, for what it began to come to its end.
const CALM: Duration = Duration::from_secs(15);

/// Both meshes must be whole again within this time.
const WHOLE: Duration = Duration::from_secs(120);

impl Run {
    /// Plays the three conditions; the ratio is over their sums.
    pub(super) async fn false_downs(&mut self) -> Result<()> {
        let mut sums = [0.0; 2];
        for (metrics, loss) in
            [("false_downs_stop_3s", 0.0), ("false_downs_loss_1", 0.01), ("false_downs_loss_5", 0.05)]
        {
            self.ours.take_downs();
            self.theirs.take_downs();
            if loss > 0.0 {
                self.star.lose(loss, &BTreeMap::new())?;
                self.pass(self.scale.condition).await;
                self.star.lose(0.0, &BTreeMap::new())?;
            } else {
                self.stop_in_turn().await?;
            }
            self.pass(CALM).await;
            let counts = [self.ours.take_downs().len() as f64, self.theirs.take_downs().len() as f64];
            for ((system, count), sum) in [Ours::SYSTEM, Serf::SYSTEM].into_iter().zip(counts).zip(&mut sums)
            {
                self.row(system, metrics, "downs", vec![count]);
                *sum += count;
            }
            self.ours.complete(WHOLE).await?;
            self.theirs.complete(WHOLE).await?;
        }
        self.ratio("false_downs", ratio(sums));
        Ok(())
    }

    /// Stops one member after the other.
    async fn stop_in_turn(&mut self) -> Result<()> {
        let end = Instant::now() + self.scale.condition;
        let mut member = 0;
        while Instant::now() < end {
            member = (member + 17) % self.ours.len();
            for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
                self.ours.signal(member, signal)?;
                self.theirs.signal(member, signal)?;
                self.pass(STOPPED).await;
            }
        }
        note(&format!("stopped members for {:?}", self.scale.condition));
        Ok(())
    }

    /// Lets time pass; what is said meanwhile is taken in.
    async fn pass(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.ours.drain();
            self.theirs.drain();
            sleep(Duration::from_millis(100).min(end - Instant::now())).await;
        }
    }
}

/// Returns ours by theirs with one added to both, so that none is no division by zero: at most 1 exactly when ours are
/// not more.
fn ratio([ours, theirs]: [f64; 2]) -> f64 {
    (ours + 1.0) / (theirs + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_tells_more_from_not_more() {
        assert_eq!(ratio([0.0, 0.0]), 1.0);
        assert!(ratio([1.0, 0.0]) > 1.0);
        assert!(ratio([3.0, 5.0]) < 1.0);
    }
}
