//! Which cause is named, with what mends it.

use std::path::Path;

use gossamer_core::catalog::InstanceState;
use gossamer_core::select::{Excluded, Load, Verdict};
use gossamer_wire::{Health, Tier};

use super::*;
use crate::api::tests::about;
use crate::api::views_for_tests::instance;
use crate::relay::{By, FlowId, Outcome, Reached};

fn service() -> VipName {
    VipName::Service("orders".parse().expect("name"))
}

fn candidate(node: &str, state: InstanceState) -> CandidateView {
    let found =
        gossamer_core::catalog::InstanceView { state, health: Health::Passing, ..instance(node, "east") };
    let verdict = match state {
        InstanceState::Usable => Verdict::Candidate { place: 1, tier: Tier::Any, load: Load::default() },
        InstanceState::NodeDown => Verdict::Excluded(Excluded::NodeDown),
        InstanceState::LeaseOver => Verdict::Excluded(Excluded::LeaseOver),
        InstanceState::Failing => Verdict::Excluded(Excluded::Failing),
        InstanceState::Drained => Verdict::Excluded(Excluded::WeightZero),
    };
    let port = Some("pg".parse().expect("name"));
    CandidateView { found, port, verdict }
}

fn probed(outcome: Outcome) -> Probed {
    Probed {
        flow: FlowId(0xff),
        instance: "vm-b".to_owned(),
        node: "vm-b".to_owned(),
        reached: Some(Reached {
            by: By::Direct("192.0.2.1:4677".parse().expect("address")),
            path: crate::relay::Path::Quic("192.0.2.1:4677".parse().expect("address")),
            rtt: Duration::from_millis(2),
            identity: "spiffe://m/group/east/node/vm-b".to_owned(),
            node: gossamer_wire::NodeId::from_bytes([2; 16]),
            not_after: 86_400,
        }),
        connect: Duration::from_millis(3),
        answer: Duration::from_millis(1),
        outcome,
    }
}

/// All is well, until `change` breaks something; returns what is said then.
fn judged(change: impl FnOnce(&mut Scene)) -> Traced {
    let mut scene = Scene {
        named: Named::Vip(service()),
        view: Some(ServiceView {
            service: "orders".parse().expect("name"),
            instances: vec![instance("vm-b", "east")],
            hidden: Vec::new(),
        }),
        absence: Absence::Unknown,
        port: Ok((PortChoice::Number(5432), (5432, Transport::Tcp))),
        overlap: None,
        vips: vec![vip(PortState::Bound)],
        winner: None,
        dns: Dns {
            outcome: "NOERROR".to_owned(),
            addresses: vec!["127.240.7.9".parse().expect("address")],
            reason: None,
            took: Duration::from_millis(1),
        },
        candidates: vec![candidate("vm-b", InstanceState::Usable)],
        probed: Some(vec![probed(Outcome::Open)]),
        is_dialled: true,
        nearest: None,
    };
    change(&mut scene);
    let about = about(Path::new("/tmp"));
    traced(&Facts {
        about: &about,
        full: "orders.mesh.internal",
        named: &scene.named,
        nearest: scene.nearest,
        view: scene.view.as_ref(),
        absence: scene.absence,
        port: scene.port,
        overlap: scene.overlap,
        vips: &scene.vips,
        winner: scene.winner.as_ref(),
        dns: scene.dns,
        candidates: &scene.candidates,
        labels: None,
        own: &[],
        probed: scene.probed.as_deref(),
        is_dialled: scene.is_dialled,
        malformed: 0,
    })
}

struct Scene {
    named: Named,
    view: Option<ServiceView>,
    absence: Absence,
    port: Result<(PortChoice, (u16, Transport)), Vec<String>>,
    overlap: Option<(String, Ipv4Addr)>,
    vips: Vec<VipPort>,
    winner: Option<VipName>,
    dns: Dns,
    candidates: Vec<CandidateView>,
    probed: Option<Vec<Probed>>,
    is_dialled: bool,
    nearest: Option<&'static str>,
}

fn vip(state: PortState) -> VipPort {
    let address = "127.240.7.9:5432".parse().expect("address");
    VipPort { name: service(), address, transport: Transport::Tcp, state }
}

/// Makes that nothing is behind the name.
fn absent(absence: Absence, hidden: bool) -> impl FnOnce(&mut Scene) {
    move |scene| {
        scene.absence = absence;
        scene.candidates = Vec::new();
        scene.port = Err(Vec::new());
        scene.probed = None;
        let instance = gossamer_core::catalog::InstanceView {
            visible: false,
            imported: false,
            ..instance("vm-b", "west")
        };
        let (instances, hidden) =
            if hidden { (Vec::new(), vec![instance]) } else { (vec![instance], Vec::new()) };
        scene.view = Some(ServiceView { service: "orders".parse().expect("name"), instances, hidden });
    }
}

