//! The door of an issuer: connections of those who want to join or to renew.
//!
//! Owns: how many are served at once, for how long, and the proofs they give. Must not know: who is admitted.
//! Driven by: the transport; hands what is in order to the desk.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use gossamer_core::admission::{Seat, Seating, Seats, Tries};
use gossamer_core::trust::{Leaf, TrustError, node_id, signature_holds};
use gossamer_wire::TokenId;
use gossamer_wire::join::{Ask, JoinReply, JoinRequest, PROOF_LABEL, RENEW_LABEL, Refusal, RenewRequest};
use gossamer_wire::limits::{MAX_JOIN_REQUEST_BYTES, MAX_JOINING};
use gossamer_wire::token::Token;

use super::{Checked, Command};
use crate::clock;
use crate::metrics::Metrics;
use crate::supervise::Stage;
use crate::transport::{Connection, SendStream, Trust};

/// Longest wait for a request after the handshake: who says nothing must not hold a seat.
const REQUEST_WITHIN: Duration = Duration::from_millis(1_500);
/// Longest exchange, with the write of the ledger.
const JOIN_WITHIN: Duration = Duration::from_secs(5);
/// Longest wait for the asker to have stored what it got.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// What the tasks of joiners tell the door.
#[derive(Debug)]
enum Heard {
    /// One has asked; the reply says whether it still has its seat.
    Asked(Seat, oneshot::Sender<bool>),
    /// One asked in vain.
    InVain(Seat),
    /// One has its answer, or gets none.
    Answered(Seat),
    /// One has gone.
    Left(Seat),
}

/// Takes joiners, a bounded number at a time.
pub(super) async fn door(
    stage: Stage,
    mut joiners: mpsc::Receiver<Connection>,
    commands: mpsc::Sender<Command>,
    trust: Trust,
    metrics: Arc<Metrics>,
) {
    let stop = stage.stopping().clone();
    let (mut tries, mut seats) = (Tries::default(), Seats::default());
    // Who has a seat, and whether it was answered.
    let mut open: BTreeMap<Seat, (Connection, bool)> = BTreeMap::new();
    let (tell, mut told) = mpsc::channel(MAX_JOINING);
    loop {
        let connection = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(heard) = told.recv() => {
                match heard {
                    Heard::Asked(seat, reply) => drop(reply.send(seats.asked(seat))),
                    Heard::InVain(seat) => {
                        if let Some((connection, _)) = open.get(&seat) {
                            tries.failed(source_of(connection), clock::now().mono);
                        }
                    }
                    Heard::Answered(seat) => {
                        seats.answered(seat);
                        if let Some((_, is_answered)) = open.get_mut(&seat) {
                            *is_answered = true;
                        }
                    }
                    Heard::Left(seat) => {
                        seats.leave(seat);
                        open.remove(&seat);
                    }
                }
                continue;
            }
            Some(connection) = joiners.recv() => connection,
            else => return,
        };
        let source = source_of(&connection);
        if !tries.allows(source, clock::now().mono) {
            metrics.join("too_many_tries");
            connection.close(TOO_MANY_TRIES.into(), b"too many tries in vain, wait a minute");
            continue;
        }
        let (seat, instead) = match seats.take(source) {
            Seating::Seated(seat) => (seat, None),
            Seating::Instead(seat, silent) => (seat, Some(silent)),
            Seating::Full => {
                metrics.join("no_seat");
                connection.close(NO_SEAT.into(), b"too many ask at once, try again");
                continue;
            }
        };
        if let Some((silent, is_answered)) = instead.and_then(|silent| open.remove(&silent)) {
            metrics.join("made_room");
            if !is_answered {
                tries.failed(source_of(&silent), clock::now().mono);
            }
            silent.close(NO_SEAT.into(), b"others ask, and you did not");
        }
        open.insert(seat, (connection.clone(), false));
        let joiner = Joiner { connection, seat, tell: tell.clone() };
        let (commands, metrics, trust) = (commands.clone(), Arc::clone(&metrics), Trust::clone(&trust));
        stage.spawn_short("join", async move { joiner.serve(&commands, &trust, &metrics).await });
    }
}

fn source_of(connection: &Connection) -> IpAddr {
    connection.remote_address().ip()
}

/// One who asks.
#[derive(Debug)]
struct Joiner {
    connection: Connection,
    seat: Seat,
    tell: mpsc::Sender<Heard>,
}

