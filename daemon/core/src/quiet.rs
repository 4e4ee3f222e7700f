//! Whom a log names who gives cause again and again.
//!
//! Owns: who was named lately, a bounded number. Must not know: the cause, where it is written. Driven by: who refuses.
//!
//! One that asks without end must neither fill the log nor hide the others in it: each has a pause of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Pause between two lines about one.
const PAUSE: Duration = Duration::from_secs(10);
/// How many are named in that time: a dozen lines a second at the most.
const MAX_NAMED: usize = 128;

/// Who was named lately.
#[derive(Debug)]
pub struct Quiet<K>(BTreeMap<K, Instant>);

impl<K> Default for Quiet<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Quiet<K> {
    /// Returns whether this one is to be named now.
    pub fn names(&mut self, who: K, now: Instant) -> bool {
        let is_quiet = |named: &Instant| now.saturating_duration_since(*named) < PAUSE;
        if self.0.get(&who).is_some_and(is_quiet) {
            return false;
        }
        if self.0.len() >= MAX_NAMED {
            self.0.retain(|_, named| is_quiet(named));
        }
        let has_room = self.0.len() < MAX_NAMED || self.0.contains_key(&who);
        if has_room {
            self.0.insert(who, now);
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_without_end_is_named_at_its_pace_and_hides_nobody() {
        let (mut quiet, now) = (Quiet::default(), Instant::now());
        assert!(quiet.names(1, now));
        assert!((0..1_000).all(|_| !quiet.names(1, now + PAUSE / 2)));
        assert!(quiet.names(2, now + PAUSE / 2));
        assert!(quiet.names(1, now + PAUSE));
    }

    #[test]
    fn a_crowd_takes_bounded_memory_and_is_forgotten() {
        let (mut quiet, now) = (Quiet::default(), Instant::now());
        let named = (0..10_000).filter(|who| quiet.names(*who, now)).count();
        assert_eq!((named, quiet.0.len()), (MAX_NAMED, MAX_NAMED));
        assert!(quiet.names(20_000, now + PAUSE));
        assert_eq!(quiet.0.len(), 1);
    }
}
