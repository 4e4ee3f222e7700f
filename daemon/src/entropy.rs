//! Randomness of one node.
//!
//! Owns: where it comes from. Must not know: what it decides. Driven by: `app`, which hands it to the parts; each
//! makes one generator at its start. Keys and TLS do not use it: ring asks the system itself.

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sha2::{Digest as _, Sha256};

/// A source of generators. The default is the system's.
#[derive(Clone, Debug, Default)]
pub enum Entropy {
    /// The system's randomness.
    #[default]
    System,
    /// The same generators for the same number: a run can be repeated.
    Seeded(u64),
}

impl Entropy {
    /// Makes a generator. With a seed, the same purpose always gives the same one.
    pub fn rng(&self, purpose: &str) -> StdRng {
        match self {
            Self::System => StdRng::from_rng(&mut rand::rng()),
            Self::Seeded(seed) => {
                let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(purpose).finalize();
                StdRng::from_seed(digest.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt as _;

    fn first(entropy: &Entropy, purpose: &str) -> u64 {
        entropy.rng(purpose).random()
    }

    #[test]
    fn a_seed_repeats_itself_per_purpose_and_the_system_does_not() {
        let seeded = Entropy::Seeded(7);
        assert_eq!(first(&seeded, "probes"), first(&Entropy::Seeded(7), "probes"));
        assert_ne!(first(&seeded, "probes"), first(&seeded, "pushes"));
        assert_ne!(first(&seeded, "probes"), first(&Entropy::Seeded(8), "probes"));
        assert_ne!(first(&Entropy::System, "probes"), first(&Entropy::System, "probes"));
    }
}
