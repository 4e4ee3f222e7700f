//! Rules of rows and findings.

use gossamer_core::catalog::{InstanceState, MemberLiveness, NodeView};
use gossamer_wire::token::Claims;
use gossamer_wire::{Health, Port, Routing, Transport, Tries};

use std::time::Duration;

use gossamer_dns::Zone;

use super::*;
use crate::index::Why;

pub(crate) fn instance(node: &str, group: &str) -> InstanceView {
    InstanceView {
        node: NodeId::of_spki(node.as_bytes()),
        node_name: node.parse().expect("name"),
        group: group.parse().expect("name"),
        instance: node.parse().expect("name"),
        ports: vec![Port { name: "pg".parse().expect("name"), number: 5432, transport: Transport::Tcp }],
        weight: 100,
        draining: false,
        routing: Routing::default(),
        health: Health::Passing,
        state: InstanceState::Usable,
        nearness: Nearness::Group,
        in_zone: false,
        in_region: false,
        addresses: vec!["192.0.2.1:4677".parse().expect("address")],
        metadata: Vec::new(),
        tries: Tries::default(),
        visible: true,
        imported: true,
        rank: 0,
        fqdns: Vec::new(),
        stale: false,
    }
}

pub(crate) fn node(name: &str, id: u8) -> NodeSummary {
    let node = NodeId::from_bytes([id; 16]);
    let view = NodeView {
        node,
        name: name.parse().expect("name"),
        group: "east".parse().expect("name"),
        zone: None,
        region: None,
        labels: Vec::new(),
        claims: Claims { services: vec!["db".to_owned()], ..Claims::default() },
        addresses: vec!["192.0.2.1:4677".parse().expect("address")],
        relays: Vec::new(),
        lanes: Vec::new(),
        epoch: 1,
        records: 0,
        age: Duration::from_secs(3),
        lease_left: Duration::from_secs(60),
        liveness: MemberLiveness::Alive,
        held: 0,
        quarantined: 0,
        outside_claims: 0,
        outside_suffixes: 0,
        trusted: true,
        not_after: 0,
        issuer: None,
        statement_digest: None,
    };
    NodeSummary { view: Some(view), node, state: Some(MemberState::Alive), why: None }
}

fn view(instances: Vec<InstanceView>, hidden: Vec<InstanceView>) -> ServiceView {
    ServiceView { service: "db".parse().expect("name"), instances, hidden }
}

#[test]
fn this_node_is_alive_whatever_membership_says() {
    let (mut summary, none) = (node("vm-a", 1), Holdings::default());
    summary.state = None;
    assert_eq!(
        node_row(&summary, summary.node, (&none, &Known::default()), |node| node.to_string()).state,
        "alive"
    );
    let other = NodeId::from_bytes([9; 16]);
    assert_eq!(
        node_row(&summary, other, (&none, &Known::default()), |node| node.to_string()).state,
        "unknown"
    );
    for (state, word) in
        [(MemberState::Suspect, "suspect"), (MemberState::Down, "down"), (MemberState::Left, "left")]
    {
        summary.state = Some(state);
        assert_eq!(
            node_row(&summary, other, (&none, &Known::default()), |node| node.to_string()).state,
            word
        );
    }
}

#[test]
fn suspects_still_count_as_members() {
    let this = NodeId::from_bytes([1; 16]);
    let mut nodes = [node("a", 1), node("b", 2), node("c", 3), node("d", 4)];
    nodes[2].state = Some(MemberState::Suspect);
    nodes[3].state = Some(MemberState::Down);
    let nodes = nodes.map(Arc::new);
    assert_eq!(members_alive(&nodes, this), 3);
    assert_eq!(members_alive(&[], this), 1);
}

#[test]
fn every_state_and_distance_of_an_instance_has_a_word() {
    let states = [
        (InstanceState::Usable, "usable"),
        (InstanceState::NodeDown, "down"),
        (InstanceState::LeaseOver, "expired"),
        (InstanceState::Failing, "failing"),
        (InstanceState::Drained, "drained"),
    ];
    let zones = zones();
    let answered = Answered { zones: &zones, disputed: Vec::new() };
    for (state, word) in states {
        assert_eq!(instance_row(&InstanceView { state, ..instance("b", "east") }, &answered).state, word);
    }
    let distances = [
        (Nearness::SameNode, "node"),
        (Nearness::Group, "group"),
        (Nearness::Zone, "zone"),
        (Nearness::Region, "region"),
        (Nearness::Any, "any"),
    ];
    for (nearness, word) in distances {
        assert_eq!(
            instance_row(&InstanceView { nearness, ..instance("b", "east") }, &answered).nearness,
            word
        );
    }
}

