//! The table of answers, over the pure functions.
//!
//! Owns: reading `tests/dns/table.txt`, whose head says what a row means and what else is checked. Must not know:
//! sockets. Driven by: its own test; `tests/dns/table.py` asks a real daemon the same.

use std::str::FromStr;

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::NS;
use hickory_proto::rr::{RData, Record, RecordType};
use hickory_server::net::xfer::Protocol;

use crate::fuzz::respond;
use crate::request::unreadable;
use crate::response::{UDP_PAYLOAD_BYTES, Writer};
use crate::scripted::{Scripted, table_mesh, table_zones, zone};
use crate::{Name, Question, Zones, answer};

const TABLE: &str = include_str!("../../tests/dns/table.txt");

#[test]
fn every_row_of_the_table_holds() {
    let (mesh, zones) = (table_mesh(), table_zones());
    let rows = TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut broken = Vec::new();
    let mut count = 0;
    for line in rows {
        count += 1;
        for writer in [Writer::HickoryServer, Writer::Own] {
            if let Err(why) = check(line, writer, &mesh, &zones) {
                broken.push(format!("{line}\n    {writer:?}: {why}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(count >= 80, "{count} rows");
}

fn check(line: &str, writer: Writer, mesh: &Scripted, zones: &Zones) -> Result<(), String> {
    let (query, wanted) = line.split_once("=>").ok_or("no =>")?;
    let words: Vec<&str> = query.split_whitespace().collect();
    let protocol = if words.contains(&"tcp") { Protocol::Tcp } else { Protocol::Udp };
    let (bytes, payload) = match words.as_slice() {
        ["bytes", items @ ..] => (assembled(items), None),
        [name, kind, options @ ..] => asked(&full(name, mesh), kind, options),
        _ => return Err("no question".to_owned()),
    };
    let reply = respond(&bytes, protocol, writer, mesh, zones, 7).map(|response| response.bytes);
    let reply = reply.or_else(|| unreadable(&bytes));
    let found = match &reply {
        None => "drop".to_owned(),
        Some(reply) => {
            let limit = payload.unwrap_or(512).clamp(512, UDP_PAYLOAD_BYTES);
            if protocol == Protocol::Udp && reply.len() > usize::from(limit) {
                return Err(format!("{} bytes, the client takes {limit}", reply.len()));
            }
            read(&bytes, reply)?
        }
    };
    let same = |(found, wanted): (&str, &str)| found == wanted || counts_match(found, wanted);
    let (named, wanted): (Vec<_>, Vec<_>) = wanted.split_whitespace().partition(|word| word.contains('='));
    let words: Vec<_> = found.split_whitespace().collect();
    if words.len() != wanted.len() || !words.into_iter().zip(wanted).all(same) {
        return Err(found);
    }
    named.into_iter().try_for_each(|word| check_names(reply.as_deref().unwrap_or_default(), word))
}

/// Compares names in a reply with a word behind the counts.
fn check_names(reply: &[u8], word: &str) -> Result<(), String> {
    let message = Message::from_vec(reply).map_err(|error| error.to_string())?;
    let (word, name) = word.split_once('=').ok_or("no =")?;
    let name = Name::from_ascii(name).map_err(|error| error.to_string())?;
    let owners = |records: &[Record]| records.iter().map(|record| record.name.clone()).collect::<Vec<_>>();
    let (found, holds) = match word {
        "soa" => (owners(&message.authorities), owners(&message.authorities) == [name]),
        "below" => {
            let targets = message.answers.iter().filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(srv.target.clone()),
                RData::NS(NS(server)) => Some(server.clone()),
                _ => None,
            });
            let found: Vec<_> = targets.chain(owners(&message.additionals)).collect();
            let holds = !found.is_empty() && found.iter().all(|found| name.zone_of(found));
            (found, holds)
        }
        _ => return Err(format!("no word {word}")),
    };
    if holds { Ok(()) } else { Err(format!("{word}: {found:?}")) }
}

fn counts_match(found: &str, wanted: &str) -> bool {
    found.contains('/')
        && found.split('/').zip(wanted.split('/')).all(|(count, limits)| {
            let (low, high) = limits.split_once('-').unwrap_or((limits, limits));
            let number = |text: &str| text.parse::<u32>().expect("a number");
            (number(low)..=number(high)).contains(&number(count))
        })
}

/// Reads a reply as the table writes it, after the checks that hold for every row.
fn read(query: &[u8], reply: &[u8]) -> Result<String, String> {
    let message = Message::from_vec(reply).map_err(|error| error.to_string())?;
    let [high, low] = [reply[2], reply[3]];
    if reply[..2] != query[..2] || high & 0xf8 != 0x80 | (query[2] & 0x78) || low & 0x40 != 0 {
        return Err("another id or opcode, no response, or a reserved bit".to_owned());
    }
    if !message.queries.is_empty() {
        let end = 12 + message.queries[0].name().iter().map(|label| 1 + label.len()).sum::<usize>() + 5;
        if reply[12..end] != query[12..end] {
            return Err("the question came back changed".to_owned());
        }
    }
    if let [record] = message.authorities.as_slice()
        && let RData::SOA(soa) = &record.data
        && (record.ttl, soa.minimum) != (1, 1)
    {
        return Err("a negative answer that may be kept for longer than a second".to_owned());
    }
    if let Some(edns) = &message.edns
        && (edns.version(), edns.max_payload()) != (0, UDP_PAYLOAD_BYTES)
    {
        return Err("another OPT".to_owned());
    }
    let bits = [(high & 4, "aa"), (high & 2, "tc"), (high & 1, "rd"), (low & 0x80, "ra"), (low & 0x20, "ad")];
    let bits = bits.into_iter().chain([(low & 0x10, "cd")]);
    let flags: Vec<_> = bits.filter(|(bit, _)| *bit != 0).map(|(_, word)| word).collect();
    let rcode = match u16::from(message.metadata.response_code) {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        16 => "BADVERS",
        _ => "another",
    };
    let counts =
        [message.queries.len(), message.answers.len(), message.authorities.len(), message.additionals.len()];
    Ok(format!(
        "{rcode} {} {} {}",
        if flags.is_empty() { "-".to_owned() } else { flags.join(",") },
        if message.edns.is_some() { "opt" } else { "-" },
        counts.map(|count| count.to_string()).join("/")
    ))
}

/// Returns the full name of one in the table.
fn full(name: &str, mesh: &Scripted) -> String {
    if let Some(of) = name.strip_prefix("{ptr:").and_then(|rest| rest.strip_suffix('}')) {
        let name = Name::from_ascii(full(of, mesh)).expect("valid");
        let found = answer(&Question { name, record_type: RecordType::A }, mesh, &zone(), 0);
        let RData::A(address) = &found.answers[0].data else { panic!("{of} has no address") };
        let [a, b, c, d] = address.0.octets();
        return format!("{d}.{c}.{b}.{a}.in-addr.arpa.");
    }
    match name {
        "@" => "mesh.internal.".to_owned(),
        _ if name.ends_with('.') => name.to_owned(),
        _ => format!("{name}.mesh.internal."),
    }
}

/// Returns a question in bytes, and the payload of its OPT.
fn asked(name: &str, kind: &str, words: &[&str]) -> (Vec<u8>, Option<u16>) {
    let value = |key: &str| {
        let mut found = words.iter().filter_map(|word| word.strip_prefix(key));
        found.find_map(|rest| rest.strip_prefix('=').or_else(|| rest.is_empty().then_some("")))
    };
    let number = |key: &str, otherwise: u16| {
        value(key).filter(|text| !text.is_empty()).map_or(otherwise, |text| text.parse().expect("a number"))
    };
    let bit = |word: &str, bit: u16| if words.contains(&word) { bit } else { 0 };
    let flags = 0x0100 ^ bit("-rd", 0x0100) | bit("ad", 0x20) | bit("cd", 0x10) | bit("z", 0x40);
    let payload = value("edns").is_some().then(|| number("edns", 1232));
    let kind = kind.strip_prefix("TYPE").map_or_else(
        || u16::from(RecordType::from_str(kind).expect("a type")),
        |number| number.parse().expect("a number"),
    );
    let header = [0x1234, flags | number("opcode", 0) << 11, 1, 0, 0, payload.is_some().into()];
    let mut bytes: Vec<u8> = header.iter().flat_map(|field| field.to_be_bytes()).collect();
    for label in name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).expect("short"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend([kind.to_be_bytes(), number("class", 1).to_be_bytes()].concat());
    if let Some(payload) = payload {
        let options: Vec<u8> =
            words.iter().filter_map(|word| word.strip_prefix("option=")).flat_map(option).collect();
        let unknown =
            value("ednsflags").map_or(0, |text| u16::from_str_radix(text, 16).expect("hexadecimal"));
        bytes.extend([0, 0, 41]);
        bytes.extend(payload.to_be_bytes());
        bytes.extend((number("version", 0)).to_be_bytes());
        bytes.extend((bit("do", 0x8000) | unknown).to_be_bytes());
        bytes.extend(u16::try_from(options.len()).expect("short").to_be_bytes());
        bytes.extend(options);
    }
    (bytes, payload)
}

/// Returns the bytes of `CODE:HEX`.
fn option(text: &str) -> Vec<u8> {
    let (code, data) = text.split_once(':').expect("CODE:HEX");
    let data = hexadecimal(data);
    let code: u16 = code.parse().expect("a number");
    [&code.to_be_bytes()[..], &u16::try_from(data.len()).expect("short").to_be_bytes(), &data].concat()
}

/// Returns the bytes of digits and 'labels'.
fn assembled(items: &[&str]) -> Vec<u8> {
    let items = items.iter().filter(|item| **item != "tcp");
    items
        .flat_map(|item| match item.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
            Some(label) => [&[u8::try_from(label.len()).expect("short")], label.as_bytes()].concat(),
            None => hexadecimal(item),
        })
        .collect()
}

fn hexadecimal(digits: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
    (0..digits.len()).step_by(2).map(byte).collect()
}
