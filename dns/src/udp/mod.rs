//! The short way: datagrams answered in the task that received them.
//!
//! Owns: receiving and sending, and what is answered from kept answers. Must not know: names and what they mean.
//! Driven by: `server`, one worker per socket. The reasons: `docs/adr/0023-own-udp-loop.md`.
//!
//! A worker receives until nothing is left. A query whose answer is kept is answered at once: no task, no channel,
//! no allocation. All other datagrams are hickory's: the handler that also serves TCP is asked, mostly with the
//! answer ready at once; only when it must wait it becomes a task, of which there are [`MAX_TASKS`] at most.

mod parse;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Waker};

use hickory_proto::op::MessageType;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::Request;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::DnsMetrics;
use crate::compiled::MAX_DATAGRAM;
use crate::metrics::Tally;
use crate::request::unreadable;
use crate::server::Desk;
pub(crate) use parse::{Datagram, Query, parse};

/// One socket and what it needs.
#[derive(Debug)]
pub(crate) struct Worker {
    socket: Arc<UdpSocket>,
    desk: Desk,
    tally: Tally,
    /// Handlers that wait.
    tasks: JoinSet<()>,
    inbox: Box<[u8; MAX_QUERY]>,
    outbox: Box<[u8; MAX_DATAGRAM]>,
}

impl Worker {
    pub(crate) fn new(socket: UdpSocket, desk: Desk) -> Self {
        Self {
            socket: Arc::new(socket),
            desk,
            tally: Tally::default(),
            tasks: JoinSet::new(),
            inbox: Box::new([0; MAX_QUERY]),
            outbox: Box::new([0; MAX_DATAGRAM]),
        }
    }

    /// Answers until `stop` is cancelled; handlers that still wait are then dropped.
    ///
    /// # Errors
    /// The socket failed for good.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> io::Result<()> {
        let socket = Arc::clone(&self.socket);
        let mut failures = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                ready = socket.readable() => ready?,
            }
            match self.drain().await {
                Ok(is_empty) => {
                    failures = 0;
                    // Whoever waits for the socket yields anyway.
                    if !is_empty {
                        tokio::task::yield_now().await;
                    }
                }
                // An error of an earlier datagram that the system reports late.
                Err(error) if failures < MAX_FAILURES => {
                    tracing::debug!(err = %error, "no datagram received");
                    failures += 1;
                }
                Err(error) => return Err(error),
            }
            while self.tasks.try_join_next().is_some() {}
        }
    }

    /// Answers what has arrived, [`BATCH`] datagrams at most. Returns whether that is all.
    async fn drain(&mut self) -> io::Result<bool> {
        let began = Instant::now();
        let clock = self.desk.kept.clock();
        let mut result = Ok(false);
        for _ in 0..BATCH {
            match self.socket.try_recv_from(&mut self.inbox[..]) {
                Ok((length, from)) => self.take(length, from, clock).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    result = Ok(true);
                    break;
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.desk.service.metrics.add(&mut self.tally, began.elapsed());
        result
    }

    async fn take(&mut self, length: usize, from: SocketAddr, clock: u32) {
        let Some(bytes) = self.inbox.get(..length) else { return };
        let kept = match parse(bytes) {
            Datagram::Nothing => return,
            Datagram::Query(query) => {
                let kept = self.desk.kept.respond(&query, clock, &mut self.outbox);
                kept.map(|(length, outcome)| (length, outcome, query.kind))
            }
            Datagram::Unusual => None,
        };
        // Port 0 cannot be answered.
        if from.port() == 0 {
            return;
        }
        let Some((length, outcome, kind)) = kept else { return self.ask(length, from) };
        if !self.desk.admits(from) {
            return;
        }
        self.tally.count(outcome, kind);
        let Some(response) = self.outbox.get(..length) else { return };
        send(&self.socket, response, from, &self.desk.service.metrics).await;
    }

    /// Hands a datagram to the handler.
    fn ask(&mut self, length: usize, from: SocketAddr) {
        let bytes = self.inbox.get(..length).unwrap_or_default();
        let Ok(request) = Request::from_bytes(bytes.to_vec(), from, Protocol::Udp) else {
            return self.refuse(length, from);
        };
        if request.metadata.message_type == MessageType::Response {
            return;
        }
        let (desk, socket) = (self.desk.clone(), Arc::clone(&self.socket));
        let mut handling = Box::pin(async move {
            if let Some(response) = desk.datagram(&request).await {
                send(&socket, &response, from, &desk.service.metrics).await;
            }
        });
        // When it has to wait it is asked again by its task, with a waker.
        if handling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        while self.tasks.try_join_next().is_some() {}
        if self.tasks.len() < MAX_TASKS {
            self.tasks.spawn(handling);
        } else {
            self.desk.service.metrics.count_dropped();
        }
    }

    /// Says that a datagram is no message, with its header.
    fn refuse(&mut self, length: usize, from: SocketAddr) {
        let bytes = self.inbox.get(..length).unwrap_or_default();
        if let Some(refusal) = unreadable(bytes)
            && self.desk.admits(from)
        {
            // Who sends what is no message can wait for the answer in vain.
            let _ = self.socket.try_send_to(&refusal, from);
            self.desk.service.metrics.count_malformed();
        }
    }
}

async fn send(socket: &UdpSocket, response: &[u8], to: SocketAddr, metrics: &DnsMetrics) {
    let sent = match socket.try_send_to(response, to) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.send_to(response, to).await,
        sent => sent,
    };
    if let Err(error) = sent {
        tracing::debug!(err = %error, "answer not sent");
        metrics.count_dropped();
    }
}

/// Longest datagram read whole; a query has some 300 bytes with everything.
const MAX_QUERY: usize = 4096;

/// Datagrams answered before other tasks get their turn: under a tenth of a millisecond for kept answers.
const BATCH: usize = 64;

/// Handlers of one socket that wait at once. The desk lets 1,024 wait for VIPs.
const MAX_TASKS: usize = 2_048;

/// Receive errors in a row that make a socket a broken one.
const MAX_FAILURES: u32 = 100;
