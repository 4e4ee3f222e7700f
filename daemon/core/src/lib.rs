//! Every decision of the daemon, and no I/O: values in, values out.
//!
//! A core is `handle(input, now)`, `next_output()` and `next_deadline()`; time and randomness are arguments
//! (ADR 2). One task of the daemon owns one core. Start reading at [`catalog`], then [`membership`].
//! Does not know tokio, quinn, files, environment, or how time is read.
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests may read the clock"))]

pub mod access;
pub mod admission;
pub mod astray;
mod bucket;
pub mod callers;
pub mod catalog;
pub mod circuits;
pub mod dial;
pub mod doorway;
pub mod fuzz;
pub mod guard;
pub mod membership;
pub mod orders;
mod outputs;
mod places;
pub mod quiet;
pub mod reach;
pub mod relays;
pub mod renewal;
pub mod seconds;
pub mod select;
pub mod sightings;
pub mod source;
pub mod statements;
pub mod strangers;
pub mod time;
pub mod trust;
pub mod vip;
