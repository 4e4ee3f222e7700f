//! One HTTP connection, over the unix socket or over TCP.
//!
//! Owns: how HTTP is spoken, and what must stand before the routes: the caller's user on the unix socket, the guard
//! on TCP. Must not know: routes. Driven by: `api`; nothing else in the daemon serves HTTP (`tests/structure.rs`).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use gossamer_core::callers::Caller;
use gossamer_core::guard::{Guard, HEADER, Head, Refused};

use super::refusal::Refusal;
use crate::metrics::Metrics;

/// Longest wait for the head of a request, so that idle connections do not use up the places.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Routes behind the guard: the only ones that [`over_tcp`] takes.
#[derive(Clone, Debug)]
pub struct Guarded(Router);

impl Guarded {
    /// Puts a guard before every route, and before the answer that there is none.
    pub fn new(routes: Router, guard: Guard, metrics: Arc<Metrics>) -> Self {
        Self(routes.layer(from_fn_with_state((Arc::new(guard), metrics), judge)))
    }
}

/// Answers a user of this machine until `stop`; the connection ends with the reply it is at.
pub(super) async fn over_unix(routes: Router, stream: UnixStream, stop: CancellationToken) {
    let Ok(peer) = stream.peer_cred() else { return };
    let caller = Caller { uid: peer.uid(), gid: peer.gid() };
    converse(routes.layer(Extension(caller)), stream, stop).await;
}

/// Answers whoever has connected until `stop`. No [`Caller`] is known then: routes that want one refuse.
pub async fn over_tcp(Guarded(routes): Guarded, stream: TcpStream, stop: CancellationToken) {
    converse(routes, stream, stop).await;
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

async fn judge(
    State((guard, metrics)): State<(Arc<Guard>, Arc<Metrics>)>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    if let Err(refused) = check(&guard, &request) {
        metrics.api_refused(refused.word());
        tracing::debug!(reason = refused.word(), "a request over TCP was refused");
        let status = StatusCode::from_u16(refused.status()).unwrap_or(StatusCode::FORBIDDEN);
        return Err(Refusal::of(status, refused));
    }
    Ok(next.run(request).await)
}

fn check(guard: &Guard, request: &Request) -> Result<(), Refused> {
    let all = |name: HeaderName| -> Vec<&str> {
        request.headers().get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect()
    };
    guard.check(&Head {
        method: request.method().as_str(),
        authority: request.uri().authority().map(Authority::as_str),
        hosts: all(header::HOST),
        origins: all(header::ORIGIN),
        content_type: all(header::CONTENT_TYPE).first().copied(),
        has_header: request.headers().contains_key(HEADER),
    })
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Sends one request to guarded routes over TCP and returns the status line.
    async fn asked(metrics: &Arc<Metrics>, head: &str) -> String {
        let routes = Router::new()
            .route("/page", get(async || "page").post(async || "done"))
            .route("/who", get(async |Extension(_): Extension<Caller>| "somebody"));
        let routes = Guarded::new(routes, Guard::default(), Arc::clone(metrics));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let serve = async {
            let (stream, _) = listener.accept().await.expect("accepts");
            over_tcp(routes, stream, CancellationToken::new()).await;
        };
        let ask = async {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            let request = format!("{}\r\nconnection: close\r\n\r\n", head.replace('\n', "\r\n"));
            stream.write_all(request.as_bytes()).await.expect("writes");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).await.expect("reads");
            reply
        };
        let ((), reply) = tokio::join!(serve, ask);
        reply
    }

    #[tokio::test]
    async fn every_route_over_tcp_lies_behind_the_guard() {
        let metrics = Arc::default();
        for (head, status) in [
            ("GET /page HTTP/1.1\nhost: localhost", 200),
            ("GET /page HTTP/1.1\nhost: evil.example", 421),
            ("GET http://evil.example/page HTTP/1.1\nhost: localhost", 421),
            ("GET /page HTTP/1.0", 421),
            ("GET /nothing HTTP/1.1\nhost: localhost", 404),
            ("GET /nothing HTTP/1.1\nhost: evil.example", 421),
            ("GET /page HTTP/1.1\nhost: localhost\norigin: http://evil.example", 403),
            ("OPTIONS /page HTTP/1.1\nhost: localhost", 403),
            ("POST /page HTTP/1.1\nhost: localhost\ncontent-type: text/plain", 415),
            ("POST /page HTTP/1.1\nhost: localhost\ncontent-type: application/json", 403),
            ("POST /page HTTP/1.1\nhost: localhost\ncontent-type: application/json\nx-gossamer: 1", 200),
            // What depends on the caller's user is not to be had over TCP.
            ("GET /who HTTP/1.1\nhost: localhost", 500),
        ] {
            let reply = asked(&metrics, head).await;
            let line = reply.lines().next().unwrap_or_default();
            assert!(line.contains(&format!(" {status} ")), "{head}: {reply}");
            assert!(!reply.to_ascii_lowercase().contains("access-control-allow"), "{reply}");
        }
        let counted = metrics.snapshot();
        assert_eq!(counted["gossamer_api_refused_total{reason=\"host\"}"], 4);
        assert_eq!(counted["gossamer_api_refused_total{reason=\"content_type\"}"], 1);
    }
}
