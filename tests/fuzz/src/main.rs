//! Feeds bytes to the decoders of the mesh. One binary: `GOSSAMER_FUZZ` names the target, without it the names
//! are printed.
//!
//! Owns: the list of targets. Must not know: what a decoder promises; that stands in the bodies of the crates.
//! Driven by: `.ci/fuzz`, by libFuzzer when built with `--cfg fuzzing`, else by the driver of [`stable`].

#![cfg_attr(fuzzing, no_main)]

#[cfg(not(fuzzing))]
mod stable;

type Body = fn(&[u8]);

fn targets() -> Vec<(String, Body)> {
    let dns: &[(&str, Body)] = &[
        ("query", gossamer_dns::fuzz_query),
        ("kept", |bytes| _ = gossamer_dns::fuzz_kept(bytes)),
        ("upstream", gossamer_dns::fuzz_upstream),
    ];
    let crates = [("wire", gossamer_wire::fuzz::BODIES), ("core", gossamer_core::fuzz::BODIES), ("dns", dns)];
    let targets = crates.iter().flat_map(|(owner, bodies)| {
        bodies.iter().map(move |(name, body)| (format!("{owner}-{name}"), *body))
    });
    targets.collect()
}

/// Returns the target asked for, or prints the names and ends the process.
fn chosen() -> Body {
    let targets = targets();
    let Ok(wanted) = std::env::var("GOSSAMER_FUZZ") else {
        targets.iter().for_each(|(name, _)| println!("{name}"));
        std::process::exit(0)
    };
    let Some((_, body)) = targets.into_iter().find(|(name, _)| *name == wanted) else {
        eprintln!("no target is named {wanted:?}");
        std::process::exit(2)
    };
    body
}

#[cfg(fuzzing)]
static BODY: std::sync::OnceLock<Body> = std::sync::OnceLock::new();

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(init: { BODY.get_or_init(chosen) }, |bytes: &[u8]| {
    BODY.get_or_init(chosen)(bytes)
});

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    stable::run(chosen())
}
