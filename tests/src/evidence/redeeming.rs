//! Tokens that are redeemed more often than they are good for, and tokens that are good elsewhere: on real daemons.
//!
//! Owns: who redeems what, when, from where. Must not know: how a ledger looks on disk.
//! Driven by: `evidence`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::RngExt as _;

use gossamer::identity::NodeKey;
use gossamer_core::trust::Sign as _;
use gossamer_wire::join::{JoinReply, Refusal};
use gossamer_wire::token::{Grant, Token};
use gossamer_wire::{MeshId, NodeId, TokenId};

use super::issuers::{SEEN, join_only};
use super::joins::{used_by, whole};
use super::{Ci, Needs, Row, Run};
use crate::netns::Star;
use crate::process::{Lab, Node};
use crate::promise;
use crate::quic::{ask_to_join, identity_of, redeem, runtime};
use crate::wait::{Broken, until};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "4.1-race-thousand",
        promise: "Of 1,000 keys that redeem a token of one use at the same time, while its issuer is killed with -9 and started again, exactly one is admitted and stands in the ledger; each of the others is told that the token was used, after being told to come again where there was no seat",
        sabotage: "the ledger is put back to what it was before, while the issuer is down",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: race,
    },
    Row {
        name: "4.1-overshoot",
        promise: "Two issuers in two halves of a split mesh admit with a token of 3 uses 3 nodes each, which is the bound, and refuse the others; healed they admit nobody more, and their lists name each node that joined once",
        sabotage: "the second issuer loses its ledger before the heal",
        needs: Needs::Root,
        ci: Ci::Runs,
        check: overshoot,
    },
    Row {
        name: "4.1-foreign-token",
        promise: "Tokens of another mesh, of its issuer in the name of this mesh, of a root that does not count, of another issuer, of a removed one, and good ones with any one field changed are refused with their reason and admit nobody; a joiner whose token is of another mesh or issuer does not show it",
        sabotage: "a good token is shown instead of each",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: foreign,
    },
];

/// Keys that redeem the token; of these some are of nodes that run `gossamer join`.
const KEYS: usize = 1_000;
const PROGRAMS: usize = 4;
/// Threads that the others are shared among.
const THREADS: usize = 4;
/// Answers after which the issuer is killed.
const KILLED_AFTER: usize = 100;
/// Until each has its answer.
const ALL_JUDGED: Duration = Duration::from_secs(90);
/// Most milliseconds that one who is told to come again waits.
const COMES_AGAIN_MS: u64 = 500;

/// What came of a race.
#[derive(Debug, Default)]
struct Race {
    judged: AtomicUsize,
    busy: AtomicUsize,
    unanswered: AtomicUsize,
    turned_away: AtomicUsize,
    admitted: Mutex<BTreeSet<String>>,
}

fn race(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut issuer = lab.node("issuer")?;
        issuer.init("default")?;
        let token: Arc<Token> = Arc::new(issuer.token(&[])?.parse()?);
        let before = fs::read(issuer.state_dir().join("tokens.json"))?;
        let (server, race) = (issuer.mesh_address()?, Arc::new(Race::default()));
        let programs = (0..PROGRAMS).map(|number| lab.node(&format!("p{number}"))).collect::<Result<Vec<_>>>()?;
        let others: Vec<_> = (0..KEYS - PROGRAMS).collect();
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let (race, token) = (&race, &token);
            let mut racing: Vec<_> =
                programs.iter().map(|node| scope.spawn(move || race.program(node, token))).collect();
            for share in others.chunks(KEYS.div_ceil(THREADS)) {
                racing.push(scope.spawn(move || race.keys(share, server, token)));
            }
            let midst = || race.count() >= KILLED_AFTER;
            let killed = until("the first answers", ALL_JUDGED, || Ok(midst())).and_then(|_| {
                issuer.kill9()?;
                if run.sabotaged {
                    fs::write(issuer.state_dir().join("tokens.json"), &before)?;
                }
                issuer.run()
            });
            let raced = racing.into_iter().map(|one| one.join().expect("nobody panics"));
            raced.chain([killed]).collect::<Result<Vec<()>>>()
        })?;
        let took = begin.elapsed();
        let admitted = whole(&race.admitted).clone();
        promise!(admitted.len() == 1, "{} of {KEYS} keys were admitted", admitted.len());
        let used = used_by(&issuer.json(&["token", "list"])?, &token.grant().id.to_string())?;
        promise!(used == Vec::from_iter(admitted), "the ledger names {used:?}");
        let [judged, busy, away, unanswered] =
            [&race.judged, &race.busy, &race.turned_away, &race.unanswered].map(|count| count.load(Ordering::Relaxed));
        promise!(judged == KEYS, "{judged} of {KEYS} have an answer");
        Ok(format!(
            "1 of {KEYS} admitted and in the ledger, {} told that it was used, {PROGRAMS} of them or it `gossamer join`; {busy} times told to come again, {away} to wait, {unanswered} times no answer; {took:.1?}",
            judged - 1
        ))
    })
}