impl Joiner {
    async fn serve(self, commands: &mpsc::Sender<Command>, trust: &Trust, metrics: &Metrics) {
        let judged = timeout(JOIN_WITHIN, self.judge(commands, trust)).await;
        metrics.join(match &judged {
            Ok(Some((JoinReply::Admitted(_), _))) => "admitted",
            Ok(Some((JoinReply::Refused(_), _))) => "refused",
            Ok(None) => "malformed",
            Err(_) => "timeout",
        });
        let judged = judged.ok().flatten();
        // Before it is told: who asks again at once finds it counted.
        if is_in_vain(judged.as_ref().map(|(reply, _)| reply)) {
            let _ = self.tell.send(Heard::InVain(self.seat)).await;
        }
        if let Some((reply, send)) = judged {
            let _ = timeout(CLOSE_WITHIN, answer(&reply, send)).await;
        }
        let _ = self.tell.send(Heard::Answered(self.seat)).await;
        // The asker closes when it has stored what it got.
        let _ = timeout(CLOSE_WITHIN, self.connection.closed()).await;
        self.connection.close(0_u32.into(), b"done");
        let _ = self.tell.send(Heard::Left(self.seat)).await;
    }

    /// Reads a request, has it judged, and returns the reply and where it goes. `None` when the joiner does not speak the
    /// protocol.
    async fn judge(
        &self,
        commands: &mpsc::Sender<Command>,
        trust: &Trust,
    ) -> Option<(JoinReply, SendStream)> {
        let connection = &self.connection;
        let read = async {
            let (send, mut recv) = connection.accept_bi().await.ok()?;
            Some((send, recv.read_to_end(MAX_JOIN_REQUEST_BYTES).await.ok()?))
        };
        let (send, bytes) = timeout(REQUEST_WITHIN, read).await.ok()??;
        let (reply, keeps_seat) = oneshot::channel();
        self.tell.send(Heard::Asked(self.seat, reply)).await.ok()?;
        if !keeps_seat.await.ok()? {
            return None;
        }
        let binding = connection.binding()?;
        let (reply, answer) = oneshot::channel();
        let checked = match Ask::decode(&bytes).ok()? {
            Ask::Join(request) => check_join(request, &binding)?
                .map(|request| Command::Admit { request: Box::new(request), reply }),
            Ask::Renew(request) => check_renewal(&request, trust, &binding)
                .map(|leaf| Command::Renew { leaf: Box::new(leaf), reply }),
        };
        let reply = match checked {
            Err(refusal) => JoinReply::Refused(refusal),
            Ok(command) => {
                commands.send(command).await.ok()?;
                answer.await.ok()?
            }
        };
        Some((reply, send))
    }
}

/// Sends a reply; `None` when the joiner is gone.
async fn answer(reply: &JoinReply, mut send: SendStream) -> Option<()> {
    let bytes = reply.encode().inspect_err(|error| tracing::error!(%error, "a joiner gets no reply")).ok()?;
    send.write_all(&bytes).await.ok()?;
    send.finish().ok()
}

/// Close code for a source that was wrong too often.
const TOO_MANY_TRIES: u32 = 8;
/// Close code for one who finds or keeps no seat.
const NO_SEAT: u32 = 9;

/// Returns whether an answer speaks against who asked, as opposed to bad luck or a wrong choice.
const fn is_in_vain(reply: Option<&JoinReply>) -> bool {
    match reply {
        None => true,
        Some(JoinReply::Admitted(_)) => false,
        Some(JoinReply::Refused(refusal)) => matches!(
            refusal,
            Refusal::Foreign
                | Refusal::Expired
                | Refusal::Used
                | Refusal::Proof
                | Refusal::Revoked
                | Refusal::Evicted
                | Refusal::Certificate
        ),
    }
}

/// Returns what a joiner signs: it binds the request to its key, its token and its TLS session.
pub(crate) fn proof_bytes(token: TokenId, binding: &[u8; 32]) -> Vec<u8> {
    [PROOF_LABEL, token.as_bytes(), binding].concat()
}

/// Checks what needs no ledger; `None` when the token is no token.
fn check_join(request: JoinRequest, binding: &[u8; 32]) -> Option<Result<Checked, Refusal>> {
    let token: Token = request.token.parse().ok()?;
    let proof = proof_bytes(token.grant().id, binding);
    if !signature_holds(&request.public_key, &proof, &request.proof) {
        return Some(Err(Refusal::Proof));
    }
    let node = node_id(&request.public_key);
    Some(Ok(Checked { token, request, node }))
}

/// Checks that the asker is a member with the key of the certificate it shows, which may have ended.
fn check_renewal(request: &RenewRequest, trust: &Trust, binding: &[u8; 32]) -> Result<Leaf, Refusal> {
    let shown: Vec<_> = [&request.issuer]
        .into_iter()
        .filter(|der| !der.is_empty())
        .map(|der| der.as_slice().into())
        .collect();
    let leaf = trust.load().verify_at_end(&request.leaf, &shown, clock::wall()).map_err(|error| {
        tracing::info!(%error, "a certificate was not renewed");
        if error == TrustError::Evicted { Refusal::Evicted } else { Refusal::Certificate }
    })?;
    let proof = [RENEW_LABEL, &binding[..]].concat();
    if signature_holds(&leaf.public_key, &proof, &request.proof) { Ok(leaf) } else { Err(Refusal::Proof) }
}
