//! Seeded driver for a stable compiler: no coverage, but the same bytes for the same seed.
//!
//! Owns: how bytes are made. Must not know: which decoder gets them. Driven by: `main`, with the arguments
//! `SECONDS SEED ARTIFACT SEED_FOLDER`.

use std::fs;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::Body;

/// Runs `body` on every file of the seed folder, then on mutations until the time is over.
pub(crate) fn run(body: Body) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, seed, artifact, folder] = arguments.as_slice() else {
        eprintln!("usage: gossamer-fuzz SECONDS SEED ARTIFACT SEED_FOLDER");
        return ExitCode::from(2);
    };
    let (Ok(seconds), Ok(seed)) = (seconds.parse(), seed.parse()) else {
        eprintln!("SECONDS and SEED are whole numbers");
        return ExitCode::from(2);
    };
    let seeds = seeds(folder);
    let mut random = Random::new(seed);
    let started = Instant::now();
    let mut execs = 0;
    while execs < seeds.len() || started.elapsed() < Duration::from_secs(seconds) {
        let bytes = match seeds.get(execs) {
            Some(bytes) => bytes.clone(),
            None => random.mutation(&seeds),
        };
        if catch_unwind(|| body(&bytes)).is_err() {
            let saved = fs::write(artifact, &bytes);
            eprintln!("finding after {execs} inputs of seed {seed}, saved in {artifact}: {saved:?}");
            return ExitCode::FAILURE;
        }
        execs += 1;
    }
    println!("number_of_executed_units: {execs}");
    ExitCode::SUCCESS
}

/// Reads the seeds in the order of their names; a target without a folder starts from nothing.
fn seeds(folder: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path()).collect();
    files.sort();
    files.iter().filter_map(|file| fs::read(file).ok()).collect()
}

/// A xorshift generator: the bytes depend on the seed alone.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number below `end`; 0 when there is none.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end.max(1)
    }

    /// Returns a byte that often is a tag, a small length, or one of bincode's long-integer marks.
    fn byte(&mut self) -> u8 {
        match self.below(4) {
            0 => self.below(256) as u8,
            1 => 250 + self.below(6) as u8,
            _ => self.below(8) as u8,
        }
    }

    /// Returns a seed, or fresh bytes, with one to eight changes.
    fn mutation(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = match seeds.get(self.below(seeds.len() * 8 / 7 + 1)) {
            Some(seed) => seed.clone(),
            None => (0..self.below(300)).map(|_| self.byte()).collect(),
        };
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes.insert(at, self.byte()),
                1 => bytes.truncate(at),
                2 => bytes.extend_from_within(at..),
                _ if bytes.is_empty() => bytes.push(self.byte()),
                3 => bytes[at] ^= 1 << self.below(8),
                _ => bytes[at] = self.byte(),
            }
        }
        bytes
    }
}
