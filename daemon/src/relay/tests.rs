//! What tests of the relay share: views, targets, and pairs of QUIC streams on loopback.

use std::collections::VecDeque;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gossamer_core::access::{Access, Policy};
use gossamer_core::catalog::{InstanceState, InstanceView, Nearness, ServiceView};
use gossamer_core::trust::Leaf;
use gossamer_wire::token::Claims;
use gossamer_wire::{
    GroupName, Health, InstanceName, MeshId, NodeId, Port, PortName, Routing, ServiceName, ServiceRecord,
    Transport, Tries, Visibility,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{LiveRoutes, LocalTargets, OpenHop, Opening, Relay, RelayParts};
use crate::events::EventLog;
use crate::index::IndexWriter;
use crate::register::{DenyList, LocalService, Target};
use crate::supervise::Stage;
use crate::transport::{
    Credits, Datagrams, Demand, FlowCredit, FlowLease, FlowStream, OpenError, data_settings,
};

/// This node in all tests.
pub(crate) const HERE: NodeId = NodeId::from_bytes([1; 16]);
/// Another one.
pub(crate) const THERE: NodeId = NodeId::from_bytes([2; 16]);

pub(crate) fn service(text: &str) -> ServiceName {
    text.parse().expect("name")
}

pub(crate) fn group(text: &str) -> GroupName {
    text.parse().expect("name")
}

/// A usable instance with TCP port 5432 on another node.
pub(crate) fn instance(name: &str, group: &str) -> InstanceView {
    InstanceView {
        node: THERE,
        node_name: "there".parse().expect("name"),
        group: self::group(group),
        instance: name.parse().expect("name"),
        ports: vec![Port { name: 5432.into(), number: 5432, transport: Transport::Tcp }],
        weight: 100,
        draining: false,
        routing: Routing::default(),
        health: Health::Passing,
        state: InstanceState::Usable,
        nearness: Nearness::Group,
        in_zone: false,
        in_region: false,
        addresses: Vec::new(),
        metadata: Vec::new(),
        tries: Tries::default(),
        visible: true,
        imported: true,
        rank: 0,
        fqdns: Vec::new(),
        stale: false,
    }
}

pub(crate) fn service_view(name: &str, instances: Vec<InstanceView>) -> ServiceView {
    ServiceView { service: service(name), instances, hidden: Vec::new() }
}

/// An instance of this node called by `port`, whose program is at `addr`.
pub(crate) fn local_service(name: &str, instance: &str, port: u16, addr: SocketAddr) -> LocalService {
    let visibility = Visibility::Own;
    LocalService {
        record: ServiceRecord {
            service: service(name),
            instance: instance.parse().expect("name"),
            ports: vec![Port { name: port.into(), number: port, transport: Transport::Tcp }],
            visibility: visibility.clone(),
            health: Health::Passing,
            weight: 100,
            draining: false,
            routing: Routing::default(),
            tries: Tries::default(),
            metadata: Vec::new(),
            fqdns: Vec::new(),
        },
        targets: vec![Target {
            addr: addr.into(),
            transport: Transport::Tcp,
            port,
            healthy: true,
            trouble: None,
            proxy_protocol: false,
            access: access(visibility, &[], Policy::default()),
            draining: false,
            wildcard: None,
        }],
        drains_until: None,
    }
}

/// The registered services of a test, which may change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets(Arc<Mutex<Arc<Vec<LocalService>>>>, watch::Sender<()>);

impl Targets {
    pub(crate) fn set(&self, services: Vec<LocalService>) {
        *self.0.lock().expect("not poisoned") = Arc::new(services);
        self.1.send_replace(());
    }
}

/// Targets of the deny list, for one that was registered under other rules.
pub(crate) const DENIED: [&str; 8] = [
    "127.0.0.1:4677",
    "127.240.7.7:5432",
    "169.254.169.254:80",
    "[::ffff:169.254.169.254]:80",
    "[fd00:ec2::254]:80",
    "224.0.0.1:80",
    "0.0.0.0:80",
    "255.255.255.255:80",
];

/// Who may call a target.
pub(crate) fn access(visibility: Visibility, allow: &[&str], policy: Policy) -> Arc<Access> {
    let allow = allow.iter().map(|text| text.parse().expect(text)).collect();
    Arc::new(Access { visibility, allow, policy })
}

impl LocalTargets for Targets {
    fn lookup(
        &self,
        service: &ServiceName,
        instance: &InstanceName,
        port: &PortName,
        transport: Transport,
    ) -> Option<Target> {
        let all = self.all();
        let local = all.iter().find(|l| l.record.service == *service && l.record.instance == *instance)?;
        let at = local
            .record
            .ports
            .iter()
            .position(|known| known.name == *port && known.transport == transport)?;
        local.targets.get(at).cloned()
    }

    fn all(&self) -> Arc<Vec<LocalService>> {
        Arc::clone(&self.0.lock().expect("not poisoned"))
    }

    fn access_changes(&self) -> watch::Receiver<()> {
        self.1.subscribe()
    }
}

/// A relay with everything around it.
pub(crate) struct Bench {
    pub(crate) relay: Relay,
    pub(crate) index: IndexWriter,
    pub(crate) targets: Targets,
    pub(crate) routes: LiveRoutes,
    pub(crate) stage: Stage,
}

impl Bench {
    /// Makes the relay of `node`, of group `west`.
    pub(crate) fn new(node: NodeId, hops: Arc<dyn OpenHop>) -> Self {
        Self::with_leaf(node, hops, |_| {})
    }

    /// As [`Self::new`], with another certificate.
    pub(crate) fn with_leaf(node: NodeId, hops: Arc<dyn OpenHop>, change: impl FnOnce(&mut Leaf)) -> Self {
        let mut own = leaf(node, "west");
        change(&mut own);
        let (index, targets, stage) = (IndexWriter::default(), Targets::default(), Stage::default());
        let routes = LiveRoutes::default();
        let own_port = SocketAddr::from(([0, 0, 0, 0], 4677));
        let relay = Relay::new(RelayParts {
            stage: stage.clone(),
            node,
            name: "here".parse().expect("name"),
            group: group("west"),
            leaf: Arc::new(own),
            mesh: MeshId::from_bytes([7; 16]),
            index: index.reader(),
            routes: routes.clone(),
            targets: Arc::new(targets.clone()),
            deny: DenyList::new(vec![own_port], Ipv4Addr::new(127, 240, 0, 0), 16)
                .with_files(vec!["/run/gossamer".into()]),
            hops,
            events: EventLog::default(),
        });
        Self { relay, index, targets, routes, stage }
    }

    pub(crate) fn set_service(&mut self, view: ServiceView) {
        self.index.set_service(&view.service.clone(), Some(view));
    }
}

/// Two connected QUIC endpoints on loopback.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) near: quinn::Connection,
    pub(crate) far: quinn::Connection,
    /// Those of both ends; read once [`Link::serve`] was called.
    pub(crate) datagrams: [Datagrams; 2],
    /// Those of both ends, when its flows have limits of their own.
    pub(crate) credits: Option<[Credits; 2]>,
    /// Keep the endpoints and what runs beside them alive.
    _kept: ([quinn::Endpoint; 2], JoinSet<()>),
}

