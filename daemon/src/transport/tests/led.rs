//! Joiners who reach only a relay, between real daemons on loopback.

use gossamer_core::strangers::{MAX_STRANGER_BYTES, MAX_STRANGERS_PER_SOURCE};
use gossamer_wire::Address;
use gossamer_wire::circuit::{CIRCUIT_BYTES, CircuitOpen};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::circuits::relay_of;
use super::*;

/// An issuer, a relay that has a connection with it, and what sorts the issuer's streams.
struct Led {
    a: Node,
    r: Node,
    _tasks: JoinSet<()>,
}

impl Led {
    async fn new() -> Self {
        let mut a = first_node();
        let mut r = relay_of(&a).await;
        let (of_a, of_r) = (Arc::clone(&a.identity), Arc::clone(&r.identity));
        tokio::join!(a.connected_to(&of_r), r.connected_to(&of_a));
        // Statements travel after the greeting.
        until(|| r.live.load().issuers.iter().any(|issuer| issuer.node == Some(of_a.node()))).await;
        let mut tasks = JoinSet::new();
        let (_closed, flows) = mpsc::channel(1);
        tasks.spawn(sort(std::mem::replace(&mut a.flows, flows), a.peers.clone()));
        Self { a, r, _tasks: tasks }
    }

    /// A token of the issuer that leads to the relay alone.
    async fn token(&self, uses: u32) -> Token {
        let request =
            TokenRequest { uses, addresses: vec![Address::Port(self.r.address)], ..token_request() };
        self.a.issuer.create_token(request).await.expect("mints").token
    }

    fn counted(&self, outcome: &str) -> u64 {
        let line = format!("gossamer_joiners_led_total{{outcome=\"{outcome}\"}} ");
        let page = self.r.metrics.render();
        page.lines().find_map(|row| row.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    }

    /// Begins as a joiner does that asks for this name, and goes no further.
    async fn begin(&self, name: &str, protocol: &[u8]) -> TcpStream {
        let mut config = tls::joiner(self.a.identity.mesh, [0; 32], None).expect("a configuration of TLS");
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut tls = rustls::ClientConnection::new(Arc::new(config), name).expect("a connection");
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).expect("written");
        let mut stream = TcpStream::connect(self.r.address).await.expect("connects");
        stream.write_all(&hello).await.expect("written");
        stream
    }

    fn issuer_name(&self) -> String {
        let live = self.a.live.load();
        server_name(live.issuer.as_ref().map(|issuer| issuer.id()), self.a.identity.mesh)
    }
}

/// Hands what a relay leads here to the transport, as the relay module does.
async fn sort(mut arrived: mpsc::Receiver<FlowStream>, peers: Peers) {
    while let Some(mut stream) = arrived.recv().await {
        let mut record = [0; CIRCUIT_BYTES];
        stream.recv.read_exact(&mut record).await.expect("a record");
        let (prefix, id) = record.split_first_chunk().expect("a prefix");
        match CircuitOpen::decode(*prefix, id.try_into().expect("an id")) {
            Ok(CircuitOpen::Stranger(source)) => {
                peers.take_circuit(stream, crate::transport::Led::Stranger(source))
            }
            other => panic!("no stranger: {other:?}"),
        }
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, wait).await.expect("in time");
}

#[tokio::test]
async fn who_reaches_only_a_relay_joins_at_the_issuer_behind_it() {
    let led = Led::new().await;
    for (uses, name) in [(1, "vm-b"), (2, "vm-c")] {
        let dir = tempfile::tempdir().expect("scratch");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        let joined = join(&store, &led.token(uses).await, &request(name)).await.expect("joins");
        assert_eq!(joined.mesh, led.a.identity.mesh);
        assert!(!joined.by_lane, "UDP works: another answered there");
        let issuer = joined.seeds.first().expect("the issuer");
        assert_eq!(issuer.node, led.a.identity.node());
        assert!(!issuer.addresses.contains(&led.r.address), "that is where the relay is");
    }
    until(|| led.counted("ended") + led.counted("broken") == 2).await;
    assert_eq!(led.counted("begun"), 2);
    assert!(led.a.metrics.render().contains("gossamer_joins_total{outcome=\"admitted\"} 3"));
}