impl Race {
    /// Lets so many new keys redeem the token, all of them at the same time.
    fn keys(self: &Arc<Self>, numbers: &[usize], server: SocketAddr, token: &Arc<Token>) -> Result<()> {
        runtime()?.block_on(async {
            let mut redeeming = tokio::task::JoinSet::new();
            for number in numbers.iter().copied() {
                let (race, token) = (Arc::clone(self), Arc::clone(token));
                redeeming.spawn(async move { race.key(number, server, &token).await });
            }
            let all = async {
                while let Some(one) = redeeming.join_next().await {
                    one??;
                }
                anyhow::Ok(())
            };
            let late = || Broken(format!("after {ALL_JUDGED:?} {} of {KEYS} have an answer", self.count()));
            tokio::time::timeout(ALL_JUDGED, all).await.map_err(|_| late())?
        })
    }

    /// Lets a new key redeem the token until it is judged. It comes from an address of its own.
    async fn key(&self, number: usize, server: SocketAddr, token: &Token) -> Result<()> {
        let key = NodeKey::generate().context("randomness")?;
        let [block, last] = [(number / 250) as u8, (number % 250 + 1) as u8];
        // One that has a seat and no time to ask counts as wrong: it comes again from elsewhere.
        let mut moves = 2;
        loop {
            let source = Ipv4Addr::new(127, moves, block, last);
            match redeem(server, source, token, &key, &format!("k{number}")).await? {
                Ok(JoinReply::Admitted(_)) => return self.judge(Some(key.node().to_string())),
                Ok(JoinReply::Refused(Refusal::Used)) => return self.judge(None),
                Ok(JoinReply::Refused(other)) => promise!(false, "key {number} was refused with {other:?}"),
                Err(why) => moves += u8::from(self.note(&why)),
            }
            let pause = rand::rng().random_range(0..COMES_AGAIN_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await; // as it was told to
        }
    }

    /// Lets a program join until it is judged.
    fn program(&self, node: &Node, token: &Token) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < ALL_JUDGED {
            let (code, said) = join_only(node, token.reveal())?;
            match code {
                Some(0) => return self.judge(Some(identity_of(&node.state_dir())?.node().to_string())),
                Some(5) if said.contains("has been used") => return self.judge(None),
                Some(1) => drop(self.note(&said)),
                code => promise!(false, "join ended with {code:?}: {said}"),
            }
        }
        promise!(false, "`gossamer join` was not judged");
        Ok(())
    }

    fn count(&self) -> usize {
        self.judged.load(Ordering::Relaxed)
    }

