//! Holding the tasks of one node still, and ending them without a word.
//!
//! Owns: whether a node's code runs. Must not know: what its tasks do. Driven by: the fabric's acts; the node's
//! stages start their tasks here, quinn's among them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use gossamer::supervise::Executor;
use tokio::task::AbortHandle;

/// The gate all tasks of one life of a node pass at every step.
#[derive(Clone, Default)]
pub struct Gate(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    is_shut: bool,
    /// Who was to run while it was shut.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    /// When ended tasks are forgotten next, by their number.
    prune_at: usize,
}

impl Gate {
    /// Lets no task run. Time goes on, timers fire, datagrams arrive: nobody notices.
    pub fn shut(&self) {
        self.state().is_shut = true;
    }

    /// Lets tasks run again, in the order in which they were to run.
    pub fn open(&self) {
        let mut state = self.state();
        state.is_shut = false;
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// Drops all tasks where they stand.
    pub fn end(&self) {
        self.state().tasks.drain(..).for_each(|task| task.abort());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executor for Gate {
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let task = tokio::spawn(Gated { gate: self.clone(), task });
        let mut state = self.state();
        if state.tasks.len() >= state.prune_at {
            state.tasks.retain(|task| !task.is_finished());
            state.prune_at = 2 * state.tasks.len() + 64;
        }
        state.tasks.push(task.abort_handle());
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

struct Gated {
    gate: Gate,
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        {
            let mut state = self.gate.state();
            if state.is_shut {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.task.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    fn ticking(gate: &Gate) -> Arc<AtomicU32> {
        let ticks = Arc::<AtomicU32>::default();
        let counted = Arc::clone(&ticks);
        gate.execute(Box::pin(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }));
        ticks
    }

    #[tokio::test(start_paused = true)]
    async fn a_shut_gate_holds_tasks_until_it_opens() {
        let gate = Gate::default();
        let ticks = ticking(&gate);
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        gate.shut();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 2);
        gate.open();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 3, "the timer that fired meanwhile, once");
    }

    #[tokio::test(start_paused = true)]
    async fn ended_tasks_are_dropped_also_behind_a_shut_gate() {
        let gate = Gate::default();
        let ticks = ticking(&gate);
        tokio::task::yield_now().await;
        gate.shut();
        gate.end();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(Arc::strong_count(&ticks), 1, "the task is gone");
    }
}
