//! Tokens and the addresses in them: their order, and what a join says that reaches nobody.
//!
//! Owns: machines with public and private addresses, issuers that are silent, gone, or of another mesh. Must not know: how
//! addresses are ordered. Driven by: `evidence`. Needs root: each machine is a network namespace.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Ci, Needs, Row, Run};
use crate::netns::{Namespace, Segment};
use crate::process::Node;
use crate::promise;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "7.1-token-order",
        promise: "token create names what other networks can use first, then what --advertise names, then private addresses, prints them and warns with --address when there is nothing for other networks; an address of the deny list is refused with its reason",
        sabotage: "the machine has lost its public address",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: token_order,
    },
    Row {
        name: "7.1-join-failed",
        promise: "A join that reaches no issuer ends within 8 s with one line that names each address, over UDP and TCP, and how it failed, no answer, refused, wrong identity, no route or never tried, and that the token is unused; then the same token admits",
        sabotage: "another machine uses the token meanwhile",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: join_failed,
    },
];

const SEEN: Duration = Duration::from_secs(20);
const ENDED: Duration = Duration::from_secs(8);

fn addresses(created: &Value) -> Vec<&str> {
    created["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Gives the first machine a public address and another private one.
fn dress(machine: &Namespace) -> Result<()> {
    machine.ip(&["addr", "add", "203.0.113.9/24", "dev", "eth0"])?;
    machine.ip(&["link", "add", "lan", "type", "bridge"])?;
    machine.ip(&["addr", "add", "192.168.7.5/24", "dev", "lan"])?;
    machine.ip(&["link", "set", "lan", "up"])
}

fn token_order(run: &Run) -> Result<String> {
    let segment = Segment::new(2)?;
    let [a, b] = segment.machines() else { unreachable!("two machines were made") };
    dress(a)?;
    run.scenario(|lab| {
        let mut public = lab.node_in("public", a)?.with("GOSSAMER_ADVERTISE", "172.20.0.9");
        if run.sabotaged {
            a.ip(&["addr", "del", "203.0.113.9/24", "dev", "eth0"])?;
        }
        public.init("west")?;
        let created = public.json(&["token", "create"])?;
        let list = addresses(&created);
        let (first, mut last) =
            (&list[..2.min(list.len())], list.iter().skip(2).copied().collect::<Vec<_>>());
        last.sort_unstable();
        promise!(first == ["203.0.113.9:4677", "172.20.0.9:4677"], "a token names {list:?}");
        promise!(last == ["10.77.0.10:4677", "192.168.7.5:4677"], "a token names {list:?}");
        let said = public.cli(&["token", "create"])?.stderr;
        let is_shown = list.iter().all(|address| said.contains(&format!("udp {address}")));
        promise!(is_shown && !said.contains("warning"), "token create says {said}");

        let mut private = lab.node_in("private", b)?;
        private.init("west")?;
        let said = private.cli(&["token", "create"])?.stderr;
        promise!(
            said.contains("10.77.0.11:4677") && said.contains("warning") && said.contains("--address"),
            "with a private address only it says {said}"
        );
        let said = private.cli(&["token", "create", "--address", "203.0.113.9:4677"])?.stderr;
        promise!(!said.contains("warning"), "with --address it says {said}");
        for bad in ["169.254.169.254:80", "224.0.0.1:4677", "127.240.0.9:53", "0.0.0.0:4677"] {
            let refused = private.cli(&["token", "create", "--address", bad])?;
            promise!(
                refused.code == Some(2) && refused.stderr.contains(bad) && refused.stdout.is_empty(),
                "{bad} ends with {:?}: {}",
                refused.code,
                refused.stderr
            );
        }
        Ok(format!(
            "{} in this order; a warning where all are private, 4 of 4 of the deny list refused",
            list.join(", ")
        ))
    })
}

fn join_failed(run: &Run) -> Result<String> {
    let segment = Segment::new(4)?;
    let [a, b, c, d] = segment.machines() else { unreachable!("four machines were made") };
    run.scenario(|lab| {
        let mut issuer = lab.node_in("issuer", a)?;
        issuer.init("west")?;
        let mut stranger = lab.node_in("stranger", b)?;
        stranger.init("west")?;
        // Once its daemon is gone the issuer's machine says so; this one says nothing.
        c.isolate()?;
        let at = |index: u8| format!("{}:4677", Segment::address(index));
        let list = [at(0), at(1), at(2), "[2001:db8:9::1]:4677".to_owned()];
        let arguments: Vec<&str> = list.iter().flat_map(|address| ["--address", address.as_str()]).collect();
        let token = issuer.token(&arguments)?;
        issuer.stop()?;
        let joiner = lab.node_in("joiner", d)?;
        let first = failed(&joiner, &token, &list)?;
        let again = failed(&joiner, &token, &list)?;
        promise!(!joiner.state_dir().join("identity.json").exists(), "an identity was written");
        issuer.run()?;
        if run.sabotaged {
            c.flush_rules()?;
            let other = lab.node_in("other", c)?;
            other.ok(&["join", &token, "--node", "other", "--no-start"])?;
        }
        let mut joiner = joiner;
        joiner.join(&token)?;
        joiner.sees("issuer", "alive", SEEN)?;
        let tokens = issuer.json(&["token", "list"])?;
        let used = tokens.as_array().into_iter().flatten().filter(|row| row["used"] == 1).count();
        promise!(used == 1, "the issuer lists {tokens}");
        Ok(format!(
            "4 of 4 addresses named with their reason after {:.1} and {:.1} s; the same token admitted then",
            first.as_secs_f64(),
            again.as_secs_f64()
        ))
    })
}

/// Joins in vain, and returns how long that took.
fn failed(joiner: &Node, token: &str, list: &[String; 4]) -> Result<Duration> {
    let began = Instant::now();
    let said = joiner.cli(&["join", token, "--node", "joiner"])?;
    let took = began.elapsed();
    let line = said.stderr.lines().find(|line| line.starts_with("error: ")).context("an error")?;
    let named = [
        format!("udp {} (refused", list[0]),
        format!("udp {} (wrong identity", list[1]),
        format!("tcp {} (refused", list[0]),
        format!("tcp {} (", list[1]),
        format!("udp {} (no answer", list[2]),
        format!("tcp {} (no answer", list[2]),
        format!("udp {} (no route", list[3]),
        "shown to nobody and is unused".to_owned(),
        "--address".to_owned(),
    ];
    let missing: Vec<_> = named.iter().filter(|word| !line.contains(word.as_str())).collect();
    promise!(
        said.code == Some(1) && missing.is_empty(),
        "{:?} without {missing:?}: {}",
        said.code,
        said.stderr
    );
    promise!(took <= ENDED, "it took {took:?}");
    Ok(took)
}
