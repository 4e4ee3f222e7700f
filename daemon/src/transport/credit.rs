//! Credit of flows: how much each may send before its reader has taken something, and what stalled readers hold.
//!
//! Owns: the limits both ways, the receive window of a data connection, the budget of a peer. Must not know: what flows
//! carry. Driven by: `data`, which runs it with the connection; `relay`'s copying, which spends and gives credit.
//!
//! QUIC has one window for a connection, and one size for the windows of all its streams. A few flows whose readers have
//! stalled would fill the first with the second, and stop all the others (ADR 41). So each direction of a flow has a limit of
//! its own beneath QUIC's, which its reader's node raises on a stream of its own: records of two numbers, the id of the
//! flow's stream and the bytes that may be sent on it in all. What stalled flows hold all the same is added to the window
//! of the connection, out of a budget of the peer; when that is used up, the flow that has stalled for longest is reset.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, StreamId, VarInt};
use tokio::sync::Notify;

use super::carrier::SendStream;
use super::congestion::Demand;
use super::data::MAX_LIVE;
use super::window::{self, NEAR, Path, Window};
use crate::clock;

/// What the data connections of one peer may take beyond [`OWN_WINDOW`] each. Clones are handles.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<AtomicU64>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(SHARED_WINDOW)))
    }
}

