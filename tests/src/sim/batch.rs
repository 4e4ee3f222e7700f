//! Many steps at one time: what happens at different nodes within the least delay of the network cannot be cause and
//! effect, so the processes there take their steps on all cores of this machine.
//!
//! Owns: which events go together, and the threads. Must not know: what events do. Driven by: the mesh.
//!
//! What is in a batch, and the order in which its effects are carried out, depends on the events alone and not on the
//! number of threads: one seed, one trace, on every machine.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{hint, mem, thread};

use gossamer_core::time::Now;
use gossamer_wire::frame::Frame;

use super::link::{End, end_of_part};
use super::mesh::{Event, Mesh};
use super::node::Process;
use super::wiring::{Effect, Stimulus};

/// Threads beside the one that runs the mesh, and which nodes the batch at hand has touched.
#[derive(Debug)]
pub(super) struct Helpers {
    count: usize,
    batches: u64,
    /// By node: the last batch that touched it.
    touched: Vec<u64>,
}

impl Helpers {
    /// Returns as many as there are cores to spare, and none for a small mesh, whose batches are short.
    pub(super) fn of(nodes: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let count = if nodes < SMALL { 0 } else { (cores - 1).min(MOST) };
        Self { count, batches: 0, touched: vec![0; nodes] }
    }

    /// Marks a node; `false` when this batch has touched it before.
    fn touch(&mut self, node: usize) -> bool {
        mem::replace(&mut self.touched[node], self.batches) != self.batches
    }
}

/// One event of a batch.
#[derive(Debug)]
enum Item {
    /// A process takes its step; the effects are known afterwards.
    Step { node: usize, effects: Vec<Effect> },
    /// Everything else has its turn in the order of time.
    Event(Event),
}

/// Events that do not depend on each other.
#[derive(Debug, Default)]
struct Batch {
    /// How many there are, with those that came to nothing.
    events: u64,
    items: Vec<(Duration, Item)>,
    jobs: Vec<Job>,
}

/// A step of a process, away from its node.
#[derive(Debug)]
struct Job {
    item: usize,
    node: usize,
    process: Box<Process>,
    stimulus: Stimulus,
    now: Now,
}

/// A job that is done.
#[derive(Debug)]
struct Done {
    item: usize,
    node: usize,
    process: Box<Process>,
    effects: Vec<Effect>,
}

impl Job {
    fn run(self) -> Done {
        let Self { item, node, mut process, stimulus, now } = self;
        let effects = process.step(stimulus, now);
        Done { item, node, process, effects }
    }
}

impl Mesh {
    /// Sets how many threads help; the outcome is the same.
    #[cfg(test)]
    pub(super) fn set_helpers(&mut self, count: usize) {
        self.helpers.count = count;
    }

    /// Does everything that is due by a moment.
    pub fn run(&mut self, until: Duration) {
        let bench = Bench::default();
        thread::scope(|scope| {
            // Ends the helpers also when a step panics: the scope waits for them.
            let _closing = Closing(&bench);
            for _ in 0..self.helpers.count {
                scope.spawn(|| {
                    let _closing = Closing(&bench);
                    bench.help();
                });
            }
            while self.batch(&bench, until) {}
        });
        self.now = self.now.max(until);
    }

    /// Does the next events that do not depend on each other; `false` when none is due.
    fn batch(&mut self, bench: &Bench, until: Duration) -> bool {
        let Batch { events, mut items, jobs } = self.gather(until);
        self.events += events;
        let done = if self.helpers.count == 0 || jobs.len() < SHARED_FROM {
            jobs.into_iter().map(Job::run).collect()
        } else {
            bench.run(jobs)
        };
        for Done { item, node, process, effects } in done {
            self.nodes[node].process = Some(process);
            items[item].1 = Item::Step { node, effects };
        }
        for (at, item) in items {
            self.now = at;
            match item {
                Item::Step { node, effects } => self.carry_out(node, effects),
                Item::Event(event) => {
                    if let Some((node, stimulus)) = self.handle(event) {
                        self.step(node, stimulus);
                    }
                }
            }
        }
        events > 0
    }

    /// Takes events from the queue as long as each is at another node and none can be of the others' making.
    fn gather(&mut self, until: Duration) -> Batch {
        let Batch { mut events, mut items, mut jobs } = Batch::default();
        self.helpers.batches += 1;
        let mut end = until;
        while let Some((at, event)) = self.queue.peek(end) {
            let place = place_of(self, event);
            if place.is_some_and(|node| !self.helpers.touch(node)) {
                break;
            }
            let Some((at, event)) = self.queue.pop(at) else { break };
            if events == 0 {
                end = until.min(at + self.net.least_delay().saturating_sub(Duration::from_nanos(1)));
            }
            events += 1;
            if !begins_with_a_step(&event) {
                items.push((at, Item::Event(event)));
                continue;
            }
            self.now = at;
            let Some((node, stimulus)) = self.handle(event) else { continue };
            let now = self.clock(node);
            if let Some(process) = self.nodes[node].process.take() {
                jobs.push(Job { item: items.len(), node, process, stimulus, now });
                items.push((at, Item::Step { node, effects: Vec::new() }));
            }
        }
        Batch { events, items, jobs }
    }
}

/// Returns the node whose process an event is about; `None` for those that only move packets.
fn place_of(mesh: &Mesh, event: &Event) -> Option<usize> {
    match event {
        Event::Wake { node, .. }
        | Event::Save { node, .. }
        | Event::Sweep { node, .. }
        | Event::Gone { node, .. }
        | Event::DialFailed { node, .. } => Some(*node),
        Event::Frame { conn, to: end, .. }
        | Event::Datagram { conn, to: end, .. }
        | Event::Closed { conn, end } => mesh.links.node_at(*conn, *end),
        Event::Shaken { conn, part } => mesh.links.node_at(*conn, end_of_part(*part)),
        Event::DialOver { conn } => mesh.links.node_at(*conn, End::Dialer),
        Event::Shake { .. } | Event::Retry { .. } => None,
    }
}

