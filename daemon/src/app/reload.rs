//! Settings that follow the configuration while the daemon runs.
//!
//! Owns: what the daemon runs with by key, which keys somebody takes over at once. Must not know: what a key means.
//! Driven by: the local API and SIGHUP; the wiring says who takes which key:
//!
//! ```text
//! reloader.takes(&["route"], move |settings| routes.set(&settings.routes))
//! ```
//!
//! A source with a fault changes nothing. Keys that nobody takes are named: they count after a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};

use crate::config::{ConfigError, Fault, Settings};
use crate::events::{Event, EventLog};
use crate::supervise::Stage;

/// Reads all sources of the configuration once more. Clones are handles to the same.
#[derive(Clone)]
pub struct Again(Arc<Read>);

type Read = dyn Fn() -> Result<Settings, ConfigError> + Send + Sync;

impl Again {
    /// Makes it of a function, which may block.
    pub fn new(read: impl Fn() -> Result<Settings, ConfigError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

type Applying = Pin<Box<dyn Future<Output = ()> + Send>>;
type Apply = Box<dyn Fn(&Settings) -> Applying + Send + Sync>;

/// Reads settings again. Clones are handles to the same one.
#[derive(Clone)]
pub struct Reloader(Arc<Parts>);

struct Parts {
    again: Again,
    live: Vec<(&'static [&'static str], Apply)>,
    /// What the daemon runs with, as the file would hold it. One reload at a time.
    running: Mutex<BTreeMap<&'static str, String>>,
    events: EventLog,
    /// Runs reloads.
    stage: Stage,
}

/// What a reload did; both lists by key, with the value as the file would hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Values that count from here on.
    pub applied: Vec<(&'static str, String)>,
    /// Values that count after a restart.
    pub restart: Vec<(&'static str, String)>,
}

/// Who takes which keys, before anything is read.
pub struct Takers(Parts);

impl Takers {
    /// Begins with what the daemon was started with; reloads run in the stage.
    pub fn new(again: Again, running: &Settings, events: EventLog, stage: Stage) -> Self {
        let running = Mutex::new(running.entries().into_iter().collect());
        Self(Parts { again, live: Vec::new(), running, events, stage })
    }

    /// Lets somebody take keys over at once, by a call that does not wait.
    #[must_use]
    pub fn takes(
        self,
        keys: &'static [&'static str],
        take: impl Fn(&Settings) + Send + Sync + 'static,
    ) -> Self {
        self.awaits(keys, move |settings| {
            take(settings);
            ready(())
        })
    }

    /// Lets somebody take keys over; they count when the future has ended.
    #[must_use]
    pub fn awaits<F>(
        mut self,
        keys: &'static [&'static str],
        take: impl Fn(&Settings) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.live.push((keys, Box::new(move |settings| Box::pin(take(settings)))));
        self
    }

    /// Ends the list.
    pub fn done(self) -> Reloader {
        Reloader(Arc::new(self.0))
    }
}

impl Reloader {
    /// Reads all sources and applies what can be.
    ///
    /// # Cancel safety
    /// Cancel safe: once begun it goes on to its end, so that what was applied and what is known to be agree.
    ///
    /// # Errors
    /// The operator's fault: all faults of all sources; everything stays as it was. A bug: the reload did not end.
    pub async fn reload(&self) -> Result<Reloaded, ConfigError> {
        let (this, (told, outcome)) = (self.clone(), oneshot::channel());
        self.0.stage.spawn_short("reload", async move {
            // Who asked may have gone away.
            let _ = told.send(this.read_and_apply().await);
        });
        outcome.await.unwrap_or_else(|_| Err(ConfigError { faults: vec![cut_off()] }))
    }

    async fn read_and_apply(&self) -> Result<Reloaded, ConfigError> {
        let parts = &*self.0;
        let mut running = parts.running.lock().await;
        let again = parts.again.clone();
        let settings = Stage::blocking(move || (again.0)()).await.inspect_err(|error| {
            tracing::warn!(faults = error.faults.len(), "the configuration is faulty; nothing was changed");
        })?;
        let changed: Vec<_> = settings.entries();
        let changed = changed.into_iter().filter(|(key, value)| running.get(key) != Some(value));
        let is_live = |key: &str| parts.live.iter().any(|(keys, _)| keys.contains(&key));
        let (applied, restart): (Vec<_>, Vec<_>) = changed.partition(|(key, _)| is_live(key));
        for (keys, apply) in &parts.live {
            if applied.iter().any(|(key, _)| keys.contains(key)) {
                apply(&settings).await;
                running.extend(applied.iter().filter(|(key, _)| keys.contains(key)).cloned());
            }
        }
        drop(running);
        let reloaded = Reloaded { applied, restart };
        self.tell(&reloaded);
        Ok(reloaded)
    }

