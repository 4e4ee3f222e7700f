//! The recorder: a directory that notes what is read from another one.
//!
//! Owns: which subjects the lookups of one answer touch. Must not know: names, records, why something is asked.
//! Driven by: `answer`, as any directory; `kept` takes the notes.
//!
//! The note is taken before the lookup. A change in between makes the answer look older than it is, never younger.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use gossamer_wire::{GroupName, InstanceName, NodeName, ServiceName};

use crate::revision::{Basis, Subject};
use crate::{CustomTarget, Directory, InstanceEntry, ServiceEntry, Target};

/// A directory that notes what is asked of it. A lookup that has no [`Subject`] must spoil the notes.
pub(crate) struct Recorder {
    directory: Arc<dyn Directory>,
    /// `None` when the answer cannot be kept.
    notes: Mutex<Option<Vec<Basis>>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("notes", &self.notes).finish_non_exhaustive()
    }
}

impl Recorder {
    pub(crate) fn new(directory: Arc<dyn Directory>) -> Self {
        let notes = directory.revisions().map(|_| Vec::new());
        Self { directory, notes: Mutex::new(notes) }
    }

    /// Returns what was read, each subject once as it was first seen; `None` when that is not known.
    pub(crate) fn bases(self) -> Option<Box<[Basis]>> {
        let mut notes = self.notes.into_inner().ok()??;
        notes.sort_unstable();
        notes.dedup();
        Some(notes.into())
    }

    fn note(&self, subject: Subject<'_>) {
        if let (Some(revisions), Ok(mut notes)) = (self.directory.revisions(), self.notes.lock())
            && let Some(notes) = notes.as_mut()
        {
            let basis = revisions.basis(subject);
            if !notes.contains(&basis) {
                notes.push(basis);
            }
        }
    }

    /// Says that the answer hangs on something no subject stands for.
    fn spoil(&self) {
        if let Ok(mut notes) = self.notes.lock() {
            *notes = None;
        }
    }
}

#[async_trait::async_trait]
impl Directory for Recorder {
    /// Notes the service first: what is prepared may be another thing when the lookups follow.
    async fn prepare(&self, target: &Target) {
        if let Target::Service { service, .. } | Target::Instance { service, .. } = target {
            self.note(Subject::Service(service));
        }
        self.directory.prepare(target).await;
    }

    fn service(&self, service: &ServiceName, group: Option<&GroupName>) -> Option<ServiceEntry> {
        self.note(Subject::Service(service));
        self.directory.service(service, group)
    }

    fn instance(
        &self,
        service: &ServiceName,
        group: &GroupName,
        instance: &InstanceName,
    ) -> Option<InstanceEntry> {
        self.note(Subject::Service(service));
        self.directory.instance(service, group, instance)
    }

    fn node(&self, node: &NodeName) -> Option<Vec<IpAddr>> {
        self.note(Subject::Node(node));
        self.directory.node(node)
    }

    fn has_group(&self, group: &GroupName) -> bool {
        self.note(Subject::Group(group));
        self.directory.has_group(group)
    }

    fn custom(&self, name: &str) -> Option<CustomTarget> {
        self.note(Subject::CustomNames);
        self.directory.custom(name)
    }

    fn pointer(&self, vip: Ipv4Addr) -> Option<Target> {
        self.note(Subject::Vip(vip));
        let Some(target) = self.directory.pointer(vip) else {
            self.spoil();
            return None;
        };
        // Whether it may be seen hangs on its service, which is known only now.
        if let Target::Service { service, .. } | Target::Instance { service, .. } = &target {
            self.note(Subject::Service(service));
        }
        let again = self.directory.pointer(vip);
        if again.as_ref() != Some(&target) {
            self.spoil();
        }
        again
    }
}