impl Link {
    pub(crate) async fn new() -> Self {
        let settings = [quinn::TransportConfig::default(), quinn::TransportConfig::default()];
        Self::over(None, settings).await
    }

    /// As data connections are, with credit. A packet takes `delay` each way.
    pub(crate) async fn credited(delay: Option<Duration>) -> Self {
        let settings = [data_settings(), data_settings()].map(|mut settings| {
            settings.keep_alive_interval(Some(Duration::from_secs(1)));
            settings
        });
        let mut link = Self::over(delay, settings).await;
        let credits = [&link.near, &link.far].map(|end| Credits::alone(end.clone()));
        for credits in credits.clone() {
            link._kept.1.spawn(async move { credits.run().await });
        }
        link.credits = Some(credits);
        link
    }

    async fn over(delay: Option<Duration>, settings: [quinn::TransportConfig; 2]) -> Self {
        let [of_client, of_server] = settings.map(Arc::new);
        let key = rcgen::generate_simple_self_signed(vec!["test".to_owned()]).expect("certificate");
        let der = CertificateDer::from(key.cert);
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).expect("key");
        let mut server = quinn::ServerConfig::with_single_cert(vec![der.clone()], private).expect("server");
        server.transport_config(of_server);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der).expect("root");
        let mut client = quinn::ClientConfig::with_root_certificates(Arc::new(roots)).expect("client");
        client.transport_config(of_client);
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listening = quinn::Endpoint::server(server, any).expect("bound");
        let dialling = quinn::Endpoint::client(any).expect("bound");
        let mut aside = JoinSet::new();
        let mut address = listening.local_addr().expect("bound");
        if let Some(delay) = delay {
            address = road(&mut aside, address, delay);
        }
        let dialled = dialling.connect_with(client, address, "test").expect("valid");
        let accepted = async { listening.accept().await.expect("open").await };
        let (near, far) = tokio::try_join!(dialled, accepted).expect("handshake");
        let datagrams = [Datagrams::new(near.clone()), Datagrams::new(far.clone())];
        Self { near, far, datagrams, credits: None, _kept: ([listening, dialling], aside) }
    }

    /// Opens a stream from the near end; the far end sees it when something was written.
    pub(crate) async fn open(&self) -> FlowStream {
        let (send, recv) = self.near.open_bi().await.expect("open");
        flow_stream(send, recv, leaf(THERE, "west"), self.of(0))
    }

    /// Accepts a stream at the far end, as from a node of `group`.
    pub(crate) async fn accept(&self, group: &str) -> FlowStream {
        let (send, recv) = self.far.accept_bi().await.expect("open");
        flow_stream(send, recv, leaf(HERE, group), self.of(1))
    }

    fn of(&self, end: usize) -> (&Datagrams, Option<&Credits>) {
        (&self.datagrams[end], self.credits.as_ref().map(|credits| &credits[end]))
    }

    /// Hands every stream of the near end to a relay at the far end.
    pub(crate) fn serve(self: &Arc<Self>, stage: &Stage, group: &'static str) -> mpsc::Receiver<FlowStream> {
        let (streams, served) = mpsc::channel(8);
        for datagrams in self.datagrams.clone() {
            stage.spawn_short("datagrams", async move { datagrams.run(|| {}).await });
        }
        let link = Arc::clone(self);
        stage.spawn_short("link", async move {
            while let Ok((send, recv)) = link.far.accept_bi().await {
                let stream = flow_stream(send, recv, leaf(HERE, group), link.of(1));
                if streams.send(stream).await.is_err() {
                    return;
                }
            }
        });
        served
    }
}

