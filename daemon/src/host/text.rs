//! The files that resolvers read.
//!
//! Owns: each resolver's words for "questions for these domains go there". Must not know: where files lie.
//! Driven by: `plan`.

use std::fmt::Write as _;
use std::net::SocketAddr;

/// The first line of each file: who wrote it, and how it goes again.
pub(super) const HEADER: &str =
    "# Written by `gossamer host setup`; `sudo gossamer host undo` takes it back.\n";

/// A drop-in of systemd-resolved (resolved.conf(5)): `~` makes a domain one for routing, not for searching.
pub(super) fn resolved(domains: &[String], dns: SocketAddr) -> String {
    let domains: Vec<_> = domains.iter().map(|domain| format!("~{domain}")).collect();
    format!("{HEADER}[Resolve]\nDNS={dns}\nDomains={}\n", domains.join(" "))
}

/// A file of dnsmasq (dnsmasq(8)). The addresses are of this host, which `stop-dns-rebind` would drop.
pub(super) fn dnsmasq(domains: &[String], dns: SocketAddr) -> String {
    let (ip, port) = (dns.ip(), dns.port());
    let mut text = HEADER.to_owned();
    for domain in domains {
        let _ = writeln!(text, "server=/{domain}/{ip}#{port}\nrebind-domain-ok=/{domain}/");
    }
    text
}

/// A file of unbound (unbound.conf(5)): nothing proves these domains from the root, they lead to addresses of
/// this host, and unbound has an empty zone of its own for reverse names of 127/8.
pub(super) fn unbound(domains: &[String], dns: SocketAddr) -> String {
    let (ip, port) = (dns.ip(), dns.port());
    let mut text = format!("{HEADER}server:\n");
    if ip.is_loopback() {
        text.push_str("    do-not-query-localhost: no\n");
    }
    for domain in domains {
        let _ = write!(
            text,
            "    domain-insecure: \"{domain}\"\n    private-domain: \"{domain}\"\n    local-zone: \"{domain}.\" transparent\n"
        );
    }
    for domain in domains {
        let _ = write!(text, "forward-zone:\n    name: \"{domain}\"\n    forward-addr: {ip}@{port}\n");
    }
    text
}

/// `/etc/resolv.conf` with this daemon first; every line that was there stays. A file made by this function gives
/// what its original would.
pub(super) fn resolv_conf(before: &str, dns: SocketAddr) -> String {
    let ours = format!("nameserver {}", dns.ip());
    let mut text = HEADER.to_owned();
    let mut named = false;
    let is_server = |line: &str| line.split_ascii_whitespace().next() == Some("nameserver");
    let original = before.strip_prefix(HEADER);
    let mut skips = original.is_some();
    for line in original.unwrap_or(before).lines() {
        if skips && is_server(line) {
            skips = false;
            continue;
        }
        if is_server(line) && !named {
            let _ = writeln!(text, "{ours}");
            named = true;
        }
        let _ = writeln!(text, "{line}");
    }
    if !named {
        let _ = writeln!(text, "{ours}");
    }
    text
}
