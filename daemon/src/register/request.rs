//! What is asked of the registry, and what it answers.
//!
//! Owns: the shape of requests, answers and their errors. Must not know: how they are carried out.
//! Driven by: the local API, which turns JSON into these and back.

use std::sync::Arc;

use thiserror::Error;

use gossamer_core::access::Access;
use gossamer_core::callers::Owner;
use gossamer_wire::limits::{MAX_FRAGMENTS, MAX_OWN_RECORDS};
use gossamer_wire::{
    Fqdn, InstanceName, PortName, Routing, Rule, ServiceName, ServiceRecord, Transport, Visibility,
};

use super::place::{Host, Place};
use super::target::Denial;
use crate::store::StoreError;

/// Asks to offer an instance of a service. One with the same service and instance is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExposeRequest {
    /// The service.
    pub service: ServiceName,
    /// The instance; the node's name unless given.
    pub instance: Option<InstanceName>,
    /// At least one port.
    pub ports: Vec<PortRequest>,
    /// Where the program listens; 127.0.0.1 unless given.
    pub target: Option<Host>,
    /// Which groups may see and call it.
    pub visibility: Visibility,
    /// Who may as well, by rules.
    pub allow: Vec<Rule>,
    /// Free pairs, shown in TXT.
    pub metadata: Vec<(String, String)>,
    /// Names outside the mesh zones it wants to be called by.
    pub fqdns: Vec<Fqdn>,
    /// Share of traffic among equal instances; 0 takes none.
    pub weight: u16,
    /// What it wishes about which instances of the service a caller uses.
    pub routing: Routing,
    /// Whether TCP targets get a PROXY protocol header (version 2) before the client's bytes.
    pub proxy_protocol: bool,
    /// Whose it is from then on.
    pub owner: Owner,
}

/// One port of an [`ExposeRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// Its name; the number as text unless given.
    pub name: Option<PortName>,
    /// What clients connect to.
    pub number: u16,
    /// What the program listens on; `number` unless given.
    pub target_port: Option<u16>,
    /// TCP or UDP.
    pub transport: Transport,
}

/// The service is registered: on disk, and given to the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// What the other nodes are told.
    pub record: ServiceRecord,
    /// Where its flows go, one per port of the record.
    pub target: Vec<Place>,
    /// Who may call it.
    pub access: Arc<Access>,
    /// Whether a registration with another content was replaced.
    pub replaced: bool,
    /// What the operator should know, each a sentence.
    pub warnings: Vec<String>,
    /// How its health is checked, in words.
    pub check: &'static str,
}

/// Why a service was not registered.
#[derive(Clone, Debug, Error)]
pub enum ExposeError {
    /// The issuer's decision: the certificate does not cover the name. Nothing changed.
    #[error(
        "this node may not export `{service}`: its certificate allows {allowed}; join again with a token made \
         by `gossamer token create --allow-service {service}`"
    )]
    NotAllowed {
        /// The name.
        service: ServiceName,
        /// The patterns of the certificate, in words.
        allowed: String,
    },
    /// The issuer's decision: no suffix of the certificate covers a name. Nothing changed.
    #[error(
        "this node may not export the name {fqdn}: {allowed}; join again with a token made by `gossamer token create \
         --allow-fqdn SUFFIX`, where the name is below SUFFIX"
    )]
    FqdnNotAllowed {
        /// The name.
        fqdn: Fqdn,
        /// What the certificate allows, in words.
        allowed: String,
    },
    /// The caller's fault. Nothing changed.
    #[error("`{service}` has no port; name one, for example `gossamer expose {service}:5432`")]
    NoPort {
        /// The service.
        service: ServiceName,
    },
    /// The caller's fault: a limit or a rule of records is broken. Nothing changed.
    #[error("the service cannot be described to the mesh: {0}")]
    Record(String),
    /// The caller's fault: the deny list. Nothing changed.
    #[error("{target} is no target: {why}")]
    Target {
        /// The address or path.
        target: Place,
        /// The rule.
        why: Denial,
    },
    /// The caller's fault: datagrams carry no such header. Nothing changed.
    #[error(
        "`{service}` has no TCP port, and a PROXY header goes before TCP only; leave --proxy-protocol out"
    )]
    ProxyUdp {
        /// The service.
        service: ServiceName,
    },
    /// The caller's fault: datagrams do not go to a stream socket. Nothing changed.
    #[error(
        "port {port} of `{service}` is UDP, and {target} takes TCP only; offer it under another instance"
    )]
    UnixUdp {
        /// The service.
        service: ServiceName,
        /// The port.
        port: PortName,
        /// The socket.
        target: Place,
    },
    /// The caller's fault: the name is in use by another user of this node. Nothing changed.
    #[error(
        "`{service}` on this node belongs to {owner}; choose another name, or let {owner} or an operator change it"
    )]
    Owned {
        /// The service.
        service: ServiceName,
        /// Whose it is.
        owner: Owner,
    },
    /// The node's quota is used up. Nothing changed; retry after a withdrawal.
    #[error("this node registers {MAX_OWN_RECORDS} services already, its limit; withdraw one first")]
    TooMany,
    /// The records together are too long. Nothing changed; shorten metadata or withdraw something.
    #[error("the node's services need more than {MAX_FRAGMENTS} fragments; shorten metadata or withdraw one")]
    NoRoom,
    /// The disk's fault. Nothing changed; retry when it is mended.
    #[error("the service was not registered, because that could not be written: {0}")]
    NotDurable(Arc<StoreError>),
    /// The daemon is stopping. It may have been registered; ask again after the start.
    #[error("the daemon is stopping")]
    Stopping,
}

/// Asks to offer a service no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithdrawRequest {
    /// The service.
    pub service: ServiceName,
    /// One instance of it; all of this node unless given.
    pub instance: Option<InstanceName>,
    /// Who asks.
    pub by: Owner,
}

/// The service is withdrawn: on disk, and from the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawn {
    /// The instances that were withdrawn, sorted; never empty.
    pub instances: Vec<InstanceName>,
}

/// Why a service was not withdrawn.
#[derive(Clone, Debug, Error)]
pub enum WithdrawError {
    /// The caller's fault. Nothing changed.
    #[error("{what} is not registered on this node; it has: {known}")]
    Unknown {
        /// What was asked for, in words.
        what: String,
        /// Services that are, in words.
        known: String,
    },
    /// The caller's fault: another user of this node registered it. Nothing changed.
    #[error("{what} on this node belongs to {owner}; let {owner} or an operator withdraw it")]
    Owned {
        /// What was asked for, in words.
        what: String,
        /// Whose it is.
        owner: Owner,
    },
    /// The disk's fault. Nothing changed; retry when it is mended.
    #[error("the service was not withdrawn, because that could not be written: {0}")]
    NotDurable(Arc<StoreError>),
    /// The daemon is stopping. It may have been withdrawn; ask again after the start.
    #[error("the daemon is stopping")]
    Stopping,
}
