//! Changes of the registrations, before they are on disk.
//!
//! Owns: what a request makes of them, and whether that may be. Must not know: health. Driven by: the registry's task.

use std::sync::Arc;

use gossamer_core::callers::Owner;
use gossamer_wire::advert::{HEADER_BYTES, SIGNATURE_BYTES};
use gossamer_wire::limits::{MAX_ADVERT_BYTES, MAX_FRAGMENTS, MAX_OWN_RECORDS, MAX_RECORDS_PER_FRAGMENT};
use gossamer_wire::{InstanceName, Tries};

use super::super::Raise;
use super::super::request::{ExposeError, ExposeRequest, WithdrawError, WithdrawRequest, Withdrawn};
use super::super::spec::{Key, Rules, Spec};
use super::{Draft, Planned};

impl Draft {
    /// Returns whether it differs from the book it was made of.
    pub(in crate::register) const fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// Puts a registration in.
    ///
    /// # Errors
    /// The request breaks a rule; the draft is as before.
    pub(in crate::register) fn expose(
        &mut self,
        request: ExposeRequest,
        rules: &Rules,
    ) -> Result<Planned, ExposeError> {
        let spec = Arc::new(Spec::of(request, rules)?);
        let key = spec.key();
        // All of the name: another instance would take a share of its traffic.
        if let Some(owner) = self.foreign(spec.owner(), |(service, _)| *service == spec.service) {
            return Err(ExposeError::Owned { service: spec.service.clone(), owner });
        }
        let before = self.specs.get(&key);
        if before == Some(&spec) {
            return Ok(Planned { spec, replaced: false });
        }
        let replaced = before.is_some() || self.barred.contains_key(&key);
        if !replaced && self.specs.len() + self.barred.len() >= MAX_OWN_RECORDS {
            return Err(ExposeError::TooMany);
        }
        let previous = self.specs.insert(key.clone(), Arc::clone(&spec));
        if !fits_fragments(self.specs.values()) {
            match previous {
                Some(spec) => drop(self.specs.insert(key, spec)),
                None => drop(self.specs.remove(&key)),
            }
            return Err(ExposeError::NoRoom);
        }
        self.barred.remove(&key);
        self.is_changed = true;
        Ok(Planned { spec, replaced })
    }

    /// Takes registrations out.
    ///
    /// # Errors
    /// There is none of that name; the draft is as before.
    pub(in crate::register) fn withdraw(
        &mut self,
        request: &WithdrawRequest,
    ) -> Result<Withdrawn, WithdrawError> {
        let is_meant = |(service, instance): &Key| {
            *service == request.service && request.instance.as_ref().is_none_or(|asked| asked == instance)
        };
        let keys = self.specs.keys().chain(self.barred.keys());
        let keys: Vec<Key> = keys.filter(|key| is_meant(key)).cloned().collect();
        if keys.is_empty() {
            return Err(self.unknown(request));
        }
        if let Some(owner) = self.foreign(request.by, is_meant) {
            return Err(WithdrawError::Owned { what: meant(request), owner });
        }
        for key in &keys {
            self.specs.remove(key);
            self.tries.remove(key);
            self.drains.remove(key);
            self.barred.remove(key);
        }
        self.is_changed = true;
        let mut instances: Vec<InstanceName> = keys.into_iter().map(|(_, instance)| instance).collect();
        instances.sort();
        Ok(Withdrawn { instances })
    }

    /// Raises the `try` of names of a registration. One that is gone, or is as high already, stays as it is.
    pub(in crate::register) fn raise(&mut self, raise: Raise) {
        let key = (raise.service, raise.instance);
        if !self.specs.contains_key(&key) {
            return;
        }
        let before = self.tries.get(&key).copied().unwrap_or_default();
        let after = Tries {
            service: before.service.max(raise.tries.service),
            group: before.group.max(raise.tries.group),
            instance: before.instance.max(raise.tries.instance),
        };
        if after != before {
            self.tries.insert(key, after);
            self.is_changed = true;
        }
    }

    /// Returns the registrations that are offered, with whose they are.
    pub(in crate::register) fn owners(&self) -> impl Iterator<Item = (Key, Owner)> {
        self.specs.iter().map(|(key, spec)| (key.clone(), spec.owner()))
    }

    /// Returns whose a registration is that is meant and that `by` may not change.
    fn foreign(&self, by: Owner, is_meant: impl Fn(&Key) -> bool) -> Option<Owner> {
        let barred = self.barred.iter().map(|(key, stored)| (key, &stored.spec));
        let all = self.specs.iter().map(|(key, spec)| (key, &**spec)).chain(barred);
        all.filter(|(key, _)| is_meant(key))
            .map(|(_, spec)| spec.owner())
            .find(|owner| !by.may_change(*owner))
    }

    fn unknown(&self, request: &WithdrawRequest) -> WithdrawError {
        let what = meant(request);
        let named = |(service, instance): &Key| match *service == request.service {
            true => format!("{service} --instance {instance}"),
            false => service.to_string(),
        };
        let mut known: Vec<String> = self.specs.keys().map(named).collect();
        known.dedup();
        let left = known.len().saturating_sub(MAX_NAMED);
        known.truncate(MAX_NAMED);
        if left > 0 {
            known.push(format!("{left} more"));
        }
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join(", ") };
        WithdrawError::Unknown { what, known }
    }
}

/// Says what is to be withdrawn.
fn meant(request: &WithdrawRequest) -> String {
    match &request.instance {
        Some(instance) => format!("instance `{instance}` of `{}`", request.service),
        None => format!("`{}`", request.service),
    }
}

/// Services an error names before it only counts them: one line of a terminal.
const MAX_NAMED: usize = 8;

/// Returns whether the records can be told in the fragments a node has, each record into the first fragment
/// with room. The catalog may hold them in another order and place; it has the last word.
fn fits_fragments<'a>(specs: impl Iterator<Item = &'a Arc<Spec>>) -> bool {
    let mut fragments: Vec<(usize, usize)> = Vec::new();
    for spec in specs {
        let Ok(len) = spec.encoded_len() else { return false };
        let len = len + ENTRY_OVERHEAD_BYTES;
        let room = |(used, count): &&mut (usize, usize)| {
            *used + len <= FRAGMENT_BYTES && *count < MAX_RECORDS_PER_FRAGMENT
        };
        match fragments.iter_mut().find(room) {
            Some((used, count)) => {
                *used += len;
                *count += 1;
            }
            None => fragments.push((len, 1)),
        }
    }
    fragments.len() <= usize::from(MAX_FRAGMENTS)
}

/// What a fragment has for entries: all but header, signature and the count.
const FRAGMENT_BYTES: usize = MAX_ADVERT_BYTES - HEADER_BYTES - SIGNATURE_BYTES - 1;
/// Kind and length of an entry, the length at its longest.
const ENTRY_OVERHEAD_BYTES: usize = 1 + 3;
