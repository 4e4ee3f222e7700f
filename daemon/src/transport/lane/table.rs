//! What a lane knows of its present flow: both directions, and what waits in them.
//!
//! Owns: when a flow begins, is over, and whether the lane may carry another. Must not know: sockets, tasks, time. Driven by:
//! the halves of a flow and the lane's task, under one lock.

use std::collections::VecDeque;

use bytes::Bytes;
use quinn::{ApplicationClose, ConnectionError, VarInt};

use super::Opener;
use super::frame::{LaneFault, LaneFrame};

/// Bytes of a flow that wait for its reader; then the socket is not read.
pub(super) const MAX_UNREAD: usize = 32 << 10;
/// Bytes of a flow that wait for the socket; then its writer waits.
pub(super) const MAX_UNSENT: usize = 64 << 10;

/// How a direction of a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Clean,
    Reset(VarInt),
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// Who dialled says first who opens flows, and opens the greeting.
    is_started: bool,
    is_dialler: bool,
    pub(super) opens_here: bool,
    /// Nobody asks whether the peer lives.
    pub(super) is_kept: bool,
    /// No further flow is opened: there is a better way.
    pub(super) is_retired: bool,
    /// Something came since the last look.
    pub(super) heard: bool,
    /// Number of the present or last flow; the greeting is 1.
    flow: u32,
    state: State,
    /// Halves of the flow that are in use.
    halves: u8,
    /// Whether the peer can know of the flow.
    is_told: bool,
    sent_end: Option<End>,
    sent_stop: bool,
    pub(super) got_end: Option<End>,
    pub(super) got_stop: Option<VarInt>,
    incoming: VecDeque<Bytes>,
    pub(super) unread: usize,
    outgoing: VecDeque<Bytes>,
    unsent: usize,
    /// Frames that the task has taken and not written.
    pub(super) is_writing: bool,
    /// Why the lane has ended.
    pub(super) ended: Option<ConnectionError>,
    /// It ends as soon as what waits is written.
    pub(super) is_closing: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    /// The peer has begun a flow that nobody has taken yet.
    Arrived,
    Open,
}

impl Table {
    pub(super) fn new(dialled: Option<Opener>) -> Self {
        let mut table = Self { is_dialler: dialled.is_some(), ..Self::default() };
        if let Some(opener) = dialled {
            table.is_started = true;
            table.opens_here = opener == Opener::Dialler;
            table.push(&LaneFrame::Start { dialler_opens: table.opens_here });
        }
        table
    }

    pub(super) fn is_open(&self) -> bool {
        self.state != State::Idle
    }

    /// Whether the greeting is over; the peer may have begun a flow since.
    pub(super) fn has_greeted(&self) -> bool {
        self.flow > GREETING || self.flow == GREETING && !self.is_open()
    }

    /// Whether all that is missing of the flow is the peer's word on its end.
    pub(super) fn is_left(&self) -> bool {
        self.state == State::Open && self.halves == 0
    }

    /// Begins a flow of this side. Returns its number.
    pub(super) fn open(&mut self) -> Option<u32> {
        let may_open = if self.flow == 0 { self.is_dialler } else { self.opens_here };
        if self.is_open() || !may_open || self.is_retired {
            return None;
        }
        self.begin(State::Open);
        self.halves = 2;
        Some(self.flow)
    }

    /// Takes the flow that the peer has begun. Returns its number.
    pub(super) fn accept(&mut self) -> Option<u32> {
        if self.state != State::Arrived {
            return None;
        }
        self.state = State::Open;
        self.halves = 2;
        Some(self.flow)
    }

    fn begin(&mut self, state: State) {
        self.flow = self.flow.wrapping_add(1);
        self.state = state;
        self.is_told = state == State::Arrived;
        (self.sent_end, self.sent_stop, self.got_end, self.got_stop) = (None, false, None, None);
    }

    fn push(&mut self, frame: &LaneFrame) {
        let bytes = frame.encode();
        self.unsent += bytes.len();
        self.outgoing.push_back(bytes);
    }

    /// Queues bytes of the flow; gives them back while too much waits.
    ///
    /// # Errors
    /// Bytes for which there is no room.
    pub(super) fn write(&mut self, bytes: Bytes) -> Result<(), Bytes> {
        if self.unsent >= MAX_UNSENT {
            return Err(bytes);
        }
        self.is_told = true;
        self.push(&LaneFrame::Data(bytes));
        Ok(())
    }

