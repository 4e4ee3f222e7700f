//! Draining of registrations: they stay registered and take no new flows.
//!
//! Owns: the shape of the request, and its rules. Must not know: flows, how long they live. Driven by: `task`, as a part of
//! a draft.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use gossamer_core::callers::Owner;
use gossamer_wire::{InstanceName, ServiceName};

use super::book::Draft;
use super::spec::Key;
use crate::store::StoreError;

/// Asks to let registrations take no new flows, or to let them take some again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainRequest {
    /// The service; all of this node, as far as who asks may change them, unless given.
    pub service: Option<ServiceName>,
    /// One instance of it; all of this node unless given.
    pub instance: Option<InstanceName>,
    /// When the flows that still live are ended, seconds since the Unix epoch; `None` to undo.
    pub until: Option<u64>,
    /// Who asks.
    pub by: Owner,
}

/// It is on disk, and the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// The registrations that are meant, sorted; for an undo those that drained.
    pub registrations: Vec<(ServiceName, InstanceName)>,
}

/// Why nothing drains, or still does.
#[derive(Clone, Debug, Error)]
pub enum DrainError {
    /// The caller's fault. Nothing changed.
    #[error("{what} is not registered on this node; gossamer status and gossamer services show what is")]
    Unknown {
        /// What was asked for, in words.
        what: String,
    },
    /// The caller's fault: another user of this node registered it. Nothing changed.
    #[error("{what} on this node belongs to {owner}; let {owner} or an operator drain it")]
    Owned {
        /// What was asked for, in words.
        what: String,
        /// Whose it is.
        owner: Owner,
    },
    /// The disk's fault. Nothing changed; retry when it is mended.
    #[error("nothing was drained, because that could not be written: {0}")]
    NotDurable(Arc<StoreError>),
    /// The daemon is stopping, and drains by that.
    #[error("the daemon is stopping")]
    Stopping,
}

/// When the flows of draining registrations end.
pub(super) type Drains = BTreeMap<Key, u64>;

impl Draft {
    /// Lets registrations drain, or takes that back.
    ///
    /// # Errors
    /// There is none of that name, or none that may be changed; the draft is as before.
    pub(super) fn drain(&mut self, request: &DrainRequest) -> Result<Drained, DrainError> {
        let is_named = |(service, instance): &Key| {
            request.service.as_ref().is_none_or(|asked| asked == service)
                && request.instance.as_ref().is_none_or(|asked| asked == instance)
        };
        let may_change = |owner| request.by.may_change(owner);
        let named: Vec<(Key, Owner)> = self.owners().filter(|(key, _)| is_named(key)).collect();
        let foreign = named.iter().find(|(_, owner)| !may_change(*owner));
        let keys: Vec<Key> =
            named.iter().filter(|(_, owner)| may_change(*owner)).map(|(key, _)| key.clone()).collect();
        match (foreign, &request.service) {
            (Some((_, owner)), Some(_)) => {
                return Err(DrainError::Owned { what: meant(request), owner: *owner });
            }
            (None, Some(_)) if keys.is_empty() => return Err(DrainError::Unknown { what: meant(request) }),
            _ => {}
        }
        let mut registrations = Vec::new();
        for key in keys {
            let before = match request.until {
                Some(until) => self.drains.insert(key.clone(), until),
                None => self.drains.remove(&key),
            };
            self.is_changed |= before != request.until;
            if request.until.is_some() || before.is_some() {
                registrations.push(key);
            }
        }
        Ok(Drained { registrations })
    }
}

fn meant(request: &DrainRequest) -> String {
    match (&request.service, &request.instance) {
        (Some(service), Some(instance)) => format!("instance `{instance}` of `{service}`"),
        (Some(service), None) => format!("`{service}`"),
        (None, _) => "everything".to_owned(),
    }
}
