//! Joining while the path is cut, somebody dies, or somebody guesses: on real daemons.
//!
//! Owns: the points of the cuts, the lies of a fake issuer, the guesses. Must not know: how a ledger looks on disk.
//! Driven by: `evidence`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use gossamer_wire::TokenId;
use gossamer_wire::join::{JoinReply, Refusal};
use gossamer_wire::token::{Grant, Token};

use super::{Ci, Needs, Row, Run};
use crate::fake::{Told, while_posing};
use crate::forge::Forge;
use crate::middle::{Lost, Middle, Traffic, Way, When};
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{Credentials, ask_to_join, identity_of};
use crate::wait::{until, wait_for};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "4.1-join-cut",
        promise: "A join that is cut at 100 points, after each datagram of either way and at random, or whose joiner or issuer is killed with -9 then: tried again, the same key ends joined exactly once, with one use in the ledger, and another key is refused",
        sabotage: "what the joiner wrote is lost between its tries",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: join_cut,
    },
    Row {
        name: "4.1-fake-issuer",
        promise: "A fake issuer never sees a byte of a token: below another root, below one of the same name, a member, an issuer made by an issuer, the genuine chain without its key, and on the path to the genuine one",
        sabotage: "the fake has the genuine issuer's key",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: fake_issuer,
    },
    Row {
        name: "4.1-claims",
        promise: "Service patterns, FQDN suffixes, certified labels, the relay role and the ephemeral lifetime of a token stand in the certificate, are seen by others, and stay through two renewals; the node may export no service outside of them",
        sabotage: "the token grants no claims",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: claims,
    },
    Row {
        name: "4.1-brute-force",
        promise: "Of wrong tokens an issuer judges five a minute from one source and a hundred from all, then one from each new source; a node with a good token joins meanwhile, and none of the wrong ones admits",
        sabotage: "each guess comes from a source of its own",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: brute_force,
    },
];

/// Points in all.
const POINTS: usize = 100;
/// Of these the joiner is killed at so many, and the issuer.
const JOINER_KILLED: usize = 20;
const ISSUER_KILLED: usize = 8;
/// Meshes that points are shared among, each with its joiners at the same time: an issuer serves eight at once.
const MESHES: usize = 3;
const AT_ONCE: usize = 8;
/// Longest wait for a joiner that has lost its issuer; it gives an address up after 5 s.
const GIVES_UP: Duration = Duration::from_secs(20);
/// What a joiner does after the last datagram: it writes files.
const WRITES: Duration = Duration::from_millis(40);

/// Who is hit at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hit {
    Path,
    Joiner,
    Issuer,
}

/// One point.
#[derive(Clone, Copy, Debug)]
struct Point {
    number: usize,
    hit: Hit,
    when: When,
    lost: Lost,
}

/// How far the first try of a join came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Came {
    /// The issuer wrote nothing.
    Nowhere,
    /// The issuer wrote the use, the joiner did not get to its identity.
    Between,
    /// All the way.
    There,
}

fn join_cut(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let traffic = undisturbed(lab)?;
        let points = points(&traffic);
        let (killing, others): (Vec<_>, Vec<_>) = points.iter().partition(|point| point.hit == Hit::Issuer);
        let came = Mutex::new(BTreeMap::new());
        let failed = Mutex::new(None);
        let play = |mesh: usize, share: &[Point], at_once: usize| {
            if let Err(error) = play_mesh(run, lab, mesh, share, at_once, &came) {
                whole(&failed).get_or_insert(error);
            }
        };
        std::thread::scope(|scope| {
            for mesh in 0..MESHES {
                let share: Vec<_> = others.iter().skip(mesh).step_by(MESHES).copied().collect();
                let play = &play;
                scope.spawn(move || play(mesh, &share, AT_ONCE));
            }
            // An issuer that is killed has one joiner at a time.
            for mesh in 0..2 {
                let share: Vec<_> = killing.iter().skip(mesh).step_by(2).copied().collect();
                let play = &play;
                scope.spawn(move || play(MESHES + mesh, &share, 1));
            }
        });
        if let Some(error) = whole(&failed).take() {
            return Err(error);
        }
        let came = whole(&came);
        let count = |wanted| came.get(&wanted).copied().unwrap_or(0);
        promise!(count(Came::Between) > 0, "no point lay between the ledger and the joiner");
        Ok(format!(
            "{POINTS} of {POINTS} joined once with one use each ({} paths cut, {JOINER_KILLED} joiners and {ISSUER_KILLED} issuers killed; of the first tries {} left nothing, {} a use without a member, {} had joined); {} datagrams up and {} down when nothing is cut",
            POINTS - JOINER_KILLED - ISSUER_KILLED,
            count(Came::Nowhere),
            count(Came::Between),
            count(Came::There),
            traffic.up,
            traffic.down
        ))
    })
}

