//! Words and bytes of the mesh: ids, names, records, adverts, statements, tokens, frames and the one codec.
//!
//! Owns what travels between daemons and how it is encoded. Does not know sockets, time, policy or SWIM's rules.
//! Data in: bytes from a peer. Data out: values that are always valid, or a [`DecodeError`].
//! Start reading at [`advert`], the unit of replication, then [`frame`], what runs on a control stream.
//!
//! Every decoder checks lengths against [`limits`] before it allocates, and refuses trailing bytes.

mod access;
mod address;
pub mod advert;
pub mod circuit;
pub mod codec;
mod error;
pub mod flow;
pub mod frame;
pub mod fuzz;
mod id;
pub mod issuer;
pub mod join;
pub mod limits;
mod name;
mod record;
mod routing;
pub mod statement;
pub mod swim;
mod text;
pub mod token;

pub use access::{NodePattern, Rule, RuleError, Subject};
pub use address::{Address, AddressError, LANE_SCHEME, LaneAddress, LaneAddressError};
pub use error::{DecodeError, EncodeError, NameError};
pub use id::{Generation, IdError, MeshId, NodeId, TokenId};
pub use name::{
    Fqdn, FqdnSuffix, GroupName, InstanceName, Label, MeshName, NodeName, PortName, RegionName, ServiceName,
    ZoneName,
};
pub use record::{Health, Port, ServiceRecord, Transport, Tries, Visibility};
pub use routing::{Carrier, Order, Routing, RoutingError, Tier, parse_order};