#[test]
fn hidden_instances_are_listed_only_when_asked_for() {
    let view = view(vec![instance("a", "east")], vec![instance("b", "west")]);
    let zones = zones();
    let answered = Answered { zones: &zones, disputed: Vec::new() };
    assert_eq!(service_row(&view, false, &answered).instances.len(), 1);
    assert_eq!(service_row(&view, true, &answered).instances.len(), 2);
}

/// Consents to `corp.example`.
fn zones() -> Zones {
    let zone = Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16).expect("valid");
    Zones::from(zone).with_suffix("corp.example".parse().expect("suffix")).expect("free")
}

#[test]
fn a_custom_name_is_answered_inside_a_suffix_behind_the_short_name_and_undisputed() {
    let zones = zones();
    let fqdn = |text: &str| text.parse::<Fqdn>().expect(text);
    let disputed = vec![
        (fqdn("two.corp.example"), vec!["web".parse().expect("name"), "db".parse().expect("name")]),
        (fqdn("two.debian.org"), vec!["web".parse().expect("name"), "db".parse().expect("name")]),
    ];
    let [finding] = &disputed_findings(&disputed, &zones)[..] else { panic!("one is inside a suffix") };
    assert_eq!(finding.text, "two.corp.example is not answered: web and db claim it with the same right");
    assert!(finding.fix.contains("--fqdn two.corp.example"), "{}", finding.fix);

    let answered = Answered { zones: &zones, disputed };
    let fqdns = ["pg.corp.example", "*.debian.org", "two.corp.example"].map(fqdn);
    let found = InstanceView { fqdns: fqdns.into(), ..instance("b", "east") };
    let rows = |found: &InstanceView| {
        instance_row(found, &answered).fqdns.iter().map(|row| row.answered).collect::<Vec<_>>()
    };
    assert_eq!(rows(&found), [true, false, false]);
    assert_eq!(rows(&InstanceView { imported: false, ..found }), [false; 3]);
}

#[test]
fn a_name_is_absent_because_it_is_hidden_foreign_or_unknown() {
    let west: GroupName = "west".parse().expect("name");
    let east: GroupName = "east".parse().expect("name");
    let hidden = view(Vec::new(), vec![instance("b", "west")]);
    assert_eq!(absence(Some(&hidden), None), Absence::Hidden);
    assert_eq!(absence(Some(&hidden), Some(&west)), Absence::Hidden);
    assert_eq!(absence(Some(&hidden), Some(&east)), Absence::Unknown);
    let foreign = view(vec![instance("b", "west"), instance("c", "west")], Vec::new());
    assert_eq!(absence(Some(&foreign), None), Absence::NotImported(vec![west.clone()]));
    assert_eq!(absence(Some(&foreign), Some(&west)), Absence::Unknown);
    assert_eq!(absence(None, None), Absence::Unknown);
}

#[test]
fn service_and_group_are_read_out_of_every_form_of_name() {
    let read = |name: &str| {
        named(name).map(|(service, group)| (service.to_string(), group.map(|group| group.to_string())))
    };
    let db = |group: Option<&str>| Some(("db".to_owned(), group.map(str::to_owned)));
    assert_eq!(read("db."), db(None));
    assert_eq!(read("db.west."), db(Some("west")));
    assert_eq!(read("vm-b.db.west."), db(Some("west")));
    assert_eq!(read("_pg._tcp.db.west."), db(Some("west")));
    assert_eq!(read("db.direct."), db(None));
    assert_eq!(read("vm-b.node."), None);
    assert_eq!(read("a.b.c.d."), None);
    assert_eq!(read(""), None);
}

#[test]
fn a_port_finding_names_the_program_and_a_way_around() {
    let port = |state| VipPort {
        name: VipName::Service("db".parse().expect("name")),
        address: "127.240.1.1:443".parse().expect("address"),
        transport: Transport::Tcp,
        state,
    };
    let stolen = port_finding(&port(PortState::Stolen { program: Some("nginx".to_owned()) })).expect("wrong");
    assert!(stolen.text.contains("nginx") && stolen.fix.contains("gossamer forward 127.0.0.1:10443 db:443"));
    let denied = port_finding(&port(PortState::Denied { why: "below 1024".to_owned() })).expect("wrong");
    assert!(denied.text.contains("below 1024"));
    for fine in [PortState::Bound, PortState::Native, PortState::Waiting] {
        assert_eq!(port_finding(&port(fine)), None);
    }
    let row = vip_row(port(PortState::Stolen { program: Some("nginx".to_owned()) }));
    assert_eq!((row.port, row.state.as_str(), row.program.as_deref()), (443, "stolen", Some("nginx")));
}