/// Lets one node join over a path that is not cut.
fn undisturbed(lab: &Lab) -> Result<Traffic> {
    let mut issuer = lab.node("i")?;
    issuer.init("default")?;
    let middle = Middle::new(issuer.mesh_address()?, source(9, 1), When::Never, Lost::Nothing)?;
    middle.while_carrying(|| {
        let token = issuer.token(&["--address", &middle.address()?.to_string()])?;
        lab.node("whole")?.ok(&["join", &token, "--node", "whole", "--no-start"])?;
        Ok(())
    })?;
    Ok(middle.traffic())
}

/// Spreads the points: paths are cut after each datagram in each manner and at random, others die at random.
fn points(traffic: &Traffic) -> Vec<Point> {
    let mut random = SmallRng::seed_from_u64(41);
    let mut moment = |end: Duration| When::After(end.mul_f64(random.random_range(0.0..1.0)));
    let both = [(Way::Up, traffic.up), (Way::Down, traffic.down)];
    let mut cuts: Vec<_> = [Lost::All, Lost::One(Way::Up), Lost::One(Way::Down)]
        .into_iter()
        .flat_map(|lost| {
            both.into_iter().flat_map(move |(way, count)| (0..=count).map(move |at| (way, at, lost)))
        })
        .map(|(way, at, lost)| (Hit::Path, When::Passed(way, at), lost))
        .collect();
    let paths = POINTS - JOINER_KILLED - ISSUER_KILLED;
    cuts.truncate(paths);
    while cuts.len() < paths {
        cuts.push((Hit::Path, moment(traffic.time), Lost::All));
    }
    let killed = [Hit::Joiner; JOINER_KILLED].into_iter().chain([Hit::Issuer; ISSUER_KILLED]);
    cuts.extend(killed.map(|hit| (hit, moment(traffic.time + WRITES), Lost::Nothing)));
    let number = |(number, (hit, when, lost)): (usize, _)| Point { number, hit, when, lost };
    cuts.into_iter().enumerate().map(number).collect()
}

/// Returns the address from which a joiner seems to come: five tries in vain of one would make it wait.
fn source(mesh: usize, number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, mesh as u8, number as u8 + 1)
}

