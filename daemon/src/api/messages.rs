//! What the local API says: requests and replies as JSON.
//!
//! Owns: the shapes, shared by server and client; `--json` prints the replies as they are.
//! Must not know: how they are made or shown. Driven by: `api` and `cli`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use gossamer_wire::token::Claims;
use gossamer_wire::{
    Address, Fqdn, GroupName, InstanceName, MeshName, NodeName, PortName, RegionName, Routing, Rule,
    ServiceName, Transport, ZoneName,
};
use serde::{Deserialize, Serialize};

use crate::register::Host;

mod access;
mod drain;
mod flows;
mod issuers;
mod paths;
mod roots;
mod tokens;
mod trace;

pub use access::{PolicyRow, PolicyShown, PolicyTested, Reloaded, ReloadedKey, VerdictRow};
pub use drain::{Drain, DrainRow, Draining, LeavingRow};
pub use flows::{FlowRow, FlowsLine};
pub use issuers::{AddIssuer, GrantNumbers, IssuerRow, OrderDone, RemoveIssuer, WhichNode};
pub(crate) use paths::milliseconds;
pub use paths::{PathRow, PeerRow, PingRow, TriedRow};
pub use roots::{ExportRoot, ExportedRoot, ImportRoot, RemoveRoot, RetireRoot, RootRow, RootsDone, Secret};
pub use tokens::{CreateToken, CreatedToken, RevokeToken, RevokedToken, TokenRow, TokenUse};
pub use trace::{BrokenKind, BrokenLeg, CandidateRow, Leg, LegState, Traced};

/// Why a request was refused; the body of every reply that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Cause and remedy in one line.
    pub error: String,
}

/// `POST /v1/expose`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expose {
    /// The service.
    pub service: ServiceName,
    /// The instance; the node's name unless given.
    #[serde(default)]
    pub instance: Option<InstanceName>,
    /// At least one port.
    pub ports: Vec<ExposePort>,
    /// Where the program listens: an IP address, or `unix:` and the path of a socket; 127.0.0.1 unless given.
    #[serde(default)]
    pub target: Option<Host>,
    /// Who may see and call it beside the own group.
    #[serde(default)]
    pub to: Audience,
    /// Who may call it as well, by rules: `group:NAME`, `node:PATTERN`, `id:NODEID`, `label:KEY=VALUE`.
    #[serde(default)]
    pub allow: Vec<Rule>,
    /// Free pairs, shown in TXT.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Names outside the mesh zones it wants to be called by, `*.` before one for all below it.
    #[serde(default)]
    pub fqdns: Vec<Fqdn>,
    /// Share of traffic among equal instances; 100 unless given.
    #[serde(default = "full_weight")]
    pub weight: u16,
    /// What it wishes about which instances a caller uses.
    #[serde(default)]
    pub routing: Routing,
    /// Whether TCP targets get a PROXY protocol header (version 2) before the client's bytes.
    #[serde(default)]
    pub proxy_protocol: bool,
}

const fn full_weight() -> u16 {
    100
}

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

impl From<Protocol> for Transport {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

/// A port of [`Expose`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposePort {
    /// Its name; the number as text unless given.
    #[serde(default)]
    pub name: Option<PortName>,
    /// What clients connect to.
    pub number: u16,
    /// What the program listens on; `number` unless given.
    #[serde(default)]
    pub target_port: Option<u16>,
    /// TCP unless given.
    #[serde(default)]
    pub transport: Protocol,
}

/// Groups that may see a service beside the exporter's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// None.
    #[default]
    Own,
    /// These.
    Groups(Vec<GroupName>),
    /// All.
    All,
}

/// The answer to [`Expose`]: the registration is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposed {
    /// The service.
    pub service: ServiceName,
    /// The instance.
    pub instance: InstanceName,
    /// Its name in DNS.
    pub name: String,
    /// Its other names, answered on nodes whose `dns.fqdn_suffixes` hold them.
    #[serde(default)]
    pub fqdns: Vec<Fqdn>,
    /// Ports and where their flows go.
    pub ports: Vec<ExposedPort>,
    /// How its health is checked, in words.
    pub check: String,
    /// Who may see and call it, in words.
    pub visibility: String,
    /// Whether a registration with another content was replaced.
    pub replaced: bool,
    /// Members this node is connected to; above 256 members the others get the record by way of some of them.
    pub holders: usize,
    /// Other members that live.
    pub members: usize,
    /// What the operator should know, each a sentence.
    pub warnings: Vec<String>,
}

/// A port of [`Exposed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposedPort {
    /// Its name.
    pub name: PortName,
    /// What clients connect to.
    pub number: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub transport: Protocol,
    /// Where its flows go: `IP:PORT` or `unix:PATH`.
    pub target: String,
}

/// `POST /v1/withdraw`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdraw {
    /// The service.
    pub service: ServiceName,
    /// One instance; all of this node unless given.
    #[serde(default)]
    pub instance: Option<InstanceName>,
}

