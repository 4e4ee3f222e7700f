//! The rules of the book, without a runtime.

use gossamer_core::access::Base;
use gossamer_core::callers::Owner;
use gossamer_wire::limits::MAX_FRAGMENTS;
use gossamer_wire::{InstanceName, Visibility};

use super::super::Raise;
use super::super::request::{ExposeRequest, PortRequest, WithdrawRequest};
use super::super::tests::{request, rules};
use super::*;

const PASSED: Probe = Probe { passed: true, is_local: true, trouble: None };
const FAILED: Probe = Probe { passed: false, is_local: true, trouble: None };

fn empty() -> Book {
    Book::restore(rules(), None).expect("nothing to restore").0
}

/// Registers through a draft, as the task does after a write.
fn expose(book: &mut Book, request: ExposeRequest) -> (Planned, Vec<Change>, Vec<CheckId>) {
    let mut draft = book.draft();
    let planned = draft.expose(request, &rules()).expect("valid");
    let (changes, checks) = book.adopt(draft);
    (planned, changes, checks)
}

fn withdrawal(service: &str, instance: Option<&str>) -> WithdrawRequest {
    let instance = instance.map(|text| text.parse().expect("name"));
    WithdrawRequest { service: service.parse().expect("name"), instance, by: Owner::Operator }
}

fn instance(name: &str, request: ExposeRequest) -> ExposeRequest {
    ExposeRequest { instance: Some(name.parse().expect("name")), ..request }
}

fn udp(number: u16) -> PortRequest {
    PortRequest { name: None, number, target_port: None, transport: Transport::Udp }
}

/// Writes the book to JSON and reads it back, as a restart does.
fn restarted(book: &Book, rules: Rules) -> (Book, Vec<(Key, ExposeError)>) {
    let json = serde_json::to_vec(&book.stored(&book.draft())).expect("serializes");
    Book::restore(rules, Some(serde_json::from_slice(&json).expect("parses"))).expect("restores")
}

#[test]
fn a_registration_is_told_to_the_mesh_without_its_target() {
    let mut book = empty();
    let mut asked = request("web", 80);
    asked.ports[0].target_port = Some(8080);
    asked.metadata = vec![("version".to_owned(), "2".to_owned())];
    let (planned, changes, checks) = expose(&mut book, asked);
    assert_eq!((changes[0].was, changes[0].now), ("absent", "registered"));
    assert_eq!(checks.len(), 1);
    book.observe(&checks[0], PASSED);
    let exposed = book.exposed(&planned);
    assert_eq!(exposed.record, book.records()[0]);
    assert_eq!(exposed.record.health, Health::Passing);
    assert_eq!(exposed.record.ports[0].number, 80);
    assert_eq!(exposed.target, ["127.0.0.1:8080".parse().expect("address")]);
    assert!(exposed.warnings.is_empty() && !exposed.replaced);
}

#[test]
fn a_silent_target_is_registered_with_a_warning_and_offered_once_it_answers() {
    let mut book = empty();
    let (planned, _, checks) = expose(&mut book, request("orders", 5432));
    book.observe(&checks[0], FAILED);
    let exposed = book.exposed(&planned);
    assert_eq!(exposed.record.health, Health::Failing);
    assert!(exposed.warnings[0].contains("nobody listens on 127.0.0.1:5432"), "{:?}", exposed.warnings);
    let change = book.observe(&checks[0], PASSED).expect("a change");
    assert_eq!((change.was, change.now), ("failing", "passing"));
    assert_eq!(book.records()[0].health, Health::Passing);
}

#[test]
fn one_lost_check_changes_nothing_and_two_do() {
    let mut book = empty();
    let (_, _, checks) = expose(&mut book, request("orders", 5432));
    book.observe(&checks[0], PASSED);
    assert_eq!(book.observe(&checks[0], FAILED), None);
    let change = book.observe(&checks[0], FAILED).expect("a change");
    assert_eq!((change.was, change.now), ("passing", "failing"));
    assert!(change.cause.contains("127.0.0.1:5432"));
}

#[test]
fn an_instance_passes_only_while_all_its_tcp_ports_do() {
    let mut book = empty();
    let mut asked = request("cassandra", 9042);
    asked.ports.push(PortRequest { number: 7000, ..asked.ports[0].clone() });
    asked.ports.push(udp(53));
    let (planned, _, checks) = expose(&mut book, asked);
    assert_eq!(checks.len(), 2);
    book.observe(&checks[0], PASSED);
    book.observe(&checks[1], FAILED);
    assert_eq!(book.records()[0].health, Health::Failing);
    let healthy: Vec<bool> = book.services()[0].targets.iter().map(|target| target.healthy).collect();
    assert_eq!(healthy, [true, false, true]);
    assert_eq!(book.exposed(&planned).warnings.len(), 1);
    book.observe(&checks[1], PASSED);
    assert_eq!(book.records()[0].health, Health::Passing);
}

