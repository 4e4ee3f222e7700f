//! Bytes from anyone: length bombs and fuzzing.
//!
//! Owns: the bombs. Must not know: formats; it calls every public decoder with the same bytes.
//! Driven by: `evidence`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use gossamer_wire::ServiceRecord;
use gossamer_wire::advert::{Advert, Card, Fragment, Head};
use gossamer_wire::flow::OpenRequest;
use gossamer_wire::frame::Frame;
use gossamer_wire::issuer::IssuerClaims;
use gossamer_wire::join::{Ask, JoinReply};
use gossamer_wire::statement::SignedStatement;
use gossamer_wire::token::{Claims, Token};

use super::{Ci, Needs, Row, Run};
use crate::planted::Worktree;
use crate::promise;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "2.8-length-bomb",
        promise: "25 bytes that claim a huge length are an error for every decoder, and cost no memory",
        sabotage: "the codec's limit is taken out of a copy of the tree",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: length_bomb,
    },
    Row {
        name: "2.8-fuzz",
        promise: "Each decoder is fuzzed for 60 s without a finding",
        sabotage: "a decoder that indexes without a check is planted in a copy of the tree",
        needs: Needs::Nothing,
        ci: Ci::Runs,
        check: fuzz,
    },
    Row {
        name: "4.7-fuzz",
        promise: "Tokens, statements and join requests are fuzzed for 5 minutes each without a finding",
        sabotage: "a reader of tokens that indexes without a check is planted in a copy of the tree",
        needs: Needs::Nothing,
        ci: Ci::Skips("it takes 15 minutes; .ci/run fuzzes these decoders with all others"),
        check: fuzz_joining,
    },
];

const LIMIT: Duration = Duration::from_secs(1_800);
const BOMB_BYTES: usize = 25;
/// bincode's marks of lengths that follow as u16, u32, u64, u128, and one it does not know.
const MARKS: [u8; 5] = [251, 252, 253, 254, 255];
/// What the bombs may add to the memory of this process, KiB: far below any length they claim.
const GROWTH_KIB: u64 = 16 * 1_024;

type Decoder = (&'static str, fn(&[u8]) -> bool);

/// Every decoder that takes all bytes or none; true is "accepted".
const DECODERS: &[Decoder] = &[
    ("advert", |bytes| Advert::parse(bytes).is_ok()),
    ("card", |bytes| Card::decode(bytes).is_ok()),
    ("fragment", |bytes| Fragment::decode(bytes).is_ok()),
    ("head", |bytes| Head::decode(bytes).is_ok()),
    ("record", |bytes| ServiceRecord::decode(bytes).is_ok()),
    ("open request", |bytes| OpenRequest::decode(bytes).is_ok()),
    ("join request", |bytes| Ask::decode(bytes).is_ok()),
    ("join reply", |bytes| JoinReply::decode(bytes).is_ok()),
    ("statement", |bytes| SignedStatement::parse(bytes).is_ok()),
    ("claims", |bytes| Claims::decode(bytes).is_ok()),
    ("issuer claims", |bytes| IssuerClaims::decode(bytes).is_ok()),
    ("token", |bytes| std::str::from_utf8(bytes).is_ok_and(|text| text.parse::<Token>().is_ok())),
    ("frame", |bytes| (1..=18).any(|kind| matches!(Frame::decode(kind, bytes), Ok(Some(_))))),
];

fn length_bomb(run: &Run) -> Result<String> {
    // The same bombs against the bodies of the fuzz targets, in the sources of the tree.
    let planted = if run.sabotaged { Some(Worktree::with_patch(&run.root, "no-limit.patch")?) } else { None };
    let root = planted.as_ref().map_or_else(|| run.root.clone(), Worktree::path);
    let test = ["test", "--quiet", "--locked", "-p", "gossamer-wire", "length_bomb"];
    let done = run.tool(&root, "cargo", &test, LIMIT)?;
    let why = done
        .stdout
        .lines()
        .chain(done.stderr.lines())
        .find(|line| line.contains("overflow") || line.contains("memory"));
    promise!(
        done.code == Some(0),
        "the tests of the decoders end with {:?}: {}",
        done.code,
        why.unwrap_or_default()
    );

    let before = peak_kib()?;
    let mut tried = 0;
    for bomb in bombs() {
        for (decoder, accepts) in DECODERS {
            promise!(!accepts(&bomb), "the decoder of a {decoder} accepts {bomb:?}");
            tried += 1;
        }
        for (_, body) in gossamer_wire::fuzz::BODIES.iter().chain(gossamer_core::fuzz::BODIES) {
            body(&bomb);
        }
        gossamer_dns::fuzz_query(&bomb);
    }
    let grown = peak_kib()?.saturating_sub(before);
    promise!(grown <= GROWTH_KIB, "the bombs cost {grown} KiB");
    Ok(format!("{tried} of {tried} refused by {} decoders, {grown} KiB more memory", DECODERS.len()))
}

/// Returns bombs with every mark at every place, behind zeros and in front of a length as great as it gets.
fn bombs() -> impl Iterator<Item = Vec<u8>> {
    (0..BOMB_BYTES).flat_map(|at| {
        MARKS.into_iter().map(move |mark| {
            let mut bomb = vec![0xff; BOMB_BYTES];
            bomb[..at].fill(0);
            bomb[at] = mark;
            bomb
        })
    })
}

/// Returns the most memory this process ever held, KiB.
fn peak_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a peak")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn fuzz(run: &Run) -> Result<String> {
    fuzz_targets(run, run.times("60", "2"), &[], "unchecked-index.patch")
}

fn fuzz_joining(run: &Run) -> Result<String> {
    let targets = ["wire-token", "wire-statement", "wire-join"];
    fuzz_targets(run, run.times("300", "5"), &targets, "4-unchecked-token.patch")
}

/// Fuzzes some targets, or all, in the tree or in a copy with a planted bug.
fn fuzz_targets(run: &Run, seconds: &str, targets: &[&str], bug: &str) -> Result<String> {
    let planted = if run.sabotaged { Some(Worktree::with_patch(&run.root, bug)?) } else { None };
    let root = planted.as_ref().map_or_else(|| run.root.clone(), Worktree::path);
    let done = run.tool(&root, ".ci/fuzz", &[&[seconds], targets].concat(), LIMIT)?;
    let lines: Vec<Vec<&str>> = done.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let targets: Vec<_> =
        lines.iter().filter(|words| words.len() == 3 && words[2].parse::<u32>().is_ok()).collect();
    let found: Vec<_> = targets.iter().filter(|words| words[2] != "0").map(|words| words[0]).collect();
    promise!(found.is_empty(), "findings in {}", found.join(", "));
    anyhow::ensure!(done.code == Some(0) && !targets.is_empty(), ".ci/fuzz: {}", done.stderr.trim());
    let execs: u64 = targets.iter().filter_map(|words| words[1].parse::<u64>().ok()).sum();
    let engine = done.stdout.lines().find_map(|line| line.strip_prefix("fuzzing with ")).unwrap_or("?");
    Ok(format!("{} targets, {seconds} s each, {execs} inputs, 0 findings ({engine})", targets.len()))
}
