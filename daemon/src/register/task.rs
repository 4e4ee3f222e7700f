//! The owner task of the registry: collects requests, writes them, publishes them, answers.
//!
//! Owns: the book, and the order "on disk, given to the catalog, answered".
//! Must not know: who asks, rules of registration, verdicts. Driven by: requests and finished checks.

use std::sync::Arc;

use arc_swap::ArcSwap;
use gossamer_core::access::Policy;
use gossamer_wire::ServiceRecord;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::book::{Book, Draft, Learned, Planned};
use super::checks::{Checks, Done};
use super::drain::{DrainError, DrainRequest, Drained};
use super::request::{ExposeError, ExposeRequest, Exposed, WithdrawError, WithdrawRequest, Withdrawn};
use super::spec::{FILE, Stored};
use super::{Change, Leaving, LocalService, Raise};
use crate::store::{Store, StoreError};
use crate::supervise::Stage;

/// A request with the way back to who asked.
#[derive(Debug)]
pub(super) enum Command {
    Expose(Box<ExposeRequest>, oneshot::Sender<Result<Exposed, ExposeError>>),
    Withdraw(WithdrawRequest, oneshot::Sender<Result<Withdrawn, WithdrawError>>),
    Drain(DrainRequest, oneshot::Sender<Result<Drained, DrainError>>),
}

/// Most requests that share one write: more would only make the first of them wait.
const MAX_BATCH: usize = 64;

/// A request that waits for its draft to be durable.
enum Waiting {
    Expose(Planned, oneshot::Sender<Result<Exposed, ExposeError>>),
    Withdraw(Withdrawn, oneshot::Sender<Result<Withdrawn, WithdrawError>>),
    Drain(Drained, oneshot::Sender<Result<Drained, DrainError>>),
}

pub(super) struct Task {
    pub(super) book: Book,
    pub(super) checks: Checks,
    pub(super) store: Store,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) raises: mpsc::Receiver<Vec<Raise>>,
    pub(super) policies: mpsc::Receiver<(Policy, oneshot::Sender<()>)>,
    pub(super) policy_holds: watch::Sender<Policy>,
    pub(super) snapshot: Arc<ArcSwap<Vec<LocalService>>>,
    pub(super) access_changed: watch::Sender<()>,
    pub(super) records: mpsc::Sender<Vec<ServiceRecord>>,
    pub(super) leaving: Leaving,
    pub(super) events: Box<dyn Fn(Change) + Send>,
}

enum Input {
    Stop,
    Leave,
    Checked(Done),
    Raised(Vec<Raise>),
    Ruled(Policy, oneshot::Sender<()>),
    Asked(Command),
}