#[test]
fn udp_alone_passes_without_a_check() {
    let mut book = empty();
    let (planned, _, checks) =
        expose(&mut book, ExposeRequest { ports: vec![udp(53)], ..request("dns", 53) });
    assert!(checks.is_empty());
    assert_eq!(book.records()[0].health, Health::Passing);
    assert_eq!(book.exposed(&planned).check, "none for UDP");
}

#[test]
fn equal_content_changes_nothing_and_keeps_the_verdict() {
    let mut book = empty();
    let (_, _, checks) = expose(&mut book, request("orders", 5432));
    book.observe(&checks[0], PASSED);
    let mut draft = book.draft();
    let planned = draft.expose(request("orders", 5432), &rules()).expect("valid");
    assert!(!draft.is_changed());
    assert!(!book.exposed(&planned).replaced);
    assert_eq!(book.exposed(&planned).record.health, Health::Passing);
}

#[test]
fn other_content_replaces_and_is_judged_anew() {
    let mut book = empty();
    let (_, _, old) = expose(&mut book, request("orders", 5432));
    book.observe(&old[0], PASSED);
    let wider = ExposeRequest { visibility: Visibility::All, ..request("orders", 5433) };
    let (planned, changes, _) = expose(&mut book, wider);
    assert!(book.exposed(&planned).replaced);
    assert_eq!(changes[0].now, "replaced");
    assert_eq!(book.records().len(), 1);
    assert!(!book.has(&old[0]));
    assert_eq!(book.observe(&old[0], PASSED), None, "a late check says nothing about the new target");
    assert_eq!(book.records()[0].health, Health::Failing);
}

#[test]
fn other_callers_take_no_other_check() {
    let mut book = empty();
    let (_, _, checks) = expose(&mut book, request("orders", 5432));
    book.observe(&checks[0], PASSED);
    let wider = ExposeRequest { visibility: Visibility::All, ..request("orders", 5432) };
    let (planned, changes, fresh) = expose(&mut book, wider);
    assert!(book.exposed(&planned).replaced && fresh.is_empty());
    assert_eq!(changes[0].now, "replaced");
    let record = &book.records()[0];
    assert_eq!((&record.visibility, record.health), (&Visibility::All, Health::Passing));
    assert!(book.has(&checks[0]));
}

#[test]
fn another_policy_is_told_to_others_and_holds_for_what_comes() {
    let mut book = empty();
    expose(&mut book, request("orders", 5432));
    let deny = Policy { base: Base::Deny, audit: false };
    assert!(book.set_policy(deny) && !book.set_policy(deny));
    let nobody = Visibility::Rules { own: false, rules: Vec::new() };
    assert_eq!(book.records()[0].visibility, nobody);
    assert_eq!(book.services()[0].targets[0].access.policy, deny);
    expose(&mut book, request("web", 80));
    assert_eq!(book.records()[1].visibility, nobody);
    assert!(book.set_policy(Policy::default()));
    assert!(book.records().iter().all(|record| record.visibility == Visibility::Own));
}

#[test]
fn withdrawing_a_service_takes_all_its_instances_of_this_node() {
    let mut book = empty();
    expose(&mut book, instance("one", request("orders", 5432)));
    expose(&mut book, instance("two", request("orders", 5433)));
    expose(&mut book, request("web", 80));
    let mut draft = book.draft();
    let gone = draft.withdraw(&withdrawal("orders", None)).expect("registered");
    assert_eq!(gone.instances.iter().map(InstanceName::as_str).collect::<Vec<_>>(), ["one", "two"]);
    let (changes, _) = book.adopt(draft);
    assert!(changes.iter().all(|change| change.now == "withdrawn"));
    assert_eq!(book.records().len(), 1);
}

#[test]
fn withdrawing_one_instance_leaves_the_others() {
    let mut book = empty();
    expose(&mut book, instance("one", request("orders", 5432)));
    expose(&mut book, instance("two", request("orders", 5433)));
    let mut draft = book.draft();
    draft.withdraw(&withdrawal("orders", Some("one"))).expect("registered");
    book.adopt(draft);
    assert_eq!(book.records()[0].instance.as_str(), "two");
}

