//! A daemon in the foreground: from an open state directory to a clean end.
//!
//! Owns: signals, what is done once the daemon is ready, the exit code. Must not know: the daemon's parts.
//! Driven by: `start`.

use std::ffi::OsString;
use std::io;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::claim::SlotClaim;
use super::failure::Failure;
use super::name_port::ForwardSpec;
use super::{expose, forward, output, token};
use crate::api::Client;
use crate::api::messages::{CreateToken, Expose, Exposed};
use crate::app::{self, Again, Ready, Start};
use crate::config::Settings;
use crate::identity::Identity;
use crate::store::Store;
use crate::supervise::Stage;
use crate::telemetry;

/// How long a command may take to end when it is asked to; then it is killed.
const END_WITHIN: Duration = Duration::from_secs(10);

/// What a daemon is started from.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) settings: Settings,
    /// Reads the settings again.
    pub(super) again: Again,
    pub(super) store: Store,
    pub(super) identity: Identity,
    /// Held until the daemon has ended.
    pub(super) claim: SlotClaim,
}

/// What is done once the daemon is ready.
#[derive(Debug, Default)]
pub(super) struct Then {
    /// Print a line that joins another machine, dialling these addresses.
    pub(super) join_line: Option<CreateToken>,
    /// Register these.
    pub(super) expose: Vec<Expose>,
    /// Listen for these.
    pub(super) forward: Vec<ForwardSpec>,
    /// Run this, then end.
    pub(super) command: Vec<OsString>,
}

/// Runs the daemon until a signal, `leave`, the end of the command, or a failure.
pub(super) async fn foreground(prepared: Prepared, then: Then) -> Result<ExitCode, Failure> {
    let Prepared { settings, again, store, identity, claim } = prepared;
    // Tests share one process, whose log would hold the lines of all of them.
    let installed = (!cfg!(test)).then(|| telemetry::install(settings.log_level, settings.log_format));
    // Dropped at the end: lines that wait are written then.
    let (levels, _writing) = installed.and_then(Result::ok).unzip();
    let (stop, asked) = (CancellationToken::new(), CancellationToken::new());
    let at_once = CancellationToken::new();
    let stage = Stage::default();
    end_on_signals(&stage, &stop, &asked, &at_once);
    // From here on it ends no daemon, also before there is something to read again.
    let hangups = signal(SignalKind::hangup()).ok();
    let client = Client::new(&settings.socket);
    let (is_ready, ready) = oneshot::channel();
    let announce = |ready: &Ready| drop(is_ready.send(ready.clone()));
    let daemon = async {
        let start = Start { settings, again, levels };
        let ended = app::run(start, store, identity, announce, stop.clone(), at_once).await;
        stop.cancel();
        ended
    };
    // The command ends before the daemon leaves: its last connections go by the mesh.
    let work = async {
        let ready = tokio::select! {
            biased;
            () = asked.cancelled() => None,
            ready = ready => ready.ok(),
        };
        let result = match ready {
            Some(ready) => {
                reload_on_hangup(&stage, hangups, &ready, &stop);
                after(&ready, &client, then, &stage, &asked).await
            }
            None => Ok(None),
        };
        if matches!(result, Ok(None)) {
            asked.cancelled().await;
        }
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        stop.cancel();
        result
    };
    let (ended, worked) = tokio::join!(Box::pin(daemon), Box::pin(work));
    drop(claim);
    let code = worked?;
    ended?;
    Ok(code.unwrap_or(ExitCode::SUCCESS))
}

/// Returns the exit code of the command, if there is one.
async fn after(
    ready: &Ready,
    client: &Client,
    then: Then,
    stage: &Stage,
    asked: &CancellationToken,
) -> Result<Option<ExitCode>, Failure> {
    let about = &ready.about;
    for service in &then.expose {
        let exposed: Exposed = client.post("/v1/expose", service).await?;
        expose::note(&exposed);
    }
    for spec in then.forward {
        let bound = forward::start(stage, client.clone(), spec.local.0, spec.to.clone()).await?;
        output::note(format_args!("{bound} -> {}", spec.to));
    }
    output::note(format_args!(
        "ready: node {} of group {}, DNS at {}, mesh at udp {}",
        about.node_name, about.group, about.dns, about.mesh_listen
    ));
    if let Some(body) = &then.join_line {
        join_line(client, body).await?;
    }
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    if then.command.is_empty() {
        return Ok(None);
    }
    command(&then.command, asked).await.map(Some)
}

/// Prints the line to paste on another machine.
pub(super) async fn join_line(client: &Client, body: &CreateToken) -> Result<(), Failure> {
    let created = token::request(client, body).await?;
    output::note(token::dials(&created));
    created.warnings.iter().for_each(|warning| output::note(format_args!("warning: {warning}")));
    output::note("run on the other machine, within an hour:");
    output::data(format_args!("gossamer join {}", created.token));
    Ok(())
}

