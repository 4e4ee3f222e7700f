//! A hand-made QUIC client: what a stranger, or a member that breaks the rules, could send.
//!
//! Owns: credentials and connections of its own. Must not know: the daemon's transport, whose rules it breaks.
//! Driven by: the checks of trust, and the process tests of bad input.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error as TlsError, SignatureScheme};

use gossamer::identity::{Identity, NodeKey};
use gossamer_core::trust::Sign as _;
use gossamer_wire::MeshId;
use gossamer_wire::flow::{OpenRequest, OpenStatus};
use gossamer_wire::frame::{ALPN, Frame, Hello, PREFIX_BYTES, Purpose};
use gossamer_wire::join::{self, Ask, JoinReply, JoinRequest};
use gossamer_wire::limits::MAX_JOIN_BYTES;
use gossamer_wire::token::Token;

/// How long an answer may take that must not come: longer than the daemon waits for a joiner's request.
const SILENCE: Duration = Duration::from_secs(6);
/// How long an answer may take that must come.
const ANSWER: Duration = Duration::from_secs(5);

/// What a client shows of itself.
#[derive(Debug)]
pub enum Credentials {
    /// No certificate.
    None,
    /// A chain, leaf first, and the key of the leaf.
    Chain(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
}

/// What came back from a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Bytes of the application that came first: on a stream or in a datagram.
    pub bytes: usize,
    /// How the connection ended; `None` when it did not.
    pub closed: Option<String>,
}

impl Credentials {
    /// Makes a certificate with the SPIFFE name of a node of `mesh`, signed by its own key.
    ///
    /// # Errors
    /// No randomness.
    pub fn self_signed(mesh: MeshId) -> Result<Self> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let leaf = leaf_params(mesh)?.self_signed(&key)?;
        Ok(Self::Chain(vec![leaf.der().clone()], private(&key)))
    }

    /// Makes a whole chain with the SPIFFE name of a node of `mesh`, below a root the mesh does not know.
    ///
    /// # Errors
    /// No randomness.
    pub fn of_another_root(mesh: MeshId) -> Result<Self> {
        let root_key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&root_key)?;
        let issuer = Issuer::new(params, root_key);
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let leaf = leaf_params(mesh)?.signed_by(&key, &issuer)?;
        Ok(Self::Chain(vec![leaf.der().clone(), root.der().clone()], private(&key)))
    }

    /// Reads the credentials of a real member from a copy of its state directory.
    ///
    /// # Errors
    /// The directory holds no identity.
    pub fn of_member(state_dir: &Path) -> Result<Self> {
        Ok(Self::of_identity(&identity_of(state_dir)?))
    }

    /// Takes the credentials of a real member.
    pub fn of_identity(identity: &Identity) -> Self {
        let leaf = CertificateDer::from(identity.leaf_der.clone());
        let chain = [leaf].into_iter().chain(identity.trust.issuers().iter().cloned()).collect();
        Self::Chain(chain, identity.key.tls())
    }
}

/// Reads the identity of a real member from a copy of its state directory.
///
/// # Errors
/// The directory holds none.
pub fn identity_of(state_dir: &Path) -> Result<Identity> {
    // The directory itself is locked while its daemon runs.
    let scratch = tempfile::tempdir()?;
    let copy = scratch.path().join("state");
    fs::DirBuilder::new().mode(0o700).create(&copy)?;
    for entry in fs::read_dir(state_dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
    }
    let store = gossamer::store::Store::open(&copy)?;
    gossamer::identity::load(&store)?.context("an identity")
}

/// Connects with these credentials, sends a hello on a stream and in a datagram, and listens.
///
/// # Errors
/// The harness's own: a connection that is refused is an answer.
pub fn talk(server: SocketAddr, credentials: &Credentials, alpn: &[u8]) -> Result<Heard> {
    runtime()?.block_on(async {
        let connection = match connect(server, credentials, alpn).await? {
            Ok(connection) => connection,
            Err(why) => return Ok(Heard { bytes: 0, closed: Some(why) }),
        };
        let hello = hello(Purpose::Control)?;
        let mut stream = None;
        if let Ok(Ok((mut send, recv))) = tokio::time::timeout(ANSWER, connection.open_bi()).await {
            let _ = send.write_all(&hello).await;
            stream = Some((send, recv));
        }
        let _ = connection.send_datagram(hello.into());
        let mut bytes = 0;
        let _ = tokio::time::timeout(SILENCE, listen(&connection, &mut stream, &mut bytes)).await;
        Ok(Heard { bytes, closed: connection.close_reason().map(|reason| reason.to_string()) })
    })
}

