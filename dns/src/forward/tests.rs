//! The forwarder before scripted upstream servers on loopback sockets.

use std::collections::HashSet;
use std::sync::OnceLock;

use hickory_proto::op::{Message, OpCode};
use hickory_proto::rr::rdata::{A, CNAME, NULL, SOA};
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::*;
use crate::scripted::zone;

/// What a fake says to the nth datagram it gets.
type Script = Box<dyn FnMut(usize, &Message) -> Vec<Vec<u8>> + Send>;

/// Where questions came from, and their ids.
type Seen = Arc<Mutex<Vec<(SocketAddr, u16)>>>;

/// An upstream server; it ends when it is dropped.
struct Fake {
    address: SocketAddr,
    seen: Seen,
    tasks: JoinSet<()>,
}

impl Fake {
    async fn start(script: Script) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), script).await
    }

    async fn start_at(address: SocketAddr, mut script: Script) -> Self {
        let socket = UdpSocket::bind(address).await.expect("binds");
        let address = socket.local_addr().expect("bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        let noted = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            let mut number = 0;
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let message = Message::from_vec(&buffer[..length]).expect("a query");
                noted.lock().expect("not poisoned").push((from, message.metadata.id));
                for datagram in script(number, &message) {
                    socket.send_to(&datagram, from).await.expect("sent");
                }
                number += 1;
            }
        });
        Self { address, seen, tasks }
    }

    async fn answering(answers: impl Fn(&Message) -> Vec<Record> + Send + 'static) -> Self {
        Self::start(Box::new(move |_, query| vec![reply(query, |m| m.answers = answers(query))])).await
    }

    async fn silent() -> Self {
        Self::start(Box::new(|_, _| Vec::new())).await
    }

    /// Answers over TCP too. That port is taken first: a connection of somebody else may have the TCP port of a UDP port's number.
    async fn start_on_both(script: Script, answer: impl Fn(&Message) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let mut fake = Self::start_at(listener.local_addr().expect("bound"), script).await;
        fake.tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let length = stream.read_u16().await.expect("framed");
                let mut query = vec![0; length.into()];
                stream.read_exact(&mut query).await.expect("whole");
                let answer = answer(&Message::from_vec(&query).expect("a query"));
                let length = u16::try_from(answer.len()).expect("fits").to_be_bytes();
                stream.write_all(&[&length[..], &answer].concat()).await.expect("sent");
            }
        });
        fake
    }

    fn questions(&self) -> usize {
        self.seen.lock().expect("not poisoned").len()
    }
}

/// Answers a query, changed by a script.
fn reply(query: &Message, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.queries.clone_from(&query.queries);
    change(&mut message);
    message.to_vec().expect("written")
}

fn good(query: &Message) -> Record {
    Record::from_rdata(query.queries[0].name.clone(), 60, RData::A(A::new(192, 0, 2, 1)))
}

fn forwarder(upstreams: &[&Fake]) -> Forwarder {
    let upstreams = upstreams.iter().map(|fake| fake.address).collect();
    let settings = ForwardSettings { upstreams, rebind_allow: None };
    Forwarder::new(settings, Arc::new(zone()), |_| false, |_| ()).expect("may be asked")
}

fn asks(name: &str) -> Question {
    Question { name: Name::from_ascii(name).expect("name"), record_type: RecordType::A }
}

const ASKED: Asked = Asked { recursion_desired: true, dnssec_ok: false, checking_disabled: false };

async fn ask(forwarder: &Forwarder, name: &str) -> Answer {
    forwarder.forward(&asks(name), ASKED).await.expect("is forwarded")
}

