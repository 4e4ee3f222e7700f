//! The registry as a running task over a real state directory and real sockets.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use gossamer_core::access::Policy;
use gossamer_core::callers::Owner;
use gossamer_wire::token::Claims;
use gossamer_wire::{Health, Routing, Visibility};
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;

pub(super) fn rules() -> Rules {
    let own = vec!["0.0.0.0:4677".parse().expect("address")];
    Rules {
        node: "vm-b".parse().expect("name"),
        claims: Claims::default(),
        policy: Policy::default(),
        denied: DenyList::new(own, Ipv4Addr::new(127, 240, 0, 0), 16),
    }
}

pub(super) fn request(service: &str, port: u16) -> ExposeRequest {
    let port = PortRequest { name: None, number: port, target_port: None, transport: Transport::Tcp };
    ExposeRequest {
        service: service.parse().expect("name"),
        instance: None,
        ports: vec![port],
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

/// A registry with what stands for the catalog and the event log.
struct Running {
    stage: Stage,
    registry: Registry,
    records: mpsc::Receiver<Vec<ServiceRecord>>,
    events: mpsc::Receiver<Change>,
}

/// More than any test publishes.
const ENOUGH: usize = 1_024;

/// Longest a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

impl Running {
    fn start(dir: &Path) -> Self {
        let (records, published) = mpsc::channel(ENOUGH);
        let (told, events) = mpsc::channel(ENOUGH);
        let stage = Stage::default();
        let events_in = move |change| told.try_send(change).expect("room");
        let pace = Pace {
            interval: Duration::from_millis(20),
            timeout: Duration::from_millis(200),
            first_timeout: Duration::from_millis(200),
        };
        let store = Store::open(dir).expect("opens");
        let registry = start_at(&stage, store, rules(), records, events_in, pace).expect("starts");
        Self { stage, registry, records: published, events }
    }

    async fn stop(self) {
        assert_eq!(self.stage.stop(PATIENCE).await, 0);
    }

    /// Returns the next set of records, service and health each.
    async fn published(&mut self) -> Vec<(String, Health)> {
        let records = timeout(PATIENCE, self.records.recv()).await.expect("in time").expect("running");
        records.into_iter().map(|record| (record.service.to_string(), record.health)).collect()
    }

    async fn expose(&self, request: ExposeRequest) -> Exposed {
        self.registry.expose(request).await.expect("registers")
    }
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

fn file(dir: &Path) -> String {
    std::fs::read_to_string(dir.join(spec::FILE)).unwrap_or_default()
}

fn withdrawal(service: &str) -> WithdrawRequest {
    WithdrawRequest { service: service.parse().expect("name"), instance: None, by: Owner::Operator }
}

#[tokio::test]
async fn an_answered_request_is_on_disk_in_the_catalog_and_in_the_snapshot() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut running = Running::start(&dir.path().join("state"));
    assert_eq!(running.published().await, []);
    let (_listener, port) = listener().await;
    let exposed = running.expose(request("orders", port)).await;
    assert!(file(&dir.path().join("state")).contains("\"orders\""));
    assert_eq!(exposed.record.health, Health::Passing);
    assert_eq!(exposed.check, "TCP connect each 5 s");
    let published = running.records.try_recv().expect("published before the answer");
    assert_eq!(published, std::slice::from_ref(&exposed.record));
    let target = running.registry.targets().lookup(
        &exposed.record.service,
        &"vm-b".parse().expect("name"),
        &port.into(),
        Transport::Tcp,
    );
    let target = target.expect("known");
    assert_eq!((target.addr, target.healthy), (exposed.target[0].clone(), true));
    assert_eq!(target.wildcard, Some(false));
    assert_eq!(running.events.try_recv().expect("told").now, "registered");
    running.stop().await;
}

#[tokio::test]
async fn what_cannot_be_written_is_not_acknowledged_and_not_published() {
    let dir = tempfile::tempdir().expect("scratch");
    let state = dir.path().join("state");
    let mut running = Running::start(&state);
    assert_eq!(running.published().await, []);
    std::fs::remove_dir_all(&state).expect("removes");
    let error = running.registry.expose(request("orders", 5432)).await.expect_err("no directory");
    assert!(matches!(error, ExposeError::NotDurable(_)), "{error}");
    let error = running.registry.withdraw(withdrawal("orders")).await.expect_err("never registered");
    assert!(matches!(error, WithdrawError::Unknown { .. }), "{error}");
    assert!(running.records.try_recv().is_err());
    assert!(running.registry.targets().all().is_empty());
    std::fs::create_dir(&state).expect("is mended");
    running.expose(request("orders", 5432)).await;
    running.stop().await;
}

#[tokio::test]
async fn a_failed_withdrawal_leaves_the_service_offered() {
    let dir = tempfile::tempdir().expect("scratch");
    let state = dir.path().join("state");
    let running = Running::start(&state);
    running.expose(request("orders", 5432)).await;
    std::fs::remove_dir_all(&state).expect("removes");
    let error = running.registry.withdraw(withdrawal("orders")).await.expect_err("no directory");
    assert!(matches!(error, WithdrawError::NotDurable(_)), "{error}");
    assert_eq!(running.registry.targets().all().len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_restart_offers_what_was_acknowledged_and_nothing_withdrawn() {
    let dir = tempfile::tempdir().expect("scratch");
    let (_listener, port) = listener().await;
    let running = Running::start(&dir.path().join("state"));
    running.expose(request("orders", port)).await;
    running.expose(request("web", port)).await;
    running.registry.withdraw(withdrawal("web")).await.expect("withdraws");
    assert!(!file(&dir.path().join("state")).contains("\"web\""));
    drop(running.registry);
    running.stage.stop(PATIENCE).await;

    let mut running = Running::start(&dir.path().join("state"));
    assert_eq!(running.registry.targets().all().len(), 1, "known before anything is published");
    assert_eq!(running.published().await, [("orders".to_owned(), Health::Passing)]);
    running.stop().await;
}

#[tokio::test]
async fn a_damaged_file_stops_the_start_and_is_left_as_it_is() {
    let dir = tempfile::tempdir().expect("scratch");
    let store = Store::open(&dir.path().join("state")).expect("opens");
    store.write(spec::FILE, b"{\"version\":1,").expect("writes");
    let start = || {
        let (records, _) = mpsc::channel(1);
        start(&Stage::default(), store.clone(), rules(), records, |_| ())
    };
    let error = start().expect_err("damaged").to_string();
    assert!(error.contains("services.json is damaged"), "{error}");
    assert_eq!(store.read(spec::FILE).expect("reads").as_deref(), Some(&b"{\"version\":1,"[..]));
    store.write(spec::FILE, br#"{"version":9,"services":[]}"#).expect("writes");
    let error = start().expect_err("newer").to_string();
    assert!(error.contains("version 9"), "{error}");
}

#[tokio::test]
async fn equal_content_is_answered_without_a_write_or_a_new_set() {
    let dir = tempfile::tempdir().expect("scratch");
    let state = dir.path().join("state");
    let mut running = Running::start(&state);
    running.expose(request("orders", 5432)).await;
    assert!(running.published().await.is_empty());
    assert_eq!(running.published().await.len(), 1);
    std::fs::remove_dir_all(&state).expect("removes");
    let again = running.expose(request("orders", 5432)).await;
    assert!(!again.replaced);
    assert!(again.warnings[0].contains("nobody listens"));
    assert!(running.records.try_recv().is_err());
    running.stop().await;
}

#[tokio::test]
async fn requests_that_queue_share_a_write() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut running = Running::start(&dir.path().join("state"));
    let names: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
    let asked = names.iter().map(|name| running.registry.expose(request(name, 5432)));
    for answer in futures_util::future::join_all(asked).await {
        answer.expect("registers");
    }
    assert_eq!(running.registry.targets().all().len(), 100);
    for name in &names {
        assert!(file(&dir.path().join("state")).contains(&format!("\"{name}\"")));
    }
    let mut sets = 0;
    while running.records.try_recv().is_ok() {
        sets += 1;
    }
    assert!(sets <= 10, "{sets} sets for 100 requests");
    running.stop().await;
}

#[tokio::test]
async fn one_refused_request_does_not_spoil_the_batch() {
    let dir = tempfile::tempdir().expect("scratch");
    let running = Running::start(&dir.path().join("state"));
    let denied = request("mesh", 4677);
    let (good, bad, other) = tokio::join!(
        running.registry.expose(request("orders", 5432)),
        running.registry.expose(denied),
        running.registry.expose(request("web", 80)),
    );
    assert!(good.is_ok() && other.is_ok());
    assert!(matches!(bad, Err(ExposeError::Target { why: Denial::OwnListener, .. })));
    assert_eq!(running.registry.targets().all().len(), 2);
    running.stop().await;
}

#[tokio::test]
async fn verdicts_follow_the_program_and_go_out_as_records() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut running = Running::start(&dir.path().join("state"));
    let (program, port) = listener().await;
    running.expose(request("orders", port)).await;
    assert_eq!(running.published().await, []);
    assert_eq!(running.published().await, [("orders".to_owned(), Health::Passing)]);
    let addr = program.local_addr().expect("bound");
    drop(program);
    assert_eq!(running.published().await, [("orders".to_owned(), Health::Failing)]);
    let _program = TcpListener::bind(addr).await.expect("comes back");
    assert_eq!(running.published().await, [("orders".to_owned(), Health::Passing)]);
    let mut told = Vec::new();
    while let Ok(change) = running.events.try_recv() {
        told.push(change.now);
    }
    assert_eq!(told[..2], ["registered", "failing"]);
    running.stop().await;
}

#[tokio::test]
async fn a_withdrawn_service_is_checked_no_more() {
    let dir = tempfile::tempdir().expect("scratch");
    let running = Running::start(&dir.path().join("state"));
    let (program, port) = listener().await;
    running.expose(request("orders", port)).await;
    running.registry.withdraw(withdrawal("orders")).await.expect("withdraws");
    // Drain what connected before; then the pace of 20 ms would show a check that still runs.
    while timeout(Duration::from_millis(300), program.accept()).await.is_ok() {}
    assert!(running.registry.targets().all().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn after_the_stop_requests_are_told_so() {
    let dir = tempfile::tempdir().expect("scratch");
    let running = Running::start(&dir.path().join("state"));
    let registry = running.registry.clone();
    running.stop().await;
    assert!(matches!(registry.expose(request("web", 80)).await, Err(ExposeError::Stopping)));
    assert!(matches!(registry.withdraw(withdrawal("web")).await, Err(WithdrawError::Stopping)));
}

#[tokio::test]
async fn without_a_catalog_nobody_is_told_that_a_service_is_offered() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut running = Running::start(&dir.path().join("state"));
    running.published().await;
    running.records.close();
    let answer = running.registry.expose(request("web", 80)).await;
    assert!(matches!(answer, Err(ExposeError::Stopping)), "{answer:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_raised_try_is_on_disk_and_then_published_and_told() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut running = Running::start(&dir.path().join("state"));
    let (_listener, port) = listener().await;
    running.expose(request("orders", port)).await;
    for _ in 0..2 {
        running.published().await;
    }
    let tries = Tries { service: 3, ..Tries::default() };
    let (service, instance) = ("orders".parse().expect("name"), "vm-b".parse().expect("name"));
    let raise = vec![Raise { service, instance, tries }];
    running.registry.raises().send(raise).await.expect("runs");
    let records = timeout(PATIENCE, running.records.recv()).await.expect("in time").expect("running");
    assert_eq!(records[0].tries, tries);
    assert!(
        file(&dir.path().join("state")).contains("\"service\": 3"),
        "{}",
        file(&dir.path().join("state"))
    );
    assert_eq!(running.events.recv().await.expect("told").now, "registered");
    assert_eq!(running.events.recv().await.expect("told").now, "moved");
    running.stop().await;

    let mut again = Running::start(&dir.path().join("state"));
    let records = timeout(PATIENCE, again.records.recv()).await.expect("in time").expect("running");
    assert_eq!(records[0].tries, tries);
    again.stop().await;
}

fn drain(service: Option<&str>, until: Option<u64>, by: Owner) -> DrainRequest {
    let service = service.map(|text| text.parse().expect("name"));
    DrainRequest { service, instance: None, until, by }
}

impl Running {
    /// Returns which services drain, for the relay and for the mesh; the two agree.
    fn draining(&self) -> Vec<String> {
        let all = self.registry.targets().all();
        let drains = |local: &&LocalService| local.record.draining;
        assert!(
            all.iter()
                .all(|local| local.targets.iter().all(|target| target.draining == local.record.draining))
        );
        all.iter().filter(drains).map(|local| local.record.service.to_string()).collect()
    }
}

#[tokio::test]
async fn a_drain_is_kept_over_a_restart_until_it_is_undone() {
    let dir = tempfile::tempdir().expect("scratch");
    let state = dir.path().join("state");
    let mut running = Running::start(&state);
    assert_eq!(running.published().await, []);
    running.expose(request("orders", 5432)).await;
    running.expose(request("web", 80)).await;
    let drained =
        running.registry.drain(drain(Some("orders"), Some(7), Owner::Operator)).await.expect("drains");
    assert_eq!(drained.registrations, [("orders".parse().expect("name"), "vm-b".parse().expect("name"))]);
    assert_eq!(running.draining(), ["orders"]);
    let again = running.expose(request("orders", 5433)).await;
    assert!(again.record.draining && again.warnings.iter().any(|text| text.contains("--undo")), "{again:?}");
    running.stop().await;

    let mut running = Running::start(&state);
    assert_eq!(running.draining(), ["orders"]);
    assert_eq!(running.registry.targets().all()[0].drains_until, Some(7));
    assert_eq!(running.published().await.len(), 2);
    let undone = running.registry.drain(drain(None, None, Owner::Operator)).await.expect("undoes");
    assert_eq!((undone.registrations.len(), running.draining().len()), (1, 0));
    assert_eq!(running.registry.targets().all()[0].record.weight, 100);
    let events: Vec<_> = std::iter::from_fn(|| running.events.try_recv().ok()).collect();
    assert!(events.iter().any(|change| (change.was, change.now) == ("draining", "serving")), "{events:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_stop_drains_everything_and_the_next_start_serves() {
    let dir = tempfile::tempdir().expect("scratch");
    let state = dir.path().join("state");
    let mut running = Running::start(&state);
    assert_eq!(running.published().await, []);
    running.expose(request("orders", 5432)).await;
    running.published().await;
    timeout(PATIENCE, running.registry.leave()).await.expect("in time");
    let published = running.records.try_recv().expect("published before the answer");
    assert!(published.iter().all(|record| record.draining));
    assert_eq!(running.draining(), ["orders"]);
    running.registry.leave().await;
    running.stop().await;
    let running = Running::start(&state);
    assert!(running.draining().is_empty());
    running.stop().await;
}

#[tokio::test]
async fn who_may_not_change_a_registration_may_not_drain_it() {
    let dir = tempfile::tempdir().expect("scratch");
    let running = Running::start(&dir.path().join("state"));
    running.expose(request("orders", 5432)).await;
    running.expose(ExposeRequest { owner: Owner::User(7), ..request("mine", 80) }).await;
    let refused = running.registry.drain(drain(Some("orders"), Some(9), Owner::User(7))).await;
    assert!(matches!(refused, Err(DrainError::Owned { .. })), "{refused:?}");
    let unknown = running.registry.drain(drain(Some("web"), Some(9), Owner::Operator)).await;
    assert!(matches!(unknown, Err(DrainError::Unknown { .. })), "{unknown:?}");
    let own = running.registry.drain(drain(None, Some(9), Owner::User(7))).await.expect("what is its own");
    assert_eq!((own.registrations.len(), running.draining()), (1, vec!["mine".to_owned()]));
    running.registry.withdraw(withdrawal("mine")).await.expect("withdraws");
    running.expose(request("mine", 80)).await;
    assert!(running.draining().is_empty(), "a new registration");
    running.stop().await;
}
