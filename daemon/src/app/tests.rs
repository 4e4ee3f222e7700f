//! Whole daemons in one process, over real sockets on loopback.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::config::{Config, Flags, Host, Slot};
use crate::identity::issuer::TokenRequest;
use crate::identity::{self, InitRequest, JoinRequest, Lifetimes, init, join};
use crate::register::{ExposeRequest, PortRequest};
use gossamer_core::callers::Owner;
use gossamer_wire::{Routing, Transport, Visibility};

const SOON: Duration = Duration::from_secs(15);

/// A running daemon.
struct Daemon {
    ready: Ready,
    stop: CancellationToken,
    at_once: CancellationToken,
    ended: JoinHandle<Result<(), RunError>>,
}

/// Settings of a daemon with a pool of its own; pools of other tests and of real daemons stay free.
fn settings(dir: &Path, pool: u8) -> Settings {
    let text = |path: &Path| path.display().to_string();
    let keys = vec![
        ("state_dir", text(&dir.join("state"))),
        ("socket", text(&dir.join("api.sock"))),
        ("vip.pool", format!("127.{pool}.0.0/16")),
    ];
    let flags = Flags { config: None, keys };
    let settings = Config::load(&flags, &Host::default()).expect("settings").settings(Slot::FIRST);
    let free = |ip: [u8; 4]| SocketAddr::from((ip, 0));
    Settings { listen: free([127, 0, 0, 1]), dns_address: Some(free([127, pool, 0, 53])), ..settings }
}

async fn start_daemon(settings: Settings, store: Store, identity: Identity) -> Daemon {
    let stop = CancellationToken::new();
    let (tell, ready) = oneshot::channel();
    let at_once = CancellationToken::new();
    let tell = |ready: &Ready| drop(tell.send(ready.clone()));
    let running = settings.clone();
    let start = Start { settings, again: Again::new(move || Ok(running.clone())), levels: None };
    let running = run(start, store, identity, tell, stop.clone(), at_once.clone());
    #[expect(clippy::disallowed_methods, reason = "a test runs daemons side by side")]
    let ended = tokio::spawn(running);
    let ready = timeout(SOON, ready).await.expect("in time").expect("starts");
    Daemon { ready, stop, at_once, ended }
}

impl Daemon {
    async fn first(dir: &TempDir, pool: u8) -> Self {
        let settings = settings(dir.path(), pool);
        let store = Store::open(&settings.state_dir).expect("opens");
        let request = InitRequest {
            mesh_name: "test".parse().expect("name"),
            group: "west".parse().expect("name"),
            node: "vm-a".parse().expect("name"),
            zone: None,
            region: None,
            lifetimes: Lifetimes::default(),
        };
        let identity = init(&store, &request).expect("makes");
        start_daemon(settings, store, identity).await
    }

    async fn second(&self, dir: &TempDir, pool: u8) -> Self {
        let request = TokenRequest {
            ttl: Duration::from_secs(60),
            uses: 1,
            group: None,
            node_pattern: None,
            claims: gossamer_wire::token::Claims::default(),
            addresses: Vec::new(),
        };
        let token = self.ready.issuer.create_token(request).await.expect("mints").token;
        let settings = settings(dir.path(), pool);
        let store = Store::open(&settings.state_dir).expect("opens");
        let request = JoinRequest { node: "vm-b".parse().expect("name"), zone: None, region: None };
        let identity = join(&store, &token, &request).await.expect("joins");
        start_daemon(settings, store, identity).await
    }

    /// Asks the daemon's DNS over UDP until it answers with an address.
    async fn address_of(&self, name: &str) -> Ipv4Addr {
        let ask = async {
            loop {
                if let Some(address) = ask(self.ready.about.dns, name).await {
                    return address;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, ask).await.expect("an answer")
    }

    /// Waits until a daemon that was told to stop takes no new flows.
    async fn leaves(&self) {
        while self.ready.relay.leaving().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(SOON, self.ended).await.expect("in time").expect("no panic").expect("no fault");
    }
}

/// Asks for the A record of a name; `None` when there is none.
async fn ask(server: SocketAddr, name: &str) -> Option<Ipv4Addr> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    socket.send_to(&query, server).await.expect("sends");
    let mut reply = [0; 512];
    let len = timeout(SOON, socket.recv(&mut reply)).await.expect("in time").expect("a reply");
    let answers = u16::from_be_bytes([reply[6], reply[7]]);
    // The address is the last record of these replies, unless an OPT followed; none was asked for.
    let octets: [u8; 4] = reply[..len].last_chunk().copied()?;
    (answers > 0).then(|| octets.into())
}

/// A program that greets first and then echoes.
async fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    #[expect(clippy::disallowed_methods, reason = "a test runs a server")]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"hello from b\n").await.expect("greets");
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    address
}