/// The answer to [`Withdraw`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawn {
    /// The service.
    pub service: ServiceName,
    /// What was withdrawn, sorted.
    pub instances: Vec<InstanceName>,
}

/// A row of `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name; `None` until its card has arrived.
    pub name: Option<NodeName>,
    /// Its id.
    pub id: String,
    /// Its group; `None` until its card has arrived.
    pub group: Option<GroupName>,
    /// `alive`, `suspect`, `down`, `left`, `evicted` or `unknown`.
    pub state: String,
    /// Its small failure domain.
    pub zone: Option<ZoneName>,
    /// Its large failure domain.
    pub region: Option<RegionName>,
    /// Where it may be dialled.
    pub addresses: Vec<Address>,
    /// The names of the relays that lead to it, because others cannot dial it.
    #[serde(default)]
    pub relays: Vec<String>,
    /// Since when it has this state, seconds since the Unix epoch; `None` for one known from disk only.
    #[serde(default)]
    pub since: Option<u64>,
    /// Why it has this state.
    #[serde(default)]
    pub reason: Option<String>,
    /// Who said so: a node's name, or `self`.
    #[serde(default)]
    pub by: Option<String>,
    /// Seconds since it was heard of, its staleness; `None` until its card has arrived.
    pub head_age_seconds: Option<u64>,
    /// Seconds until its instances are no longer used unless it is heard of; `None` for this node and without card.
    #[serde(default)]
    pub lease_seconds: Option<u64>,
    /// Records of it that are served.
    #[serde(default)]
    pub records: usize,
    /// Adverts of it that wait for a card or an issuer.
    #[serde(default)]
    pub held: usize,
    /// Fragments of it that do not decode here.
    #[serde(default)]
    pub quarantined: usize,
    /// Records of it outside its claims.
    #[serde(default)]
    pub outside_claims: usize,
    /// FQDNs of it outside its certified suffixes.
    #[serde(default)]
    pub outside_suffixes: usize,
    /// End of its certificate, seconds since the Unix epoch; `None` until its card has arrived.
    #[serde(default)]
    pub certificate_ends: Option<u64>,
    /// Whether it has said that it holds the same statements as the node that answers.
    #[serde(default)]
    pub has_statements: bool,
    /// What its certificate allows; `None` until its card has arrived.
    #[serde(default)]
    pub claims: Option<Claims>,
    /// Whether it is the node that answers.
    pub this: bool,
    /// The path of the connection to it; `None` where there is none.
    #[serde(default)]
    pub path: Option<PathRow>,
}

/// A row of `GET /v1/services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// The service.
    pub service: ServiceName,
    /// Its instances, nearest first.
    pub instances: Vec<InstanceRow>,
}

/// An instance of [`ServiceRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// The instance.
    pub instance: InstanceName,
    /// The node it runs on.
    pub node: NodeName,
    /// That node's group.
    pub group: GroupName,
    /// `usable`, `down`, `expired`, `failing` or `drained`.
    pub state: String,
    /// Ports clients may use.
    pub ports: Vec<PortRow>,
    /// `node`, `group`, `zone`, `region` or `any`.
    pub nearness: String,
    /// What its exporter wishes about which instances a caller uses.
    #[serde(default)]
    pub routing: Routing,
    /// Whether this node's group may see and call it.
    pub visible: bool,
    /// Whether it is behind the short name here.
    pub imported: bool,
    /// Names outside the mesh zones it wants to be called by, within its certified suffixes.
    #[serde(default)]
    pub fqdns: Vec<FqdnRow>,
    /// The best address of its node.
    pub address: Option<SocketAddr>,
}

/// A port of [`InstanceRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRow {
    /// Its name.
    pub name: PortName,
    /// Its number.
    pub number: u16,
    /// TCP or UDP.
    #[serde(default)]
    pub transport: Protocol,
}

/// A custom name of [`InstanceRow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FqdnRow {
    /// The name.
    pub fqdn: Fqdn,
    /// Whether it is answered here: inside `dns.fqdn_suffixes`, behind the short name, and disputed by no other service.
    pub answered: bool,
}

/// The answer to `GET /v1/resolve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The full name that was looked up.
    pub name: String,
    /// `NOERROR`, `NODATA`, `NXDOMAIN`, `REFUSED` or `SERVFAIL`.
    pub outcome: String,
    /// The answer, best first.
    pub answers: Vec<RecordRow>,
    /// What would come along.
    pub additionals: Vec<RecordRow>,
    /// Why there is no answer, when more is known than the outcome.
    pub reason: Option<String>,
    /// The service exists, but not for this node's group.
    pub hidden: bool,
    /// The name is none of the mesh: upstream was asked.
    #[serde(default)]
    pub forwarded: bool,
}

/// A record of [`Resolved`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordRow {
    /// Owner name.
    pub name: String,
    /// Seconds it may be cached.
    pub ttl: u32,
    /// For example `SRV`.
    #[serde(rename = "type")]
    pub record_type: String,
    /// As in a zone file.
    pub data: String,
}

