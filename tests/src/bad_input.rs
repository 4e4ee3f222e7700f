//! Bad input: each gets one clear line with cause and fix, the right exit code, and leaves nothing half-written.
//!
//! Owns: the cases, one for each line of the issue. Must not know: how input is checked.
//! Driven by: `tests/tests/bad_input.rs` (without root) and the row `2.0-bad-input`.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::Instant;

use gossamer_wire::frame::ALPN;
use gossamer_wire::token::Token;

use crate::dnsq::RecordType;
use crate::process::{Finished, Lab, Node};
use crate::promise;
use crate::quic::{Credentials, talk, talk_garbage};
use crate::targets::{Manner, while_serving};
use crate::wait::until;

/// A case: its name and its steps.
pub type Case = (&'static str, fn(&Lab) -> Result<()>);

/// Every case.
pub const CASES: &[Case] = &[
    ("wrong-token", wrong_token),
    ("mistyped-token", mistyped_token),
    ("expired-token", expired_token),
    ("used-token", used_token),
    ("foreign-token", foreign_token),
    ("token-of-another-root", token_of_another_root),
    ("joined-elsewhere", joined_elsewhere),
    ("mesh-port-in-use", mesh_port_in_use),
    ("dns-port-taken", dns_port_taken),
    ("both-dns-ports-taken", both_dns_ports_taken),
    ("upstream-that-comes-back", upstream_that_comes_back),
    ("loose-state-directory", loose_state_directory),
    ("one-state-directory-twice", one_state_directory_twice),
    ("one-pool-twice", one_pool_twice),
    ("unknown-key", unknown_key),
    ("zone-of-others", zone_of_others),
    ("name-that-is-no-label", name_that_is_no_label),
    ("nobody-listens", nobody_listens),
    ("stolen-port", stolen_port),
    ("hostile-bytes", hostile_bytes),
    ("no-daemon", no_daemon),
];

const TRAVEL: Duration = Duration::from_secs(15);
/// Exit codes of design section 13.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const UNREACHABLE: i32 = 3;
const DENIED: i32 = 5;

fn issuer(lab: &Lab) -> Result<Node> {
    let mut issuer = lab.node("issuer")?;
    issuer.init("west")?;
    Ok(issuer)
}

/// Checks that a command was refused with a code and one short text that holds all these words.
fn refused(finished: &Finished, code: i32, words: &[&str]) -> Result<()> {
    let said = finished.stderr.trim();
    promise!(finished.code == Some(code), "it ended with {:?} and not with {code}: {said}", finished.code);
    // What clap refuses comes with the usage below it.
    let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
    promise!(errors == 1 && said.lines().count() <= 8, "that is not one clear line: {said:?}");
    promise!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "it panicked: {said}");
    for word in words {
        promise!(said.contains(word), "{said:?} does not say {word:?}");
    }
    Ok(())
}

/// Checks that a failed join or init has left no identity behind.
fn untouched(node: &Node) -> Result<()> {
    promise!(!node.state_dir().join("identity.json").exists(), "an identity was written all the same");
    Ok(())
}

fn join_refused(node: &Node, token: &str, code: i32, words: &[&str]) -> Result<()> {
    let finished = node.cli(&["join", token, "--node", &node.name])?;
    refused(&finished, code, words)?;
    promise!(
        !finished.stderr.contains("gsm1_") || token.len() < 30,
        "the token is shown: {}",
        finished.stderr
    );
    untouched(node)
}

fn wrong_token(lab: &Lab) -> Result<()> {
    join_refused(&lab.node("joiner")?, "hunter2", USAGE, &["gsm1_"])
}

fn mistyped_token(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let mut joiner = lab.node("joiner")?;
    let token = issuer.token(&[])?;
    let last = if token.ends_with('a') { 'b' } else { 'a' };
    let mistyped = format!("{}{last}", &token[..token.len() - 1]);
    join_refused(&joiner, &mistyped, USAGE, &["mistyped", "copy"])?;
    join_refused(&joiner, &token[..token.len() - 7], USAGE, &["mistyped", "copy"])?;
    joiner.join(&token)
}

