//! What the logs of several daemons say of the end of one node.
//!
//! Owns: which lines count, and their order. Must not know: why a node ended. Driven by: the checks of `evidence` that
//! time a death, when it took too long: who found it, who believed it and who declared it then follows from the output.

use std::fmt;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::process::Node;

/// The level daemons must log at for a trail.
pub const LEVEL: (&str, &str) = ("GOSSAMER_LOG_LEVEL", "debug");

/// How long before the end a line may be: a suspicion that was refuted by then may still be on its way.
const BEFORE: Duration = Duration::seconds(15);
/// Lines shown.
const MAX_LINES: usize = 200;
/// What is shown of every node: who found out, who judged, who was late.
const OF_ALL: [&str; 4] = ["probes failed", "time of a suspect is over", "runs late", "refuting"];

/// Lines of several logs about one node, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail(Vec<(Duration, String)>);

impl Trail {
    /// Reads the logs. Of the first `asked` nodes every line about the node with this id is kept, of the others what they
    /// found out by themselves.
    pub fn of(nodes: &[Node], id: &str, end: OffsetDateTime, asked: usize) -> Self {
        let mut lines = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let log = node.whole_log();
            lines.extend(
                lines_of(&log, id, end, index < asked)
                    .map(|(at, text)| (at, format!("{} {text}", node.name))),
            );
        }
        lines.sort();
        Self(lines)
    }
}

impl fmt::Display for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, text) in self.0.iter().take(MAX_LINES) {
            writeln!(f, "{:+8.3} s {text}", at.as_seconds_f64())?;
        }
        let more = self.0.len().saturating_sub(MAX_LINES);
        if more > 0 { writeln!(f, "and {more} lines") } else { Ok(()) }
    }
}

/// Returns the lines that count, with their distance from the end.
fn lines_of<'a>(
    log: &'a str,
    id: &'a str,
    end: OffsetDateTime,
    is_asked: bool,
) -> impl Iterator<Item = (Duration, String)> + 'a {
    log.lines().filter_map(move |line| {
        let (time, text) = line.split_once(' ')?;
        let is_own = OF_ALL.iter().any(|what| text.contains(what));
        let is_about = text.contains(id) || is_own && !text.contains("node=");
        if !is_about || !is_asked && !is_own {
            return None;
        }
        let at = OffsetDateTime::parse(time, &Rfc3339).ok()? - end;
        (at >= -BEFORE).then(|| (at, short(text, id)))
    })
}

/// Leaves out what is the same in all lines.
fn short(text: &str, id: &str) -> String {
    let said = text.split_once(" gossamer").and_then(|(_, rest)| rest.split_once(": "));
    said.map_or(text, |(_, rest)| rest).trim().replace(&format!("node={id} "), "")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-29T20:35:00.000000Z DEBUG task: gossamer_core::membership: probes failed node=aa incarnation=0 after=2.5s
2026-11-29T20:35:18.250000Z DEBUG task: gossamer_core::membership: probes failed node=aa incarnation=1 after=2.5s
2026-11-29T20:35:18.300000Z DEBUG task: gossamer_core::membership: probes failed node=bb incarnation=0 after=2.5s
2026-11-29T20:35:19.000000Z DEBUG task: gossamer_core::membership: this node runs late; its verdicts wait by=300ms
2026-11-29T20:35:19.500000Z DEBUG task: gossamer::membership: member changed node=aa from=Some(Suspect) to=Down
no time at all node=aa
";

    fn read(is_asked: bool) -> Vec<(Duration, String)> {
        let end = OffsetDateTime::parse("2026-11-29T20:35:18Z", &Rfc3339).expect("a time");
        lines_of(LOG, "aa", end, is_asked).collect()
    }

    #[test]
    fn of_all_nodes_what_they_found_and_how_late_they_ran_is_kept() {
        let found = read(false);
        let texts: Vec<_> = found.iter().map(|(at, text)| (at.whole_milliseconds(), text.as_str())).collect();
        let late = "this node runs late; its verdicts wait by=300ms";
        assert_eq!(texts, [(250, "probes failed incarnation=1 after=2.5s"), (1_000, late)]);
    }

    #[test]
    fn of_those_asked_everything_about_the_node_is_kept() {
        let found = read(true);
        assert_eq!(found.len(), 3);
        assert_eq!(found[2].1, "member changed from=Some(Suspect) to=Down");
    }

    #[test]
    fn a_trail_is_shown_with_the_distance_from_the_end_and_not_without_bound() {
        let line = |n: i64| (Duration::milliseconds(n), "n1 text".to_owned());
        assert_eq!(Trail(vec![line(1_250)]).to_string(), "  +1.250 s n1 text\n");
        let long = Trail((0..=MAX_LINES as i64).map(line).collect()).to_string();
        assert!(long.ends_with("and 1 lines\n"), "{long}");
    }
}