/// The answer to `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Which of the ten daemons of the machine it is.
    pub slot: u8,
    /// Its mesh.
    pub mesh: StatusMesh,
    /// Itself.
    pub node: StatusNode,
    /// Where it answers DNS.
    pub dns: SocketAddr,
    /// The zones, suffixes and aliases that it answers for, without reverse zones.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// Where mesh traffic arrives.
    pub mesh_listen: SocketAddr,
    /// Addresses it tells others to dial.
    pub advertised: Vec<Address>,
    /// The socket of this API.
    pub socket: PathBuf,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Members that live, itself included.
    pub members_alive: usize,
    /// Nodes by state.
    #[serde(default)]
    pub members: BTreeMap<String, usize>,
    /// The peers it is connected to, in order of their names.
    #[serde(default)]
    pub peers: Vec<PeerRow>,
    /// Seconds since the live member was heard of that was silent for longest.
    #[serde(default)]
    pub oldest_head_seconds: u64,
    /// What came and is not served, by the node it is of.
    #[serde(default)]
    pub waiting: Vec<WaitingRow>,
    /// Own services that drain.
    #[serde(default)]
    pub draining: Vec<DrainRow>,
    /// Whether it stops when its flows have ended.
    #[serde(default)]
    pub leaving: Option<LeavingRow>,
    /// Services it knows of.
    pub services: usize,
    /// How connections to virtual addresses come here: `bind`, `dnat` or `none`.
    #[serde(default)]
    pub vip_mode: String,
    /// The pool of virtual addresses.
    #[serde(default)]
    pub vip_pool: String,
    /// What is known of the redirection of `dnat`, by `v4` and `v6`: `ready`, `no-route`, `no-table`, `off`.
    #[serde(default)]
    pub redirection: BTreeMap<String, String>,
    /// Ports of virtual addresses that were used.
    pub vips: Vec<VipRow>,
    /// Servers that are asked for names of others.
    #[serde(default)]
    pub upstreams: Vec<UpstreamRow>,
    /// What is wrong, worst first.
    pub findings: Vec<Finding>,
    /// Counters since the start, summed over their labels.
    pub counters: BTreeMap<String, u64>,
    /// Whether it admits others.
    pub issuer: bool,
    /// The nodes that hold the keys of the mesh's issuers, by name.
    #[serde(default)]
    pub issuers: Vec<String>,
    /// End of its certificate, seconds since the Unix epoch.
    #[serde(default)]
    pub certificate_ends: u64,
    /// What its certificate allows.
    #[serde(default)]
    pub claims: Claims,
    /// Whether the mesh's root key lies on this machine.
    #[serde(default)]
    pub holds_root_key: bool,
}

/// Adverts of one node that are not served, in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingRow {
    /// The node's name, or its id while its card is unknown.
    pub node: String,
    /// Adverts that cannot be judged yet.
    pub held: usize,
    /// Why, when any are held.
    pub held_because: Option<String>,
    /// Fragments that do not decode here, `fragment K: reason` each.
    pub quarantined: Vec<String>,
    /// Records outside the node's claims.
    pub outside_claims: usize,
    /// FQDNs outside the node's certified suffixes.
    #[serde(default)]
    pub outside_suffixes: usize,
}

/// The mesh in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusMesh {
    /// Its id.
    pub id: String,
    /// Its display name.
    pub name: MeshName,
}

/// The node in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusNode {
    /// Its name.
    pub name: NodeName,
    /// Its id.
    pub id: String,
    /// Its group.
    pub group: GroupName,
    /// Its small failure domain.
    pub zone: Option<ZoneName>,
    /// Its large failure domain.
    pub region: Option<RegionName>,
}

/// A port of a virtual address in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRow {
    /// The name the address stands for.
    pub name: String,
    /// The address.
    pub address: Ipv4Addr,
    /// The port.
    pub port: u16,
    /// Of which transport.
    #[serde(default)]
    pub transport: Protocol,
    /// `bound`, `native`, `waiting`, `denied` or `stolen`.
    pub state: String,
    /// Who has a stolen port, when it can be read.
    pub program: Option<String>,
}

/// A server that is asked for names of others, in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamRow {
    /// Its address.
    pub address: SocketAddr,
    /// `up`, `failing` or `looping`.
    pub state: String,
    /// Answers since the start.
    pub answered: u64,
    /// Tries without an answer since the start.
    pub failed: u64,
}

/// Something that is wrong, in [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What is wrong.
    pub text: String,
    /// What mends it.
    pub fix: String,
}

/// The query of `POST /v1/connect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connect {
    /// The service.
    pub service: ServiceName,
    /// One group of it.
    #[serde(default)]
    pub group: Option<GroupName>,
    /// One instance of that group.
    #[serde(default)]
    pub instance: Option<InstanceName>,
    /// A port's name or number.
    pub port: PortName,
}
