//! The owner with real listeners: each state of a port, release, retry, closing.

use super::*;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use gossamer_dns::{Basis, Subject};
use gossamer_wire::{Port, Transport};

use crate::index::IndexWriter;
use crate::register::LocalService;
use crate::relay::spare::Spare;
use crate::relay::tests::{Targets, group, instance, local_service, named, service, service_view};

const MESH: MeshId = MeshId::from_bytes([3; 16]);

/// Looks often, so that tests need not wait.
const PACE: Pace = Pace { tick: Duration::from_millis(10), sweep_ticks: 3 };

/// VIPs of a node of group `west` with one service `orders`; clients are greeted with the name.
struct Host {
    vips: Vips,
    index: IndexWriter,
    targets: Targets,
    stage: Stage,
    counters: Arc<RelayCounters>,
    raised: mpsc::Receiver<Vec<Raise>>,
}

impl Host {
    /// Each test has a pool of its own, so that tests do not meet.
    fn new(pool: u8) -> Self {
        Self::in_mode(pool, Mode::Bind)
    }

    fn in_mode(pool: u8, mode: Mode) -> Self {
        let (index, targets, stage) = (IndexWriter::default(), Targets::default(), Stage::default());
        let counters = Arc::new(RelayCounters::default());
        let (raises, raised) = mpsc::channel(1);
        let parts = VipsParts {
            stage: stage.clone(),
            mesh: MESH,
            pool: Pool::new(Ipv4Addr::new(127, 251, pool * 16, 0), 20).expect("aligned"),
            mode,
            redirect: None,
            events: EventLog::default(),
            clients: Clients::default(),
            group: group("west"),
            index: index.reader(),
            targets: Arc::new(targets.clone()),
            raises,
        };
        let flows = stage.clone();
        let greet = move |mut client: TcpStream, name: VipName, port: u16| {
            flows.spawn_short("greet", async move {
                let _ = client.write_all(format!("{name}:{port}").as_bytes()).await;
            });
        };
        let receiving = stage.clone();
        // Answers each datagram with the name and port it came for.
        let receive = move |socket: tokio::net::UdpSocket, name: VipName, port: u16, _: Arc<Usage>| {
            Receiving::start(&receiving, move |stop| async move {
                let mut buffer = [0; 64];
                let answer = format!("{name}:{port}");
                while let Some(Ok((_, from))) = stop.run_until_cancelled(socket.recv_from(&mut buffer)).await
                {
                    let _ = socket.send_to(answer.as_bytes(), from).await;
                }
            })
        };
        let (began, receive) = (Instant::now(), Arc::new(receive));
        let vips =
            Vips::start_with(parts, (Arc::clone(&counters), Spare::default()), began, PACE, greet, receive);
        Self { vips, index, targets, stage, counters, raised }
    }

    /// Offers `orders` by a remote instance on this port.
    fn offer(&mut self, ports: &[u16]) {
        let mut remote = instance("db-9", "west");
        let port = |number: &u16| Port { name: (*number).into(), number: *number, transport: Transport::Tcp };
        remote.ports = ports.iter().map(port).collect();
        self.index.set_service(&service("orders"), Some(service_view("orders", vec![remote])));
    }

    async fn open(&self) -> VipAnswer {
        self.vips.open(&orders()).await;
        self.answer()
    }

    fn answer(&self) -> VipAnswer {
        let view = self.vips.shared.index.service(&service("orders")).expect("offered");
        self.vips.answer(&view, &orders())
    }

    fn basis(&self) -> Basis {
        self.index.reader().revisions().basis(Subject::Service(&service("orders")))
    }

    fn is_current(&self, basis: Basis) -> bool {
        self.index.reader().revisions().is_current(basis)
    }

    fn address(&self) -> Ipv4Addr {
        let VipAnswer::Address(address) = self.answer() else { panic!("blocked") };
        address
    }

    fn state(&self, port: u16) -> Option<PortState> {
        self.vips.ports().into_iter().find(|found| found.address.port() == port).map(|found| found.state)
    }

