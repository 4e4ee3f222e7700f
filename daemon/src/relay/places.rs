//! Places of instances that are asked beside others: some for the whole node, a share of them for each service.
//!
//! Owns: the counts. Must not know: who is asked. Driven by: `tries`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gossamer_wire::ServiceName;

/// The places. Clones are handles to the same ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<BTreeMap<ServiceName, usize>>>);

impl Places {
    /// Takes a place until it is dropped; `None` when the service, or all together, have theirs in use.
    pub(super) fn take(&self, service: &ServiceName) -> Option<Place> {
        let mut taken = self.lock();
        // Few entries: a service without a place has none.
        let is_full = taken.values().sum::<usize>() >= MOST_BESIDE;
        let of_service = taken.get(service).copied().unwrap_or_default();
        if is_full || of_service >= MOST_BESIDE_OF_SERVICE {
            return None;
        }
        taken.insert(service.clone(), of_service + 1);
        Some(Place { places: self.clone(), service: service.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, usize>> {
        // No operation leaves it half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    service: ServiceName,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match taken.get_mut(&self.service) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.service)),
        }
    }
}

/// Instances asked beside others at the same moment, of all flows. One that answers gives its place back within
/// milliseconds, so thousands of flows leave a silent node within a second; when all are slow, for want of processor time
/// for example, the relay adds no more than this to what they have to do.
const MOST_BESIDE: usize = 64;

/// The share of one service: with all its instances slow it takes the places for seconds, and three others have theirs.
const MOST_BESIDE_OF_SERVICE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn service(number: usize) -> ServiceName {
        format!("s{number}").parse().expect("name")
    }

    #[test]
    fn a_service_has_its_share_and_all_together_have_theirs() {
        let places = Places::default();
        let take = |number| places.take(&service(number));
        let mut taken: Vec<_> = (0..4 * MOST_BESIDE).filter_map(|_| take(0)).collect();
        assert_eq!(taken.len(), MOST_BESIDE_OF_SERVICE, "one slow service");
        taken.extend((1..MOST_BESIDE).flat_map(|number| [take(number), take(number)].into_iter().flatten()));
        assert_eq!(taken.len(), MOST_BESIDE, "many of them");
        assert!(take(999).is_none());
        taken.remove(0);
        assert!(take(999).is_some(), "a place that was given back");
        drop(taken);
        assert!(places.lock().is_empty());
    }
}