impl Budget {
    fn take(&self, wanted: u64) -> u64 {
        let took = |left: u64| Some(left.saturating_sub(wanted));
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, took).unwrap_or_default();
        left.min(wanted)
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn left(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The credit of one data connection. Clones are handles.
#[derive(Clone, Debug)]
pub(crate) struct Credits(Arc<Shared>);

struct Shared {
    connection: Connection,
    budget: Budget,
    table: Mutex<Table>,
    /// There is something to tell the peer.
    news: Notify,
}

#[derive(Debug, Default)]
struct Table {
    /// How much this node may send, by stream.
    limits: HashMap<u64, Arc<Limit>>,
    /// How much the peer may send, as far as it was not told yet.
    grants: BTreeMap<u64, u64>,
    /// Flows with more than the first window, and when they took one up.
    moving: BTreeMap<u64, Instant>,
    stalled: BTreeMap<u64, Stall>,
    /// Bytes that those may hold.
    held: u64,
    /// QUIC's receive window of the connection. It is never made smaller: what that takes back comes late, and would be
    /// given out twice if it was made larger again before.
    window: u64,
    /// Part of it that is of the budget.
    lent: u64,
}

/// A flow whose reader takes nothing at this moment.
#[derive(Debug)]
struct Stall {
    since: Instant,
    holds: u64,
    give_up: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Limit {
    bytes: AtomicU64,
    raised: Notify,
}

impl Credits {
    /// Opens the windows of a data connection.
    pub(super) fn new(connection: Connection, budget: Budget) -> Self {
        let table = Table { window: OWN_WINDOW, ..Table::default() };
        let credits =
            Self(Arc::new(Shared { connection, budget, table: Mutex::new(table), news: Notify::new() }));
        credits.0.connection.set_max_concurrent_uni_streams(VarInt::from_u32(1));
        credits.0.connection.set_receive_window(varint(OWN_WINDOW));
        credits.0.make_room(&mut credits.0.lock());
        credits.fit_send_window();
        credits
    }

    /// Returns what it shares with the other connections of its peer.
    pub(super) fn budget(&self) -> Budget {
        self.0.budget.clone()
    }

    /// For tests without a pool: a connection of a peer that has no other.
    #[cfg(test)]
    pub(crate) fn alone(connection: Connection) -> Self {
        Self::new(connection, Budget::default())
    }

    /// Returns what stalled flows hold at the most, and the receive window.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (u64, u64) {
        let table = self.0.lock();
        (table.held, table.window)
    }

    /// Returns the credit of a flow, which ends with it.
    pub(crate) fn flow(&self, stream: StreamId) -> FlowCredit {
        let id = u64::from(VarInt::from(stream));
        let limit = Arc::new(Limit { bytes: window::FIRST_WINDOW.into(), raised: Notify::new() });
        self.0.lock().limits.insert(id, Arc::clone(&limit));
        let of = Some(Of { shared: Arc::clone(&self.0), id });
        FlowCredit {
            sending: SendCredit { of: of.clone(), limit, sent: 0 },
            reading: ReadCredit { of, window: Window::new(now()), given: 0, give_up: Arc::default() },
        }
    }

    /// Tells the peer how much it may send and hears how much this node may, until the connection ends or the peer breaks
    /// the rules.
    pub(crate) async fn run(&self) {
        tokio::select! {
            _ = self.tell() => {}
            _ = self.hear() => {}
        }
    }

    async fn tell(&self) -> io::Result<()> {
        let mut send = self.0.connection.open_uni().await?;
        // Flows wait for it.
        let _ = send.set_priority(1);
        loop {
            self.0.news.notified().await;
            let grants = std::mem::take(&mut self.0.lock().grants);
            let records = grants.iter().flat_map(|(id, limit)| [id.to_be_bytes(), limit.to_be_bytes()]);
            send.write_all(&records.flatten().collect::<Vec<_>>()).await?;
        }
    }

    async fn hear(&self) -> io::Result<()> {
        let mut recv = self.0.connection.accept_uni().await?;
        loop {
            let (mut id, mut bytes) = ([0; 8], [0; 8]);
            recv.read_exact(&mut id).await.map_err(io::Error::other)?;
            recv.read_exact(&mut bytes).await.map_err(io::Error::other)?;
            // One that is not there has just ended.
            let limit = self.0.lock().limits.get(&u64::from_be_bytes(id)).map(Arc::clone);
            if let Some(limit) = limit {
                limit.bytes.fetch_max(u64::from_be_bytes(bytes), Ordering::Relaxed);
                limit.raised.notify_one();
            }
        }
    }

    /// Looks after what is bound to time; to be called once a second. Returns how many flows are reset because they have
    /// stalled for so long that others have no room.
    pub(super) fn handle_tick(&self, now: Instant) -> usize {
        self.fit_send_window();
        let mut table = self.0.lock();
        table.moving.retain(|_, at| now.saturating_duration_since(*at) < IDLE);
        let mut given_up = 0;
        while self.0.left(&table) < LEAST_ROOM {
            let Some(id) = table.longest_stalled(now) else { break };
            if let Some(stall) = table.remove_stalled(id) {
                stall.give_up.notify_one();
                given_up += 1;
            }
        }
        given_up
    }

    /// On a path where more may be on its way than the usual send window holds, programs may be ahead of it by as much again.
    fn fit_send_window(&self) {
        let congestion = self.0.connection.stats().path.cwnd.saturating_mul(2);
        self.0.connection.set_send_window(congestion.clamp(SEND_WINDOW, MOST_SEND_WINDOW));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // No operation leaves it half-done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> Path {
        Path { rtt: self.connection.rtt(), is_far: self.is_far() }
    }

    fn is_far(&self) -> bool {
        self.connection.min_rtt() >= NEAR
    }

    /// Returns the part of the window, or of what it may become, that stalled flows do not hold.
    fn left(&self, table: &Table) -> u64 {
        (table.window + self.budget.left()).saturating_sub(table.held)
    }

    /// Makes the window so large that flows that move have their room beside the stalled ones, as far as the budget goes.
    fn make_room(&self, table: &mut Table) {
        let wanted = window::room(self.is_far()) + OWN_ROOM + table.held;
        if wanted <= table.window {
            return;
        }
        let more = self.budget.take((wanted - table.window).next_multiple_of(STEP));
        if more > 0 {
            table.lent += more;
            table.window += more;
            self.connection.set_receive_window(varint(table.window));
        }
    }

    /// A reader has taken up its window. Returns how large that may be.
    fn share(&self, id: u64, window: &Window, is_far: bool, now: Instant) -> u64 {
        let mut table = self.lock();
        if is_far {
            self.make_room(&mut table);
        }
        table.moving.insert(id, now);
        window::share(is_far, table.moving.len(), self.left(&table), window.taken())
    }

    fn grant(&self, id: u64, limit: u64) {
        self.lock().grants.insert(id, limit);
        self.news.notify_one();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let lent = self.lock().lent;
        self.budget.give_back(lent);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Table {
    fn longest_stalled(&self, now: Instant) -> Option<u64> {
        let (id, stall) = self.stalled.iter().min_by_key(|(_, stall)| stall.since)?;
        (now.saturating_duration_since(stall.since) >= PATIENCE).then_some(*id)
    }

    fn remove_stalled(&mut self, id: u64) -> Option<Stall> {
        let stall = self.stalled.remove(&id)?;
        self.held -= stall.holds;
        Some(stall)
    }
}

/// The credit of one flow at one of its ends. The default one knows no limit but QUIC's.
#[derive(Debug, Default)]
pub struct FlowCredit {
    /// Towards the peer.
    pub(crate) sending: SendCredit,
    /// From the peer.
    pub(crate) reading: ReadCredit,
}

/// A flow of a connection.
#[derive(Clone, Debug)]
struct Of {
    shared: Arc<Shared>,
    id: u64,
}

/// What may be sent.
#[derive(Debug, Default)]
pub(crate) struct SendCredit {
    of: Option<Of>,
    limit: Arc<Limit>,
    sent: u64,
}

impl SendCredit {
    /// Takes credit for one byte to `wanted`, as soon as there is some. `stream` is asked meanwhile whether its peer still
    /// wants to read. Who waits counts as `demand` for as long as its reader can be believed to read: then the path is what
    /// it waits for.
    ///
    /// # Errors
    /// The peer wants no more, or is lost.
    ///
    /// # Cancel safety
    /// Cancel safe: nothing is taken.
    pub(crate) async fn take(
        &mut self,
        wanted: usize,
        stream: &SendStream,
        demand: &Demand,
    ) -> io::Result<usize> {
        if let Some(taken) = self.take_now(wanted) {
            return Ok(taken);
        }
        let mut waiting = Some(demand.wait());
        let mut hope = pin!(tokio::time::sleep(HOPE));
        loop {
            tokio::select! {
                () = self.limit.raised.notified() => if let Some(taken) = self.take_now(wanted) {
                    return Ok(taken);
                },
                () = &mut hope, if waiting.is_some() => drop(waiting.take()),
                stopped = stream.stopped() => {
                    stopped?;
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
            }
        }
    }

    fn take_now(&mut self, wanted: usize) -> Option<usize> {
        if self.of.is_none() {
            return Some(wanted);
        }
        let left = self.limit.bytes.load(Ordering::Relaxed).saturating_sub(self.sent);
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(wanted);
        self.sent += taken as u64;
        (taken > 0).then_some(taken)
    }
}

impl Drop for SendCredit {
    fn drop(&mut self) {
        if let Some(Of { shared, id }) = &self.of {
            shared.lock().limits.remove(id);
        }
    }
}

/// What may come.
#[derive(Debug)]
pub(crate) struct ReadCredit {
    of: Option<Of>,
    window: Window,
    /// Bytes that were handed to the reader, which has them when it comes back.
    given: u64,
    give_up: Arc<Notify>,
}

impl Default for ReadCredit {
    fn default() -> Self {
        Self { of: None, window: Window::new(now()), given: 0, give_up: Arc::default() }
    }
}

impl ReadCredit {
    /// The reader gets so many bytes.
    pub(crate) const fn give(&mut self, len: usize) {
        self.given += len as u64;
    }

    /// Returns how many bytes may be there that the reader did not get; none of a flow whose limits are another's.
    pub(crate) fn unread(&self) -> usize {
        let unread = self.window.outstanding().saturating_sub(self.given);
        self.of.as_ref().map_or(0, |_| usize::try_from(unread).unwrap_or(usize::MAX))
    }

    /// Returns whether the reader has not shown yet that it takes more than sockets do.
    pub(crate) const fn is_young(&self) -> bool {
        self.of.is_some() && self.window.taken() < window::PROOF
    }

    /// The reader has taken what it got: the peer may send more.
    pub(crate) fn taken(&mut self) {
        let len = std::mem::take(&mut self.given);
        let Some(Of { shared, id }) = self.of.as_ref().filter(|_| len > 0) else { return };
        if self.window.handle_taken(len) {
            let (now, path) = (now(), shared.path());
            let most = shared.share(*id, &self.window, path.is_far, now);
            self.window.handle_measure(now, path, most);
            if !self.window.has_grown() {
                shared.lock().moving.remove(id);
            }
        }
        if let Some(limit) = self.window.next_limit() {
            shared.grant(*id, limit);
        }
    }

    /// The reader takes nothing at this moment; that lasts until the guard is dropped.
    pub(crate) fn stall(&self) -> Stalled<'_> {
        if let Some(Of { shared, id }) = &self.of {
            // Of an earlier time, when the reader went on in that moment.
            let _ = futures_util::FutureExt::now_or_never(self.give_up.notified());
            let stall = Stall {
                since: now(),
                // What was handed to it, and waits with it, is among them.
                holds: self.window.outstanding().max(self.given),
                give_up: Arc::clone(&self.give_up),
            };
            let mut table = shared.lock();
            table.remove_stalled(*id);
            table.held += stall.holds;
            table.stalled.insert(*id, stall);
            shared.make_room(&mut table);
        }
        Stalled(self)
    }
}

impl Drop for ReadCredit {
    fn drop(&mut self) {
        if let Some(Of { shared, id }) = &self.of {
            let mut table = shared.lock();
            table.grants.remove(id);
            table.moving.remove(id);
        }
    }
}

/// A flow that has stalled, until this is dropped.
#[derive(Debug)]
pub(crate) struct Stalled<'a>(&'a ReadCredit);

impl Stalled<'_> {
    /// Resolves when the flow is to be reset.
    pub(crate) async fn given_up(&self) -> io::Error {
        self.0.give_up.notified().await;
        io::Error::new(io::ErrorKind::TimedOut, StalledFor)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        if let Some(Of { shared, id }) = &self.0.of {
            shared.lock().remove_stalled(*id);
        }
    }
}

/// Why a flow was reset whose reader takes nothing.
#[derive(Debug, thiserror::Error)]
#[error("its reader has taken nothing for {} s or more, and what waits for it leaves other flows no room", PATIENCE.as_secs())]
pub(crate) struct StalledFor;

fn now() -> Instant {
    clock::now().mono
}

fn varint(bytes: u64) -> VarInt {
    VarInt::try_from(bytes).unwrap_or(VarInt::MAX)
}

/// The receive window that each data connection of a peer has for itself, and what they share beyond that.
pub(super) const OWN_WINDOW: u64 = 1_536 << 10;
pub(super) const SHARED_WINDOW: u64 = 8 << 20;
/// All of it.
pub(super) const MAX_UNREAD: usize = MAX_LIVE * OWN_WINDOW as usize + SHARED_WINDOW as usize;

/// What a connection has beside the room of flows that move: first windows of flows that begin.
const OWN_ROOM: u64 = 512 << 10;
/// Room of flows that move, below which those that have stalled make room.
const LEAST_ROOM: u64 = 1 << 20;
/// How much the window grows at once.
const STEP: u64 = 256 << 10;

/// Bytes that programs may be ahead of the path.
const SEND_WINDOW: u64 = 3_584 << 10;
const MOST_SEND_WINDOW: u64 = 8 << 20;

/// A flow that waits for credit for longer waits for its reader.
const HOPE: Duration = Duration::from_millis(500);

/// A flow that has not taken up its window for so long does not count among those that move.
const IDLE: Duration = Duration::from_secs(1);
/// How long a reader may take nothing while others have no room.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    use futures_util::FutureExt as _;

    use crate::relay::tests::Link;

    #[tokio::test]
    async fn beyond_the_budget_the_flow_that_has_stalled_for_longest_is_given_up() {
        let link = Link::credited(None).await;
        let [credits, _] = link.credits.as_ref().expect("credited");
        let flows: Vec<_> = (0..400_u32).map(|id| credits.flow(VarInt::from_u32(id * 4).into())).collect();
        let stalled: Vec<_> = flows.iter().map(|flow| flow.reading.stall()).collect();
        let now = now();
        assert_eq!(credits.held(), (400 * window::FIRST_WINDOW, OWN_WINDOW + SHARED_WINDOW));
        assert_eq!(credits.handle_tick(now), 0, "they may go on in a moment");
        let given_up = credits.handle_tick(now + PATIENCE);
        let most = (OWN_WINDOW + SHARED_WINDOW - LEAST_ROOM) / window::FIRST_WINDOW;
        assert_eq!(given_up as u64, 400 - most);
        for (at, stall) in stalled.iter().enumerate() {
            assert_eq!(stall.given_up().now_or_never().is_some(), at < given_up, "{at}");
        }
        drop(stalled);
        assert_eq!(credits.held().0, 0);
    }

    #[tokio::test]
    async fn the_connections_of_a_peer_share_what_one_alone_could_have() {
        let (link, budget) = (Link::credited(None).await, Budget::default());
        let connections: Vec<_> =
            (0..MAX_LIVE).map(|_| Credits::new(link.near.clone(), budget.clone())).collect();
        let windows = |connections: &[Credits]| connections.iter().map(|one| one.held().1).sum::<u64>();
        assert_eq!(windows(&connections), MAX_UNREAD as u64);
        let flows: Vec<_> = (0..100_u32).map(|id| connections[0].flow(VarInt::from_u32(id).into())).collect();
        let stalled: Vec<_> = flows.iter().map(|flow| flow.reading.stall()).collect();
        assert_eq!(windows(&connections), MAX_UNREAD as u64);
        drop(stalled);
        drop((flows, connections));
        assert_eq!(budget.left(), SHARED_WINDOW);
    }

    #[tokio::test]
    async fn credit_is_told_once_a_quarter_of_it_is_used_and_ends_with_the_flow() {
        let link = Link::credited(None).await;
        let [near, far] = link.credits.as_ref().expect("credited");
        let stream = VarInt::from_u32(0).into();
        let (mut sender, mut reader) = (near.flow(stream), far.flow(stream));
        let (send, _recv) = link.near.open_bi().await.expect("opens");
        let send = SendStream::from(send);
        let first = window::FIRST_WINDOW as usize;
        assert_eq!(sender.sending.take(1 << 20, &send, &Demand::default()).await.expect("open"), first);
        assert!(
            sender.sending.take(1, &send, &Demand::default()).now_or_never().is_none(),
            "no more before the reader has some"
        );
        reader.reading.give(first / 4);
        reader.reading.taken();
        assert_eq!(sender.sending.take(1 << 20, &send, &Demand::default()).await.expect("told"), first / 4);
        drop((sender, reader));
        assert!(near.0.lock().limits.is_empty() && far.0.lock().limits.is_empty());
    }

    #[tokio::test]
    async fn who_waits_for_credit_waits_for_the_path_while_its_reader_may_read() {
        let (link, demand) = (Link::credited(None).await, Demand::default());
        let [near, _] = link.credits.as_ref().expect("credited");
        let (send, _recv) = link.near.open_bi().await.expect("opens");
        let send = SendStream::from(send);
        let mut flow = near.flow(send.id()).sending;
        flow.take(window::FIRST_WINDOW as usize, &send, &demand).await.expect("open");
        assert_eq!(demand.waiting(), 0);
        let mut wait = pin!(flow.take(1, &send, &demand));
        assert!(wait.as_mut().now_or_never().is_none());
        assert_eq!(demand.waiting(), 1);
        assert!(tokio::time::timeout(HOPE + HOPE / 5, wait.as_mut()).await.is_err(), "nobody reads");
        assert_eq!(demand.waiting(), 0);
    }

    #[tokio::test]
    async fn who_waits_for_credit_hears_that_the_reader_is_gone() {
        let link = Link::credited(None).await;
        let mut flow = link.open().await;
        flow.send.write_all(b"?").await.expect("open");
        let mut accepted = link.accept("west").await;
        let all = window::FIRST_WINDOW as usize;
        assert_eq!(flow.credit.sending.take(all, &flow.send, &Demand::default()).await.expect("open"), all);
        accepted.recv.stop(VarInt::from_u32(1)).expect("open");
        let waited = flow.credit.sending.take(1, &flow.send, &Demand::default()).await;
        assert_eq!(waited.expect_err("nobody reads").kind(), io::ErrorKind::ConnectionReset);
    }
}