/// Greets as this member does, then sends bytes that are no frame.
///
/// # Errors
/// The harness's own.
pub fn talk_garbage(server: SocketAddr, member: &Credentials) -> Result<Heard> {
    runtime()?.block_on(async {
        let connection = connect(server, member, ALPN).await?.map_err(anyhow::Error::msg)?;
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&hello(Purpose::Control)?).await?;
        let mut prefix = [0; PREFIX_BYTES];
        recv.read_exact(&mut prefix).await.context("the answer to the hello")?;
        send.write_all(&[0xff; 4_096]).await?;
        let closed = tokio::time::timeout(ANSWER, connection.closed()).await;
        Ok(Heard { bytes: prefix.len(), closed: closed.ok().map(|reason| reason.to_string()) })
    })
}

/// Greets as this member does, sends frames as fast as they are taken, and stays for `linger` after the last.
/// Returns why the daemon hung up, if it did.
///
/// # Errors
/// The harness's own.
pub fn send_frames(
    server: SocketAddr,
    member: &Credentials,
    frames: impl Iterator<Item = Frame>,
    linger: Duration,
) -> Result<Option<String>> {
    runtime()?.block_on(async {
        let connection = connect(server, member, ALPN).await?.map_err(anyhow::Error::msg)?;
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&hello(Purpose::Control)?).await?;
        let write = async {
            for frame in frames {
                if send.write_all(&frame.encode()?).await.is_err() {
                    break;
                }
            }
            let _ = tokio::time::timeout(linger, connection.closed()).await;
            anyhow::Ok(connection.close_reason().map(|reason| reason.to_string()))
        };
        // What the daemon says is read and thrown away, or it could not go on.
        let ignore = async {
            let mut buffer = [0; 4_096];
            while let Ok(Some(_)) = recv.read(&mut buffer).await {}
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            closed = write => closed,
            () = ignore => Ok(None),
        }
    })
}

/// Waits until something arrives, and counts it, or until the connection ends.
async fn listen(connection: &Connection, stream: &mut Option<(SendStream, RecvStream)>, bytes: &mut usize) {
    let mut buffer = [0; 4_096];
    while *bytes == 0 {
        tokio::select! {
            biased;
            _ = connection.closed() => return,
            Ok(datagram) = connection.read_datagram() => *bytes += datagram.len(),
            length = read(stream, &mut buffer) => *bytes += length,
            mut stream = accepted(connection) => *bytes += stream.read_to_end(4_096).await.map_or(0, |all| all.len()),
        }
    }
}

async fn read(stream: &mut Option<(SendStream, RecvStream)>, buffer: &mut [u8]) -> usize {
    let Some((_, recv)) = stream else { return std::future::pending().await };
    match recv.read(buffer).await {
        Ok(Some(length)) => length,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

async fn accepted(connection: &Connection) -> RecvStream {
    match connection.accept_uni().await {
        Ok(stream) => stream,
        Err(_) => std::future::pending().await,
    }
}

/// Asks a daemon, as this member, to connect a flow; `None` when the stream or connection broke instead.
///
/// # Errors
/// No data connection came about.
pub fn open_flow(
    server: SocketAddr,
    member: &Credentials,
    request: &OpenRequest,
) -> Result<Option<OpenStatus>> {
    runtime()?.block_on(async {
        let connection = connect(server, member, ALPN).await?.map_err(anyhow::Error::msg)?;
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&hello(Purpose::Data)?).await?;
        let mut prefix = [0; PREFIX_BYTES];
        recv.read_exact(&mut prefix).await.context("the answer to the hello")?;
        let (_, length) = Frame::decode_prefix(prefix)?;
        recv.read_exact(&mut vec![0; length]).await?;

        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&request.encode()?).await?;
        let mut status = [0];
        let answer = tokio::time::timeout(ANSWER, recv.read_exact(&mut status)).await;
        Ok(answer.is_ok_and(|read| read.is_ok()).then(|| OpenStatus::try_from(status[0])).transpose()?)
    })
}

