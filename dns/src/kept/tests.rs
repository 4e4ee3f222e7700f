//! When a kept answer is sent again, and when no longer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;

use gossamer_wire::{GroupName, InstanceName, NodeName, ServiceName};
use hickory_proto::op::ResponseCode;

use super::*;
use crate::scripted::{Scripted, mesh, vip, zone};
use crate::udp::{Datagram, parse};
use crate::{CustomNames, CustomTarget, InstanceEntry, Revisions, ServiceEntry, Subject, Target};

/// A mesh that can be replaced by another one.
struct Changing {
    mesh: Mutex<Scripted>,
    revisions: Revisions,
}

impl Changing {
    fn new(mesh: Scripted) -> Arc<Self> {
        Arc::new(Self { mesh: Mutex::new(mesh), revisions: Revisions::default() })
    }

    fn change(&self, mesh: Scripted, subjects: &[Subject<'_>]) {
        *self.mesh.lock().expect("not poisoned") = mesh;
        subjects.iter().for_each(|subject| self.revisions.bump(*subject));
    }

    fn mesh<T>(&self, read: impl FnOnce(&Scripted) -> T) -> T {
        read(&self.mesh.lock().expect("not poisoned"))
    }
}

#[async_trait::async_trait]
impl Directory for Changing {
    async fn prepare(&self, _: &Target) {}

    fn service(&self, service: &ServiceName, group: Option<&GroupName>) -> Option<ServiceEntry> {
        self.mesh(|mesh| mesh.service(service, group))
    }

    fn instance(
        &self,
        service: &ServiceName,
        group: &GroupName,
        instance: &InstanceName,
    ) -> Option<InstanceEntry> {
        self.mesh(|mesh| mesh.instance(service, group, instance))
    }

    fn node(&self, node: &NodeName) -> Option<Vec<IpAddr>> {
        self.mesh(|mesh| mesh.node(node))
    }

    fn has_group(&self, group: &GroupName) -> bool {
        self.mesh(|mesh| mesh.has_group(group))
    }

    fn pointer(&self, vip: Ipv4Addr) -> Option<Target> {
        self.mesh(|mesh| mesh.pointer(vip))
    }

    fn custom(&self, name: &str) -> Option<CustomTarget> {
        self.mesh(|mesh| mesh.custom(name))
    }

