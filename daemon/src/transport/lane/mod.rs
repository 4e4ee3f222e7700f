//! Lanes: the ways to a peer over TLS and TCP, where UDP is closed (ADR 39).
//!
//! Owns: one connection: its flows, one after the other, and its end. Must not know: which lanes are kept, what flows carry.
//! Driven by: `listen` and `dial` make lanes and give each a task; `hello`, `link` and the relay use them.
//!
//! A lane carries one flow at a time, each way a stream of its own that ends by itself. When both ways have ended cleanly at
//! both ends the next flow may begin; after anything else the lane ends with its flow. TCP's own windows are the credit.

mod circuit;
mod dial;
mod driver;
mod frame;
mod halves;
mod ingress;
mod listen;
mod pool;
mod socket;
mod stranger;
mod table;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{ConnectionError, VarInt};
use rustls::ConnectionCommon;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use gossamer_wire::NodeId;

pub(super) use dial::LaneDialler;
pub(crate) use dial::{dial, server_name};
pub(crate) use driver::Driver;
use frame::LaneFrame;
pub(super) use halves::{LaneRecv, LaneSend};
pub use ingress::NameRules;
pub(crate) use ingress::dial_by_name;
pub(super) use listen::{Arrival, Carried, Entered, LaneDoor, Listener};
pub(super) use pool::{FlowLane, Lanes, OpenLanes, Wait, open_on};
pub(super) use stranger::Leading;
use table::Table;

use super::BINDING_LABEL;

/// ALPN of lanes between members.
pub(crate) const ALPN: &[u8] = b"gossamer-lane/1";

/// Which end of a lane opens its flows. The greeting is always of who dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    /// Who dialled.
    Dialler,
    /// Who was dialled, and asked for it: it cannot dial itself.
    Dialled,
}

/// A lane. Clones are handles.
#[derive(Clone)]
pub struct Lane(Arc<Shared>, #[expect(dead_code, reason = "its drop closes the lane")] Arc<InUse>);

/// Closes a lane that nobody uses any more.
struct InUse(Arc<Shared>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.close(VarInt::from_u32(0), b"unused");
    }
}

struct Shared {
    id: usize,
    remote: SocketAddr,
    via: Option<NodeId>,
    is_ingress: bool,
    shown: Option<Vec<CertificateDer<'static>>>,
    binding: Option<[u8; 32]>,
    rtt: Duration,
    table: Mutex<Table>,
    /// Told of each change of the table.
    changed: watch::Sender<()>,
}

/// What a handshake has shown.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) remote: SocketAddr,
    /// The relay of a circuit, which is then what is at the address.
    pub(super) via: Option<NodeId>,
    /// Whether the address is that of an ingress before the peer.
    pub(super) is_ingress: bool,
    pub(super) chain: Option<Vec<CertificateDer<'static>>>,
    pub(super) binding: Option<[u8; 32]>,
    /// How long an answer took.
    pub(super) rtt: Duration,
}

