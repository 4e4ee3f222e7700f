//! Files in reserve: with one of them a client is reset at once when this process can open no more.
//!
//! Owns: those files. Must not know: who the client is. Driven by: `listener`, which lends one to the next accept; the
//! relay, which turns that client away and takes it back.
//!
//! Without them the client would wait in the listener's backlog for as long as the shortage lasts. One would do, but what is
//! lent is anybody's: a task that opens a file in the same moment may have it before the accept has.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The files. Clones are handles to the same ones.
#[derive(Clone, Debug)]
pub(super) struct Spare(Arc<Mutex<Vec<File>>>);

impl Default for Spare {
    fn default() -> Self {
        let spare = Self(Arc::default());
        spare.refill();
        spare
    }
}

impl Spare {
    /// Gives the place of one free. Returns whether there was one to give.
    pub(super) fn lend(&self) -> bool {
        self.lock().pop().is_some()
    }

    /// Returns whether one is lent.
    pub(super) fn is_lent(&self) -> bool {
        self.lock().len() < FILES
    }

    /// Takes places again, as far as there are any.
    pub(super) fn refill(&self) {
        let mut files = self.lock();
        while files.len() < FILES {
            // Opened, and never read.
            let Ok(file) = File::open("/dev/null") else { break };
            files.push(file);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More than this process opens in one moment beside clients: retries of its API, of checks, of roads to peers.
const FILES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_lent_once_and_taken_back() {
        let spare = Spare::default();
        assert!(!spare.is_lent());
        assert!((0..FILES).all(|_| spare.lend() && spare.is_lent()) && !spare.lend());
        spare.refill();
        assert!(!spare.is_lent());
    }
}
