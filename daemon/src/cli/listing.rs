//! `nodes` and `services`.
//!
//! Owns: their columns. Must not know: where rows come from. Driven by: `cli`.

use gossamer_wire::Routing;

use super::args::{Services, Shape};
use super::failure::Failure;
use super::{output, token};
use crate::api::Client;
use crate::api::messages::{FqdnRow, InstanceRow, NodeRow, Protocol, ServiceRow};

pub(super) async fn nodes(client: &Client, shape: Shape) -> Result<(), Failure> {
    let rows: Vec<NodeRow> = client.get("/v1/nodes").await?;
    let head = ["NODE", "GROUP", "STATE", "ZONE", "REGION", "PATH", "RTT", "HEARD", "CLAIMS", "WHY"];
    output::listing(shape, &rows, &head, |row| vec![node_cells(row)])
}

fn node_cells(row: &NodeRow) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let heard = match row.head_age_seconds {
        _ if row.this => "this node".to_owned(),
        Some(age) => format!("{age} s ago"),
        None => "never".to_owned(),
    };
    // Who is not connected has an address at best.
    let (path, rtt) = match &row.path {
        Some(path) => (path.way(), path.rtt()),
        None => (or_dash(row.addresses.first().map(ToString::to_string)), "-".to_owned()),
    };
    vec![
        row.name.as_ref().map_or_else(|| row.id.clone(), ToString::to_string),
        or_dash(row.group.as_ref().map(ToString::to_string)),
        row.state.clone(),
        or_dash(row.zone.as_ref().map(ToString::to_string)),
        or_dash(row.region.as_ref().map(ToString::to_string)),
        path,
        rtt,
        heard,
        row.claims.as_ref().map(token::claims).unwrap_or_default(),
        node_notes(row).join(", "),
    ]
}

