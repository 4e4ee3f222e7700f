//! `expose` and `withdraw`.
//!
//! Owns: what is asked for, and the words about what came of it. Must not know: how it is registered.
//! Driven by: `cli`, and `run` for `GOSSAMER_EXPOSE`.

use gossamer_wire::Routing;

use super::args;
use super::failure::Failure;
use super::name_port::OwnName;
use super::output;
use crate::api::Client;
use crate::api::messages::{Expose, ExposePort, Exposed, Protocol, Withdraw, Withdrawn};

pub(super) async fn expose(client: &Client, asked: args::Expose) -> Result<(), Failure> {
    let json = asked.json;
    let exposed: Exposed = client.post("/v1/expose", &request(asked)?).await?;
    if json {
        return output::json(&exposed);
    }
    output::data(&exposed.name);
    note(&exposed);
    Ok(())
}

/// Tells people what came of a registration.
pub(super) fn note(exposed: &Exposed) {
    lines(exposed).iter().for_each(output::note);
}

fn lines(exposed: &Exposed) -> Vec<String> {
    let ports: Vec<_> = exposed
        .ports
        .iter()
        .map(|port| format!("{}{} -> {}", port.number, udp(port.transport), port.target))
        .collect();
    let verb = if exposed.replaced { "replaced" } else { "registered" };
    let mut lines = vec![
        format!("{verb}  instance {} of {}, {}", exposed.instance, exposed.service, ports.join(", ")),
        format!("check       {}", exposed.check),
        format!("visible to  {}", exposed.visibility),
        format!(
            "going to    {} other members, {} of them connected",
            exposed.members,
            exposed.holders.min(exposed.members)
        ),
    ];
    if !exposed.fqdns.is_empty() {
        let names: Vec<_> = exposed.fqdns.iter().map(ToString::to_string).collect();
        lines.push(format!("also named  {}, where dns.fqdn_suffixes hold that", names.join(", ")));
    }
    lines.extend(exposed.warnings.iter().map(|warning| format!("warning: {warning}")));
    lines
}

/// Returns what marks a UDP port.
const fn udp(transport: Protocol) -> &'static str {
    match transport {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    }
}

fn request(asked: args::Expose) -> Result<Expose, Failure> {
    let target_port = asked.target.as_ref().and_then(|target| target.port);
    let transport = asked.name.transport;
    let first = asked.name.port.map(|number| ExposePort { name: None, number, target_port, transport });
    if first.is_none() && target_port.is_some() && asked.port.is_empty() {
        // `expose web 8080`: the port clients use is the one the program listens on.
        let number = target_port.unwrap_or_default();
        let port = ExposePort { name: None, number, target_port: None, transport };
        return Ok(Expose { ports: vec![port], ..base(asked) });
    }
    if first.is_none() && target_port.is_some() {
        return Err(Failure::usage(format_args!(
            "the target's port belongs to no port of {}; write it behind --port PORT:TARGETPORT",
            asked.name.service
        )));
    }
    let ports: Vec<_> = first.into_iter().chain(asked.port.iter().map(|spec| spec.0.clone())).collect();
    if ports.is_empty() {
        return Err(Failure::usage(format_args!(
            "{0} has no port; write for example gossamer expose {0}:5432",
            asked.name.service
        )));
    }
    Ok(Expose { ports, ..base(asked) })
}

fn base(asked: args::Expose) -> Expose {
    Expose {
        service: asked.name.service,
        instance: asked.instance,
        ports: Vec::new(),
        target: asked.target.and_then(|target| target.host),
        to: asked.to.unwrap_or_default(),
        allow: asked.allow,
        metadata: asked.meta.into_iter().collect(),
        fqdns: asked.fqdn,
        weight: asked.weight,
        routing: Routing {
            order: asked.order.unwrap_or_default(),
            only: asked.only,
            spill_below: asked.spill_below,
            carrier: asked.transport,
        },
        proxy_protocol: asked.proxy_protocol,
    }
}

/// Reads `NAME:PORT[,..]`, the form of `GOSSAMER_EXPOSE`. A name that stands there several times is one service with
/// several ports.
pub(super) fn from_variable(text: &str) -> Result<Vec<Expose>, Failure> {
    let wrong = |why: String| Failure::usage(format_args!("GOSSAMER_EXPOSE: {why}"));
    let mut all: Vec<Expose> = Vec::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let OwnName { service, port, transport } = item.parse().map_err(wrong)?;
        let number = port.ok_or_else(|| wrong(format!("{service} has no port; write {service}:PORT")))?;
        let port = ExposePort { name: None, number, target_port: None, transport };
        match all.iter_mut().find(|one| one.service == service) {
            Some(one) => one.ports.push(port),
            None => all.push(Expose {
                service,
                instance: None,
                ports: vec![port],
                target: None,
                to: crate::api::messages::Audience::Own,
                allow: Vec::new(),
                metadata: std::collections::BTreeMap::new(),
                fqdns: Vec::new(),
                weight: 100,
                routing: Routing::default(),
                proxy_protocol: false,
            }),
        }
    }
    Ok(all)
}

