//! Tasks: named, tracked, stopped in stages. The only module that spawns.
//!
//! Owns: the tracker, the stop tokens, the first failure. Must not know: what tasks do.
//! Driven by: `app`, which makes one stage per part and stops them in reverse order.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::{EnterGuard, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// Runs tasks somewhere else than directly on the tokio runtime: a simulator holds those of one node still.
pub trait Executor: fmt::Debug + Send + Sync {
    /// Starts a task. It may be dropped before its end.
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>);

    /// Makes sockets and timers that are made here belong to where the tasks run, until the guard is dropped; `None` when
    /// that is the current runtime.
    fn enter(&self) -> Option<EnterGuard<'_>> {
        None
    }
}

/// A thread with a runtime of its own. Tasks that hand bytes to each other cost a third less when none of them has to
/// wake another thread (`docs/adr/0035-a-thread-for-data.md`). It ends when this is dropped.
#[derive(Debug)]
pub struct OwnThread {
    runtime: Handle,
    _stop: DropGuard,
}

impl OwnThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread or no descriptors.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn start(name: &str) -> io::Result<Arc<Self>> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().max_io_events_per_tick(EVENTS).build()?;
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(stopped.cancelled());
            // A blocking read must not keep the process.
            runtime.shutdown_background();
        })?;
        Ok(Arc::new(Self { runtime: handle, _stop: stop.drop_guard() }))
    }
}

impl Executor for OwnThread {
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        drop(self.runtime.spawn(task));
    }

    fn enter(&self) -> Option<EnterGuard<'_>> {
        Some(self.runtime.enter())
    }
}

/// Sockets that are served before what they led to goes out. With many the other side would have nothing to do meanwhile, and
/// then everything at once.
const EVENTS: usize = 16;

/// A group of tasks that stop together. Clones are handles to the same group.
#[derive(Clone, Debug)]
pub struct Stage {
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Cancelled when any task of any stage ends early.
    failed: CancellationToken,
    first_failure: Arc<OnceLock<&'static str>>,
    /// Where tasks run; the current runtime unless told otherwise.
    executor: Option<Arc<dyn Executor>>,
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            failed: CancellationToken::new(),
            first_failure: Arc::default(),
            executor: None,
        }
    }
}

impl Stage {
    /// Makes a stage whose tasks run on an executor.
    pub fn on(executor: Arc<dyn Executor>) -> Self {
        Self { executor: Some(executor), ..Self::default() }
    }

    /// Makes another stage that shares only the report of failures and the executor.
    #[must_use]
    pub fn next(&self) -> Self {
        Self {
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            failed: self.failed.clone(),
            first_failure: Arc::clone(&self.first_failure),
            executor: self.executor.clone(),
        }
    }

    /// Makes another stage as [`Self::next`] does, whose tasks run on an executor.
    #[must_use]
    pub fn next_on(&self, executor: Arc<dyn Executor>) -> Self {
        Self { executor: Some(executor), ..self.next() }
    }

    /// Makes sockets and timers belong to where the tasks of the stage run, until the guard is dropped.
    pub fn enter(&self) -> Option<EnterGuard<'_>> {
        self.executor.as_ref().and_then(|executor| executor.enter())
    }

    /// Runs a task for the life of the stage. Its end before [`Stage::stop`] is a failure of the daemon, also
    /// when it panics.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = FailureGuard { stage: self.clone(), name };
        let task = async move {
            task.await;
            drop(guard);
        };
        self.spawn_tracked(task.instrument(tracing::debug_span!("task", name)));
    }

    /// Runs a task that may end at any time: one connection, one flow.
    pub fn spawn_short<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_tracked(task.instrument(tracing::debug_span!("task", name)));
    }

    /// Runs a task of a library where the tasks of the stage run. It ends by itself, some time after what it
    /// serves is dropped; the stop of the stage does not wait for it.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn_foreign<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match &self.executor {
            Some(executor) => executor.execute(Box::pin(task)),
            None => drop(tokio::spawn(task)),
        }
    }

    fn spawn_tracked<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_foreign(self.tasks.track_future(task));
    }

    /// Runs a blocking function, for example an fsync, on tokio's blocking threads.
    pub async fn blocking<T, F>(function: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        let handle = tokio::task::spawn_blocking(function);
        match handle.await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Returns the token that is cancelled when the stage must stop.
    pub const fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Resolves when any task of any stage has ended early, with its name.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failure(&self) -> &'static str {
        self.failed.cancelled().await;
        self.first_failure.get().copied().unwrap_or("unknown")
    }

    /// Asks all tasks to stop and waits for them at most `deadline`. Returns how many are left.
    pub async fn stop(&self, deadline: Duration) -> usize {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "tasks did not stop in time");
        }
        self.tasks.len()
    }
}

/// Reports the end of a task unless its stage is stopping; dropped also when the task panics.
struct FailureGuard {
    stage: Stage,
    name: &'static str,
}

impl Drop for FailureGuard {
    fn drop(&mut self) {
        if !self.stage.stop.is_cancelled() {
            let _ = self.stage.first_failure.set(self.name);
            tracing::error!(task = self.name, "task ended early");
            self.stage.failed.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_early_is_named() {
        let stage = Stage::default();
        stage.next().spawn("worker", async {});
        assert_eq!(stage.failure().await, "worker");
    }

    /// Keeps tasks instead of running them.
    #[derive(Default)]
    struct Kept(std::sync::Mutex<Vec<Pin<Box<dyn Future<Output = ()> + Send>>>>);

    impl fmt::Debug for Kept {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Kept")
        }
    }

    impl Executor for Kept {
        fn execute(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
            self.0.lock().expect("one thread").push(task);
        }
    }

    #[tokio::test]
    async fn an_executor_gets_the_tasks_of_all_stages_made_from_its_own() {
        let kept = Arc::new(Kept::default());
        let stage = Stage::on(Arc::<Kept>::clone(&kept));
        stage.next().spawn("worker", async {});
        stage.spawn_foreign(async {});
        let tasks = std::mem::take(&mut *kept.0.lock().expect("one thread"));
        assert_eq!(tasks.len(), 2);
        tasks.into_iter().next().expect("the worker").await;
        assert_eq!(stage.failure().await, "worker");
    }

    #[tokio::test]
    async fn a_thread_of_its_own_runs_the_tasks_of_its_stages_and_ends_with_them() {
        let thread = OwnThread::start("data").expect("starts");
        let stage = Stage::default().next_on(Arc::<OwnThread>::clone(&thread));
        let (said, heard) = tokio::sync::oneshot::channel();
        stage.spawn_short("task", async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let _ = said.send(std::thread::current().name().map(str::to_owned));
        });
        assert_eq!(heard.await.expect("runs").as_deref(), Some("data"));
        let (kept, dropped) = tokio::sync::oneshot::channel::<()>();
        stage.spawn_foreign(async move {
            std::future::pending::<()>().await;
            drop(kept);
        });
        drop((stage, thread));
        assert!(dropped.await.is_err(), "the thread has ended");
    }

    #[tokio::test]
    async fn a_task_that_panics_is_named() {
        let stage = Stage::default();
        stage.spawn("worker", async { panic!("on purpose") });
        assert_eq!(stage.failure().await, "worker");
    }

    #[tokio::test]
    async fn stopping_ends_all_tasks_and_is_no_failure() {
        let stage = Stage::default();
        for _ in 0..100 {
            let stop = stage.stopping().clone();
            stage.spawn("worker", async move { stop.cancelled().await });
        }
        assert_eq!(stage.stop(Duration::from_secs(5)).await, 0);
        assert!(stage.first_failure.get().is_none());
    }
}
