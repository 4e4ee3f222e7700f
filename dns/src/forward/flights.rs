//! Flights: the same question is out once, however many ask it.
//!
//! Owns: who asks and who waits. Must not know: what is asked. Driven by: `forward`.
//!
//! Two queries for one name would double the chance to forge an answer to either (RFC 5452 5), and a loop that no probe
//! has found yet ends where a question meets itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// What is on its way, by question.
#[derive(Debug)]
pub(super) struct Flights<K, T>(Mutex<HashMap<K, watch::Receiver<Option<T>>>>);

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// The right to ask, and the duty to tell.
struct Lead<'a, K: Eq + Hash, T> {
    flights: &'a Flights<K, T>,
    key: &'a K,
    told: watch::Sender<Option<T>>,
}

impl<K: Clone + Eq + Hash, T: Clone> Flights<K, T> {
    /// Waits for the answer that is on its way, or else asks by `ask`. When the one who asks is dropped, one that
    /// waits asks in its place.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub(super) async fn join(&self, key: &K, ask: impl Future<Output = T>) -> T {
        loop {
            match self.lead(key) {
                Ok(lead) => {
                    let result = ask.await;
                    lead.told.send_replace(Some(result.clone()));
                    return result;
                }
                Err(mut flight) => {
                    let told = flight.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
                    if let Some(result) = told {
                        return result;
                    }
                }
            }
        }
    }

    /// Returns the right to ask when nobody has it, else what to wait for.
    fn lead<'a>(&'a self, key: &'a K) -> Result<Lead<'a, K, T>, watch::Receiver<Option<T>>> {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(key) {
            return Err(flight.clone());
        }
        let (told, flight) = watch::channel(None);
        flights.insert(key.clone(), flight);
        Ok(Lead { flights: self, key, told })
    }
}

impl<K: Eq + Hash, T> Flights<K, T> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, watch::Receiver<Option<T>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, T> Drop for Lead<'_, K, T> {
    fn drop(&mut self) {
        self.flights.lock().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn one_asks_and_all_hear() {
        let flights = Flights::default();
        let slow = async {
            yield_now().await;
            7
        };
        let heard = tokio::join!(flights.join(&"a", slow), flights.join(&"a", async { 8 }));
        assert_eq!(heard, (7, 7));
        assert_eq!(flights.join(&"a", async { 9 }).await, 9, "the next one asks again");
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn different_questions_do_not_wait_for_each_other() {
        let flights = Flights::default();
        let both = tokio::join!(flights.join(&1, async { "one" }), flights.join(&2, async { "two" }));
        assert_eq!(both, ("one", "two"));
    }

    #[tokio::test]
    async fn who_waits_takes_over_when_the_asker_is_gone() {
        let flights = Flights::default();
        let waiter = flights.join(&"a", async { 8 });
        let gone = async {
            tokio::select! {
                biased;
                _ = flights.join(&"a", pending::<i32>()) => {}
                () = yield_now() => {}
            }
        };
        assert_eq!(tokio::join!(gone, waiter).1, 8);
    }
}