#[test]
fn an_upstream_server_that_loops_or_fails_is_a_finding() {
    let upstream = |state| UpstreamStatus {
        address: "192.0.2.53:53".parse().expect("address"),
        state,
        answered: 3,
        failed: 4,
    };
    let found = upstream_findings(&[
        upstream(UpstreamState::Looping),
        upstream(UpstreamState::Up),
        upstream(UpstreamState::Failing),
    ]);
    let [looping, failing] = &found[..] else { panic!("two: {found:?}") };
    assert!(looping.text.contains("192.0.2.53:53 asks this daemon") && looping.fix.contains("dns.upstream"));
    assert!(failing.text.contains("does not answer") && failing.fix.contains("dig @192.0.2.53 -p 53"));
    assert_eq!(upstream_row(&upstream(UpstreamState::Failing)).state, "failing");
}

#[test]
fn a_certificate_that_is_not_renewed_is_warned_of_in_its_last_tenth() {
    // 2027-01-15T08:00:00Z
    let ends = 1_800_000_000;
    let life = (ends - 30 * 86_400, ends);
    let issuers = ["vm-a".to_owned(), "vm-b".to_owned()];
    assert_eq!(certificate_finding(life, &issuers, ends - 4 * 86_400), None);
    let soon = certificate_finding(life, &issuers, ends - 2 * 86_400).expect("wrong");
    assert!(soon.text.contains("certificate ends on 2027-01-15"), "{soon:?}");
    assert!(soon.fix.contains("let vm-a or vm-b run"), "{soon:?}");
    let ended = certificate_finding(life, &[], ends + 1).expect("wrong");
    assert!(ended.text.contains("ended on 2027-01-15") && ended.fix.contains("an issuer"), "{ended:?}");
}

#[test]
fn two_names_that_meet_are_both_named() {
    let name = |text: &str| VipName::Service(text.parse().expect("name"));
    let finding = loser_finding((&name("orders"), &name("web")));
    assert!(finding.text.contains("orders is not") && finding.text.contains("address as web"), "{finding:?}");
}

#[test]
fn a_member_that_is_down_is_a_finding_and_one_that_left_is_not() {
    let mut summary = node("vm-b", 2);
    summary.state = Some(MemberState::Down);
    let finding = node_finding(&summary).expect("wrong");
    assert!(finding.text.contains("vm-b is down") && finding.fix.contains("192.0.2.1:4677"), "{finding:?}");
    summary.state = Some(MemberState::Left);
    assert_eq!(node_finding(&summary), None);
    summary.state = Some(MemberState::Suspect);
    assert!(node_finding(&summary).is_some());
}

#[test]
fn a_finding_about_a_node_says_who_what_since_when_and_what_to_do() {
    let (this, other) = (NodeId::from_bytes([1; 16]), NodeId::from_bytes([2; 16]));
    let name_of = |node| if node == this { "vm-a".to_owned() } else { "vm-b".to_owned() };
    let named = |who, what| named_finding(&Named { who, what, since: 1_700_000_000 }, this, name_of);
    let accuser = named(other, What::FalseClaims { refuted: 5 });
    for word in ["vm-b", "5 claims refuted", "2023-11-14T22:13:20Z"] {
        assert!(accuser.text.contains(word), "{}", accuser.text);
    }
    let at = Some("192.0.2.7:4677".parse().expect("address"));
    assert!(
        named(this, What::RunsTwice { at }).text.starts_with("this identity runs twice, at 192.0.2.7:4677")
    );
    assert!(
        named(other, What::RunsTwice { at: None }).text.starts_with("the identity of node vm-b runs twice")
    );
    let relay = named(other, What::LeadsAstray { node: this, times: 3 });
    assert!(
        relay.text.starts_with("relay vm-b says that it leads to node vm-a, and leads"),
        "{}",
        relay.text
    );
    assert!(relay.fix.contains(&format!("gossamer node evict {other}")), "{}", relay.fix);
    let twins = named(other, What::SameName { other: this });
    assert!(
        twins.text.contains(&format!("vm-b and node {this}")) && twins.fix.contains("--node"),
        "{twins:?}"
    );
}

