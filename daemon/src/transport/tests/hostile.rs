//! Members and strangers that break the protocol: what it costs them, and that it costs nobody else.

use gossamer_wire::frame::Hello;
use gossamer_wire::limits::{MAX_FORWARD, MAX_SWIM_BYTES};
use gossamer_wire::swim::SwimMember;

use super::super::link::{CLOSE_BAD_BYTES, CLOSE_DUPLICATE, CLOSE_REFUSED, CLOSE_TWICE, Link};
use super::raw::{Anonymous, Raw, close_code, frame_where};
use super::*;

impl Node {
    fn count(&self, metric: &str) -> u64 {
        self.metrics.snapshot().get(metric).copied().unwrap_or_default()
    }

    fn refused(&self, reason: &str) -> u64 {
        self.count(&format!("gossamer_handshakes_refused_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until a refusal is counted: the other side may hear of its end before that.
    async fn refuses(&self, reason: &str, times: u64) {
        let wait = async {
            while self.refused(reason) < times {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{reason}: {:?}", self.metrics.snapshot()));
        assert_eq!(self.refused(reason), times, "{reason}");
    }

    /// Returns the next root hash that arrives, and from whom.
    async fn root(&mut self) -> (NodeId, u64) {
        let receive = async {
            loop {
                if let Some(ToCatalog::Frame { from, frame: Frame::Root(hash) }) = self.catalog.recv().await {
                    return (from, hash);
                }
            }
        };
        timeout(SOON, receive).await.expect("a root hash")
    }
}

fn bytes(frame: &Frame) -> Vec<u8> {
    frame.encode().expect("fits")
}

fn hello(purpose: Purpose) -> Frame {
    Frame::Hello(Hello {
        purpose,
        nonce: 1,
        observed: "192.0.2.1:1".parse().expect("address"),
        statement_digest: [0; 16],
    })
}

#[tokio::test]
async fn bytes_that_no_honest_member_sends_close_its_connection_only() {
    let mut a = first_node();
    let b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    let raw = Raw::of(&a, "vm-c").await;
    let cut_root = [0, 0, 0, 0, 0, 3].to_vec();
    let forward = vec![raw.identity.node(); MAX_FORWARD + 1];
    let cases = [
        ("a length beyond every limit", vec![0xff, 0xff, 0xff, 0xff, 0, 3]),
        ("a root without its hash", cut_root),
        ("a byte too many", vec![0, 0, 0, 2, 0, 3, 1, 1]),
        ("a purpose that is none", vec![0, 0, 0, 1, 0, 8, 7]),
        ("a list that is too long", bytes(&Frame::Adverts { copies: Vec::new(), forward })),
        ("a packet that is too long", bytes(&Frame::Swim(vec![0; MAX_SWIM_BYTES + 1]))),
        ("a length bomb", [&[0, 0, 0, 9, 0, 5][..], &[253, 0, 0, 0, 0, 0, 1, 0, 0]].concat()),
    ];
    for (nonce, (what, bytes)) in (1..).zip(cases) {
        let mut greeted = raw.dial(a.address, Purpose::Control, nonce).await;
        a.connected_to(&raw.identity).await;
        greeted.send.write_all(&bytes).await.expect("writes");
        assert_eq!(close_code(&greeted.connection).await, CLOSE_BAD_BYTES, "{what}");
        assert_eq!(a.count("gossamer_bad_frames_total"), nonce, "{what}");
    }
    assert!(b.peers.send_frame(a.identity.node(), &Frame::Root(5)));
    assert_eq!(a.root().await, (b.identity.node(), 5));
}

#[tokio::test]
async fn frames_of_the_future_and_a_second_hello_mean_nothing() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut greeted = raw.dial(a.address, Purpose::Control, 1).await;
    let ignored = [
        [&[0, 0, 0, 4, 0x7f, 0xff][..], b"2040"].concat(),
        vec![0, 0, 0, 0, 0, 0],
        bytes(&hello(Purpose::Data)),
        bytes(&Frame::Statements(vec![vec![1; 70]])),
        bytes(&Frame::Root(9)),
    ];
    greeted.send.write_all(&ignored.concat()).await.expect("writes");
    assert_eq!(a.root().await, (raw.identity.node(), 9));
    assert_eq!(a.count("gossamer_bad_frames_total"), 0);
    assert_eq!(a.peers.connected(), 1);
}

#[tokio::test]
async fn every_kind_of_frame_reaches_its_part_with_the_verified_sender() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let node = raw.identity.node();
    let mut greeted = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    let identity = gossamer_wire::swim::Identity { node, generation: gossamer_wire::Generation::of_epoch(1) };
    let member = SwimMember { identity, incarnation: 0, state: gossamer_wire::swim::SwimState::Alive };
    let frames = [
        Frame::MemberHash(1),
        Frame::Members { members: vec![member], reply: true },
        Frame::Swim(vec![2; 3]),
        Frame::Want(Vec::new()),
        Frame::Ids { buckets: Vec::new(), ids: Vec::new(), whole: true },
        Frame::Adverts { copies: Vec::new(), forward: vec![node] },
    ];
    let all: Vec<u8> = frames.iter().flat_map(bytes).collect();
    greeted.send.write_all(&all).await.expect("writes");

    let hash = timeout(SOON, a.membership.recv()).await.expect("in time");
    assert!(
        matches!(hash, Some(ToMembership::Frame { from, frame: Frame::MemberHash(1) }) if from == node),
        "{hash:?}"
    );
    let members = timeout(SOON, a.membership.recv()).await.expect("in time");
    assert!(
        matches!(&members, Some(ToMembership::Members { from, members, reply: true, .. })
            if *from == node && members.len() == 1),
        "{members:?}"
    );
    let packet = timeout(SOON, a.membership.recv()).await.expect("in time");
    assert!(
        matches!(&packet, Some(ToMembership::Packet { from, bytes }) if *from == node && bytes == &[2; 3])
    );

    let connected = timeout(SOON, a.catalog.recv()).await.expect("in time");
    assert!(matches!(connected, Some(ToCatalog::Connected(peer)) if peer == node));
    let want = timeout(SOON, a.catalog.recv()).await.expect("in time");
    assert!(
        matches!(want, Some(ToCatalog::Frame { from, frame: Frame::Want(_) }) if from == node),
        "{want:?}"
    );
    let ids = timeout(SOON, a.catalog.recv()).await.expect("in time");
    assert!(
        matches!(ids, Some(ToCatalog::Frame { from, frame: Frame::Ids { whole: true, .. } }) if from == node),
        "{ids:?}"
    );
    let adverts = timeout(SOON, a.catalog.recv()).await.expect("in time");
    assert!(
        matches!(&adverts, Some(ToCatalog::Frame { from, frame: Frame::Adverts { forward, .. } }) if *from == node && forward == &[node]),
        "{adverts:?}"
    );
}

#[tokio::test]
async fn a_stream_that_ends_ends_the_link_and_is_no_bad_frame() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut greeted = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    greeted.send.write_all(&[0, 0, 0, 9]).await.expect("writes");
    greeted.send.finish().expect("finishes");
    close_code(&greeted.connection).await;
    let gone = timeout(SOON, a.membership.recv()).await.expect("in time");
    assert!(matches!(gone, Some(ToMembership::Disconnected(node)) if node == raw.identity.node()));
    assert_eq!(a.peers.connected(), 0);
    assert_eq!(a.count("gossamer_bad_frames_total"), 0);
}

#[tokio::test]
async fn a_datagram_longer_than_a_packet_is_dropped() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let greeted = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    let send = |len: usize| greeted.connection.send_datagram(vec![len as u8; len].into());
    send(MAX_SWIM_BYTES + 1).expect("fits the path");
    send(MAX_SWIM_BYTES).expect("fits the path");
    let packet = timeout(SOON, a.membership.recv()).await.expect("in time");
    assert!(
        matches!(&packet, Some(ToMembership::Packet { bytes, .. }) if bytes.len() == MAX_SWIM_BYTES),
        "{packet:?}"
    );
}

#[tokio::test]
async fn a_packet_longer_than_a_datagram_takes_the_stream() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut greeted = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    assert!(a.peers.send_packet(raw.identity.node(), vec![7; 1_300]));
    let frame = frame_where(&mut greeted, |frame| matches!(frame, Frame::Swim(_))).await;
    assert_eq!(frame, Frame::Swim(vec![7; 1_300]));
}