/// Plays points at an issuer of their own, then looks into its list.
fn play_mesh(
    run: &Run,
    lab: &Lab,
    mesh: usize,
    points: &[Point],
    at_once: usize,
    came: &Mutex<BTreeMap<Came, usize>>,
) -> Result<()> {
    let mut issuer = lab.node(&format!("i{mesh}"))?;
    issuer.init("default")?;
    let issuer = Mutex::new(issuer);
    let (next, joined) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || -> Result<()> {
        while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
            let played = play(run, lab, &issuer, mesh, *point);
            // The others need not go on.
            let played = played.inspect_err(|_| next.store(points.len(), Ordering::Relaxed));
            let (token, node, how_far) = played.with_context(|| format!("{point:?}"))?;
            whole(&joined).insert(token, node);
            *whole(came).entry(how_far).or_default() += 1;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let joined = whole(&joined);
    let listed = whole(&issuer).json(&["token", "list"])?;
    let mut nodes = BTreeSet::new();
    for (token, node) in joined.iter() {
        let used = used_by(&listed, token)?;
        promise!(used == [node.clone()], "token {token} of node {node} was used by {used:?}");
        nodes.insert(node);
    }
    promise!(nodes.len() == points.len(), "{} nodes of {} joins", nodes.len(), points.len());
    Ok(())
}

/// Returns who used a token, by the list of its issuer.
pub(super) fn used_by(listed: &serde_json::Value, token: &str) -> Result<Vec<String>> {
    let mut rows = listed.as_array().into_iter().flatten();
    let row = rows.find(|row| row["id"] == token).with_context(|| format!("token {token} in the list"))?;
    let used = row["used_by"].as_array().into_iter().flatten();
    Ok(used.filter_map(|used| used["id"].as_str().map(str::to_owned)).collect())
}

/// Plays one point: a first try that is hit, then a second one, then another key with the token. Returns token, node, and
/// how far the first try came.
fn play(
    run: &Run,
    lab: &Lab,
    issuer: &Mutex<Node>,
    mesh: usize,
    point: Point,
) -> Result<(String, String, Came)> {
    let here = || whole(issuer);
    let server = here().mesh_address()?;
    let middle = Middle::new(server, source(mesh, point.number), point.when, point.lost)?;
    middle.while_carrying(|| {
        let text = {
            let address = middle.address()?.to_string();
            let command = here().command(&["token", "create", "--address", &address]);
            lab.finish(command, crate::process::COMMAND)?.stdout.trim().to_owned()
        };
        let token = text.parse::<Token>()?.grant().id.to_string();
        let joiner = lab.node(&format!("n{}", point.number))?;
        first_try(issuer, &middle, &joiner, &text, point.hit)?;
        let listing = here().command(&["token", "list", "--json"]);
        let listed = serde_json::from_str(&lab.finish(listing, crate::process::COMMAND)?.stdout)?;
        let came =
            match (joiner.state_dir().join("identity.json").exists(), used_by(&listed, &token)?.is_empty()) {
                (true, _) => Came::There,
                (false, false) => Came::Between,
                (false, true) => Came::Nowhere,
            };
        middle.mend();
        let key = fs::read(joiner.state_dir().join("node.key")).ok();
        if run.sabotaged {
            fs::remove_dir_all(joiner.state_dir())?;
        }
        let again = joiner.cli(&["join", &text, "--node", &joiner.name, "--no-start"])?;
        promise!(again.code == Some(0), "the second try ended with {:?}: {}", again.code, again.stderr);
        let kept = fs::read(joiner.state_dir().join("node.key"))?;
        promise!(key.is_none_or(|key| key == kept), "the second try has another key");
        let other = lab.node(&format!("x{}", point.number))?;
        let refused = other.cli(&["join", &text, "--node", &other.name, "--no-start"])?;
        promise!(refused.code == Some(5), "another key ended with {:?}: {}", refused.code, refused.stderr);
        Ok((token, identity_of(&joiner.state_dir())?.node().to_string(), came))
    })
}

/// Starts a join, hits whom the point says when its moment comes, and waits for its end.
fn first_try(issuer: &Mutex<Node>, middle: &Middle, joiner: &Node, token: &str, hit: Hit) -> Result<()> {
    let mut child = joiner.spawn(&["join", token, "--node", &joiner.name, "--no-start"])?;
    let mut hit_it = || -> Result<()> {
        until("the moment of a point, or the end of the join", GIVES_UP, || {
            Ok(middle.is_cut() || child.try_wait()?.is_some())
        })?;
        match hit {
            Hit::Path => {}
            Hit::Joiner => child.kill()?,
            Hit::Issuer => {
                let mut issuer = whole(issuer);
                issuer.kill9()?;
                issuer.run()?;
            }
        }
        wait_for("the end of a join", GIVES_UP, || Ok(child.try_wait()?)).map(drop)
    };
    let done = hit_it();
    let _ = child.kill();
    let _ = child.wait();
    done
}

fn fake_issuer(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut first = lab.node("first")?;
        first.init("default")?;
        let member = lab.node("member")?;
        member.ok(&["join", &first.token(&[])?, "--node", "member", "--no-start"])?;
        let forge = Forge::of(&first.state_dir())?;
        let asked = pose(lab, &first, forge.genuine(), "genuine", 2)?;
        promise!(contains(&asked.bytes, b"gsm1_"), "the genuine one is told {} bytes and no token", asked.bytes.len());
        let fakes = forge.fakes(&Credentials::of_member(&member.state_dir())?)?;
        for (number, (what, uses, fake)) in fakes.iter().enumerate() {
            let shown = if run.sabotaged { forge.genuine() } else { fake };
            let told = pose(lab, &first, shown, &format!("j{number}"), *uses)?;
            promise!(told.begun > 0, "nobody came to one {what}");
            promise!(told.bytes.is_empty(), "one {what} was told {} bytes", told.bytes.len());
        }
        let seen = on_the_path(lab, &first)?;
        Ok(format!("0 bytes told to {} fakes, {} to one with the genuine key; no part of the token among {seen} bytes on the path", fakes.len(), asked.bytes.len()))
    })
}

