//! Reads after writes, and what one write costs and tells.

use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Waker};

use gossamer_core::catalog::{InstanceState, InstanceView};
use tokio::sync::broadcast::error::TryRecvError;

use super::*;
use crate::api::views_for_tests::{instance, node};

fn service(text: &str) -> ServiceName {
    text.parse().expect("name")
}

fn group(text: &str) -> GroupName {
    text.parse().expect("name")
}

fn view(service: &str, instances: Vec<InstanceView>) -> Option<ServiceView> {
    Some(ServiceView { service: self::service(service), instances, hidden: Vec::new() })
}

fn id(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 16])
}

fn why(by: &str) -> Why {
    Why { since: 7, cause: "it did not answer probes", by: by.to_owned() }
}

fn write(index: &mut IndexWriter, summary: &NodeSummary) {
    index.update_node(summary.node, |known| *known = summary.clone());
}

#[test]
fn readers_see_what_the_writer_does() {
    let mut writer = IndexWriter::default();
    let reader = writer.reader();
    writer.set_service(&service("web"), view("web", vec![]));
    writer.set_service(&service("orders"), view("orders", vec![]));
    assert_eq!(reader.services(), [service("orders"), service("web")]);
    assert_eq!(reader.service(&service("orders")).expect("there").service, service("orders"));
    writer.set_service(&service("orders"), None);
    assert!(reader.service(&service("orders")).is_none());
    assert_eq!((reader.count_services(), reader.nodes().len()), (1, 0));
}

#[test]
fn a_node_is_found_by_id_and_by_name_and_under_its_new_name_only() {
    let mut writer = IndexWriter::default();
    let reader = writer.reader();
    write(&mut writer, &node("vm-b", 2));
    write(&mut writer, &node("vm-b", 1));
    let named = |name: &str| {
        let found = reader.nodes_named(&name.parse().expect("name"));
        found.iter().map(|summary| summary.node).collect::<Vec<_>>()
    };
    assert_eq!(named("vm-b"), [id(1), id(2)]);
    write(&mut writer, &node("vm-c", 2));
    assert_eq!((named("vm-b"), named("vm-c")), (vec![id(1)], vec![id(2)]));
    assert_eq!((reader.name_of(id(2)), reader.name_of(id(9))), ("vm-c".to_owned(), id(9).to_string()));
    assert_eq!(reader.nodes().iter().map(|summary| summary.node).collect::<Vec<_>>(), [id(1), id(2)]);
}

#[test]
fn a_node_without_card_that_is_no_live_member_is_dropped() {
    let mut writer = IndexWriter::default();
    let reader = writer.reader();
    for state in [MemberState::Alive, MemberState::Suspect, MemberState::Down] {
        writer.update_node(id(1), |known| known.state = Some(state));
        assert_eq!(reader.node(id(1)).is_some(), state.is_up());
    }
    let mut gone = node("vm-b", 2);
    gone.state = Some(MemberState::Left);
    write(&mut writer, &gone);
    assert!(reader.node(id(2)).is_some(), "its card is still held");
    writer.update_node(id(2), |known| known.view = None);
    assert!(reader.node(id(2)).is_none() && reader.nodes_named(&"vm-b".parse().expect("name")).is_empty());
}

#[test]
fn a_group_exists_while_a_service_has_a_visible_instance_in_it() {
    let mut writer = IndexWriter::default();
    let reader = writer.reader();
    writer.set_service(&service("a"), view("a", vec![instance("n1", "west"), instance("n2", "west")]));
    writer.set_service(&service("b"), view("b", vec![instance("n1", "west"), instance("n3", "east")]));
    assert!(reader.has_group(&group("west")) && reader.has_group(&group("east")));
    writer.set_service(&service("a"), None);
    writer.set_service(&service("b"), view("b", vec![instance("n1", "west")]));
    assert!(reader.has_group(&group("west")) && !reader.has_group(&group("east")));
    let mut hidden = view("b", vec![]).expect("a view");
    hidden.hidden = vec![instance("n1", "west")];
    writer.set_service(&service("b"), Some(hidden));
    assert!(!reader.has_group(&group("west")));
}

