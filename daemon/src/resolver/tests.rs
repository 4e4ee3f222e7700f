//! The directory over a small index: visibility, imports, order, VIPs.

use super::*;

use std::sync::Arc;

use gossamer_core::vip::{Mode, Pool};
use gossamer_dns::VipAnswer;
use gossamer_wire::{MeshId, NodeId};

use crate::index::IndexWriter;
use crate::relay::VipsParts;
use crate::relay::tests::{Bench, HERE, Hops, group, instance, named, service, service_view};

const POOL: Pool = Pool::of_slot(12);

struct Fixture {
    resolver: Resolver,
    index: IndexWriter,
}

/// A node of group `west`: `orders` runs in `west`, imported from `east`, not imported from `north`, hidden in
/// `secret`.
fn fixture() -> Fixture {
    fixture_in(Mode::Bind)
}

fn fixture_in(mode: Mode) -> Fixture {
    let bench = Bench::new(HERE, Arc::new(Hops(None)));
    let mut index = IndexWriter::default();
    let parts = VipsParts {
        stage: bench.stage.clone(),
        mesh: MeshId::from_bytes([3; 16]),
        pool: POOL,
        mode,
        redirect: None,
        events: crate::events::EventLog::default(),
        clients: crate::clients::Clients::default(),
        group: group("west"),
        index: index.reader(),
        targets: Arc::new(bench.targets.clone()),
        raises: tokio::sync::mpsc::channel(1).0,
    };
    let mut far = instance("far", "east");
    far.nearness = Nearness::Any;
    far.metadata = vec![("version".to_owned(), "old".to_owned())];
    let mut near = instance("near", "west");
    near.metadata = vec![("version".to_owned(), "new".to_owned())];
    near.addresses =
        ["10.0.0.1:4677", "10.0.0.1:4687", "[fd00::1]:4677"].map(|a| a.parse().expect("a")).into();
    let mut strange = instance("strange", "north");
    strange.imported = false;
    let mut down = instance("down", "west");
    down.state = InstanceState::NodeDown;
    let mut view = service_view("orders", vec![far, down, near, strange]);
    view.hidden.push({
        let mut hidden = instance("hidden", "secret");
        hidden.visible = false;
        hidden
    });
    index.set_service(&service("orders"), Some(view));
    let vips = Vips::start(parts, &bench.relay);
    Fixture { resolver: Resolver::new(index.reader(), vips), index }
}

fn instances(entry: Option<ServiceEntry>) -> Vec<(String, bool)> {
    let entry = entry.expect("the name exists");
    entry.instances.iter().map(|found| (found.instance.to_string(), found.usable)).collect()
}

fn pairs(of: &[(&str, bool)]) -> Vec<(String, bool)> {
    of.iter().map(|(name, usable)| ((*name).to_owned(), *usable)).collect()
}

#[tokio::test]
async fn a_short_name_has_the_own_group_and_imports_nearest_first() {
    let resolver = fixture().resolver;
    let found = instances(resolver.service(&service("orders"), None));
    assert_eq!(found, pairs(&[("near", true), ("down", false), ("far", true)]));
    let entry = resolver.service(&service("orders"), None).expect("exists");
    assert_eq!(entry.metadata, [("version".to_owned(), "new".to_owned())]);
    assert_eq!(entry.instances.iter().map(|found| found.nearness).collect::<Vec<_>>(), [1, 1, 4]);
}

#[tokio::test]
async fn naming_the_group_is_consent_where_it_is_visible() {
    let resolver = fixture().resolver;
    let of = |name: &str| resolver.service(&service("orders"), Some(&group(name)));
    assert_eq!(instances(of("north")), pairs(&[("strange", true)]));
    assert_eq!(of("secret"), None);
    assert_eq!(of("nowhere"), None);
    assert!(resolver.has_group(&group("north")));
    assert!(!resolver.has_group(&group("secret")));
}

