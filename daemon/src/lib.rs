//! The Gossamer daemon: sockets, tasks, files and the command line around the cores.
//!
//! Data flows in one line, and [`app`] reads in this order: config, identity, transport, membership, catalog,
//! index, then dns, relay and api. Decisions are made in `gossamer-core`; what is answered, in `gossamer-dns`.
//! Start reading at [`app`].
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may read the clock"))]

pub mod api;
pub mod app;
pub mod authority;
pub mod catalog;
pub mod cli;
pub mod clients;
pub mod clock;
pub mod config;
mod duration;
pub mod entropy;
pub mod events;
pub mod host;
pub mod identity;
pub mod index;
mod listeners;
pub mod membership;
mod memory;
pub mod metrics;
pub mod register;
pub mod relay;
pub mod resolver;
mod segments;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod transport;