#[test]
fn a_custom_name_is_held_while_an_instance_behind_the_short_name_claims_it() {
    let mut writer = IndexWriter::default();
    let reader = writer.reader();
    let claiming = |group: &str, rank: u16, fqdns: &[&str]| InstanceView {
        rank,
        fqdns: fqdns.iter().map(|fqdn| fqdn.parse().expect("FQDN")).collect(),
        ..instance("n1", group)
    };
    let found = |name: &str| match reader.custom(name) {
        Some(CustomTarget::Service(service) | CustomTarget::Wildcard(service)) => service.to_string(),
        other => format!("{other:?}"),
    };
    let own = || claiming("east", 0, &["pg.test", "*.test"]);
    writer.set_service(&service("db"), view("db", vec![own(), claiming("west", 2, &["pg.test", "b.test"])]));
    writer.set_service(&service("web"), view("web", vec![claiming("west", 1, &["pg.test", "b.test"])]));
    assert_eq!([found("pg.test"), found("b.test"), found("x.test")], ["db", "web", "db"]);
    let foreign = InstanceView { imported: false, ..own() };
    writer.set_service(&service("db"), view("db", vec![foreign.clone()]));
    assert_eq!([found("pg.test"), found("x.test")], ["web".to_owned(), "None".to_owned()]);
    writer.set_service(&service("db"), view("db", vec![foreign, claiming("west", 1, &["pg.test"])]));
    assert!(matches!(reader.custom("pg.test"), Some(CustomTarget::Disputed(_))));
    assert_eq!(reader.disputed(), [("pg.test".parse().expect("FQDN"), vec![service("db"), service("web")])]);
    writer.set_service(&service("db"), None);
    writer.set_service(&service("web"), None);
    assert_eq!(reader.custom("pg.test"), None);
}

#[test]
fn followers_are_told_of_differences_only_and_an_equal_view_stays_the_same_one() {
    let mut writer = IndexWriter::default();
    let reader = writer.reader();
    let mut changes = reader.changes();
    writer.set_service(&service("web"), view("web", vec![instance("n1", "west")]));
    let first = reader.service(&service("web")).expect("there");
    writer.set_service(&service("web"), view("web", vec![instance("n1", "west")]));
    assert!(Arc::ptr_eq(&first, &reader.service(&service("web")).expect("there")));
    assert_eq!(changes.try_recv(), Ok(service("web")));
    assert_eq!(changes.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(reader.written(), Written { services: 2, nodes: 0 });
}

/// Returns what a line says, without its time.
fn words(line: &WatchLine) -> String {
    match line {
        WatchLine::Node { node, was, now, cause, by, .. } => format!("{node} {was} {now} ({cause}, {by})"),
        WatchLine::Service { service, instance, was, now, changed, .. } => {
            format!("{service}/{instance} {was} {now} {}", changed.join(","))
        }
        WatchLine::Lost { lines, .. } => format!("lost {lines}"),
        WatchLine::Watching { .. } => "watching".to_owned(),
    }
}

async fn lines(watcher: &mut Watcher) -> Vec<String> {
    let mut all = Vec::new();
    while watcher.has_more() {
        all.push(words(&watcher.next().await.expect("the index lives")));
    }
    all
}

#[tokio::test]
async fn who_watches_gets_a_line_for_each_instance_that_changed_and_no_other() {
    let mut writer = IndexWriter::default();
    let mut watcher = writer.reader().watch();
    let (one, two) = (instance("n1", "west"), instance("n2", "west"));
    writer.set_service(&service("web"), view("web", vec![one.clone(), two.clone()]));
    assert_eq!(lines(&mut watcher).await, ["web/n2 absent usable ", "web/n1 absent usable "]);
    let down = InstanceView { state: InstanceState::NodeDown, ..two.clone() };
    writer.set_service(&service("web"), view("web", vec![one.clone(), down.clone()]));
    assert_eq!(lines(&mut watcher).await, ["web/n2 usable down "]);
    let mut other = one.clone();
    (other.weight, other.metadata) = (5, vec![("v".to_owned(), "2".to_owned())]);
    writer.set_service(&service("web"), view("web", vec![other, down]));
    assert_eq!(lines(&mut watcher).await, ["web/n1 usable usable weight,metadata"]);
    writer.set_service(&service("web"), None);
    assert_eq!(lines(&mut watcher).await, ["web/n2 down absent ", "web/n1 usable absent "]);
}

#[tokio::test]
async fn who_watches_gets_a_line_for_each_state_of_a_node_and_for_its_card() {
    let mut writer = IndexWriter::default();
    let mut watcher = writer.reader().watch();
    let alive = |known: &mut NodeSummary| known.state = Some(MemberState::Alive);
    writer.update_node(id(2), alive);
    write(&mut writer, &node("vm-b", 2));
    writer.update_node(id(2), alive);
    writer.update_node(id(2), |known| {
        (known.state, known.why) = (Some(MemberState::Down), Some(why("vm-c")));
    });
    let unnamed = format!("{} unknown alive (its card, self)", id(2));
    let expected = [
        unnamed.as_str(),
        "vm-b alive alive (its card, self)",
        "vm-b alive down (it did not answer probes, vm-c)",
    ];
    assert_eq!(lines(&mut watcher).await, expected);
    let changes = writer.reader().member_changes();
    assert_eq!(changes, [("alive", 1), ("suspect", 0), ("down", 1), ("left", 0)]);
}

#[test]
fn who_is_told_of_a_node_sees_it_so() {
    const TURNS: usize = 2_000;
    let mut writer = IndexWriter::default();
    let (reader, mut watcher) = (writer.reader(), writer.reader().watch());
    let read = AtomicUsize::new(0);
    let is_late = |turn: usize| {
        while !watcher.has_more() {
            std::thread::yield_now();
        }
        let seen = node_word(reader.node(id(1)).and_then(|known| known.state));
        let mut next = std::pin::pin!(watcher.next());
        let line = next.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Some(line)) = line else { return true };
        read.store(turn, Ordering::Release);
        !matches!(&*line, WatchLine::Node { now, .. } if now == seen)
    };
    let late = std::thread::scope(|scope| {
        let reading = scope.spawn(|| (1..=TURNS).map(is_late).filter(|is_late| *is_late).count());
        for turn in 1..=TURNS {
            let state = if turn % 2 == 0 { MemberState::Suspect } else { MemberState::Alive };
            writer.update_node(id(1), |known| known.state = Some(state));
            while read.load(Ordering::Acquire) < turn {
                std::thread::yield_now();
            }
        }
        reading.join().expect("reads")
    });
    assert_eq!(late, 0, "of {TURNS} lines came before what they tell");
}