    /// Counts one that has its answer.
    fn judge(&self, admitted: Option<String>) -> Result<()> {
        whole(&self.admitted).extend(admitted);
        self.judged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Counts one that was not judged. Returns whether its source must wait.
    fn note(&self, why: &str) -> bool {
        let must_wait = why.contains("too many tries");
        let is_told = ["too many ask at once", "others ask", "busy"].iter().any(|words| why.contains(words));
        let count = match (must_wait, is_told) {
            (true, _) => &self.turned_away,
            (_, true) => &self.busy,
            _ => &self.unanswered,
        };
        count.fetch_add(1, Ordering::Relaxed);
        must_wait
    }
}

/// What the token is good for, how many want to join on each side, and how many issuers there are.
const USES: usize = 3;
const WANT: usize = 5;
const SIDES: usize = 2;

fn overshoot(run: &Run) -> Result<String> {
    // Machines 0 and 2 are one side, 1 and 3 the other; issuers are 0 and 1.
    let star = Star::new(2 * SIDES)?;
    run.scenario(|lab| {
        let issuers = &mut [lab.node_in("i0", &star.machines()[0])?, lab.node_in("i1", &star.machines()[1])?];
        issuers[0].init("default")?;
        let token = issuers[0].token(&[])?;
        issuers[1].join(&token)?;
        issuers[0].sees("i1", "alive", SEEN)?;
        issuers[0].ok(&["issuer", "add", "i1"])?;
        until("the second issuer at work", SEEN, || Ok(issuers[1].token(&[]).is_ok()))?;
        let text = issuers[0].token(&["--uses", &USES.to_string()])?;
        let token: Token = text.parse()?;
        promise!(token.grant().addresses.len() == SIDES, "the token names {:?}", token.grant().addresses);
        let cut = |pairs: &[(usize, usize)]| {
            let both: Vec<_> = pairs.iter().flat_map(|(a, b)| [(*a, *b), (*b, *a)]).collect();
            star.cut_all(&both)
        };
        cut(&[(0, 1), (0, 3), (1, 2), (2, 3)])?;
        let mut joined = BTreeMap::new();
        for side in 0..SIDES {
            let names: Vec<_> = (0..WANT).map(|number| format!("n{side}{number}")).collect();
            let admitted = join_all(lab, &star, SIDES + side, &names, &text)?;
            promise!(admitted.len() == USES, "side {side} admitted {} of {WANT}", admitted.len());
            joined.extend(admitted);
        }
        if run.sabotaged {
            issuers[1].kill9()?;
            fs::remove_file(issuers[1].state_dir().join("tokens.json"))?;
            issuers[1].run()?;
        }
        star.heal()?;
        issuers[0].sees("i1", "alive", SEEN)?;
        issuers[1].sees("i0", "alive", SEEN)?;
        // Who has the first issuer's address asks that one.
        cut(&[(0, 3)])?;
        for side in 0..SIDES {
            let more = join_all(lab, &star, SIDES + side, &[format!("late{side}")], &text)?;
            promise!(more.is_empty(), "healed, issuer {side} admits one more: {more:?}");
        }
        let id = token.grant().id.to_string();
        let mut listed = Vec::new();
        for issuer in issuers.iter() {
            listed.extend(used_by(&issuer.json(&["token", "list"])?, &id)?);
        }
        listed.sort();
        let mut nodes: Vec<_> = joined.into_values().collect();
        nodes.sort();
        promise!(listed == nodes, "the lists name {listed:?}, and {nodes:?} joined");
        Ok(format!(
            "{} of {} admitted, {USES} on each side of the split, the bound being {}; 0 of {SIDES} after the heal, the lists name each once",
            nodes.len(),
            SIDES * WANT,
            SIDES * USES
        ))
    })
}

/// Lets nodes of a machine join at the same time. Returns name and id of those that were admitted; the others were told
/// that the token was used.
fn join_all(
    lab: &Lab,
    star: &Star,
    machine: usize,
    names: &[String],
    token: &str,
) -> Result<Vec<(String, String)>> {
    let machine = &star.machines()[machine];
    let own_pool = |(number, name): (usize, &String)| {
        let node = lab.node_in(name, machine)?;
        Ok(node.with("GOSSAMER_VIP_POOL", &format!("127.{}.0.0/16", 100 + number)))
    };
    let nodes = names.iter().enumerate().map(own_pool).collect::<Result<Vec<_>>>()?;
    let ended: Vec<_> = std::thread::scope(|scope| {
        let joining: Vec<_> = nodes.iter().map(|node| scope.spawn(|| join_only(node, token))).collect();
        joining.into_iter().map(|one| one.join().expect("nobody panics")).collect()
    });
    let mut admitted = Vec::new();
    for (node, ended) in nodes.iter().zip(ended) {
        match ended? {
            (Some(0), _) => {
                admitted.push((node.name.clone(), identity_of(&node.state_dir())?.node().to_string()));
            }
            (Some(5), said) if said.contains("has been used") => {}
            (code, said) => promise!(false, "{}: join ended with {code:?}: {said}", node.name),
        }
    }
    Ok(admitted)
}

fn foreign(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let (mut home, mut second, mut other) = (lab.node("home")?, lab.node("second")?, lab.node("other")?);
        home.init("default")?;
        other.init("default")?;
        second.join(&home.token(&[])?)?;
        home.sees("second", "alive", SEEN)?;
        home.ok(&["issuer", "add", "second"])?;
        until("the second issuer at work", SEEN, || Ok(second.token(&[]).is_ok()))?;
        let good: Token = home.token(&[])?.parse()?;
        let mut shown = changed(&good)?;
        shown.extend(made_elsewhere(&home, &second, &other, &good)?);
        let removed: Token = second.token(&["--uses", "2"])?.parse()?;
        let address = home.mesh_address()?.to_string();
        let at_home = ["--address", &address];
        let kept = [("of-other", other.token(&at_home)?), ("of-second", second.token(&at_home)?)];
        home.ok(&["issuer", "remove", "second"])?;
        shown.push(("of an issuer that was removed", removed, Refusal::Foreign));
        let server = home.mesh_address()?;
        for (number, (what, token, refusal)) in shown.iter().enumerate() {
            let source = Ipv4Addr::new(127, 3, 0, u8::try_from(number + 1)?);
            match ask_to_join(server, source, if run.sabotaged { &good } else { token })? {
                Ok(JoinReply::Refused(why)) => promise!(why == *refusal, "one {what} was refused with {why:?}"),
                Ok(JoinReply::Admitted(_)) => promise!(false, "one {what} admits"),
                Err(why) => promise!(false, "one {what}: the issuer hung up with {why}"),
            }
        }
        let listed = home.json(&["token", "list"])?;
        promise!(used_by(&listed, &good.grant().id.to_string())?.is_empty(), "one was admitted: {listed}");
        for (name, token) in &kept {
            let (code, said) = join_only(&lab.node(name)?, token)?;
            let is_kept = code == Some(1) && said.contains("wrong identity: somebody else answers there");
            promise!(is_kept, "{name}: join ended with {code:?}: {said}");
        }
        let answer = ask_to_join(server, Ipv4Addr::new(127, 3, 1, 1), &good)?;
        promise!(matches!(answer, Ok(JoinReply::Admitted(_))), "the good one does not admit");
        Ok(format!("{} of {} kinds refused with their reason, the good one admitted then; {} of {} joiners kept theirs", shown.len(), shown.len(), kept.len(), kept.len()))
    })
}

