//! What is outside the mesh in the demo: programs behind the services, and clients that use them.
//!
//! Owns: greeting servers, DNS questions, connections. Must not know: daemons. Driven by: `demo`.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use gossamer_dns::{Name, RData, RecordType, ResponseCode};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::supervise::Stage;

/// Longest wait for a DNS answer on loopback.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Longest wait for an answer that holds all it should.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// Longest wait of a client for its greeting, after which it counts as failed.
const GREETING_WITHIN: Duration = Duration::from_secs(5);

/// Checks that 127.0.0.1 carries connections.
pub(super) async fn check_loopback() -> Result<(), String> {
    let probe = async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        TcpStream::connect(listener.local_addr()?).await
    };
    let probed =
        timeout(Duration::from_secs(1), probe).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    probed.map(drop).map_err(|error| format!("loopback does not work ({error}); run: ip link set lo up"))
}

/// Finds a port number that no program of this machine listens on.
pub(super) async fn free_port() -> Result<u16, String> {
    let found = async { TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?.local_addr() };
    found.await.map(|address| address.port()).map_err(|error| error.to_string())
}

/// A program that speaks first, as SMTP and MySQL do.
#[derive(Debug)]
pub(super) struct Greeter {
    pub(super) address: SocketAddr,
    stop: CancellationToken,
}

impl Greeter {
    /// Listens on loopback and greets every client with `greeting` and a line end.
    pub(super) async fn start(stage: &Stage, greeting: &'static str) -> Result<Self, String> {
        let failed = |error: io::Error| format!("a program of the demo cannot listen on 127.0.0.1: {error}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let stop = stage.stopping().child_token();
        let stopped = stop.clone();
        stage.spawn_short("greeter", async move {
            loop {
                let accepted = tokio::select! {
                    biased;
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    // A client that has gone, for example a health check, is no fault.
                    Ok((mut client, _)) => drop(client.write_all(format!("{greeting}\n").as_bytes()).await),
                    Err(_) => sleep(Duration::from_millis(10)).await,
                }
            }
        });
        Ok(Self { address, stop })
    }

    /// Ends the program.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }
}

/// Connects, says nothing, and returns what the service says.
pub(super) async fn greeting(service: SocketAddr) -> io::Result<String> {
    let talk = async {
        let mut stream = TcpStream::connect(service).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        match text.strip_suffix('\n') {
            Some(text) => Ok(text.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    timeout(GREETING_WITHIN, talk).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// An answer that came over UDP.
#[derive(Debug)]
pub(super) struct Answer(Message);

/// Asks a daemon's DNS one question.
pub(super) async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Result<Answer, String> {
    let silent = |error: &dyn fmt::Display| format!("no DNS answer from {server}: {error}");
    let name = Name::from_ascii(format!("{name}.")).map_err(|error| error.to_string())?;
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.add_query(Query::query(name, kind));
    let bytes = question.to_vec().map_err(|error| error.to_string())?;
    let exchange = async {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.connect(server).await?;
        socket.send(&bytes).await?;
        let mut buffer = vec![0; 4_096];
        let length = socket.recv(&mut buffer).await?;
        buffer.truncate(length);
        Ok::<_, io::Error>(buffer)
    };
    let reply = timeout(ANSWER_WITHIN, exchange).await.map_err(|_| silent(&"nothing within 500 ms"))?;
    let message =
        Message::from_vec(&reply.map_err(|error| silent(&error))?).map_err(|error| silent(&error))?;
    if message.metadata.id == question.metadata.id {
        Ok(Answer(message))
    } else {
        Err(silent(&"a foreign reply"))
    }
}

/// Asks each millisecond until there are `wanted` records; returns them and the time since `since`.
pub(super) async fn first_answer(
    server: SocketAddr,
    name: &str,
    kind: RecordType,
    wanted: usize,
    since: Instant,
) -> Result<(Answer, Duration), String> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        match ask(server, name, kind).await {
            Ok(answer) if answer.records() >= wanted => return Ok((answer, since.elapsed())),
            Ok(answer) if Instant::now() > deadline => {
                return Err(format!(
                    "{name} {kind} is {} with {} records after 5 s",
                    answer.code(),
                    answer.records()
                ));
            }
            Err(why) if Instant::now() > deadline => return Err(why),
            _ => sleep(Duration::from_millis(1)).await,
        }
    }
}

impl Answer {
    pub(super) fn code(&self) -> ResponseCode {
        self.0.metadata.response_code
    }

    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        self.0.answers.iter().find_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        })
    }

    pub(super) fn records(&self) -> usize {
        self.0.answers.len()
    }

    /// Lines as `dig` prints them.
    pub(super) fn lines(&self) -> Vec<String> {
        let all = self.0.answers.iter().chain(&self.0.additionals);
        all.map(|record| {
            let (name, kind) = (record.name.to_ascii(), record.record_type());
            format!("{name:<38} {:>3} IN {kind:<4} {}", record.ttl, record.data)
        })
        .collect()
    }
}

/// What became of clients that went on connecting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) connects: u32,
    pub(super) failed: u32,
    pub(super) slowest: Duration,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.connects += other.connects;
        self.failed += other.failed;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Connects again and again until `until`, a few milliseconds apart.
pub(super) async fn keep_connecting(service: SocketAddr, until: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < until {
        let began = Instant::now();
        let greeted = greeting(service).await;
        tally.add(Tally { connects: 1, failed: u32::from(greeted.is_err()), slowest: began.elapsed() });
        sleep(Duration::from_millis(5)).await;
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_greeter_speaks_first_until_it_is_stopped() {
        let stage = Stage::default();
        let greeter = Greeter::start(&stage, "hello from b").await.expect("listens");
        assert_eq!(greeting(greeter.address).await.expect("greets"), "hello from b");
        greeter.stop();
        stage.stop(Duration::from_secs(5)).await;
        assert!(greeting(greeter.address).await.is_err());
    }

    #[tokio::test]
    async fn a_silent_end_is_no_greeting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let (greeted, _accepted) = tokio::join!(greeting(address), async { drop(listener.accept().await) });
        assert!(greeted.is_err());
    }

    #[tokio::test]
    async fn tallies_count_what_failed_and_the_slowest() {
        let port = free_port().await.expect("a port");
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut tally = keep_connecting(nobody, Instant::now() + Duration::from_millis(20)).await;
        assert!(tally.connects > 0 && tally.failed == tally.connects);
        tally.add(Tally { connects: 1, failed: 0, slowest: Duration::from_secs(9) });
        assert_eq!(tally.slowest, Duration::from_secs(9));
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_named() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let address = silent.local_addr().expect("bound");
        let why = ask(address, "x.mesh.internal", RecordType::A).await.expect_err("silent");
        assert!(why.contains(&address.to_string()), "{why}");
    }
}