/// Lets a node try to join where somebody poses as the issuer, and returns what that one was told.
fn pose(lab: &Lab, issuer: &Node, shown: &Credentials, name: &str, uses: u32) -> Result<Told> {
    let joiner = lab.node(name)?;
    let (code, told) = while_posing(shown, |address| {
        let token = issuer.token(&["--uses", &uses.to_string(), "--address", &address.to_string()])?;
        Ok(joiner.cli(&["join", &token, "--node", name, "--no-start"])?.code)
    })?;
    promise!(code == Some(1), "a join at a fake issuer ended with {code:?}");
    Ok(told)
}

/// Lets a node join through somebody who keeps what passes, and returns how many bytes that was.
fn on_the_path(lab: &Lab, issuer: &Node) -> Result<usize> {
    let middle = Middle::new(issuer.mesh_address()?, source(0, 0), When::Never, Lost::Nothing)?;
    let token = middle.while_carrying(|| {
        let token = issuer.token(&["--address", &middle.address()?.to_string()])?;
        lab.node("through")?.ok(&["join", &token, "--node", "through", "--no-start"])?;
        Ok(token)
    })?;
    let seen = middle.seen();
    let part = token.as_bytes().windows(PART_BYTES).find(|part| contains(&seen, part));
    promise!(part.is_none(), "a part of the token is on the path");
    Ok(seen.len())
}

/// Of a token: more than stands in random bytes by chance.
const PART_BYTES: usize = 8;

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Sources that guess until they are turned away, and how often each tries.
const GUESSERS: usize = 20;
const GUESSES: usize = 7;
/// Sources that come when all together have had their hundred.
const LATE_GUESSERS: usize = 15;
const LATE_GUESSES: usize = 3;
/// What the issuer judges of one source in a minute, and what of all.
const OF_ONE: usize = 5;
const OF_ALL: usize = 100;

