//! The book: what is registered on this node, what is known about its targets, and what the mesh is told.
//!
//! Owns: registrations, their verdicts, the content of the state file. Must not know: files, sockets, clocks.
//! Driven by: `task`, which writes a [`Draft`] durably before it is adopted.

mod draft;

use std::collections::BTreeMap;
use std::sync::Arc;

use gossamer_core::access::{Access, Policy};
use gossamer_wire::limits::MAX_OWN_RECORDS;
use gossamer_wire::{Health, PortName, ServiceRecord, Transport, Tries};

use super::drain::Drains;
use super::health::Verdict;
use super::place::{Host, Place};
use super::request::{ExposeError, Exposed};
use super::spec::{Key, PortSpec, Rules, Spec, Stored, StoredService, VERSION};
use super::{Change, LocalService, Target};
use crate::listeners::Listeners;

/// What a finished check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// Somebody accepted the connection.
    pub(super) passed: bool,
    /// The address is one of this machine.
    pub(super) is_local: bool,
    /// Why nobody did, when that is more than that nobody listens.
    pub(super) trouble: Option<&'static str>,
}

/// What a reading of the machine's listeners taught, by what has to hear of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Learned {
    /// Nothing new.
    Nothing,
    /// Something for the relay, which a restart finds out again.
    Passing,
    /// Something for the state file as well.
    Lasting,
}

/// What is checked: one TCP target of one registration. A replaced registration is another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CheckId {
    key: Key,
    port: usize,
    run: u64,
    /// Where to connect.
    pub(super) addr: Place,
    /// Whether a PROXY header says that it is a check only.
    pub(super) proxy_protocol: bool,
}

/// A registration and what is known about it.
#[derive(Clone, Debug)]
struct Entry {
    spec: Arc<Spec>,
    access: Arc<Access>,
    tries: Tries,
    /// When its flows end, while it drains.
    drains_until: Option<u64>,
    /// One per port of the spec.
    watches: Vec<Watch>,
    /// Unique per adopted content.
    run: u64,
}

/// What is known about a port's target.
#[derive(Clone, Copy, Debug)]
struct Watch {
    /// `None` until the first check, and for ever without one (UDP).
    verdict: Option<Verdict>,
    trouble: Option<&'static str>,
    is_local: bool,
    wildcard: Option<bool>,
}

/// All registrations.
#[derive(Debug)]
pub(super) struct Book {
    rules: Rules,
    entries: BTreeMap<Key, Entry>,
    /// Registrations of earlier starts that break today's rules: kept on disk, not offered.
    barred: BTreeMap<Key, StoredService>,
    next_run: u64,
    /// The daemon stops: everything drains, which the next start does not remember.
    is_leaving: bool,
}

/// Registrations as they are to be, before they are durable.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    specs: BTreeMap<Key, Arc<Spec>>,
    /// Those that are not 0.
    tries: BTreeMap<Key, Tries>,
    pub(super) drains: Drains,
    barred: BTreeMap<Key, StoredService>,
    pub(super) is_changed: bool,
}

/// A request that was put into a draft, to be answered when the draft is durable.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    spec: Arc<Spec>,
    replaced: bool,
}

impl Book {
    /// Makes the book from the state file. Returns what is barred, with the reason.
    ///
    /// # Errors
    /// What is wrong with the file: nothing of it may be used.
    pub(super) fn restore(
        rules: Rules,
        stored: Option<Stored>,
    ) -> Result<(Self, Vec<(Key, ExposeError)>), String> {
        let mut book =
            Self { rules, entries: BTreeMap::new(), barred: BTreeMap::new(), next_run: 0, is_leaving: false };
        let mut faults = Vec::new();
        let Some(stored) = stored else { return Ok((book, faults)) };
        if stored.version != VERSION {
            return Err(format!("version {} was written by another version of gossamer", stored.version));
        }
        for service in stored.services {
            let key = service.spec.key();
            if book.entries.contains_key(&key) || book.barred.contains_key(&key) {
                return Err(format!("instance {} of {} is in it twice", key.1, key.0));
            }
            match service.spec.check(&book.rules) {
                Ok(()) => {
                    let StoredService { spec, wildcard_ports, tries, drains_until } = service;
                    book.insert(spec.into(), tries, drains_until, &wildcard_ports);
                }
                Err(
                    fault @ (ExposeError::NotAllowed { .. }
                    | ExposeError::FqdnNotAllowed { .. }
                    | ExposeError::Target { .. }),
                ) => {
                    book.barred.insert(key.clone(), service);
                    faults.push((key, fault));
                }
                Err(fault) => return Err(fault.to_string()),
            }
        }
        if book.entries.len() + book.barred.len() > MAX_OWN_RECORDS {
            return Err(format!("it holds more than {MAX_OWN_RECORDS} services"));
        }
        Ok((book, faults))
    }

