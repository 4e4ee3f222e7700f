//! Who holds which address: every name of the catalog at its VIP, and who loses when two meet.
//!
//! Owns: the claims. Must not know: which addresses are listened on. Driven by: the `vips` task, with each
//! service whose view changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use gossamer_wire::{MeshId, ServiceName};

use super::{Claim, Pool, VipName};

/// All claims of the catalog. Equal on every node that holds the same adverts and has the same pool.
#[derive(Clone, Debug)]
pub struct Table {
    mesh: MeshId,
    pool: Pool,
    claims: BTreeMap<Ipv4Addr, BTreeSet<Claim>>,
    /// What each service put into `claims`.
    placed: BTreeMap<ServiceName, Vec<(Ipv4Addr, Claim)>>,
    /// Names that met a smaller claim, and the winner's name.
    losers: BTreeMap<VipName, VipName>,
}

impl Table {
    /// Makes an empty table.
    pub const fn new(mesh: MeshId, pool: Pool) -> Self {
        Self { mesh, pool, claims: BTreeMap::new(), placed: BTreeMap::new(), losers: BTreeMap::new() }
    }

    /// Replaces the names of a service, each with its `try`; none removes it. Returns whether that changes
    /// anything.
    pub fn set_service(
        &mut self,
        service: &ServiceName,
        names: impl IntoIterator<Item = (VipName, u8)>,
    ) -> bool {
        let claim = |(name, attempt): (VipName, u8)| Claim { hash: name.hash(&self.mesh, attempt), name };
        let placed: Vec<_> =
            names.into_iter().map(claim).map(|claim| (self.pool.vip(claim.hash), claim)).collect();
        let before = self.placed.remove(service).unwrap_or_default();
        let is_new = placed != before;
        let mut touched = BTreeSet::new();
        for (address, claim) in before {
            if let Some(claims) = self.claims.get_mut(&address) {
                claims.remove(&claim);
            }
            self.losers.remove(&claim.name);
            touched.insert(address);
        }
        for (address, claim) in &placed {
            self.claims.entry(*address).or_default().insert(claim.clone());
            touched.insert(*address);
        }
        if !placed.is_empty() {
            self.placed.insert(service.clone(), placed);
        }
        for address in touched {
            self.settle(address);
        }
        is_new
    }

    /// Returns each address in use with the name that holds it.
    pub fn holders(&self) -> impl Iterator<Item = (Ipv4Addr, &VipName)> {
        self.claims.iter().filter_map(|(address, claims)| Some((*address, &claims.first()?.name)))
    }