#[test]
fn what_is_not_registered_cannot_be_withdrawn_and_the_error_names_what_is() {
    let mut book = empty();
    let error = book.draft().withdraw(&withdrawal("orders", None)).expect_err("unknown").to_string();
    assert!(error.contains("it has: nothing"), "{error}");
    expose(&mut book, instance("one", request("orders", 5432)));
    expose(&mut book, request("web", 80));
    let mut draft = book.draft();
    let error = draft.withdraw(&withdrawal("orders", Some("two"))).expect_err("unknown").to_string();
    assert!(error.contains("orders --instance one, web"), "{error}");
    assert!(!draft.is_changed());
    for n in 0..20 {
        expose(&mut book, request(&format!("s{n:02}"), 80));
    }
    let error = book.draft().withdraw(&withdrawal("other", None)).expect_err("unknown").to_string();
    assert!(error.contains("14 more"), "{error}");
}

fn of(owner: Owner, request: ExposeRequest) -> ExposeRequest {
    ExposeRequest { owner, ..request }
}

#[test]
fn what_a_user_registered_is_changed_and_withdrawn_by_that_user_and_operators() {
    let (ann, bob) = (Owner::User(1_000), Owner::User(1_001));
    let mut book = empty();
    expose(&mut book, of(ann, request("web", 80)));
    // Neither another content, nor the same, nor an instance beside it.
    for stolen in [request("web", 81), request("web", 80), instance("mine", request("web", 80))] {
        let error = book.draft().expose(of(bob, stolen), &rules()).expect_err("of another user");
        assert!(matches!(error, ExposeError::Owned { owner, .. } if owner == ann), "{error}");
    }
    let by = |by, name| WithdrawRequest { by, ..withdrawal("web", name) };
    let mut draft = book.draft();
    let error = draft.withdraw(&by(bob, None)).expect_err("of another user").to_string();
    assert!(error.contains("`web` on this node belongs to user 1000"), "{error}");
    assert!(!draft.is_changed());
    book.draft().withdraw(&by(ann, None)).expect("her own");
    book.draft().withdraw(&by(Owner::Operator, None)).expect("an operator");
    expose(&mut book, of(ann, request("web", 82)));
    expose(&mut book, of(bob, request("other", 80)));
    assert_eq!(book.records().len(), 2);
}

#[test]
fn what_an_operator_exposed_last_belongs_to_the_operators() {
    let ann = Owner::User(1_000);
    let mut book = empty();
    expose(&mut book, of(ann, request("web", 80)));
    expose(&mut book, request("web", 81));
    let error = book.draft().expose(of(ann, request("web", 80)), &rules()).expect_err("taken over");
    assert!(error.to_string().contains("belongs to the operator"), "{error}");
    // Withdrawing all instances takes all of them to be one's own.
    expose(&mut book, instance("second", request("web", 81)));
    assert!(book.draft().withdraw(&WithdrawRequest { by: ann, ..withdrawal("web", None) }).is_err());
}

#[test]
fn owners_survive_restarts_and_older_files_belong_to_the_operators() {
    let ann = Owner::User(1_000);
    let mut book = empty();
    expose(&mut book, of(ann, request("web", 80)));
    expose(&mut book, request("orders", 5432));
    let text = serde_json::to_string(&book.stored(&book.draft())).expect("JSON");
    assert_eq!(text.matches("\"user\"").count(), 1, "{text}");
    let (again, _) = restarted(&book, rules());
    assert!(again.draft().expose(of(Owner::User(1), request("web", 81)), &rules()).is_err());
    assert!(again.draft().expose(of(ann, request("web", 81)), &rules()).is_ok());
    let older: Stored = serde_json::from_str(&text.replace(",\"user\":1000", "")).expect("an older file");
    let (older, _) = Book::restore(rules(), Some(older)).expect("reads");
    assert!(older.draft().expose(of(ann, request("web", 81)), &rules()).is_err());
    assert!(older.draft().expose(request("web", 81), &rules()).is_ok());
}

#[test]
fn a_barred_registration_keeps_its_owner() {
    let ann = Owner::User(1_000);
    let mut book = empty();
    expose(&mut book, of(ann, request("web", 80)));
    let mut stricter = rules();
    stricter.claims.services = vec!["other".to_owned()];
    let (barred, _) = restarted(&book, stricter);
    assert!(
        barred.draft().withdraw(&WithdrawRequest { by: Owner::User(1), ..withdrawal("web", None) }).is_err()
    );
    assert!(barred.draft().withdraw(&WithdrawRequest { by: ann, ..withdrawal("web", None) }).is_ok());
}

