//! What passes a machine: every packet of a network namespace, as the kernel shows it to who asks.
//!
//! Owns: the packet socket and what it has read. Must not know: what is looked for, protocols. Driven by: the checks that
//! search in what a machine has led. Needs root.

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Namespace;

/// Every protocol (`linux/if_ether.h`), in the order of the network.
const ALL: i32 = 0x0003_u16.to_be() as i32;
/// Longest packet: a segment of the loopback device with its headers.
const LONGEST: usize = 70_000;
/// What may wait until it is read.
const WAITING: usize = 8 << 20;

/// A capture that goes on.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reading: Option<JoinHandle<Vec<Vec<u8>>>>,
}

impl Capture {
    /// Reads all that comes and goes at all interfaces of a namespace from here on, loopback too.
    ///
    /// # Errors
    /// Not root.
    pub fn start(machine: &Namespace) -> Result<Self> {
        let mut socket = machine
            .enter(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ALL))))?
            .context("a packet socket")?;
        let _ = socket.set_recv_buffer_size(WAITING);
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let reading = std::thread::spawn(move || {
            let (mut packets, mut buffer) = (Vec::new(), vec![0; LONGEST]);
            loop {
                match socket.read(&mut buffer) {
                    Ok(len) => packets.push(buffer[..len].to_vec()),
                    // What waits is read first.
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        if is_over.load(Ordering::Relaxed) {
                            return packets;
                        }
                    }
                    Err(_) => return packets,
                }
            }
        });
        Ok(Self { stop, reading: Some(reading) })
    }

    /// Ends it and returns the packets, with their headers.
    ///
    /// # Errors
    /// The reader panicked.
    pub fn stop(mut self) -> Result<Packets> {
        self.stop.store(true, Ordering::Relaxed);
        let packets = self.reading.take().context("a reader")?.join();
        packets.map(Packets).map_err(|_| anyhow::anyhow!("the reader of packets panicked"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Packets that passed, in order.
#[derive(Debug)]
pub struct Packets(Vec<Vec<u8>>);

/// Bytes of a marker.
pub const MARKER: usize = 16;

impl Packets {
    /// Returns how many there are, and their bytes.
    pub fn size(&self) -> (usize, usize) {
        (self.0.len(), self.0.iter().map(Vec::len).sum())
    }

    /// Returns each packet.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }

    /// Whether these bytes are in a packet.
    pub fn hold(&self, bytes: &[u8]) -> bool {
        self.iter().any(|packet| packet.windows(bytes.len()).any(|window| window == bytes))
    }

    /// Returns how many of the markers are in a packet.
    pub fn found<'a>(&self, markers: impl IntoIterator<Item = &'a [u8; MARKER]>) -> usize {
        let wanted: HashSet<&[u8]> = markers.into_iter().map(|marker| &marker[..]).collect();
        let mut found = HashSet::new();
        for window in self.iter().flat_map(|packet| packet.windows(MARKER)) {
            if let Some(marker) = wanted.get(window) {
                found.insert(*marker);
            }
        }
        found.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_wherever_they_stand_and_each_counts_once() {
        let (one, two, three) = ([1; MARKER], [2; MARKER], [3; MARKER]);
        let packets = Packets(vec![
            [&[9; 3][..], &one, &two].concat(),
            [&one[..], &[9]].concat(),
            three[..15].to_vec(),
        ]);
        assert_eq!(packets.found([&one, &two, &three]), 2);
        assert!(packets.hold(&[9, 1]) && !packets.hold(&[2, 9]));
        assert_eq!(packets.size(), (3, 67));
    }
}
