//! A TCP proxy that copies nothing: `splice(2)` from socket to pipe to socket, two threads a connection.
//!
//! Owns: itself. Must not know: who measures it. Driven by: the suite, which starts it as a process of its own.
//!
//! It is the limit for flows that stay on one machine: no encryption, no decision, no byte in user space.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use clap::Args;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// Bytes of a pipe, and of one call.
const PIPE: usize = 1 << 20;

/// Where it listens and connects to.
#[derive(Debug, Args)]
pub(crate) struct Splice {
    /// Address to listen on
    listen: SocketAddr,
    /// Address each connection is carried to
    target: SocketAddr,
}

/// Carries connections until it is killed.
///
/// # Errors
/// It cannot listen.
pub(crate) fn run(asked: &Splice) -> Result<()> {
    let listener = TcpListener::bind(asked.listen).with_context(|| asked.listen.to_string())?;
    for client in listener.incoming().flatten() {
        if let Ok(target) = TcpStream::connect(asked.target) {
            carry(client, target).context("a connection")?;
        }
    }
    Ok(())
}

/// Starts both directions.
fn carry(client: TcpStream, target: TcpStream) -> io::Result<[JoinHandle<()>; 2]> {
    client.set_nodelay(true)?;
    target.set_nodelay(true)?;
    let (client_too, target_too) = (client.try_clone()?, target.try_clone()?);
    Ok([start(client, target)?, start(target_too, client_too)?])
}

fn start(from: TcpStream, to: TcpStream) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("splice".to_owned()).spawn(move || {
        // Where this fails the other direction has ended both before.
        if direction(&from, &to).is_ok() {
            let _ = to.shutdown(Shutdown::Write);
        } else {
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        }
    })
}

fn direction(from: &TcpStream, to: &TcpStream) -> nix::Result<()> {
    let (out, into) = pipe2(OFlag::O_CLOEXEC)?;
    // A smaller pipe than asked for is slower and works all the same.
    let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_MORE;
    loop {
        let mut held = splice(from, None, &into, None, PIPE, SpliceFFlags::SPLICE_F_MOVE)?;
        if held == 0 {
            return Ok(());
        }
        // More may follow only while the pipe came full; otherwise the last segment must leave at once.
        let flags = if held == PIPE { flags } else { SpliceFFlags::SPLICE_F_MOVE };
        while held > 0 {
            held -= splice(&out, None, to, None, held, flags)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn bytes_and_both_ends_pass() {
        let (near, far) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
        let (near, far) = (near.expect("bound"), far.expect("bound"));
        let mut program = TcpStream::connect(near.local_addr().expect("bound")).expect("connected");
        let to_far = TcpStream::connect(far.local_addr().expect("bound")).expect("connected");
        let (mut target, _) = far.accept().expect("a connection");
        let threads = carry(near.accept().expect("a client").0, to_far).expect("started");
        let sent = vec![7; 300_000];
        let writing = sent.clone();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                program.write_all(&writing).expect("sent");
                program.shutdown(Shutdown::Write).expect("ended");
                let mut said = String::new();
                program.read_to_string(&mut said).expect("read to the end");
                assert_eq!(said, "thanks");
            });
            let mut got = Vec::new();
            target.read_to_end(&mut got).expect("read to the end");
            assert_eq!(got, sent);
            target.write_all(b"thanks").expect("sent");
            drop(target);
        });
        threads.into_iter().for_each(|thread| thread.join().expect("ended"));
    }
}