#[tokio::test]
async fn a_restarted_process_takes_the_place_of_its_old_link() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let old = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    let mut new = raw.dial(a.address, Purpose::Control, 2).await;
    assert_eq!(close_code(&old.connection).await, CLOSE_DUPLICATE);
    a.connected_to(&raw.identity).await;
    new.send.write_all(&bytes(&Frame::Root(2))).await.expect("writes");
    assert_eq!(a.root().await, (raw.identity.node(), 2));
    assert_eq!(a.peers.connected(), 1);
    // Nobody was told that the node is gone: the end of the old link was not the end of the last one.
    assert!(a.membership.try_recv().is_err());
}

#[tokio::test]
async fn two_dials_that_cross_end_with_the_one_of_the_smaller_node() {
    // Ids are random; until both orders were seen, the rule could be "the first one stays".
    let (mut ours_stayed, mut theirs_stayed) = (false, false);
    for _ in 0..64 {
        if ours_stayed && theirs_stayed {
            return;
        }
        let mut a = first_node();
        let raw = Raw::of(&a, "vm-b").await;
        a.peers.learn(raw.identity.node(), vec![raw.address], Source::Hint);
        let theirs = raw.accept().await;
        let ours = raw.dial(a.address, Purpose::Control, 7).await;
        a.connected_to(&raw.identity).await;
        let theirs = raw.answer(theirs, 7).await;
        let (stays, goes) = match a.identity.node() < raw.identity.node() {
            true => (theirs, ours),
            false => (ours, theirs),
        };
        assert_eq!(close_code(&goes.connection).await, CLOSE_DUPLICATE);
        let mut stays = stays;
        (ours_stayed, theirs_stayed) = (ours_stayed | stays.dialled, theirs_stayed | !stays.dialled);
        stays.send.write_all(&bytes(&Frame::Root(3))).await.expect("writes");
        assert_eq!(a.root().await.1, 3);
        assert_eq!(a.peers.connected(), 1);
    }
    panic!("64 pairs of random ids were ordered alike");
}

