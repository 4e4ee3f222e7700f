//! The event log: one line per change of state.
//!
//! Owns: the last 1,000 lines, who is told of the next, and the findings about nodes. Must not know: what changes, where lines are shown.
//! Driven by: membership, registry, VIPs, issuer (they push); the local API (reads and follows).

mod findings;
mod naming;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::broadcast;

pub use findings::{Findings, Named, What};
pub use naming::{Naming, NodeEvent};

use crate::clock;

/// Lines that are kept: a day of a restless mesh of 100 nodes, in 300 KiB.
const KEPT: usize = 1_000;

/// Lines a follower may be behind before it misses some: as many as are kept.
const FOLLOWER_LAG: usize = KEPT;

/// Longest line, characters (design section 15).
const MAX_LINE_CHARS: usize = 200;

/// A change of state, before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What changed, with its kind: `node vm-b`, `service orders-db`.
    pub who: String,
    /// The state before, one word.
    pub was: &'static str,
    /// The state after, one word.
    pub now: &'static str,
    /// Why.
    pub cause: String,
    /// Who said so: a node's name, or `self`.
    pub by: String,
}

/// An event as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// The whole line, time first, at most 200 characters.
    pub line: String,
}

impl EventLine {
    /// Returns the line that stands where a reader lost some because it was too slow.
    pub fn lost(lines: u64, at: u64) -> Self {
        Self { at, line: format!("{} {lines} lines are missing here: read too slowly", time_text(at)) }
    }
}

/// The log. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct EventLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kept: Mutex<VecDeque<EventLine>>,
    followers: broadcast::Sender<EventLine>,
    findings: Findings,
}

impl Default for EventLog {
    fn default() -> Self {
        let followers = broadcast::Sender::new(FOLLOWER_LAG);
        Self(Arc::new(Shared { kept: Mutex::default(), followers, findings: Findings::default() }))
    }
}

impl EventLog {
    /// Keeps an event under the present time; the oldest one goes when 1,000 are kept. Never blocks.
    pub fn push(&self, event: &Event) {
        self.push_at(event, clock::wall());
    }

    /// Returns the findings about nodes, which outlast their line in the log.
    pub fn findings(&self) -> &Findings {
        &self.0.findings
    }

    fn push_at(&self, event: &Event, at: u64) {
        let line = EventLine { at, line: event.line(at) };
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(line.clone());
        // Under the lock, so that a follower that starts meanwhile sees each line once.
        let _ = self.0.followers.send(line);
    }

    /// Returns the kept lines from `since` (Unix seconds) on, oldest first, and a receiver of all later ones; none is in both. A receiver
    /// that is 1,000 lines behind loses the oldest and is told.
    pub fn follow(&self, since: u64) -> (Vec<EventLine>, broadcast::Receiver<EventLine>) {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = kept.iter().filter(|line| line.at >= since).cloned().collect();
        (lines, self.0.followers.subscribe())
    }
}

impl Event {
    fn line(&self, at: u64) -> String {
        let time = time_text(at);
        let Self { who, was, now, cause, by } = self;
        let mut line = String::new();
        let _ = write!(line, "{time} {who}: {was} -> {now}, {cause} (says {by})");
        // A cause may hold a peer's words.
        let plain = line.chars().map(|c| if c.is_control() { ' ' } else { c });
        if line.chars().count() <= MAX_LINE_CHARS {
            return plain.collect();
        }
        plain.take(MAX_LINE_CHARS - 3).chain("...".chars()).collect()
    }
}

fn time_text(at: u64) -> String {
    let time = i64::try_from(at).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(cause: &str) -> Event {
        Event {
            who: "node vm-b".to_owned(),
            was: "alive",
            now: "down",
            cause: cause.to_owned(),
            by: "vm-c".to_owned(),
        }
    }

    #[test]
    fn a_line_says_when_who_what_why_and_who_said_so() {
        let log = EventLog::default();
        log.push_at(&event("no answer to probes"), 1_700_000_000);
        let [line] = &log.follow(0).0[..] else { panic!("one line") };
        assert_eq!(
            line.line,
            "2023-11-14T22:13:20Z node vm-b: alive -> down, no answer to probes (says vm-c)"
        );
        assert_eq!(line.at, 1_700_000_000);
    }

    #[test]
    fn a_line_is_one_line_of_at_most_200_characters() {
        let log = EventLog::default();
        log.push_at(&event(&"\n\u{1b}[31mx".repeat(100)), 0);
        let line = &log.follow(0).0[0].line;
        assert_eq!(line.chars().count(), 200);
        assert!(line.ends_with("...") && !line.contains(char::is_control), "{line}");
    }

    #[test]
    fn the_oldest_of_more_than_a_thousand_lines_goes() {
        let log = EventLog::default();
        for at in 0..1_010 {
            log.push_at(&event("x"), at);
        }
        let kept = log.follow(0).0;
        assert_eq!((kept.len(), kept[0].at), (1_000, 10));
        assert_eq!(log.follow(1_005).0.len(), 5);
    }

    #[tokio::test]
    async fn a_follower_gets_what_was_kept_and_then_each_new_line_once() {
        let log = EventLog::default();
        log.push_at(&event("old"), 5);
        let (lines, mut later) = log.follow(0);
        log.push(&event("new"));
        assert_eq!(lines.len(), 1);
        assert!(later.recv().await.expect("follows").line.contains("new"));
        assert!(later.try_recv().is_err());
    }
}
