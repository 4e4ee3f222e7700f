//! `events`: what changed.
//!
//! Owns: how far back, and when to end. Must not know: what an event is about. Driven by: `cli`.

use super::args::Events;
use super::failure::Failure;
use super::output;
use crate::api::Client;
use crate::clock;
use crate::events::EventLine;

pub(super) async fn run(client: &Client, events: &Events) -> Result<(), Failure> {
    let since = clock::wall().saturating_sub(events.since.as_secs());
    let path = format!("/v1/events?since={since}&follow={}", events.follow);
    let lines = client.lines(&path, |line| show(line, events.shape.json));
    tokio::select! {
        result = lines => result,
        // Ctrl-C is how --follow ends; nothing is lost by it.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn show(line: &str, json: bool) -> Result<(), Failure> {
    if json {
        output::data(line);
    } else {
        let event: EventLine = serde_json::from_str(line).map_err(|error| {
            Failure::failed(format_args!("an event is unreadable ({error}); restart the daemon"))
        })?;
        output::data(event.line);
    }
    Ok(())
}
