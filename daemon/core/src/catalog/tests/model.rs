//! Random histories against the simplest reference: the table each owner wants.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Node, and the services of its complete set as bits.
    Publish(usize, u8),
    Restart(usize),
    /// The node starts without what it had on disk.
    Lose(usize),
    Part(usize, usize),
    Link(usize, usize),
    Pass(u64),
}

const NODES: usize = 4;

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES;
    let pair = (0..NODES, 0..NODES);
    prop_oneof![
        4 => (node.clone(), any::<u8>()).prop_map(|(at, bits)| Step::Publish(at, bits)),
        1 => node.clone().prop_map(Step::Restart),
        1 => node.prop_map(Step::Lose),
        2 => pair.clone().prop_map(|(a, b)| Step::Part(a, b)),
        2 => pair.prop_map(|(a, b)| Step::Link(a, b)),
        2 => (1_u64..15).prop_map(Step::Pass),
    ]
}

fn services(bits: u8) -> Vec<String> {
    (0..8).filter(|bit| bits & (1 << bit) != 0).map(|bit| format!("svc{bit}")).collect()
}

/// What a node sees: (service, owner).
fn seen(net: &Net, at: usize) -> BTreeSet<(String, usize)> {
    let catalog = &net.nodes[at].catalog;
    let mut all = BTreeSet::new();
    for service in catalog.services() {
        for instance in catalog.service(service, net.now).into_iter().flat_map(|view| view.instances) {
            all.insert((service.to_string(), net.at(instance.node)));
        }
    }
    all
}

fn run(net: &mut Net, step: Step) {
    match step {
        Step::Publish(at, bits) => {
            let names = services(bits);
            net.publish(at, &names.iter().map(String::as_str).collect::<Vec<_>>());
        }
        Step::Restart(at) => net.restart(at, true),
        Step::Lose(at) => net.restart(at, false),
        Step::Part(a, b) if a != b => net.part(a, b),
        Step::Link(a, b) if a != b => net.link(a, b),
        Step::Part(..) | Step::Link(..) => {}
        Step::Pass(seconds) => net.pass(Duration::from_secs(seconds)),
    }
}

/// Runs a history, links all, and checks that every node shows exactly the union of the owners' tables and
/// keeps showing it: nothing withdrawn comes back.
fn check(steps: Vec<Step>, direct_up_to: usize) {
    let mut net = Net::new(&[]);
    net.direct_up_to = direct_up_to;
    net.fill(&["west"; NODES]);
    for step in steps {
        run(&mut net, step);
    }
    for at in 0..NODES {
        (0..at).for_each(|other| net.link(other, at));
    }
    net.pass(Duration::from_secs(90));
    let union: BTreeSet<_> = (0..NODES)
        .flat_map(|at| net.nodes[at].records.iter().map(move |record| (record.service.to_string(), at)))
        .collect();
    for _ in 0..3 {
        for at in 0..NODES {
            assert_eq!(seen(&net, at), union, "node {at}");
        }
        net.pass(Duration::from_secs(10));
    }
    let roots: BTreeSet<_> = net.nodes.iter().map(|sim| sim.catalog.root_hash()).collect();
    assert_eq!(roots.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn r5_every_history_converges_to_the_union_of_the_owners_tables(steps in prop::collection::vec(step(), 1..30)) {
        check(steps, DIRECT_UP_TO);
    }

    #[test]
    fn r5_every_history_converges_in_trees_too(steps in prop::collection::vec(step(), 1..30)) {
        check(steps, 1);
    }
}

/// Found by the test above: the second loss uses a version again whose first bytes others hold.
#[test]
fn r4_a_node_that_lost_its_state_twice_is_shown_what_others_hold() {
    for _ in 0..8 {
        check(
            vec![Step::Publish(0, 1), Step::Lose(0), Step::Pass(1), Step::Publish(0, 2), Step::Lose(0)],
            DIRECT_UP_TO,
        );
    }
}