#[test]
fn a_node_row_has_the_state_of_the_index_and_the_present_age_of_the_catalog() {
    let mut summary = node("vm-b", 2);
    let why = Why { since: 9, cause: "it did not answer probes", by: "vm-c".to_owned() };
    (summary.state, summary.why) = (Some(MemberState::Down), Some(why));
    let mut view = summary.view.clone().expect("a view");
    (view.age, view.lease_left, view.records) = (Duration::from_secs(70), Duration::from_secs(5), 4);
    let waiting = waiting(true);
    let holdings =
        Holdings { nodes: [(view.node, view)].into(), waiting: vec![waiting], ..Holdings::default() };
    let row = node_row(&summary, NodeId::from_bytes([9; 16]), (&holdings, &Known::default()), |node| {
        node.to_string()
    });
    assert_eq!((row.state.as_str(), row.since, row.by.as_deref()), ("down", Some(9), Some("vm-c")));
    assert_eq!((row.head_age_seconds, row.lease_seconds, row.records, row.held), (Some(70), Some(5), 4, 2));
    let without =
        node_row(&summary, summary.node, (&Holdings::default(), &Known::default()), |node| node.to_string());
    assert_eq!((without.head_age_seconds, without.lease_seconds, without.held), (Some(3), None, 0));
}

fn waiting(has_card: bool) -> Waiting {
    Waiting {
        node: NodeId::from_bytes([2; 16]),
        held: 2,
        has_card,
        quarantined: vec![(7, DecodeError::Malformed { what: "record", why: "no port".to_owned() })],
        outside_claims: 3,
        outside_suffixes: 2,
    }
}

#[test]
fn what_is_not_served_is_listed_by_node_with_the_reason() {
    let row = waiting_row(&waiting(false), |_| "vm-b".to_owned());
    assert_eq!((row.node.as_str(), row.held, row.outside_claims), ("vm-b", 2, 3));
    assert!(
        row.quarantined[0].starts_with("fragment 7: ") && row.quarantined[0].contains("no port"),
        "{row:?}"
    );
    assert_eq!(row.held_because.as_deref(), Some("its card has not come"));
    let findings = |of: &Waiting| {
        let all = waiting_findings(of, |_| "vm-b".to_owned());
        assert!(
            all.iter().all(|finding| finding.text.contains("vm-b") && !finding.fix.is_empty()),
            "{all:?}"
        );
        all.len()
    };
    assert_eq!(findings(&waiting(true)), 4);
    assert_eq!(findings(&waiting(false)), 3, "a card that is on its way is no finding");
    let fine =
        Waiting { held: 0, quarantined: Vec::new(), outside_claims: 0, outside_suffixes: 0, ..waiting(true) };
    assert_eq!(findings(&fine), 0);
}

#[test]
fn nodes_are_counted_by_state_and_this_one_is_alive() {
    let nodes = [node("a", 1), node("b", 2), node("c", 3)].map(Arc::new);
    let counts = members(&nodes, NodeId::from_bytes([1; 16]));
    assert_eq!((counts["alive"], counts["down"], counts.len()), (3, 0, 5));
    assert_eq!(members(&[], NodeId::from_bytes([1; 16]))["alive"], 1);
}

#[test]
fn a_long_token_is_warned_of_two_weeks_and_three_days_before_its_end() {
    let now = 1_800_000_000;
    let token = |days: u64, uses| TokenInfo {
        id: gossamer_wire::TokenId::from_bytes([1; 16]),
        group: "jobs".parse().expect("name"),
        uses,
        not_after: now + days * 86_400,
        used_by: Vec::new(),
        revoked: false,
        lifetime: 90 * 86_400,
        claims: Claims::default(),
    };
    let text =
        |token| token_findings(&[token], now).iter().map(|finding| finding.text.clone()).collect::<String>();
    assert_eq!(text(token(15, 0)), "");
    assert!(text(token(13, 0)).contains("ends in 13 days"));
    assert!(text(token(2, 7)).ends_with("replace it now"));
    assert_eq!(text(token(2, 1)), "", "one that admits one node is in somebody's hands");
    assert_eq!(text(TokenInfo { revoked: true, ..token(2, 0) }), "");
    assert_eq!(text(TokenInfo { lifetime: 3_600, ..token(0, 0) }), "");
}
