//! Paths to peers: as rows, pinged, and what is wrong with them.
//!
//! Owns: their words, what counts as a finding. Must not know: how paths are chosen. Driven by: `api`, `handlers`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use gossamer_core::membership::MemberState;
use gossamer_core::reach::{Span, span};
use gossamer_wire::NodeId;
use gossamer_wire::limits::MAX_WARM_PEERS;
use serde::Deserialize;

use super::handlers::ask;
use super::members::which_by_prefix;
use super::messages::{Finding, PathRow, PeerRow, PingRow, TriedRow};
use super::refusal::Refusal;
use super::{Api, ApiState};
use crate::clock;
use crate::index::NodeSummary;
use crate::transport::{Outcome, Path, PathKind, Sizes, Way};

#[derive(Debug, Deserialize)]
pub(super) struct PingQuery {
    node: String,
}

/// Pings a node, over its connection and at each of its addresses.
pub(super) async fn ping(
    State(api): State<Api>,
    query: Result<Query<PingQuery>, QueryRejection>,
) -> Result<Json<PingRow>, Refusal> {
    let PingQuery { node } = ask(query)?;
    let (node, name) = which_by_prefix(&api, &node)?;
    if node == api.state.about.node {
        return Err(Refusal::conflict(format!("{name} is this node; ping another one")));
    }
    let known = api.state.index.node(node).and_then(|known| Some(known.view.as_ref()?.addresses.clone()));
    let pinged = api.state.connections.ping(node, known.unwrap_or_default()).await;
    if pinged.connection.is_none() && pinged.tried.is_empty() {
        return Err(Refusal::not_found(format!(
            "nobody here knows an address of {name}; gossamer nodes lists the nodes that are known"
        )));
    }
    let name_of = |node| api.state.index.name_of(node);
    let tried = |(way, outcome): &(Way, _)| {
        let words = match way {
            Way::Relay(relay) => format!("relay {}", name_of(*relay)),
            Way::Udp(_) | Way::Tcp(_) | Way::Tls(_) => way.to_string(),
        };
        tried_row(words, outcome)
    };
    Ok(Json(PingRow {
        node: name,
        id: node.to_string(),
        connection: pinged
            .connection
            .as_ref()
            .map(|(path, answer)| tried_row(path_row(path, name_of).way(), answer)),
        tried: pinged.tried.iter().map(tried).collect(),
    }))
}

