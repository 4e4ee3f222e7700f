//! The command line's side of the local API.
//!
//! Owns: one request over one connection. Must not know: what is asked, how it is shown.
//! Driven by: `cli`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::FLOW_PROTOCOL;
use super::messages::Problem;
use crate::supervise::Stage;

/// Longest wait for a reply: all requests but `events` are answered in well under a second.
const REPLY_WITHIN: Duration = Duration::from_secs(10);

/// Longest reply that is read: a listing of 10,000 nodes is about 4 MiB.
const MAX_REPLY_BYTES: usize = 64 << 20;

/// Why there is no reply to use.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No daemon behind the socket, or one of another user. Nothing was asked.
    #[error("no daemon answers at {socket} ({cause}); {fix}")]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        cause: io::Error,
        /// What to run.
        fix: &'static str,
    },
    /// The daemon said no, and why.
    #[error("{text}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Cause and remedy.
        text: String,
    },
    /// No reply in time. What was asked for may have happened.
    #[error("the daemon at {0} did not reply within 10 s; look at its log, or restart it")]
    TimedOut(PathBuf),
    /// The connection ended in between, or the reply is of another version.
    #[error(
        "the reply of the daemon at {socket} is unusable ({cause}); restart it if its version is another"
    )]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

/// Talks to the daemon behind a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Makes a client; nothing is opened yet.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for a reply.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.decode(&self.exchange(Method::GET, path, Bytes::new()).await?)
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(&error))?;
        self.decode(&self.exchange(Method::POST, path, body.into()).await?)
    }

    /// Asks for lines and hands each to `take` until the daemon ends them.
    ///
    /// # Errors
    /// See [`ClientError`], or what `take` says.
    pub async fn lines<E: From<ClientError>>(
        &self,
        path: &str,
        mut take: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<(), E> {
        let request = self.build(Method::GET, path, Bytes::new())?;
        let mut body = self.request(request).await?.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.broken(&error))?;
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                take(String::from_utf8_lossy(&line).trim_end())?;
            }
        }
        Ok(())
    }

    /// Opens a flow: returns the raw connection once the daemon has agreed, and bytes that came along.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn connect(&self, path: &str) -> Result<(UnixStream, Bytes), ClientError> {
        let mut request = self.build(Method::POST, path, Bytes::new())?;
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, HeaderValue::from_static(FLOW_PROTOCOL));
        let response = self.request(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.broken(&"it did not switch protocols"));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| self.broken(&error))?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| self.broken(&"the connection is of another kind"))?;
        Ok((parts.io.into_inner(), parts.read_buf))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let request = self.build(method, path, body)?;
        let all = async { self.collect(self.request(request).await?).await };
        timeout(REPLY_WITHIN, all).await.map_err(|_| ClientError::TimedOut(self.socket.clone()))?
    }

    fn build(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
        let request = Request::builder().method(method).uri(path).header(HOST, "gossamer");
        let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body));
        request.map_err(|error| self.broken(&error))
    }

    async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|cause| self.unreachable(cause))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        Stage::default().spawn_short("api client", async move {
            // Its failure is also the failure of the request.
            let _ = connection.with_upgrades().await;
        });
        let response = timeout(REPLY_WITHIN, sender.send_request(request))
            .await
            .map_err(|_| ClientError::TimedOut(self.socket.clone()))?
            .map_err(|error| self.broken(&error))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let body = self.collect(response).await?;
        let plain = || String::from_utf8_lossy(&body).trim().to_owned();
        let text = serde_json::from_slice::<Problem>(&body).map_or_else(|_| plain(), |problem| problem.error);
        Err(ClientError::Refused { status, text })
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_REPLY_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.broken(&error))
    }

    fn decode<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.broken(&error))
    }

    fn broken(&self, cause: &dyn fmt::Display) -> ClientError {
        ClientError::Broken { socket: self.socket.clone(), cause: cause.to_string() }
    }

    fn unreachable(&self, cause: io::Error) -> ClientError {
        let fix = if cause.kind() == io::ErrorKind::PermissionDenied {
            "run the command as the user of the daemon, or name another --socket"
        } else {
            "start one with `gossamer run` (first `init` or `join`), or name another --socket"
        };
        ClientError::Unreachable { socket: self.socket.clone(), cause, fix }
    }
}
