//! What leaves with which call, over a socket that writes down its calls.

use super::*;

use futures_util::FutureExt as _;

/// A socket that takes at most so many packets a call, and none while it is full.
#[derive(Debug)]
struct Recorded {
    segments: usize,
    calls: Mutex<Vec<(SocketAddr, usize, Option<usize>)>>,
    is_full: Mutex<bool>,
    /// Bytes of the message that comes next, and how many buffers there were for the last.
    received: Mutex<(usize, usize)>,
}

impl Recorded {
    fn new(segments: usize) -> Arc<Self> {
        let (calls, is_full, received) = Default::default();
        Arc::new(Self { segments, calls, is_full, received })
    }

    fn set_full(&self, is_full: bool) {
        *self.is_full.lock().expect("lock") = is_full;
    }

    fn is_full(&self) -> bool {
        *self.is_full.lock().expect("lock")
    }

    fn note(&self, call: (SocketAddr, usize, Option<usize>)) {
        self.calls.lock().expect("lock").push(call);
    }

    /// Returns what was sent since the last time: bytes, and the size of a packet when there are several.
    fn calls(&self) -> Vec<(usize, Option<usize>)> {
        let calls = std::mem::take(&mut *self.calls.lock().expect("lock"));
        calls.into_iter().map(|(_, bytes, segment)| (bytes, segment)).collect()
    }
}

#[derive(Debug)]
struct Room(Arc<Recorded>);

impl UdpPoller for Room {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.0.is_full() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncUdpSocket for Recorded {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Room(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.is_full() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let call = (transmit.destination, transmit.contents.len(), transmit.segment_size);
        self.note(call);
        Ok(())
    }

    fn poll_recv(
        &self,
        _: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut received = self.received.lock().expect("lock");
        (meta[0].len, received.1) = (received.0, buffers.len());
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(at(0))
    }

    fn max_transmit_segments(&self) -> usize {
        self.segments
    }
}

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

const PACKET: usize = 1_000;

/// Sends so many packets of [`PACKET`] bytes in one batch, the last of them shorter by so much.
fn send(gathering: &Gathering, to: u16, packets: usize, short_by: usize) -> io::Result<()> {
    let contents = vec![7; packets * PACKET - short_by];
    let segment_size = (packets > 1).then_some(PACKET);
    gathering.try_send(&Transmit {
        destination: at(to),
        ecn: None,
        contents: &contents,
        segment_size,
        src_ip: None,
    })
}

fn gathering(segments: usize) -> (Arc<Recorded>, Arc<Gathering>, Flusher) {
    let socket = Recorded::new(segments);
    let (gathering, flusher) = Gathering::new(Arc::<Recorded>::clone(&socket));
    (socket, gathering, flusher)
}

/// Polls as a runtime would when the tasks that were ready have run.
fn turn(flusher: &mut Flusher) {
    assert!(flusher.now_or_never().is_none());
}

#[test]
fn full_batches_leave_together_and_in_order() {
    let (socket, gathering, mut flusher) = gathering(64);
    for _ in 0..4 {
        send(&gathering, 1, 10, 0).expect("sent");
    }
    assert_eq!(socket.calls(), []);
    turn(&mut flusher);
    assert_eq!(socket.calls(), [], "the connection behind it has its turn");
    send(&gathering, 1, 10, 0).expect("sent");
    turn(&mut flusher);
    assert_eq!(socket.calls(), [(50 * PACKET, Some(PACKET))]);
    turn(&mut flusher);
    assert_eq!(socket.calls(), []);
}

#[test]
fn what_is_no_full_batch_leaves_at_once_behind_what_is_held() {
    let (socket, gathering, _flusher) = gathering(64);
    send(&gathering, 1, 1, 0).expect("sent");
    assert_eq!(socket.calls(), [(PACKET, None)]);
    send(&gathering, 1, 3, 0).expect("sent");
    assert_eq!(socket.calls(), [(3 * PACKET, Some(PACKET))]);
    send(&gathering, 1, 10, 0).expect("sent");
    send(&gathering, 1, 10, 400).expect("sent");
    assert_eq!(socket.calls(), [(20 * PACKET - 400, Some(PACKET))]);
    send(&gathering, 1, 10, 0).expect("sent");
    send(&gathering, 2, 1, 0).expect("sent");
    assert_eq!(socket.calls(), [(10 * PACKET, Some(PACKET)), (PACKET, None)], "each to its place");
}

#[test]
fn one_call_takes_no_more_than_the_system_does() {
    let (socket, gathering, mut flusher) = gathering(64);
    for _ in 0..7 {
        send(&gathering, 1, 10, 0).expect("sent");
    }
    turn(&mut flusher);
    turn(&mut flusher);
    let calls = socket.calls();
    assert_eq!(calls.iter().map(|(bytes, _)| bytes).sum::<usize>(), 70 * PACKET);
    assert!(calls.iter().all(|(bytes, _)| *bytes <= 64 * PACKET), "{calls:?}");
}

#[test]
fn without_segmentation_each_call_is_passed_on() {
    let (socket, gathering, _flusher) = gathering(1);
    for _ in 0..3 {
        send(&gathering, 1, 1, 0).expect("sent");
    }
    assert_eq!(socket.calls(), [(PACKET, None); 3]);
}

#[test]
fn what_the_system_has_no_room_for_is_sent_later_and_first() {
    let (socket, gathering, mut flusher) = gathering(64);
    send(&gathering, 1, 10, 0).expect("held");
    socket.set_full(true);
    turn(&mut flusher);
    turn(&mut flusher);
    let refused = send(&gathering, 2, 1, 0).expect_err("it stands behind what is held");
    assert_eq!((refused.kind(), socket.calls()), (io::ErrorKind::WouldBlock, vec![]));
    socket.set_full(false);
    turn(&mut flusher);
    assert_eq!(socket.calls(), [(10 * PACKET, Some(PACKET))]);
    send(&gathering, 2, 1, 0).expect("sent");
    assert_eq!(socket.calls(), [(PACKET, None)]);
}

#[tokio::test]
async fn the_task_ends_with_its_socket() {
    let (socket, gathering, flusher) = gathering(64);
    let running = tokio::spawn(flusher);
    send(&gathering, 1, 10, 0).expect("held");
    while socket.calls().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(gathering);
    running.await.expect("ended");
}

#[test]
fn bulk_is_received_into_few_buffers() {
    let (socket, gathering, _flusher) = gathering(64);
    let mut meta = [RecvMeta::default(); 32];
    let mut buffers_for = |len| {
        socket.received.lock().expect("lock").0 = len;
        let mut space = [[0; 8]; 32];
        let mut buffers: Vec<_> = space.iter_mut().map(|space| IoSliceMut::new(space)).collect();
        let mut context = Context::from_waker(Waker::noop());
        let polled = gathering.poll_recv(&mut context, &mut buffers, &mut meta);
        assert!(matches!(polled, Poll::Ready(Ok(1))));
        socket.received.lock().expect("lock").1
    };
    let sizes = [1_200, BULK, 60_000, 1_200, 1_200];
    assert_eq!(sizes.map(&mut buffers_for), [32, 32, FEW, FEW, 32]);
}