fn flow_stream(
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    leaf: Leaf,
    (datagrams, credits): (&Datagrams, Option<&Credits>),
) -> FlowStream {
    let datagrams = datagrams.clone();
    let credit = credits.map_or_else(FlowCredit::default, |credits| credits.flow(send.id()));
    let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 4677));
    let demand = Demand::default();
    let (peer, lease, credit) = (Arc::new(leaf), FlowLease::default(), Box::new(credit));
    let (send, recv) = (send.into(), recv.into());
    FlowStream { peer, remote, send, recv, datagrams, demand, credit, lease }
}

/// Carries datagrams to an address and back, each `delay` later. Returns where it is entered.
fn road(tasks: &mut JoinSet<()>, to: SocketAddr, delay: Duration) -> SocketAddr {
    let [entry, exit] = [(); 2].map(|()| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).expect("socket");
        let _ = socket.set_recv_buffer_size(4 << 20);
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("free");
        socket.set_nonblocking(true).expect("option");
        tokio::net::UdpSocket::from_std(socket.into()).expect("socket")
    });
    let entered = entry.local_addr().expect("bound");
    tasks.spawn(async move {
        let (mut from, mut under_way) = (None, VecDeque::new());
        let (mut there, mut back) = (vec![0; 2_048], vec![0; 2_048]);
        loop {
            let due = under_way.front().map(|(at, _, _)| *at);
            tokio::select! {
                Ok((len, address)) = entry.recv_from(&mut there) => {
                    from = Some(address);
                    under_way.push_back((Instant::now() + delay, true, there[..len].to_vec()));
                }
                Ok((len, _)) = exit.recv_from(&mut back) => {
                    under_way.push_back((Instant::now() + delay, false, back[..len].to_vec()));
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let Some((_, is_there, bytes)) = under_way.pop_front() else { continue };
                    let sent = match (is_there, from) {
                        (true, _) => exit.send_to(&bytes, to).await,
                        (false, Some(from)) => entry.send_to(&bytes, from).await,
                        (false, None) => continue,
                    };
                    // A full socket drops, as a road does.
                    let _ = sent;
                }
            }
        }
    });
    entered
}

