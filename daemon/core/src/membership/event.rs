//! What goes in and what comes out.
//!
//! Owns: the two enums. Must not know: how one follows from the other. Driven by: the gossip task.

use std::collections::BTreeSet;
use std::sync::Arc;

use gossamer_wire::frame::Frame;
use gossamer_wire::swim::SwimMember;
use gossamer_wire::{DecodeError, Generation, NodeId};

use super::table::{Cause, MemberState};

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A SWIM packet came, as a datagram or in a frame.
    Packet {
        /// The peer of the connection, proved by TLS: what the packet says is said by this node.
        from: NodeId,
        /// The packet.
        bytes: Vec<u8>,
    },
    /// A control connection is up: both hellos have come. Again for a connection that replaces another.
    Connected {
        /// The node at its other end.
        peer: NodeId,
    },
    /// The last control connection with this node is gone. Says nothing about the node.
    Disconnected {
        /// The node.
        peer: NodeId,
    },
    /// A [`Frame::MemberHash`] came.
    MemberHash {
        /// The peer of the connection.
        from: NodeId,
        /// Its hash.
        hash: u64,
    },
    /// A [`Frame::Members`] came.
    Members {
        /// The peer of the connection.
        from: NodeId,
        /// What it knows.
        members: Vec<SwimMember>,
        /// Whether it wants to know what it lacks.
        reply: bool,
    },
    /// A [`Frame::Probe`] came.
    Probe {
        /// The peer of the connection.
        from: NodeId,
        /// Its number.
        number: u64,
    },
    /// A [`Frame::ProbeAck`] came.
    ProbeAck {
        /// The peer of the connection.
        from: NodeId,
        /// The number of the probe.
        number: u64,
    },
    /// All nodes that are out for ever, from the statements.
    Evicted(Arc<BTreeSet<NodeId>>),
    /// The machine was suspended for a while, in which the clock of `now` stood still.
    Slept,
    /// This node stops. Every connected peer is told; afterwards there is nothing more to do or to say.
    Leave,
}

/// Something to do or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a packet: as a datagram if it fits, else in a [`Frame::Swim`]. Drop it if `to` is not connected.
    Packet {
        /// Another node, connected or not.
        to: NodeId,
        /// At most [`gossamer_wire::limits::MAX_SWIM_BYTES`].
        bytes: Vec<u8>,
    },
    /// Send a frame on the control stream.
    Frame {
        /// A connected peer.
        to: NodeId,
        /// [`Frame::MemberHash`], [`Frame::Members`], [`Frame::Swim`], [`Frame::Probe`] or [`Frame::ProbeAck`].
        frame: Frame,
    },
    /// Connect to a member at once, also where no connection is kept: it is accused, and nobody can be asked whether
    /// it lives.
    Reach {
        /// The member.
        node: NodeId,
    },
    /// A member has another state, or another generation in the same state (a restart nobody noticed).
    Changed {
        /// The member.
        node: NodeId,
        /// Its state before; `None` for a node not known until this.
        from: Option<MemberState>,
        /// Its state.
        to: MemberState,
        /// Its generation.
        generation: Generation,
        /// Where this comes from.
        cause: Cause,
    },
    /// This node has a new generation, because somebody held it for dead or knew a later one. Where the epoch
    /// has changed too, the next start must use a greater one.
    Renewed(Generation),
    /// The accused member of a peer's claim has answered this node.
    Refuted {
        /// The peer.
        accuser: NodeId,
        /// The member.
        accused: NodeId,
    },
    /// Too many claims of a peer were refuted: until ten minutes after the last, its claims count for nothing.
    Named {
        /// The peer.
        accuser: NodeId,
    },
    /// A named peer's claims count again.
    Forgiven {
        /// The peer.
        accuser: NodeId,
    },
    /// A peer sent something that cannot be right: count it. Nothing of it was used.
    Refused {
        /// The peer.
        from: NodeId,
        /// What is wrong with it.
        error: DecodeError,
    },
}