fn tried_row(way: String, outcome: &Result<Duration, Outcome>) -> TriedRow {
    TriedRow {
        way,
        rtt_us: outcome.as_ref().ok().map(|rtt| microseconds(*rtt)),
        failed: outcome.as_ref().err().map(ToString::to_string),
        word: outcome.as_ref().err().map_or("ok", Outcome::word).to_owned(),
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Makes the row of a path.
pub(super) fn path_row(path: &Path, name_of: impl Fn(NodeId) -> String) -> PathRow {
    let Path { kind, second, rtt, sizes } = path;
    PathRow {
        kind: kind.word().to_owned(),
        at: kind.at(&name_of),
        second: second.map(name_of),
        rtt_us: microseconds(*rtt),
        size: sizes.proven,
    }
}

/// Makes the rows of the connected peers, in order of their names.
pub(super) fn peer_rows(paths: &BTreeMap<NodeId, Path>, name_of: impl Fn(NodeId) -> String) -> Vec<PeerRow> {
    let row =
        |(node, path): (&NodeId, &Path)| PeerRow { node: name_of(*node), path: path_row(path, &name_of) };
    let mut rows: Vec<_> = paths.iter().map(row).collect();
    rows.sort_by(|a, b| a.node.cmp(&b.node));
    rows
}

/// What is known of this node's connections.
#[derive(Clone, Debug)]
pub(super) struct Reach<'a> {
    /// The paths to connected peers.
    pub(super) paths: &'a BTreeMap<NodeId, Path>,
    /// Other nodes that are known with an address and have not left.
    pub(super) known: usize,
    /// Addresses that gave no answer to a dial since the start.
    pub(super) unanswered: u64,
    /// Where this node can be dialled as far as it knows; all private when it is behind a translator.
    pub(super) own: Vec<IpAddr>,
    /// Whether one of them, or a lane address, is for every network.
    pub(super) has_public: bool,
    /// Whether this node has the role of a relay.
    pub(super) is_relay: bool,
    /// Members that have been alive for some time, as others say, have no connection with this node, and name no relay.
    pub(super) apart: Vec<NodeId>,
    /// Members with the role of a relay that have not left.
    pub(super) relays: usize,
    /// Whether some of them lead to this node, as its card says.
    pub(super) is_led_to: bool,
}

/// Gathers it.
pub(super) fn reach<'a>(
    state: &ApiState,
    paths: &'a BTreeMap<NodeId, Path>,
    nodes: &[Arc<NodeSummary>],
) -> Reach<'a> {
    let is_known = |node: &&Arc<NodeSummary>| {
        let has_address =
            |view: &gossamer_core::catalog::NodeView| !view.addresses.is_empty() || !view.lanes.is_empty();
        let has_address = node.view.as_ref().is_some_and(has_address);
        node.node != state.about.node && has_address && node.state != Some(MemberState::Left)
    };
    let is_relay = |node: &&Arc<NodeSummary>| {
        let has_role = node.view.as_ref().is_some_and(|view| view.claims.relay);
        has_role && node.node != state.about.node && node.state != Some(MemberState::Left)
    };
    let now = clock::wall();
    let is_apart = |node: &&Arc<NodeSummary>| {
        let names_none = node.view.as_ref().is_some_and(|view| view.relays.is_empty());
        let has_lasted = node.why.as_ref().is_some_and(|why| why.since + APART_AFTER <= now);
        let is_alone = node.node != state.about.node && !paths.contains_key(&node.node);
        is_alone && node.state == Some(MemberState::Alive) && names_none && has_lasted
    };
    // In larger meshes not every pair keeps a connection.
    let apart = nodes.iter().filter(|_| nodes.len() <= MAX_WARM_PEERS).filter(is_apart);
    let advertised = state.about.advertised.borrow();
    let own = nodes.iter().find(|node| node.node == state.about.node).and_then(|node| node.view.as_ref());
    Reach {
        paths,
        known: nodes.iter().filter(is_known).count(),
        unanswered: state.metrics.dials_unanswered(),
        has_public: !state.about.lanes.is_empty() || advertised.iter().any(|at| is_for_all(at.ip())),
        own: advertised.iter().map(|at| at.ip()).collect(),
        is_relay: own.is_some_and(|view| view.claims.relay),
        apart: apart.map(|node| node.node).collect(),
        relays: nodes.iter().filter(is_relay).count(),
        is_led_to: own.is_some_and(|view| !view.relays.is_empty()),
    }
}

/// Lists what is wrong with how this node reaches others, and they it.
pub(super) fn findings(reach: &Reach<'_>, name_of: impl Fn(NodeId) -> String) -> Vec<Finding> {
    let holes = reach.paths.iter().filter(|(_, path)| is_hole(&path.sizes));
    let mut findings: Vec<_> = holes.map(|(node, path)| hole(&name_of(*node), path)).collect();
    findings.extend(udp_closed(reach));
    findings.extend(only_outbound(reach));
    findings.extend(no_way(reach, name_of));
    findings
}

/// Each network carries 1,280 bytes of IPv6, which is 1,232 of UDP: a path on which fewer are proven, although larger
/// packets were sent, swallows them. One that takes fewer from now on is a hole as well.
const fn is_hole(sizes: &Sizes) -> bool {
    sizes.proven < LEAST_OF_A_PATH && (sizes.lost >= LOST_ENOUGH || sizes.holes > 0)
}

