//! Sets of nodes as scenario files write them.
//!
//! Owns: the words. Must not know: what is done with a set. Driven by: the parser of scenario files.

use std::collections::BTreeSet;

/// A set as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// `"others"`: what it means depends on the place.
    Others,
    /// All that are named.
    These(BTreeSet<usize>),
}

/// Reads `"all"`, `"others"`, or numbers and ranges.
///
/// # Errors
/// The file's fault, in words that name the part.
pub(super) fn parse(text: &str, nodes: usize) -> Result<Words, String> {
    match text {
        "all" => return Ok(Words::These((0..nodes).collect())),
        "others" => return Ok(Words::Others),
        _ => {}
    }
    let mut set = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let (Some(first), Some(last)) = (number(first), number(last)) else {
            return Err(format!(
                "`{part}` is no number and no range; write \"0-4,7\", \"all\" or \"others\""
            ));
        };
        if first > last {
            return Err(format!("the range `{part}` runs backwards"));
        }
        if last >= nodes {
            return Err(format!("there is no node {last}: `nodes` is {nodes}, the first is 0"));
        }
        set.extend(first..=last);
    }
    Ok(Words::These(set))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ranges_and_words_are_sets() {
        let these = |nodes: &[usize]| Ok(Words::These(nodes.iter().copied().collect()));
        assert_eq!(parse("0-2, 7", 8), these(&[0, 1, 2, 7]));
        assert_eq!(parse("all", 3), these(&[0, 1, 2]));
        assert_eq!(parse("others", 3), Ok(Words::Others));
    }

    #[test]
    fn what_is_no_set_is_named() {
        for (text, word) in [("", "``"), ("1,x", "`x`"), ("3-1", "backwards"), ("2-9", "no node 9")] {
            let error = parse(text, 9).expect_err(text);
            assert!(error.contains(word), "{error}");
        }
    }
}