    /// Returns the services that have names here.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.placed.keys()
    }

    /// Returns the names that are not answered because another holds their address, with that other name.
    pub const fn losers(&self) -> &BTreeMap<VipName, VipName> {
        &self.losers
    }

    /// Decides again who holds an address.
    fn settle(&mut self, address: Ipv4Addr) {
        let Some(claims) = self.claims.get(&address) else { return };
        let Some(winner) = claims.first() else {
            self.claims.remove(&address);
            return;
        };
        self.losers.remove(&winner.name);
        for loser in claims.iter().skip(1) {
            self.losers.insert(loser.name.clone(), winner.name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::{prop_assert_eq, proptest};

    const MESH: MeshId = MeshId::from_bytes([7; 16]);

    fn service(text: &str) -> ServiceName {
        text.parse().expect("name")
    }

    fn name(text: &str) -> VipName {
        VipName::Service(service(text))
    }

    fn table() -> Table {
        Table::new(MESH, Pool::of_slot(0))
    }

    /// Finds two services that meet in the default pool.
    fn meeting() -> (ServiceName, ServiceName) {
        let pool = Pool::of_slot(0);
        let mut seen = BTreeMap::new();
        for number in 0.. {
            let service = service(&format!("s{number}"));
            let vip = pool.vip(VipName::Service(service.clone()).hash(&MESH, 0));
            if let Some(other) = seen.insert(vip, service.clone()) {
                return (other, service);
            }
        }
        unreachable!("65,024 addresses are used up by 65,025 names")
    }

    #[test]
    fn names_that_meet_nobody_lose_to_nobody() {
        let mut table = table();
        table.set_service(&service("orders"), [(name("orders"), 0)]);
        table.set_service(&service("web"), [(name("web"), 0)]);
        assert!(table.losers().is_empty());
        assert_eq!(table.services().count(), 2);
    }

    #[test]
    fn the_greater_hash_loses_in_whatever_order_the_names_came() {
        let (first, second) = meeting();
        let names = [VipName::Service(first.clone()), VipName::Service(second.clone())];
        let [a, b] = names.map(|name| Claim { hash: name.hash(&MESH, 0), name });
        let (winner, loser) = if a < b { (a, b) } else { (b, a) };
        for order in [[&first, &second], [&second, &first]] {
            let mut table = table();
            for service in order {
                table.set_service(service, [(VipName::Service(service.clone()), 0)]);
            }
            let expected = BTreeMap::from([(loser.name.clone(), winner.name.clone())]);
            assert_eq!(table.losers(), &expected);
            assert_eq!(table.holders().map(|(_, name)| name).collect::<Vec<_>>(), [&winner.name]);
        }
    }

    #[test]
    fn the_same_names_again_change_nothing() {
        let mut table = table();
        assert!(table.set_service(&service("orders"), [(name("orders"), 0)]));
        assert!(!table.set_service(&service("orders"), [(name("orders"), 0)]));
        assert_eq!(table.holders().count(), 1);
        assert!(table.set_service(&service("orders"), [(name("orders"), 1)]));
        assert!(table.set_service(&service("orders"), []));
        assert!(!table.set_service(&service("orders"), []));
        assert_eq!(table.holders().count(), 0);
    }

    #[test]
    fn a_raised_try_frees_the_loser() {
        let (first, second) = meeting();
        let mut table = table();
        table.set_service(&first, [(VipName::Service(first.clone()), 0)]);
        table.set_service(&second, [(VipName::Service(second.clone()), 0)]);
        let loser = table.losers().keys().next().expect("one loses").clone();
        table.set_service(loser.service(), [(loser.clone(), 1)]);
        assert!(table.losers().is_empty());
    }

    #[test]
    fn a_loser_takes_over_when_the_winner_goes() {
        let (first, second) = meeting();
        let mut table = table();
        table.set_service(&first, [(VipName::Service(first.clone()), 0)]);
        table.set_service(&second, [(VipName::Service(second.clone()), 0)]);
        let winner = table.losers().values().next().expect("one wins").clone();
        table.set_service(winner.service(), []);
        assert!(table.losers().is_empty());
        assert_eq!(table.services().count(), 1);
        assert_eq!(table.claims.len(), 1);
    }

    proptest! {
        /// The table, changed step by step, agrees with a look at everything at once.
        #[test]
        fn changes_lead_where_a_fresh_table_starts(
            steps in proptest::collection::vec((0..40_u8, proptest::option::of(0..3_u8)), 1..60),
        ) {
            let pool = Pool::new(Ipv4Addr::new(10, 0, 0, 0), 22).expect("aligned");
            let named = |number: u8| VipName::Service(service(&format!("s{number}")));
            let mut table = Table::new(MESH, pool);
            let mut held: BTreeMap<u8, u8> = BTreeMap::new();
            for (number, attempt) in steps {
                let name = named(number);
                table.set_service(name.service(), attempt.map(|attempt| (name.clone(), attempt)));
                match attempt {
                    Some(attempt) => held.insert(number, attempt),
                    None => held.remove(&number),
                };
            }
            let mut best: BTreeMap<Ipv4Addr, Vec<Claim>> = BTreeMap::new();
            for (number, attempt) in &held {
                let claim = Claim { hash: named(*number).hash(&MESH, *attempt), name: named(*number) };
                best.entry(pool.vip(claim.hash)).or_default().push(claim);
            }
            let mut losers = BTreeMap::new();
            for claims in best.values_mut() {
                claims.sort();
                for loser in &claims[1..] {
                    losers.insert(loser.name.clone(), claims[0].name.clone());
                }
            }
            prop_assert_eq!(table.losers(), &losers);
            prop_assert_eq!(table.services().count(), held.len());
        }
    }
}