    /// Queues the end of the own direction. Returns `false` when it has ended before.
    pub(super) fn end(&mut self, end: End) -> bool {
        if self.sent_end.is_some() || self.ended.is_some() {
            return false;
        }
        self.sent_end = Some(end);
        if !self.is_told && end != End::Clean {
            // The peer need not hear of a flow that comes to nothing.
            return true;
        }
        self.is_told = true;
        match end {
            End::Clean => self.push(&LaneFrame::End),
            End::Reset(code) => {
                // All that waits is of this flow, but for what the lane itself says.
                let is_data = |bytes: &Bytes| bytes.first() == Some(&DATA);
                self.outgoing.retain(|bytes| !is_data(bytes));
                self.unsent = self.outgoing.iter().map(Bytes::len).sum();
                self.push(&LaneFrame::Reset { flow: self.flow, code: number(code) });
            }
        }
        true
    }

    /// Tells the peer that no more is wanted. Returns `false` when its direction has ended before.
    pub(super) fn stop(&mut self, code: VarInt) -> bool {
        if self.got_end.is_some() || self.sent_stop || self.ended.is_some() {
            return false;
        }
        self.sent_stop = true;
        self.drop_unread();
        if !self.is_told {
            return true;
        }
        self.push(&LaneFrame::Stop { flow: self.flow, code: number(code) });
        true
    }

    /// Whether the own direction has ended cleanly and all of it was written.
    pub(super) fn is_delivered(&self) -> bool {
        self.sent_end == Some(End::Clean) && self.outgoing.is_empty() && !self.is_writing
    }

    pub(super) const fn has_sent_end(&self) -> bool {
        self.sent_end.is_some()
    }

    /// Returns up to so many of the bytes that have come.
    pub(super) fn read(&mut self, most: usize) -> Option<Bytes> {
        let mut bytes = self.incoming.pop_front()?;
        if bytes.len() > most {
            self.incoming.push_front(bytes.split_off(most));
        }
        self.unread -= bytes.len();
        Some(bytes)
    }

    fn drop_unread(&mut self) {
        self.incoming.clear();
        self.unread = 0;
    }

    /// A half of the flow is not used any more. A flow of which the peer has not heard never was.
    pub(super) fn drop_send(&mut self) {
        self.halves = self.halves.saturating_sub(1);
        if self.is_told {
            self.end(End::Clean);
        }
        self.settle();
    }

    /// The other half.
    pub(super) fn drop_recv(&mut self) {
        self.halves = self.halves.saturating_sub(1);
        self.stop(VarInt::from_u32(0));
        self.drop_unread();
        self.settle();
    }

    /// Whether a frame of this kind cannot be taken yet: a reader has stalled, or the flow is over but for this side's
    /// halves, and the peer has begun the next one.
    pub(super) fn must_wait(&self, kind: u8) -> bool {
        let is_over = self.is_open() && self.sent_end.is_some() && self.got_end.is_some();
        match kind {
            DATA => is_over || self.unread >= MAX_UNREAD,
            END | RESET => is_over,
            _ => false,
        }
    }

    /// Whether the peer may be waiting for this side.
    pub(super) fn is_stalled(&self) -> bool {
        self.must_wait(DATA)
    }

