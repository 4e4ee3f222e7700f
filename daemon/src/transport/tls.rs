//! TLS of the mesh: which certificate is shown, and which one is believed.
//!
//! Owns: the rustls configurations; handshakes look at the trust bundle and the credentials of their moment. Must not know:
//! what a verified node may do.
//! Driven by: `endpoint` (members) and `identity::join` (joiners).
//!
//! TLS 1.3 only, no tickets and no resumption: a resumed session would skip the verifier (measured).

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, version};

use gossamer_core::trust::{TrustBundle, TrustError, pinned_issuer};
use gossamer_wire::{MeshId, NodeId, frame, join};

use crate::clock::Clock;
use crate::identity::{Live, NodeKey};

/// The trust bundle as it is at the moment of a handshake.
pub type Trust = Arc<ArcSwap<TrustBundle>>;

/// What a node shows and believes in handshakes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    pub(super) key: &'a NodeKey,
    pub(super) live: &'a Live,
    pub(super) trust: &'a Trust,
    pub(super) clock: &'a Clock,
}

/// Makes the server side for members, and for joiners while this node is an issuer.
///
/// # Errors
/// A bug: the identity was checked when it was loaded.
pub(super) fn server(side: &Side<'_>) -> Result<ServerConfig, Error> {
    let Side { trust, clock, .. } = *side;
    let verifier = Arc::new(MemberVerifier::new(trust));
    let resolver = Arc::new(Shown::new(side)?);
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![frame::ALPN.to_vec(), join::ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// Makes the server side of lanes.
///
/// # Errors
/// As [`server`].
pub(super) fn lane_server(side: &Side<'_>) -> Result<ServerConfig, Error> {
    let mut config = server(side)?;
    config.alpn_protocols = vec![super::lane::ALPN.to_vec(), join::ALPN.to_vec()];
    Ok(config)
}

/// Makes the client side of lanes.
///
/// # Errors
/// As [`server`].
pub(super) fn lane_client(side: &Side<'_>) -> Result<ClientConfig, Error> {
    let mut config = client(side)?;
    config.alpn_protocols = vec![super::lane::ALPN.to_vec()];
    Ok(config)
}

/// Makes the client side for members.
///
/// # Errors
/// As [`server`].
pub(super) fn client(side: &Side<'_>) -> Result<ClientConfig, Error> {
    let Side { trust, clock, .. } = *side;
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(MemberVerifier::new(trust)))
        .with_client_cert_resolver(Arc::new(Shown::new(side)?));
    config.alpn_protocols = vec![frame::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Makes the client side of who asks an issuer: only the pinned root, and only this issuer or any of the mesh, is believed.
///
/// # Errors
/// A bug in the provider.
pub(crate) fn joiner(mesh: MeshId, pin: [u8; 32], issuer: Option<NodeId>) -> Result<ClientConfig, Error> {
    let verifier = PinnedVerifier { mesh, pin, issuer, algorithms: algorithms() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![join::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// ring, with AES-128-GCM first: it costs the least where AES is in hardware, and QUIC's initial keys need it.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

fn refused(error: &TrustError) -> Error {
    tracing::debug!(%error, "certificate refused");
    let reason = match error {
        TrustError::Expired(_) => CertificateError::Expired,
        TrustError::NotYet(_) => CertificateError::NotValidYet,
        TrustError::Malformed => CertificateError::BadEncoding,
        TrustError::Chain(_) => CertificateError::UnknownIssuer,
        TrustError::Evicted | TrustError::IssuerRemoved => CertificateError::Revoked,
        TrustError::Name
        | TrustError::Claims
        | TrustError::Key
        | TrustError::None
        | TrustError::NotIssuer
        | TrustError::NotRoot
        | TrustError::Pin
        | TrustError::Scope(_) => CertificateError::ApplicationVerificationFailure,
    };
    Error::InvalidCertificate(reason)
}

/// Shows members the leaf and its issuer, joiners the root as well, so that they can find their pin; joiners nothing
/// while this node is no issuer. Both as they are at the moment of the handshake: certificates are renewed.
#[derive(Debug)]
struct Shown {
    key: Arc<dyn SigningKey>,
    live: Live,
    trust: Trust,
}

impl Shown {
    fn new(side: &Side<'_>) -> Result<Self, Error> {
        let key = provider().key_provider.load_private_key(side.key.tls())?;
        Ok(Self { key, live: Live::clone(side.live), trust: Trust::clone(side.trust) })
    }

    fn to_member(&self) -> Arc<CertifiedKey> {
        Arc::new(CertifiedKey::new(self.live.load().chain(), Arc::clone(&self.key)))
    }

    fn to_joiner(&self) -> Option<Arc<CertifiedKey>> {
        let live = self.live.load();
        live.issuer.as_ref()?;
        let mut chain = live.chain();
        chain.extend(self.trust.load().roots().iter().chain(&live.retired_roots).cloned());
        Some(Arc::new(CertifiedKey::new(chain, Arc::clone(&self.key))))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut offered = hello.alpn()?;
        match offered.any(|protocol| protocol == join::ALPN) {
            true => self.to_joiner(),
            false => Some(self.to_member()),
        }
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _root_hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.to_member())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Believes certificates of members, on both sides of a handshake.
#[derive(Debug)]
struct MemberVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl MemberVerifier {
    fn new(trust: &Trust) -> Self {
        Self { trust: Arc::clone(trust), algorithms: algorithms() }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let verdict = self.trust.load().verify(leaf, shown, now.as_secs());
        verdict.map(|_| ()).map_err(|error| refused(&error))
    }
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, shown, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for MemberVerifier {
    /// Joiners have no certificate yet; `accept` closes every other connection without one.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// Names of CAs would tell strangers which mesh this is.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, shown, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// Believes issuers of the mesh whose root is pinned: one of them, or any.
#[derive(Debug)]
struct PinnedVerifier {
    mesh: MeshId,
    pin: [u8; 32],
    issuer: Option<NodeId>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        shown: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = [leaf].into_iter().chain(shown).cloned().collect();
        let found = pinned_issuer(self.mesh, &self.pin, &chain, now.as_secs());
        let found = found.map_err(|error| refused(&error))?;
        match self.issuer.is_none_or(|wanted| wanted == found.id) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(refused(&TrustError::Pin)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