#[track_caller]
fn names(traced: &Traced, leg: &str, kind: BrokenKind, cause: &str, fix: &str) {
    let broken = traced.broken.as_ref().expect("it is broken");
    assert_eq!((broken.leg.as_str(), broken.kind), (leg, kind), "{broken:?}");
    assert!(broken.detail.contains(cause) && broken.fix.contains(fix), "{broken:?}");
}

#[test]
fn all_legs_of_a_way_that_is_whole_are_well() {
    let traced = judged(|_| {});
    assert_eq!(traced.broken, None);
    let legs: Vec<_> = traced.legs.iter().map(|leg| leg.leg.as_str()).collect();
    let all = ["name", "visibility", "port", "vip", "dns", "candidates", "policy", "path", "tls", "backend"];
    assert_eq!(legs, all);
    assert!(traced.legs.iter().all(|leg| leg.state == LegState::Ok), "{:?}", traced.legs);
    assert_eq!(traced.flow.as_deref(), Some("00000000000000ff"));
}

#[test]
fn names_that_are_not_there_are_not_found() {
    let not_found = BrokenKind::NotFound;
    let strange = judged(|scene| scene.named = Named::Strange);
    names(&strange, "name", not_found, "no name of this mesh", "dns.fqdn_suffixes");
    let unknown = judged(|scene| {
        absent(Absence::Unknown, false)(scene);
        (scene.view, scene.nearest) = (None, Some("orders"));
    });
    names(&unknown, "visibility", not_found, "no node exports", "did you mean orders?");
    let foreign = judged(absent(Absence::NotImported(vec!["west".parse().expect("name")]), false));
    names(&foreign, "visibility", not_found, "in group west and not imported", "orders.west");
    let port = judged(|scene| scene.port = Err(vec!["80".to_owned(), "53/udp".to_owned()]));
    names(&port, "port", not_found, "no such port", "80, 53/udp");
}

#[test]
fn what_is_hidden_or_denied_says_what_lets_it_in() {
    let hidden = judged(absent(Absence::Hidden, true));
    names(&hidden, "visibility", BrokenKind::Denied, "vm-b and is hidden from group east", "--to east");
    let denied = judged(|scene| scene.probed = Some(vec![probed(Outcome::Denied)]));
    names(&denied, "policy", BrokenKind::Denied, "may not call", "on vm-b: gossamer expose orders --to east");
}

#[test]
fn an_address_that_is_not_ours_is_the_cause_and_not_dns() {
    let silent = |scene: &mut Scene, state| {
        scene.vips = vec![vip(state)];
        scene.dns.addresses = Vec::new();
        scene.dns.outcome = "NODATA".to_owned();
    };
    let stolen = judged(|scene| silent(scene, PortState::Stolen { program: Some("nginx".to_owned()) }));
    names(&stolen, "vip", BrokenKind::Failed, "nginx listens on *:5432", "vip.mode = \"dnat\"");
    assert!(stolen.legs.iter().any(|leg| leg.leg == "dns" && leg.state == LegState::Note));
    let denied = judged(|scene| scene.vips = vec![vip(PortState::Denied { why: "no right".to_owned() })]);
    names(&denied, "vip", BrokenKind::Failed, "no right", "gossamer forward");
    let waiting = judged(|scene| scene.vips = vec![vip(PortState::Waiting)]);
    names(&waiting, "vip", BrokenKind::Failed, "does not listen", "start that program");
    let overlap = judged(|scene| scene.overlap = Some(("eth0".to_owned(), Ipv4Addr::new(127, 240, 9, 9))));
    names(&overlap, "vip", BrokenKind::Failed, "eth0 of this machine has 127.240.9.9", "vip.pool");
    let loser = judged(|scene| scene.winner = Some(VipName::Service("web".parse().expect("name"))));
    names(&loser, "vip", BrokenKind::Failed, "same virtual address as web", "offer orders again");
}

#[test]
fn states_of_instances_say_why_none_is_used() {
    let only = |state| {
        judged(move |scene| {
            scene.candidates = vec![candidate("vm-b", state)];
            scene.probed = None;
        })
    };
    for (state, leg, cause, fix) in [
        (InstanceState::Failing, "backend", "nobody listens on the target", "start the program on vm-b"),
        (InstanceState::NodeDown, "candidates", "the node of vm-b on vm-b is down", "start gossamer on vm-b"),
        (InstanceState::LeaseOver, "candidates", "is expired", "gossamer nodes"),
        (InstanceState::Drained, "candidates", "weight 0", "--weight 100"),
    ] {
        names(&only(state), leg, BrokenKind::Failed, cause, fix);
    }
}