    /// Makes a draft equal to the book.
    pub(super) fn draft(&self) -> Draft {
        let specs = self.entries.iter().map(|(key, entry)| (key.clone(), Arc::clone(&entry.spec)));
        let raised = self.entries.iter().filter(|(_, entry)| entry.tries != Tries::default());
        Draft {
            specs: specs.collect(),
            tries: raised.map(|(key, entry)| (key.clone(), entry.tries)).collect(),
            drains: self.drains().collect(),
            barred: self.barred.clone(),
            is_changed: false,
        }
    }

    /// Returns the rules requests are judged by.
    pub(super) const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Lets another policy hold from here on. Returns whether it differs.
    pub(super) fn set_policy(&mut self, policy: Policy) -> bool {
        let is_other = self.rules.policy != policy;
        self.rules.policy = policy;
        for entry in self.entries.values_mut().filter(|_| is_other) {
            entry.access = entry.spec.access(policy).into();
        }
        is_other
    }

    /// Takes a durable draft over. Entries with the same targets keep what is known about them. Returns
    /// what changed and which checks are to be run first.
    pub(super) fn adopt(&mut self, draft: Draft) -> (Vec<Change>, Vec<CheckId>) {
        let mut changes = Vec::new();
        for (key, entry) in &self.entries {
            if !draft.specs.contains_key(key) {
                let was = if entry.is_passing() { "passing" } else { "failing" };
                changes.push(Change::new(key, was, "withdrawn", "gossamer withdraw"));
            }
        }
        self.entries.retain(|key, _| draft.specs.contains_key(key));
        self.barred = draft.barred;
        let mut fresh = Vec::new();
        for (key, spec) in draft.specs {
            let tries = draft.tries.get(&key).copied().unwrap_or_default();
            let drains_until = draft.drains.get(&key).copied();
            let is_known = match self.entries.get_mut(&key) {
                Some(entry) if entry.spec == spec => {
                    changes.extend(entry.drain(&key, drains_until));
                    if entry.tries != tries {
                        entry.tries = tries;
                        let cause = "its virtual address is that of another name too";
                        changes.push(Change::new(&key, "blocked", "moved", cause));
                    }
                    continue;
                }
                Some(entry) if entry.spec.has_targets_of(&spec) => {
                    // Who may call it, or what it says of itself, has changed: nothing that takes a check.
                    entry.access = spec.access(self.rules.policy).into();
                    (entry.spec, entry.tries) = (spec, tries);
                    changes.push(Change::new(&key, "registered", "replaced", "gossamer expose"));
                    // Both may be asked for at once.
                    changes.extend(entry.drain(&key, drains_until));
                    continue;
                }
                known => known.is_some(),
            };
            let (was, now) = if is_known { ("registered", "replaced") } else { ("absent", "registered") };
            changes.push(Change::new(&key, was, now, "gossamer expose"));
            self.insert(spec, tries, drains_until, &[]);
            fresh.extend(self.checks_of(&key));
        }
        (changes, fresh)
    }

    /// Takes the result of a check. Returns the change of the instance's verdict, and nothing when the check
    /// was one of a registration that is gone.
    pub(super) fn observe(&mut self, check: &CheckId, probe: Probe) -> Option<Change> {
        let entry = self.entries.get_mut(&check.key).filter(|entry| entry.run == check.run)?;
        let before = entry.is_passing();
        let watch = entry.watches.get_mut(check.port)?;
        match &mut watch.verdict {
            Some(verdict) => drop(verdict.observe(probe.passed)),
            none => *none = Some(Verdict::first(probe.passed)),
        }
        watch.is_local |= probe.is_local;
        watch.trouble = probe.trouble;
        let after = entry.is_passing();
        let words = |passing| if passing { "passing" } else { "failing" };
        let cause = match probe.passed {
            true => format!("{} accepts connections", check.addr),
            false => format!("{} does not accept connections", check.addr),
        };
        (before != after).then(|| Change::new(&check.key, words(before), words(after), &cause))
    }

