//! `events`: what changed.
//!
//! Owns: how far back, and when to end. Must not know: what an event is about. Driven by: `cli`.

use super::args::{Events, Shape};
use super::failure::Failure;
use super::output;
use crate::api::Client;
use crate::clock;
use crate::events::EventLine;

pub(super) async fn run(client: &Client, events: &Events) -> Result<(), Failure> {
    let since = clock::wall().saturating_sub(events.since.as_secs());
    let path = format!("/v1/events?since={since}&follow={}", events.follow);
    let lines = client.lines(&path, |line| show(line, events.shape));
    tokio::select! {
        result = lines => result,
        // Ctrl-C is how --follow ends; nothing is lost by it.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn show(line: &str, shape: Shape) -> Result<(), Failure> {
    if shape.json {
        output::data(line);
        return Ok(());
    }
    let event: EventLine = serde_json::from_str(line).map_err(|error| {
        Failure::failed(format_args!("an event is unreadable ({error}); restart the daemon"))
    })?;
    if !shape.quiet {
        output::data(event.line);
    } else if let Some(subject) = subject(&event.line) {
        output::data(subject);
    }
    Ok(())
}

/// Returns whom or what a line is about, as `node vm-a`; `None` for a line about the log itself.
fn subject(line: &str) -> Option<&str> {
    let (_, said) = line.split_once(' ')?;
    said.split_once(": ").filter(|(_, change)| change.contains(" -> ")).map(|(subject, _)| subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_subject_unless_it_tells_of_missing_lines() {
        let line = "2026-11-21T15:43:32Z node m3: unknown -> alive, it said so (says m3)";
        assert_eq!(subject(line), Some("node m3"));
        assert_eq!(subject(&EventLine::lost(7, 0).line), None);
    }
}
