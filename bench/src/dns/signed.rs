//! What one member has published, and new versions of it that cost one signature each.
//!
//! Owns: the latest advert of each slot of a member, its records by fragment. Must not know: connections, who is told.
//! Driven by: the choir, with the adverts that the member's catalog core has made.
//!
//! A core is told all records of its node at once and encodes each of them to see which differ. A thousand times a second
//! that is most of a processor, which the daemon that is measured needs. What goes over the wire is the same: a new
//! version of the fragment that the record stands in, with all its records, signed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use gossamer::identity::NodeKey;
use gossamer_core::trust::Sign as _;
use gossamer_wire::advert::{Advert, AdvertId, Fragment, Header, Kind, Slot, Version};
use gossamer_wire::frame::AdvertCopy;
use gossamer_wire::{InstanceName, ServiceName, ServiceRecord};

/// The adverts of one member.
#[derive(Debug)]
pub(super) struct Signed {
    key: Arc<NodeKey>,
    latest: BTreeMap<Slot, Advert>,
    records: BTreeMap<Slot, Vec<ServiceRecord>>,
    places: HashMap<(ServiceName, InstanceName), (Slot, usize)>,
}

impl Signed {
    pub(super) fn new(key: Arc<NodeKey>) -> Self {
        Self { key, latest: BTreeMap::new(), records: BTreeMap::new(), places: HashMap::new() }
    }

    /// Takes an advert that the member's core has made.
    pub(super) fn keep(&mut self, copy: &AdvertCopy) -> Result<()> {
        let advert = Advert::parse_shared(&copy.bytes)?;
        let slot = advert.id().slot;
        if slot.kind == Kind::Records {
            let records = Fragment::decode(advert.body())?.records()?;
            for (index, record) in records.iter().enumerate() {
                self.places.insert((record.service.clone(), record.instance.clone()), (slot, index));
            }
            self.records.insert(slot, records);
        }
        self.latest.insert(slot, advert);
        Ok(())
    }

    /// Gives a record another weight, and signs the next version of its fragment.
    ///
    /// # Errors
    /// The record was not published, or finds no room any more.
    pub(super) fn change(
        &mut self,
        service: &ServiceName,
        instance: &InstanceName,
        weight: u16,
    ) -> Result<AdvertCopy> {
        let place = self.places.get(&(service.clone(), instance.clone()));
        let (slot, index) = *place.with_context(|| format!("{instance}.{service} is not published"))?;
        let before = self.latest.get(&slot).context("an advert")?;
        let records = self.records.get_mut(&slot).context("records")?;
        records.get_mut(index).context("a record")?.weight = weight;
        let Header { mesh, id } = *before.header();
        let version = Version { seq: id.version.seq + 1, ..id.version };
        let header = Header { mesh, id: AdvertId { version, ..id } };
        let body = Fragment::of(records)?.encode()?;
        let advert = Advert::build(header, &body, |bytes| self.key.sign(bytes))?;
        let copy = AdvertCopy { age: 0, bytes: advert.shared_bytes() };
        self.latest.insert(slot, advert);
        Ok(copy)
    }

    /// Returns everything as it stands, the card first; nothing before the core has published.
    pub(super) fn copies(&self) -> Vec<AdvertCopy> {
        let copy = |advert: &Advert| AdvertCopy { age: 0, bytes: advert.shared_bytes() };
        self.latest.values().map(copy).collect()
    }
}
