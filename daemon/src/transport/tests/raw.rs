//! A member by its certificate that speaks the protocol by hand, and so can break it.

use quinn::Connection;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use super::super::endpoint::{Endpoints, Opening, Udp, open};
use super::super::hello::{Greeted, Greeter, Greeting, read_frame};
use super::super::tls::{self, Side};
use super::*;

/// A member that does only what a test tells it.
pub(super) struct Raw {
    pub(super) identity: Identity,
    pub(super) trust: Trust,
    pub(super) live: Live,
    /// Knows what it was admitted with and learns nothing.
    authority: AuthorityHandle,
    pub(super) endpoints: Endpoints,
    pub(super) address: SocketAddr,
    _dir: TempDir,
}

impl Raw {
    /// Makes a member of the mesh of `issuer`.
    pub(super) async fn of(issuer: &Node, name: &str) -> Self {
        let (identity, dir) = issuer.member(name).await;
        Self::new(identity, dir)
    }

    /// Speaks as this member.
    pub(super) fn new(identity: Identity, dir: TempDir) -> Self {
        let trust = Arc::new(ArcSwap::from_pointee(identity.trust.clone()));
        let live: Live = Arc::new(ArcSwap::from_pointee(Credentials::of(&identity)));
        let (authority, _) = AuthorityHandle::new(&identity);
        let clock = Clock::default();
        let any = "127.0.0.1:0".parse().expect("address");
        let opening = Opening {
            udp: &Udp::Bind(any),
            side: Side { key: &identity.key, live: &live, trust: &trust, clock: &clock },
            reset_key: &[8; 64],
            clock: &clock,
            entropy: &Entropy::System,
        };
        let (endpoints, _) = open(&Stage::default(), &opening).expect("binds");
        let address = endpoints.endpoint.local_addr().expect("bound");
        Self { identity, trust, live, authority, endpoints, address, _dir: dir }
    }

    /// Completes a handshake and says nothing.
    pub(super) async fn shake_hands(&self, to: SocketAddr) -> Connection {
        let config = self.endpoints.control.clone();
        let dial = self.endpoints.endpoint.connect_with(config, to, "test").expect("dials");
        timeout(SOON, dial).await.expect("in time").expect("connects")
    }

    /// Dials and greets, as a process with this nonce.
    pub(super) async fn dial(&self, to: SocketAddr, purpose: Purpose, nonce: u64) -> Greeted {
        let connection = self.shake_hands(to).await;
        let greeter = self.greeter(nonce);
        timeout(SOON, greeter.greet(connection.into(), purpose)).await.expect("in time").expect("greets")
    }

    /// Greets on a connection, as a process with the nonce 1.
    pub(super) async fn greet(&self, connection: Connection, purpose: Purpose) -> Greeted {
        let greeter = self.greeter(1);
        timeout(SOON, greeter.greet(connection.into(), purpose)).await.expect("in time").expect("greets")
    }

    /// Greets on a connection that the other side closes for it, and returns its code. The answer to the hello may be seen
    /// before that or not.
    pub(super) async fn refused(&self, connection: &Connection, purpose: Purpose, nonce: u64) -> u32 {
        let greeter = self.greeter(nonce);
        let _answer =
            timeout(SOON, greeter.greet(connection.clone().into(), purpose)).await.expect("in time");
        close_code(connection).await
    }

    /// Takes a connection that comes in, without its hello.
    pub(super) async fn accept(&self) -> Connection {
        let incoming = timeout(SOON, self.endpoints.endpoint.accept()).await.expect("in time");
        incoming.expect("open").accept().expect("accepts").await.expect("connects")
    }

    /// Answers the hello of a connection.
    pub(super) async fn answer(&self, connection: Connection, nonce: u64) -> Greeted {
        let greeter = self.greeter(nonce);
        timeout(SOON, greeter.answer(connection.into())).await.expect("in time").expect("greets")
    }

    /// Dials with TLS settings of its own; `None` when the other side does not take the connection.
    pub(super) async fn dial_with(&self, to: SocketAddr, tls: ClientConfig) -> Option<Connection> {
        let dial = begin(&self.endpoints.endpoint, to, tls);
        timeout(SOON, dial).await.expect("in time").ok()
    }

    fn greeter(&self, nonce: u64) -> Greeter {
        let authority = self.authority.clone();
        let exchanges = Arc::new(Semaphore::new(1));
        let (trust, greeting) = (Arc::clone(&self.trust), Greeting::default());
        Greeter { trust, clock: Clock::default(), authority, exchanges, greeting, nonce }
    }

    /// Returns the TLS settings of an honest member, to be changed.
    pub(super) fn tls(&self) -> ClientConfig {
        let Self { identity, live, trust, .. } = self;
        let clock = Clock::default();
        tls::client(&Side { key: &identity.key, live, trust, clock: &clock }).expect("settings")
    }
}

/// Returns the connection over UDP of a greeting.
pub(super) fn quic(greeted: &Greeted) -> Connection {
    match &greeted.connection {
        super::Connection::Quic(connection) => connection.clone(),
        super::Connection::Lane(_) => panic!("it was dialled over UDP"),
    }
}

/// Begins to dial with these TLS settings.
pub(super) fn begin(from: &quinn::Endpoint, to: SocketAddr, tls: ClientConfig) -> quinn::Connecting {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
    from.connect_with(quinn::ClientConfig::new(Arc::new(crypto)), to, "test").expect("dials")
}

/// Returns the code with which the other side closes a connection.
pub(super) async fn close_code(connection: &(impl Clone + Into<super::Connection>)) -> u32 {
    let connection: super::Connection = connection.clone().into();
    match timeout(SOON, connection.closed()).await.expect("closed in time") {
        quinn::ConnectionError::ApplicationClosed(close) => {
            close.error_code.into_inner().try_into().expect("a code of ours")
        }
        other => panic!("closed without a reason: {other}"),
    }
}

/// Reads frames until one is of the kind that is looked for.
pub(super) async fn frame_where(greeted: &mut Greeted, is_it: impl Fn(&Frame) -> bool) -> Frame {
    let read = async {
        loop {
            if let Some(frame) = read_frame(&mut greeted.recv).await.expect("an open stream")
                && is_it(&frame)
            {
                return frame;
            }
        }
    };
    timeout(SOON, read).await.expect("a frame")
}

/// Shows no certificate.
#[derive(Debug)]
pub(super) struct Anonymous;

impl ResolvesClientCert for Anonymous {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
