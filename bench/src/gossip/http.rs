//! The local API of a daemon, spoken without blocking: requests on one connection, and streams of lines.
//!
//! Owns: HTTP/1.1 as bytes. Must not know: what is asked. Driven by: `ours`.
//!
//! Answers are read while other members are watched: a blocking client would make their times late.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

/// Longest wait for a response.
const RESPONSE: Duration = Duration::from_secs(20);

/// A connection to the API of one daemon.
#[derive(Debug)]
pub(super) struct Api {
    stream: BufReader<UnixStream>,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.with_context(|| socket.display().to_string())?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request; returns when its last byte was handed over.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn send(&mut self, method: &str, path: &str, body: &Value) -> Result<Instant> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        Ok(Instant::now())
    }

    /// Reads the response to what was sent.
    ///
    /// # Errors
    /// The daemon refuses, with its words; or it does not answer in time.
    pub(super) async fn response(&mut self) -> Result<Value> {
        let read = async {
            let (code, length) = self.head().await?;
            let mut body = vec![0; length.context("the response has no length")?];
            self.stream.read_exact(&mut body).await?;
            if !(200..300).contains(&code) {
                bail!("{code}: {}", String::from_utf8_lossy(&body));
            }
            Ok(serde_json::from_slice(&body)?)
        };
        timeout(RESPONSE, read).await.context("no response in time")?
    }

    /// Sends a request and reads its response.
    ///
    /// # Errors
    /// Those of [`Api::send`] and [`Api::response`].
    pub(super) async fn ask(&mut self, method: &str, path: &str, body: &Value) -> Result<Value> {
        self.send(method, path, body).await?;
        self.response().await
    }

    /// Asks for a stream of lines and begins to read it.
    ///
    /// # Errors
    /// The daemon refuses.
    pub(super) async fn lines(mut self, path: &str) -> Result<Lines> {
        self.send("GET", path, &Value::Null).await?;
        let (code, _) = self.head().await?;
        if code != 200 {
            bail!("{path} answers {code}");
        }
        Ok(Lines(self.stream))
    }

    /// Reads status and length.
    async fn head(&mut self) -> Result<(u16, Option<usize>)> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let code = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.with_context(|| format!("no HTTP response: {line:?}"))?;
        let mut length = None;
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await? == 0 {
                bail!("the connection was closed");
            }
            let field = line.trim_end().to_ascii_lowercase();
            if field.is_empty() {
                return Ok((code, length));
            }
            if let Some(value) = field.strip_prefix("content-length:") {
                length = Some(value.trim().parse()?);
            }
        }
    }
}

/// A response that goes on: JSON lines in chunks.
#[derive(Debug)]
pub(super) struct Lines(BufReader<UnixStream>);

impl Lines {
    /// Returns the next line that is a JSON object; `None` at the end. The sizes of chunks and the empty lines behind
    /// them are no objects: the daemon never splits a line.
    pub(super) async fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            match self.0.read_line(&mut line).await {
                Ok(length) if length > 0 => {}
                _ => return None,
            }
            if line.starts_with('{') {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// Returns a client whose request is answered so; the server's end stays open as long as the value is kept.
    async fn served(reply: &'static str) -> ((tempfile::TempDir, UnixStream), Api) {
        let dir = tempfile::tempdir().expect("scratch");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("bound");
        let api = Api::connect(&socket).await.expect("connected");
        let (mut stream, _) = listener.accept().await.expect("accepted");
        stream.write_all(reply.as_bytes()).await.expect("sent");
        ((dir, stream), api)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("starts")
    }

    #[test]
    fn a_refusal_is_an_error_with_its_words() {
        runtime().block_on(async {
            let (_open, mut api) = served("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").await;
            let error = api.ask("GET", "/", &Value::Null).await.expect_err("refused").to_string();
            assert_eq!(error, "404: no");
        });
    }

    #[test]
    fn a_stream_yields_its_lines_without_the_chunks() {
        runtime().block_on(async {
            let (_open, api) = served(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{\"a\":1}\n\r\n10\r\n{\"b\":2}\n{\"c\":3}\n\r\n",
            )
            .await;
            let mut lines = api.lines("/").await.expect("a stream");
            for wanted in ["{\"a\":1}\n", "{\"b\":2}\n", "{\"c\":3}\n"] {
                assert_eq!(lines.next().await.as_deref(), Some(wanted));
            }
        });
    }
}
