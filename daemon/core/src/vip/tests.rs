//! The VIP function: equal everywhere, inside the pool, and its golden values.

use super::*;

use proptest::prelude::*;

const MESH: MeshId = MeshId::from_bytes([7; 16]);

fn service(text: &str) -> ServiceName {
    text.parse().expect("name")
}

fn levels() -> [VipName; 3] {
    let (group, instance) = ("west", "db-0");
    [
        VipName::Service(service("orders")),
        VipName::Group(service("orders"), group.parse().expect("name")),
        VipName::Instance(service("orders"), group.parse().expect("name"), instance.parse().expect("name")),
    ]
}

#[test]
fn names_are_written_without_the_zone() {
    assert_eq!(levels().map(|name| name.to_string()), ["orders", "orders.west", "db-0.orders.west"]);
    assert!(levels().iter().all(|name| *name.service() == service("orders")));
}

#[test]
fn the_hash_is_over_domain_mesh_name_and_try() {
    let name = VipName::Service(service("orders"));
    let by_hand = Sha256::digest([b"gossamer-vip-v1\0".as_slice(), &[7; 16], b"orders\0\x03"].concat());
    let first: [u8; 8] = by_hand[..8].try_into().expect("8 bytes");
    assert_eq!(name.hash(&MESH, 3), u64::from_be_bytes(first));
}

#[test]
fn mesh_level_and_try_give_other_addresses() {
    let pool = Pool::of_slot(0);
    let mut vips: Vec<_> = levels().iter().map(|name| pool.vip(name.hash(&MESH, 0))).collect();
    vips.push(pool.vip(levels()[0].hash(&MESH, 1)));
    vips.push(pool.vip(levels()[0].hash(&MeshId::from_bytes([8; 16]), 0)));
    vips.sort();
    vips.dedup();
    assert_eq!(vips.len(), 5);
}

#[test]
fn the_ends_of_a_pool_are_reserved() {
    let pool = Pool::of_slot(1);
    let room = u64::from(pool.size() - 512);
    assert_eq!(pool.vip(0), Ipv4Addr::new(127, 241, 1, 0));
    assert_eq!(pool.vip(room - 1), Ipv4Addr::new(127, 241, 254, 255));
    assert_eq!(pool.vip(room), pool.vip(0));
    assert_eq!(pool.dns(), Ipv4Addr::new(127, 241, 0, 53));
}

#[test]
fn each_slot_has_its_own_pool() {
    assert_eq!(Pool::of_slot(0).to_string(), "127.240.0.0/16");
    assert_eq!(Pool::of_slot(9).to_string(), "127.249.0.0/16");
}

#[test]
fn a_pool_is_read_from_its_text() {
    for text in ["127.240.0.0/16", "240.80.0.0/12", "10.0.0.0/8", "127.250.4.0/22"] {
        assert_eq!(text.parse::<Pool>().map(|pool| pool.to_string()), Ok(text.to_owned()));
    }
    for text in ["", "127.240.0.0", "127.240.0.1/16", "127.240.0.0/23", "0.0.0.0/0", "::/16", "127.240.0.0/x"]
    {
        let error = text.parse::<Pool>().expect_err(text).to_string();
        assert!(error.contains("127.240.0.0/16"), "{error}");
    }
}

#[test]
fn a_pool_knows_its_addresses_also_when_mapped() {
    let pool = Pool::of_slot(0);
    for inside in ["127.240.0.0", "127.240.255.255", "::ffff:127.240.3.4"] {
        assert!(pool.contains(inside.parse().expect("address")), "{inside}");
    }
    for outside in ["127.239.255.255", "127.241.0.0", "10.0.0.1", "::1", "::127.240.0.1"] {
        assert!(!pool.contains(outside.parse().expect("address")), "{outside}");
    }
}

#[test]
fn equal_hashes_are_ordered_by_the_text_of_the_names() {
    let claim = |name: &VipName| Claim { hash: 1, name: name.clone() };
    let [service, group, instance] = levels();
    assert!(claim(&service) < claim(&group));
    assert!(claim(&instance) < claim(&service), "\"db-0.orders.west\" sorts before \"orders\"");
    assert!(Claim { hash: 0, name: group } < claim(&instance));
}

proptest! {
    #[test]
    fn every_hash_gives_an_address_of_the_pool(hash: u64, prefix in 8_u8..=22) {
        let base = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 240, 0, 0)) & (u32::MAX << (32 - prefix)));
        let pool = Pool::new(base, prefix).expect("aligned");
        let vip = pool.vip(hash);
        prop_assert!(pool.contains(vip.into()));
        let offset = u32::from(vip) - u32::from(base);
        prop_assert!(offset >= RESERVED && offset < pool.size() - RESERVED);
    }
}

#[test]
fn the_reserved_ends_of_a_pool_are_no_vips() {
    let pool = Pool::of_slot(0);
    for (address, wanted) in [
        ([127, 240, 0, 255], false),
        ([127, 240, 1, 0], true),
        ([127, 240, 254, 255], true),
        ([127, 240, 255, 0], false),
        ([127, 239, 255, 255], false),
        ([127, 241, 1, 0], false),
    ] {
        assert_eq!(pool.has_vip(Ipv4Addr::from(address)), wanted, "{address:?}");
    }
}
