//! Programs a service stands for: small TCP servers on threads of the test.
//!
//! Owns: their sockets and threads. Must not know: the mesh. Driven by: scenarios that connect to a service.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::Duration;

use anyhow::{Context, Result};

/// How often a server looks for connections.
const IDLE: Duration = Duration::from_millis(2);

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Sends one line before it reads anything, then ends.
    Greets(&'static str),
    /// Sends back what it gets until the client ends.
    Echoes,
}

/// A listening server; connections that arrive before [`Target::serve`] wait.
#[derive(Debug)]
pub struct Target {
    listener: TcpListener,
    manner: Manner,
    stopped: AtomicBool,
}

impl Target {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new(manner: Manner) -> Result<Self> {
        Self::at("127.0.0.1:0".parse()?, manner)
    }

    /// Listens on an address.
    ///
    /// # Errors
    /// It is in use.
    pub fn at(address: SocketAddr, manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, manner, stopped: AtomicBool::new(false) })
    }

    /// Returns its port.
    ///
    /// # Errors
    /// The system refuses to say.
    pub fn port(&self) -> Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Serves on a thread of `scope` until [`Target::stop`], which the scenario calls before it returns.
    pub fn serve<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        scope.spawn(|| {
            while !self.stopped.load(Ordering::Relaxed) {
                match self.listener.accept() {
                    Ok((stream, _)) => drop(scope.spawn(|| self.answer(stream))),
                    Err(_) => std::thread::sleep(IDLE),
                }
            }
        });
    }

    /// Ends its threads.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn answer(&self, mut stream: TcpStream) {
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
        match self.manner {
            Manner::Greets(line) => drop(stream.write_all(line.as_bytes())),
            Manner::Echoes => {
                let mut bytes = [0; 4_096];
                while !self.stopped.load(Ordering::Relaxed) {
                    match stream.read(&mut bytes) {
                        Ok(0) => return,
                        Ok(length) if stream.write_all(&bytes[..length]).is_err() => return,
                        Ok(_) => {}
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                }
            }
        }
    }
}

/// Plays a part of a scenario while a target of this manner serves; the target's port is the argument.
///
/// # Errors
/// Those of the part, or the system refuses a socket.
pub fn while_serving<T>(manner: Manner, play: impl FnOnce(u16) -> Result<T>) -> Result<T> {
    let target = Target::new(manner)?;
    let port = target.port()?;
    serve_all(std::slice::from_ref(&target), || play(port))
}

/// Plays a part of a scenario while these targets serve.
///
/// # Errors
/// Those of the part.
pub fn serve_all<T>(targets: &[Target], play: impl FnOnce() -> Result<T>) -> Result<T> {
    std::thread::scope(|scope| {
        targets.iter().for_each(|target| target.serve(scope));
        let _stop = StopWhenDropped(targets);
        play()
    })
}

/// Ends the threads of targets also when a scenario panics: their scope waits for them.
struct StopWhenDropped<'a>(&'a [Target]);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(Target::stop);
    }
}

/// Connects and reads until the other side ends; says nothing itself.
///
/// # Errors
/// No connection, or it was reset.
pub fn read_greeting(address: SocketAddr, limit: Duration) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Connects, sends `bytes`, ends its half and returns what came back.
///
/// # Errors
/// No connection, or it was reset.
pub fn exchange(address: SocketAddr, bytes: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(bytes)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    Ok(back)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn a_greeter_speaks_first() {
        let line = while_serving(Manner::Greets("hello\n"), |port| {
            read_greeting(([127, 0, 0, 1], port).into(), LIMIT)
        });
        assert_eq!(line.expect("greeted"), "hello\n");
    }

    #[test]
    fn an_echo_returns_what_it_gets() {
        let back =
            while_serving(Manner::Echoes, |port| exchange(([127, 0, 0, 1], port).into(), b"abc", LIMIT));
        assert_eq!(back.expect("echoed"), b"abc");
    }
}
