//! A file in reserve: with it a client is reset at once when this process can open no more.
//!
//! Owns: that file. Must not know: who the client is. Driven by: `listener`, which lends it to the next accept; the
//! relay, which turns that client away and takes it back.
//!
//! Without it the client would wait in the listener's backlog for as long as the shortage lasts.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The file. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(super) struct Spare(Arc<Mutex<Option<File>>>);

impl Default for Spare {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(open())))
    }
}

impl Spare {
    /// Gives its place free. Returns whether there was one to give.
    pub(super) fn lend(&self) -> bool {
        self.lock().take().is_some()
    }

    /// Returns whether it is lent.
    pub(super) fn is_lent(&self) -> bool {
        self.lock().is_none()
    }

    /// Takes its place again, if there is one.
    pub(super) fn refill(&self) {
        let mut file = self.lock();
        if file.is_none() {
            *file = open();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open() -> Option<File> {
    // Opened and closed at once, and never read.
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_lent_once_and_taken_back() {
        let spare = Spare::default();
        assert!(!spare.is_lent());
        assert!(spare.lend() && spare.is_lent() && !spare.lend());
        spare.refill();
        assert!(!spare.is_lent());
    }
}
