use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::play::Act;
use super::*;

const HEAD: &str = "name = 'x'\nabout = 'y'\nnodes = 4\n";

fn parse(rest: &str) -> Scenario {
    Scenario::parse("x.toml", &format!("{HEAD}{rest}")).expect("a scenario")
}

fn fault(rest: &str) -> String {
    Scenario::parse("x.toml", &format!("{HEAD}{rest}")).expect_err("a fault").to_string()
}

fn set(nodes: &[usize]) -> BTreeSet<usize> {
    nodes.iter().copied().collect()
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[test]
fn what_is_not_written_has_a_default() {
    let scenario = parse("");
    assert_eq!((scenario.records, scenario.seeds), (1, set(&[0])));
    assert_eq!(scenario.net.delay, (seconds(0.0002), seconds(0.001)));
    assert_eq!(scenario.expect, Expect::default());
    assert!(scenario.steps.is_empty());
}

#[test]
fn steps_repeat_and_come_in_order_of_time() {
    let scenario = parse(
        "[[step]]\nat = 3\nheal = {}\n[[step]]\nat = 1\nevery = 4\ntimes = 2\nkill = { nodes = '1,3' }\n",
    );
    let times: Vec<f64> = scenario.steps.iter().map(|step| step.at.as_secs_f64()).collect();
    assert_eq!(times, [1.0, 3.0, 5.0]);
    assert_eq!(scenario.steps[2].action, Action::Kill);
    assert_eq!(scenario.steps[2].whom.nodes, set(&[1, 3]));
}

#[test]
fn every_action_is_read() {
    let actions = [
        ("cut = { from = '0', to = 'others', both = true }", {
            Action::Cut { from: set(&[0]), to: set(&[1, 2, 3]), both: true }
        }),
        ("cut = { from = 'others', to = '0-1' }", {
            Action::Cut { from: set(&[2, 3]), to: set(&[0, 1]), both: false }
        }),
        ("heal = {}", Action::Heal),
        ("loss = { nodes = 'all', share = 0.5 }", Action::Loss(0.5)),
        ("slow = { nodes = '0', ms = 600 }", Action::Slow(Duration::from_millis(600))),
        ("kill = { nodes = 'all', pick = 2 }", Action::Kill),
        ("restart = { nodes = '0', disk = 'lost', down = 2 }", {
            Action::Restart { disk: Disk::Lost, down: seconds(2.0) }
        }),
        ("restart = { nodes = '0' }", Action::Restart { disk: Disk::Kept, down: seconds(0.1) }),
        ("suspend = { nodes = '0' }", Action::Suspend),
        ("resume = { nodes = '0' }", Action::Resume),
        ("clock = { nodes = '0', seconds = -3600 }", Action::Clock(-3_600)),
        ("publish = { nodes = '0', count = 2 }", Action::Publish(2)),
        ("withdraw = { nodes = '0', count = 1 }", Action::Withdraw(1)),
        ("leave = { nodes = '0' }", Action::Leave),
    ];
    for (text, action) in actions {
        assert_eq!(parse(&format!("[[step]]\nat = 1\n{text}\n")).steps[0].action, action, "{text}");
    }
}

#[test]
fn every_fault_names_the_file_and_the_key() {
    let faults = [
        ("speed = 3", "unknown field `speed`"),
        ("[[step]]\nat = 1\nexplode = {}", "unknown field `explode`"),
        ("[[step]]\nat = 1\nkill = { nodes = '0', disk = 'kept' }", "unknown field `disk`"),
        ("[[step]]\nat = 1", "`step 1: at`: a step has exactly one action"),
        ("[[step]]\nat = 1\nheal = {}\nkill = { nodes = '0' }", "exactly one action"),
        (
            "[[step]]\nat = 1\nheal = {}\n[[step]]\nat = 1\nkill = { nodes = '9' }",
            "`step 2: kill.nodes`: there is no node 9",
        ),
        ("[[step]]\nat = 1\nkill = { nodes = 'others' }", "`step 1: kill.nodes`: the nodes must be named"),
        ("[[step]]\nat = 1\nkill = { nodes = '0', pick = 2 }", "`step 1: kill.pick`: must be 1 to 1"),
        ("[[step]]\nat = -1\nheal = {}", "`step 1: at`: -1 is not 0"),
        ("[[step]]\nat = 1\nevery = 2\nheal = {}", "`every` and `times`"),
        ("[[step]]\nat = 1\ncut = { from = 'others', to = 'others' }", "`step 1: cut.to`"),
        ("[[step]]\nat = 1\nrestart = { nodes = '0', disk = 'wet' }", "unknown variant `wet`"),
        ("seeds = []", "`seeds`: at least one"),
        ("seeds = [4]", "`seeds`: there is no node 4"),
        ("[net]\nloss = 2.0", "`net.loss`: 2 is not 0 to 1"),
        ("[net]\ndelay_ms = [3.0, 1.0]", "`net.delay_ms`"),
        ("[expect]\ndown = 'others'", "`expect.down`: the nodes must be named"),
        ("[expect]\nmax_bytes_ratio = 3.0", "`expect.max_bytes_ratio`: needs `idle`"),
        ("nodes = 5", "duplicate key"),
    ];
    for (text, words) in faults {
        let error = fault(text);
        assert!(error.starts_with("x.toml: ") && error.contains(words), "{text}: {error}");
    }
    let missing = Scenario::load(std::path::Path::new("no/such.toml")).expect_err("no file").to_string();
    assert!(missing.contains("no/such.toml"), "{missing}");
    let few = Scenario::parse("x.toml", "name = 'x'\nabout = ''\nnodes = 1").expect_err("too few");
    assert!(few.to_string().contains("`nodes`"), "{few}");
}

/// A mesh without a network: everybody knows at once what happens, or never, where `blind`.
struct Perfect {
    now: Duration,
    nodes: Vec<Node>,
    acts: Vec<(f64, Act)>,
    downs: Vec<Down>,
    /// This node never hears of a change after the start.
    blind: Option<usize>,
    /// The first does not see the second after any restart.
    missed: Option<(usize, usize)>,
    started: usize,
}

#[derive(Clone, Default)]
struct Node {
    runs: bool,
    suspended: bool,
    records: usize,
}

impl Perfect {
    fn new(nodes: usize) -> Self {
        let node = Node { records: 1, ..Node::default() };
        Self {
            now: Duration::ZERO,
            nodes: vec![node; nodes],
            acts: Vec::new(),
            downs: Vec::new(),
            blind: None,
            missed: None,
            started: 0,
        }
    }

    fn live(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].runs && !self.nodes[*node].suspended).collect()
    }

    fn fall(&mut self, node: usize) {
        let (at, live) = (self.now, self.live());
        self.downs.extend(live.into_iter().filter(|by| *by != node).map(|by| Down { at, by, node }));
    }
}