fn expose(port: u16) -> ExposeRequest {
    ExposeRequest {
        service: "orders".parse().expect("name"),
        instance: None,
        ports: vec![PortRequest {
            name: None,
            number: 7_432,
            target_port: Some(port),
            transport: Transport::Tcp,
        }],
        target: None,
        visibility: Visibility::Own,
        allow: Vec::new(),
        metadata: Vec::new(),
        fqdns: Vec::new(),
        weight: 100,
        routing: Routing::default(),
        proxy_protocol: false,
        owner: Owner::Operator,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_one_daemon_is_called_by_name_at_the_other() {
    let (dir_a, dir_b) = (tempfile::tempdir().expect("scratch"), tempfile::tempdir().expect("scratch"));
    let a = Daemon::first(&dir_a, 231).await;
    let b = a.second(&dir_b, 232).await;
    let target = greeter().await;
    let exposed = b.ready.registry.expose(expose(target.port())).await.expect("exposes");
    assert!(exposed.warnings.is_empty(), "{:?}", exposed.warnings);

    let vip = a.address_of("orders.mesh.internal").await;
    let mut stream =
        timeout(SOON, TcpStream::connect((vip, 7_432))).await.expect("in time").expect("connects");
    let mut greeting = [0; 13];
    timeout(SOON, stream.read_exact(&mut greeting)).await.expect("in time").expect("greets");
    assert_eq!(&greeting, b"hello from b\n");
    stream.write_all(b"ping").await.expect("writes");
    stream.shutdown().await.expect("half-closes");
    let mut rest = Vec::new();
    timeout(SOON, stream.read_to_end(&mut rest)).await.expect("in time").expect("reads");
    assert_eq!(rest, b"ping");

    // At home the same name takes the short cut, on the pool of that daemon.
    let vip = b.address_of("orders.mesh.internal").await;
    assert!(vip.octets()[1] == 232);
    b.stop().await;
    a.stop().await;
}

/// Opens a flow and reads its greeting.
async fn greeted(vip: Ipv4Addr) -> std::io::Result<TcpStream> {
    let mut stream = timeout(SOON, TcpStream::connect((vip, 7_432))).await.expect("in time")?;
    timeout(SOON, stream.read_exact(&mut [0; 13])).await.expect("in time")?;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_stops_lets_flows_end_and_takes_no_new_ones() {
    let (dir_a, dir_b) = (tempfile::tempdir().expect("scratch"), tempfile::tempdir().expect("scratch"));
    let a = Daemon::first(&dir_a, 237).await;
    let b = a.second(&dir_b, 238).await;
    let target = greeter().await;
    b.ready.registry.expose(expose(target.port())).await.expect("exposes");
    let vip = a.address_of("orders.mesh.internal").await;
    let mut flow = greeted(vip).await.expect("greeted");
    b.stop.cancel();
    b.leaves().await;
    assert!(greeted(vip).await.is_err(), "nobody else serves");
    assert!(!b.ended.is_finished());
    flow.write_all(b"ping").await.expect("writes");
    flow.shutdown().await.expect("half-closes");
    let mut rest = Vec::new();
    timeout(SOON, flow.read_to_end(&mut rest)).await.expect("in time").expect("a clean end");
    assert_eq!(rest, b"ping");
    timeout(SOON, b.ended).await.expect("in time").expect("no panic").expect("no fault");
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_is_told_twice_resets_its_flows() {
    let dir = tempfile::tempdir().expect("scratch");
    let a = Daemon::first(&dir, 239).await;
    let target = greeter().await;
    a.ready.registry.expose(expose(target.port())).await.expect("exposes");
    let mut flow = greeted(a.address_of("orders.mesh.internal").await).await.expect("greeted");
    a.stop.cancel();
    a.leaves().await;
    assert!(!a.ended.is_finished(), "it waits for the flow");
    a.at_once.cancel();
    let error = timeout(SOON, flow.read(&mut [0])).await.expect("in time").expect_err("no clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    timeout(SOON, a.ended).await.expect("in time").expect("no panic").expect("no fault");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_starts_alone_with_what_it_knew() {
    let (dir_a, dir_b) = (tempfile::tempdir().expect("scratch"), tempfile::tempdir().expect("scratch"));
    let a = Daemon::first(&dir_a, 233).await;
    let b = a.second(&dir_b, 234).await;
    let target = greeter().await;
    b.ready.registry.expose(expose(target.port())).await.expect("exposes");
    let before = a.address_of("orders.mesh.internal").await;
    a.stop().await;
    b.stop().await;

    let settings = settings(dir_a.path(), 233);
    let store = Store::open(&settings.state_dir).expect("opens");
    let identity = identity::load(&store).expect("reads").expect("there");
    let a = start_daemon(settings, store, identity).await;
    assert_eq!(a.address_of("orders.mesh.internal").await, before);
    a.stop().await;
}
