//! Which statements go into the reply to a joiner.
//!
//! Owns: the choice when not all have room. Must not know: what they change for the joiner. Driven by: the issuer.

use gossamer_wire::limits::MAX_JOIN_BYTES;
use gossamer_wire::statement::{Change, SignedStatement};

/// Most bytes of statements in a reply while all have room; certificates and hints take some 8 KiB.
const MAX_SENT_STATEMENTS_BYTES: usize = 3_072;
/// Most bytes of those about roots: the rest of the reply.
const MAX_SENT_ROOTS_BYTES: usize = MAX_JOIN_BYTES - 8_192;

/// Returns all statements if they have room in a reply, else those about roots, which the joiner needs at once: the first
/// connection brings the others.
pub(super) fn statements_that_fit(all: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let bytes: usize = all.iter().map(|statement| statement.len() + 3).sum();
    if bytes <= MAX_SENT_STATEMENTS_BYTES {
        return all.to_vec();
    }
    let about_roots = |bytes: &&Vec<u8>| {
        let signed = SignedStatement::parse(bytes);
        signed.is_ok_and(|signed| {
            matches!(signed.statement().change, Change::AddRoot(_) | Change::RetireRoot { .. })
        })
    };
    let about_roots: Vec<_> = all.iter().filter(about_roots).cloned().collect();
    let bytes: usize = about_roots.iter().map(|statement| statement.len() + 3).sum();
    if bytes > MAX_SENT_ROOTS_BYTES {
        tracing::error!(
            bytes,
            "the roots of this mesh have no room in a reply; only the first one's tokens admit"
        );
        return Vec::new();
    }
    about_roots
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_wire::statement::Statement;
    use gossamer_wire::{MeshId, NodeId};

    #[test]
    fn what_the_joiner_needs_to_know_its_root_goes_first() {
        let id = NodeId::from_bytes([7; 16]);
        let signed = |number, change| {
            let statement = Statement { mesh: MeshId::from_bytes([1; 16]), author: id, number, change };
            SignedStatement::build(statement, |_| [0; 64]).expect("fits").bytes().to_vec()
        };
        let about_roots = [
            signed(0, Change::AddRoot(vec![1; 400])),
            signed(1, Change::RetireRoot { root: id, keep: vec![[2; 16]] }),
        ];
        let mut all = about_roots.to_vec();
        all.extend((2..9).map(|number| signed(number, Change::Evict(id))));
        assert_eq!(statements_that_fit(&all), all);
        all.extend((9..60).map(|number| signed(number, Change::Evict(id))));
        assert_eq!(statements_that_fit(&all), about_roots);
    }
}