    fn revisions(&self) -> Option<&Revisions> {
        Some(&self.revisions)
    }
}

fn question(name: &str, record_type: RecordType) -> Question {
    Question { name: Name::from_ascii(name).expect("valid"), record_type }
}

/// Asks the kept answers only, at an age of the server.
fn ask_at(kept: &Kept, question: &Question, clock: u32) -> Option<Outcome> {
    let mut bytes = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let mut name = [0; 255];
    let length = write_name(&question.name, &mut name)?;
    bytes.extend(&name[..length]);
    bytes.extend(u16::from(question.record_type).to_be_bytes());
    bytes.extend([0, 1]);
    let Datagram::Query(query) = parse(&bytes) else { panic!("ordinary") };
    kept.respond(&query, clock, &mut [0; MAX_DATAGRAM]).map(|(_, outcome)| outcome)
}

fn ask(kept: &Kept, question: &Question) -> Option<Outcome> {
    ask_at(kept, question, 0)
}

fn kept(directory: &Arc<Changing>) -> Kept {
    Kept::new(Arc::<Changing>::clone(directory), Arc::new(zone()), false)
}

/// Answers as the server does when nothing is to be prepared.
fn answered(kept: &Kept, question: &Question, rotation: u32) -> Answer {
    kept.answer(question, kept.recorder(), rotation)
}

#[test]
fn an_answer_is_kept_until_what_it_was_read_from_changes() {
    let directory = Changing::new(mesh());
    let kept = kept(&directory);
    let orders: ServiceName = "orders".parse().expect("valid");
    for (asked, subject) in [
        (question("Orders.mesh.internal.", RecordType::A), Subject::Service(&orders)),
        (question("_pg._tcp.orders.mesh.internal.", RecordType::SRV), Subject::Service(&orders)),
        (question("orders.mesh.internal.", RecordType::AAAA), Subject::Service(&orders)),
        (question("n1.node.mesh.internal.", RecordType::A), Subject::Node(&"n1".parse().expect("valid"))),
        (question("west.mesh.internal.", RecordType::A), Subject::Group(&"west".parse().expect("valid"))),
        (
            question("9.100.240.127.in-addr.arpa.", RecordType::PTR),
            Subject::Vip(Ipv4Addr::new(127, 240, 100, 9)),
        ),
        (question("9.100.240.127.in-addr.arpa.", RecordType::PTR), Subject::Service(&orders)),
    ] {
        assert_eq!(ask(&kept, &asked), None, "{asked:?} is new");
        answered(&kept, &asked, 3);
        assert!(ask(&kept, &asked).is_some(), "{asked:?} is kept");
        directory.revisions.bump(subject);
        assert_eq!(ask(&kept, &asked), None, "{asked:?} has changed");
    }
}

#[test]
fn a_group_that_becomes_a_service_is_no_longer_an_empty_name() {
    let directory = Changing::new(mesh());
    let kept = kept(&directory);
    let asked = question("west.mesh.internal.", RecordType::A);
    answered(&kept, &asked, 0);
    assert_eq!(ask(&kept, &asked), Some(Outcome::NoData));
    let west: ServiceName = "west".parse().expect("valid");
    directory.change(mesh().with("west", vip(77), vec![]), &[Subject::Service(&west)]);
    assert_eq!(ask(&kept, &asked), None);
    assert_eq!(answered(&kept, &asked, 0).answers.len(), 1);
    assert_eq!(ask(&kept, &asked), Some(Outcome::NoError));
}

#[tokio::test]
async fn what_changes_between_preparing_and_answering_is_not_kept() {
    let directory = Changing::new(Scripted::default());
    let kept = kept(&directory);
    let asked = question("orders.mesh.internal.", RecordType::A);
    let orders: ServiceName = "orders".parse().expect("valid");
    let recorder = kept.recorder();
    recorder.prepare(&Target::Service { service: orders.clone(), group: None, direct: false }).await;
    directory.change(mesh(), &[Subject::Service(&orders)]);
    assert_eq!(kept.answer(&asked, recorder, 0).answers.len(), 1, "it is there now");
    assert_eq!(ask(&kept, &asked), None, "its VIP was not prepared");
    answered(&kept, &asked, 0);
    assert!(ask(&kept, &asked).is_some());
}

#[test]
fn a_change_while_an_answer_is_made_ends_it_at_once() {
    let directory = Changing::new(mesh());
    let recorder = Recorder::new(Arc::<Changing>::clone(&directory));
    let orders: ServiceName = "orders".parse().expect("valid");
    recorder.service(&orders, None);
    directory.revisions.bump(Subject::Service(&orders));
    recorder.service(&orders, None);
    let bases = recorder.bases().expect("nothing spoiled it");
    assert!(bases.iter().any(|basis| !directory.revisions.is_current(*basis)));
}

#[test]
fn names_and_types_that_anybody_can_make_up_are_not_kept() {
    let directory = Changing::new(mesh());
    let kept = kept(&directory);
    for asked in [
        question("nobody.mesh.internal.", RecordType::A),
        question("example.com.", RecordType::A),
        question("orders.mesh.internal.", RecordType::Unknown(60_000)),
        question("orders.mesh.internal.", RecordType::ANY),
        question("1.1.240.127.in-addr.arpa.", RecordType::PTR),
    ] {
        answered(&kept, &asked, 0);
        assert_eq!(ask(&kept, &asked), None, "{asked:?}");
    }
    assert_eq!((kept.entries.len(), kept.bytes.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn names_without_end_are_not_kept_although_they_exist() {
    let mut names = CustomNames::default();
    for (fqdn, service) in
        [("pg.test", "orders"), ("*.wild.test", "orders"), ("*.two.test", "orders"), ("*.two.test", "idle")]
    {
        names.claim(&fqdn.parse().expect(fqdn), &service.parse().expect(service), 0);
    }
    let directory = Changing::new(mesh().with_names(names));
    let zones = zone().with_suffix("test".parse().expect("valid")).expect("free");
    let zones = Arc::new(zones.with_clusterset().expect("apart"));
    let kept = Kept::new(Arc::<Changing>::clone(&directory), zones, false);
    for asked in [
        question("x.wild.test.", RecordType::A),
        question("x.wild.test.", RecordType::AAAA),
        question("_pg._tcp.x.wild.test.", RecordType::SRV),
        question("_tcp.x.wild.test.", RecordType::A),
        question("x.two.test.", RecordType::A),
        question("x.svc.clusterset.local.", RecordType::A),
    ] {
        assert_eq!(answered(&kept, &asked, 0).rcode, ResponseCode::NoError, "{asked:?} exists");
        assert_eq!(ask(&kept, &asked), None, "{asked:?}");
    }
    assert_eq!(kept.entries.len(), 0);
    for asked in ["pg.test.", "wild.test.", "svc.clusterset.local."] {
        let asked = question(asked, RecordType::A);
        answered(&kept, &asked, 0);
        assert!(ask(&kept, &asked).is_some(), "{asked:?} is one of few");
    }
}

#[test]
fn an_old_answer_takes_the_ordinary_way_once() {
    let directory = Changing::new(mesh());
    let kept = kept(&directory);
    let asked = question("orders.mesh.internal.", RecordType::A);
    answered(&kept, &asked, 0);
    assert!(ask_at(&kept, &asked, LIFETIME_SECONDS - 1).is_some());
    assert_eq!(ask_at(&kept, &asked, LIFETIME_SECONDS), None);
}

#[test]
fn what_is_kept_has_bounds() {
    let directory = Changing::new(
        (0..50).fold(mesh(), |mesh, number| mesh.with_node(&format!("m{number}"), &["10.0.0.1"])),
    );
    let mut kept = kept(&directory);
    kept.limits = Limits { entries: 10, bytes: 1 << 20 };
    for number in 0..50 {
        answered(&kept, &question(&format!("m{number}.node.mesh.internal."), RecordType::A), 0);
        assert!(kept.entries.len() <= 10);
    }
    kept.limits = Limits { entries: 100, bytes: 2_000 };
    for number in 0..50 {
        answered(&kept, &question(&format!("m{number}.node.mesh.internal."), RecordType::A), 0);
        assert!(kept.bytes.load(Ordering::Relaxed) <= 2_000);
    }
    let counted: usize = kept.entries.iter().map(|entry| entry.value().size(entry.key().len())).sum();
    assert_eq!(counted, kept.bytes.load(Ordering::Relaxed));
}

#[test]
fn room_is_made_of_what_no_longer_stands_first() {
    let directory = Changing::new(
        (0..9).fold(mesh(), |mesh, number| mesh.with_node(&format!("m{number}"), &["10.0.0.1"])),
    );
    let mut kept = kept(&directory);
    kept.limits = Limits { entries: 8, bytes: 1 << 20 };
    let asked = |number: u8| question(&format!("m{number}.node.mesh.internal."), RecordType::A);
    (0..8).for_each(|number| drop(answered(&kept, &asked(number), 0)));
    for number in 0..5_u8 {
        directory.revisions.bump(Subject::Node(&format!("m{number}").parse().expect("valid")));
    }
    answered(&kept, &asked(8), 0);
    assert!(ask(&kept, &asked(7)).is_some());
    assert!(ask(&kept, &asked(8)).is_some());
}