#[tokio::test]
async fn names_of_instances_follow_the_same_rules() {
    let resolver = fixture().resolver;
    let of =
        |group: &str, name: &str| resolver.instance(&service("orders"), &self::group(group), &named(name));
    let near = of("west", "near").expect("exists");
    assert_eq!(near.addresses, ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().expect("address")));
    assert_eq!(near.ports, [(5432.into(), gossamer_wire::Transport::Tcp, 5432)]);
    assert!(!of("west", "down").expect("held").usable);
    assert!(of("north", "strange").is_some());
    assert_eq!(of("secret", "hidden"), None);
    assert_eq!(of("east", "near"), None);
}

#[tokio::test]
async fn what_is_known_from_disk_only_is_named_but_not_usable() {
    let mut fixture = fixture();
    let mut stale = instance("near", "west");
    stale.stale = true;
    fixture.index.set_service(&service("orders"), Some(service_view("orders", vec![stale])));
    let entry = fixture.resolver.service(&service("orders"), None).expect("exists");
    assert!(!entry.instances[0].usable);
    assert!(matches!(entry.vip, VipAnswer::Address(_)));
}

#[tokio::test]
async fn without_vips_names_have_the_own_addresses_and_no_address_of_the_pool_a_name() {
    let (bound, none) = (fixture(), fixture_in(Mode::None));
    let Some(VipAnswer::Address(vip)) =
        bound.resolver.service(&service("orders"), None).map(|entry| entry.vip)
    else {
        panic!("a VIP")
    };
    let entry = none.resolver.service(&service("orders"), None).expect("exists");
    assert_eq!(entry.vip, VipAnswer::Direct);
    assert!(entry.instances.iter().all(|instance| instance.vip == VipAnswer::Direct));
    none.resolver.prepare(&Target::Service { service: service("orders"), group: None, direct: false }).await;
    assert_eq!(none.resolver.pointer(vip), None);
}

#[tokio::test]
async fn the_best_of_two_instances_with_one_name_answers() {
    let mut fixture = fixture();
    let mut down = instance("db", "west");
    (down.node, down.state) = (NodeId::from_bytes([0; 16]), InstanceState::NodeDown);
    let view = service_view("orders", vec![down, instance("db", "west")]);
    fixture.index.set_service(&service("orders"), Some(view));
    let entry = fixture.resolver.instance(&service("orders"), &group("west"), &named("db"));
    assert!(entry.expect("exists").usable);
}

#[tokio::test]
async fn a_prepared_name_has_an_address_that_points_back() {
    let resolver = fixture().resolver;
    let targets = [
        Target::Service { service: service("orders"), group: None, direct: false },
        Target::Service { service: service("orders"), group: Some(group("east")), direct: false },
        Target::Instance {
            service: service("orders"),
            group: group("west"),
            instance: named("near"),
            direct: false,
        },
    ];
    let mut seen = Vec::new();
    for target in targets {
        resolver.prepare(&target).await;
        let vip = match &target {
            Target::Service { service, group, .. } => {
                resolver.service(service, group.as_ref()).map(|e| e.vip)
            }
            Target::Instance { service, group, instance, .. } => {
                resolver.instance(service, group, instance).map(|entry| entry.vip)
            }
            Target::Node(_) => None,
        };
        let Some(VipAnswer::Address(vip)) = vip else { panic!("{target:?} has {vip:?}") };
        assert!(POOL.contains(vip.into()));
        assert_eq!(resolver.pointer(vip), Some(target));
        assert!(!seen.contains(&vip));
        seen.push(vip);
    }
    assert_eq!(resolver.pointer(POOL.dns()), None);
}

#[tokio::test]
async fn direct_and_node_names_have_no_vip() {
    let resolver = fixture().resolver;
    let direct = Target::Service { service: service("orders"), group: None, direct: true };
    assert_eq!(vip_name(&direct), None);
    assert_eq!(vip_name(&Target::Node("there".parse().expect("name"))), None);
    assert_eq!(resolver.node(&"there".parse().expect("name")), None);
}

