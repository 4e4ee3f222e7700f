//! `node evict`.
//!
//! Owns: how it is waited for. Must not know: how a statement spreads. Driven by: `cli`.

use std::time::Duration;

use super::args::Node;
use super::failure::{Exit, Failure};
use super::output;
use crate::api::Client;
use crate::api::messages::{NodeRow, OrderDone, WhichNode};
use crate::clock;

/// Longest wait for all live nodes.
const ALL_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn run(client: &Client, node: Node) -> Result<(), Failure> {
    let Node::Evict { node, wait } = node;
    let done: OrderDone = client.post("/v1/node/evict", &WhichNode { node }).await?;
    output::note(format_args!(
        "{} is out for ever ({}); a new key and a new token would make it a new node",
        done.name, done.id
    ));
    if wait { all_know(client, &done.id).await } else { Ok(()) }
}

/// Waits until every live node but the evicted one has said that it holds the same statements.
async fn all_know(client: &Client, evicted: &str) -> Result<(), Failure> {
    let until = clock::now().mono + ALL_WITHIN;
    loop {
        let rows: Vec<NodeRow> = client.get("/v1/nodes").await?;
        let missing = who_does_not_know(&rows, evicted);
        if missing.is_empty() {
            output::note("all live nodes know");
            return Ok(());
        }
        if clock::now().mono >= until {
            let text = format!(
                "{} have not said within {} s that they know: {}; until they hear they may talk to it, at most until its certificate ends",
                missing.len(),
                ALL_WITHIN.as_secs(),
                missing.join(", ")
            );
            return Err(Failure { exit: Exit::TimedOut, text });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn who_does_not_know(rows: &[NodeRow], evicted: &str) -> Vec<String> {
    let lives = |row: &&NodeRow| row.id != evicted && (row.state == "alive" || row.state == "suspect");
    let silent = rows.iter().filter(lives).filter(|row| !row.has_statements);
    silent.map(|row| row.name.as_ref().map_or_else(|| row.id.clone(), ToString::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, state: &str, has_statements: bool) -> NodeRow {
        let json = serde_json::json!({
            "name": name, "id": format!("id-{name}"), "group": "g", "state": state, "zone": null, "region": null,
            "addresses": [], "head_age_seconds": null, "has_statements": has_statements, "this": false,
        });
        serde_json::from_value(json).expect("a row")
    }

    #[test]
    fn those_who_are_gone_are_not_waited_for() {
        let rows = [
            row("a", "alive", true),
            row("b", "alive", false),
            row("c", "down", false),
            row("x", "alive", false),
        ];
        assert_eq!(who_does_not_know(&rows, "id-x"), ["b"]);
    }
}
