//! The local API, spoken by hand: HTTP/1.1 on the unix socket, one connection for many requests.
//!
//! Owns: requests and responses as bytes. Must not know: what they mean. Driven by: checks that need more
//! requests a second than processes can be started.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Longest wait for a response.
const RESPONSE: Duration = Duration::from_secs(10);

/// A connection to the API of one daemon.
#[derive(Debug)]
pub struct Api {
    stream: BufReader<UnixStream>,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// No daemon listens on the socket.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(Some(RESPONSE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and returns the status code and the body.
    ///
    /// # Errors
    /// The connection broke: whether the request was carried out is unknown.
    pub fn request(&mut self, method: &str, path: &str, body: &Value) -> Result<(u16, String)> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.get_mut().write_all(format!("{head}{body}").as_bytes())?;
        self.response()
    }

    fn response(&mut self) -> Result<(u16, String)> {
        let status = self.line()?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.with_context(|| format!("no HTTP response: {status:?}"))?;
        let mut length = 0;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            match line.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse()?,
                Some(("transfer-encoding", _)) => bail!("the response has no length"),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((code, String::from_utf8(body)?))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn requests_share_a_connection() {
        let dir = tempfile::tempdir().expect("scratch");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("bound");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("a client");
                for _ in 0..2 {
                    let mut bytes = [0; 512];
                    assert!(stream.read(&mut bytes).expect("a request") > 0);
                    stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}").expect("sent");
                }
            });
            let mut api = Api::connect(&socket).expect("connected");
            for _ in 0..2 {
                let response = api.request("POST", "/v1/x", &serde_json::json!({"a": 1}));
                assert_eq!(response.expect("answered"), (201, "{}".to_owned()));
            }
            assert!(api.request("GET", "/", &Value::Null).is_err());
        });
    }
}