/// Reads the certificates of the other end from a session, and what signatures are bound to it by.
fn shown_in<D>(session: &ConnectionCommon<D>) -> (Option<Vec<CertificateDer<'static>>>, Option<[u8; 32]>) {
    let owned =
        |chain: &[CertificateDer<'_>]| chain.iter().cloned().map(CertificateDer::into_owned).collect();
    let chain = session.peer_certificates().map(owned);
    (chain, session.export_keying_material([0; 32], BINDING_LABEL, Some(b"")).ok())
}

impl Lane {
    /// Makes the lane that this side dialled, `Some`, or was dialled for.
    fn new(shown: Shown, dialled: Option<Opener>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let table = Table::new(dialled);
        // Numbers of QUIC connections are addresses in memory: these are odd, and those are not.
        let id = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(2).wrapping_add(1);
        let Shown { remote, via, is_ingress, chain, binding, rtt } = shown;
        let (table, changed) = (Mutex::new(table), watch::Sender::new(()));
        let shared =
            Arc::new(Shared { id, remote, via, is_ingress, shown: chain, binding, rtt, table, changed });
        Self(Arc::clone(&shared), Arc::new(InUse(shared)))
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        self.0.remote
    }

    /// Returns the relay, of a circuit.
    pub(super) fn via(&self) -> Option<NodeId> {
        self.0.via
    }

    /// Returns whether this side dialled an ingress, which is then what is at the address.
    pub(super) fn is_ingress(&self) -> bool {
        self.0.is_ingress
    }

    pub(super) fn shown(&self) -> Option<&[CertificateDer<'static>]> {
        self.0.shown.as_deref()
    }

    pub(super) fn binding(&self) -> Option<[u8; 32]> {
        self.0.binding
    }

    pub(super) fn rtt(&self) -> Duration {
        self.0.rtt
    }

    pub(super) fn stable_id(&self) -> usize {
        self.0.id
    }

    /// Lets the lane live without a word for as long as it likes: who uses it knows by itself whether the peer lives.
    pub(super) fn keep(&self) {
        self.0.lock().is_kept = true;
    }

    /// Opens no further flow on it: an idle lane ends by itself.
    pub(super) fn retire(&self) {
        self.0.lock().is_retired = true;
    }

    /// Ends the lane and tells the peer why. What was not sent yet is not sent any more.
    pub(super) fn close(&self, code: VarInt, reason: &[u8]) {
        self.0.close(code, reason);
    }

    pub(super) fn close_reason(&self) -> Option<ConnectionError> {
        self.0.lock().ended.clone()
    }

    pub(super) async fn closed(&self) -> ConnectionError {
        self.0.wait(|table| table.ended.clone()).await
    }

    /// Opens a flow as soon as none is under way.
    pub(super) async fn open(&self) -> Result<(LaneSend, LaneRecv), ConnectionError> {
        let opened = |table: &mut Table| match table.ended.clone() {
            Some(why) => Some(Err(why)),
            None => table.open().map(Ok),
        };
        let flow = self.0.wait(opened).await?;
        Ok(self.halves(flow))
    }

    /// Opens a flow if none is under way.
    pub(super) fn try_open(&self) -> Option<(LaneSend, LaneRecv)> {
        let flow = {
            let mut table = self.0.lock();
            if table.ended.is_some() {
                return None;
            }
            table.open()?
        };
        Some(self.halves(flow))
    }

    /// Waits for the peer's next flow.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn accept(&self) -> Result<(LaneSend, LaneRecv), ConnectionError> {
        let accepted = |table: &mut Table| match (table.accept(), &table.ended) {
            (Some(flow), _) => Some(Ok(flow)),
            (None, Some(why)) => Some(Err(why.clone())),
            (None, None) => None,
        };
        let flow = self.0.wait(accepted).await?;
        Ok(self.halves(flow))
    }

    /// Whether this side opens its flows.
    pub(super) fn opens_here(&self) -> bool {
        self.0.lock().opens_here
    }

    /// Resolves when the greeting is over, or the lane has ended.
    pub(super) async fn greeted(&self) {
        let greeted = |table: &mut Table| (table.ended.is_some() || table.has_greeted()).then_some(());
        self.0.wait(greeted).await;
    }

    fn halves(&self, flow: u32) -> (LaneSend, LaneRecv) {
        (LaneSend::new(self.clone(), flow), LaneRecv::new(self.clone()))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // No operation leaves it half-done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, code: VarInt, reason: &[u8]) {
        let code = u32::try_from(code.into_inner()).unwrap_or(u32::MAX);
        let reason = Bytes::copy_from_slice(reason);
        self.with(|table| table.close(&LaneFrame::Close { code, reason }));
    }

    /// Changes the table, and tells all who wait.
    fn with<T>(&self, change: impl FnOnce(&mut Table) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.send_replace(());
        changed
    }

    /// Waits until `look` finds something.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn wait<T>(&self, mut look: impl FnMut(&mut Table) -> Option<T>) -> T {
        // Before the first look: what changes from here on wakes.
        let mut changes = self.changed.subscribe();
        loop {
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            // The sender is here.
            let _ = changes.changed().await;
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("id", &self.0.id).field("remote", &self.0.remote).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("id", &self.id).finish_non_exhaustive()
    }
}