pub(super) async fn withdraw(client: &Client, asked: args::Withdraw) -> Result<(), Failure> {
    let body = Withdraw { service: asked.name, instance: asked.instance };
    let withdrawn: Withdrawn = client.post("/v1/withdraw", &body).await?;
    let instances: Vec<_> = withdrawn.instances.iter().map(ToString::to_string).collect();
    output::note(format_args!("withdrawn: {} of {}", instances.join(", "), withdrawn.service));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn asked(line: &str) -> Result<Expose, Failure> {
        request(parsed(line))
    }

    fn parsed(line: &str) -> args::Expose {
        let words = ["gossamer", "expose"].into_iter().chain(line.split(' '));
        match args::Cli::try_parse_from(words).expect(line).command {
            args::Command::Expose(expose) => expose,
            other => panic!("{other:?}"),
        }
    }

    fn ports(line: &str) -> Vec<(u16, Option<u16>)> {
        asked(line).expect(line).ports.into_iter().map(|port| (port.number, port.target_port)).collect()
    }

    #[test]
    fn the_target_may_be_an_address_a_port_or_both() {
        assert_eq!(ports("db:5432"), [(5432, None)]);
        assert_eq!(ports("db:5432 6000"), [(5432, Some(6000))]);
        assert_eq!(ports("db:5432 10.0.0.7:6000"), [(5432, Some(6000))]);
        assert_eq!(ports("web 8080"), [(8080, None)]);
        assert_eq!(ports("web --port 80:8080 --port admin:9000"), [(80, Some(8080)), (9000, None)]);
        let target = asked("db:5432 10.0.0.7").expect("parses").target;
        assert_eq!(target, Some("10.0.0.7".parse().expect("ip")));
        let target = asked("db:5432 unix:/run/db.sock").expect("parses").target;
        assert_eq!(target, Some("unix:/run/db.sock".parse().expect("path")));
    }

    #[test]
    fn a_service_without_a_port_is_a_usage_error_with_an_example() {
        let failure = asked("db").expect_err("no port");
        assert!(failure.text.contains("gossamer expose db:5432"), "{failure}");
        assert!(asked("db 1.2.3.4:80 --port 1").is_err());
    }

    #[test]
    fn who_may_call_is_a_list_of_groups_and_rules() {
        let expose =
            asked("db:5432 --to west,east --allow node:web-* --allow label:team=shop").expect("parses");
        assert_eq!(
            expose.allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["node:web-*", "label:team=shop"]
        );
        let words = ["gossamer", "expose", "db:1", "--allow", "web-1"];
        let error = args::Cli::try_parse_from(words).expect_err("no rule").to_string();
        assert!(error.contains("write group:NAME, node:PATTERN, id:NODEID or label:KEY=VALUE"), "{error}");
    }

    #[test]
    fn services_in_the_environment_are_names_with_ports() {
        let all = from_variable("worker:8080, web:80,").expect("parses");
        assert_eq!(all.iter().map(|one| one.service.as_str()).collect::<Vec<_>>(), ["worker", "web"]);
        let all = from_variable("web:80,worker:8080,web:443").expect("parses");
        let numbers = |one: &Expose| one.ports.iter().map(|port| port.number).collect::<Vec<_>>();
        assert_eq!(all.iter().map(numbers).collect::<Vec<_>>(), [vec![80, 443], vec![8080]]);
        for (text, words) in [("worker", "worker:PORT"), ("Bad:1", "a-z"), ("a:0", "1 to 65535")] {
            let failure = from_variable(text).expect_err(text);
            assert!(
                failure.text.starts_with("GOSSAMER_EXPOSE: ") && failure.text.contains(words),
                "{failure}"
            );
        }
    }

    #[test]
    fn the_words_name_check_visibility_and_holders() {
        let exposed = Exposed {
            service: "db".parse().expect("name"),
            instance: "vm-b".parse().expect("name"),
            name: "db.mesh.internal".to_owned(),
            fqdns: vec!["pg.corp.example".parse().expect("name")],
            ports: Vec::new(),
            check: "TCP connect each 5 s".to_owned(),
            visibility: "groups east, west".to_owned(),
            replaced: false,
            holders: 9,
            members: 2,
            warnings: vec!["nobody listens on 127.0.0.1:5432".to_owned()],
        };
        let text = lines(&exposed).join("\n");
        for words in [
            "TCP connect each 5 s",
            "groups east, west",
            "also named  pg.corp.example, where dns.fqdn_suffixes",
            "going to    2 other members, 2 of them connected",
            "warning: nobody listens",
        ] {
            assert!(text.contains(words), "{words} is missing in {text}");
        }
    }
}
