//! The tries of one round: instances are asked one after the other and, when one is slow, beside each other (ADR 33).
//!
//! Owns: who is asked when, and what a failure says of an instance. Must not know: streams, bytes, why one is a candidate.
//! Driven by: `outbound`, with the candidates in their order.
//!
//! One instance at a time gets what the client says. After [`ATTEMPT`] without its answer the next one is asked beside
//! it, without a word of the client; what the client said goes there only when it has answered first, and the slow one
//! was given up, which resets its stream.

use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until, timeout_at};

use gossamer_core::vip::VipName;
use gossamer_wire::flow::OpenStatus;

use super::access::{Missed, Reason};
use super::flow::FlowId;
use super::outbound::{Choice, Try};
use super::places::Place;
use super::{Relay, count};

/// Why one instance did not take the flow.
#[derive(Debug)]
pub(super) enum Failure {
    /// It says no: access, or no such target.
    Denied,
    /// It takes no new flows.
    Draining,
    /// Its node has too many flows.
    Busy,
    /// Its target refused the connection.
    Refused,
    /// It gave no answer in time.
    Slow,
    /// Its node was not reached, or broke off.
    Unreached(String),
    /// The client went away.
    Client,
}

/// An instance that is asked beside another one.
pub(super) type Beside<'a, F> = Pin<Box<dyn Future<Output = Result<F, Failure>> + Send + 'a>>;

/// What a round is about.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) flow: FlowId,
    pub(super) name: &'a VipName,
    /// When looking for an instance ends.
    pub(super) deadline: Instant,
}

/// How a round ended.
pub(super) enum Round<F> {
    /// An instance took the flow, after so long.
    Open(Choice, F, Duration),
    /// None did.
    Failed(Failures),
    /// The client went away.
    ClientGone,
}

/// What the instances of a round said.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) denied: usize,
    /// Those from which no answer came, or one that says that another will do soon.
    pub(super) open: usize,
    /// The last one, in words.
    pub(super) last: Option<String>,
    /// The last one, for the access line.
    pub(super) missed: Option<Missed>,
}

/// Instances tried in vain, by reason. All only grow.
#[derive(Debug, Default)]
pub struct TriesInVain {
    denied: AtomicU64,
    draining: AtomicU64,
    busy: AtomicU64,
    refused: AtomicU64,
    slow: AtomicU64,
    unreached: AtomicU64,
    /// It was open and broke before a byte had passed.
    pub(super) unseen: AtomicU64,
}

impl TriesInVain {
    /// Returns them by reason.
    pub fn by_reason(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("busy", &self.busy),
            ("denied", &self.denied),
            ("draining", &self.draining),
            ("refused", &self.refused),
            ("slow", &self.slow),
            ("unreached", &self.unreached),
            ("unseen", &self.unseen),
        ];
        all.map(|(reason, counter)| (reason, counter.load(std::sync::atomic::Ordering::Relaxed))).into()
    }
}

impl Relay {
    /// Tries the instances until one takes the flow.
    pub(super) async fn round<T: Try>(
        &self,
        call: Call<'_>,
        choices: &[Choice],
        attempt: &mut T,
    ) -> Round<T::Far> {
        let mut failures = Failures::default();
        let mut asked = FuturesUnordered::new();
        let mut left = choices.iter();
        loop {
            let Some(choice) = left.next() else {
                // Nobody is left but those that were asked beside another.
                match asked.next().await {
                    Some((choice, took, Ok(far))) => return Round::Open(Choice::clone(choice), far, took),
                    Some((choice, _, Err(failure))) => self.in_vain(call, choice, failure, &mut failures),
                    None => return Round::Failed(failures),
                }
                continue;
            };
            let began = Instant::now();
            let mut tried = pin!(attempt.try_one(self, call.flow, call.name, choice));
            let limit = call.deadline.min(began + LAST_ATTEMPT);
            let mut next_at = began + ATTEMPT;
            let failure = loop {
                tokio::select! {
                    biased;
                    opened = &mut tried => match opened {
                        Ok(far) => return Round::Open(choice.clone(), far, began.elapsed()),
                        Err(failure) => break failure,
                    },
                    Some((beside, took, answer)) = asked.next() => match answer {
                        Ok(far) => {
                            // Dropped here, its stream is reset: from now on only one has the client's words.
                            if began.elapsed() >= ATTEMPT {
                                self.in_vain(call, choice, Failure::Slow, &mut failures);
                            }
                            count(&self.counters.overtaken);
                            return Round::Open(Choice::clone(beside), far, took);
                        }
                        Err(failure) => self.in_vain(call, beside, failure, &mut failures),
                    },
                    () = sleep_until(limit) => break Failure::Slow,
                    () = sleep_until(next_at), if left.len() > 0 => {
                        let Some(beside) = left.as_slice().first() else { continue };
                        // All slow is no reason to ask for more: what is asked beside is bounded.
                        let Some(place) = self.beside.take(call.name.service()) else {
                            next_at = Instant::now() + PLACE_PAUSE;
                            continue;
                        };
                        // Who cannot be asked beside the slow one is tried when that was given up.
                        let Some(ask) = attempt_beside::<T>(self, call, beside, place) else { break Failure::Slow };
                        left.next();
                        asked.push(ask);
                        next_at = Instant::now() + ATTEMPT;
                    }
                }
            };
            if matches!(failure, Failure::Client) {
                return Round::ClientGone;
            }
            self.in_vain(call, choice, failure, &mut failures);
        }
    }

