//! VIP listeners: the sockets, and who may connect to them.
//!
//! Owns: binding and accepting. Must not know: why a port is listened on, where its flows go.
//! Driven by: `vips`, which holds one [`Listening`] per bound port.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use gossamer_core::vip::BindOutcome;

use super::spare::Spare;
use super::{RelayCounters, count};
use crate::clients::{Clients, is_out_of_files};
use crate::segments;
use crate::supervise::Stage;

/// Listens on an address of the pool.
///
/// # Errors
/// What to judge the port by; nothing is bound.
pub(super) fn bind(address: SocketAddrV4) -> Result<TcpListener, BindOutcome> {
    try_bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => BindOutcome::InUse,
        io::ErrorKind::PermissionDenied => BindOutcome::Denied,
        _ => BindOutcome::Failed(error.to_string()),
    })
}

fn try_bind(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Without it connections in TIME_WAIT keep the port (measured).
    socket.set_reuse_address(true)?;
    segments::limit(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Listens on an address of either family that this machine may have only later.
///
/// # Errors
/// Those of the system; nothing is bound.
pub(super) fn bind_early(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_freebind_v6(true)?;
            socket.set_only_v6(true)?;
        }
    }
    segments::limit(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A port that is listened on. Dropping it closes it soon; [`Self::close`] waits until it is closed.
#[derive(Debug)]
pub(super) struct Listening {
    stop: DropGuard,
    closed: oneshot::Receiver<()>,
}

/// What happens to clients.
pub(super) struct Accepting<F> {
    /// Whose connections are taken.
    pub(super) clients: Clients,
    /// Takes them.
    pub(super) take: F,
    /// Counts the others.
    pub(super) counters: Arc<RelayCounters>,
    /// With which clients are turned away while this process can open no more files.
    pub(super) spare: Spare,
}

impl Listening {
    /// Starts to accept.
    pub(super) fn start<F>(stage: &Stage, listener: TcpListener, accepting: Accepting<F>) -> Self
    where
        F: Fn(TcpStream) + Send + Sync + 'static,
    {
        let stop = stage.stopping().child_token();
        let (closing, closed) = oneshot::channel();
        stage.spawn_short("vip-listener", {
            let stop = stop.clone();
            async move {
                accept_all(&listener, &stop, &accepting).await;
                drop(listener);
                let _ = closing.send(());
            }
        });
        Self { stop: stop.drop_guard(), closed }
    }

    /// Closes the port. Flows that came through it go on.
    pub(super) async fn close(self) {
        drop(self.stop);
        let _ = self.closed.await;
    }
}

async fn accept_all<F>(listener: &TcpListener, stop: &CancellationToken, accepting: &Accepting<F>)
where
    F: Fn(TcpStream) + Send + Sync + 'static,
{
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((client, from)) if accepting.clients.admits(from.ip()) => (accepting.take)(client),
            Ok((client, from)) => {
                count(&accepting.counters.strangers);
                tracing::debug!(%from, "a connection of somebody who is no client is closed");
                let _ = client.set_zero_linger();
            }
            // The next accept has the place of the spare file, and its client is turned away.
            Err(error) if is_out_of_files(&error) && accepting.spare.lend() => {}
            Err(error) => {
                tracing::debug!(err = %error, "no connection accepted");
                // Waiting lets flows end; the backlog keeps the clients meanwhile.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                accepting.spare.refill();
            }
        }
    }
}

/// Connections the kernel completes before we take them: a burst of one busy program.
const BACKLOG: i32 = 1_024;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn an_address_that_comes_later_is_listened_on_already() {
        let later = "192.0.2.1:4679".parse().expect("address");
        assert_eq!(bind_early(later).expect("bound").local_addr().ok(), Some(later));
    }

    /// An address nobody else in these tests uses, with a port that was free a moment ago.
    fn vip(last: u8) -> SocketAddrV4 {
        let free = std::net::TcpListener::bind((Ipv4Addr::new(127, 250, 1, last), 0)).expect("loopback");
        let port = free.local_addr().expect("bound").port();
        SocketAddrV4::new(Ipv4Addr::new(127, 250, 1, last), port)
    }

    #[tokio::test]
    async fn a_wildcard_listener_is_seen_as_in_use() {
        let wildcard = std::net::TcpListener::bind("0.0.0.0:0").expect("free");
        let port = wildcard.local_addr().expect("bound").port();
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 250, 1, 1), port);
        assert_eq!(bind(address).err(), Some(BindOutcome::InUse));
        drop(wildcard);
        assert!(bind(address).is_ok());
    }

    #[tokio::test]
    async fn an_address_that_is_not_ours_fails_with_its_cause() {
        let elsewhere = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 8080);
        assert!(matches!(bind(elsewhere), Err(BindOutcome::Failed(_))));
    }

    #[tokio::test]
    async fn clients_of_this_host_are_handed_on_until_it_is_closed() {
        let stage = Stage::default();
        let address = vip(2);
        let (clients, mut taken) = mpsc::channel(1);
        let take = move |client| clients.try_send(client).expect("one client");
        let listener = bind(address).expect("free");
        let listening = Listening::start(
            &stage,
            listener,
            Accepting {
                clients: Clients::default(),
                take,
                counters: Arc::default(),
                spare: Spare::default(),
            },
        );

        let mut client = TcpStream::connect(address).await.expect("accepted");
        taken.recv().await.expect("taken").write_all(b"hello").await.expect("written");
        let mut greeting = [0; 5];
        client.read_exact(&mut greeting).await.expect("read");
        assert_eq!(&greeting, b"hello");

        listening.close().await;
        assert!(TcpStream::connect(address).await.is_err());
        assert!(std::net::TcpListener::bind(("0.0.0.0", address.port())).is_ok(), "the port is free again");
    }
}
