//! What a change costs, counted in views and not in time, and who is named for a name.

use std::sync::Arc;

use gossamer_core::catalog::{CardContent, CatalogConfig, Imports, Input, MemberLiveness, Output};
use gossamer_core::trust::TrustBundle;
use gossamer_wire::frame::Frame;
use gossamer_wire::{Health, MeshId, Port, Routing, ServiceRecord, Transport, Tries, Visibility};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, SanType,
};

use super::*;
use crate::api::views_for_tests::node;
use crate::clock;
use crate::identity::NodeKey;
use crate::index::Written;

const MESH: MeshId = MeshId::from_bytes([1; 16]);
const EXPORTERS: usize = 20;

/// A root that vouches for nodes.
struct Root {
    issuer: Issuer<'static, KeyPair>,
    trust: TrustBundle,
}

impl Root {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let root = params.self_signed(&key).expect("a root").der().to_vec();
        let trust = TrustBundle::new(MESH, vec![root], Vec::new()).expect("a bundle");
        Self { issuer: Issuer::new(params, key), trust }
    }

    /// Makes the catalog of a node of group `west`.
    fn catalog(&self, name: &str) -> (NodeId, Catalog) {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let uri = format!("spiffe://{MESH}/group/west/node/{name}");
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf").der().to_vec();
        let signer = Arc::new(NodeKey::read(&key.serialize_der()).expect("an Ed25519 key"));
        let config = CatalogConfig {
            node: signer.node(),
            group: "west".parse().expect("name"),
            zone: None,
            region: None,
            imports: Imports::default(),
            deny: gossamer_core::reach::Deny::default(),
            direct_up_to: 256,
            first_seq: 0,
        };
        let (me, rng) = (signer.node(), SmallRng::seed_from_u64(1));
        let mut core =
            Catalog::new(config, self.trust.clone(), Box::new(signer), rng, 1, Vec::new(), clock::now());
        core.handle(Input::Card(CardContent { leaf, ..CardContent::default() }), clock::now());
        (me, core)
    }
}

fn record(service: &str, version: usize) -> ServiceRecord {
    ServiceRecord {
        service: service.parse().expect("name"),
        instance: "a".parse().expect("name"),
        ports: vec![Port { name: 80.into(), number: 80, transport: Transport::Tcp }],
        visibility: Visibility::All,
        health: Health::Passing,
        weight: 100,
        draining: false,
        routing: Routing::default(),
        tries: Tries::default(),
        metadata: vec![("version".to_owned(), version.to_string())],
        fqdns: Vec::new(),
    }
}

/// A node that holds the records of 20 others, with its index.
struct Observer {
    core: Catalog,
    projection: Projection,
    index: IndexWriter,
    exporters: Vec<(NodeId, Catalog)>,
    records: Vec<Vec<ServiceRecord>>,
}

impl Observer {
    fn of(records: usize) -> Self {
        let root = Root::new();
        let (me, core) = root.catalog("observer");
        let index = IndexWriter::default();
        let projection = projection(me, &index, EventLog::default());
        let exporters = (0..EXPORTERS).map(|at| root.catalog(&format!("n{at}"))).collect();
        let mut observer = Self { core, projection, index, exporters, records: Vec::new() };
        for at in 0..EXPORTERS {
            let of_one = (0..records / EXPORTERS).map(|number| record(&format!("s{at}-{number}"), 0));
            observer.records.push(of_one.collect());
            observer.publish(at);
            observer.member(at, MemberState::Alive);
        }
        observer
    }

    /// Publishes what an exporter has and hands all of it to the observer, as a push and a repair would.
    fn publish(&mut self, at: usize) {
        let (from, exporter) = &mut self.exporters[at];
        exporter.handle(Input::Publish(self.records[at].clone()), clock::now());
        while exporter.next_output().is_some() {}
        let copies = exporter.export(clock::now());
        let frame = Frame::Adverts { copies, forward: Vec::new() };
        self.core.handle(Input::Frame { from: *from, frame }, clock::now());
        self.write();
    }

    fn member(&mut self, at: usize, state: MemberState) {
        let node = self.exporters[at].0;
        let why = Why { since: 1, cause: "it said so", by: "self".to_owned() };
        self.projection.member(&mut self.index, node, state, why);
        let state = if state.is_up() { MemberLiveness::Alive } else { MemberLiveness::Down };
        self.core.handle(Input::Member { node, state }, clock::now());
        self.write();
    }

