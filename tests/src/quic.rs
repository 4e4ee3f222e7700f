//! A hand-made QUIC client: what a stranger, or a member that breaks the rules, could send.
//!
//! Owns: credentials and connections of its own. Must not know: the daemon's transport, whose rules it breaks.
//! Driven by: the checks of trust, and the process tests of bad input.

use std::collections::VecDeque;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType,
};
use rustls::client::Tls13ClientSessionValue;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error as TlsError, NamedGroup, SignatureScheme};

use gossamer::identity::{Identity, NodeKey};
use gossamer_core::trust::Sign as _;
use gossamer_wire::circuit::{CircuitOpen, CircuitStatus};
use gossamer_wire::flow::{OpenRequest, OpenStatus};
use gossamer_wire::frame::{ALPN, Frame, Hello, PREFIX_BYTES, Purpose};
use gossamer_wire::join::{self, Ask, JoinReply, JoinRequest, RENEW_LABEL, RenewRequest};
use gossamer_wire::limits::MAX_JOIN_BYTES;
use gossamer_wire::token::Token;
use gossamer_wire::{MeshId, NodeId};

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
    talk_as(server, tls(credentials, alpn)?)
}

fn talk_as(server: SocketAddr, config: rustls::ClientConfig) -> Result<Heard> {
    runtime()?.block_on(async {
        let connection = match connect_as(Ipv4Addr::LOCALHOST, server, config).await? {
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
    open_raw(server, member, &request.encode()?)
}

/// As [`open_flow`], with bytes that may be no request.
///
/// # Errors
/// No data connection came about.
pub fn open_raw(server: SocketAddr, member: &Credentials, request: &[u8]) -> Result<Option<OpenStatus>> {
    runtime()?.block_on(async {
        let connection = data_connection(server, member).await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(request).await?;
        let mut status = [0];
        let answer = tokio::time::timeout(ANSWER, recv.read_exact(&mut status)).await;
        Ok(answer.is_ok_and(|read| read.is_ok()).then(|| OpenStatus::try_from(status[0])).transpose()?)
    })
}

/// Asks a relay for circuits to a node without end, as this member, and reads nothing of those that it gets, until told to
/// stop. Returns how many were opened and refused.
///
/// # Errors
/// No data connection came about, or it was closed.
pub fn open_circuits(
    relay: SocketAddr,
    member: &Credentials,
    node: NodeId,
    stop: &AtomicBool,
) -> Result<(usize, usize)> {
    runtime()?.block_on(async {
        let connection = data_connection(relay, member).await?;
        let (mut kept, mut opened, mut refused) = (VecDeque::new(), 0, 0);
        while !stop.load(Ordering::Relaxed) {
            let (mut send, mut recv) = connection.open_bi().await?;
            send.write_all(&CircuitOpen::To(node).encode()).await?;
            let mut status = [0xff];
            let answer = tokio::time::timeout(ANSWER, recv.read_exact(&mut status)).await;
            if answer.is_err() || status != [CircuitStatus::Open.code()] {
                refused += 1;
                continue;
            }
            opened += 1;
            // A beginning of TLS that goes no further.
            let _ = send.write_all(&[22, 3, 1, 2, 0, 1]).await;
            kept.push_back((send, recv));
            if kept.len() > MOST_KEPT {
                kept.pop_front();
            }
        }
        Ok((opened, refused))
    })
}

/// Begins a circuit with this record, as this member. Returns the byte that answers it; `None` when the stream ends without.
///
/// # Errors
/// No data connection came about, or nothing came in time.
pub fn ask_circuit(at: SocketAddr, member: &Credentials, record: CircuitOpen) -> Result<Option<u8>> {
    runtime()?.block_on(async {
        let connection = data_connection(at, member).await?;
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&record.encode()).await?;
        let mut status = [0];
        let answer = tokio::time::timeout(ANSWER, recv.read_exact(&mut status)).await;
        Ok(answer.context("no answer")?.ok().map(|()| status[0]))
    })
}

/// Circuits that are held open at once: more than a relay allows.
const MOST_KEPT: usize = 1_000;

/// Opens a data connection as this member does.
///
/// # Errors
/// The daemon does not answer its hello.
pub(crate) async fn data_connection(server: SocketAddr, member: &Credentials) -> Result<Connection> {
    let connection = connect(server, member, ALPN).await?.map_err(anyhow::Error::msg)?;
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(&hello(Purpose::Data)?).await?;
    let mut prefix = [0; PREFIX_BYTES];
    recv.read_exact(&mut prefix).await.context("the answer to the hello")?;
    let (_, length) = Frame::decode_prefix(prefix)?;
    recv.read_exact(&mut vec![0; length]).await?;
    Ok(connection)
}

/// Asks an issuer from this address to admit a new key with a token. The inner error is why it hung up instead of
/// answering.
///
/// # Errors
/// The harness's own.
pub fn ask_to_join(server: SocketAddr, source: Ipv4Addr, token: &Token) -> Result<Result<JoinReply, String>> {
    let key = NodeKey::generate().context("randomness")?;
    runtime()?.block_on(redeem(server, source, token, &key, "guesser"))
}

/// As [`ask_to_join`], with this key and for a node of this name.
///
/// # Errors
/// The harness's own.
pub(crate) async fn redeem(
    server: SocketAddr,
    source: Ipv4Addr,
    token: &Token,
    key: &NodeKey,
    name: &str,
) -> Result<Result<JoinReply, String>> {
    let connection = match connect_from(source, server, &Credentials::None, join::ALPN).await? {
        Ok(connection) => connection,
        Err(why) => return Ok(Err(why)),
    };
    let answer = ask_issuer(&connection, |binding| {
        let proof = [join::PROOF_LABEL, token.grant().id.as_bytes(), binding].concat();
        Ok(Ask::Join(JoinRequest {
            token: token.reveal().to_owned(),
            public_key: key.public(),
            proof: key.sign(&proof).to_vec(),
            name: name.parse()?,
        }))
    })
    .await;
    let closed = connection.close_reason().map(|reason| reason.to_string());
    connection.close(0_u32.into(), b"thanks");
    // Its task sends that now, or the issuer would keep a seat for it.
    tokio::task::yield_now().await;
    match answer {
        Ok(bytes) => Ok(Ok(JoinReply::decode(&bytes)?)),
        Err(error) => Ok(Err(closed.unwrap_or_else(|| error.to_string()))),
    }
}

/// A client that keeps what servers give it to come back with, without showing its certificate again.
#[derive(Debug)]
pub struct Resuming {
    config: rustls::ClientConfig,
    kept: Arc<Kept>,
}

impl Resuming {
    /// Makes a client that has been nowhere yet.
    ///
    /// # Errors
    /// The credentials do not fit TLS.
    pub fn new(credentials: &Credentials, alpn: &[u8]) -> Result<Self> {
        let kept =
            Arc::new(Kept { sessions: ClientSessionMemoryCache::new(8), tickets: AtomicUsize::new(0) });
        let mut config = tls(credentials, alpn)?;
        config.resumption = Resumption::store(Arc::<Kept>::clone(&kept));
        Ok(Self { config, kept })
    }

    /// As [`talk`], with a session of before where there is one.
    ///
    /// # Errors
    /// The harness's own.
    pub fn talk(&self, server: SocketAddr) -> Result<Heard> {
        talk_as(server, self.config.clone())
    }

    /// Returns how many tickets it was given.
    pub fn tickets(&self) -> usize {
        self.kept.tickets.load(Ordering::Relaxed)
    }
}

/// Sessions of before, counted.
#[derive(Debug)]
struct Kept {
    sessions: ClientSessionMemoryCache,
    tickets: AtomicUsize,
}

impl ClientSessionStore for Kept {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.sessions.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.sessions.set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.sessions.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        self.sessions.insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.sessions.take_tls13_ticket(server)
    }
}

/// Asks an issuer to renew the first certificate of these credentials, as the owner of its key does.
///
/// # Errors
/// The harness's own, or the issuer says nothing.
pub fn renew(server: SocketAddr, credentials: &Credentials) -> Result<JoinReply> {
    let Credentials::Chain(chain, key) = credentials else { anyhow::bail!("no certificate to renew") };
    let key = NodeKey::read(key.secret_der()).context("an Ed25519 key")?;
    runtime()?.block_on(async {
        let connecting = connect(server, &Credentials::None, join::ALPN).await?;
        let connection = connecting.map_err(anyhow::Error::msg)?;
        let reply = ask_issuer(&connection, |binding| {
            let proof = key.sign(&[RENEW_LABEL, &binding[..]].concat()).to_vec();
            let signer = chain.get(1).map(|der| der.to_vec()).unwrap_or_default();
            Ok(Ask::Renew(RenewRequest { leaf: chain[0].to_vec(), issuer: signer, proof }))
        })
        .await?;
        Ok(JoinReply::decode(&reply)?)
    })
}

/// Gives an issuer a request that is bound to the session; returns its reply.
async fn ask_issuer(connection: &Connection, ask: impl FnOnce(&[u8; 32]) -> Result<Ask>) -> Result<Vec<u8>> {
    let mut binding = [0; 32];
    let exported = connection.export_keying_material(&mut binding, b"EXPORTER-gossamer-join", b"");
    exported.map_err(|_| anyhow::anyhow!("the TLS session has no binding"))?;
    let ask = ask(&binding)?.encode()?;
    let asked = async {
        let (mut send, mut recv) = connection.open_bi().await?;
        send.write_all(&ask).await?;
        send.finish()?;
        anyhow::Ok(recv.read_to_end(MAX_JOIN_BYTES).await?)
    };
    tokio::time::timeout(ANSWER, asked).await.context("an answer of the issuer")?
}

/// Connects; the inner error is the daemon's refusal.
async fn connect(
    server: SocketAddr,
    credentials: &Credentials,
    alpn: &[u8],
) -> Result<Result<Connection, String>> {
    let source = if server.ip().is_loopback() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    connect_from(source, server, credentials, alpn).await
}

/// Connects from an address of this host.
async fn connect_from(
    source: Ipv4Addr,
    server: SocketAddr,
    credentials: &Credentials,
    alpn: &[u8],
) -> Result<Result<Connection, String>> {
    connect_as(source, server, tls(credentials, alpn)?).await
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

async fn connect_as(
    source: Ipv4Addr,
    server: SocketAddr,
    config: rustls::ClientConfig,
) -> Result<Result<Connection, String>> {
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

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_that_resumes_keeps_the_tickets_of_a_server_that_gives_some() {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let leaf =
            leaf_params(MeshId::from_bytes([1; 16])).expect("a name").self_signed(&key).expect("signs");
        let provider = Arc::new(ring::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], private(&key))
            .expect("fits");
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("fits QUIC");
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let server = runtime().expect("a runtime");
        let endpoint = server
            .block_on(async { Endpoint::server(config, "127.0.0.1:0".parse().expect("an address")) })
            .expect("binds");
        let address = endpoint.local_addr().expect("bound");
        let serving = std::thread::spawn(move || {
            server.block_on(async {
                let connection = endpoint.accept().await.expect("a client").await.expect("shakes hands");
                let (mut send, _recv) = connection.accept_bi().await.expect("a stream");
                send.write_all(b"hello").await.expect("writes");
                connection.closed().await;
            });
        });
        let client = Resuming::new(&Credentials::None, ALPN).expect("a client");
        assert!(client.talk(address).expect("talks").bytes > 0);
        assert!(client.tickets() > 0);
        serving.join().expect("served");
    }
}