    /// Takes in a frame of the peer, unless [it must wait](Self::must_wait).
    ///
    /// # Errors
    /// No honest peer sends this here.
    pub(super) fn take(&mut self, frame: LaneFrame) -> Result<(), LaneFault> {
        // Who closes at once takes back the first one.
        if !self.is_started && !matches!(frame, LaneFrame::Close { .. }) {
            let LaneFrame::Start { dialler_opens } = frame else {
                return Err(LaneFault::Order("the first one says who opens flows"));
            };
            self.is_started = true;
            self.opens_here = !dialler_opens;
            return Ok(());
        }
        if self.state == State::Idle
            && matches!(frame, LaneFrame::Data(_) | LaneFrame::End | LaneFrame::Reset { .. })
        {
            let may_begin = if self.flow == 0 { !self.is_dialler } else { !self.opens_here };
            if !may_begin {
                return Err(LaneFault::Order("this side opens flows"));
            }
            self.begin(State::Arrived);
        }
        match frame {
            LaneFrame::Start { .. } => return Err(LaneFault::Order("it comes first")),
            LaneFrame::Data(_) | LaneFrame::End | LaneFrame::Reset { .. } if self.got_end.is_some() => {
                return Err(LaneFault::Order("the direction has ended"));
            }
            LaneFrame::Data(bytes) => {
                let is_read = self.state == State::Arrived || self.halves > 0;
                if is_read && !self.sent_stop {
                    self.unread += bytes.len();
                    self.incoming.push_back(bytes);
                }
            }
            LaneFrame::End => self.got_end = Some(End::Clean),
            LaneFrame::Reset { flow, code } if flow == self.flow => {
                self.got_end = Some(End::Reset(VarInt::from_u32(code)));
                self.drop_unread();
            }
            LaneFrame::Reset { .. } => return Err(LaneFault::Order("the flow is another one")),
            // It may have crossed the end of its flow.
            LaneFrame::Stop { flow, code } if flow == self.flow && self.is_open() => {
                self.got_stop = Some(VarInt::from_u32(code));
            }
            LaneFrame::Stop { .. } | LaneFrame::Ping => {}
            LaneFrame::Close { code, reason } => {
                let close = ApplicationClose { error_code: VarInt::from_u32(code), reason };
                self.fail(ConnectionError::ApplicationClosed(close));
            }
        }
        self.settle();
        Ok(())
    }

    /// Notes the end of a flow whose halves are gone: cleanly, so that another can begin, or not.
    fn settle(&mut self) {
        if !self.is_left() {
            return;
        }
        if !self.is_told {
            // The number was not used.
            self.flow = self.flow.wrapping_sub(1);
            self.state = State::Idle;
            return;
        }
        let is_well_sent = match self.sent_end {
            Some(End::Clean) => true,
            // An answer to who wanted no more.
            Some(End::Reset(_)) => self.got_stop.is_some(),
            None => false,
        };
        match self.got_end {
            Some(End::Reset(_)) if !self.sent_stop => self.fail(ConnectionError::Reset),
            Some(_) if is_well_sent => self.state = State::Idle,
            Some(_) | None => {}
        }
    }

    /// Ends the lane because of a fault: what waits may still be written.
    pub(super) fn fail(&mut self, why: ConnectionError) {
        self.ended.get_or_insert(why);
        self.is_closing = true;
    }

    /// Ends the lane with a last word.
    pub(super) fn close(&mut self, last: &LaneFrame) {
        if self.ended.is_some() {
            return;
        }
        self.outgoing.clear();
        self.unsent = 0;
        self.push(last);
        self.fail(ConnectionError::LocallyClosed);
    }

    /// Says that this side is there.
    pub(super) fn ping(&mut self) {
        if self.outgoing.is_empty() && !self.is_writing {
            self.push(&LaneFrame::Ping);
        }
    }

    /// Returns what is to be written next, `most` bytes or one frame.
    pub(super) fn next_to_write(&mut self, most: usize) -> Vec<Bytes> {
        let (mut batch, mut len) = (Vec::new(), 0);
        while let Some(bytes) = self.outgoing.front() {
            if len > 0 && len + bytes.len() > most {
                break;
            }
            len += bytes.len();
            batch.extend(self.outgoing.pop_front());
        }
        self.unsent -= len;
        self.is_writing = !batch.is_empty();
        batch
    }
}

/// Number of the greeting.
const GREETING: u32 = 1;

/// Kinds of frames.
const DATA: u8 = 2;
const END: u8 = 3;
const RESET: u8 = 4;