impl World for Perfect {
    fn run_to(&mut self, at: Duration) -> Result<()> {
        assert!(at >= self.now, "time runs forward");
        self.now = at;
        Ok(())
    }

    fn act(&mut self, act: &Act) -> Result<()> {
        self.acts.push((self.now.as_secs_f64(), act.clone()));
        match *act {
            Act::Start { node, .. } => {
                self.nodes[node].runs = true;
                self.started += 1;
            }
            Act::Kill(node) => {
                self.nodes[node].runs = false;
                self.fall(node);
            }
            Act::Leave(node) => self.nodes[node].runs = false,
            Act::Suspend(node) => {
                self.nodes[node].suspended = true;
                self.fall(node);
            }
            Act::Resume(node) => self.nodes[node].suspended = false,
            Act::Publish { node, count } => self.nodes[node].records += count,
            Act::Withdraw { node, count } => self.nodes[node].records -= count,
            Act::Clock { .. } => anyhow::bail!("there is no clock here"),
            Act::Cut { .. } | Act::Heal | Act::Loss { .. } | Act::Slow { .. } => {}
        }
        Ok(())
    }

    fn state(&mut self, node: usize) -> Result<NodeState> {
        if self.blind == Some(node) && self.started >= self.nodes.len() {
            let known: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
            let served = self.nodes.len();
            return Ok(NodeState { catalog: served as u64, served, up: known.clone(), known, renewals: 0 });
        }
        let live = self.live();
        let served = live.iter().map(|node| self.nodes[*node].records).sum();
        let is_missed = |other| self.missed == Some((node, other)) && self.started > self.nodes.len();
        let up: Vec<usize> = live.into_iter().filter(|other| *other != node && !is_missed(*other)).collect();
        Ok(NodeState { catalog: served as u64, served, known: up.clone(), up, renewals: 0 })
    }

    fn take_downs(&mut self) -> Vec<Down> {
        std::mem::take(&mut self.downs)
    }

    fn bytes_sent(&mut self, _: usize) -> u64 {
        // 100 bytes a second in the first ten, 1,000 afterwards.
        let seconds = self.now.as_secs();
        100 * seconds.min(10) + 1_000 * seconds.saturating_sub(10)
    }

    fn trace(&self) -> Option<u64> {
        None
    }
}

fn run(world: &mut Perfect, rest: &str) -> Report {
    play(&parse(rest), 1, world).expect("plays")
}

#[test]
fn acts_come_at_their_times_from_the_moment_all_see_all() {
    let mut world = Perfect::new(4);
    let text = "start_over = 4\nidle = 2\nseeds = [2]\n[[step]]\nat = 1\nrestart = { nodes = '1,3', each = 5, down = 0.5 }\n";
    let report = run(&mut world, text);
    assert!(report.holds(), "{report}");
    let acts: Vec<(f64, &str)> = world
        .acts
        .iter()
        .map(|(at, act)| (*at, if matches!(act, Act::Start { .. }) { "start" } else { "kill" }))
        .collect();
    let starts = [(0.0, "start"), (1.0, "start"), (2.0, "start"), (3.0, "start")];
    assert_eq!(acts[..4], starts);
    assert_eq!(acts[4..], [(6.0, "kill"), (6.5, "start"), (11.0, "kill"), (11.5, "start")]);
    assert_eq!(world.acts[0].1, Act::Start { node: 2, disk: Disk::Lost });
    assert_eq!(world.acts[5].1, Act::Start { node: 1, disk: Disk::Kept });
}