#[tokio::test]
async fn who_asks_to_be_dialled_is_dialled_for_that_purpose() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut greeted = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    greeted.send.write_all(&bytes(&Frame::DialBack(Purpose::Data))).await.expect("writes");
    let data = raw.answer(raw.accept().await, 1).await;
    assert_eq!(data.purpose, Purpose::Data);
    assert_eq!(data.peer.node, a.identity.node());
}

#[tokio::test]
async fn a_flow_to_a_node_that_dialled_asks_it_to_dial_again() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut greeted = raw.dial(a.address, Purpose::Control, 1).await;
    a.connected_to(&raw.identity).await;
    let opening = a.peers.open_flow(raw.identity.node());
    let dialling_back = async {
        frame_where(&mut greeted, |frame| *frame == Frame::DialBack(Purpose::Data)).await;
        raw.dial(a.address, Purpose::Data, 1).await
    };
    let (flow, data) = tokio::join!(opening, dialling_back);
    let mut flow = flow.expect("opens");
    flow.send.write_all(b"x").await.expect("writes");
    let (_, mut recv) = timeout(SOON, data.connection.accept_bi()).await.expect("in time").expect("a stream");
    let mut byte = [0];
    timeout(SOON, recv.read_exact(&mut byte)).await.expect("in time").expect("reads");
    assert_eq!(&byte, b"x");
}

#[tokio::test]
async fn a_link_that_is_not_read_refuses_frames_and_holds_no_more() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let greeted = raw.dial(a.address, Purpose::Control, 1).await;
    let (link, io) = Link::new(greeted);
    let queued = (0..10_000).take_while(|hash| link.send_frame(&Frame::Root(*hash))).count();
    assert_eq!(queued, 1_024);
    assert!(!link.send_frame(&Frame::Root(0)));
    drop(io);
    assert!(!link.send_frame(&Frame::Root(0)));
    let too_long = Frame::Swim(vec![0; gossamer_wire::limits::MAX_FRAME_BYTES + 1]);
    assert!(!link.send_frame(&too_long));
}

#[tokio::test]
async fn long_frames_fill_the_queue_of_a_link_by_their_bytes() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let (link, _io) = Link::new(raw.dial(a.address, Purpose::Control, 1).await);
    let frame = Frame::Swim(vec![0; 60_000]);
    let queued = (0..1_000).take_while(|_| link.send_frame(&frame)).count();
    let len = bytes(&frame).len();
    assert!(queued * len <= 4 << 20 && (queued + 2) * len > 4 << 20, "{queued}");
}

