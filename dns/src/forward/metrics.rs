//! Counters of the forwarder.
//!
//! Owns: what is counted. Must not know: metric names. Driven by: `forward` and `exchange`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct ForwardMetrics(Counters<AtomicU64>);

/// One reading of the counters of the forwarder. Fields are read one after the other, not at one instant.
pub type ForwardCounts = Counters<u64>;

/// What is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters<T> {
    /// Questions answered from the cache.
    pub cached: T,
    /// Questions answered by upstream, also those that waited for the answer to the same question.
    pub answered: T,
    /// Questions that no upstream server answered in time.
    pub unanswered: T,
    /// Questions refused because as many wait already as may.
    pub overflowed: T,
    /// Answers refused because they speak for names or addresses of the mesh.
    pub mesh_data: T,
    /// Answers refused by rebind protection.
    pub private: T,
    /// Answers that were cut and asked for again over TCP.
    pub truncated: T,
    /// Messages dropped because of their id.
    pub wrong_id: T,
    /// Messages dropped because of their question.
    pub wrong_question: T,
    /// Messages dropped because they are no response or cannot be read.
    pub malformed: T,
    /// Questions of ours that came back to us.
    pub came_back: T,
}

macro_rules! counted {
    ($($field:ident),*) => {
        impl ForwardMetrics {
            $(pub(super) fn $field(&self) {
                self.0.$field.fetch_add(1, Ordering::Relaxed);
            })*

            pub(super) fn counts(&self) -> ForwardCounts {
                Counters { $($field: self.0.$field.load(Ordering::Relaxed)),* }
            }
        }
    };
}

counted!(
    cached,
    answered,
    unanswered,
    overflowed,
    mesh_data,
    private,
    truncated,
    wrong_id,
    wrong_question,
    malformed,
    came_back
);
