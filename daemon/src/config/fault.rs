//! What is wrong with a configuration, and what to write instead.
//!
//! Owns: the text of a fault and the search for the nearest word. Must not know: the keys.
//! Driven by: `config` while it reads, the command line for names it does not know.

use std::fmt;

/// One fault of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// File and key, variable, or flag.
    pub place: String,
    /// What is wrong with the value, naming it.
    pub why: String,
    /// What to write or do.
    pub fix: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.why, self.fix)
    }
}

/// All faults of a configuration, at least one. The operator's fault; nothing was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// In the order file, environment, flags.
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for fault in &self.faults {
            write!(f, "{separator}{fault}")?;
            separator = "\n";
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Returns the candidate that is most like a word, unless none is within a third of its length.
///
/// A candidate with a section also counts by its last part, so `zone` finds `node.zone`.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let allowed = (word.len() / 3).max(1);
    let ranked = candidates.into_iter().map(|candidate| {
        let whole = distance(word, candidate);
        let part = distance(&last(word), &last(candidate)) + 1;
        (whole.min(part), candidate)
    });
    ranked.min().filter(|(distance, _)| *distance <= allowed).map(|(_, candidate)| candidate)
}

/// Counts the single-character edits, a swap of neighbours being one, between two words (Damerau 1964, the
/// restricted form).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_and_a_swap_is_one() {
        for (a, b, edits) in
            [("", "abc", 3), ("listen", "listen", 0), ("lisetn", "listen", 1), ("listne", "listens", 2)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn the_nearest_word_is_found_also_without_its_section() {
        let keys = ["listen", "dns.address", "log.level", "vip.pool"];
        assert_eq!(nearest("lisen", keys), Some("listen"));
        assert_eq!(nearest("dns.adress", keys), Some("dns.address"));
        assert_eq!(nearest("level", keys), Some("log.level"));
        assert_eq!(nearest("entirely-different", keys), None);
    }
}
