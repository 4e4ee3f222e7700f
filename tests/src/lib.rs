//! Harnesses and checks: what shows that the mesh keeps its promises.
//!
//! Owns: real daemons as processes ([`process`]), machines as network namespaces ([`netns`]), small clients that
//! ask and attack them ([`dnsq`], [`quic`], [`api`]), and the rows of `docs/evidence.md` ([`evidence`]).
//! Does not know how the daemon works inside: it sees command line, sockets and bytes. Two exceptions are named
//! where they are: checks of the catalog core and of the decoders call these crates, and the simulator ([`sim`]) runs
//! the cores of many nodes in one process, through what happens in a [`scenario`].
//! Start reading at [`process`], then at one of the rows, for example `evidence/visible.rs`.

pub mod api;
pub mod bad_input;
pub mod capture;
pub mod dnsq;
pub mod evidence;
pub mod fabric;
pub mod fake;
pub mod flood;
pub mod forge;
pub mod host;
pub mod middle;
pub mod needles;
pub mod netns;
pub mod planted;
pub mod process;
pub mod quic;
pub mod report;
pub mod scenario;
pub mod search;
pub mod servers;
pub mod sim;
pub mod targets;
pub mod trail;
pub mod upstream;
pub mod wait;
pub mod world;
