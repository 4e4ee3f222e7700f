//! The machines of the demo: child processes of this very program.
//!
//! Owns: their processes, directories and sockets; none survives the value, in whatever way the demo ends.
//! Must not know: the story. Driven by: `demo`.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::api::Client;
use crate::api::messages::Status;

/// Longest wait for a daemon to become ready.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Longest wait for a command, and for a daemon to leave.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How a join token begins.
pub(super) const TOKEN_PREFIX: &str = "gsm1_";

/// The places of one demo.
#[derive(Debug)]
pub(super) struct Place {
    dir: tempfile::TempDir,
    program: PathBuf,
}

/// A daemon. Killed by its process id when dropped.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: &'static str,
    pub(super) socket: PathBuf,
    log: PathBuf,
    child: Child,
}

/// A command that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Place {
    /// Makes a scratch directory whose sockets fit the kernel's limit.
    pub(super) fn new() -> Result<Self, String> {
        let chosen = std::env::temp_dir();
        let parent = if chosen.as_os_str().len() <= 60 { chosen } else { PathBuf::from("/tmp") };
        let failed = |error: std::io::Error| {
            format!(
                "no directory can be made in {} ({error}); set TMPDIR to one that is writable",
                parent.display()
            )
        };
        let dir = tempfile::Builder::new().prefix("gsm").tempdir_in(&parent).map_err(failed)?;
        let program = std::env::current_exe().map_err(failed)?;
        Ok(Self { dir, program })
    }

    /// Removes the directory and says what is left of it.
    pub(super) fn remove(self) -> Result<(), String> {
        let path = self.dir.path().to_owned();
        self.dir.close().map_err(|error| format!("{} cannot be removed: {error}", path.display()))
    }

    /// Starts a daemon that runs until it is told to end.
    pub(super) fn start(&self, name: &'static str, words: &[&str]) -> Result<Machine, String> {
        let (socket, log) = (self.path(name, "sock"), self.path(name, "log"));
        let output = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = output.try_clone().map_err(|error| error.to_string())?;
        let mut command = self.command(name, words);
        command.args(["--slot", "auto", "--listen", "127.0.0.1", "--advertise", "127.0.0.1"]);
        // A group of its own: Ctrl-C goes to the demo, which ends its daemons in order.
        command.stdout(output).stderr(errors).process_group(0);
        let child = command.spawn().map_err(|error| format!("{name} cannot be started: {error}"))?;
        Ok(Machine { name, socket, log, child })
    }

    /// Runs a command against a daemon to its end.
    pub(super) async fn cli(&self, name: &str, words: &[&str]) -> Result<Ended, String> {
        let mut command = tokio::process::Command::from(self.command(name, words));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = tokio::time::timeout(END_WITHIN, command.output()).await;
        let output = output
            .map_err(|_| format!("gossamer {} did not end", words.join(" ")))?
            .map_err(|error| format!("gossamer {} cannot be run: {error}", words.join(" ")))?;
        Ok(Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    fn command(&self, name: &str, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // Every user of the machine may read the arguments of a process.
        let (tokens, words): (Vec<&str>, Vec<&str>) =
            words.iter().partition(|word| word.starts_with(TOKEN_PREFIX));
        command.args(words).arg("--state-dir").arg(self.dir.path().join(name));
        command
            .arg("--socket")
            .arg(self.path(name, "sock"))
            .arg("--config")
            .arg(self.path("gossamer", "toml"));
        // Nothing of the user's environment changes what the demo shows.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("GOSSAMER_") {
                command.env_remove(variable);
            }
        }
        command.envs(tokens.first().map(|token| ("GOSSAMER_TOKEN", token))).stdin(Stdio::null());
        command
    }

    fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.{kind}"))
    }

    /// Writes the configuration that all commands of the demo share: there is nothing in it.
    pub(super) fn write_config(&self) -> Result<(), String> {
        std::fs::write(self.path("gossamer", "toml"), "").map_err(|error| error.to_string())
    }
}

