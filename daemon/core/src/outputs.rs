//! The room of a queue of outputs.
//!
//! Owns: when it is given back. Must not know: what the outputs are. Driven by: each core, when it is drained.

use std::collections::VecDeque;

/// Outputs for which a drained queue keeps its room: what one input usually leads to.
const KEPT: usize = 32;

/// Gives back the room of a drained queue that once held many, after a start or when everybody is told something.
/// Returns the queue.
pub(crate) fn trimmed<T>(queue: &mut VecDeque<T>) -> &mut VecDeque<T> {
    if queue.is_empty() && queue.capacity() > 2 * KEPT {
        queue.shrink_to(KEPT);
    }
    queue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_queue_keeps_room_for_the_usual_and_no_more() {
        let mut queue: VecDeque<_> = (0..1_000).collect();
        while trimmed(&mut queue).pop_front().is_some() {
            assert!(queue.capacity() >= 1_000, "not before it is drained");
        }
        assert!(trimmed(&mut queue).capacity() <= 2 * KEPT);
        let before = queue.capacity();
        assert!(before >= KEPT && trimmed(&mut queue).capacity() == before);
    }
}