    fn write(&mut self) {
        while let Some(output) = self.core.next_output() {
            match output {
                Output::ServiceChanged(service) => self.projection.note_service(service),
                Output::NodeChanged(node) => self.projection.note_node(node),
                Output::Send { .. } | Output::EpochBehind { .. } | Output::Event(_) => {}
            }
        }
        self.projection.write(&mut self.index, &self.core, clock::now());
    }

    /// Returns what a change writes, and how many names followers are told.
    fn cost(&mut self, change: impl FnOnce(&mut Self)) -> (Written, usize) {
        let (before, mut changes) = (self.index.reader().written(), self.index.reader().changes());
        change(self);
        let after = self.index.reader().written();
        let told = std::iter::from_fn(|| changes.try_recv().ok()).count();
        let services = after.services - before.services;
        (Written { services, nodes: after.nodes - before.nodes }, told)
    }
}

fn projection(me: NodeId, index: &IndexWriter, events: EventLog) -> Projection {
    let (services, nodes) = (BTreeSet::new(), BTreeSet::new());
    Projection { me, reader: index.reader(), events, clock: Clock::default(), services, nodes }
}

#[test]
fn one_change_costs_one_view_among_a_hundred_records_and_among_ten_thousand() {
    for total in [100, 10_000] {
        let of_one = total / EXPORTERS;
        let mut observer = Observer::of(total);
        assert_eq!(observer.index.reader().count_services(), total);
        let one_service = (Written { services: 1, nodes: 0 }, 1);

        let changed = observer.cost(|all| {
            all.records[3][2] = record("s3-2", 1);
            all.publish(3);
        });
        assert_eq!(changed, one_service, "of {total}");
        let exposed = observer.cost(|all| {
            all.records[3].push(record("new", 0));
            all.publish(3);
        });
        assert_eq!(exposed, one_service, "of {total}");
        let withdrawn = observer.cost(|all| {
            all.records[3].pop();
            all.publish(3);
        });
        assert_eq!(withdrawn, one_service, "of {total}");
        assert_eq!(observer.cost(|all| all.publish(3)), (Written::default(), 0), "nothing new costs nothing");
        // A node takes its own services with it, and no others.
        let down = observer.cost(|all| all.member(3, MemberState::Down));
        assert_eq!(down, (Written { services: of_one as u64, nodes: 1 }, of_one), "of {total}");
    }
}

/// Nodes of group `east` in an index, `vm-a` is this one.
struct Names {
    index: IndexWriter,
    projection: Projection,
    events: EventLog,
}

impl Names {
    fn new() -> Self {
        let (index, events) = (IndexWriter::default(), EventLog::default());
        let projection = projection(NodeId::from_bytes([1; 16]), &index, events.clone());
        Self { index, projection, events }
    }

    fn put(&mut self, name: &str, id: u8, state: Option<MemberState>) {
        let summary = node(name, id);
        self.projection.update(&mut self.index, summary.node, |known| {
            *known = summary.clone();
            known.state = state;
        });
    }

    fn named(&self) -> Vec<u8> {
        let mut named: Vec<_> =
            self.events.findings().all().iter().map(|named| named.who.as_bytes()[0]).collect();
        named.sort_unstable();
        named
    }
}

#[test]
fn two_live_nodes_of_one_name_are_named_until_one_is_gone() {
    let (alive, mut names) = (Some(MemberState::Alive), Names::new());
    names.put("vm-a", 1, None);
    names.put("vm-b", 2, alive);
    assert!(names.named().is_empty());
    names.put("vm-a", 3, alive);
    assert_eq!(names.named(), [1, 3], "this node is alive, whatever membership says");
    assert_eq!(names.events.follow(0).0.len(), 2, "one line each");
    names.put("vm-a", 3, Some(MemberState::Suspect));
    assert_eq!((names.named(), names.events.follow(0).0.len()), (vec![1, 3], 2));
    names.put("vm-a", 3, Some(MemberState::Down));
    assert!(names.named().is_empty());
}

#[test]
fn a_new_name_ends_the_finding_and_another_group_never_began_it() {
    let (alive, mut names) = (Some(MemberState::Alive), Names::new());
    names.put("vm-b", 2, alive);
    names.put("vm-b", 3, alive);
    assert_eq!(names.named(), [2, 3]);
    names.put("vm-c", 3, alive);
    assert!(names.named().is_empty());
    let mut west = node("vm-b", 4);
    west.view.as_mut().expect("a view").group = "west".parse().expect("name");
    names.projection.update(&mut names.index, west.node, |known| *known = west.clone());
    assert!(names.named().is_empty());
}