fn data(answer: &Answer) -> Vec<String> {
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

fn code(answer: &Answer) -> (ResponseCode, Option<u16>) {
    (answer.rcode, answer.extended.as_ref().map(|extended| extended.code))
}

#[tokio::test]
async fn an_answer_is_passed_on_and_kept() {
    let fake = Fake::answering(|query| vec![good(query)]).await;
    let forwarder = forwarder(&[&fake]);
    for name in ["www.example.", "WWW.Example."] {
        let answer = ask(&forwarder, name).await;
        assert_eq!((data(&answer), answer.forwarded), (vec!["192.0.2.1".to_owned()], true));
        assert_eq!(answer.answers[0].name.to_ascii(), name, "the case of the question comes back");
    }
    assert_eq!(fake.questions(), 1);
    assert_eq!((forwarder.counts().answered, forwarder.counts().cached), (1, 1));
}

#[tokio::test]
async fn types_and_codes_that_we_do_not_know_pass() {
    let unknown = RData::Unknown { code: 65_280.into(), rdata: NULL::with(b"\x01\xc0\x0c".to_vec()) };
    let sent = unknown.clone();
    let fake = Fake::start(Box::new(move |_, query| {
        let record = Record::from_rdata(query.queries[0].name.clone(), 60, sent.clone());
        vec![reply(query, |m| match query.queries[0].query_type {
            RecordType::A => m.metadata.response_code = ResponseCode::YXDomain,
            _ => m.answers = vec![record],
        })]
    }))
    .await;
    let forwarder = forwarder(&[&fake]);
    let question = Question { record_type: 65_280.into(), ..asks("www.example.") };
    let answer = forwarder.forward(&question, ASKED).await.expect("is forwarded");
    assert_eq!(answer.answers[0].data, unknown);
    assert_eq!(code(&ask(&forwarder, "www.example.").await), (ResponseCode::YXDomain, None));
}

#[tokio::test]
async fn what_does_not_answer_the_question_is_dropped_and_counted() {
    let fake = Fake::start(Box::new(|_, query| {
        let forged = |m: &mut Message| {
            m.answers =
                vec![Record::from_rdata(query.queries[0].name.clone(), 60, RData::A(A::new(6, 6, 6, 6)))]
        };
        let wrong_id = reply(query, |m| {
            forged(m);
            m.metadata.id ^= 1;
        });
        let wrong_name = reply(query, |m| {
            forged(m);
            m.queries[0].name = Name::from_ascii("bank.example.").expect("name");
        });
        let wrong_type = reply(query, |m| {
            forged(m);
            m.queries[0].query_type = RecordType::TXT;
        });
        let mut cut = reply(query, forged);
        cut.pop();
        let id = query.metadata.id.to_be_bytes();
        let garbage = [&id[..], &[0x5a; 300]].concat();
        let huge = [&reply(query, forged)[..], &[0; 50_000]].concat();
        let echo = query.to_vec().expect("written");
        let good = reply(query, |m| m.answers = vec![good(query)]);
        // A whole answer with bytes behind it is still that answer: huge comes last.
        vec![wrong_id, wrong_name, wrong_type, cut, garbage, echo, vec![], good, huge]
    }))
    .await;
    let forwarder = forwarder(&[&fake]);
    assert_eq!(data(&ask(&forwarder, "www.example.").await), ["192.0.2.1"]);
    let counts = forwarder.counts();
    assert_eq!((counts.wrong_id, counts.wrong_question, counts.malformed), (1, 2, 4));
}

#[tokio::test]
async fn what_another_address_sends_is_not_heard() {
    let other = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let to = Arc::new(OnceLock::new());
    let seen: Arc<OnceLock<Seen>> = Arc::clone(&to);
    let fake = Fake::start(Box::new(move |number, query| {
        let (asker, _) = seen.get().expect("set").lock().expect("not poisoned")[number];
        let forged = reply(query, |m| m.metadata.response_code = ResponseCode::NXDomain);
        other.send_to(&forged, asker).expect("sent");
        vec![reply(query, |m| m.answers = vec![good(query)])]
    }))
    .await;
    to.set(Arc::clone(&fake.seen)).expect("once");
    let forwarder = forwarder(&[&fake]);
    assert_eq!(data(&ask(&forwarder, "www.example.").await), ["192.0.2.1"]);
}

#[tokio::test]
async fn a_late_answer_is_not_heard() {
    let mut first: Option<Vec<u8>> = None;
    let fake = Fake::start(Box::new(move |_, query| match first.take() {
        None => {
            first = Some(reply(query, |m| m.metadata.response_code = ResponseCode::NXDomain));
            Vec::new()
        }
        Some(late) => vec![late, reply(query, |m| m.answers = vec![good(query)])],
    }))
    .await;
    let forwarder = forwarder(&[&fake]);
    assert_eq!(data(&ask(&forwarder, "www.example.").await), ["192.0.2.1"]);
    assert_eq!(forwarder.counts().wrong_id, 1);
}

#[tokio::test]
async fn a_cut_answer_is_asked_for_over_tcp() {
    let cut: Script = Box::new(|_, query| vec![reply(query, |m| m.metadata.truncation = true)]);
    let many = |query: &Message| {
        let name = query.queries[0].name.clone();
        let record =
            |n: u32| Record::from_rdata(name.clone(), 60, RData::A(A(Ipv4Addr::from(0xc633_6400 + n))));
        reply(query, |m| m.answers = (0..200).map(record).collect())
    };
    let fake = Fake::start_on_both(cut, many).await;
    let forwarder = forwarder(&[&fake]);
    assert_eq!(ask(&forwarder, "www.example.").await.answers.len(), 200);
    assert_eq!(forwarder.counts().truncated, 1);
}

#[tokio::test]
async fn mesh_data_is_answered_with_servfail_and_the_reason() {
    let fake = Fake::answering(|query| {
        let target = Name::from_ascii("orders.mesh.internal.").expect("name");
        vec![Record::from_rdata(query.queries[0].name.clone(), 60, RData::CNAME(CNAME(target)))]
    })
    .await;
    let forwarder = forwarder(&[&fake]);
    for _ in 0..2 {
        let answer = ask(&forwarder, "www.example.").await;
        assert_eq!(code(&answer), (ResponseCode::ServFail, Some(ExtendedError::BLOCKED)));
        assert!(answer.answers.is_empty());
    }
    assert_eq!((forwarder.counts().mesh_data, fake.questions()), (2, 2), "lies are not kept");
}

#[tokio::test]
async fn mesh_names_and_questions_without_rd_are_not_forwarded() {
    let fake = Fake::answering(|query| vec![good(query)]).await;
    let forwarder = forwarder(&[&fake]);
    let unasked = Asked { recursion_desired: false, ..ASKED };
    assert_eq!(forwarder.forward(&asks("www.example."), unasked).await, None);
    assert_eq!(forwarder.forward(&asks("orders.mesh.internal."), ASKED).await, None);
    assert_eq!(forwarder.forward(&asks("1.0.240.127.in-addr.arpa."), ASKED).await, None);
    assert_eq!(fake.questions(), 0);
}

#[tokio::test]
async fn the_second_server_is_asked_when_the_first_is_silent_or_unwilling() {
    let silent = Fake::silent().await;
    let refusing = Fake::start(Box::new(|_, query| {
        vec![reply(query, |m| {
            m.queries.clear();
            m.metadata.response_code = ResponseCode::Refused;
        })]
    }))
    .await;
    let good = Fake::answering(|query| vec![good(query)]).await;
    for first in [&silent, &refusing] {
        let forwarder = forwarder(&[first, &good]);
        assert_eq!(data(&ask(&forwarder, "www.example.").await), ["192.0.2.1"]);
    }
    assert_eq!((silent.questions(), refusing.questions()), (1, 1));
    let alone = forwarder(&[&refusing]);
    assert_eq!(code(&ask(&alone, "www.example.").await), (ResponseCode::Refused, None));
    assert_eq!(refusing.questions(), 2, "it is not asked again what it refused");
}

// Nothing comes over the sockets here, so the clock may run ahead of them.
#[tokio::test(start_paused = true)]
async fn when_none_answers_clients_hear_it_before_they_give_up_and_soon_the_next_time() {
    let fake = Fake::silent().await;
    let forwarder = forwarder(&[&fake]);
    let mut took = Vec::new();
    for name in ["a.example.", "b.example."] {
        let start = Instant::now();
        let answer = ask(&forwarder, name).await;
        assert_eq!(code(&answer), (ResponseCode::ServFail, Some(ExtendedError::NO_REACHABLE_AUTHORITY)));
        let text = answer.extended.expect("says why").text;
        assert!(text.contains(&fake.address.to_string()), "{text}");
        took.push(start.elapsed());
    }
    assert!(took[0] < Duration::from_secs(4), "{took:?}");
    assert!(took[1] < Duration::from_secs(1), "{took:?}");
    assert_eq!(forwarder.status()[0].state, UpstreamState::Failing);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_names_holds_a_bounded_number_of_turns() {
    let fake = Fake::silent().await;
    let forwarder = Arc::new(forwarder(&[&fake]));
    let mut clients = JoinSet::new();
    for number in 0..3_000 {
        let forwarder = Arc::clone(&forwarder);
        clients.spawn(async move { ask(&forwarder, &format!("n{number}.example.")).await });
    }
    let answers = clients.join_all().await;
    let full = |answer: &&Answer| code(answer) == (ResponseCode::ServFail, Some(ExtendedError::NOT_READY));
    assert_eq!(answers.iter().filter(full).count(), 3_000 - MAX_OUT);
    assert_eq!(forwarder.counts().overflowed, 3_000 - MAX_OUT as u64);
    assert_eq!(
        (forwarder.out.available_permits(), forwarder.waiting.available_permits()),
        (MAX_OUT, MAX_WAITING)
    );
}

#[tokio::test]
async fn the_same_question_is_out_once() {
    let fake = Fake::answering(|query| vec![good(query)]).await;
    let forwarder = Arc::new(forwarder(&[&fake]));
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        let forwarder = Arc::clone(&forwarder);
        clients.spawn(async move { ask(&forwarder, "www.example.").await });
    }
    assert!(clients.join_all().await.iter().all(|answer| answer.answers.len() == 1));
    assert_eq!(fake.questions(), 1);
}

#[tokio::test]
async fn ids_and_ports_cannot_be_guessed() {
    let fake = Fake::answering(|query| vec![good(query)]).await;
    let forwarder = forwarder(&[&fake]);
    for number in 0..200 {
        ask(&forwarder, &format!("n{number}.example.")).await;
    }
    let seen = fake.seen.lock().expect("not poisoned");
    let ports: HashSet<_> = seen.iter().map(|(from, _)| from.port()).collect();
    let ids: HashSet<_> = seen.iter().map(|(_, id)| *id).collect();
    // Of 200 random ones of 28,000 and 65,536, more than three pairs happen once in ten thousand runs or less.
    assert!(ports.len() > 190 && ids.len() > 190, "{} ports, {} ids", ports.len(), ids.len());
}

#[tokio::test]
async fn a_server_that_asks_us_back_is_suspended_until_it_stops() {
    let (tell, mut told) = tokio::sync::mpsc::channel(9);
    let looping = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let back: Arc<OnceLock<Arc<Forwarder>>> = Arc::default();
    let (asks_back, is_looping) = (Arc::clone(&back), Arc::clone(&looping));
    // It sends the question to us, as our listener would hand it on, and passes on what it hears.
    let fake = Fake::start(Box::new(move |_, query| {
        if is_looping.load(std::sync::atomic::Ordering::Relaxed) {
            let question = Question { name: query.queries[0].name.clone(), record_type: RecordType::A };
            let forwarder = asks_back.get().expect("set");
            assert!(forwarder.is_own_probe(&question.name));
        }
        vec![reply(query, |m| m.metadata.response_code = ResponseCode::NXDomain)]
    }))
    .await;
    let settings = ForwardSettings { upstreams: vec![fake.address], rebind_allow: None };
    let report = move |change| tell.try_send(change).expect("heard");
    let forwarder =
        Arc::new(Forwarder::new(settings, Arc::new(zone()), |_| false, report).expect("may be asked"));
    assert!(back.set(Arc::clone(&forwarder)).is_ok());

    forwarder.probe(fake.address, None).await;
    let change = |now| UpstreamChange { address: fake.address, now };
    assert_eq!(told.try_recv(), Ok(change(UpstreamState::Looping)));
    let answer = ask(&forwarder, "www.example.").await;
    assert_eq!(code(&answer), (ResponseCode::ServFail, Some(ExtendedError::NO_REACHABLE_AUTHORITY)));
    assert_eq!(fake.questions(), 1, "only the probe was sent");

    looping.store(false, std::sync::atomic::Ordering::Relaxed);
    forwarder.probe(fake.address, None).await;
    assert_eq!(told.try_recv(), Ok(change(UpstreamState::Up)));
    assert_eq!(code(&ask(&forwarder, "www.example.").await), (ResponseCode::NXDomain, None));
}

#[test]
fn what_cannot_be_an_upstream_server_is_refused_with_the_fix() {
    let refused = |address: &str| {
        let settings =
            ForwardSettings { upstreams: vec![address.parse().expect("address")], rebind_allow: None };
        let is_own = |address: SocketAddr| address.port() == 5353;
        Forwarder::new(settings, Arc::new(zone()), is_own, |_| ()).expect_err(address).to_string()
    };
    assert!(refused("127.0.0.53:53").contains("resolvectl dns"));
    assert!(refused("127.0.0.54:53").contains("resolvectl dns"));
    assert!(refused("[::ffff:127.0.0.53]:53").contains("resolvectl dns"));
    assert!(refused("127.240.0.53:4653").contains("address of this mesh"));
    assert!(refused("192.0.2.7:5353").contains("this daemon answers"));
    assert!(refused("0.0.0.0:53").contains("no address of a server"));
    assert!(refused("192.0.2.7:0").contains("no address of a server"));
}

/// Zones with the suffix `corp.example`.
fn suffixed() -> Arc<Zones> {
    let suffix = "corp.example".parse().expect("valid");
    Arc::new(zone().with_suffix(suffix).expect("free").with_upstream())
}

fn forwarder_below(fake: &Fake) -> Arc<Forwarder> {
    let settings = ForwardSettings { upstreams: vec![fake.address], rebind_allow: None };
    Arc::new(Forwarder::new(settings, suffixed(), |_| false, |_| ()).expect("may be asked"))
}

#[tokio::test]
async fn what_upstream_says_below_a_suffix_is_soon_asked_again() {
    let fake = Fake::start(Box::new(|_, query| {
        let name = |text: &str| Name::from_ascii(text).expect("name");
        let data = SOA::new(name("ns.example."), name("h.example."), 1, 2, 3, 4, 900);
        vec![reply(query, |m| {
            m.metadata.response_code = ResponseCode::NXDomain;
            m.authorities = vec![Record::from_rdata(name("example."), 3_600, RData::SOA(data))];
        })]
    }))
    .await;
    let forwarder = forwarder_below(&fake);
    let lasts = |answer: &Answer| match &answer.authorities[0].data {
        RData::SOA(data) => (answer.authorities[0].ttl, data.minimum),
        other => panic!("{other}"),
    };
    assert_eq!(lasts(&ask(&forwarder, "www.example.").await), (3_600, 900));
    assert_eq!(lasts(&ask(&forwarder, "pg.corp.example.").await), (2, 2));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3)).await;
    tokio::time::resume();
    ask(&forwarder, "www.example.").await;
    assert_eq!(fake.questions(), 2, "it is kept");
    ask(&forwarder, "pg.corp.example.").await;
    assert_eq!(fake.questions(), 3, "it is asked again");
}