#[test]
fn ejection_is_a_cause_only_while_nothing_is_tried() {
    let ejected = |probed: Option<Vec<Probed>>| {
        judged(move |scene| {
            let left = Duration::from_secs(3);
            scene.candidates[0].verdict = Verdict::Ejected { place: 1, tier: Tier::Any, left };
            scene.is_dialled = probed.is_some();
            scene.probed = probed;
        })
    };
    names(&ejected(None), "candidates", BrokenKind::Failed, "all of them are ejected", "--no-dial");
    assert_eq!(ejected(Some(vec![probed(Outcome::Open)])).broken, None);
    names(
        &ejected(Some(vec![probed(Outcome::Busy)])),
        "backend",
        BrokenKind::Failed,
        "too many flows",
        "LimitNOFILE",
    );
}

#[test]
fn what_the_last_instance_answered_is_the_cause() {
    let answers = |outcome| judged(move |scene| scene.probed = Some(vec![probed(outcome)]));
    let failed = BrokenKind::Failed;
    names(
        &answers(Outcome::Refused),
        "backend",
        failed,
        "refused the connection",
        "the access line of flow 00000000000000ff",
    );
    names(&answers(Outcome::Draining), "backend", failed, "draining", "wait until");
    names(&answers(Outcome::Silent), "backend", failed, "did not answer", "log");
    names(&answers(Outcome::NoFiles), "backend", failed, "this node can open no more files", "LimitNOFILE");
    let unreachable = judged(|scene| {
        let outcome = Outcome::Unreachable("no way".to_owned());
        scene.probed = Some(vec![Probed { reached: None, ..probed(outcome) }]);
    });
    names(
        &unreachable,
        "path",
        failed,
        "vm-b cannot be reached: no way",
        "open UDP between here and 192.0.2.1:4677",
    );
    let second = judged(|scene| scene.probed = Some(vec![probed(Outcome::Refused), probed(Outcome::Open)]));
    assert_eq!(second.broken, None);
    assert!(second.legs.iter().any(|leg| leg.state == LegState::Note && leg.detail.contains("refused")));
}

#[test]
fn without_dialling_nothing_is_said_of_the_other_node() {
    let traced = judged(|scene| {
        scene.is_dialled = false;
        scene.probed = None;
    });
    assert_eq!(traced.broken, None);
    let skipped: Vec<_> = traced.legs.iter().filter(|leg| leg.state == LegState::Skipped).collect();
    assert_eq!(skipped.len(), 3);
    assert_eq!(traced.flow, None);
}

#[test]
fn a_name_is_asked_of_dns_as_it_is_meant() {
    let full = |named: &Named, asked: &str| named.full("mesh.internal", asked);
    let short = Named::Vip(service());
    assert_eq!(full(&short, "orders"), "orders.mesh.internal");
    assert_eq!(full(&short, "127.240.7.9"), "orders.mesh.internal");
    assert_eq!(full(&short, "pg.corp.example"), "pg.corp.example");
    let group = Named::Vip(VipName::Group("orders".parse().expect("name"), "west".parse().expect("name")));
    assert_eq!(full(&group, "orders.west"), "orders.west.mesh.internal");
    assert_eq!(full(&group, "orders.west.mesh.internal"), "orders.west.mesh.internal");
    assert_eq!(full(&Named::Strange, "example.com"), "example.com");
}

#[test]
fn the_path_says_by_which_way() {
    let at = "192.0.2.1:4677".parse().expect("address");
    for (by, words) in [
        (By::Direct(at), "vm-b at 192.0.2.1:4677, direct over QUIC, round trip 2.00 ms"),
        (By::Inbound(at), "vm-b at 192.0.2.1:4677, inbound over QUIC, round trip 2.00 ms"),
        (By::Lane(at), "vm-b at 192.0.2.1:4677, lane over TCP, round trip 2.00 ms"),
        (By::Relay("gate".to_owned()), "vm-b by relay gate, round trip 2.00 ms"),
    ] {
        let traced = judged(|scene| {
            let mut probed = probed(Outcome::Open);
            probed.reached.as_mut().expect("reached").by = by;
            scene.probed = Some(vec![probed]);
        });
        let path = traced.legs.iter().find(|leg| leg.leg == "path").expect("a path");
        assert_eq!(path.detail, words);
    }
}
