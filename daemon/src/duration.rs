//! Lengths of time as people write them: a number and a unit.
//!
//! Owns: that grammar. Must not know: what is measured. Driven by: the command line, the configuration.

use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// Reads a length of time, for example `90s` or `7d`.
///
/// # Errors
/// Why it is none, in words.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration; write for example 30s, 15m, 1h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(*seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// Writes whole seconds in the largest unit that holds them without a rest.
pub(crate) fn words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let unit = UNITS.iter().find(|(_, unit)| seconds > 0 && seconds.is_multiple_of(*unit));
    unit.map_or_else(|| "0s".to_owned(), |(name, unit)| format!("{}{name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3_600), ("7d", 604_800)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)));
            assert_eq!(words(Duration::from_secs(seconds)), text);
        }
        assert_eq!(words(Duration::ZERO), "0s");
        for wrong in ["", "h", "10", "1w", "-1s", "\u{e9}", "99999999999999999999d", "999999999999999999d"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