    /// Waits until a port has a state.
    async fn becomes(&self, port: u16, state: &PortState) {
        let wait = async {
            while self.state(port).as_ref() != Some(state) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = timeout(Duration::from_secs(15), wait).await;
        assert!(seen.is_ok(), "it is {:?} and not {state:?}", self.state(port));
    }
}

fn orders() -> VipName {
    VipName::Service(service("orders"))
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = StdListener::bind("0.0.0.0:0").expect("free");
    listener.local_addr().expect("bound").port()
}

fn wildcard() -> (StdListener, u16) {
    let listener = StdListener::bind("0.0.0.0:0").expect("free");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

fn own_program() -> Option<String> {
    std::fs::read_to_string("/proc/self/comm").ok().map(|name| name.trim().to_owned())
}

fn local(port: u16) -> LocalService {
    local_service("orders", "db-0", port, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

async fn greeting(address: Ipv4Addr, port: u16) -> String {
    let mut client = TcpStream::connect((address, port)).await.expect("accepted");
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("read");
    text
}

#[tokio::test]
async fn nothing_is_listened_on_before_a_name_is_used() {
    let (mut host, port) = (Host::new(0), free_port());
    host.offer(&[port]);
    let address = host.address();
    assert!(TcpStream::connect((address, port)).await.is_err());
    assert!(host.vips.ports().is_empty());

    assert_eq!(host.open().await, VipAnswer::Address(address));
    assert_eq!(host.state(port), Some(PortState::Bound));
    assert_eq!(greeting(address, port).await, format!("orders:{port}"));
    assert_eq!(host.vips.pointer(address), Some(orders()));
}

#[tokio::test]
async fn every_tcp_port_is_listened_on() {
    let (mut host, ports) = (Host::new(1), [free_port(), free_port()]);
    host.offer(&ports);
    host.open().await;
    for port in ports {
        assert_eq!(greeting(host.address(), port).await, format!("orders:{port}"));
    }
    host.offer(&ports[..1]);
    host.open().await;
    assert_eq!(host.vips.ports().len(), 1);
    assert!(TcpStream::connect((host.address(), ports[1])).await.is_err());
}

#[tokio::test]
async fn a_name_that_does_not_exist_opens_nothing() {
    let host = Host::new(2);
    host.vips.open(&orders()).await;
    assert!(host.vips.ports().is_empty());
}

#[tokio::test]
async fn a_port_of_another_program_silences_the_name_and_names_the_program() {
    let mut host = Host::new(3);
    let (program, port) = wildcard();
    host.offer(&[port]);
    let VipAnswer::Blocked(reason) = host.open().await else { panic!("the name is answered") };
    assert!(reason.contains(&port.to_string()), "{reason}");
    assert!(reason.contains(&own_program().expect("readable")), "{reason}");
    assert!(
        reason.find("forward").is_some_and(|at| at < 120),
        "the way out is in the first 120 bytes: {reason}"
    );
    assert_eq!(host.state(port), Some(PortState::Stolen { program: own_program() }));

    let silenced = host.basis();
    drop(program);
    host.becomes(port, &PortState::Bound).await;
    assert!(!host.is_current(silenced), "a kept answer ends with the state of the port");
    assert_eq!(greeting(host.address(), port).await, format!("orders:{port}"));
}

#[tokio::test]
async fn the_services_own_healthy_instance_keeps_the_port() {
    let mut host = Host::new(4);
    let (program, port) = wildcard();
    host.offer(&[port]);
    host.targets.set(vec![local(port)]);
    assert!(matches!(host.open().await, VipAnswer::Address(_)));
    assert_eq!(host.state(port), Some(PortState::Native));

    let mut failing = local(port);
    failing.targets[0].healthy = false;
    host.targets.set(vec![failing]);
    host.becomes(port, &PortState::Stolen { program: own_program() }).await;
    assert!(matches!(host.answer(), VipAnswer::Blocked(_)));
    drop(program);
}

#[tokio::test]
async fn a_program_that_waits_for_a_header_is_not_left_to_clients_without_one() {
    let mut host = Host::new(4);
    let (_program, port) = wildcard();
    host.offer(&[port]);
    let mut told = local(port);
    told.targets[0].proxy_protocol = true;
    host.targets.set(vec![told]);
    assert!(matches!(host.open().await, VipAnswer::Blocked(_)));
    assert_eq!(host.state(port), Some(PortState::Stolen { program: own_program() }));
}

#[tokio::test]
async fn an_instance_name_of_elsewhere_is_not_native_here() {
    let mut host = Host::new(5);
    let (_program, port) = wildcard();
    host.offer(&[port]);
    host.targets.set(vec![local(port)]);
    let other = VipName::Instance(service("orders"), group("west"), named("db-9"));
    host.vips.open(&other).await;
    assert_eq!(host.state(port), Some(PortState::Stolen { program: own_program() }));
}

#[tokio::test]
async fn a_registration_frees_the_port_so_that_its_program_can_start() {
    let (mut host, port) = (Host::new(6), free_port());
    host.offer(&[port]);
    host.open().await;
    assert_eq!(host.state(port), Some(PortState::Bound));
    assert!(StdListener::bind(("0.0.0.0", port)).is_err(), "our listener is in its way");

    host.targets.set(vec![local(port)]);
    host.becomes(port, &PortState::Waiting).await;
    let program = StdListener::bind(("0.0.0.0", port)).expect("the port is free");
    host.becomes(port, &PortState::Native).await;
    // It restarts: its port stays free.
    drop(program);
    let mut seen = local(port);
    seen.targets[0].wildcard = Some(true);
    host.targets.set(vec![seen]);
    host.becomes(port, &PortState::Waiting).await;
    assert!(StdListener::bind(("0.0.0.0", port)).is_ok());
}

#[tokio::test]
async fn a_program_on_one_address_and_the_vip_share_the_port() {
    let (mut host, port) = (Host::new(7), free_port());
    let _program = StdListener::bind(("127.0.0.1", port)).expect("free");
    host.offer(&[port]);
    host.targets.set(vec![local(port)]);
    host.open().await;
    assert_eq!(host.state(port), Some(PortState::Bound));
}

#[tokio::test]
async fn names_that_meet_are_answered_for_one_of_them_only() {
    let mut host = Host::new(8);
    let pool = host.vips.shared.pool;
    let vip = |name: &str| pool.vip(VipName::Service(service(name)).hash(&MESH, 0));
    let wanted = vip("orders");
    let other = (0..).map(|at| format!("s{at}")).find(|name| vip(name) == wanted).expect("the pool is small");
    let port = free_port();
    host.offer(&[port]);
    let mut remote = instance("db-9", "west");
    remote.ports = vec![Port { name: port.into(), number: port, transport: Transport::Tcp }];
    host.open().await;
    let alone = host.basis();
    host.index.set_service(&service(&other), Some(service_view(&other, vec![remote])));

    let names = [orders(), VipName::Service(service(&other))];
    for name in &names {
        host.vips.open(name).await;
    }
    let answers = names.each_ref().map(|name| {
        let view = host.vips.shared.index.service(name.service()).expect("offered");
        host.vips.answer(&view, name)
    });
    let blocked = answers.iter().filter(|answer| matches!(answer, VipAnswer::Blocked(_))).count();
    assert_eq!(blocked, 1, "{answers:?}");
    assert_eq!(host.vips.losers().len(), 1);
    let is_loser = host.vips.losers().contains_key(&orders());
    assert_eq!(host.is_current(alone), !is_loser, "a kept answer ends when the name loses its address");
}

#[tokio::test]
async fn a_name_that_lost_to_a_hidden_one_does_not_say_to_which() {
    let mut host = Host::new(5);
    let pool = host.vips.shared.pool;
    let hash = |name: &str| VipName::Service(service(name)).hash(&MESH, 0);
    let wins =
        |name: &String| pool.vip(hash(name)) == pool.vip(hash("orders")) && hash(name) < hash("orders");
    let winner = (0..).map(|at| format!("s{at}")).find(wins).expect("the pool is small");
    host.offer(&[]);
    let mut hidden = service_view(&winner, Vec::new());
    let mut remote = instance("db-9", "west");
    remote.visible = false;
    hidden.hidden.push(remote);
    host.index.set_service(&service(&winner), Some(hidden));
    let lost = async {
        while host.vips.losers().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(15), lost).await.expect("it loses");
    let VipAnswer::Blocked(why) = host.answer() else { panic!("answered") };
    assert!(why.contains("as another name;"), "{why}");

    host.index.set_service(&service(&winner), Some(service_view(&winner, vec![instance("db-9", "west")])));
    let VipAnswer::Blocked(why) = host.answer() else { panic!("answered") };
    assert!(why.contains(&format!("as {winner};")), "{why}");
}

#[tokio::test]
async fn a_new_view_with_the_same_ports_asks_nothing_of_the_owner() {
    let (mut host, port) = (Host::new(15), free_port());
    host.offer(&[port]);
    host.open().await;
    host.offer(&[]);
    host.offer(&[port]);
    let before = host.basis();
    let name = orders();
    let mut open = std::pin::pin!(host.vips.open(&name));
    let polled = open.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert!(polled.is_ready());
    assert!(host.is_current(before));
}

#[tokio::test]
async fn only_the_exporter_of_the_name_that_lost_is_told_and_until_it_has_moved() {
    let mut host = Host::new(0);
    let pool = host.vips.shared.pool;
    let hash = |name: &str| VipName::Service(service(name)).hash(&MESH, 0);
    let meets = |name: &String| pool.vip(hash(name)) == pool.vip(hash("orders"));
    let other = (0..).map(|at| format!("s{at}")).find(meets).expect("the pool is small");
    let (winner, loser) =
        if hash("orders") < hash(&other) { ("orders", other.as_str()) } else { (other.as_str(), "orders") };
    let both = [winner, loser].map(|name| local_service(name, "vm-a", 1, ([127, 0, 0, 1], 1).into()));
    let mut both = both.to_vec();
    both.sort_by(|a, b| a.record.service.cmp(&b.record.service));
    host.targets.set(both.clone());
    for name in [winner, loser] {
        host.index.set_service(&service(name), Some(service_view(name, vec![instance("vm-a", "west")])));
    }

    let told = timeout(Duration::from_secs(15), host.raised.recv()).await.expect("in time").expect("told");
    let [raise] = &told[..] else { panic!("{told:?}") };
    assert_eq!((raise.service.as_str(), raise.instance.as_str()), (loser, "vm-a"));
    assert!(raise.tries.service > 0 && (raise.tries.group, raise.tries.instance) == (0, 0), "{raise:?}");
    assert_eq!(host.vips.losers().len(), 1);

    // Said again, for nobody has taken it; then the registry has, and at last the mesh knows.
    let again = timeout(Duration::from_secs(15), host.raised.recv()).await.expect("in time").expect("told");
    assert_eq!(again, told);
    let moved =
        both.iter_mut().find(|local| local.record.service.as_str() == loser).expect("it is one of two");
    moved.record.tries = raise.tries;
    host.targets.set(both);
    let mut found = instance("vm-a", "west");
    found.tries = raise.tries;
    host.index.set_service(&service(loser), Some(service_view(loser, vec![found])));
    let settled = async {
        while !host.vips.losers().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(15), settled).await.expect("nobody loses");
    while host.raised.try_recv().is_ok() {}
    tokio::time::sleep(PACE.tick * (PACE.sweep_ticks + 2)).await;
    assert!(host.raised.try_recv().is_err(), "who has moved is left alone");
}

#[tokio::test]
async fn a_service_that_is_gone_is_closed() {
    let (mut host, port) = (Host::new(9), free_port());
    host.offer(&[port]);
    host.open().await;
    let address = host.address();
    host.index.set_service(&service("orders"), None);
    let gone = async {
        while !host.vips.ports().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(15), gone).await.expect("closed");
    assert!(TcpStream::connect((address, port)).await.is_err());
}

#[tokio::test]
async fn stopping_closes_all_listeners() {
    let (mut host, port) = (Host::new(10), free_port());
    host.offer(&[port]);
    host.open().await;
    let address = host.address();
    assert_eq!(host.stage.stop(Duration::from_secs(5)).await, 0);
    assert!(TcpStream::connect((address, port)).await.is_err());
    assert_eq!(host.counters.strangers.load(Ordering::Relaxed), 0);
}

#[test]
fn an_unused_name_is_idle_and_a_use_ends_that() {
    let usage = Usage::default();
    let began = Instant::now().checked_sub(Duration::from_secs(100)).expect("the machine runs for longer");
    assert!(usage.idle_seconds(began) >= 100);
    usage.touch(began);
    assert!(usage.idle_seconds(began) < 100);
}

#[tokio::test]
async fn an_address_points_to_its_name_before_that_is_used_but_not_to_a_hidden_one() {
    let mut host = Host::new(15);
    let mut hidden = instance("db-8", "east");
    hidden.visible = false;
    let mut view = service_view("orders", vec![instance("db-9", "west")]);
    view.hidden.push(hidden);
    host.index.set_service(&service("orders"), Some(view));
    let address = |name: &VipName| host.vips.shared.pool.vip(name.hash(&MESH, 0));
    let (seen, unseen) = (orders(), VipName::Group(service("orders"), group("east")));
    let known = async {
        while host.vips.pointer(address(&seen)).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(15), known).await.expect("known");
    assert_eq!(host.vips.pointer(address(&seen)), Some(seen));
    assert!(host.vips.shared.names.name(address(&unseen)).is_some());
    assert_eq!(host.vips.pointer(address(&unseen)), None);
    assert!(host.vips.ports().is_empty(), "nothing was opened");
}

#[tokio::test]
async fn each_level_of_a_name_has_a_listener_of_its_own() {
    let (mut host, port) = (Host::new(11), free_port());
    host.offer(&[port]);
    let names = [
        orders(),
        VipName::Group(service("orders"), group("west")),
        VipName::Instance(service("orders"), group("west"), named("db-9")),
    ];
    for name in &names {
        host.vips.open(name).await;
    }
    let open = host.vips.ports();
    assert_eq!(open.len(), 3);
    for found in open {
        assert_eq!(greeting(*found.address.ip(), port).await, format!("{}:{port}", found.name));
        assert_eq!(host.vips.pointer(*found.address.ip()), Some(found.name));
    }
}

#[tokio::test]
async fn a_raised_try_moves_the_name_to_another_address() {
    let (mut host, port) = (Host::new(12), free_port());
    host.offer(&[port]);
    host.open().await;
    let old = host.address();
    let mut remote = instance("db-9", "west");
    remote.ports = vec![Port { name: port.into(), number: port, transport: Transport::Tcp }];
    remote.tries.service = 1;
    host.index.set_service(&service("orders"), Some(service_view("orders", vec![remote])));
    host.open().await;
    assert_ne!(host.address(), old);
    assert_eq!(greeting(host.address(), port).await, format!("orders:{port}"));
    assert!(TcpStream::connect((old, port)).await.is_err());
}

#[tokio::test]
async fn one_stolen_port_silences_the_name_while_the_others_stay_bound() {
    let mut host = Host::new(14);
    let ((_program, stolen), free) = (wildcard(), free_port());
    host.offer(&[stolen, free]);
    assert!(matches!(host.open().await, VipAnswer::Blocked(_)));
    assert_eq!(host.state(free), Some(PortState::Bound));
    assert!(matches!(host.state(stolen), Some(PortState::Stolen { .. })));
    assert_eq!(host.vips.ports().len(), 2);
}

/// Offers `dns` by a remote instance on this UDP port, and by a program of this machine when that is given.
fn offer_udp(host: &mut Host, port: u16, local: Option<SocketAddr>) {
    let mut remote = instance("db-9", "west");
    remote.ports = vec![Port { name: port.into(), number: port, transport: Transport::Udp }];
    host.index.set_service(&service("orders"), Some(service_view("orders", vec![remote])));
    if let Some(address) = local {
        let mut local = local_service("orders", "db-0", port, address);
        local.record.ports[0].transport = Transport::Udp;
        local.targets[0].transport = Transport::Udp;
        host.targets.set(vec![local]);
    }
}

fn free_udp_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0").expect("free").local_addr().expect("bound").port()
}

#[tokio::test]
async fn a_udp_port_is_bound_and_answers_from_the_vip() {
    let mut host = Host::new(1);
    let port = free_udp_port();
    offer_udp(&mut host, port, None);
    assert_eq!(host.open().await, VipAnswer::Address(host.address()));
    assert_eq!(host.state(port), Some(PortState::Bound));
    assert_eq!(host.vips.ports()[0].transport, Transport::Udp);
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("free");
    client.connect((host.address(), port)).await.expect("connected");
    client.send(b"?").await.expect("sent");
    let mut answer = [0; 64];
    let len = client.recv(&mut answer).await.expect("from the VIP and nobody else");
    assert_eq!(&answer[..len], format!("orders:{port}").as_bytes());
    // Together with a TCP port of the same number.
    let mut both = instance("db-9", "west");
    let of = |transport| Port { name: port.into(), number: port, transport };
    both.ports = vec![of(Transport::Tcp), of(Transport::Udp)];
    host.index.set_service(&service("orders"), Some(service_view("orders", vec![both])));
    host.open().await;
    assert_eq!(host.vips.ports().len(), 2);
    let vip = host.address();
    host.index.set_service(&service("orders"), None);
    let is_free = async || {
        while std::net::UdpSocket::bind((vip, port)).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(5), is_free()).await.expect("closed with its service");
}

#[tokio::test]
async fn each_mode_listens_on_what_it_needs() {
    for (mode, listened) in [
        (Mode::Bind, vec![Transport::Tcp, Transport::Udp]),
        (Mode::Dnat, vec![Transport::Udp]),
        (Mode::None, vec![]),
    ] {
        let mut host = Host::in_mode(1, mode);
        let port = free_udp_port();
        let mut both = instance("db-9", "west");
        let of = |transport| Port { name: port.into(), number: port, transport };
        both.ports = vec![of(Transport::Tcp), of(Transport::Udp)];
        host.index.set_service(&service("orders"), Some(service_view("orders", vec![both])));
        host.open().await;
        let found: Vec<_> =
            host.vips.ports().iter().map(|port| (port.transport, port.state.clone())).collect();
        assert_eq!(
            found,
            listened.iter().map(|each| (*each, PortState::Bound)).collect::<Vec<_>>(),
            "{mode}"
        );
        // A second question finds it as it is, and nothing more is opened for TCP alone.
        host.open().await;
        host.offer(&[port]);
        host.open().await;
        let listens = mode == Mode::Bind;
        assert_eq!(host.vips.ports().iter().any(|port| port.transport == Transport::Tcp), listens, "{mode}");
        assert_eq!(host.stage.stop(Duration::from_secs(5)).await, 0);
    }
}

#[tokio::test]
async fn a_udp_port_of_another_program_silences_the_name() {
    let mut host = Host::new(2);
    let wildcard = std::net::UdpSocket::bind("0.0.0.0:0").expect("free");
    let port = wildcard.local_addr().expect("bound").port();
    offer_udp(&mut host, port, None);
    let VipAnswer::Blocked(reason) = host.open().await else { panic!("answered") };
    assert!(reason.contains(&port.to_string()), "{reason}");
    assert_eq!(host.state(port), Some(PortState::Stolen { program: own_program() }));
    drop(wildcard);
    host.becomes(port, &PortState::Bound).await;
}

#[tokio::test]
async fn the_services_own_udp_program_keeps_the_wildcard_and_can_restart() {
    let mut host = Host::new(3);
    let program = std::net::UdpSocket::bind("0.0.0.0:0").expect("free");
    let port = program.local_addr().expect("bound").port();
    offer_udp(&mut host, port, Some(([127, 0, 0, 1], port).into()));
    host.open().await;
    assert_eq!(host.state(port), Some(PortState::Native));
    drop(program);
    host.becomes(port, &PortState::Waiting).await;
    let again = std::net::UdpSocket::bind(("0.0.0.0", port)).expect("it can start again");
    host.becomes(port, &PortState::Native).await;
    drop(again);
    let specific = std::net::UdpSocket::bind(("127.0.0.1", port)).expect("free");
    host.becomes(port, &PortState::Bound).await;
    drop(specific);
}

#[test]
fn a_name_with_udp_ports_has_no_address_over_ipv6_where_nobody_listens() {
    let redirect = Redirect::new(Pool::of_slot(0), 0);
    let vip = Ipv4Addr::new(127, 240, 7, 7);
    let ready = Standings { v4: Standing::Ready, v6: Standing::Ready };
    let answer = |standings, has_udp| redirected_answer(standings, &redirect, vip, has_udp);
    assert_eq!(answer(Some(ready), false), VipAnswer::Dual(vip, redirect.vip6(vip)));
    assert_eq!(answer(Some(ready), true), VipAnswer::Address(vip));
    assert_eq!(answer(Some(Standings { v6: Standing::NoTable, ..ready }), false), VipAnswer::Address(vip));
    for standings in [None, Some(Standings { v4: Standing::NoTable, ..ready })] {
        assert!(matches!(answer(standings, false), VipAnswer::Blocked(_)), "{standings:?}");
    }
}

#[tokio::test]
async fn in_dnat_mode_a_new_name_is_answered_when_its_address_stands_for_it() {
    let mut host = Host::in_mode(6, Mode::Dnat);
    host.offer(&[free_port()]);
    let VipAnswer::Address(vip) = host.open().await else { panic!("blocked") };
    assert_eq!(host.vips.shared.names.name(vip), Some(orders()));
    assert!(host.vips.ports().is_empty(), "and nothing is listened on");

    let pool = host.vips.shared.pool;
    let hash = |name: &str| VipName::Service(service(name)).hash(&MESH, 0);
    let loses = |name: &String| pool.vip(hash(name)) == vip && hash(name) > hash("orders");
    let loser = (0..).map(|at| format!("s{at}")).find(loses).expect("the pool is small");
    let view = service_view(&loser, vec![instance("db-9", "west")]);
    host.index.set_service(&service(&loser), Some(view.clone()));
    let name = VipName::Service(service(&loser));
    host.vips.open(&name).await;
    assert!(matches!(host.vips.answer(&view, &name), VipAnswer::Blocked(_)));
}
