//! What was acknowledged survives kill -9.
//!
//! Owns: a stream of registrations, the model of what must be there, the kills. Must not know: files.
//! Driven by: `evidence`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::time::Instant;

use super::{Ci, Needs, Row, Run};
use crate::api::Api;
use crate::dnsq::{RecordType, Resolver, ResponseCode};
use crate::process::Node;
use crate::promise;
use crate::targets::{Manner, while_serving};
use crate::wait::until;

pub(super) const ROWS: &[Row] = &[Row {
    name: "2.6-kill-restart",
    promise: "One daemon killed with -9 and restarted at 200 random instants under 50 registrations a second: every acknowledged expose is answered after it, nothing withdrawn is",
    sabotage: "each restart finds the state directory of before the registrations",
    needs: Needs::Nothing,
    ci: Ci::Runs,
    check: kill_restart,
}];

/// Registrations a second.
const RATE: u32 = 50;
/// Different services: fewer than a node may register (512).
const NAMES: usize = 150;
/// How long a restarted daemon may take to answer a name.
const ANSWERED: Duration = Duration::from_secs(10);

/// What is known of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// `expose` was acknowledged last.
    Exposed,
    /// `withdraw` was acknowledged last.
    Withdrawn,
    /// The last request was not answered: both are right.
    Unknown,
}

type Model = BTreeMap<String, Known>;

fn kill_restart(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut node = lab.node("solo")?;
        node.init("default")?;
        while_serving(Manner::Greets("x"), |port| {
            let mut random = StdRng::seed_from_u64(2_006);
            let mut model = Model::new();
            let (mut acknowledged, rounds) = (0, run.times(200, 20));
            let old = lab.dir().join("old-state");
            for round in 0..rounds {
                if run.sabotaged {
                    copy_dir(&node.state_dir(), &old)?;
                }
                acknowledged += round_of_load(&mut node, port, &mut model, &mut random)?;
                if run.sabotaged {
                    fs::remove_dir_all(node.state_dir())?;
                    fs::rename(&old, node.state_dir())?;
                }
                node.run()?;
                judge(&node, &model).with_context(|| format!("after kill {}", round + 1))?;
            }
            let exposed = model.values().filter(|known| **known == Known::Exposed).count();
            Ok(format!("{rounds} kills, {acknowledged} acknowledged registrations, 0 lost, 0 came back, {exposed} live at the end"))
        })
    })
}

/// Registers at [`RATE`] until a random instant, then kills the daemon in the middle of it. Returns how many
/// requests were acknowledged.
fn round_of_load(node: &mut Node, port: u16, model: &mut Model, random: &mut StdRng) -> Result<usize> {
    let socket = node.socket();
    let instant = Duration::from_micros(random.random_range(50_000..800_000));
    let mut choices = StdRng::seed_from_u64(random.random());
    let killed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| registrations(&socket, port, model, &mut choices, &killed));
        // One more comes through the command line, as a person's would.
        let by_hand = format!("by-hand-{}", random.random_range(0..20));
        let finished = node.cli(&["expose", &format!("{by_hand}:{port}")])?;
        std::thread::sleep(instant); // the random instant is the subject, nothing is waited for
        node.kill9()?;
        killed.store(true, Ordering::Relaxed);
        let acknowledged = load.join().expect("the load does not panic")?;
        let known = if finished.code == Some(0) { Known::Exposed } else { Known::Unknown };
        Ok((acknowledged, by_hand, known))
    })
    .map(|(acknowledged, by_hand, known)| {
        model.insert(by_hand, known);
        acknowledged
    })
}

/// Exposes and withdraws random services until the daemon is gone.
fn registrations(
    socket: &Path,
    port: u16,
    model: &mut Model,
    random: &mut StdRng,
    killed: &AtomicBool,
) -> Result<usize> {
    let mut api = Api::connect(socket)?;
    let mut acknowledged = 0;
    let mut next = Instant::now();
    loop {
        let service = format!("s{}", random.random_range(0..NAMES));
        let exposes = model.get(&service) != Some(&Known::Exposed);
        let sent = if exposes { expose(&mut api, &service, port) } else { withdraw(&mut api, &service) };
        match sent {
            Ok((200..=299, _)) => {
                model.insert(service, if exposes { Known::Exposed } else { Known::Withdrawn });
                acknowledged += 1;
            }
            Ok((code, body)) => promise!(false, "registering {service} was answered with {code}: {body}"),
            Err(error) => {
                model.insert(service, Known::Unknown);
                // The answer may break a moment before the kill is reported.
                let gone = until("the kill", Duration::from_secs(5), || Ok(killed.load(Ordering::Relaxed)));
                return gone.map(|_| acknowledged).with_context(|| format!("{error:#}"));
            }
        }
        next += Duration::from_secs(1) / RATE;
        std::thread::sleep(next.saturating_duration_since(Instant::now())); // the rate is the subject
    }
}

fn expose(api: &mut Api, service: &str, port: u16) -> Result<(u16, String)> {
    api.request("POST", "/v1/expose", &json!({ "service": service, "ports": [{ "number": port }] }))
}

fn withdraw(api: &mut Api, service: &str) -> Result<(u16, String)> {
    api.request("POST", "/v1/withdraw", &json!({ "service": service }))
}

/// Asks for every service of the model.
fn judge(node: &Node, model: &Model) -> Result<()> {
    let resolver = node.resolver()?;
    let all = |wanted| model.iter().filter(move |(_, known)| **known == wanted);
    for (service, _) in all(Known::Withdrawn) {
        absent(&resolver, &format!("{service}.mesh.internal"))?;
    }
    for (service, _) in all(Known::Exposed) {
        resolver.address(&format!("{service}.mesh.internal"), ANSWERED)?;
    }
    Ok(())
}

/// A withdrawn service must not be answered at any moment after the restart, so it is asked for once; how long
/// it comes back tells where to look.
fn absent(resolver: &Resolver, name: &str) -> Result<()> {
    let answer = resolver.ask(name, RecordType::A)?;
    if answer.code() != ResponseCode::NXDomain {
        let lasts = resolver
            .gone(name, ANSWERED)
            .map_or_else(|_| "for ever".to_owned(), |for_| format!("for {for_:?}"));
        promise!(false, "{name} was withdrawn, and is answered with {answer} {lasts}");
    }
    Ok(())
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