#[test]
fn a_draft_that_is_dropped_leaves_no_trace() {
    let mut book = empty();
    expose(&mut book, request("web", 80));
    let mut draft = book.draft();
    draft.expose(request("orders", 5432), &rules()).expect("valid");
    draft.withdraw(&withdrawal("web", None)).expect("registered");
    drop(draft);
    assert_eq!(book.records()[0].service.as_str(), "web");
}

#[test]
fn a_request_overtaken_in_its_own_draft_is_still_answered() {
    let mut book = empty();
    let mut draft = book.draft();
    let planned = draft.expose(request("orders", 5432), &rules()).expect("valid");
    draft.withdraw(&withdrawal("orders", None)).expect("registered");
    book.adopt(draft);
    assert_eq!(book.exposed(&planned).record.service.as_str(), "orders");
    assert!(book.records().is_empty());
}

#[test]
fn the_number_of_registrations_is_limited() {
    let book = empty();
    let mut draft = book.draft();
    for n in 0..MAX_OWN_RECORDS {
        draft.expose(request(&format!("s{n}"), 80), &rules()).expect("room");
    }
    let error = draft.expose(request("one-more", 80), &rules()).expect_err("full");
    assert!(matches!(error, ExposeError::TooMany), "{error}");
    draft.expose(request("s0", 81), &rules()).expect("a replacement needs no room");
}

#[test]
fn records_that_need_too_many_fragments_are_refused() {
    let mut draft = empty().draft();
    let long = |n: usize| ExposeRequest {
        metadata: (0..6).map(|key| (format!("k{key}"), "v".repeat(128))).collect(),
        ..request(&format!("s{n}"), 80)
    };
    for n in 0..usize::from(MAX_FRAGMENTS) {
        draft.expose(long(n), &rules()).expect("one fragment each");
    }
    let error = draft.expose(long(99), &rules()).expect_err("no room");
    assert!(matches!(error, ExposeError::NoRoom), "{error}");
    draft.expose(request("s0", 80), &rules()).expect("a shorter one fits in its place");
    draft.expose(long(99), &rules()).expect("s0 shares its fragment with a long one");
}

#[test]
fn a_restart_brings_back_everything_but_verdicts() {
    let mut book = empty();
    let mut asked = instance("one", request("orders", 5432));
    asked.ports.push(udp(53));
    asked.target = Some("10.0.0.7".parse().expect("address"));
    asked.visibility = Visibility::Groups(vec!["west".parse().expect("name")]);
    asked.metadata = vec![("k".to_owned(), "v=\u{e9}".to_owned())];
    let (_, _, checks) = expose(&mut book, asked);
    let (again, faults) = restarted(&book, rules());
    assert!(faults.is_empty());
    assert_eq!(again.records(), book.records());
    book.observe(&checks[0], PASSED);
    assert_eq!(again.records()[0].health, Health::Failing, "until its first check");
    assert_eq!(again.checks().len(), 1);
}

#[test]
fn wildcard_listeners_are_remembered_while_they_are_down_and_over_a_restart() {
    let mut book = empty();
    let (_, _, checks) = expose(&mut book, request("orders", 5432));
    let wildcard = |book: &Book| book.services()[0].targets[0].wildcard;
    assert_eq!(wildcard(&book), None);
    book.observe(&checks[0], PASSED);
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let (_, _, checks) = expose(&mut book, request("orders", port));
    book.observe(&checks[0], PASSED);
    assert_eq!(book.observe_listeners(&Listeners::read_blocking(), &Listeners::default()), Learned::Lasting);
    assert_eq!(wildcard(&book), Some(true));
    assert_eq!(
        book.observe_listeners(&Listeners::default(), &Listeners::default()),
        Learned::Nothing,
        "nothing is learned from silence"
    );
    assert_eq!(wildcard(&book), Some(true));
    assert_eq!(wildcard(&restarted(&book, rules()).0), Some(true));
}

#[test]
fn a_program_on_the_loopback_address_alone_costs_no_write() {
    let mut book = empty();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let (_, _, checks) = expose(&mut book, request("orders", listener.local_addr().expect("bound").port()));
    book.observe(&checks[0], PASSED);
    assert_eq!(book.observe_listeners(&Listeners::read_blocking(), &Listeners::default()), Learned::Passing);
    assert_eq!(book.services()[0].targets[0].wildcard, Some(false));
    assert_eq!(book.observe_listeners(&Listeners::read_blocking(), &Listeners::default()), Learned::Nothing);
}

#[test]
fn listeners_of_this_machine_say_nothing_about_another_one() {
    let mut book = empty();
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let far = ExposeRequest { target: Some("10.0.0.7".parse().expect("address")), ..request("web", port) };
    let (_, _, checks) = expose(&mut book, far);
    book.observe(&checks[0], Probe { passed: true, is_local: false, trouble: None });
    assert_eq!(book.observe_listeners(&Listeners::read_blocking(), &Listeners::default()), Learned::Nothing);
    assert_eq!(book.services()[0].targets[0].wildcard, None);
}

