//! `ping`: each way to a node, and what became of it.
//!
//! Owns: its flags, how it reads. Must not know: how a way is tried. Driven by: `cli`.

use clap::Args;

use super::failure::Failure;
use super::output;
use super::resolve::escaped;
use crate::api::Client;
use crate::api::messages::{PingRow, TriedRow, milliseconds};

/// `gossamer ping`.
#[derive(Clone, Debug, Args)]
pub(super) struct Asked {
    /// Name or id of the node; of an id its first letters are enough
    node: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, asked: &Asked) -> Result<(), Failure> {
    let row: PingRow = client.get(&format!("/v1/ping?node={}", escaped(&asked.node))).await?;
    if asked.json {
        output::json(&row)?;
    } else {
        lines(&row).iter().for_each(output::data);
    }
    match verdict(&row) {
        Some(text) => Err(Failure::failed(text)),
        None => Ok(()),
    }
}

fn lines(row: &PingRow) -> Vec<String> {
    let connection = match &row.connection {
        Some(tried) => line("connection", tried),
        None => "connection  none".to_owned(),
    };
    let tried = row.tried.iter().map(|tried| line("address", tried));
    [format!("node        {} ({})", row.node, row.id), connection].into_iter().chain(tried).collect()
}

fn line(what: &str, tried: &TriedRow) -> String {
    let TriedRow { way, rtt_us, failed, .. } = tried;
    let outcome = rtt_us.map(|us| format!("answers after {}", milliseconds(us)));
    let outcome = outcome.or_else(|| failed.clone()).unwrap_or_default();
    format!("{what:<11} {way}  {outcome}")
}

/// Returns what is wrong, and what mends it.
fn verdict(row: &PingRow) -> Option<String> {
    let node = &row.node;
    let answers = |tried: &TriedRow| tried.rtt_us.is_some();
    let is_connected = row.connection.as_ref().is_some_and(answers);
    if is_connected {
        return None;
    }
    Some(match (&row.connection, row.tried.iter().any(answers)) {
        (Some(_), _) => format!(
            "{node} does not answer over its connection; it is stopped, cut off or of an earlier version, see gossamer nodes"
        ),
        (None, true) => format!("{node} can be reached and is not connected yet; try again in a moment"),
        (None, false) => format!(
            "no way leads to {node}; start its daemon, open UDP to one of its addresses, or let it dial this node"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(way: &str, rtt_us: Option<u64>) -> TriedRow {
        let failed = rtt_us.is_none().then(|| "no answer within 2 s".to_owned());
        let word = if rtt_us.is_some() { "ok" } else { "no_answer" };
        TriedRow { way: way.to_owned(), word: word.to_owned(), rtt_us, failed }
    }

    #[test]
    fn each_way_has_a_line_with_what_became_of_it() {
        let row = PingRow {
            node: "vm-b".to_owned(),
            id: "abcd".to_owned(),
            connection: Some(tried("inbound 192.0.2.1:4677", Some(340))),
            tried: vec![tried("udp 192.0.2.1:4677", Some(560)), tried("udp 10.0.0.1:4677", None)],
        };
        let expected = [
            "node        vm-b (abcd)",
            "connection  inbound 192.0.2.1:4677  answers after 0.3 ms",
            "address     udp 192.0.2.1:4677  answers after 0.6 ms",
            "address     udp 10.0.0.1:4677  no answer within 2 s",
        ];
        assert_eq!(lines(&row), expected);
        assert_eq!(verdict(&row), None);
        let silent = PingRow { connection: Some(tried("direct 192.0.2.1:4677", None)), ..row.clone() };
        assert!(verdict(&silent).is_some_and(|text| text.contains("does not answer")));
        let alone = PingRow { connection: None, ..row };
        assert!(verdict(&alone).is_some_and(|text| text.contains("not connected yet")));
        let nowhere = PingRow { tried: vec![tried("udp 10.0.0.1:4677", None)], ..alone };
        assert!(verdict(&nowhere).is_some_and(|text| text.contains("no way leads to vm-b")));
    }
}