fn brute_force(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut issuer = lab.node("issuer")?;
        issuer.init("default")?;
        let good = issuer.token(&[])?.parse::<Token>()?;
        let mut guesser = Guesser { server: issuer.mesh_address()?, good: &good, tries: 0, judged: 0 };
        for number in 0..GUESSERS {
            for guess in 0..GUESSES {
                guesser.guess(if run.sabotaged { source(1 + guess, number) } else { source(0, number) })?;
            }
        }
        let early = guesser.judged;
        promise!(early <= OF_ALL, "{early} guesses of {GUESSERS} sources were judged");
        promise!(early == GUESSERS * OF_ONE, "{early} guesses were judged of {OF_ONE} for each source");
        for number in 0..LATE_GUESSERS {
            for _ in 0..LATE_GUESSES {
                guesser.guess(source(9, number))?;
            }
        }
        let late = guesser.judged - early;
        promise!(late <= LATE_GUESSERS, "{late} guesses of {LATE_GUESSERS} late sources were judged");
        let honest = lab.node("honest")?;
        honest.ok(&["join", good.reveal(), "--node", "honest", "--no-start"])?;
        let listed = issuer.json(&["token", "list"])?;
        promise!(used_by(&listed, &good.grant().id.to_string())?.len() == 1, "the list is {listed}");
        Ok(format!(
            "of {} wrong tokens {early} of {GUESSERS} sources were judged and {late} of {LATE_GUESSERS} later ones, the rest turned away; a good one admitted then",
            guesser.tries
        ))
    })
}

/// Somebody who knows a good token but for its signature and id.
struct Guesser<'a> {
    server: SocketAddr,
    good: &'a Token,
    tries: usize,
    judged: usize,
}

impl Guesser<'_> {
    fn guess(&mut self, source: Ipv4Addr) -> Result<()> {
        self.tries += 1;
        let grant = Grant { id: TokenId::from_bytes(rand::random()), ..self.good.grant().clone() };
        let token = Token::build(grant, |_| [self.tries as u8; 64])?;
        match ask_to_join(self.server, source, &token)? {
            Ok(JoinReply::Refused(Refusal::Foreign)) => self.judged += 1,
            Ok(other) => promise!(false, "a wrong token was answered with {other:?}"),
            Err(why) => promise!(why.contains("too many tries"), "the issuer hung up with {why}"),
        }
        Ok(())
    }
}

const OPTIONS: [&str; 6] = [
    "--allow-service=web-*",
    "--allow-fqdn=corp.example",
    "--label=zone=a",
    "--label=gpu=h100",
    "--role=relay",
    "--ephemeral=10m",
];
/// How long two renewals of certificates of 5 s may take.
const RENEWED: Duration = Duration::from_secs(20);

fn claims(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut issuer = lab.node("issuer")?.with("GOSSAMER_TRUST_LEAF_LIFETIME", "5s");
        issuer.init("default")?;
        let token = issuer.token(if run.sabotaged { &[] } else { &OPTIONS })?;
        let mut node = lab.node("worker")?.with("GOSSAMER_TRUST_LEAF_LIFETIME", "5s");
        node.join(&token)?;
        issuer.sees("worker", "alive", RENEWED)?;
        let expected = serde_json::json!({
            "services": ["web-*"], "fqdn_suffixes": ["corp.example"], "labels": {"gpu": "h100", "zone": "a"},
            "relay": true, "ephemeral_seconds": 600,
        });
        let seen = || -> Result<(u64, serde_json::Value)> {
            let nodes = issuer.json(&["nodes"])?;
            let mut rows = nodes.as_array().into_iter().flatten();
            let row = rows.find(|row| row["name"] == "worker").context("the node in the list")?;
            Ok((row["certificate_ends"].as_u64().unwrap_or(0), row["claims"].clone()))
        };
        let mut before = seen()?.0;
        for _ in 0..2 {
            let (end, _) = wait_for("a new certificate of the node", RENEWED, || {
                let (end, claims) = seen()?;
                promise!(claims == expected, "the issuer sees the claims {claims}");
                Ok((end > before).then_some(end))
            })?;
            before = end;
        }
        let listed = issuer.json(&["token", "list"])?;
        promise!(listed.to_string().contains("corp.example"), "the list of tokens is {listed}");
        let outside = node.cli(&["expose", "db:5432"])?;
        promise!(outside.code == Some(5), "a service outside the claims: {:?}", outside.code);
        node.ok(&["expose", "web-1:5432"])?;
        Ok("5 kinds of claims seen by another node, the same through two renewals; a service outside refused"
            .to_owned())
    })
}

pub(super) fn whole<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
