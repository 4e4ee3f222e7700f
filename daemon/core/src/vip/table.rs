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
    placed: BTreeMap<ServiceName, Vec<Placed>>,
    /// Names that met a smaller claim, and the winner's name.
    losers: BTreeMap<VipName, VipName>,
    /// Addresses whose holder may have changed since they were taken.
    changed: BTreeSet<Ipv4Addr>,
}

/// A name at its address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    address: Ipv4Addr,
    claim: Claim,
    attempt: u8,
}

impl Table {
    /// Makes an empty table.
    pub const fn new(mesh: MeshId, pool: Pool) -> Self {
        Self {
            mesh,
            pool,
            claims: BTreeMap::new(),
            placed: BTreeMap::new(),
            losers: BTreeMap::new(),
            changed: BTreeSet::new(),
        }
    }

    /// Replaces the names of a service, each with its `try`; none removes it. Returns whether that changes
    /// anything.
    pub fn set_service(
        &mut self,
        service: &ServiceName,
        names: impl IntoIterator<Item = (VipName, u8)>,
    ) -> bool {
        let place = |(name, attempt): (VipName, u8)| {
            let claim = Claim { hash: name.hash(&self.mesh, attempt), name };
            Placed { address: self.pool.vip(claim.hash), claim, attempt }
        };
        let placed: Vec<_> = names.into_iter().map(place).collect();
        let before = self.placed.remove(service).unwrap_or_default();
        if placed == before {
            self.placed.extend((!before.is_empty()).then(|| (service.clone(), before)));
            return false;
        }
        let mut touched = BTreeSet::new();
        for Placed { address, claim, .. } in before {
            if let Some(claims) = self.claims.get_mut(&address) {
                claims.remove(&claim);
            }
            self.losers.remove(&claim.name);
            touched.insert(address);
        }
        for Placed { address, claim, .. } in &placed {
            self.claims.entry(*address).or_default().insert(claim.clone());
            touched.insert(*address);
        }
        if !placed.is_empty() {
            self.placed.insert(service.clone(), placed);
        }
        for address in &touched {
            self.settle(*address);
        }
        self.changed.append(&mut touched);
        true
    }

