//! `NAME:PORT`, the one way to name a port of a service on the command line.
//!
//! Owns: the grammar of names, ports and targets as people type them. Must not know: what exists.
//! Driven by: `expose`, `forward`, `run`, `GOSSAMER_EXPOSE`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use gossamer_wire::{GroupName, InstanceName, Label, PortName, ServiceName};

use crate::api::messages::{Audience, Connect, ExposePort, Protocol};
use crate::register::Host;

/// `SERVICE`, `SERVICE.GROUP` or `INSTANCE.SERVICE.GROUP`, with a port's name or number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamePort(pub(super) Connect);

impl FromStr for NamePort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("{text:?} names no port; write NAME:PORT, for example orders-db:5432"))?;
        let labels: Vec<&str> = name.split('.').collect();
        let (instance, service, group) = match labels[..] {
            [service] => (None, service, None),
            [service, group] => (None, service, Some(group)),
            [instance, service, group] => (Some(instance), service, Some(group)),
            _ => {
                return Err(format!(
                    "{name:?} has too many labels; write SERVICE, SERVICE.GROUP or INSTANCE.SERVICE.GROUP"
                ));
            }
        };
        Ok(Self(Connect {
            service: parse::<ServiceName>(service)?,
            group: group.map(parse::<GroupName>).transpose()?,
            instance: instance.map(parse::<InstanceName>).transpose()?,
            port: port_name(port)?,
        }))
    }
}

impl fmt::Display for NamePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connect { service, group, instance, port } = &self.0;
        if let Some(instance) = instance {
            write!(f, "{instance}.")?;
        }
        write!(f, "{service}")?;
        if let Some(group) = group {
            write!(f, ".{group}")?;
        }
        write!(f, ":{port}")
    }
}

/// `NAME`, `NAME:PORT` or `NAME:PORT/udp`: any name that DNS may know, also with its zone, or a virtual address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TraceName {
    pub(super) name: String,
    pub(super) port: Option<PortName>,
    pub(super) transport: Protocol,
}

impl FromStr for TraceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, transport) = transport(text)?;
        let (name, port) = match rest.rsplit_once(':') {
            Some((name, port)) => (name, Some(port_name(port)?)),
            None => (rest, None),
        };
        if name.is_empty() || name.contains(':') {
            return Err(format!("{text:?} is no name; write NAME or NAME:PORT, for example orders-db:5432"));
        }
        Ok(Self { name: name.to_ascii_lowercase(), port, transport })
    }
}

/// `NAME`, `NAME:PORT` or `NAME:PORT/udp` of a service of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnName {
    pub(super) service: ServiceName,
    pub(super) port: Option<u16>,
    pub(super) transport: Protocol,
}

impl FromStr for OwnName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((service, port)) => {
                let (port, transport) = transport(port)?;
                Ok(Self { service: parse(service)?, port: Some(port_number(port)?), transport })
            }
            None => Ok(Self { service: parse(text)?, port: None, transport: Protocol::Tcp }),
        }
    }
}

/// `[NAME:]P[:TARGETPORT][/udp]` of `expose --port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortSpec(pub(super) ExposePort);

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = text;
        let (text, transport) = transport(text)?;
        let parts: Vec<&str> = text.split(':').collect();
        let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let (name, number, target_port) = match parts[..] {
            [number] => (None, number, None),
            [name, number] if !is_number(name) => (Some(name), number, None),
            [number, target] => (None, number, Some(target)),
            [name, number, target] => (Some(name), number, Some(target)),
            _ => {
                return Err(format!(
                    "{whole:?} must be [NAME:]PORT[:TARGETPORT][/udp], for example http:80:8080"
                ));
            }
        };
        Ok(Self(ExposePort {
            name: name.map(parse::<PortName>).transpose()?,
            number: port_number(number)?,
            target_port: target_port.map(port_number).transpose()?,
            transport,
        }))
    }
}

/// Splits `/udp` or `/tcp` off.
fn transport(text: &str) -> Result<(&str, Protocol), String> {
    match text.split_once('/') {
        None | Some((_, "tcp")) => Ok((text.trim_end_matches("/tcp"), Protocol::Tcp)),
        Some((rest, "udp")) => Ok((rest, Protocol::Udp)),
        Some((_, other)) => Err(format!("{text:?} ends with /{other}; write /udp, or nothing for TCP")),
    }
}

/// `IP`, `PORT`, `IP:PORT` or `unix:PATH`: where the program of a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TargetSpec {
    pub(super) host: Option<Host>,
    pub(super) port: Option<u16>,
}

impl FromStr for TargetSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self { host: Some(Host::Unix(path.parse()?)), port: None });
        }
        if let Ok(ip) = text.parse() {
            return Ok(Self { host: Some(Host::Ip(ip)), port: None });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: Some(Host::Ip(address.ip())), port: Some(address.port()) });
        }
        let port = port_number(text).map_err(|_| {
            format!(
                "{text:?} is no target; write an IP address, a port, both as 127.0.0.1:5432, or unix:PATH"
            )
        })?;
        Ok(Self { host: None, port: Some(port) })
    }
}

/// `PORT`, `:PORT` or `IP:PORT`: where `forward` listens, by default on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LocalAddress(pub(super) SocketAddr);

impl FromStr for LocalAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self(address));
        }
        let digits = text.strip_prefix(':').unwrap_or(text);
        match digits.parse() {
            Ok(port) => Ok(Self(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))),
            Err(_) => Err(format!("{text:?} is no local address; write PORT or IP:PORT, for example 5432")),
        }
    }
}

