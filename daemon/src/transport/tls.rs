//! TLS of the mesh: which certificate is shown, and which one is believed.
//!
//! Owns: the rustls configurations. Must not know: what a verified node may do.
//! Driven by: `endpoint` (members) and `identity::join` (joiners).
//!
//! TLS 1.3 only, no tickets and no resumption: a resumed session would skip the verifier (measured).

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, version};

use gossamer_core::trust::{TrustBundle, TrustError};
use gossamer_wire::{MeshId, NodeId, frame, join};

use crate::clock::Clock;
use crate::identity::Identity;

/// The trust bundle as it is at the moment of a handshake.
pub type Trust = Arc<ArcSwap<TrustBundle>>;

/// Makes the server side for members, and for joiners on issuers.
///
/// # Errors
/// A bug: the identity was checked when it was loaded.
pub(super) fn server(identity: &Identity, trust: &Trust, clock: &Clock) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(MemberVerifier::new(trust));
    let resolver = Arc::new(ChainByAlpn::new(identity)?);
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![frame::ALPN.to_vec()];
    if identity.issuer.is_some() {
        config.alpn_protocols.push(join::ALPN.to_vec());
    }
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

/// Makes the client side for members.
///
/// # Errors
/// As [`server`].
pub(super) fn client(identity: &Identity, trust: &Trust, clock: &Clock) -> Result<ClientConfig, Error> {
    let chain = member_chain(identity);
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(MemberVerifier::new(trust)))
        .with_client_auth_cert(chain, identity.key.tls())?;
    config.alpn_protocols = vec![frame::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Makes the client side of a joiner: only the pinned root and only the token's issuer are believed.
///
/// # Errors
/// A bug in the provider.
pub(crate) fn joiner(mesh: MeshId, pin: [u8; 32], issuer: NodeId) -> Result<ClientConfig, Error> {
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

fn member_chain(identity: &Identity) -> Vec<CertificateDer<'static>> {
    let leaf = CertificateDer::from(identity.leaf_der.clone());
    let issuer = identity.trust.issuers().first().cloned();
    [leaf].into_iter().chain(issuer).collect()
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
        | TrustError::Pin
        | TrustError::Scope(_) => CertificateError::ApplicationVerificationFailure,
    };
    Error::InvalidCertificate(reason)
}

/// Shows members the leaf and its issuer, joiners the root as well, so that they can find their pin.
#[derive(Debug)]
struct ChainByAlpn {
    member: Arc<CertifiedKey>,
    join: Option<Arc<CertifiedKey>>,
}

impl ChainByAlpn {
    fn new(identity: &Identity) -> Result<Self, Error> {
        let key = provider().key_provider.load_private_key(identity.key.tls())?;
        let member = Arc::new(CertifiedKey::new(member_chain(identity), Arc::clone(&key)));
        let join = identity.issuer.as_ref().map(|_| {
            let chain = member_chain(identity).into_iter().chain(identity.trust.roots().iter().cloned());
            Arc::new(CertifiedKey::new(chain.collect(), key))
        });
        Ok(Self { member, join })
    }
}

impl ResolvesServerCert for ChainByAlpn {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut offered = hello.alpn()?;
        match offered.any(|protocol| protocol == join::ALPN) {
            true => self.join.clone(),
            false => Some(Arc::clone(&self.member)),
        }
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

/// Believes one issuer of the mesh whose root the token pins.
#[derive(Debug)]
struct PinnedVerifier {
    mesh: MeshId,
    pin: [u8; 32],
    issuer: NodeId,
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
        let pinned = TrustBundle::pinned(self.mesh, &self.pin, &chain, now.as_secs());
        let (_, leaf) = pinned.map_err(|error| refused(&error))?;
        if leaf.node != self.issuer {
            return Err(refused(&TrustError::Pin));
        }
        Ok(ServerCertVerified::assertion())
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
