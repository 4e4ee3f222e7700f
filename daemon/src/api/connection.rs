//! One HTTP connection over the unix socket.
//!
//! Owns: how HTTP is spoken, and who is at the other end. Must not know: routes. Driven by: `api`.

use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use gossamer_core::callers::Caller;

/// Longest wait for the head of a request, so that idle connections do not use up the places.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Answers a user of this machine until `stop`; the connection ends with the reply it is at.
pub(super) async fn over_unix(routes: Router, stream: UnixStream, stop: CancellationToken) {
    let Ok(peer) = stream.peer_cred() else { return };
    let caller = Caller { uid: peer.uid(), gid: peer.gid() };
    converse(routes.layer(Extension(caller)), stream, stop).await;
}

async fn converse<S>(routes: Router, stream: S, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(err = %error, "a connection of the local API broke");
    }
}
