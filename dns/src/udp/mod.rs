//! The short way: datagrams answered in the task that received them.
//!
//! Owns: receiving and sending, and what is answered from kept answers. Must not know: names and what they mean.
//! Driven by: `server`, one worker per socket. The reasons: `docs/adr/0023-own-udp-loop.md`.
//!
//! A worker receives until nothing is left, a batch with each call. A query whose answer is kept is answered in place: no
//! task, no channel, no allocation of its own. All other datagrams are hickory's: the handler that also serves TCP is
//! asked, mostly with the answer ready at once; only when it must wait it becomes a task, of which there are
//! [`MAX_TASKS`] at most.

mod batch;
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
use crate::metrics::Tally;
use crate::request::unreadable;
use crate::server::Desk;
use batch::{Inbox, Outbox};
pub(crate) use parse::{Datagram, Query, parse};

/// One socket and what it needs.
#[derive(Debug)]
pub(crate) struct Worker {
    socket: Arc<UdpSocket>,
    desk: Desk,
    tally: Tally,
    /// Handlers that wait.
    tasks: JoinSet<()>,
    inbox: Inbox,
    outbox: Outbox,
}

impl Worker {
    pub(crate) fn new(socket: UdpSocket, desk: Desk) -> Self {
        Self {
            socket: Arc::new(socket),
            desk,
            tally: Tally::default(),
            tasks: JoinSet::new(),
            inbox: Inbox::new(),
            outbox: Outbox::new(),
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

    /// Answers the next batch. Returns whether that is all that has arrived.
    async fn drain(&mut self) -> io::Result<bool> {
        let began = Instant::now();
        let clock = self.desk.kept.clock();
        let is_empty = self.inbox.receive(&self.socket)?;
        for index in 0..self.inbox.len() {
            self.take(index, clock);
        }
        for _ in 0..self.outbox.send(&self.socket).await {
            self.desk.service.metrics.count_dropped();
        }
        self.desk.service.metrics.add(&mut self.tally, began.elapsed());
        Ok(is_empty)
    }

    /// Answers one datagram, or hands it on.
    fn take(&mut self, index: usize, clock: u32) {
        let Some((bytes, from)) = self.inbox.get(index) else { return };
        let kept = match parse(bytes) {
            Datagram::Nothing => return,
            Datagram::Query(query) => self.outbox.next().and_then(|place| {
                let (length, outcome) = self.desk.kept.respond(&query, clock, place)?;
                Some((length, outcome, query.kind))
            }),
            Datagram::Unusual => None,
        };
        let Some((length, outcome, kind)) = kept else { return self.ask(index) };
        if self.desk.admits(from) {
            self.tally.count(outcome, kind);
            self.outbox.push(length, from);
        }
    }

    /// Hands a datagram to the handler.
    fn ask(&mut self, index: usize) {
        let Some((bytes, from)) = self.inbox.get(index) else { return };
        let Ok(request) = Request::from_bytes(bytes.to_vec(), from, Protocol::Udp) else {
            return self.refuse(bytes, from);
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
    fn refuse(&self, bytes: &[u8], from: SocketAddr) {
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

/// Handlers of one socket that wait at once. The desk lets 1,024 wait for VIPs.
const MAX_TASKS: usize = 2_048;

/// Receive errors in a row that make a socket a broken one.
const MAX_FAILURES: u32 = 100;