    /// Takes a reading of the machine's listeners, of TCP and of UDP.
    pub(super) fn observe_listeners(&mut self, tcp: &Listeners, udp: &Listeners) -> Learned {
        let mut learned = Learned::Nothing;
        for entry in self.entries.values_mut() {
            for (port, watch) in entry.spec.ports.iter().zip(&mut entry.watches) {
                if !watch.is_local {
                    continue;
                }
                let listeners = if port.transport == Transport::Tcp { tcp } else { udp };
                let seen = entry.spec.addr(port).ip().and_then(|addr| listeners.is_wildcard(addr));
                if seen.is_some() && seen != watch.wildcard {
                    let is_stored = seen == Some(true) || watch.wildcard == Some(true);
                    learned = learned.max(if is_stored { Learned::Lasting } else { Learned::Passing });
                    watch.wildcard = seen;
                }
            }
        }
        learned
    }

    /// Returns whether a registration and its check still exist.
    pub(super) fn has(&self, check: &CheckId) -> bool {
        self.entries.get(&check.key).is_some_and(|entry| entry.run == check.run)
    }

    /// Returns the checks of all registrations.
    pub(super) fn checks(&self) -> Vec<CheckId> {
        self.entries.keys().flat_map(|key| self.checks_of(key)).collect()
    }

    /// Returns everything the mesh is told, sorted by service and instance.
    pub(super) fn records(&self) -> Vec<ServiceRecord> {
        self.entries.values().map(|entry| entry.record(self.is_leaving)).collect()
    }

    /// Returns records and targets, sorted by service and instance.
    pub(super) fn services(&self) -> Vec<LocalService> {
        let service = |entry: &Entry| LocalService {
            record: entry.record(self.is_leaving),
            targets: entry.targets(self.is_leaving),
            drains_until: entry.drains_until,
        };
        self.entries.values().map(service).collect()
    }

    /// Returns the content of the state file for a draft, with what is known about wildcard ports.
    pub(super) fn stored(&self, draft: &Draft) -> Stored {
        let stored = |(key, spec): (&Key, &Arc<Spec>)| StoredService {
            spec: Spec::clone(spec),
            wildcard_ports: self
                .entries
                .get(key)
                .filter(|entry| entry.spec.has_targets_of(spec))
                .map(Entry::wildcard_ports)
                .unwrap_or_default(),
            tries: draft.tries.get(key).copied().unwrap_or_default(),
            drains_until: draft.drains.get(key).copied(),
        };
        let services = draft.specs.iter().map(stored).chain(draft.barred.values().cloned());
        Stored { version: VERSION, services: services.collect() }
    }

    /// Answers an expose request whose draft was adopted.
    pub(super) fn exposed(&self, planned: &Planned) -> Exposed {
        // A later request of the same draft may have replaced or withdrawn it: then nothing is known of it.
        let known = self.entries.get(&planned.spec.key()).filter(|entry| entry.spec == planned.spec);
        let entry = known
            .cloned()
            .unwrap_or_else(|| self.entry(Arc::clone(&planned.spec), Tries::default(), None, &[], 0));
        let targets = entry.targets(self.is_leaving);
        let silent = targets.iter().filter(|target| !target.healthy);
        let warning = |target: &Target| {
            format!("{}: the service will be offered as soon as the check passes", target.silence())
        };
        let mut warnings: Vec<String> = silent.map(warning).collect();
        if entry.drains_until.is_some() {
            let service = &entry.spec.service;
            warnings.push(format!(
                "it drains and takes no flows; run gossamer drain {service} --undo to change that"
            ));
        }
        let is_checked = targets.iter().any(|target| target.transport == Transport::Tcp);
        Exposed {
            record: entry.record(self.is_leaving),
            target: targets.iter().map(|target| target.addr.clone()).collect(),
            access: Arc::clone(&entry.access),
            replaced: planned.replaced,
            warnings,
            check: match &planned.spec.target {
                Host::Unix(_) => "connection to the socket each 5 s",
                Host::Ip(_) if is_checked => "TCP connect each 5 s",
                Host::Ip(_) => "none for UDP",
            },
        }
    }