/// Reads the configuration again at each SIGHUP. What is wrong with it is in the log.
fn reload_on_hangup(stage: &Stage, hangups: Option<Signal>, ready: &Ready, stop: &CancellationToken) {
    let Some(mut hangups) = hangups else { return };
    let (reloader, stop) = (ready.reloader.clone(), stop.clone());
    stage.spawn_short("hangups", async move {
        while let Some(Some(())) = stop.run_until_cancelled(hangups.recv()).await {
            if let Err(error) = reloader.reload().await {
                error.faults.iter().for_each(|fault| tracing::warn!(%fault, "the configuration is faulty"));
            }
        }
    });
}

/// Cancels `asked` when this process is asked to end, or the daemon stops, and `at_once` when it is asked again,
/// or while it stops: then flows are not waited for.
fn end_on_signals(
    stage: &Stage,
    stop: &CancellationToken,
    asked: &CancellationToken,
    at_once: &CancellationToken,
) {
    let (stop, asked, at_once) = (stop.clone(), asked.clone(), at_once.clone());
    stage.spawn_short("signals", async move {
        let mut interrupts = Interrupts::listen();
        tokio::select! {
            () = interrupts.next() => {}
            () = stop.cancelled() => {}
        }
        asked.cancel();
        interrupts.next().await;
        at_once.cancel();
    });
}

/// Requests to this process to end.
struct Interrupts(Option<(Signal, Signal)>);

impl Interrupts {
    fn listen() -> Self {
        Self(signal(SignalKind::terminate()).ok().zip(signal(SignalKind::interrupt()).ok()))
    }

    /// Resolves when this process is asked to end.
    async fn next(&mut self) {
        let Some((terminate, interrupt)) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

/// Resolves when this process is asked to end.
pub(super) async fn interrupted() {
    Interrupts::listen().next().await;
}

/// Runs a command to its end, or ends it with `stop`; returns its exit code as a shell would. It is not told
/// the token this daemon joined with.
pub(super) async fn command(command: &[OsString], stop: &CancellationToken) -> Result<ExitCode, Failure> {
    let [program, arguments @ ..] = command else { return Ok(ExitCode::SUCCESS) };
    let name = program.to_string_lossy();
    let failed = |error| Failure::failed(format_args!("{name} cannot be run: {error}; check the path"));
    let mut child = Command::new(program)
        .args(arguments)
        .env_remove("GOSSAMER_TOKEN")
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let status = tokio::select! {
        status = child.wait() => status,
        () = stop.cancelled() => {
            end(&mut child, END_WITHIN).await
        }
    };
    Ok(ExitCode::from(shell_code(status.map_err(failed)?)))
}

/// Asks a command to end, kills it when it has not after `within`, and waits for it.
async fn end(child: &mut Child, within: Duration) -> io::Result<ExitStatus> {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
    }
    if let Ok(status) = timeout(within, child.wait()).await {
        return status;
    }
    let _ = child.start_kill();
    child.wait().await
}

/// 128 + N for a command that signal N ended, as shells say it.
fn shell_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn code(line: &str) -> Result<ExitCode, Failure> {
        let words: Vec<OsString> = ["sh", "-c", line].map(OsString::from).into();
        command(&words, &CancellationToken::new()).await
    }

    fn same(a: ExitCode, b: u8) -> bool {
        format!("{a:?}") == format!("{:?}", ExitCode::from(b))
    }

    #[tokio::test]
    async fn a_command_ends_with_its_own_code() {
        assert!(same(code("exit 7").await.expect("runs"), 7));
        assert!(same(code("kill -9 $$").await.expect("runs"), 137));
        let failure =
            command(&["/nonexistent/x".into()], &CancellationToken::new()).await.expect_err("missing");
        assert!(failure.text.contains("/nonexistent/x"), "{failure}");
    }

    #[tokio::test]
    async fn a_command_ends_when_the_daemon_is_stopped() {
        let stop = CancellationToken::new();
        stop.cancel();
        let words: Vec<OsString> = ["sleep", "600"].map(OsString::from).into();
        assert!(same(command(&words, &stop).await.expect("ended"), 143));
    }

    #[tokio::test]
    async fn a_command_that_ignores_the_end_is_killed() {
        let dir = tempfile::tempdir().expect("scratch");
        let mark = dir.path().join("deaf");
        let line = format!("trap '' TERM; : > {}; while :; do read line; done", mark.display());
        let mut command = Command::new("sh");
        command.args(["-c", &line]).stdin(std::process::Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("runs");
        let _open = child.stdin.take();
        while !mark.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let status = end(&mut child, Duration::from_millis(50)).await.expect("killed");
        assert_eq!(shell_code(status), 137);
    }

    #[test]
    fn a_command_is_not_told_the_token() {
        // The variable of a process that runs nothing else is set: this test, started again.
        let run_again = || {
            std::process::Command::new(std::env::current_exe().expect("a path"))
                .args(["--exact", "cli::run::tests::a_command_is_not_told_the_token", "--nocapture"])
                .env("GOSSAMER_TOKEN", "gsm1_secret")
                .status()
        };
        if std::env::var_os("GOSSAMER_TOKEN").is_none() {
            return assert!(run_again().expect("runs").success());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("starts");
        let told = runtime.block_on(code("test -z \"$GOSSAMER_TOKEN\""));
        assert!(same(told.expect("runs"), 0));
    }
}