fn expired_token(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let joiner = lab.node("joiner")?;
    let token = issuer.token(&["--ttl", "1s"])?;
    let made = Instant::now();
    // Tokens end with a whole second, so that this one may live a little longer than its second.
    until("the end of the token", Duration::from_secs(5), || {
        Ok(made.elapsed() > Duration::from_millis(2_100))
    })?;
    join_refused(&joiner, &token, DENIED, &["expired", "token create"])
}

fn used_token(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let token = issuer.token(&[])?;
    let mut first = lab.node("first")?;
    first.join(&token)?;
    join_refused(&lab.node("second")?, &token, DENIED, &["used", "token create"])
}

fn foreign_token(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let token: Token = issuer.token(&[])?.parse()?;
    let forged = Token::build(token.grant().clone(), |_| [7; 64])?;
    join_refused(&lab.node("joiner")?, forged.reveal(), DENIED, &["changed", "get a new one"])
}

fn token_of_another_root(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let mut other = lab.node("other")?;
    other.init("west")?;
    let address = issuer.mesh_address()?.to_string();
    let token = other.token(&["--address", &address])?;
    join_refused(
        &lab.node("joiner")?,
        &token,
        FAILED,
        &["wrong identity", "shown to nobody and is unused", "--address"],
    )
}

fn joined_elsewhere(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let member = lab.node("member")?;
    member.ok(&["init", "--group", "east", "--node", "member", "--no-start"])?;
    let before = fs::read(member.state_dir().join("identity.json"))?;
    let finished = member.cli(&["join", &issuer.token(&[])?, "--node", "member"])?;
    refused(&finished, FAILED, &["already", "--state-dir"])?;
    promise!(fs::read(member.state_dir().join("identity.json"))? == before, "the identity was replaced");
    Ok(())
}

fn mesh_port_in_use(lab: &Lab) -> Result<()> {
    let node = lab.node("late")?;
    let address = node.mesh_address()?;
    let _taken = UdpSocket::bind(address)?;
    let finished = node.cli(&["init", "--group", "west", "--node", "late"])?;
    refused(&finished, FAILED, &[&address.port().to_string(), "in use", "--listen"])
}

/// Port 53 of the pool's DNS address is denied to a user, and in use for root.
fn dns_port_taken(lab: &Lab) -> Result<()> {
    let mut node = lab.node("named")?;
    let pool = node.environment().into_iter().find(|(name, _)| name == "GOSSAMER_VIP_POOL");
    let dns = pool.context("a pool")?.1.replace(".0.0/16", ".0.53:53");
    let _taken = UdpSocket::bind(&dns);
    node.init("west")?;
    let address = node.dns_address()?;
    promise!(address.port() == 4653, "DNS is answered at {address}");
    let status = node.status()?;
    let finding = status["findings"].to_string();
    promise!(finding.contains("53") && finding.contains("DNS"), "status does not say so: {finding}");
    node.resolver()?.ask("mesh.internal", RecordType::SOA).map(drop)
}

fn both_dns_ports_taken(lab: &Lab) -> Result<()> {
    let node = lab.node("named")?;
    // Port 53 may be denied to this user, which is as good as taken.
    let ip = dns_ip(&node)?;
    let (_first, _second) = (UdpSocket::bind((ip, 53)), UdpSocket::bind((ip, 4_653))?);
    let finished = node.cli(&["init", "--group", "west", "--node", "named"])?;
    refused(&finished, FAILED, &["neither on port 53 nor on 4653", "--dns"])
}