    /// Lets everything drain from here on: the daemon stops.
    pub(super) const fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// Returns when the flows of registrations end that drain.
    fn drains(&self) -> impl Iterator<Item = (Key, u64)> {
        self.entries.iter().filter_map(|(key, entry)| Some((key.clone(), entry.drains_until?)))
    }

    fn insert(
        &mut self,
        spec: Arc<Spec>,
        tries: Tries,
        drains_until: Option<u64>,
        wildcard_ports: &[PortName],
    ) {
        let key = spec.key();
        self.entries.insert(key, self.entry(spec, tries, drains_until, wildcard_ports, self.next_run));
        self.next_run += 1;
    }

    fn entry(
        &self,
        spec: Arc<Spec>,
        tries: Tries,
        drains_until: Option<u64>,
        wildcard_ports: &[PortName],
        run: u64,
    ) -> Entry {
        let access = spec.access(self.rules.policy).into();
        Entry::new(spec, access, tries, drains_until, wildcard_ports, run)
    }

    fn checks_of(&self, key: &Key) -> Vec<CheckId> {
        let Some(entry) = self.entries.get(key) else { return Vec::new() };
        let ports = entry.spec.ports.iter().enumerate();
        let tcp = ports.filter(|(_, port)| port.transport == Transport::Tcp);
        tcp.map(|(index, port)| CheckId {
            key: key.clone(),
            port: index,
            run: entry.run,
            addr: entry.spec.addr(port),
            proxy_protocol: entry.spec.proxy_protocol,
        })
        .collect()
    }
}

impl Entry {
    fn new(
        spec: Arc<Spec>,
        access: Arc<Access>,
        tries: Tries,
        drains_until: Option<u64>,
        wildcard_ports: &[PortName],
        run: u64,
    ) -> Self {
        let watch = |port: &PortSpec| Watch {
            verdict: None,
            trouble: None,
            is_local: matches!(&spec.target, Host::Ip(ip) if ip.is_loopback()),
            wildcard: wildcard_ports.contains(&port.name).then_some(true),
        };
        Self { watches: spec.ports.iter().map(watch).collect(), spec, access, tries, drains_until, run }
    }

    /// Lets it drain or takes that back; returns the change.
    fn drain(&mut self, key: &Key, until: Option<u64>) -> Option<Change> {
        let words = |until: Option<u64>| if until.is_some() { "draining" } else { "serving" };
        let was = std::mem::replace(&mut self.drains_until, until);
        let cause = if until.is_some() { "gossamer drain" } else { "gossamer drain --undo" };
        (was.is_some() != until.is_some()).then(|| Change::new(key, words(was), words(until), cause))
    }

    /// An instance passes while every checked target does: a client may use any of its ports.
    fn is_passing(&self) -> bool {
        self.spec.ports.iter().zip(&self.watches).all(|(port, watch)| watch.is_healthy(port))
    }

    fn record(&self, is_leaving: bool) -> ServiceRecord {
        let health = if self.is_passing() { Health::Passing } else { Health::Failing };
        let draining = is_leaving || self.drains_until.is_some();
        let visibility = self.access.published();
        ServiceRecord { draining, visibility, ..self.spec.record(health, self.tries) }
    }

    fn targets(&self, is_leaving: bool) -> Vec<Target> {
        let target = |(port, watch): (&PortSpec, &Watch)| Target {
            addr: self.spec.addr(port),
            transport: port.transport,
            port: port.number,
            healthy: watch.is_healthy(port),
            trouble: watch.trouble,
            proxy_protocol: self.spec.proxy_protocol,
            access: Arc::clone(&self.access),
            draining: is_leaving || self.drains_until.is_some(),
            wildcard: watch.wildcard,
        };
        self.spec.ports.iter().zip(&self.watches).map(target).collect()
    }

    fn wildcard_ports(&self) -> Vec<PortName> {
        let ports = self.spec.ports.iter().zip(&self.watches);
        ports.filter(|(_, watch)| watch.wildcard == Some(true)).map(|(port, _)| port.name.clone()).collect()
    }
}

impl Watch {
    fn is_healthy(&self, port: &PortSpec) -> bool {
        match port.transport {
            Transport::Tcp => self.verdict.is_some_and(Verdict::is_passing),
            Transport::Udp => true,
        }
    }
}

#[cfg(test)]
mod tests;
