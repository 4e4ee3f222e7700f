//! `forward`: a local port whose connections go to a service.
//!
//! Owns: the listener, and the splice between a program and the daemon. Must not know: which instance serves.
//! Driven by: `cli`, and `run --forward`.
//!
//! Half-close is kept in both directions. A flow that breaks reaches the program as a reset, never as a clean
//! end: the daemon then drops the whole connection while the program still had something to say.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::name_port::NamePort;
use super::{args, output, run};
use crate::api::Client;
use crate::api::messages::ServiceRow;
use crate::segments;
use crate::supervise::Stage;

/// Longest wait for the connections that are open when `forward` ends.
const END_WITHIN: Duration = Duration::from_millis(500);

pub(super) async fn run(client: Client, forward: args::Forward) -> Result<ExitCode, Failure> {
    let service = &forward.to.0.service;
    // Fails with the right code before anything listens.
    let _: Vec<ServiceRow> = client.get(&format!("/v1/services?name={service}")).await?;
    let stage = Stage::default();
    let bound = start(&stage, client, forward.local.0, forward.to.clone()).await?;
    output::note(format_args!("{bound} -> {}", forward.to));
    let code = if forward.command.is_empty() {
        run::interrupted().await;
        ExitCode::SUCCESS
    } else {
        command(&forward.command).await?
    };
    stage.stop(END_WITHIN).await;
    Ok(code)
}

async fn command(command: &[OsString]) -> Result<ExitCode, Failure> {
    run::command(command, &CancellationToken::new()).await
}

/// Listens on a local address and carries each connection; returns the address.
pub(super) async fn start(
    stage: &Stage,
    client: Client,
    local: SocketAddr,
    to: NamePort,
) -> Result<SocketAddr, Failure> {
    let refused = |error: io::Error| {
        Failure::failed(format_args!("{local} cannot be listened on: {error}; choose another local address"))
    };
    let listener = TcpListener::bind(local).await.map_err(refused)?;
    segments::limit(&listener);
    let bound = listener.local_addr().map_err(refused)?;
    let (flows, stop) = (stage.clone(), stage.stopping().clone());
    stage.spawn("forward", async move {
        let path = path(&to);
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, _)) => {
                    let (client, path, stop) = (client.clone(), path.clone(), stop.clone());
                    flows.spawn_short("forwarded flow", async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = carry(&client, &path, tcp) => {}
                        }
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(bound)
}

fn path(to: &NamePort) -> String {
    let to = &to.0;
    let mut path = format!("/v1/connect?service={}&port={}", to.service, to.port);
    if let Some(group) = &to.group {
        path.push_str(&format!("&group={group}"));
    }
    if let Some(instance) = &to.instance {
        path.push_str(&format!("&instance={instance}"));
    }
    path
}

async fn carry(client: &Client, path: &str, mut tcp: TcpStream) {
    let _ = tcp.set_nodelay(true);
    let carried = match client.connect(path).await {
        Ok((unix, early)) => splice(&mut tcp, unix, early).await,
        Err(error) => {
            output::note(format_args!("error: {error}"));
            Err(io::Error::other(error))
        }
    };
    if carried.is_err() {
        // Closing with a zero linger time sends a reset.
        let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
    }
}

async fn splice(tcp: &mut TcpStream, unix: UnixStream, early: Bytes) -> io::Result<()> {
    let said_all = AtomicBool::new(false);
    let (mut from_program, mut to_program) = tcp.split();
    let (mut from_daemon, mut to_daemon) = unix.into_split();
    let up = async {
        copy(&mut from_program, &mut to_daemon).await?;
        said_all.store(true, Ordering::Relaxed);
        to_daemon.shutdown().await
    };
    let down = async {
        to_program.write_all(&early).await?;
        copy(&mut from_daemon, &mut to_program).await?;
        if !said_all.load(Ordering::Relaxed) && is_gone(from_daemon.as_ref()) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        to_program.shutdown().await
    };
    tokio::try_join!(up, down).map(|_| ())
}

/// Returns whether the other end has closed both directions: then Linux refuses to send even nothing.
fn is_gone(unix: &UnixStream) -> bool {
    SockRef::from(unix).send(&[]).is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let (program, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        (program.expect("connects"), accepted.expect("accepts").0)
    }

    #[tokio::test]
    async fn half_close_is_kept_in_both_directions() {
        let (mut program, mut tcp) = pair().await;
        let (unix, mut daemon) = UnixStream::pair().expect("a pair");
        let service = async {
            let mut asked = String::new();
            daemon.read_to_string(&mut asked).await.expect("reads to the program's end");
            daemon.write_all(asked.to_uppercase().as_bytes()).await.expect("answers");
            drop(daemon);
        };
        let client = async {
            program.write_all(b"hello").await.expect("writes");
            program.shutdown().await.expect("half-closes");
            let mut answer = String::new();
            program.read_to_string(&mut answer).await.expect("a clean end");
            answer
        };
        let early = Bytes::from_static(b"220 ");
        let (carried, (), answer) = tokio::join!(splice(&mut tcp, unix, early), service, client);
        assert!(carried.is_ok());
        assert_eq!(answer, "220 HELLO");
    }

    #[tokio::test]
    async fn a_flow_that_breaks_is_a_reset_for_the_program() {
        let (mut program, mut tcp) = pair().await;
        let (unix, daemon) = UnixStream::pair().expect("a pair");
        drop(daemon);
        assert!(splice(&mut tcp, unix, Bytes::new()).await.is_err());
        SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).expect("set");
        drop(tcp);
        let error = program.read(&mut [0; 1]).await.expect_err("no clean end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_path_names_all_that_was_typed() {
        let to: NamePort = "vm-b.db.west:pg".parse().expect("parses");
        assert_eq!(path(&to), "/v1/connect?service=db&port=pg&group=west&instance=vm-b");
    }
}