impl Task {
    /// Runs until the stage stops. What was restored is checked before it is published.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let restored = self.book.checks();
        let learned = self.check_first(restored).await;
        self.publish().await;
        self.keep(learned).await;
        self.checks.schedule_scan();
        loop {
            // Finished checks come first: they are few and cheap, and requests may come without end.
            let input = tokio::select! {
                biased;
                () = stop.cancelled() => Input::Stop,
                () = self.leaving.asked.cancelled(), if !self.leaving.done.is_cancelled() => Input::Leave,
                done = self.checks.next() => Input::Checked(done),
                Some(raises) = self.raises.recv() => Input::Raised(raises),
                Some((policy, answer)) = self.policies.recv() => Input::Ruled(policy, answer),
                Some(command) = self.commands.recv() => Input::Asked(command),
            };
            match input {
                Input::Stop => return,
                Input::Leave => {
                    self.book.leave();
                    self.publish().await;
                    self.leaving.done.cancel();
                }
                Input::Checked(done) => self.take_check(done).await,
                Input::Raised(raises) => self.raise(raises).await,
                Input::Ruled(policy, answer) => {
                    if self.book.set_policy(policy) {
                        self.policy_holds.send_replace(policy);
                        self.publish().await;
                    }
                    // Who asked may have gone; the policy holds.
                    let _ = answer.send(());
                }
                Input::Asked(first) => self.commit(first).await,
            }
        }
    }

    /// Puts a request and those behind it into one draft, makes it durable, publishes it, answers.
    async fn commit(&mut self, first: Command) {
        let mut draft = self.book.draft();
        let (mut waiting, mut learned) = (Vec::new(), Learned::Nothing);
        let mut next = Some(first);
        while let Some(command) = next {
            waiting.extend(plan(command, &mut draft, &self.book));
            next = if waiting.len() < MAX_BATCH { self.commands.try_recv().ok() } else { None };
        }
        if draft.is_changed() {
            let stored = self.book.stored(&draft);
            if let Err(error) = self.write(stored).await {
                tracing::warn!(err = %error, "a registration could not be written");
                return refuse(waiting, &Arc::new(error));
            }
            let (changes, fresh) = self.book.adopt(draft);
            learned = self.check_first(fresh).await;
            if !self.publish().await {
                return; // Who waits is told that the daemon is stopping.
            }
            changes.into_iter().for_each(&self.events);
        }
        for request in waiting {
            // Who asked may have gone; the registration stays.
            match request {
                Waiting::Expose(planned, answer) => drop(answer.send(Ok(self.book.exposed(&planned)))),
                Waiting::Withdraw(withdrawn, answer) => drop(answer.send(Ok(withdrawn))),
                Waiting::Drain(drained, answer) => drop(answer.send(Ok(drained))),
            }
        }
        self.keep(learned).await;
    }

    /// Raises `try`s, durably before others hear of them. What cannot be written is raised at the next look.
    async fn raise(&mut self, raises: Vec<Raise>) {
        let mut draft = self.book.draft();
        raises.into_iter().for_each(|raise| draft.raise(raise));
        if !draft.is_changed() {
            return;
        }
        if let Err(error) = self.write(self.book.stored(&draft)).await {
            return tracing::warn!(err = %error, "the new virtual address of a service could not be written");
        }
        let (changes, _) = self.book.adopt(draft);
        self.publish().await;
        changes.into_iter().for_each(&self.events);
    }

    async fn take_check(&mut self, done: Done) {
        match done {
            Done::Probe(id, probe) => {
                let change = self.book.observe(&id, probe);
                if self.book.has(&id) {
                    self.checks.schedule(id);
                }
                if let Some(change) = change {
                    self.publish().await;
                    (self.events)(change);
                }
            }
            Done::Scan(tcp, udp) => {
                self.checks.schedule_scan();
                let learned = self.book.observe_listeners(&tcp, &udp);
                if learned != Learned::Nothing {
                    self.publish_targets();
                }
                self.keep(learned).await;
            }
        }
    }

    /// Checks targets at once, so that their first verdict is known before anybody hears of them. Returns what
    /// the reading of the listeners taught.
    async fn check_first(&mut self, ids: Vec<super::book::CheckId>) -> Learned {
        if ids.is_empty() {
            return Learned::Nothing;
        }
        let (probes, (tcp, udp)) = self.checks.first(ids).await;
        for (id, probe) in probes {
            self.book.observe(&id, probe);
            self.checks.schedule(id);
        }
        self.book.observe_listeners(&tcp, &udp)
    }

    /// Gives targets to the relay and records to the catalog, in this order: a flow finds its target.
    /// Returns whether the catalog took them; it does until the daemon stops.
    async fn publish(&mut self) -> bool {
        self.publish_targets();
        self.records.send(self.book.records()).await.is_ok()
    }

    fn publish_targets(&self) {
        let services = Arc::new(self.book.services());
        let before = self.snapshot.swap(Arc::clone(&services));
        self.access_changed.send_if_modified(|()| has_other_access(&before, &services));
    }

    /// Writes what was learned about listeners, if the file has it at all. Nobody was promised that: nobody waits
    /// for it, and a failure is only reported.
    async fn keep(&mut self, learned: Learned) {
        if learned != Learned::Lasting {
            return;
        }
        let stored = self.book.stored(&self.book.draft());
        if let Err(error) = self.write(stored).await {
            tracing::warn!(err = %error, "what listens on the targets' ports could not be written");
        }
    }

    async fn write(&mut self, stored: Stored) -> Result<(), StoreError> {
        let store = self.store.clone();
        Stage::blocking(move || store.write_json(FILE, &stored)).await
    }
}

/// Returns whether something is called by others than before: a check that passes or fails is no such change.
fn has_other_access(before: &[LocalService], after: &[LocalService]) -> bool {
    let is_same = |(one, other): (&LocalService, &LocalService)| {
        let targets = one.targets.iter().zip(&other.targets);
        let is_one = (&one.record.service, &one.record.instance, &one.record.ports)
            == (&other.record.service, &other.record.instance, &other.record.ports);
        is_one && targets.into_iter().all(|(one, other)| Arc::ptr_eq(&one.access, &other.access))
    };
    before.len() != after.len() || !before.iter().zip(after).all(is_same)
}

/// Puts a request into the draft, or answers it at once when it breaks a rule.
fn plan(command: Command, draft: &mut Draft, book: &Book) -> Option<Waiting> {
    match command {
        Command::Expose(request, answer) => match draft.expose(*request, book.rules()) {
            Ok(planned) => Some(Waiting::Expose(planned, answer)),
            Err(error) => {
                let _ = answer.send(Err(error));
                None
            }
        },
        Command::Withdraw(request, answer) => match draft.withdraw(&request) {
            Ok(withdrawn) => Some(Waiting::Withdraw(withdrawn, answer)),
            Err(error) => {
                let _ = answer.send(Err(error));
                None
            }
        },
        Command::Drain(request, answer) => match draft.drain(&request) {
            Ok(drained) => Some(Waiting::Drain(drained, answer)),
            Err(error) => {
                let _ = answer.send(Err(error));
                None
            }
        },
    }
}

/// Tells everybody who waits that nothing was registered or withdrawn.
fn refuse(waiting: Vec<Waiting>, error: &Arc<StoreError>) {
    for request in waiting {
        match request {
            Waiting::Expose(_, answer) => drop(answer.send(Err(ExposeError::NotDurable(Arc::clone(error))))),
            Waiting::Withdraw(_, answer) => {
                drop(answer.send(Err(WithdrawError::NotDurable(Arc::clone(error)))));
            }
            Waiting::Drain(_, answer) => drop(answer.send(Err(DrainError::NotDurable(Arc::clone(error))))),
        }
    }
}