#[test]
fn what_later_rules_forbid_is_kept_but_not_offered() {
    let mut book = empty();
    expose(&mut book, request("orders", 5432));
    expose(&mut book, request("web", 80));
    let mut stricter = rules();
    stricter.claims.services = vec!["web".to_owned()];
    let (again, faults) = restarted(&book, stricter);
    assert_eq!(faults.len(), 1);
    assert!(matches!(faults[0].1, ExposeError::NotAllowed { .. }));
    assert_eq!(again.records().len(), 1);
    let (back, faults) = restarted(&again, rules());
    assert!(faults.is_empty());
    assert_eq!(back.records(), book.records());
    let mut draft = again.draft();
    draft.withdraw(&withdrawal("orders", None)).expect("it can still be withdrawn");
}

#[test]
fn a_file_that_cannot_be_ours_is_refused_as_a_whole() {
    let mut book = empty();
    expose(&mut book, request("orders", 5432));
    let good = book.stored(&book.draft());
    let refused = |stored: Stored| Book::restore(rules(), Some(stored)).expect_err("damaged");
    assert!(refused(Stored { version: 2, ..good.clone() }).contains("version 2"));
    let mut doubled = good.clone();
    doubled.services.push(good.services[0].clone());
    assert!(refused(doubled).contains("twice"));
    let mut broken = good;
    broken.services[0].spec.ports.clear();
    assert!(refused(broken).contains("no port"));
}

fn raise(service: &str, tries: (u8, u8, u8)) -> Raise {
    let (service, instance) = (service.parse().expect("name"), "vm-b".parse().expect("name"));
    Raise { service, instance, tries: Tries { service: tries.0, group: tries.1, instance: tries.2 } }
}

/// Raises through a draft, as the task does after a write. Returns what changed.
fn raised(book: &mut Book, raise: Raise) -> Vec<Change> {
    let mut draft = book.draft();
    draft.raise(raise);
    if draft.is_changed() { book.adopt(draft).0 } else { Vec::new() }
}

#[test]
fn a_raised_try_is_published_and_survives_restarts_and_replacements() {
    let mut book = empty();
    expose(&mut book, request("web", 80));
    let tries = |book: &Book| book.records()[0].tries;
    let changes = raised(&mut book, raise("web", (2, 0, 1)));
    assert_eq!((changes.len(), changes[0].was, changes[0].now), (1, "blocked", "moved"));
    assert_eq!(tries(&book), Tries { service: 2, group: 0, instance: 1 });
    let (mut again, barred) = restarted(&book, rules());
    assert!(barred.is_empty());
    assert_eq!(tries(&again), tries(&book));
    expose(&mut again, request("web", 81));
    assert_eq!((tries(&again).service, again.records()[0].ports[0].number), (2, 81));
}

#[test]
fn a_try_never_goes_down_and_each_level_is_raised_on_its_own() {
    let mut book = empty();
    expose(&mut book, request("web", 80));
    raised(&mut book, raise("web", (5, 0, 0)));
    assert!(raised(&mut book, raise("web", (4, 0, 0))).is_empty(), "nothing is written for it");
    raised(&mut book, raise("web", (1, 255, 0)));
    assert_eq!(book.records()[0].tries, Tries { service: 5, group: 255, instance: 0 });
}

#[test]
fn what_is_not_registered_cannot_be_raised_and_a_new_registration_starts_at_zero() {
    let mut book = empty();
    assert!(raised(&mut book, raise("web", (1, 0, 0))).is_empty());
    expose(&mut book, request("web", 80));
    raised(&mut book, raise("web", (1, 0, 0)));
    let mut draft = book.draft();
    draft.withdraw(&withdrawal("web", None)).expect("registered");
    book.adopt(draft);
    expose(&mut book, request("web", 80));
    assert_eq!(book.records()[0].tries, Tries::default());
}

#[test]
fn a_file_without_tries_is_read() {
    let mut book = empty();
    expose(&mut book, request("web", 80));
    let mut json = serde_json::to_value(book.stored(&book.draft())).expect("serializes");
    json["services"][0].as_object_mut().expect("an object").remove("tries").expect("it is written");
    let stored = serde_json::from_value(json).expect("parses");
    let (book, _) = Book::restore(rules(), Some(stored)).expect("restores");
    assert_eq!(book.records()[0].tries, Tries::default());
}
