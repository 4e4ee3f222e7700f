//! The host's own resolver, and what it must be told so that it sends questions for mesh names to this daemon.
//!
//! Owns: which resolver a host uses, the one file that is changed for it, the record by which that is undone.
//! Must not know: processes, sockets, the command line; facts come in, a plan goes out. Driven by: `cli::host`.
//!
//! One file is written for each resolver, and no setting of another owner is changed ([ADR 22]).
//!
//! [ADR 22]: https://github.com/gossamer-mesh/gossamer/blob/main/docs/adr/0022-the-hosts-resolver.md

pub mod decide;
pub mod domains;
pub mod facts;
pub mod files;
pub mod journal;
pub mod plan;
mod text;
pub mod vips;

#[cfg(test)]
mod tests;
