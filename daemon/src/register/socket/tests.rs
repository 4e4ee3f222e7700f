//! Sockets of this process, of another one, and paths that somebody else leads.

use super::*;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream as Caller};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SOCKET: &str = "GOSSAMER_TEST_SOCKET";

/// A program of another process that answers what it was sent with the same and ` bye`.
pub(crate) struct Program(Child);

impl Program {
    pub(crate) fn listen(path: &Path) -> Self {
        let own = std::env::current_exe().expect("this program");
        let mut command = Command::new(own);
        command.args(["--exact", "register::socket::tests::the_program"]);
        command.env(SOCKET, path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let program = Self(command.spawn().expect("started"));
        let began = Instant::now();
        while Caller::connect(path).is_err() {
            assert!(began.elapsed() < Duration::from_secs(30), "it does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program of other tests when it is told where to listen; of itself it shows that such a program answers.
#[test]
fn the_program() {
    let Some(path) = std::env::var_os(SOCKET) else { return it_answers() };
    let listener = UnixListener::bind(path).expect("bound");
    for caller in listener.incoming() {
        let (mut caller, mut said) = (caller.expect("a caller"), Vec::new());
        if caller.read_to_end(&mut said).is_ok() && !said.is_empty() {
            let _ = caller.write_all(&[&said[..], b" bye"].concat());
        }
    }
}

fn it_answers() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("app.sock");
    let _program = Program::listen(&socket);
    let mut caller = Caller::connect(&socket).expect("connected");
    caller.write_all(b"well").expect("sent");
    caller.shutdown(std::net::Shutdown::Write).expect("ended");
    let mut answer = String::new();
    caller.read_to_string(&mut answer).expect("answered");
    assert_eq!(answer, "well bye");
}

async fn failure(path: &Path, user: Option<u32>) -> Option<&'static str> {
    trouble(user, &connect(path, user).await.expect_err("no connection"))
}

#[tokio::test]
async fn no_path_leads_to_the_daemon_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let (own, link) = (directory.path().join("own.sock"), directory.path().join("app.sock"));
    let _listener = UnixListener::bind(&own).expect("bound");
    symlink(&own, &link).expect("a link");
    for path in [&own, &link] {
        assert_eq!(failure(path, None).await, Some(OWN));
    }
    let me = nix::unistd::geteuid().as_raw();
    assert!(connect(&own, Some(me)).await.is_err());
}

#[tokio::test]
async fn a_user_learns_nothing_and_touches_nobody_elses_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("app.sock");
    let me = nix::unistd::geteuid().as_raw();
    assert_eq!(failure(&socket, Some(me)).await, Some(NOT_OWN));
    let listener = UnixListener::bind(&socket).expect("bound");
    listener.set_nonblocking(true).expect("set");
    assert_eq!(failure(&socket, Some(me + 1)).await, Some(NOT_OWN));
    assert_eq!(listener.accept().expect_err("nobody called").kind(), io::ErrorKind::WouldBlock);
    assert_eq!(failure(directory.path(), Some(me)).await, Some(NOT_OWN));
    assert_eq!(trouble(Some(me), &io::ErrorKind::TimedOut.into()), Some(NOT_OWN));
    drop(listener);
    assert_eq!(failure(&socket, Some(me)).await, Some(NOT_OWN));
}

#[tokio::test]
async fn another_process_is_reached_also_by_the_user_whose_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("app.sock");
    let _program = Program::listen(&socket);
    let me = nix::unistd::geteuid().as_raw();
    for user in [None, Some(me)] {
        connect(&socket, user).await.expect("connected");
    }
}

/// Makes a path another user's, as far as this process may; returns the owner.
fn give_away(path: &Path) -> u32 {
    let me = nix::unistd::geteuid().as_raw();
    if me != 0 {
        return me;
    }
    std::os::unix::fs::lchown(path, Some(4_242), None).expect("given away");
    4_242
}

#[test]
fn a_path_through_another_users_directory_or_link_is_not_trusted() {
    let root = tempfile::tempdir().expect("a directory");
    let (foreign, fixed) = (root.path().join("foreign"), root.path().join("fixed"));
    for directory in [&foreign, &fixed] {
        std::fs::create_dir(directory).expect("made");
    }
    let (socket, link) = (fixed.join("app.sock"), root.path().join("link"));
    let _listener = UnixListener::bind(&socket).expect("bound");
    // A link of root's that leads through one of a foreign directory.
    symlink("../fixed/./app.sock", foreign.join("hop")).expect("a link");
    symlink(foreign.join("hop"), &link).expect("a link");
    let me = nix::unistd::geteuid().as_raw();
    for path in [&socket, &link] {
        assert!(is_led_by_blocking(path, &[0, me]).expect("readable"), "{path:?}");
    }
    let owner = give_away(&foreign);
    let trusted = if me == 0 { &[0][..] } else { &[0, me + 1][..] };
    assert!(!is_led_by_blocking(&foreign.join("hop"), trusted).expect("readable"));
    assert!(!is_led_by_blocking(&link, trusted).expect("readable"));
    assert!(is_led_by_blocking(&link, &[0, owner]).expect("readable"));
}

#[tokio::test]
async fn a_daemon_of_root_does_not_follow_a_strangers_link() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let root = tempfile::tempdir().expect("a directory");
    let (socket, link) = (root.path().join("app.sock"), root.path().join("link"));
    let _program = Program::listen(&socket);
    symlink(&socket, &link).expect("a link");
    connect(&link, None).await.expect("root's link");
    give_away(&link);
    assert_eq!(failure(&link, None).await, Some(LED));
    // A socket that was given to a user stays where it is, unless others may write its directory.
    chown(&socket, Some(4_242), None).expect("given away");
    connect(&socket, None).await.expect("fixed");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(root.path(), open).expect("opened");
    assert_eq!(failure(&socket, None).await, Some(LED));
}