#[tokio::test]
async fn strangers_are_refused_and_counted_by_reason() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;

    let mut anonymous = raw.tls();
    anonymous.client_auth_cert_resolver = Arc::new(Anonymous);
    let connection = raw.dial_with(a.address, anonymous).await.expect("TLS takes it");
    assert_eq!(close_code(&connection).await, CLOSE_REFUSED);
    a.refuses("certificate", 1).await;

    let mut other_protocol = raw.tls();
    other_protocol.alpn_protocols = vec![b"gossamer/999".to_vec()];
    assert!(raw.dial_with(a.address, other_protocol).await.is_none());
    a.refuses("tls", 1).await;

    // Its own mesh would trust it, ours does not; it believes us, so that the verdict is ours.
    let foreign = first_node();
    let live: Live = Arc::new(ArcSwap::from_pointee(Credentials::of(&foreign.identity)));
    let (key, trust, clock) = (&*foreign.identity.key, &raw.trust, &Clock::default());
    let tls = tls::client(&tls::Side { key, live: &live, trust, clock }).expect("settings");
    if let Some(connection) = raw.dial_with(a.address, tls).await {
        timeout(SOON, connection.closed()).await.expect("in time");
    }
    a.refuses("tls", 2).await;
    assert_eq!(a.peers.connected(), 0);
}

#[tokio::test]
async fn a_member_that_does_not_begin_with_a_hello_is_refused() {
    let mut a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let beginnings =
        [bytes(&Frame::Root(1)), vec![0, 0, 0, 1, 0, 1, 9], vec![0xff; 6], vec![0, 0, 0, 0, 9, 9]];
    for (times, beginning) in (1..).zip(beginnings) {
        let connection = raw.shake_hands(a.address).await;
        let (mut send, _recv) = connection.open_bi().await.expect("opens");
        send.write_all(&beginning).await.expect("writes");
        assert_eq!(close_code(&connection).await, CLOSE_REFUSED);
        a.refuses("hello", times).await;
    }
    assert!(a.membership.try_recv().is_err());
}

#[tokio::test]
async fn only_issuers_take_joiners() {
    let mut a = first_node();
    let b = a.join("vm-b").await;
    a.connected_to(&b.identity).await;
    let raw = Raw::of(&a, "vm-c").await;
    let mut joiner = raw.tls();
    joiner.alpn_protocols = vec![gossamer_wire::join::ALPN.to_vec()];
    assert!(raw.dial_with(b.address, joiner.clone()).await.is_none());
    b.refuses("tls", 1).await;
    assert!(raw.dial_with(a.address, joiner).await.is_some());
    assert_eq!(a.refused("tls"), 0);
}

#[tokio::test]
async fn a_joiner_that_talks_nonsense_is_counted_and_let_go() {
    let a = first_node();
    let raw = Raw::of(&a, "vm-b").await;
    let mut joiner = raw.tls();
    joiner.alpn_protocols = vec![gossamer_wire::join::ALPN.to_vec()];
    let connection = raw.dial_with(a.address, joiner).await.expect("an issuer takes joiners");
    let (mut send, _recv) = connection.open_bi().await.expect("opens");
    send.write_all(b"let me in").await.expect("writes");
    send.finish().expect("finishes");
    timeout(SOON, connection.closed()).await.expect("in time");
    assert_eq!(a.count("gossamer_joins_total{outcome=\"malformed\"}"), 1);
    // One admission before it: that of this very member.
    assert_eq!(a.count("gossamer_joins_total{outcome=\"admitted\"}"), 1);
}

#[tokio::test]
async fn a_second_machine_with_the_identity_of_this_node_is_turned_away() {
    let mut a = first_node();
    let copy = Raw::new((*a.identity).clone(), tempfile::tempdir().expect("scratch"));
    let connection = copy.shake_hands(a.address).await;
    assert_eq!(copy.refused(&connection, Purpose::Control, 1).await, CLOSE_TWICE);
    assert_eq!(a.peers.connected(), 0);
    let told = a.membership.try_recv();
    assert!(matches!(told, Ok(ToMembership::Twice { node, .. }) if node == a.identity.node()), "{told:?}");
}
