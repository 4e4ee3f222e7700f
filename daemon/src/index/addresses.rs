//! The name that each virtual address stands for.
//!
//! Owns: the map. Must not know: how addresses are found. Driven by: `vips`, the only writer; DNS reads.

use std::net::Ipv4Addr;
use std::sync::Arc;

use dashmap::DashMap;

use gossamer_core::vip::VipName;

/// The only write access.
#[derive(Debug, Default)]
pub struct AddressWriter(Arc<DashMap<Ipv4Addr, VipName>>);

/// Read access; clones are cheap and see later writes.
#[derive(Clone, Debug)]
pub struct AddressReader(Arc<DashMap<Ipv4Addr, VipName>>);

impl AddressWriter {
    /// Replaces the name of an address; `None` removes it.
    pub fn set(&mut self, address: Ipv4Addr, name: Option<VipName>) {
        match name {
            Some(name) => drop(self.0.insert(address, name)),
            None => drop(self.0.remove(&address)),
        }
    }

    /// Returns read access.
    pub fn reader(&self) -> AddressReader {
        AddressReader(Arc::clone(&self.0))
    }
}

impl AddressReader {
    /// Returns the name an address stands for.
    pub fn name(&self, address: Ipv4Addr) -> Option<VipName> {
        self.0.get(&address).map(|entry| entry.value().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_name_that_was_written_last() {
        let mut writer = AddressWriter::default();
        let reader = writer.reader();
        let address = Ipv4Addr::new(127, 240, 1, 1);
        let name = |text: &str| VipName::Service(text.parse().expect("name"));
        assert_eq!(reader.name(address), None);
        writer.set(address, Some(name("orders")));
        writer.set(address, Some(name("web")));
        assert_eq!(reader.name(address), Some(name("web")));
        writer.set(address, None);
        assert_eq!(reader.name(address), None);
    }
}
