//! `watch`: each change of a node or an instance, as it becomes visible here.
//!
//! Owns: how a line reads. Must not know: how changes are found. Driven by: `cli`.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::args::Watch;
use super::failure::{Exit, Failure};
use super::output;
use crate::api::Client;
use crate::index::WatchLine;

pub(super) async fn run(client: &Client, watch: &Watch) -> Result<(), Failure> {
    let name = watch.name.as_ref().map(|name| format!("&name={name}")).unwrap_or_default();
    let path = format!("/v1/watch?all={}{name}", watch.all);
    let lines = client.lines(&path, |line| show(line, watch));
    tokio::select! {
        result = lines => result,
        // Ctrl-C is how it ends; nothing is lost by it.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn show(line: &str, watch: &Watch) -> Result<(), Failure> {
    if watch.shape.json {
        output::data(line);
        return Ok(());
    }
    let line: WatchLine = serde_json::from_str(line).map_err(|error| {
        Failure::new(Exit::Failed, format_args!("a line is unreadable ({error}); restart the daemon"))
    })?;
    match &line {
        WatchLine::Watching { nodes, services, .. } if !watch.shape.quiet => {
            output::note(format_args!("watching {nodes} nodes and {services} services; Ctrl-C ends it"));
        }
        WatchLine::Watching { .. } => {}
        WatchLine::Lost { lines, .. } => {
            output::note(format_args!("{lines} lines are missing here: read too slowly"))
        }
        WatchLine::Node { node, .. } if watch.shape.quiet => output::data(node),
        WatchLine::Service { service, .. } if watch.shape.quiet => output::data(service),
        WatchLine::Node { .. } | WatchLine::Service { .. } => output::data(words(&line)),
    }
    Ok(())
}

/// Returns a change as the event log would say it.
fn words(line: &WatchLine) -> String {
    match line {
        WatchLine::Node { at_us, node, was, now, cause, by, .. } => {
            format!("{} node {node}: {was} -> {now}, {cause} (says {by})", time_of(*at_us))
        }
        WatchLine::Service { at_us, service, instance, node, was, now, changed, ports, .. } => {
            let ports: Vec<_> = ports.iter().map(|port| port.number.to_string()).collect();
            let what =
                if changed.is_empty() { String::new() } else { format!(", other {}", changed.join(" and ")) };
            format!(
                "{} service {service}/{instance}: {was} -> {now}{what}, port {} of node {node}",
                time_of(*at_us),
                ports.join(" ")
            )
        }
        WatchLine::Watching { .. } | WatchLine::Lost { .. } => String::new(),
    }
}

/// Returns the time with milliseconds: what people compare two screens by.
fn time_of(at_us: u64) -> String {
    let nanos = i128::from(at_us / 1_000) * 1_000_000;
    let time =
        OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| at_us.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_says_when_who_what_and_why() {
        let node = WatchLine::Node {
            at_us: 1_700_000_000_123_456,
            node: "vm-b".to_owned(),
            id: "abcd".to_owned(),
            was: "suspect".to_owned(),
            now: "down".to_owned(),
            cause: "it did not answer probes".to_owned(),
            by: "self".to_owned(),
        };
        let expected =
            "2023-11-14T22:13:20.123Z node vm-b: suspect -> down, it did not answer probes (says self)";
        assert_eq!(words(&node), expected);
    }

    #[test]
    fn a_changed_instance_says_what_of_it_changed() {
        let service = |changed: &[&str]| WatchLine::Service {
            at_us: 0,
            service: "web".parse().expect("name"),
            instance: "a".parse().expect("name"),
            node: "vm-b".parse().expect("name"),
            group: "west".parse().expect("name"),
            was: "usable".to_owned(),
            now: "usable".to_owned(),
            changed: changed.iter().map(|part| (*part).to_owned()).collect(),
            ports: vec![crate::index::WatchPort { name: 80.into(), number: 80 }],
            metadata: std::collections::BTreeMap::new(),
        };
        let text = words(&service(&["ports", "weight"]));
        assert!(
            text.ends_with("service web/a: usable -> usable, other ports and weight, port 80 of node vm-b"),
            "{text}"
        );
        assert!(words(&service(&[])).ends_with("usable -> usable, port 80 of node vm-b"));
    }
}