impl Ended {
    /// Returns the output of a command that succeeded.
    pub(super) fn ok(self) -> Result<String, String> {
        match self.code {
            Some(0) => Ok(self.stdout),
            _ => Err(self.stderr.trim_start_matches("error: ").to_owned()),
        }
    }
}

impl Machine {
    pub(super) fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the daemon answers and `accept` likes what it says.
    pub(super) async fn wait(&mut self, accept: impl Fn(&Status) -> bool) -> Result<Status, String> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Ok(status) = self.client().get::<Status>("/v1/status").await
                && accept(&status)
            {
                return Ok(status);
            }
            if self.child.try_wait().ok().flatten().is_some() {
                return Err(format!("the daemon of machine {} ended: {}", self.name, self.last_words()));
            }
            if Instant::now() > deadline {
                return Err(format!("machine {} is not ready after 10 s: {}", self.name, self.last_words()));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills the daemon as a power failure would.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks the daemon to leave, and waits for its end; `None` when it had ended before.
    pub(super) async fn leave(&mut self) -> Result<Option<ExitStatus>, String> {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return Ok(None);
        }
        let pid = i32::try_from(self.child.id()).map_err(|error| error.to_string())?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| error.to_string())?;
        let deadline = Instant::now() + END_WITHIN;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Ok(Some(status));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Err(format!("the daemon of machine {} did not leave within 10 s", self.name))
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let errors = log.lines().rev().find_map(|line| line.strip_prefix("error: "));
        errors.or_else(|| log.lines().next_back()).unwrap_or("it said nothing").to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place where `gossamer` is a shell.
    fn place() -> Place {
        let place = Place::new().expect("a directory");
        Place { program: "/bin/sh".into(), ..place }
    }

    fn is_alive(pid: u32) -> bool {
        kill(Pid::from_raw(i32::try_from(pid).expect("small")), None).is_ok()
    }

    #[tokio::test]
    async fn a_command_ends_with_its_code_and_its_words() {
        let place = place();
        let ended = place.cli("a", &["-c", "echo data; echo error: words >&2; exit 5"]).await.expect("runs");
        assert_eq!(
            (ended.code, ended.stdout.as_str(), ended.stderr.as_str()),
            (Some(5), "data", "error: words")
        );
        assert_eq!(ended.ok(), Err("words".to_owned()));
        let ended = place.cli("a", &["-c", "env | grep -c GOSSAMER_; echo $0"]).await.expect("runs");
        assert!(ended.stdout.starts_with("0\n--state-dir"), "{ended:?}");
    }

    #[tokio::test]
    async fn a_token_is_not_among_the_arguments() {
        let place = place();
        let ended =
            place.cli("a", &["-c", "echo $GOSSAMER_TOKEN in $0 $*", "gsm1_secret"]).await.expect("runs");
        assert!(ended.stdout.starts_with("gsm1_secret in --state-dir"), "{ended:?}");
        assert_eq!(ended.stdout.matches("gsm1_secret").count(), 1);
    }

    #[test]
    fn a_machine_does_not_outlive_its_value() {
        let place = place();
        let machine = place.start("a", &["-c", "sleep 600"]).expect("starts");
        let pid = machine.pid();
        assert!(is_alive(pid));
        drop(machine);
        assert!(!is_alive(pid));
        let path = place.dir.path().to_owned();
        place.remove().expect("removes");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_machine_that_ends_early_is_quoted() {
        let place = place();
        let script = "echo noise; echo error: port in use >&2; echo more noise";
        let mut machine = place.start("a", &["-c", script]).expect("starts");
        let why = machine.wait(|_| true).await.expect_err("ended");
        assert!(why.contains("machine a ended: port in use"), "{why}");
        assert_eq!(machine.leave().await, Ok(None));
    }

    #[tokio::test]
    async fn a_machine_leaves_when_it_is_asked_to() {
        let place = place();
        let mut machine =
            place.start("a", &["-c", "trap 'exit 0' TERM; echo; sleep 600 & wait"]).expect("starts");
        while std::fs::read(&machine.log).expect("a log").is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        let status = machine.leave().await.expect("ends").expect("was running");
        assert!(status.success(), "{status}");
    }
}