fn upstream_that_comes_back(lab: &Lab) -> Result<()> {
    let node = lab.node("circle")?;
    let own = dns_ip(&node)?.to_string();
    for (upstream, code, words) in [
        ("127.0.0.53", USAGE, &["dns.upstream", "systemd-resolved", "resolvectl dns"][..]),
        ("127.0.0.54:53", USAGE, &["dns.upstream", "systemd-resolved", "resolvectl dns"]),
        (&own, FAILED, &["dns.upstream", "names would go in a circle", "DNS server of your network"]),
    ] {
        fs::write(node.config_file(), format!("[dns]\nupstream = [\"{upstream}\"]\n"))?;
        refused(&node.cli(&["init", "--group", "west", "--node", "circle"])?, code, words)?;
    }
    Ok(())
}

/// Returns where a node on loopback answers DNS.
fn dns_ip(node: &Node) -> Result<Ipv4Addr> {
    let pool = node.environment().into_iter().find(|(name, _)| name == "GOSSAMER_VIP_POOL");
    Ok(pool.context("a pool")?.1.replace(".0.0/16", ".0.53").parse()?)
}

fn loose_state_directory(lab: &Lab) -> Result<()> {
    let node = lab.node("loose")?;
    fs::create_dir(node.state_dir())?;
    fs::set_permissions(node.state_dir(), fs::Permissions::from_mode(0o755))?;
    let finished = node.cli(&["init", "--group", "west", "--node", "loose"])?;
    refused(&finished, FAILED, &["0755", "chmod 0700"])?;
    promise!(fs::read_dir(node.state_dir())?.next().is_none(), "something was written into it");
    Ok(())
}

fn one_state_directory_twice(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let state = issuer.state_dir().display().to_string();
    let second = lab.node("second")?.with("GOSSAMER_STATE_DIR", &state);
    refused(&second.cli(&["run"])?, FAILED, &["in use by another gossamer daemon", "--state-dir"])?;
    issuer.status().map(drop)
}

fn one_pool_twice(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let pool = issuer.environment().into_iter().find(|(name, _)| name == "GOSSAMER_VIP_POOL");
    let second = lab.node("second")?.with("GOSSAMER_VIP_POOL", &pool.context("a pool")?.1);
    let finished = second.cli(&["init", "--group", "west", "--node", "second"])?;
    refused(&finished, FAILED, &["pool", "in use", "--slot"])?;
    issuer.status().map(drop)
}

fn unknown_key(lab: &Lab) -> Result<()> {
    let node = lab.node("typo")?;
    fs::write(node.config_file(), "listn = \"127.0.0.1:4677\"\n")?;
    let finished = node.cli(&["init", "--group", "west", "--node", "typo"])?;
    refused(&finished, USAGE, &["listn", "listen", "gossamer.toml"])?;
    untouched(&node)
}

/// Zones, suffixes and aliases that would take names from others.
fn zone_of_others(lab: &Lab) -> Result<()> {
    let node = lab.node("zoned")?;
    for (setting, place, why) in [
        ("[dns]\nzone = \"local\"", "dns.zone", "mDNS"),
        ("[dns]\nzone = \"internal\"", "dns.zone", "every private network"),
        ("[dns]\nzone = \"cluster.local\"", "dns.zone", "Kubernetes"),
        ("[dns]\nzone = \"localhost\"", "dns.zone", "this machine"),
        ("[dns]\nzones = [\"240.127.in-addr.arpa\"]", "dns.zones", "reverse names"),
        ("[dns]\nzones = [\"a.mesh.internal\"]", "dns.zones", "lies in the zone \"mesh.internal\""),
        ("[dns]\nfqdn_suffixes = [\"local\"]", "dns.fqdn_suffixes", "mDNS"),
        ("[dns]\nfqdn_suffixes = [\"west.mesh.internal\"]", "dns.fqdn_suffixes", "zone mesh.internal"),
        ("[alias]\n\"pg.mesh.internal\" = \"db\"", "alias", "zone mesh.internal"),
        ("[alias]\n\"*.corp.example\" = \"db\"", "alias", "a-z"),
    ] {
        fs::write(node.config_file(), format!("{setting}\n"))?;
        let finished = node.cli(&["init", "--group", "west", "--node", "zoned"])?;
        refused(&finished, USAGE, &["gossamer.toml", place, why]).with_context(|| setting.to_owned())?;
        untouched(&node)?;
    }
    Ok(())
}