/// Asks an issuer from this address to admit a new key with a token. The inner error is why it hung up instead of
/// answering.
///
/// # Errors
/// The harness's own.
pub fn ask_to_join(server: SocketAddr, source: Ipv4Addr, token: &Token) -> Result<Result<JoinReply, String>> {
    runtime()?.block_on(async {
        let connection = match connect_from(source, server, &Credentials::None, join::ALPN).await? {
            Ok(connection) => connection,
            Err(why) => return Ok(Err(why)),
        };
        let key = NodeKey::generate().context("randomness")?;
        let mut binding = [0; 32];
        let exported = connection.export_keying_material(&mut binding, b"EXPORTER-gossamer-join", b"");
        exported.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let proof = [join::PROOF_LABEL, token.grant().id.as_bytes(), &binding].concat();
        let request = JoinRequest {
            token: token.reveal().to_owned(),
            public_key: key.public(),
            proof: key.sign(&proof).to_vec(),
            name: "guesser".parse()?,
        };
        let asked = async {
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&Ask::Join(request).encode()?).await?;
            send.finish()?;
            anyhow::Ok(recv.read_to_end(MAX_JOIN_BYTES).await?)
        };
        let answer = tokio::time::timeout(ANSWER, asked).await.context("an answer of the issuer")?;
        let closed = connection.close_reason().map(|reason| reason.to_string());
        connection.close(0_u32.into(), b"thanks");
        // Its task sends that now, or the issuer would keep a seat for it.
        tokio::task::yield_now().await;
        match answer {
            Ok(bytes) => Ok(Ok(JoinReply::decode(&bytes)?)),
            Err(error) => Ok(Err(closed.unwrap_or_else(|| error.to_string()))),
        }
    })
}

async fn connect(
    server: SocketAddr,
    credentials: &Credentials,
    alpn: &[u8],
) -> Result<Result<Connection, String>> {
    connect_from(Ipv4Addr::LOCALHOST, server, credentials, alpn).await
}

/// Connects; the inner error is the daemon's refusal.
async fn connect_from(
    source: Ipv4Addr,
    server: SocketAddr,
    credentials: &Credentials,
    alpn: &[u8],
) -> Result<Result<Connection, String>> {
    let config = tls(credentials, alpn)?;
    let mut endpoint = Endpoint::client((source, 0).into())?;
    endpoint
        .set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?)));
    let connecting = endpoint.connect(server, "gossamer")?;
    Ok(match tokio::time::timeout(ANSWER, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    })
}

/// Returns TLS settings that show these credentials and believe everybody.
pub(crate) fn tls(credentials: &Credentials, alpn: &[u8]) -> Result<rustls::ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match credentials {
        Credentials::None => config.with_no_client_auth(),
        Credentials::Chain(chain, key) => config.with_client_auth_cert(chain.clone(), key.clone_key())?,
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

/// Greets, and says in advance that there are no statements: the daemon has some, so the digests differ.
fn hello(purpose: Purpose) -> Result<Vec<u8>> {
    let hello =
        Hello { purpose, nonce: 1, observed: "127.0.0.1:1".parse()?, statement_digest: empty_digest() };
    Ok([Frame::Hello(hello).encode()?, Frame::Statements(Vec::new()).encode()?].concat())
}

fn empty_digest() -> [u8; 16] {
    gossamer_wire::statement::digest(&std::collections::BTreeSet::new())
}

pub(crate) fn leaf_params(mesh: MeshId) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let name = format!("spiffe://{mesh}/group/default/node/stranger");
    params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

pub(crate) fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Believes every server: whom a daemon answers is judged here, not whom we talk to.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