type Shown = (&'static str, Token, Refusal);

/// Makes a token with another value in each field of a good one of one use, and the good one's signature.
fn changed(good: &Token) -> Result<Vec<Shown>> {
    let (grant, signature) = (good.grant(), good.signed().1);
    let of = |change: fn(&mut Grant)| -> Result<Token> {
        let mut grant = grant.clone();
        change(&mut grant);
        Ok(Token::build(grant, |_| signature)?)
    };
    Ok(vec![
        ("with another mesh", of(|grant| grant.mesh = MeshId::from_bytes([7; 16]))?, Refusal::Foreign),
        ("with another pin", of(|grant| grant.root_pin = [7; 32])?, Refusal::Foreign),
        ("with another id", of(|grant| grant.id = TokenId::from_bytes([7; 16]))?, Refusal::Foreign),
        (
            "with another issuer",
            of(|grant| grant.issuer = NodeId::from_bytes([7; 16]))?,
            Refusal::OtherIssuer,
        ),
        ("with a later end", of(|grant| grant.not_after += 1)?, Refusal::Foreign),
        ("with more uses", of(|grant| grant.uses = 2)?, Refusal::Foreign),
        ("with no limit of uses", of(|grant| grant.uses = 0)?, Refusal::Foreign),
        ("with a pattern", of(|grant| grant.node_pattern = Some("*".to_owned()))?, Refusal::Foreign),
        ("with more claims", of(|grant| grant.claims.relay = true)?, Refusal::Foreign),
        ("without addresses", of(|grant| grant.addresses.clear())?, Refusal::Foreign),
    ])
}

/// Makes tokens that somebody else signed, or that are for somebody else.
fn made_elsewhere(home: &Node, second: &Node, other: &Node, good: &Token) -> Result<Vec<Shown>> {
    let key = |node: &Node| {
        NodeKey::read(&fs::read(node.state_dir().join("issuer.key"))?).context("the key of an issuer")
    };
    let (own, foreign) = (key(home)?, key(other)?);
    let signed = |signer: &NodeKey, change: &dyn Fn(&mut Grant)| -> Result<Token> {
        let mut grant = good.grant().clone();
        change(&mut grant);
        Ok(Token::build(grant, |bytes| signer.sign(bytes))?)
    };
    let of_other: Token = other.token(&[])?.parse()?;
    let pin = of_other.grant().root_pin;
    let of_foreign_issuer = signed(&foreign, &|grant| (grant.issuer, grant.uses) = (foreign.node(), 2))?;
    Ok(vec![
        ("of another mesh", of_other, Refusal::Foreign),
        ("of another mesh for several", other.token(&["--uses", "2"])?.parse()?, Refusal::Foreign),
        ("of another mesh's issuer", of_foreign_issuer, Refusal::Foreign),
        ("signed by another mesh's issuer", signed(&foreign, &|_| ())?, Refusal::Foreign),
        ("that pins another root", signed(&own, &|grant| grant.root_pin = pin)?, Refusal::Revoked),
        ("of another issuer", second.token(&[])?.parse()?, Refusal::OtherIssuer),
    ])
}
