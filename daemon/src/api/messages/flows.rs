//! Living flows, as the local API lists them.
//!
//! Owns: their shape. Must not know: how flows are carried. Driven by: `api` and `cli`.

use std::net::SocketAddr;

use gossamer_wire::{GroupName, InstanceName, NodeName, ServiceName};
use serde::{Deserialize, Serialize};

use super::Protocol;

/// A line of the answer to `GET /v1/flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum FlowsLine {
    /// The first line.
    Flows {
        /// How many live.
        total: usize,
        /// How many lines follow.
        shown: usize,
    },
    /// One of them, oldest first.
    Flow(Box<FlowRow>),
}

/// A living flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// Its id, the same on both nodes: 16 hexadecimal digits.
    pub flow: String,
    /// `outbound`: a program of this machine calls; `inbound`: a service of this node is called.
    pub direction: String,
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// The node at the other end; the own one for a flow that stays here.
    pub peer: NodeName,
    /// That node's group.
    pub group: GroupName,
    /// The program that calls, of an outbound flow that came by a virtual address.
    pub client: Option<SocketAddr>,
    /// The program that is called, of an inbound flow.
    pub target: Option<String>,
    /// TCP or UDP.
    pub transport: Protocol,
    /// `quic`, or `local` for a flow that stays here.
    pub path: String,
    /// The other node's address, over QUIC.
    pub remote: Option<SocketAddr>,
    /// Milliseconds since it was opened.
    pub age_ms: u64,
    /// Bytes so far from the client to the service.
    pub bytes_in: u64,
    /// Bytes so far from the service to the client.
    pub bytes_out: u64,
}
