//! Whole commands: as typed, against a scripted daemon or a state directory, down to what is printed.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::api::tests::Daemon;
use crate::events::Event;

/// What came of a command.
#[derive(Debug)]
struct Ended {
    code: u8,
    data: String,
    words: String,
}

/// Runs a command as it is typed.
async fn gossamer(socket: &Path, line: &str) -> Ended {
    let socket = socket.display().to_string();
    let words = ["gossamer", "--socket", &socket].into_iter().chain(line.split(' '));
    let result = Box::pin(dispatch(Cli::try_parse_from(words).expect(line))).await;
    let code = match result {
        Ok(code) => code_of(code),
        Err(failure) => {
            output::note(&failure);
            failure.exit as u8
        }
    };
    let (data, words) = output::take();
    Ended { code, data, words }
}

fn code_of(code: ExitCode) -> u8 {
    let same = |number: &u8| format!("{:?}", ExitCode::from(*number)) == format!("{code:?}");
    (0..=u8::MAX).find(same).expect("a code is a byte")
}

#[tokio::test]
async fn listings_are_tables_names_or_json() {
    let daemon = Daemon::start().await;
    let socket = daemon.socket();
    let table = gossamer(&socket, "nodes").await;
    assert_eq!(table.code, 0);
    assert!(table.data.starts_with("NODE  GROUP  STATE") && table.data.lines().count() == 3, "{table:?}");
    assert_eq!(gossamer(&socket, "nodes -q").await.data, "vm-a\nvm-b");
    let json: serde_json::Value =
        serde_json::from_str(&gossamer(&socket, "nodes --json").await.data).expect("JSON");
    assert_eq!((json[0]["this"].as_bool(), json[1]["state"].as_str()), (Some(true), Some("alive")));
    assert_eq!(gossamer(&socket, "services -q").await.data, "far\norders");
    assert_eq!(gossamer(&socket, "services --all -q").await.data, "far\norders\nsecret");
    let one = gossamer(&socket, "services far").await;
    assert!(one.data.contains("not imported"), "{one:?}");
}

#[tokio::test]
async fn each_kind_of_failure_has_its_exit_code_and_one_line() {
    let daemon = Daemon::start().await;
    let socket = daemon.socket();
    for (line, code) in [
        ("services nothing", 4),
        ("services secret", 5),
        ("resolve nothing", 4),
        ("resolve far", 4),
        ("resolve secret.west", 5),
        ("resolve example.com.", 1),
        ("resolve a..b", 2),
        ("withdraw nothing", 4),
        ("expose db", 2),
        ("expose db:1 169.254.169.254", 2),
        ("token list", 1),
        ("token revoke nonsense", 2),
        ("forward 0 nothing:1", 4),
        ("forward 0 secret:1", 5),
    ] {
        let ended = gossamer(&socket, line).await;
        assert_eq!(ended.code, code, "{line}: {ended:?}");
        let is_one_line = ended.words.starts_with("error: ") && !ended.words.contains('\n');
        assert!(is_one_line && ended.data.is_empty(), "{line}: {ended:?}");
    }
}