fn name_that_is_no_label(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    for name in ["Orders_DB", "a.b", "a-", "node", "caf\u{e9}"] {
        refused(&issuer.cli(&["expose", &format!("{name}:80")])?, USAGE, &["name"])?;
    }
    let services = issuer.json(&["services"])?;
    promise!(services.as_array().is_some_and(Vec::is_empty), "something is exported: {services}");
    refused(&lab.node("other")?.cli(&["init", "--node", "not a label"])?, USAGE, &["name"])
}

fn nobody_listens(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let finished = issuer.cli(&["expose", &format!("orders:{port}")])?;
    promise!(finished.code == Some(0), "it is refused: {}", finished.stderr);
    let said = format!("{}{}", finished.stdout, finished.stderr);
    promise!(said.contains("listen") && said.contains(&port.to_string()), "there is no warning: {said}");
    Ok(())
}

/// A program on the wildcard has the port before the name is used.
fn stolen_port(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    while_serving(Manner::Greets("right\n"), |target| {
        let thief = TcpListener::bind("0.0.0.0:0")?;
        let port = thief.local_addr()?.port();
        issuer.ok(&["expose", &format!("orders:{port}"), &format!("127.0.0.1:{target}")])?;
        let resolver = issuer.resolver()?;
        let name = "orders.mesh.internal";
        let (answer, _) = resolver.wait(name, RecordType::A, TRAVEL, |answer| answer.is_nodata())?;
        let reason = answer.reason().unwrap_or_default();
        promise!(reason.contains(&port.to_string()), "the answer does not say why: {reason:?}");
        let findings = issuer.status()?["findings"].to_string();
        promise!(findings.contains(&port.to_string()), "status does not name the port: {findings}");
        drop(thief);
        resolver.address(name, TRAVEL).map(drop)
    })
}

/// Bytes of a stranger, and of a member that sends what is no frame.
fn hostile_bytes(lab: &Lab) -> Result<()> {
    let issuer = issuer(lab)?;
    let address = issuer.mesh_address()?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    for length in [0, 1, 25, 100, 1_200, 1_472] {
        for fill in [0, 0x40, 0x80, 0xc0, 0xff] {
            socket.send_to(&vec![fill; length], address)?;
        }
    }
    talk(address, &Credentials::None, ALPN)?;
    let joiner = lab.node("joiner")?;
    joiner.ok(&["join", &issuer.token(&[])?, "--node", "joiner", "--no-start"])?;
    let member = Credentials::of_member(&joiner.state_dir())?;
    let before = closed(&issuer)?;
    let heard = talk_garbage(address, &member)?;
    promise!(heard.closed.is_some(), "the connection stays open after bytes that are no frame");
    until("a counter of closed connections", TRAVEL, || Ok(closed(&issuer)? > before))?;
    promise!(!issuer.log().contains("panicked"), "a task panicked: {}", issuer.log());
    Ok(())
}

/// Returns how many connections the daemon has closed for what the peer sent.
fn closed(node: &Node) -> Result<u64> {
    let status = node.status()?;
    let counters = status["counters"].as_object().context("counters")?;
    counters["gossamer_bad_frames_total"].as_u64().context("the counter of bad frames")
}

fn no_daemon(lab: &Lab) -> Result<()> {
    let node = lab.node("nobody")?;
    for command in ["status", "nodes", "services"] {
        refused(&node.cli(&[command])?, UNREACHABLE, &["gossamer"])?;
    }
    refused(&node.cli(&["frobnicate"])?, USAGE, &["frobnicate"])
}