fn number(code: VarInt) -> u32 {
    u32::try_from(code.into_inner()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ends of a lane that has greeted.
    struct Pair {
        near: Table,
        far: Table,
    }

    const BROKEN: VarInt = VarInt::from_u32(1);

    impl Pair {
        fn greeted(opener: Opener) -> Self {
            let mut pair = Self { near: Table::new(Some(opener)), far: Table::new(None) };
            pair.near.open().expect("the greeting is of who dialled");
            pair.near.write(Bytes::from_static(b"hello")).expect("room");
            pair.carry();
            pair.far.accept().expect("arrived");
            pair.far.write(Bytes::from_static(b"hello")).expect("room");
            pair.drop_near();
            pair.drop_far();
            pair.carry();
            assert!(!pair.near.is_open() && !pair.far.is_open());
            pair
        }

        /// Carries what waits both ways until nothing does.
        fn carry(&mut self) {
            for _ in 0..4 {
                let (near, far) = (&mut self.near, &mut self.far);
                near.next_to_write(usize::MAX).into_iter().for_each(|bytes| deliver(&bytes, far));
                far.next_to_write(usize::MAX).into_iter().for_each(|bytes| deliver(&bytes, near));
            }
        }

        fn drop_near(&mut self) {
            self.near.drop_send();
            self.near.drop_recv();
        }

        fn drop_far(&mut self) {
            self.far.drop_send();
            self.far.drop_recv();
        }

        fn begin(&mut self) {
            self.near.open().expect("idle");
            self.near.write(Bytes::from_static(b"?")).expect("room");
            self.carry();
            self.far.accept().expect("arrived");
        }

        fn has_ended(&self) -> [bool; 2] {
            [self.near.ended.is_some(), self.far.ended.is_some()]
        }
    }

    fn deliver(bytes: &Bytes, to: &mut Table) {
        let header = bytes[..4].try_into().expect("a header");
        let (kind, _) = LaneFrame::decode_header(header).expect("honest");
        to.take(LaneFrame::decode(kind, bytes.slice(4..)).expect("honest")).expect("in order");
    }

    #[test]
    fn a_lane_that_is_closed_before_its_first_frame_is_written_tells_why() {
        let (mut near, mut far) = (Table::new(Some(Opener::Dialler)), Table::new(None));
        near.close(&LaneFrame::Close { code: 12, reason: Bytes::from_static(b"only looking") });
        near.next_to_write(usize::MAX).into_iter().for_each(|bytes| deliver(&bytes, &mut far));
        let closed = far.ended.expect("closed");
        assert!(
            matches!(closed, ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(12))
        );
    }

    #[test]
    fn after_a_clean_end_both_ways_the_next_flow_begins() {
        let mut pair = Pair::greeted(Opener::Dialler);
        for _ in 0..3 {
            pair.begin();
            assert_eq!(pair.far.read(100), Some(Bytes::from_static(b"?")));
            assert!(pair.near.end(End::Clean));
            pair.carry();
            assert_eq!(pair.far.got_end, Some(End::Clean));
            pair.far.write(Bytes::from_static(b"the other way goes on")).expect("room");
            assert!(pair.far.end(End::Clean));
            pair.drop_far();
            pair.carry();
            assert!(pair.near.read(100).is_some() && pair.near.got_end == Some(End::Clean));
            assert!(pair.near.open().is_none(), "its halves are in use");
            pair.drop_near();
            pair.carry();
            assert_eq!(pair.has_ended(), [false, false]);
        }
        assert_eq!(pair.near.flow, 4);
    }

    #[test]
    fn after_a_reset_no_flow_begins() {
        for at_far in [false, true] {
            let mut pair = Pair::greeted(Opener::Dialler);
            pair.begin();
            let table = if at_far { &mut pair.far } else { &mut pair.near };
            assert!(table.end(End::Reset(BROKEN)) && table.stop(BROKEN));
            pair.carry();
            let other = if at_far { &pair.near } else { &pair.far };
            assert_eq!((other.got_end, other.got_stop), (Some(End::Reset(BROKEN)), Some(BROKEN)));
            pair.drop_near();
            pair.drop_far();
            pair.carry();
            assert!(pair.has_ended()[usize::from(!at_far)], "who was told of it ends the lane");
            assert!(
                pair.near.ended.is_some() || pair.near.is_left(),
                "and no flow can begin before that shows"
            );
        }
    }

    #[test]
    fn a_refused_flow_leaves_the_lane_of_use_whoever_is_faster() {
        for opener_drops_first in [false, true] {
            let mut pair = Pair::greeted(Opener::Dialler);
            pair.begin();
            pair.near.write(Bytes::from_static(b"more")).expect("room");
            // As `relay::inbound::refuse` does.
            pair.far.write(Bytes::from_static(&[4])).expect("room");
            assert!(pair.far.end(End::Clean) && pair.far.stop(BROKEN));
            if opener_drops_first {
                pair.near.end(End::Reset(BROKEN));
                pair.near.stop(BROKEN);
                pair.drop_near();
                pair.drop_far();
                pair.carry();
            } else {
                pair.drop_far();
                pair.carry();
                assert_eq!(pair.near.got_stop, Some(BROKEN));
                pair.near.end(End::Reset(BROKEN));
                pair.near.stop(BROKEN);
                pair.drop_near();
                pair.carry();
            }
            assert_eq!(pair.has_ended(), [false, false]);
            pair.begin();
        }
    }

    #[test]
    fn a_flow_that_nobody_has_heard_of_never_was() {
        let mut pair = Pair::greeted(Opener::Dialler);
        for is_reset in [false, true] {
            let flow = pair.near.open().expect("idle");
            if is_reset {
                pair.near.end(End::Reset(BROKEN));
                pair.near.stop(BROKEN);
            }
            pair.drop_near();
            assert!(pair.near.next_to_write(usize::MAX).is_empty());
            assert_eq!(pair.near.open(), Some(flow));
            pair.drop_near();
        }
    }

    #[test]
    fn who_was_dialled_opens_flows_if_that_was_said() {
        let mut pair = Pair::greeted(Opener::Dialled);
        assert!(pair.near.open().is_none());
        assert!(pair.far.open().is_some());
        pair.far.write(Bytes::from_static(b"?")).expect("room");
        pair.carry();
        assert!(pair.near.accept().is_some());
    }

    #[test]
    fn the_next_flow_waits_for_the_halves_of_the_one_before() {
        let mut pair = Pair::greeted(Opener::Dialler);
        pair.begin();
        pair.near.end(End::Clean);
        pair.carry();
        pair.far.end(End::Clean);
        pair.drop_near();
        pair.carry();
        pair.near.open().expect("it is over for this side");
        assert!(pair.far.must_wait(DATA) && pair.far.must_wait(END) && !pair.far.must_wait(7));
        pair.drop_far();
        assert!(!pair.far.must_wait(DATA));
    }

    #[test]
    fn a_lane_that_is_retired_keeps_its_flow_and_gets_no_other() {
        let mut pair = Pair::greeted(Opener::Dialler);
        pair.begin();
        pair.near.is_retired = true;
        assert!(pair.near.write(Bytes::from_static(b"more")).is_ok());
        pair.drop_near();
        pair.drop_far();
        pair.carry();
        assert!(!pair.near.is_open() && pair.near.open().is_none());
    }

    #[test]
    fn a_late_stop_does_not_concern_the_next_flow() {
        let mut pair = Pair::greeted(Opener::Dialler);
        pair.begin();
        pair.begin_late_stop();
        assert_eq!(pair.near.got_stop, None);
    }

    impl Pair {
        fn begin_late_stop(&mut self) {
            let late = LaneFrame::Stop { flow: self.near.flow - 1, code: 9 };
            self.near.take(late).expect("it may cross");
        }
    }

    #[test]
    fn what_does_not_belong_here_is_refused() {
        let frame = LaneFrame::Data(Bytes::from_static(b"x"));
        assert!(Table::new(None).take(frame.clone()).is_err(), "before the start");
        let mut pair = Pair::greeted(Opener::Dialler);
        assert!(pair.near.take(frame.clone()).is_err(), "only this side opens flows");
        assert!(pair.far.take(LaneFrame::Start { dialler_opens: true }).is_err(), "twice");
        let mut pair = Pair::greeted(Opener::Dialler);
        pair.begin();
        pair.far.take(LaneFrame::End).expect("first");
        assert!(pair.far.take(LaneFrame::End).is_err() && pair.far.take(frame).is_err(), "after its end");
    }

    #[test]
    fn a_writer_waits_and_a_reset_drops_what_waits() {
        let mut pair = Pair::greeted(Opener::Dialler);
        pair.near.open().expect("idle");
        let piece = Bytes::from(vec![0; 16 << 10]);
        let mut taken = 0;
        while pair.near.write(piece.clone()).is_ok() {
            taken += piece.len();
        }
        assert!((MAX_UNSENT..2 * MAX_UNSENT).contains(&taken), "{taken}");
        pair.near.end(End::Reset(BROKEN));
        assert_eq!(pair.near.next_to_write(usize::MAX).len(), 1);
    }
}