    /// Notes that an instance did not take the flow, and what that says of it.
    fn in_vain(&self, call: Call<'_>, choice: &Choice, failure: Failure, failures: &mut Failures) {
        count(&self.counters.retries);
        failures.missed = Some(Missed { choice: choice.clone(), reason: failure.reason() });
        let counts = &self.counters.in_vain;
        let (counter, is_its_fault) = match &failure {
            Failure::Denied => {
                failures.denied += 1;
                return count(&counts.denied);
            }
            Failure::Client => return,
            // It says so itself, and soon its record does.
            Failure::Draining => (&counts.draining, false),
            Failure::Busy => (&counts.busy, true),
            Failure::Refused => (&counts.refused, true),
            Failure::Slow => (&counts.slow, true),
            Failure::Unreached(_) => (&counts.unreached, true),
        };
        count(counter);
        failures.open += usize::from(!failure.is_final());
        let why = failure.to_string();
        tracing::debug!(flow = %call.flow, peer = %choice.node_name, reason = %why, "instance not reached");
        if is_its_fault {
            self.flows.failed(choice.key(call.name), Instant::now().into_std());
        }
        failures.last = Some(format!("{} on {}: {why}", choice.instance, choice.node_name));
    }
}

/// What becomes of an instance that is asked beside another one, and how long that took.
type Asked<'a, F> = Pin<Box<dyn Future<Output = (&'a Choice, Duration, Result<F, Failure>)> + Send + 'a>>;

fn attempt_beside<'a, T: Try + 'a>(
    relay: &'a Relay,
    call: Call<'a>,
    choice: &'a Choice,
    place: Place,
) -> Option<Asked<'a, T::Far>> {
    let began = Instant::now();
    let ask = T::ask_beside(relay, call.flow, call.name, choice)?;
    let limit = call.deadline.min(began + LAST_ATTEMPT);
    Some(Box::pin(async move {
        let _place = place;
        let answer = timeout_at(limit, ask).await.unwrap_or(Err(Failure::Slow));
        (choice, began.elapsed(), answer)
    }))
}

pub(super) fn unreached(error: impl ToString) -> Failure {
    Failure::Unreached(error.to_string())
}

impl Failure {
    /// Returns whether the instance has answered, so that only a restart can change its mind.
    const fn is_final(&self) -> bool {
        match self {
            Self::Denied | Self::Busy | Self::Refused | Self::Client => true,
            Self::Draining | Self::Slow | Self::Unreached(_) => false,
        }
    }

    /// Returns the word of access lines for it.
    const fn reason(&self) -> Reason {
        match self {
            Self::Denied => Reason::Denied,
            Self::Draining => Reason::Draining,
            Self::Busy => Reason::Busy,
            Self::Refused => Reason::Refused,
            Self::Slow | Self::Unreached(_) => Reason::Unreachable,
            Self::Client => Reason::ClientGone,
        }
    }
}

impl From<OpenStatus> for Failure {
    fn from(status: OpenStatus) -> Self {
        match status {
            OpenStatus::Denied => Self::Denied,
            OpenStatus::Busy => Self::Busy,
            OpenStatus::Draining => Self::Draining,
            OpenStatus::Refused | OpenStatus::Open => Self::Refused,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Denied => "denied",
            Self::Draining => "it is draining",
            Self::Busy => "the node has too many flows, or can open no more files",
            Self::Refused => "the target refused the connection",
            Self::Slow => "no answer in time",
            Self::Unreached(why) => why,
            Self::Client => "the client went away",
        })
    }
}

/// How long one instance is waited for before the next is asked beside it (design section 9): above the answer of
/// another continent, below what a person notices.
pub(super) const ATTEMPT: Duration = Duration::from_millis(250);

/// Between two looks for such a place.
const PLACE_PAUSE: Duration = Duration::from_millis(25);

/// How long one may take to answer: a first connection over a long path needs about a second.
pub(super) const LAST_ATTEMPT: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests;