    fn tell(&self, Reloaded { applied, restart }: &Reloaded) {
        let keys =
            |all: &[(&'static str, String)]| all.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ");
        tracing::info!(applied = keys(applied), restart = keys(restart), "configuration read again");
        if !applied.is_empty() {
            self.0.events.push(&Event {
                who: "configuration".to_owned(),
                was: "running",
                now: "changed",
                cause: keys(applied),
                by: "self".to_owned(),
            });
        }
    }
}

fn cut_off() -> Fault {
    Fault {
        place: "the daemon".to_owned(),
        why: "it stopped before the configuration was read again".to_owned(),
        fix: "see its log, and start it anew".to_owned(),
    }
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader").field("running", &self.0.running).finish_non_exhaustive()
    }
}

impl fmt::Debug for Takers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Takers").field("running", &self.0.running).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Shared;

    use tokio::sync::{Notify, Semaphore};

    use super::*;
    use crate::config::{Config, Flags, Host, Slot};

    /// A file that a test rewrites, and what was applied of it.
    struct Bench {
        dir: tempfile::TempDir,
        reloader: Reloader,
        imports: Arc<Shared<Vec<String>>>,
        /// Told when something is taken.
        began: Arc<Notify>,
        /// Taking ends with a permit of it.
        gate: Arc<Semaphore>,
    }

    impl Bench {
        fn new(text: &str) -> Self {
            let dir = tempfile::tempdir().expect("scratch");
            let path = dir.path().join("gossamer.toml");
            std::fs::write(&path, text).expect("writes");
            let host = Host { is_root: true, ..Host::default() };
            let flags = Flags { config: Some(path), keys: Vec::new() };
            let config = Config::load(&flags, &host).expect("sound");
            let running = config.settings(Slot::FIRST);
            let again = move || config.again().map(|config| config.settings(Slot::FIRST));
            let imports = Arc::new(Shared::new(Vec::new()));
            let (began, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(1)));
            let held = (Arc::clone(&imports), Arc::clone(&began), Arc::clone(&gate));
            let reloader = Takers::new(Again::new(again), &running, EventLog::default(), Stage::default())
                .awaits(&["import"], move |settings| {
                    let texts = settings.import.0.iter().map(ToString::to_string).collect::<Vec<_>>();
                    let (taken, began, gate) = held.clone();
                    async move {
                        began.notify_one();
                        let _passed = gate.acquire().await.expect("open");
                        taken.lock().expect("not poisoned").push(texts.join(","));
                    }
                })
                .done();
            Self { dir, reloader, imports, began, gate }
        }

        async fn with(&self, text: &str) -> Result<Reloaded, ConfigError> {
            std::fs::write(self.dir.path().join("gossamer.toml"), text).expect("writes");
            self.reloader.reload().await
        }

        fn taken(&self) -> Vec<String> {
            self.imports.lock().expect("not poisoned").clone()
        }
    }

    #[tokio::test]
    async fn what_somebody_takes_counts_at_once_and_other_keys_are_named() {
        let bench = Bench::new("import = [\"a@b\"]");
        assert_eq!(bench.with("import = [\"a@b\"]").await, Ok(Reloaded::default()));
        let reloaded = bench.with("import = [\"c@d\"]\nlisten = \"0.0.0.0:9\"").await.expect("sound");
        assert_eq!(reloaded.applied, [("import", "[\"c@d\"]".to_owned())]);
        assert_eq!(reloaded.restart, [("listen", "\"0.0.0.0:9\"".to_owned())]);
        assert_eq!(bench.taken(), ["c@d"]);
        let again = bench.with("import = [\"c@d\"]\nlisten = \"0.0.0.0:9\"").await.expect("sound");
        assert!(again.applied.is_empty(), "it counts already");
        assert_eq!(again.restart, reloaded.restart, "until the restart");
    }

    #[tokio::test]
    async fn a_reload_whose_caller_goes_away_is_carried_to_its_end() {
        let bench = Bench::new("import = [\"a@b\"]");
        let held = bench.gate.acquire().await.expect("open");
        tokio::select! {
            reloaded = bench.with("import = [\"c@d\"]") => panic!("{reloaded:?}"),
            () = bench.began.notified() => {}
        }
        assert!(bench.taken().is_empty(), "it is under way");
        drop(held);
        // The next one waits for it, and finds that it counts.
        assert_eq!(bench.with("import = [\"c@d\"]").await, Ok(Reloaded::default()));
        assert_eq!(bench.taken(), ["c@d"]);
    }

    #[tokio::test]
    async fn a_faulty_file_changes_nothing_and_all_faults_are_told() {
        let bench = Bench::new("import = [\"a@b\"]");
        let text = "import = [\"c@d\"]\nlisten = \"x\"\n[policy]\ndefault = \"dent\"\naudit = \"yes\"";
        let faults = bench.with(text).await.expect_err("faulty").faults;
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(bench.taken().is_empty());
        assert_eq!(bench.with("import = [\"c@d\"]").await.expect("sound").applied.len(), 1);
    }
}