fn hole(name: &str, path: &Path) -> Finding {
    Finding {
        text: format!(
            "MTU hole: packets of more than {} bytes are lost on the path to {name} ({}), without a word; flows pass in small ones",
            path.sizes.proven, path.kind
        ),
        fix: "let the routers and tunnels between send ICMP \"packet too big\", or set the MTU of the interface to what the narrowest of them takes; programs other than gossamer hang on such a path"
            .to_owned(),
    }
}

fn udp_closed(reach: &Reach<'_>) -> Option<Finding> {
    let is_lane = |path: &Path| matches!(path.kind, PathKind::Lane(_));
    // What UDP does on this network, or what a relay leads, says nothing of the way out.
    let told: Vec<_> = reach.paths.values().filter(|path| is_lane(path) || reach.leaves(path)).collect();
    let text = if told.len() >= SEVERAL && told.iter().all(|path| is_lane(path)) {
        let but = match reach.paths.len() - told.len() {
            0 => String::new(),
            other => format!(" (but {other} on this network or through relays)"),
        };
        format!("UDP closed: all {} connections are lanes over TCP{but}, for UDP is not answered", told.len())
    } else if reach.paths.is_empty() && reach.known >= SEVERAL && reach.unanswered >= SEVERAL as u64 {
        format!(
            "UDP closed, and TCP as well: none of {} known nodes is connected, and {} dials got no answer",
            reach.known, reach.unanswered
        )
    } else {
        return None;
    };
    let fix = "open UDP to port 4677 of the other nodes in the firewalls of this machine and between, or else TCP to the same port; gossamer ping NODE tries each address";
    Some(Finding { text, fix: fix.to_owned() })
}

fn only_outbound(reach: &Reach<'_>) -> Option<Finding> {
    // Towards peers of its own network an address of that network is enough.
    let is_outbound = |path: &Path| matches!(path.kind, PathKind::Direct(at) if is_for_all(at.ip()));
    let told: Vec<_> = reach.paths.values().filter(|path| reach.leaves(path)).collect();
    if told.len() < SEVERAL || !told.iter().all(|path| is_outbound(path)) || reach.has_public {
        return None;
    }
    if reach.is_relay {
        return Some(Finding {
            text: format!(
                "hidden relay: this node has the role of a relay, but dialled all of its {} connections into other networks and has no address for these; who needs it cannot dial it",
                told.len()
            ),
            fix: "forward UDP and TCP 4677 to this node and set advertise to the public address, or give the role to a member that all can dial (it joins with a token of gossamer token create --role relay)".to_owned(),
        });
    }
    let fix = match reach.relays {
        0 => {
            "nothing, if the other nodes can be dialled: its services are called over these connections; else give a member that all can dial the role of a relay (it joins with a token of gossamer token create --role relay), or forward UDP 4677 to this node and set advertise to the public address"
        }
        _ => {
            "nothing, if the other nodes can be dialled: its services are called over these connections; else forward UDP 4677 to it and set advertise to the public address"
        }
    };
    (!reach.is_led_to).then(|| Finding {
        text: format!(
            "only outbound: this node dialled all of its {} connections into other networks, and has no address for these",
            told.len()
        ),
        fix: fix.to_owned(),
    })
}

fn no_way(reach: &Reach<'_>, name_of: impl Fn(NodeId) -> String) -> Option<Finding> {
    let mut names: Vec<_> = reach.apart.iter().map(|node| name_of(*node)).collect();
    names.sort();
    let (count, more) = (names.len(), names.len().saturating_sub(NAMED));
    names.truncate(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    (count > 0).then(|| Finding {
        text: format!(
            "no way: others see {}{more} alive, which this node has no connection with and which no relay leads to; neither can use the services of the other",
            names.join(", ")
        ),
        fix: "open UDP 4677, or TCP 4677, between the two in at least one direction; where that cannot be, give a member that both can dial the role of a relay (it joins with a token of gossamer token create --role relay); gossamer ping NODE tries each address".to_owned(),
    })
}

impl Reach<'_> {
    /// Whether a path leads out of this node's networks, and not through a relay.
    fn leaves(&self, path: &Path) -> bool {
        match path.kind {
            PathKind::Direct(at) | PathKind::Inbound(at) | PathKind::Lane(at) => {
                !self.own.iter().any(|own| is_near(*own, at.ip()))
            }
            PathKind::Relay(_) => false,
        }
    }
}