#[tokio::test]
async fn a_relay_leads_to_connected_issuers_only_and_joiners_only() {
    let led = Led::new().await;
    let mesh = led.a.identity.mesh;
    let relay = led.r.identity.node();
    // A node that is no issuer, nobody, the relay itself.
    for name in [Some(led.a.identity.node()), Some(NodeId::from_bytes([9; 16])), Some(relay)] {
        let mut stream = led.begin(&server_name(name, mesh), gossamer_wire::join::ALPN).await;
        let mut said = Vec::new();
        timeout(SOON, stream.read_to_end(&mut said)).await.expect("in time").expect("an alert");
        assert_eq!(said, [21, 3, 3, 0, 2, 2, 112], "unrecognized_name");
    }
    assert_eq!(led.counted("no_issuer"), 3);
    let mut stream = led.begin(&led.issuer_name(), b"gossamer-lane/1").await;
    assert!(!matches!(timeout(SOON, stream.read(&mut [0; 8])).await.expect("hung up"), Ok(1..)));
    assert_eq!(led.counted("begun"), 0);

    // Its connection with the issuer has gone.
    let grant = led.token(1).await.grant().clone();
    led.a.stage.stop(SOON).await;
    until(|| led.r.peers.is_lane(led.a.identity.node()).is_none()).await;
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let token = Token::build(grant, |_| [0; 64]).expect("fits");
    let failed = join(&store, &token, &request("vm-b")).await.expect_err("nobody is there").to_string();
    let expected = format!("tcp {} (it says: who is asked for has no connection with it)", led.r.address);
    assert!(failed.contains(&expected) && failed.contains("is unused"), "{failed}");
}

#[tokio::test]
async fn a_stranger_has_few_at_once_and_few_bytes() {
    let led = Led::new().await;
    let name = led.issuer_name();
    let mut open = Vec::new();
    for _ in 0..MAX_STRANGERS_PER_SOURCE {
        open.push(led.begin(&name, gossamer_wire::join::ALPN).await);
    }
    until(|| led.counted("begun") == MAX_STRANGERS_PER_SOURCE as u64).await;
    let mut refused = led.begin(&name, gossamer_wire::join::ALPN).await;
    let mut said = Vec::new();
    timeout(SOON, refused.read_to_end(&mut said)).await.expect("in time").expect("an alert");
    assert_eq!(said, [21, 3, 3, 0, 2, 2, 80], "internal_error");
    assert_eq!(led.counted("per_source"), 1);

    // The issuer hangs up on nonsense, or the relay on too much of it; the streams before it go on.
    let mut flooding = open.pop().expect("one");
    let flood = vec![0; MAX_STRANGER_BYTES as usize * 2];
    let _ = timeout(SOON, flooding.write_all(&flood)).await.expect("taken or refused");
    until(|| led.counted("excess") + led.counted("broken") + led.counted("ended") == 1).await;
    let mut again = led.begin(&name, gossamer_wire::join::ALPN).await;
    assert_eq!(again.read_u8().await.expect("the issuer answers"), 22, "a handshake record");
}

#[tokio::test]
async fn a_member_without_the_role_leads_nobody() {
    let mut a = first_node();
    let mut b = a.join("vm-b").await;
    let (of_a, of_b) = (Arc::clone(&a.identity), Arc::clone(&b.identity));
    tokio::join!(a.connected_to(&of_b), b.connected_to(&of_a));
    let asked = TokenRequest { addresses: vec![Address::Port(b.address)], ..token_request() };
    let token = a.issuer.create_token(asked).await.expect("mints").token;
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    let failed = join(&store, &token, &request("vm-c")).await.expect_err("nobody admits there");
    assert!(matches!(failed, JoinError::Unreachable { .. }), "{failed}");
    assert!(!b.metrics.render().contains("gossamer_joiners_led_total{"));
}