#[tokio::test]
async fn a_slow_reader_loses_the_oldest_lines_is_told_and_costs_nobody_else() {
    let mut writer = IndexWriter::default();
    let reader = writer.reader();
    let (mut slow, mut quick) = (reader.watch(), reader.watch());
    let mut read = 0;
    for number in 0..1_500 {
        let name = format!("s{number}");
        writer.set_service(&service(&name), view(&name, vec![instance("n1", "west")]));
        read += lines(&mut quick).await.len();
    }
    assert_eq!(read, 1_500);
    let late = lines(&mut slow).await;
    assert_eq!((late[0].as_str(), late.len()), ("lost 476", 1 + 1_024));
    assert_eq!(late[1], "s476/n1 absent usable ");
    assert_eq!(reader.watchers(), (2, 476));
    drop((slow, quick));
    assert_eq!(reader.watchers(), (0, 476));
}

#[test]
fn a_line_is_about_its_service_or_its_node_by_name_or_id() {
    let lost = WatchLine::Lost { at_us: 1, lines: 2 };
    assert!(lost.is_about("anything"));
    let line = WatchLine::Node {
        at_us: 1,
        node: "vm-b".to_owned(),
        id: id(2).to_string(),
        was: "alive".to_owned(),
        now: "down".to_owned(),
        cause: "x".to_owned(),
        by: "self".to_owned(),
    };
    assert!(line.is_about("vm-b") && line.is_about(&id(2).to_string()) && !line.is_about("vm-c"));
    let json = serde_json::to_string(&line).expect("serializes");
    assert!(json.starts_with("{\"kind\":\"node\",\"at_us\":1,"), "{json}");
    assert_eq!(serde_json::from_str::<WatchLine>(&json).expect("parses"), line);
}

#[test]
fn a_change_ends_what_was_read_before_it_and_an_equal_view_does_not() {
    let mut writer = IndexWriter::default();
    let revisions = writer.reader().revisions().clone();
    let (orders, west) = (service("orders"), group("west"));
    let vm: NodeName = "vm-a".parse().expect("name");
    let is_read_again = |subject: Subject<'_>, change: &mut dyn FnMut()| {
        let basis = revisions.basis(subject);
        change();
        !revisions.is_current(basis)
    };
    let with_one = || view("orders", vec![instance("db-1", "west")]);
    assert!(is_read_again(Subject::Service(&orders), &mut || writer.set_service(&orders, with_one())));
    assert!(!is_read_again(Subject::Service(&orders), &mut || writer.set_service(&orders, with_one())));
    assert!(!is_read_again(Subject::Group(&west), &mut || writer.set_service(&orders, with_one())));
    assert!(is_read_again(Subject::Group(&west), &mut || writer.set_service(&orders, None)));
    assert!(is_read_again(Subject::Node(&vm), &mut || write(&mut writer, &node("vm-a", 1))));
    assert!(is_read_again(Subject::Node(&vm), &mut || write(&mut writer, &node("vm-b", 1))));
}