/// Whether two addresses that are not for every network are probably of the same one: prefixes are not known here.
fn is_near(own: IpAddr, ip: IpAddr) -> bool {
    let is_same = match (own.to_canonical(), ip.to_canonical()) {
        (IpAddr::V4(own), IpAddr::V4(ip)) => own.to_bits() >> 8 == ip.to_bits() >> 8,
        (IpAddr::V6(own), IpAddr::V6(ip)) => own.to_bits() >> 64 == ip.to_bits() >> 64,
        _ => false,
    };
    is_same && !is_for_all(ip)
}

/// Whether every network can use it.
fn is_for_all(ip: IpAddr) -> bool {
    span(ip) == Span::Global
}

/// 1,280 bytes less headers of IPv6 and UDP.
const LEAST_OF_A_PATH: u16 = 1_232;
/// A size counts as too large when this many packets of it were lost.
const LOST_ENOUGH: u64 = 3;
/// A member may be alive for so long, seconds, before its connection comes about.
const APART_AFTER: u64 = 15;
/// Names in one finding.
const NAMED: usize = 5;
/// One node or address may be down by itself.
const SEVERAL: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn path(kind: fn(std::net::SocketAddr) -> PathKind, sizes: Sizes) -> Path {
        let at = "198.51.100.1:4677".parse().expect("address");
        Path { kind: kind(at), second: None, rtt: Duration::from_millis(1), sizes }
    }

    /// A node that knows little: behind a translator, with an address of its network.
    fn of(paths: &BTreeMap<NodeId, Path>) -> Reach<'_> {
        Reach {
            paths,
            known: paths.len(),
            unanswered: 0,
            own: vec!["192.168.9.2".parse().expect("address")],
            has_public: false,
            is_relay: false,
            apart: Vec::new(),
            relays: 0,
            is_led_to: false,
        }
    }

    fn near(kind: fn(std::net::SocketAddr) -> PathKind) -> Path {
        Path { kind: kind("192.168.9.7:4677".parse().expect("address")), ..path(kind, Sizes::default()) }
    }

    fn led() -> Path {
        Path { kind: PathKind::Relay(NodeId::from_bytes([9; 16])), ..near(PathKind::Direct) }
    }

    fn found(paths: Vec<Path>, known: usize, unanswered: u64, has_public: bool) -> Vec<String> {
        let paths: BTreeMap<_, _> = paths
            .into_iter()
            .enumerate()
            .map(|(n, path)| (NodeId::from_bytes([n as u8; 16]), path))
            .collect();
        let reach = Reach { known, unanswered, has_public, ..of(&paths) };
        let words = |finding: Finding| finding.text.split([':', ',']).next().unwrap_or_default().to_owned();
        findings(&reach, |_| "vm-b".to_owned()).into_iter().map(words).collect()
    }

    #[test]
    fn a_hole_is_a_path_that_takes_less_than_every_network_does() {
        let sizes = |proven, lost, holes| Sizes { proven, tried: lost + 2, lost, holes };
        let of = |sizes| found(vec![path(PathKind::Inbound, sizes)], 1, 0, true);
        assert_eq!(of(sizes(1_200, 9, 0)), ["MTU hole"]);
        assert_eq!(of(sizes(1_200, 0, 1)), ["MTU hole"], "one that came later");
        assert!(of(sizes(1_200, 0, 0)).is_empty(), "nothing larger was sent");
        assert!(of(sizes(1_232, 6, 0)).is_empty(), "a path of 1,280 bytes");
        assert!(of(sizes(1_452, 3, 1)).is_empty(), "it has passed");
    }

    #[test]
    fn udp_is_closed_when_nobody_of_several_answers() {
        assert_eq!(found(Vec::new(), 2, 2, true), ["UDP closed"]);
        assert!(found(Vec::new(), 2, 1, true).is_empty());
        assert!(found(Vec::new(), 1, 9, true).is_empty(), "it may be down");
        assert!(found(vec![path(PathKind::Inbound, Sizes::default())], 9, 9, true).is_empty());
        let lane = path(PathKind::Lane, Sizes::default());
        assert_eq!(found(vec![lane.clone(), lane.clone()], 2, 0, true), ["UDP closed"]);
        assert!(found(vec![lane.clone()], 1, 0, true).is_empty());
        assert!(found(vec![lane, path(PathKind::Inbound, Sizes::default())], 2, 0, true).is_empty());
    }

    #[test]
    fn a_node_that_dialled_everybody_and_has_only_private_addresses_is_only_outbound() {
        let (out, inward) =
            (path(PathKind::Direct, Sizes::default()), path(PathKind::Inbound, Sizes::default()));
        assert_eq!(found(vec![out.clone(), out.clone()], 2, 0, false), ["only outbound"]);
        assert!(found(vec![out.clone(), out.clone()], 2, 0, true).is_empty());
        assert!(found(vec![out.clone(), inward], 2, 0, false).is_empty());
        assert!(found(vec![out], 1, 0, false).is_empty());
    }

    #[test]
    fn who_is_only_outbound_is_pointed_to_relays_where_there_are_none_and_is_well_where_one_leads_to_it() {
        let path = path(PathKind::Direct, Sizes::default());
        let paths = [1, 2].map(|n| (NodeId::from_bytes([n; 16]), path.clone())).into();
        let fix = |relays, is_led_to| {
            let reach = Reach { relays, is_led_to, ..of(&paths) };
            only_outbound(&reach).map(|finding| finding.fix.contains("--role relay"))
        };
        assert_eq!([fix(0, false), fix(1, false), fix(1, true)], [Some(true), Some(false), None]);
    }

    #[test]
    fn relays_and_peers_of_the_own_network_hide_neither_closed_udp_nor_a_node_that_is_only_outbound() {
        let lane = path(PathKind::Lane, Sizes::default());
        let out = path(PathKind::Direct, Sizes::default());
        for beside in [led(), near(PathKind::Direct), near(PathKind::Inbound)] {
            let mixed = |path: &Path| vec![path.clone(), path.clone(), beside.clone()];
            assert_eq!(found(mixed(&lane), 3, 0, true), ["UDP closed"], "{beside:?}");
            assert_eq!(found(mixed(&out), 3, 0, false), ["only outbound"], "{beside:?}");
            assert!(found(vec![lane.clone(), beside.clone()], 2, 0, true).is_empty(), "one says little");
        }
        assert_eq!(found(vec![near(PathKind::Lane), near(PathKind::Lane)], 2, 0, true), ["UDP closed"]);
    }

    #[test]
    fn a_relay_that_nobody_can_dial_and_members_without_a_way_are_named_with_their_fix() {
        let out = path(PathKind::Direct, Sizes::default());
        let paths = [1, 2].map(|n| (NodeId::from_bytes([n; 16]), out.clone())).into();
        let hidden = only_outbound(&Reach { is_relay: true, is_led_to: false, ..of(&paths) });
        let hidden = hidden.expect("a finding");
        assert!(hidden.text.starts_with("hidden relay") && hidden.fix.contains("UDP and TCP 4677"));
        assert!(only_outbound(&Reach { is_relay: true, has_public: true, ..of(&paths) }).is_none());
        let apart = |count| Reach { apart: vec![NodeId::from_bytes([3; 16]); count], ..of(&paths) };
        assert!(no_way(&apart(0), |_| "vm-c".to_owned()).is_none());
        let one = no_way(&apart(1), |_| "vm-c".to_owned()).expect("a finding");
        assert!(one.text.contains("others see vm-c alive") && one.fix.contains("--role relay"));
        let many = no_way(&apart(NAMED + 2), |_| "vm-c".to_owned()).expect("a finding");
        assert!(many.text.contains("vm-c and 2 more alive"), "{}", many.text);
    }
}
