//! A member that reads nothing of what a relay leads to it.
//!
//! Owns: clients that stall by hundreds. Must not know: the bytes of circuits. Driven by: `evidence`. Needs root: each machine
//! is a network namespace.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;

use super::carried::{connect, kept, listen, raise_files};
use super::circuits::{FLOOR, Hidden, behind, exchanged, offer, throttle};
use super::steady::{Stop, give, memory_kib, percentile};
use super::{Ci, Needs, Row, Run};
use crate::netns::Segment;
use crate::process::Node;
use crate::promise;

pub(super) const ROWS: &[Row] = &[Row {
    name: "7.3-unread",
    promise: "240 clients of one member call a node through a relay and read nothing while its service sends all it can: the relay grows by less than 24 MiB, and by less than 2 MiB in the next 10 s, the nodes at the ends by less than 128 MiB, and p99 of another flow of the two stays within twice that of the calm and 5 ms",
    sabotage: "the relay's process gets a tenth of its time",
    needs: Needs::Root,
    ci: Ci::Runs,
    check: unread,
}];

/// Less than flows between two nodes that only lanes connect.
const CLIENTS: usize = 240;
const SEEN: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(10);
/// What the relay may grow by, then and later, and the two ends, KiB.
const RELAY_KIB: u64 = 24 << 10;
const LATER_KIB: u64 = 2 << 10;
const END_KIB: u64 = 128 << 10;

fn unread(run: &Run) -> Result<String> {
    raise_files(2 * CLIENTS as u64 + 1_000)?;
    let segment = Segment::new(4)?;
    let (public, routers) = segment.machines().split_at(2);
    let (left, right) = (behind(&routers[0])?, behind(&routers[1])?);
    run.scenario(|lab| {
        let mesh = kept("a mesh", Hidden::new(lab, public, [&left, &right], true))?;
        let [a, b] = &mesh.nodes;
        let relay = &mesh.relays[0];
        let (source, target) = right.enter(listen)??;
        let bulk = offer(b, a, "bulk", target)?;
        let ((mut client, mut program), _) = kept("a flow to b", mesh.call(&left, SEEN))?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _guard = Stop(&stop);
            scope.spawn(|| give(scope, &source, u64::MAX, &stop));
            let mut calm = exchanged(&mut client, &mut program, LOOK)?;
            let before = [relay, a, b].map(memory_kib).into_iter().collect::<Result<Vec<_>>>()?;
            let clients = left.enter(|| stall(bulk))??;
            promise!(clients.len() == CLIENTS, "{} of {CLIENTS} clients are served", clients.len());
            if run.sabotaged {
                throttle(relay, &stop, scope)?;
            }
            let full = grown([relay, a, b], &before)?;
            let mut beside = exchanged(&mut client, &mut program, LOOK)?;
            let later = grown([relay, a, b], &before)?;
            promise!(full[0] < RELAY_KIB && later[0] < full[0] + LATER_KIB, "the relay grew by {full:?}, {later:?}");
            promise!(later[1..].iter().all(|grew| *grew < END_KIB), "the ends grew by {later:?} KiB");
            let (calm, beside) = (percentile(&mut calm, 99), percentile(&mut beside, 99));
            promise!(beside <= calm * 2 + FLOOR, "p99 is {calm:?} in the calm and {beside:?} beside them");
            Ok(format!(
                "relay grown by {} and then {} KiB, caller {}, server {}; p99 {:.2} ms in the calm, {:.2} ms beside them",
                full[0], later[0], later[1], later[2],
                calm.as_secs_f64() * 1e3, beside.as_secs_f64() * 1e3
            ))
        })
    })
}

fn grown(nodes: [&Node; 3], before: &[u64]) -> Result<Vec<u64>> {
    nodes.iter().zip(before).map(|(node, before)| Ok(memory_kib(node)?.saturating_sub(*before))).collect()
}

/// Connects one client after the other, and returns those that are served. They read nothing but look for a first byte.
fn stall(service: SocketAddr) -> Result<Vec<TcpStream>> {
    let mut served = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = connect(service)?;
        client.set_read_timeout(Some(SEEN))?;
        if client.write_all(b"more").is_ok() && client.peek(&mut [0]).is_ok_and(|len| len > 0) {
            served.push(client);
        }
    }
    Ok(served)
}