/// Whether all that an event does to the world before a process has its turn is at that node alone.
fn begins_with_a_step(event: &Event) -> bool {
    match event {
        Event::Wake { .. } | Event::Datagram { .. } => true,
        Event::Frame { frame, .. } => !matches!(**frame, Frame::Hello(_)),
        _ => false,
    }
}

/// Where the steps of one batch lie.
#[derive(Debug, Default)]
struct Bench {
    work: Mutex<Work>,
    has_work: Condvar,
    is_done: Condvar,
    /// Jobs nobody has taken and jobs that are done, as a thread sees them that looks for a moment before it sleeps.
    left: AtomicUsize,
    done: AtomicUsize,
}

#[derive(Debug, Default)]
struct Work {
    jobs: Vec<Job>,
    done: Vec<Done>,
    is_over: bool,
}

impl Bench {
    /// Runs all jobs, on this thread and those that help, in no order.
    fn run(&self, jobs: Vec<Job>) -> Vec<Done> {
        let count = jobs.len();
        self.done.store(0, Ordering::Release);
        self.work().jobs = jobs;
        self.left.store(count, Ordering::Release);
        self.has_work.notify_all();
        while self.run_one() {}
        self.wait_for(count)
    }

    /// Runs jobs until there will be no more.
    fn help(&self) {
        loop {
            while self.run_one() {}
            look(|| self.left.load(Ordering::Acquire) > 0);
            let mut work = self.work();
            while work.jobs.is_empty() {
                if work.is_over {
                    return;
                }
                work = self.has_work.wait(work).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn run_one(&self) -> bool {
        let mut work = self.work();
        let Some(job) = work.jobs.pop() else { return false };
        self.left.store(work.jobs.len(), Ordering::Release);
        drop(work);
        let done = job.run();
        let mut work = self.work();
        work.done.push(done);
        self.done.store(work.done.len(), Ordering::Release);
        drop(work);
        self.is_done.notify_one();
        true
    }

    fn wait_for(&self, count: usize) -> Vec<Done> {
        look(|| self.done.load(Ordering::Acquire) == count);
        let mut work = self.work();
        while work.done.len() < count {
            assert!(!work.is_over, "a step panicked");
            work = self.is_done.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
        mem::take(&mut work.done)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for something for about as long as a batch takes: to sleep and to be woken takes longer.
fn look(mut is_there: impl FnMut() -> bool) {
    for _ in 0..LOOKS {
        if is_there() {
            return;
        }
        hint::spin_loop();
    }
}

/// Says at its end that there will be no more work.
struct Closing<'a>(&'a Bench);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.work().is_over = true;
        self.0.has_work.notify_all();
        self.0.is_done.notify_all();
    }
}

/// Meshes below this run on one thread: scenarios of tens of nodes, many of which run at one time.
const SMALL: usize = 200;

/// More threads than this find nothing to do.
const MOST: usize = 3;

/// Looks of a thread that waits, some 0.2 ms.
const LOOKS: usize = 5_000;

/// A batch shorter than this is over before another thread has woken.
const SHARED_FROM: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{self, Scenario};

    fn report(helpers: usize, seed: u64) -> (u64, u64) {
        let text = "name = 't'\nabout = 'a'\nnodes = 24\nstart_over = 0.2\n
            [net]\ndelay_ms = [5, 9]\nloss = 0.05\nduplicate = 0.02\nreorder = 0.05\n
            [[step]]\nat = 1\nkill = { nodes = 'all', pick = 2 }\n
            [[step]]\nat = 1\npublish = { nodes = '0-9', count = 1 }\n
            [[step]]\nat = 2\nrestart = { nodes = '3', disk = 'lost' }\n
            [[step]]\nat = 3\nleave = { nodes = '4' }\n";
        let scenario = Scenario::parse("t", text).expect("a scenario");
        let mut mesh = Mesh::new(&scenario, seed).expect("mesh");
        mesh.set_helpers(helpers);
        let report = scenario::play(&scenario, seed, &mut mesh).expect("plays");
        assert!(report.holds(), "{report}");
        (report.trace.expect("a trace"), mesh.effort().0)
    }

    #[test]
    fn one_thread_and_many_give_one_trace() {
        let alone = report(0, 1);
        assert!((0..3).all(|_| report(3, 1) == alone));
        assert_ne!(report(3, 2), alone);
    }

    #[test]
    fn a_batch_touches_each_node_once_and_ends_with_the_least_delay() {
        let scenario = Scenario::parse("t", "name = 't'\nabout = 'a'\nnodes = 3\n[net]\ndelay_ms = [1, 2]\n");
        let mut mesh = Mesh::new(&scenario.expect("a scenario"), 1).expect("mesh");
        let us = Duration::from_micros;
        let wake = |node| Event::Wake { node, life: 0 };
        for (at, node) in [(0, 0), (10, 1), (999, 2), (1_000, 1), (1_001, 0), (1_002, 1)] {
            mesh.at(us(at), wake(node));
        }
        let mut sizes = Vec::new();
        while sizes.last() != Some(&0) {
            sizes.push(mesh.gather(us(5_000)).events);
        }
        assert_eq!(sizes, [3, 2, 1, 0]);
    }

    #[test]
    #[should_panic(expected = "a step panicked")]
    fn a_helper_that_panics_ends_the_run() {
        let bench = Bench::default();
        drop(Closing(&bench));
        bench.wait_for(1);
    }
}
