//! Words of access lines, and their bound.

use super::*;

const ALL: [Reason; 21] = [
    Reason::Done,
    Reason::ClientReset,
    Reason::ServiceReset,
    Reason::Stalled,
    Reason::Idle,
    Reason::Released,
    Reason::Revoked,
    Reason::Drained,
    Reason::Probe,
    Reason::Stopping,
    Reason::ClientGone,
    Reason::UnknownName,
    Reason::UnknownPort,
    Reason::NoInstance,
    Reason::Denied,
    Reason::Refused,
    Reason::Busy,
    Reason::NoFiles,
    Reason::Draining,
    Reason::Unreachable,
    Reason::Malformed,
];

#[test]
fn every_reason_has_a_word_of_its_own_that_the_document_explains() {
    let document = include_str!("../../../../docs/operating.md");
    let words: std::collections::BTreeSet<_> = ALL.map(Reason::word).into();
    assert_eq!(words.len(), ALL.len());
    let (_, table) = document.split_once("| `reason` | means |").expect("the table of reasons");
    let rows: Vec<_> = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect();
    for word in words {
        let row = format!("| `{word}` | ");
        assert!(rows.iter().any(|line| line.starts_with(&row)), "docs/operating.md lacks {word}");
    }
    assert_eq!(rows.len(), ALL.len() + 1, "a row for each reason, below the line of dashes");
}

#[test]
fn what_a_flow_met_last_says_why_nobody_had_it() {
    let nobody = ConnectError::Unreachable { name: "orders".to_owned(), why: "x".to_owned() };
    assert_eq!(Reason::of_error(&nobody, None), Reason::NoInstance);
    assert_eq!(Reason::of_error(&nobody, Some(Reason::Refused)), Reason::Refused);
    let denied = ConnectError::Denied("orders".to_owned());
    assert_eq!(Reason::of_error(&denied, Some(Reason::Refused)), Reason::Denied);
    assert_eq!(Reason::of_status(OpenStatus::Busy), Reason::Busy);
}

#[test]
fn an_end_says_what_broke_and_a_clean_one_nothing() {
    assert_eq!(End::from(Reason::Done).broken(), None);
    assert_eq!(End::from(Reason::Stopping).broken().as_deref(), Some("stopping"));
    let broken = End::from(Broken::Service(io::ErrorKind::ConnectionReset.into()));
    assert_eq!((broken.reason, broken.broken()), (Reason::ServiceReset, broken.detail.clone()));
    assert!(broken.detail.is_some_and(|detail| detail.starts_with("service: ")));
}

#[test]
fn a_peer_causes_a_bounded_number_of_lines() {
    let lines = Lines::default();
    let admitted = |since| (0..1_000).filter(|_| lines.admits_malformed(since)).count();
    assert_eq!(admitted(Duration::ZERO), LINES_A_SECOND as usize);
    assert_eq!(admitted(Duration::from_millis(1_900)), LINES_A_SECOND as usize);
    assert_eq!(admitted(Duration::from_millis(1_950)), 0);
}

#[test]
fn a_flow_that_asks_again_and_again_has_one_line_for_each_answer() {
    let (lines, peer) = (Lines::default(), crate::relay::tests::leaf(crate::relay::tests::THERE, "west"));
    let request = |flow, name: &str| OpenRequest {
        flow,
        service: name.parse().expect("name"),
        instance: "db-0".parse().expect("name"),
        port: 80.into(),
        transport: Transport::Tcp,
    };
    let first = request(1, "orders");
    let line = Line::inbound(Some(&first), &peer, Instant::now());
    assert!(lines.admits(&line.because(Reason::Refused)));
    assert!((0..100).all(|_| !lines.admits(&line.because(Reason::Refused))));
    assert!(lines.admits(&line.because(Reason::Denied)));
    assert!(lines.admits(&Line { is_open: true, ..line.because(Reason::Done) }));
    let other = request(1, "web");
    assert!(lines.admits(&Line::inbound(Some(&other), &peer, Instant::now()).because(Reason::Refused)));
    for flow in 2..2_000 {
        let request = request(flow, "orders");
        assert!(lines.admits(&Line::inbound(Some(&request), &peer, Instant::now()).because(Reason::Refused)));
    }
    assert!(lines.refused.lock().expect("whole").len() <= REFUSED_OF_LATE);
}