pub(crate) fn leaf(node: NodeId, group: &str) -> Leaf {
    Leaf {
        node,
        name: "peer".parse().expect("name"),
        group: self::group(group),
        claims: Claims::default(),
        public_key: [0; 32],
        not_after: u64::MAX,
        skew: 300,
        issuer: None,
    }
}

/// Opens every flow on one link; `None` reaches nobody.
pub(crate) struct Hops(pub(crate) Option<Arc<Link>>);

impl fmt::Debug for Hops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hops")
    }
}

impl OpenHop for Hops {
    fn open_flow(&self, _: NodeId) -> Opening<'_> {
        Box::pin(async {
            match &self.0 {
                Some(link) => Ok(link.open().await),
                None => Err(OpenError::Unreachable),
            }
        })
    }

    fn open_lane(&self, node: NodeId) -> Opening<'_> {
        self.open_flow(node)
    }

    fn open_kept(&self, node: NodeId) -> Opening<'_> {
        self.open_flow(node)
    }

    fn take_circuit(&self, _: FlowStream, _: crate::transport::Led) {}
}

/// Two ends of a TCP connection on loopback: the program's and ours.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let (program, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (program.expect("connected"), accepted.expect("accepted").0)
}

/// A program that greets first, then echoes until the client ends, then says goodbye.
pub(crate) async fn greeter(stage: &Stage) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let clients = stage.clone();
    stage.spawn_short("greeter", async move {
        while let Ok((client, _)) = listener.accept().await {
            clients.spawn_short("greeted", greet(client));
        }
    });
    address
}

async fn greet(mut client: TcpStream) {
    client.write_all(b"hello ").await.expect("written");
    let mut said = Vec::new();
    if client.read_to_end(&mut said).await.is_ok() {
        client.write_all(&said).await.expect("written");
        client.write_all(b" bye").await.expect("written");
    }
}

/// Runs something beside the test.
pub(crate) fn aside<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Aside<T> {
    let mut tasks = JoinSet::new();
    tasks.spawn(future);
    Aside(tasks)
}

/// What runs beside a test; stopped when it is dropped.
pub(crate) struct Aside<T>(JoinSet<T>);

impl<T: Send + 'static> Aside<T> {
    pub(crate) async fn end(mut self) -> T {
        self.0.join_next().await.expect("one task").expect("no panic")
    }
}

/// An instance name.
pub(crate) fn named(text: &str) -> InstanceName {
    text.parse().expect("name")
}