/// `LOCAL=NAME:PORT` of `run --forward`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForwardSpec {
    pub(super) local: LocalAddress,
    pub(super) to: NamePort,
}

impl FromStr for ForwardSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, to) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} must be LOCAL=NAME:PORT, for example 5432=orders-db:5432"))?;
        Ok(Self { local: local.parse()?, to: to.parse()? })
    }
}

/// `all`, or groups separated by commas.
pub(super) fn audience(text: &str) -> Result<Audience, String> {
    if text == "all" {
        return Ok(Audience::All);
    }
    text.split(',').map(|group| parse(group.trim())).collect::<Result<_, _>>().map(Audience::Groups)
}

/// `KEY=VALUE`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} must be KEY=VALUE")),
    }
}

/// `KEY=VALUE` of a label that a certificate vouches for: one DNS label each.
pub(super) fn certified(text: &str) -> Result<(Label, Label), String> {
    let (key, value) = pair(text)?;
    Ok((parse(&key)?, parse(&value)?))
}

/// Whom `policy test` means; the daemon knows the nodes.
pub(super) fn caller(text: &str) -> Result<String, String> {
    match text.strip_prefix("group:") {
        Some(group) => parse::<GroupName>(group).map(drop)?,
        None => parse::<Label>(text)
            .map(drop)
            .map_err(|why| format!("{why}; write a node's name or id, or group:NAME"))?,
    }
    Ok(text.to_owned())
}

fn port_number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("{text:?} is no port; write a number from 1 to 65535")),
    }
}

fn port_name(text: &str) -> Result<PortName, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return port_number(text).map(PortName::from);
    }
    parse(text)
}

fn parse<T>(text: &str) -> Result<T, String>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_a_group_of_it_and_an_instance_have_ports() {
        for text in ["orders-db:5432", "orders-db.west:pg", "vm-b.orders-db.west:5432"] {
            assert_eq!(text.parse::<NamePort>().expect(text).to_string(), text);
        }
        let NamePort(to) = "vm-b.orders-db.west:pg".parse().expect("parses");
        assert_eq!(to.instance.expect("named").as_str(), "vm-b");
        assert_eq!((to.service.as_str(), to.port.as_str()), ("orders-db", "pg"));
    }

    #[test]
    fn what_is_no_name_with_a_port_says_what_to_write() {
        for (text, words) in [
            ("orders-db", "NAME:PORT"),
            ("a.b.c.d:1", "too many labels"),
            ("Orders:1", "a-z"),
            ("orders:0", "1 to 65535"),
            ("orders:70000", "1 to 65535"),
            ("orders:", "1 to 65535"),
            ("node:1", "reserved"),
        ] {
            let error = text.parse::<NamePort>().expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn ports_of_a_service_may_have_a_name_and_another_target() {
        let read = |text: &str| {
            let PortSpec(port) = text.parse().expect(text);
            (port.name.map(|name| name.to_string()), port.number, port.target_port)
        };
        assert_eq!(read("80"), (None, 80, None));
        assert_eq!(read("80:8080"), (None, 80, Some(8080)));
        assert_eq!(read("http:80"), (Some("http".to_owned()), 80, None));
        assert_eq!(read("http:80:8080"), (Some("http".to_owned()), 80, Some(8080)));
        assert!("a:b:c:d".parse::<PortSpec>().is_err());
        let PortSpec(port) = "dns:53:5353/udp".parse().expect("parses");
        assert_eq!((port.number, port.target_port, port.transport), (53, Some(5353), Protocol::Udp));
        assert!("80/sctp".parse::<PortSpec>().is_err());
        let own: OwnName = "dns:53/udp".parse().expect("parses");
        assert_eq!((own.port, own.transport), (Some(53), Protocol::Udp));
    }

    #[test]
    fn targets_and_local_addresses_take_what_people_type() {
        let target = |text: &str| text.parse::<TargetSpec>().map(|target| (target.host, target.port));
        assert_eq!(target("5432"), Ok((None, Some(5432))));
        assert_eq!(target("10.0.0.7"), Ok((Some("10.0.0.7".parse().expect("ip")), None)));
        assert_eq!(target("[::1]:80"), Ok((Some("::1".parse().expect("ip")), Some(80))));
        assert!(target("localhost").is_err());
        assert_eq!(target("unix:/run/db.sock"), Ok((Some("unix:/run/db.sock".parse().expect("path")), None)));
        assert!(target("unix:db.sock").is_err());
        for text in ["5432", ":5432", "127.0.0.1:5432"] {
            assert_eq!(text.parse::<LocalAddress>().expect(text).0.to_string(), "127.0.0.1:5432");
        }
    }

    #[test]
    fn forwards_services_and_audiences_parse() {
        let spec: ForwardSpec = "127.0.0.1:1=orders:5432".parse().expect("parses");
        assert_eq!(spec.to.to_string(), "orders:5432");
        assert!("1-orders:2".parse::<ForwardSpec>().is_err());
        let own: OwnName = "orders:5432".parse().expect("parses");
        assert_eq!((own.service.as_str(), own.port), ("orders", Some(5432)));
        assert!("orders.west:1".parse::<OwnName>().is_err());
        assert_eq!(audience("all"), Ok(Audience::All));
        assert!(matches!(audience("west, east"), Ok(Audience::Groups(groups)) if groups.len() == 2));
        assert!(audience("").is_err());
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(pair("=x").is_err());
    }
}
