//! The daemon, built with the tests that run it: `cargo test` of a workspace builds no binaries of other packages.
//!
//! Owns: nothing. Must not know: anything but the entry. Driven by: `tests/tests`, by `CARGO_BIN_EXE_gossamer-tested`.

use std::process::ExitCode;

fn main() -> ExitCode {
    gossamer::cli::main()
}
