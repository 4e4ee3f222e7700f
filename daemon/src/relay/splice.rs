//! Moving the bytes of a busy flow between two sockets of this machine within the system: `splice(2)` over a pipe.
//!
//! Owns: the pipes. Must not know: flows, access, who reads and writes. Driven by: `copy`, once a direction has moved much.
//!
//! A pipe is held only while bytes move, so that an idle flow holds no descriptors, and there are [`MOST_PIPES`] of them:
//! who finds none is copied for as before.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Why a direction came to a stop.
#[derive(Debug)]
pub(super) enum Stop {
    /// The source has ended cleanly.
    Ended,
    /// There is nothing to move at present, or no pipe: read as usual, and try again with the next bytes.
    Idle,
    /// The source has failed.
    Read(io::Error),
    /// The sink has failed.
    Write(io::Error),
}

/// Moves what has arrived and what arrives meanwhile, and counts it.
///
/// # Cancel safety
/// Not cancel safe: bytes on their way are lost. Reset both ends then.
pub(super) async fn splice_all(from: &TcpStream, to: &TcpStream, count: &AtomicU64) -> Stop {
    let Some(mut pipe) = Pipe::take() else { return Stop::Idle };
    // No hop waits for its reader, so the system may take as much as it likes.
    let _ = SockRef::from(to).set_tcp_notsent_lowat(u32::MAX);
    let mut since_yield = 0;
    loop {
        match from.try_io(Interest::READABLE, || pipe.fill(from)) {
            Ok(0) => return Stop::Ended,
            Ok(moved) => since_yield += moved,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Stop::Idle,
            Err(error) => return Stop::Read(error),
        }
        count.fetch_add(pipe.held as u64, Ordering::Relaxed);
        if let Err(stop) = drain(&mut pipe, from, to).await {
            return stop;
        }
        if since_yield >= PIPE_BYTES {
            since_yield = 0;
            // A flow that always has something to move must let others run.
            tokio::task::yield_now().await;
        }
    }
}

async fn drain(pipe: &mut Pipe, from: &TcpStream, to: &TcpStream) -> Result<(), Stop> {
    while pipe.held > 0 {
        match to.try_io(Interest::WRITABLE, || pipe.empty(to)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A reader that has stalled must not hide that the other end is gone.
                tokio::select! {
                    biased;
                    ready = to.writable() => ready.map_err(Stop::Write)?,
                    failed = from.ready(Interest::ERROR) => {
                        let reset = || io::ErrorKind::ConnectionReset.into();
                        return Err(Stop::Read(failed.err().unwrap_or_else(reset)));
                    }
                }
            }
            Err(error) => return Err(Stop::Write(error)),
        }
    }
    Ok(())
}

/// A pipe in use. When it is dropped others may have it, or it is closed with what is in it.
#[derive(Debug)]
struct Pipe {
    ends: Option<Ends>,
    /// Bytes in it.
    held: usize,
}

#[derive(Debug)]
struct Ends {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// Returns a pipe, unless all are in use or the system gives none.
    fn take() -> Option<Self> {
        let mut pipes = Pipes::lock();
        if let Some(ends) = pipes.free.pop() {
            return Some(Self { ends: Some(ends), held: 0 });
        }
        if pipes.made >= MOST_PIPES {
            return None;
        }
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        // A smaller pipe than asked for is slower and works all the same.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        pipes.made += 1;
        Some(Self { ends: Some(Ends { out, into }), held: 0 })
    }

    /// Takes what has arrived, into an empty pipe. Returns how much; 0 at the end.
    fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        self.held = uninterrupted(|| splice(from, None, &ends.into, None, PIPE_BYTES, MOVE))?;
        Ok(self.held)
    }

    /// Gives out as much as the reader has room for.
    fn empty(&mut self, to: &TcpStream) -> io::Result<()> {
        let Some(ends) = &self.ends else { return Ok(()) };
        let moved = uninterrupted(|| splice(&ends.out, None, to, None, self.held, MOVE))?;
        self.held = self.held.saturating_sub(moved);
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut pipes = Pipes::lock();
        match self.ends.take() {
            Some(ends) if self.held == 0 && pipes.free.len() < MOST_FREE => pipes.free.push(ends),
            _ => pipes.made = pipes.made.saturating_sub(1),
        }
    }
}

/// The pipes of this process, as descriptors are the process's too.
static PIPES: Mutex<Pipes> = Mutex::new(Pipes { free: Vec::new(), made: 0 });

#[derive(Debug)]
struct Pipes {
    free: Vec<Ends>,
    /// Those in use and those that are free.
    made: usize,
}

impl Pipes {
    fn lock() -> MutexGuard<'static, Self> {
        // No operation leaves it half-done, so a panic elsewhere does not spoil it.
        PIPES.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uninterrupted(call: impl Fn() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

const MOVE: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

/// Bytes of a pipe: what Linux lets every user have (`fs.pipe-max-size`). It bounds how long others wait, too.
const PIPE_BYTES: usize = 1 << 20;

/// Pipes in use and free: within the 64 MiB that Linux lets every user have in pipes (`fs.pipe-user-pages-soft`).
const MOST_PIPES: usize = 32;

/// Pipes kept for the next flow.
const MOST_FREE: usize = 4;

#[cfg(test)]
mod tests;
