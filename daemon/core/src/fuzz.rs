//! Fuzz bodies of the cores: bytes from peers that are judged, not only decoded.
//!
//! Owns: the list. Must not know: where the bytes come from. Driven by: `tests/fuzz` and the test below.

use gossamer_wire::MeshId;
use gossamer_wire::fuzz::Body;

use crate::trust::TrustBundle;
use crate::{catalog, membership};

/// Every body of this crate, by name.
pub const BODIES: &[(&str, Body)] =
    &[("catalog", catalog::fuzz), ("membership", membership::fuzz), ("leaf", leaf)];

/// A leaf certificate of a stranger: never trusted, whatever it holds.
fn leaf(bytes: &[u8]) {
    if let Ok(bundle) = TrustBundle::new(MeshId::from_bytes([0; 16]), Vec::new(), Vec::new()) {
        assert!(bundle.verify(bytes, &[], 1_800_000_000).is_err());
    }
    let _ = crate::trust::not_after(bytes);
    let _ = crate::trust::public_key_of(bytes);
    if let Ok(facts) = crate::trust::read_issuer(bytes) {
        assert_eq!(facts.certificate, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_body_panics_on_seeded_bytes() {
        let mut state = 0x9e37_79b9_u32;
        for round in 0..300_usize {
            let bytes: Vec<u8> = (0..round % 200)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 17;
                    state ^= state << 5;
                    if state & 0x300 == 0 { state as u8 } else { (state & 7) as u8 }
                })
                .collect();
            BODIES.iter().for_each(|(_, body)| body(&bytes));
        }
    }
}
