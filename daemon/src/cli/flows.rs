//! `status --flows`: the living flows, as they come.
//!
//! Owns: how a row reads. Must not know: where rows come from. Driven by: `status`.

use super::args::Shape;
use super::failure::Failure;
use super::output;
use crate::api::Client;
use crate::api::messages::{FlowRow, FlowsLine, Protocol};

pub(super) async fn run(client: &Client, limit: usize, shape: Shape) -> Result<(), Failure> {
    let mut more = 0;
    client
        .lines(&format!("/v1/flows?limit={limit}"), |line| {
            // A line of a later version that this one does not know is left out.
            match serde_json::from_str(line) {
                Ok(FlowsLine::Flows { total, shown }) => {
                    more = total.saturating_sub(shown);
                    if !shape.json && !shape.quiet {
                        output::data(HEAD);
                    }
                }
                Ok(FlowsLine::Flow(row)) if shape.json => print_json(&row)?,
                Ok(FlowsLine::Flow(row)) if shape.quiet => output::data(&row.flow),
                Ok(FlowsLine::Flow(row)) => output::data(line_of(&row)),
                Err(_) => {}
            }
            Ok::<_, Failure>(())
        })
        .await?;
    if more > 0 {
        output::note(format_args!("{more} younger ones are not shown; --limit {} shows them", limit + more));
    }
    Ok(())
}

/// One object a line, as `watch --json`: a long list need not be held.
fn print_json(row: &FlowRow) -> Result<(), Failure> {
    output::data(serde_json::to_string(row).map_err(Failure::failed)?);
    Ok(())
}

const HEAD: &str = "FLOW              DIR  SERVICE           INSTANCE       PEER           AGE       IN         OUT        BY";

fn line_of(row: &FlowRow) -> String {
    let udp = if row.transport == Protocol::Udp { "/udp" } else { "" };
    let by = match (&row.client, &row.target, row.remote) {
        (Some(client), _, Some(remote)) => format!("{client} over {} {remote}", row.path),
        (Some(client), _, None) => format!("{client}, {}", row.path),
        (None, Some(target), Some(remote)) => format!("to {target} over {} {remote}", row.path),
        (None, _, Some(remote)) => format!("local API over {} {remote}", row.path),
        (None, _, None) => format!("local API, {}", row.path),
    };
    let direction = if row.direction == "inbound" { "in" } else { "out" };
    let service = format!("{}{udp}", row.service);
    let peer = format!("{}.{}", row.peer, row.group);
    let (age, inward, outward) = (age(row.age_ms), row.bytes_in, row.bytes_out);
    format!(
        "{:<16}  {direction:<3}  {service:<16}  {:<13}  {peer:<13}  {age:<8}  {inward:<9}  {outward:<9}  {by}",
        row.flow,
        row.instance.as_str()
    )
}

fn age(ms: u64) -> String {
    match ms / 1_000 {
        0 => format!("{ms} ms"),
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> FlowRow {
        FlowRow {
            flow: "00000000000000ff".to_owned(),
            direction: "outbound".to_owned(),
            service: "orders".parse().expect("name"),
            instance: "db-0".parse().expect("name"),
            peer: "vm-b".parse().expect("name"),
            group: "west".parse().expect("name"),
            client: Some("127.0.0.1:40000".parse().expect("address")),
            target: None,
            transport: Protocol::Udp,
            path: "quic".to_owned(),
            remote: Some("192.0.2.1:4677".parse().expect("address")),
            age_ms: 90_000,
            bytes_in: 12,
            bytes_out: 34_567,
        }
    }

    #[test]
    fn a_row_stands_below_its_head() {
        let line = line_of(&row());
        for (head, value) in [
            ("DIR", "out"),
            ("SERVICE", "orders/udp"),
            ("PEER", "vm-b.west"),
            ("AGE", "90 s"),
            ("OUT", "34567"),
        ] {
            let at = HEAD.find(head).expect(head);
            assert!(line[at..].starts_with(value), "{head} in\n{HEAD}\n{line}");
        }
        assert!(line.ends_with("127.0.0.1:40000 over quic 192.0.2.1:4677"), "{line}");
        let here = FlowRow { client: None, remote: None, path: "local".to_owned(), ..row() };
        assert!(line_of(&here).ends_with("local API, local"));
    }

    #[test]
    fn ages_have_a_unit() {
        assert_eq!([5, 1_500, 600_000, 7_200_000].map(age), ["5 ms", "1 s", "10 min", "2 h"]);
    }
}