#[tokio::test]
async fn without_a_daemon_the_socket_and_the_way_to_start_one_are_named() {
    for line in ["status", "nodes", "leave", "events", "expose db:1", "forward 0 db:1", "token create"] {
        let ended = gossamer(Path::new("/nonexistent/g.sock"), line).await;
        assert_eq!(ended.code, 3, "{line}");
        assert!(
            ended.words.contains("/nonexistent/g.sock") && ended.words.contains("gossamer run"),
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn expose_prints_the_name_and_says_what_came_of_it() {
    let daemon = Daemon::start().await;
    let ended = gossamer(&daemon.socket(), "expose web:80 9 --to all --meta a=b").await;
    assert_eq!((ended.code, ended.data.as_str()), (0, "web.mesh.internal"));
    for words in ["80 -> 127.0.0.1:9", "all groups", "1 other members, 1 of them", "warning: nobody listens"]
    {
        assert!(ended.words.contains(words), "{words} is missing in {ended:?}");
    }
    let ended = gossamer(&daemon.socket(), "withdraw web").await;
    assert_eq!((ended.code, ended.words.as_str()), (0, "withdrawn: vm-a of web"));
}

#[tokio::test]
async fn resolve_reads_like_dig() {
    let daemon = Daemon::start().await;
    let ended = gossamer(&daemon.socket(), "resolve orders").await;
    assert_eq!(ended.data, "orders.mesh.internal.\t30\tIN\tA\t127.240.1.1");
    assert_eq!(gossamer(&daemon.socket(), "resolve orders -q").await.data, "127.240.1.1");
    let json = gossamer(&daemon.socket(), "resolve orders AAAA --json").await;
    assert!(json.data.contains("\"NODATA\"") && json.code == 0, "{json:?}");
}

#[tokio::test]
async fn status_marks_what_is_wrong() {
    let daemon = Daemon::start().await;
    let quiet = gossamer(&daemon.socket(), "status -q").await;
    let marked = quiet.data.lines().filter(|line| line.starts_with("! ")).count();
    assert!(marked == 3 && quiet.data.lines().count() == 6, "{quiet:?}");
    let json: serde_json::Value =
        serde_json::from_str(&gossamer(&daemon.socket(), "status --json").await.data).expect("JSON");
    for key in ["version", "pid", "slot", "mesh", "node", "dns", "mesh_listen", "socket", "state_dir"] {
        assert!(!json[key].is_null(), "{key} is missing in {json}");
    }
    assert_eq!(json["dns"], "127.240.0.53:4653");
    assert_eq!(json["vips"][0]["program"], "postgres");
    assert!(json["findings"][0]["fix"].is_string() && json["counters"].is_object());
}

#[tokio::test]
async fn events_are_lines() {
    let daemon = Daemon::start().await;
    daemon.events.push(&Event {
        who: "node vm-b".to_owned(),
        was: "alive",
        now: "down",
        cause: "no answer".to_owned(),
        by: "vm-c".to_owned(),
    });
    let ended = gossamer(&daemon.socket(), "events --since 1m").await;
    assert!(ended.data.ends_with("node vm-b: alive -> down, no answer (says vm-c)"), "{ended:?}");
    assert!(gossamer(&daemon.socket(), "events --json").await.data.starts_with("{\"at\":"));
}

#[tokio::test]
async fn forward_ends_with_its_command() {
    let daemon = Daemon::start().await;
    let ended = gossamer(&daemon.socket(), "forward 0 orders:5432 -- false").await;
    assert_eq!(ended.code, 1);
    assert!(ended.words.starts_with("127.0.0.1:") && ended.words.ends_with("-> orders:5432"), "{ended:?}");
}

#[tokio::test]
async fn starting_beside_a_running_daemon_changes_nothing() {
    let daemon = Daemon::start().await;
    let state = daemon.socket().parent().expect("a directory").display().to_string();
    let ended = gossamer(&daemon.socket(), &format!("init shop --state-dir {state}")).await;
    // It runs, and this one cannot print a join line because it is no issuer.
    assert!(ended.words.contains("runs already") && ended.code == 1, "{ended:?}");
    let other = tempfile::tempdir().expect("scratch");
    let empty = other.path().join("state");
    let ended = gossamer(&daemon.socket(), &format!("init shop --state-dir {}", empty.display())).await;
    assert!(ended.code == 1 && ended.words.contains("belongs to a running daemon"), "{ended:?}");
    assert!(!empty.exists(), "something was written");
}

#[tokio::test]
async fn shells_get_completions_of_every_command() {
    let ended = gossamer(Path::new("/nonexistent"), "completions bash").await;
    assert!(ended.code == 0 && ended.data.contains("withdraw"), "{}", ended.words);
}

/// A scratch directory with a configuration that no other daemon of this machine meets.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let first = u8::try_from(std::process::id() % 64).expect("small");
        let pools = std::iter::repeat_with(|| 64 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 128);
        let pool = pools.take(128).find(|pool| is_free(*pool)).expect("a free pool");
        let dir = tempfile::tempdir().expect("scratch");
        let text = format!("listen = \"{}\"\n[vip]\npool = \"127.{pool}.0.0/16\"\n", listen(pool));
        std::fs::write(dir.path().join("gossamer.toml"), text).expect("writes");
        Self(dir)
    }

    async fn gossamer(&self, line: &str) -> Ended {
        let (command, rest) = line.split_once(' ').unwrap_or((line, "--slot 0"));
        let dir = self.0.path().display();
        let line = format!("{command} --config {dir}/gossamer.toml --state-dir {dir}/state {rest}");
        gossamer(&self.0.path().join("s"), &line).await
    }
}

/// An address of the pool itself, so that pools and ports are free together.
fn listen(pool: u8) -> SocketAddr {
    SocketAddr::from(([127, pool, 0, 9], 4677))
}

fn is_free(pool: u8) -> bool {
    let pool_is_free = claim::is_free(format!("127.{pool}.0.0/16").parse().expect("a pool"));
    pool_is_free && UdpSocket::bind(listen(pool)).is_ok()
}

#[tokio::test]
async fn an_identity_is_made_once() {
    let scratch = Scratch::new();
    let made = scratch.gossamer("init shop --node vm-a --no-start").await;
    assert!(made.code == 0 && made.words.contains("made mesh shop: this is node vm-a"), "{made:?}");
    assert!(made.words.contains("root.key") && made.words.contains("gossamer run"), "{made:?}");
    let again = scratch.gossamer("init shop --no-start").await;
    assert!(again.code == 0 && again.words.contains("already in mesh shop"), "{again:?}");
    let other = scratch.gossamer("init shop --node vm-b --no-start").await;
    assert!(other.code == 1 && other.words.contains("vm-a"), "{other:?}");
}

#[tokio::test]
async fn later_starts_need_no_flags() {
    let scratch = Scratch::new();
    let made =
        scratch.gossamer("init shop --node vm-a --no-start --import orders@west --dns 127.0.0.9:53").await;
    assert_eq!(made.code, 0, "{made:?}");
    let line = format!("config show --state-dir {}/state", scratch.0.path().display());
    let shown = gossamer(Path::new("/tmp/s"), &line).await;
    for (key, value) in [("import", "[\"orders@west\"]"), ("dns.address", "\"127.0.0.9:53\"")] {
        let line = shown.data.lines().find(|line| line.starts_with(key)).expect("shown");
        assert!(line.contains(value) && line.contains("flags.json"), "{line}");
    }
}

#[tokio::test]
async fn a_daemon_without_identity_or_token_says_what_to_run() {
    let scratch = Scratch::new();
    let ended = scratch.gossamer("run --slot 0").await;
    assert!(ended.code == 1 && ended.words.contains("gossamer join TOKEN"), "{ended:?}");
    let ended = scratch.gossamer("join --no-start").await;
    assert!(ended.code == 2 && ended.words.contains("--token-file"), "{ended:?}");
    let ended = scratch.gossamer("join gsm1_mistyped").await;
    assert!(ended.code == 2 && !ended.words.contains("mistyped\""), "{ended:?}");
}

#[tokio::test]
async fn a_daemon_lives_as_long_as_its_command() {
    let scratch = Scratch::new();
    assert_eq!(scratch.gossamer("init shop --node vm-a --no-start").await.code, 0);
    let ended = scratch.gossamer("run --forward 0=web:80 -- false").await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.words.contains("ready: node vm-a"), "{ended:?}");
    assert!(!scratch.0.path().join("s").exists(), "the socket was left behind");
    // Everything is free again.
    assert_eq!(scratch.gossamer("run -- true").await.code, 0);
}

#[tokio::test]
async fn settings_are_shown_with_their_source_and_checked() {
    let scratch = Scratch::new();
    let shown = gossamer(
        Path::new("/tmp/s"),
        &format!("config show --config {}/gossamer.toml", scratch.0.path().display()),
    )
    .await;
    let line = shown.data.lines().find(|line| line.starts_with("vip.pool")).expect("shown");
    assert!(line.contains(".0.0/16\"") && line.ends_with("gossamer.toml: vip.pool"), "{line}");
    std::fs::write(scratch.0.path().join("gossamer.toml"), "lisen = 1\nslot = 99\n").expect("writes");
    let line = format!("config check --config {}/gossamer.toml", scratch.0.path().display());
    let faulty = gossamer(Path::new("/tmp/s"), &line).await;
    assert_eq!((faulty.code, faulty.words.lines().count()), (2, 2), "{faulty:?}");
    assert!(faulty.words.lines().all(|line| line.starts_with("error: ")));
}