#[tokio::test]
async fn a_name_whose_port_another_program_holds_is_blocked_at_every_level() {
    let mut fixture = fixture();
    let program = std::net::TcpListener::bind("0.0.0.0:0").expect("free");
    let number = program.local_addr().expect("bound").port();
    let mut near = instance("near", "west");
    near.ports =
        vec![gossamer_wire::Port { name: number.into(), number, transport: gossamer_wire::Transport::Tcp }];
    fixture.index.set_service(&service("orders"), Some(service_view("orders", vec![near])));
    let resolver = &fixture.resolver;
    resolver.prepare(&Target::Service { service: service("orders"), group: None, direct: false }).await;
    let entry = resolver.service(&service("orders"), None).expect("exists");
    let VipAnswer::Blocked(reason) = entry.vip else { panic!("the name is answered") };
    assert!(reason.contains(&number.to_string()), "{reason}");

    resolver.prepare(&entry.instances[0].target(false)).await;
    let found = resolver.instance(&service("orders"), &group("west"), &named("near")).expect("exists");
    assert!(matches!(found.vip, VipAnswer::Blocked(_)));
    assert!(found.usable, "others can reach it, only this machine cannot by the VIP");
}

#[tokio::test]
async fn a_name_nobody_holds_is_prepared_without_harm() {
    let resolver = fixture().resolver;
    let unknown = Target::Service { service: service("nothing"), group: None, direct: false };
    resolver.prepare(&unknown).await;
    resolver.prepare(&Target::Node("there".parse().expect("name"))).await;
    assert_eq!(resolver.service(&service("nothing"), None), None);
    assert_eq!(resolver.instance(&service("nothing"), &group("west"), &named("x")), None);
}

#[tokio::test]
async fn a_question_after_a_change_gets_no_answer_from_before_it() {
    use gossamer_dns::{DnsServer, Service, Zone};
    use tokio::net::{TcpListener, UdpSocket};

    let Fixture { resolver, mut index } = fixture();
    let udp = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    client.connect(udp.local_addr().expect("bound")).await.expect("connects");
    let tcp = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let (network, prefix) = POOL.network();
    let zone = Arc::new(Zone::new("mesh.internal", network, prefix).expect("valid").into());
    let stop = tokio_util::sync::CancellationToken::new();
    let metrics = Arc::<gossamer_dns::DnsMetrics>::default();
    let served_names = Service {
        directory: Arc::new(resolver),
        zone,
        forwarder: None,
        metrics: Arc::clone(&metrics),
        allow: Arc::new(|_| true),
    };
    let served = DnsServer::serve(served_names, vec![udp], tcp, stop.clone());
    let asked = async {
        // `_80._tcp.orders.west.direct.mesh.internal`, SRV.
        let labels = ["_80", "_tcp", "orders", "west", "direct", "mesh", "internal"];
        let name: Vec<u8> =
            labels.iter().flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
        let query = [&[0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &name, &[0, 0, 33, 0, 1]].concat();
        let mut reply = [0; 512];
        for round in 0..50_u16 {
            let mut changed = service_view("orders", vec![instance("near", "west")]);
            changed.instances.iter_mut().for_each(|found| found.weight = round);
            changed.instances.iter_mut().for_each(|found| {
                found.ports.iter_mut().for_each(|port| {
                    port.number = 80;
                    port.name = 80.into();
                })
            });
            index.set_service(&service("orders"), Some(changed));
            for _ in 0..3 {
                client.send(&query).await.expect("sent");
                let length = client.recv(&mut reply).await.expect("answered");
                assert_eq!(reply[7], 1, "one record");
                // Owner, in full or as a pointer, type, class, TTL, length, priority: then the weight.
                let owner = if reply[query.len()] < 0xc0 { name.len() + 1 } else { 2 };
                let weight = query.len() + owner + 12;
                assert_eq!(reply[weight..weight + 2], round.to_be_bytes(), "of {length} bytes");
            }
        }
    };
    tokio::select! {
        served = served => panic!("the server ended: {served:?}"),
        () = asked => {}
    }
    assert_eq!(metrics.traffic().kept.count(), 100, "two of three were kept answers");
}
