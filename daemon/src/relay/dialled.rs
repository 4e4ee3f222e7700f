//! The target's end of a flow: a connection to a program of this node.
//!
//! Owns: both kinds of it. Must not know: who calls. Driven by: `inbound`, and `outbound` for flows that stay here.

use tokio::net::{TcpStream, UnixStream};

use super::copy::{Broken, Counts, Early, Guarded, Side, copy, prepare};
use crate::register::Connected;

/// A connection to a target; reset when it is dropped before both directions have ended.
#[derive(Debug)]
pub(super) enum Dialled {
    Tcp(Guarded<TcpStream>),
    Unix(Guarded<UnixStream>),
}

impl Dialled {
    pub(super) fn new(connected: Connected) -> Self {
        match connected {
            Connected::Tcp(stream) => {
                prepare(&stream);
                Self::Tcp(Guarded::new(stream))
            }
            Connected::Unix(stream) => Self::Unix(Guarded::new(stream)),
        }
    }

    /// Copies between a client and this target, as [`copy`] does.
    pub(super) async fn copy<C: Side>(
        &mut self,
        client: &mut Guarded<C>,
        early: &mut Early,
        counts: &Counts,
    ) -> Result<(), Broken> {
        match self {
            Self::Tcp(target) => copy(client, target, early, counts).await,
            Self::Unix(target) => copy(client, target, early, counts).await,
        }
    }
}