/// Returns what is out of the ordinary with a node.
fn node_notes(row: &NodeRow) -> Vec<String> {
    let mut notes = Vec::new();
    if let (false, Some(reason)) = (row.state == "alive", &row.reason) {
        let by = row.by.as_ref().map(|by| format!(" (says {by})")).unwrap_or_default();
        notes.push(format!("{reason}{by}"));
    }
    let counts = [
        (row.held, "held"),
        (row.quarantined, "quarantined"),
        (row.outside_claims, "outside its claims"),
        (row.outside_suffixes, "FQDNs outside its suffixes"),
    ];
    notes
        .extend(counts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")));
    if row.lease_seconds == Some(0) {
        notes.push("lease over".to_owned());
    }
    notes
}

pub(super) async fn services(client: &Client, services: &Services) -> Result<(), Failure> {
    let name = services.name.as_ref().map(|name| format!("&name={name}")).unwrap_or_default();
    let rows: Vec<ServiceRow> = client.get(&format!("/v1/services?all={}{name}", services.all)).await?;
    let head = ["SERVICE", "INSTANCE", "NODE", "GROUP", "PORTS", "STATE", "NEAR", "NOTE"];
    output::listing(services.shape, &rows, &head, |row| {
        row.instances.iter().map(|instance| instance_cells(row, instance)).collect()
    })
}

fn instance_cells(row: &ServiceRow, instance: &InstanceRow) -> Vec<String> {
    let port = |port: &crate::api::messages::PortRow| {
        let number = port.number.to_string();
        let named = if port.name.as_str() == number { number } else { format!("{}:{number}", port.name) };
        if port.transport == Protocol::Udp { named + "/udp" } else { named }
    };
    let note = match (instance.visible, instance.imported) {
        (false, _) => Some("hidden".to_owned()),
        (true, false) => Some("not imported".to_owned()),
        (true, true) => None,
    };
    let named = |row: &FqdnRow| {
        if row.answered { row.fqdn.to_string() } else { format!("{} not answered", row.fqdn) }
    };
    let wishes = wishes(&instance.routing);
    let notes: Vec<_> = note.into_iter().chain(instance.fqdns.iter().map(named)).chain(wishes).collect();
    vec![
        row.service.to_string(),
        instance.instance.to_string(),
        instance.node.to_string(),
        instance.group.to_string(),
        instance.ports.iter().map(port).collect::<Vec<_>>().join(","),
        instance.state.clone(),
        instance.nearness.clone(),
        notes.join(", "),
    ]
}

/// Returns what an exporter wishes, in words.
fn wishes(routing: &Routing) -> Vec<String> {
    let order: Vec<_> = routing.order.iter().map(ToString::to_string).collect();
    let order = (!order.is_empty()).then(|| format!("order {}", order.join(" > ")));
    let only = routing.only.map(|only| format!("only {only}"));
    let spill = routing.spill_below.map(|percentage| format!("spills below {percentage} %"));
    let carrier = routing.carrier.map(|carrier| format!("over {carrier}"));
    [order, only, spill, carrier].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use gossamer_wire::Tier;
    use gossamer_wire::token::Claims;

    use super::*;
    use crate::api::messages::{PathRow, PortRow};

    #[test]
    fn a_node_whose_card_has_not_arrived_is_listed_by_its_id() {
        let row = NodeRow {
            name: None,
            id: "abcd".to_owned(),
            group: None,
            state: "alive".to_owned(),
            zone: None,
            region: None,
            addresses: Vec::new(),
            relays: Vec::new(),
            since: None,
            reason: None,
            by: None,
            head_age_seconds: None,
            lease_seconds: None,
            records: 0,
            held: 0,
            quarantined: 0,
            outside_claims: 0,
            outside_suffixes: 0,
            certificate_ends: None,
            has_statements: false,
            claims: None,
            this: false,
            path: None,
        };
        assert_eq!(node_cells(&row), ["abcd", "-", "alive", "-", "-", "-", "-", "never", "", ""]);
        let (kind, at) = ("inbound".to_owned(), "192.0.2.1:4677".to_owned());
        let path = Some(PathRow { kind, at, second: None, rtt_us: 340, size: 1_452 });
        let connected = node_cells(&NodeRow { path, ..row.clone() });
        assert_eq!(connected[5..7], ["inbound 192.0.2.1:4677", "0.3 ms"]);
        let claims = Claims { relay: true, ..Claims::default() };
        let known =
            NodeRow { name: Some("vm-a".parse().expect("name")), claims: Some(claims), this: true, ..row };
        let cells = node_cells(&known);
        let of_interest = [0, 7, 8].map(|column: usize| cells[column].as_str());
        assert_eq!(of_interest, ["vm-a", "this node", "role relay"]);
        let bad = NodeRow {
            state: "down".to_owned(),
            reason: Some("it did not answer probes".to_owned()),
            by: Some("vm-c".to_owned()),
            held: 2,
            quarantined: 1,
            lease_seconds: Some(0),
            ..known
        };
        let why = "it did not answer probes (says vm-c), 2 held, 1 quarantined, lease over";
        assert_eq!(node_cells(&bad)[9], why);
    }

    #[test]
    fn an_instance_that_cannot_be_called_by_its_short_name_says_why() {
        let instance = InstanceRow {
            instance: "vm-b".parse().expect("name"),
            node: "vm-b".parse().expect("name"),
            group: "west".parse().expect("name"),
            state: "usable".to_owned(),
            ports: vec![
                PortRow { name: 5432.into(), number: 5432, transport: Protocol::Tcp },
                PortRow { name: "admin".parse().expect("name"), number: 80, transport: Protocol::Udp },
            ],
            nearness: "any".to_owned(),
            routing: Routing {
                order: vec![Tier::Zone, Tier::Any],
                only: Some(Tier::Region),
                spill_below: Some(70),
                carrier: Some(gossamer_wire::Carrier::Tls),
            },
            visible: true,
            imported: false,
            fqdns: [("pg.corp.example", true), ("*.debian.org", false)]
                .map(|(fqdn, answered)| FqdnRow { fqdn: fqdn.parse().expect("name"), answered })
                .into(),
            address: None,
        };
        let row = ServiceRow { service: "db".parse().expect("name"), instances: vec![instance.clone()] };
        let cells = instance_cells(&row, &instance);
        assert_eq!(cells[4], "5432,admin:80/udp");
        assert_eq!(
            cells[7],
            "not imported, pg.corp.example, *.debian.org not answered, order zone > any, only region, spills below 70 %, over tls"
        );
        let hidden =
            InstanceRow { visible: false, fqdns: Vec::new(), routing: Routing::default(), ..instance };
        assert_eq!(instance_cells(&row, &hidden)[7], "hidden");
    }
}
