//! The node's Ed25519 key: TLS and signatures over adverts and tokens.
//!
//! Owns: the key in memory. Must not know: what is signed. Driven by: `identity`, the TLS configuration,
//! the catalog core (as `Sign`).

use std::fmt;

use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use gossamer_core::trust::{Sign, node_id};
use gossamer_wire::NodeId;

/// A node's key pair. `Debug` shows the node id only.
pub struct NodeKey {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

impl NodeKey {
    /// Makes a new key; `None` when the system has no randomness.
    pub fn generate() -> Option<Self> {
        let pair = KeyPair::generate_for(&PKCS_ED25519).ok()?;
        Self::read(&pair.serialize_der())
    }

    /// Reads a PKCS#8 key.
    pub fn read(pkcs8: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).ok()?;
        let public = pair.public_key().as_ref().try_into().ok()?;
        Some(Self { pkcs8: Zeroizing::new(pkcs8.to_vec()), pair, public })
    }

    /// Returns the secret PKCS#8 form, for the state directory only.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// Returns the public key.
    pub const fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Returns the id of the node with this key.
    pub fn node(&self) -> NodeId {
        node_id(&self.public)
    }

    /// Returns the key as rustls takes it.
    pub fn tls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }
}

impl Sign for NodeKey {
    fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(bytes).as_ref());
        signature
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.node())
    }
}

/// A public key that is to be certified.
#[derive(Clone, Copy, Debug)]
pub(super) struct Subject(pub(super) [u8; 32]);

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ED25519
    }
}