#[tokio::test]
async fn a_suffix_that_upstream_sends_back_here_is_answered_without_it() {
    let back: Arc<OnceLock<Arc<Forwarder>>> = Arc::default();
    let asks_back = Arc::clone(&back);
    // A resolver of the host that has this suffix from us: it waits for our answer, and says then that it has none.
    let fake = Fake::start(Box::new(move |_, query| {
        let name = query.queries[0].name.clone();
        let is_routed = Name::from_ascii("corp.example.").expect("name").zone_of(&name);
        let came_back = is_routed && asks_back.get().expect("set").is_own_probe(&name);
        let rcode = if came_back { ResponseCode::ServFail } else { ResponseCode::NXDomain };
        vec![reply(query, |m| m.metadata.response_code = rcode)]
    }))
    .await;
    let forwarder = forwarder_below(&fake);
    assert!(back.set(Arc::clone(&forwarder)).is_ok());
    let suffix = Name::from_ascii("corp.example.").expect("name");
    forwarder.probe(fake.address, None).await;
    forwarder.probe(fake.address, Some(&suffix)).await;
    let absent = ask(&forwarder, "nope.corp.example.").await;
    assert_eq!(
        (absent.rcode, absent.authorities[0].ttl, absent.forwarded),
        (ResponseCode::NXDomain, 1, false)
    );
    assert_eq!(absent.authorities[0].name, suffix);
    assert_eq!(ask(&forwarder, "corp.example.").await.rcode, ResponseCode::NoError);
    assert_eq!(fake.questions(), 2, "only the probes were sent");
    assert_eq!(forwarder.status()[0].state, UpstreamState::Up);
    ask(&forwarder, "www.example.").await;
    assert_eq!(fake.questions(), 3, "names of others are asked of it");
}

#[tokio::test(start_paused = true)]
async fn silence_below_a_suffix_says_nothing_about_the_server() {
    let fake = Fake::silent().await;
    let forwarder = forwarder_below(&fake);
    for name in ["a.corp.example.", "b.corp.example."] {
        let answer = ask(&forwarder, name).await;
        assert_eq!(code(&answer), (ResponseCode::ServFail, Some(ExtendedError::NO_REACHABLE_AUTHORITY)));
    }
    let [status] = forwarder.status()[..] else { panic!("one server") };
    assert_eq!((status.state, status.failed), (UpstreamState::Up, 0));
    ask(&forwarder, "www.example.").await;
    assert_eq!(forwarder.status()[0].failed, 3);
}
