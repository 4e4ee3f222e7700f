//! Who is asked when.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gossamer_wire::NodeId;

use super::*;
use crate::relay::tests::{Bench, HERE, Hops, service};

/// Instances that do as they are called: `m300-b50` answers after 300 ms when it is tried, after 50 when it is asked
/// beside another; `0` stands for a refusal.
struct Scripted<const BESIDE: bool> {
    /// Tries under way.
    trying: Arc<AtomicUsize>,
}

struct Trying(Arc<AtomicUsize>);

impl Drop for Trying {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn answer(choice: &Choice, letter: char, how: &str) -> Result<String, Failure> {
    let name = choice.instance.as_str();
    let part = name.split('-').find_map(|part| part.strip_prefix(letter)).expect("a script");
    let milliseconds: u64 = part.parse().expect("a number");
    if milliseconds == 0 {
        return Err(Failure::Refused);
    }
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    Ok(format!("{how} {name}"))
}

impl<const BESIDE: bool> Try for Scripted<BESIDE> {
    type Far = String;

    async fn try_one(
        &mut self,
        _: &Relay,
        _: FlowId,
        _: &VipName,
        choice: &Choice,
    ) -> Result<String, Failure> {
        self.trying.fetch_add(1, Ordering::Relaxed);
        let _trying = Trying(Arc::clone(&self.trying));
        answer(choice, 'm', "tried").await
    }

    fn ask_beside<'a>(
        _: &'a Relay,
        _: FlowId,
        _: &'a VipName,
        choice: &'a Choice,
    ) -> Option<Beside<'a, String>> {
        if BESIDE { Some(Box::pin(answer(choice, 'b', "asked"))) } else { None }
    }

    fn missed(&mut self, _: Missed) {}
}

/// Plays a round; returns who took the flow, after how long in all, and the relay.
async fn play<const BESIDE: bool>(names: &[&str]) -> (Option<String>, Duration, Relay) {
    play_at::<BESIDE>(Bench::new(HERE, Arc::new(Hops(None))).relay, names).await
}

async fn play_at<const BESIDE: bool>(relay: Relay, names: &[&str]) -> (Option<String>, Duration, Relay) {
    let choice = |(number, name): (u8, &&str)| Choice {
        node: NodeId::from_bytes([number; 16]),
        node_name: "there".parse().expect("name"),
        group: "west".parse().expect("name"),
        instance: name.parse().expect("name"),
        port: 80.into(),
        carrier: None,
    };
    let choices: Vec<_> = (2..).zip(names).map(choice).collect();
    let (began, name) = (Instant::now(), VipName::Service(service("orders")));
    let call = Call { flow: FlowId(7), name: &name, deadline: began + Duration::from_secs(5) };
    let mut attempt = Scripted::<BESIDE> { trying: Arc::default() };
    let round = relay.round(call, &choices, &mut attempt).await;
    assert_eq!(attempt.trying.load(Ordering::Relaxed), 0, "who lost was given up");
    let took = began.elapsed();
    match round {
        Round::Open(_, far, _) => (Some(far), took, relay),
        Round::Failed(failures) => {
            assert!(failures.last.is_some());
            (None, took, relay)
        }
        Round::ClientGone => panic!("there is no client"),
    }
}

fn counts(relay: &Relay) -> (u64, u64) {
    let slow = relay.flow_counts().in_vain.into_iter().find(|(reason, _)| *reason == "slow");
    (slow.map_or(0, |(_, count)| count), relay.flow_counts().overtaken)
}

/// Not before its time, and well before anything that would come later.
fn about(took: Duration, milliseconds: u64) -> bool {
    let expected = Duration::from_millis(milliseconds);
    took >= expected && took < expected + ATTEMPT
}

#[tokio::test]
async fn the_next_one_is_asked_beside_a_slow_one_and_has_the_flow_when_it_is_first() {
    let (far, took, relay) = play::<true>(&["m2000-b2000", "m50-b50"]).await;
    assert_eq!(far.as_deref(), Some("asked m50-b50"));
    assert!(about(took, 300), "{took:?}");
    assert_eq!(counts(&relay), (1, 1));
}

#[tokio::test]
async fn a_slow_one_keeps_the_flow_when_the_others_are_slower() {
    let (far, took, relay) = play::<true>(&["m300-b300", "m301-b301", "m302-b302"]).await;
    assert_eq!(far.as_deref(), Some("tried m300-b300"));
    assert!(about(took, 300), "{took:?}");
    assert_eq!(counts(&relay), (0, 0), "nobody is to blame");
}

#[tokio::test]
async fn a_refusal_asks_the_next_one_at_once_with_what_the_client_says() {
    let (far, took, relay) = play::<true>(&["m0-b0", "m0-b0", "m10-b10"]).await;
    assert_eq!(far.as_deref(), Some("tried m10-b10"));
    assert!(about(took, 10), "{took:?}");
    assert_eq!(relay.flow_counts().retries, 2);
}

#[tokio::test]
async fn one_that_was_asked_beside_stays_asked_when_the_slow_one_fails() {
    let (far, took, relay) = play::<true>(&["m9000-b9000", "m400-b4000", "m0-b0"]).await;
    // Asked at 250 ms, answers at 4,250; the slow one is given up after 3 s, and nobody else is left.
    assert_eq!(far, None);
    assert!(about(took, 3_250), "{took:?}");
    assert_eq!(counts(&relay), (2, 0));
}

#[tokio::test]
async fn each_further_wait_asks_another_one() {
    let (far, took, relay) = play::<true>(&["m9000-b9000", "m9000-b9000", "m9000-b9000", "m5-b5"]).await;
    assert_eq!(far.as_deref(), Some("asked m5-b5"));
    assert!(about(took, 755), "{took:?}");
    assert_eq!(counts(&relay), (1, 1), "those asked beside were not waited for in vain");
}

#[tokio::test]
async fn who_cannot_be_asked_beside_is_tried_when_the_slow_one_was_given_up() {
    let (far, took, relay) = play::<false>(&["m2000-b1", "m50-b1"]).await;
    assert_eq!(far.as_deref(), Some("tried m50-b1"));
    assert!(about(took, 300), "{took:?}");
    assert_eq!(counts(&relay), (1, 0));
    let (far, took, _) = play::<false>(&["m2000-b1"]).await;
    assert!(far.is_some() && about(took, 2_000), "the last one has more time: {took:?}");
}

#[tokio::test]
async fn nobody_is_asked_beside_while_too_many_are() {
    let relay = Bench::new(HERE, Arc::new(Hops(None))).relay;
    let orders = service("orders");
    let all: Vec<_> = std::iter::from_fn(|| relay.beside.take(&orders)).collect();
    let (far, _, relay) = play_at::<true>(relay, &["m600-b600", "m5-b5"]).await;
    assert_eq!(far.as_deref(), Some("tried m600-b600"));
    let most = all.len();
    drop(all);
    let (far, _, relay) = play_at::<true>(relay, &["m2000-b2000", "m5-b5"]).await;
    assert_eq!((far.as_deref(), counts(&relay)), (Some("asked m5-b5"), (1, 1)));
    let free = std::iter::from_fn(|| relay.beside.take(&orders)).collect::<Vec<_>>().len();
    assert_eq!(free, most, "each place is given back");
}