#[test]
fn who_is_killed_must_be_seen_down_and_others_must_not() {
    let kill = "[[step]]\nat = 1\nkill = { nodes = '3' }\n[expect]\ndown = '3'\n";
    let report = run(&mut Perfect::new(4), &format!("{kill}never_down = 'others'\n"));
    assert!(report.holds(), "{report}");
    let report = run(&mut Perfect::new(4), &format!("{kill}never_down = '2-3'\n"));
    assert_eq!(report.faults, ["held for down: 3 (by 3)"]);
    assert_eq!(report.false_downs, BTreeMap::from([(3, 3)]));
    let report = run(&mut Perfect::new(4), &format!("{kill}never_down = '2-3'\nnever_down_by = '0,2'\n"));
    assert_eq!(report.false_downs, BTreeMap::from([(3, 2)]));
    let report = run(&mut Perfect::new(4), &format!("{kill}never_down = '2-3'\nnever_down_by = '3'\n"));
    assert!(report.holds(), "{report}");
    let report = run(&mut Perfect::new(4), "[expect]\ndown = '3'\n");
    assert_eq!(report.faults, ["3 nodes never held node 3 for down"]);
}

#[test]
fn a_node_that_misses_a_change_is_named() {
    let mut world = Perfect::new(4);
    world.blind = Some(2);
    let report =
        run(&mut world, "[[step]]\nat = 1\nkill = { nodes = '3' }\n[expect]\nconverged_within = 2\n");
    let fault = "not converged within 2.0 s: node 2 sees 1 ([3] ..) that do not run";
    assert_eq!((report.faults, report.converged), (vec![fault.to_owned()], None));
    let report = run(&mut world_with_blind(2), "[[step]]\nat = 1\npublish = { nodes = '3', count = 2 }\n");
    assert!(report.faults[0].contains("node 2 serves 4 records of 6"), "{report}");
}

fn world_with_blind(node: usize) -> Perfect {
    Perfect { blind: Some(node), ..Perfect::new(4) }
}

#[test]
fn a_second_fall_and_lasting_knowledge_are_seen() {
    let twice =
        "[[step]]\nat = 1\nevery = 1\ntimes = 2\nrestart = { nodes = '3' }\n[expect]\ndowns_per_view = 1\n";
    assert_eq!(run(&mut Perfect::new(4), twice).faults, ["node 0 held node 3 for down 2 times"]);
    let forgotten = "[[step]]\nat = 1\npublish = { nodes = '0', count = 1 }\n[expect]\nforgotten = '3'\n";
    assert_eq!(run(&mut Perfect::new(4), forgotten).faults.len(), 3);
}

#[test]
fn bytes_of_the_steps_are_compared_with_quiet() {
    let text = "idle = 10\n[[step]]\nat = 10\nheal = {}\n[expect]\nmax_bytes_ratio = 3.0\n";
    let report = run(&mut Perfect::new(4), text);
    assert_eq!(report.rates, Some((100.0, 1_000.0)));
    assert!(report.faults[0].contains("at most 3x"), "{report}");
}

#[test]
fn settled_nodes_missing_in_a_view_are_counted() {
    let text = "[[step]]\nat = 5\nrestart = { nodes = '3', down = 3 }\n[[step]]\nat = 12\nheal = {}\n[expect]\nmax_missing = 0\n";
    let report = run(&mut Perfect::new(4), text);
    assert_eq!(report.missing, Some(0), "who has just come back does not count: {report}");
    assert!(report.holds(), "{report}");
    let report = run(&mut Perfect { missed: Some((0, 3)), ..Perfect::new(4) }, text);
    assert_eq!(report.missing, Some(1));
    assert!(report.faults[1].starts_with("1 settled nodes were missing"), "{report}");
}

#[test]
fn what_a_world_cannot_do_is_an_error_and_not_a_verdict() {
    let scenario = parse("[[step]]\nat = 1\nclock = { nodes = '0', seconds = 5 }\n");
    let error = play(&scenario, 1, &mut Perfect::new(4)).expect_err("no clock");
    assert!(format!("{error:#}").contains("there is no clock here"), "{error:#}");
}

#[test]
fn one_seed_picks_the_same_nodes() {
    let killed = |seed: u64| {
        let mut world = Perfect::new(40);
        let text =
            "name = 'x'\nabout = ''\nnodes = 40\n[[step]]\nat = 1\nkill = { nodes = 'all', pick = 5 }\n";
        play(&Scenario::parse("x.toml", text).expect("a scenario"), seed, &mut world).expect("plays");
        world.acts.into_iter().map(|(_, act)| act).skip(40).collect::<Vec<_>>()
    };
    assert_eq!(killed(1), killed(1));
    assert_eq!(killed(1).len(), 5);
    assert_ne!(killed(1), killed(2));
}