    /// Returns the addresses whose holder may have changed since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<Ipv4Addr> {
        std::mem::take(&mut self.changed)
    }

    /// Returns the name that holds an address.
    pub fn holder(&self, address: Ipv4Addr) -> Option<&VipName> {
        self.claims.get(&address)?.first().map(|claim| &claim.name)
    }

    /// Returns the services that have names here.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.placed.keys()
    }

    /// Returns the names that are not answered because another holds their address, with that other name.
    pub const fn losers(&self) -> &BTreeMap<VipName, VipName> {
        &self.losers
    }

    /// Returns the `try` an exporter is to publish for a name, given the one it publishes: the same, until the
    /// name loses or would lose if the exporters with a greater `try` went.
    ///
    /// All exporters of a name find the same one, and only those of the loser move, to an address nobody has: so
    /// two that act at once do not meet again, and nobody follows them. A `try` never goes down. It stays as it
    /// is when 255 is reached: then the name stays unanswered, and that is a finding.
    pub fn attempt_for(&self, name: &VipName, own: u8) -> u8 {
        let Some(in_force) = self.attempt(name) else { return own };
        if own > in_force {
            return own; // It is on its way.
        }
        if self.losers.contains_key(name) {
            let above = in_force.checked_add(1).map(|lowest| lowest..=u8::MAX);
            return above.and_then(|mut above| above.find(|to| self.is_free(name, *to))).unwrap_or(own);
        }
        if self.is_free(name, own) {
            return own;
        }
        (own..in_force).find(|to| self.is_free(name, *to)).unwrap_or(in_force)
    }

    /// Returns the `try` of a name that counts; `None` when no record has the name.
    fn attempt(&self, name: &VipName) -> Option<u8> {
        let of_service = self.placed.get(name.service())?;
        of_service.iter().find(|placed| placed.claim.name == *name).map(|placed| placed.attempt)
    }

    /// Returns whether no other name has the address of a name at a `try`.
    fn is_free(&self, name: &VipName, attempt: u8) -> bool {
        let address = self.pool.vip(name.hash(&self.mesh, attempt));
        self.claims.get(&address).is_none_or(|claims| claims.iter().all(|claim| claim.name == *name))
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
            let changed = table.take_changed();
            let holders: Vec<_> = changed.iter().filter_map(|address| table.holder(*address)).collect();
            assert_eq!(holders, [&winner.name]);
        }
    }

    #[test]
    fn the_same_names_again_change_nothing() {
        let mut table = table();
        assert!(table.set_service(&service("orders"), [(name("orders"), 0)]));
        assert!(!table.set_service(&service("orders"), [(name("orders"), 0)]));
        assert_eq!(table.take_changed().len(), 1);
        assert!(table.take_changed().is_empty());
        assert!(table.set_service(&service("orders"), [(name("orders"), 1)]));
        assert_eq!(table.take_changed().len(), 2, "the old address and the new one");
        assert!(table.set_service(&service("orders"), []));
        assert!(!table.set_service(&service("orders"), []));
        assert_eq!(table.take_changed().iter().filter_map(|at| table.holder(*at)).count(), 0);
        assert_eq!(table.services().count(), 0);
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

    #[test]
    fn only_the_loser_moves_and_to_an_address_nobody_has() {
        let (first, second) = meeting();
        let mut table = table();
        table.set_service(&first, [(VipName::Service(first.clone()), 0)]);
        table.set_service(&second, [(VipName::Service(second.clone()), 0)]);
        let (loser, winner) = table.losers().iter().next().expect("one loses");
        let (loser, winner) = (loser.clone(), winner.clone());
        assert_eq!(table.attempt_for(&winner, 0), 0);
        let raised = table.attempt_for(&loser, 0);
        assert!(raised > 0);
        assert_eq!(table.attempt_for(&loser, raised), raised, "what is on its way is not raised again");
        table.set_service(loser.service(), [(loser.clone(), raised)]);
        assert!(table.losers().is_empty());
        assert_eq!((table.attempt_for(&loser, raised), table.attempt_for(&winner, 0)), (raised, 0));
    }

    #[test]
    fn another_exporter_of_a_name_that_moved_follows_before_it_is_alone() {
        let (first, second) = meeting();
        let mut table = table();
        table.set_service(&first, [(VipName::Service(first.clone()), 0)]);
        table.set_service(&second, [(VipName::Service(second.clone()), 0)]);
        let loser = table.losers().keys().next().expect("one loses").clone();
        table.set_service(loser.service(), [(loser.clone(), 3)]);
        let raised = table.attempt_for(&loser, 0);
        assert!((1..=3).contains(&raised) && table.is_free(&loser, raised), "{raised}");
        assert_eq!(table.attempt_for(&name("unknown"), 7), 7);
    }

    #[test]
    fn the_last_try_is_the_end() {
        let (first, second) = meeting();
        let mut table = table();
        let at = |attempt| [&first, &second].map(|s| VipName::Service(s.clone()).hash(&MESH, attempt));
        assert_ne!(at(0), at(255));
        // A name that meets another one at its last `try` keeps it.
        let [a, b] = [&first, &second].map(|s| VipName::Service((*s).clone()));
        let last = table.pool.vip(b.hash(&MESH, 255));
        let rival = (0..).map(|n| name(&format!("r{n}"))).find(|rival| {
            table.pool.vip(rival.hash(&MESH, 0)) == last && rival.hash(&MESH, 0) < b.hash(&MESH, 255)
        });
        let rival = rival.expect("there are names without end");
        table.set_service(a.service(), [(a.clone(), 0)]);
        table.set_service(b.service(), [(b.clone(), 255)]);
        table.set_service(rival.service(), [(rival.clone(), 0)]);
        assert_eq!(table.losers().get(&b), Some(&rival));
        assert_eq!(table.attempt_for(&b, 255), 255);
    }

    /// Exporters that look at the same table and act at once, round by round. Returns the rounds until nobody
    /// loses.
    fn rounds(pool: Pool, names: u32) -> usize {
        let mut table = Table::new(MESH, pool);
        let all: Vec<_> = (0..names).map(|number| name(&format!("s{number}"))).collect();
        let mut tries = vec![0; all.len()];
        for round in 0..100 {
            for (name, attempt) in all.iter().zip(&tries) {
                table.set_service(name.service(), [(name.clone(), *attempt)]);
            }
            if table.losers().is_empty() {
                return round;
            }
            tries = all.iter().zip(tries).map(|(name, own)| table.attempt_for(name, own)).collect();
        }
        panic!("{} of {names} names lose", table.losers().len());
    }

    #[test]
    fn ten_thousand_names_settle_in_a_few_rounds_also_when_all_losers_act_at_once() {
        assert!(rounds(Pool::of_slot(0), 400) <= 2);
        assert!((1..=4).contains(&rounds(Pool::of_slot(0), 10_000)));
        // A pool of 512 usable addresses that is two thirds full.
        let small = Pool::new(Ipv4Addr::new(10, 0, 0, 0), 22).expect("aligned");
        assert!((1..=8).contains(&rounds(small, 340)));
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
