//! A flood of handshakes: first packets from addresses that are not the sender's, and handshakes that are begun and
//! left.
//!
//! Owns: the packets (RFC 9000 17.2, RFC 9001 5) and the sockets they leave from. Must not know: how a daemon fends it
//! off. Driven by: `evidence`, in the namespace of the attacker.

use std::collections::VecDeque;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::{RngExt as _, rngs::SmallRng};
use rustls::Side;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::quic::{ClientConnection, Suite, Version};
use tokio::time::Instant;

use gossamer_wire::frame::ALPN;

use crate::quic::{Credentials, tls};

/// Bytes of a first packet (RFC 9000 14.1).
const PACKET: usize = 1_200;
/// Bytes of a connection id.
const ID: usize = 8;
/// Bytes of the tag of a packet, and of a Retry.
const TAG: usize = 16;
/// How long a Retry is waited for.
const RETRY: Duration = Duration::from_secs(1);

/// What was sent, and what came back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// First packets.
    pub packets: u64,
    /// Requests to show the address that were followed.
    pub retries: u64,
    /// Handshakes the other side went on with.
    pub begun: u64,
    /// Bytes sent and received, without IP and UDP.
    pub bytes: (u64, u64),
}

/// A client that begins handshakes and finishes none.
pub struct Stranger {
    hello: Vec<u8>,
    id: [u8; ID],
    suite: Suite,
}

impl fmt::Debug for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stranger").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Stranger {
    /// Makes a stranger without a certificate.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new() -> Result<Self> {
        let id: [u8; ID] = rand::random();
        // Transport parameters: only the initial source connection id, which must be there.
        let parameters = [&[0x0f, ID as u8][..], &id].concat();
        let config = Arc::new(tls(&Credentials::None, ALPN)?);
        let name = "gossamer.invalid".try_into().context("a name")?;
        let mut connection = ClientConnection::new(config, Version::V1, name, parameters)?;
        let mut hello = Vec::new();
        connection.write_hs(&mut hello);
        let suite = TLS13_AES_128_GCM_SHA256.tls13().context("a suite of TLS 1.3")?;
        let suite = suite.quic_suite().context("a suite for QUIC")?;
        Ok(Self { hello, id, suite })
    }

    /// Returns a first packet to this connection id, with the token of a Retry or none.
    ///
    /// # Errors
    /// The packet does not hold the hello.
    pub fn initial(&self, to: &[u8], token: &[u8]) -> Result<Vec<u8>> {
        let mut packet = vec![0xc1, 0, 0, 0, 1, u8::try_from(to.len())?];
        packet.extend(to);
        packet.push(ID as u8);
        packet.extend(self.id);
        packet.extend(two_bytes(token.len())?);
        packet.extend(token);
        let header = packet.len() + 4;
        let body = PACKET.checked_sub(header + TAG).context("a shorter token")?;
        packet.extend(two_bytes(2 + body + TAG)?);
        packet.extend([0, 0]);
        let mut payload = [&[0x06, 0][..], &two_bytes(self.hello.len())?, &self.hello].concat();
        anyhow::ensure!(payload.len() <= body, "the hello is too long");
        payload.resize(body, 0);

        let keys = self.suite.keys(to, Side::Client, Version::V1).local;
        let tag = keys.packet.encrypt_in_place(0, &packet, &mut payload)?;
        packet.extend(payload);
        packet.extend(tag.as_ref());
        let (front, back) = packet.split_at_mut(header);
        let (first, number) = front.split_at_mut(header - 2);
        // The sample begins four bytes after the beginning of the packet number, which has two.
        keys.header.encrypt_in_place(&back[2..2 + keys.header.sample_len()], &mut first[0], number)?;
        Ok(packet)
    }
}

fn two_bytes(length: usize) -> Result<[u8; 2]> {
    Ok((0x4000 | u16::try_from(length)?).to_be_bytes())
}

/// Returns the source connection id and the token of a Retry.
fn retry(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = packet.split_first()?;
    if first & 0xf0 != 0xf0 {
        return None;
    }
    let (to_len, rest) = rest.get(4..)?.split_first()?;
    let (from_len, rest) = rest.get(usize::from(*to_len)..)?.split_first()?;
    let (from, rest) = rest.split_at_checked(usize::from(*from_len))?;
    Some((from, rest.get(..rest.len().checked_sub(TAG)?)?))
}

/// Makes a socket on each of so many addresses from `first` on, all of which must be this machine's.
///
/// # Errors
/// The system refuses.
pub fn sockets(first: Ipv4Addr, count: u32, target: SocketAddr) -> Result<Vec<UdpSocket>> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let one = |number| {
        let socket = UdpSocket::bind((Ipv4Addr::from_bits(first.to_bits() + number), 0))?;
        socket.connect(target)?;
        socket.set_nonblocking(true)?;
        anyhow::Ok(socket)
    };
    (0..count).map(one).collect()
}

/// Sends first packets at a rate, each from the next socket, until told to stop. Answers are not read.
///
/// # Errors
/// The harness's own.
pub fn spoof(sockets: &[UdpSocket], per_second: u32, stop: &AtomicBool) -> Result<Sent> {
    let stranger = Stranger::new()?;
    let mut rng: SmallRng = rand::make_rng();
    // Made in advance: the attacker shall not take the processor from the attacked.
    let packets: Result<Vec<_>> =
        (0..20_000).map(|_| stranger.initial(&rng.random::<[u8; ID]>(), &[])).collect();
    let packets = packets?;
    let (mut sent, begin) = (Sent::default(), Instant::now());
    let turns = sockets.iter().cycle().zip(packets.iter().cycle());
    for (socket, packet) in turns {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let _ = socket.send(packet);
        sent.packets += 1;
        sent.bytes.0 += PACKET as u64;
        pace(begin, sent.packets, per_second);
    }
    Ok(sent)
}

/// Begins handshakes at a rate, each from the next socket, shows its address when asked, and leaves them there.
///
/// # Errors
/// The harness's own.
pub fn half_open(sockets: &[UdpSocket], per_second: u32, stop: &AtomicBool) -> Result<Sent> {
    let stranger = Stranger::new()?;
    let mut rng: SmallRng = rand::make_rng();
    let (mut sent, begin) = (Sent::default(), Instant::now());
    let mut waiting: VecDeque<(Instant, &UdpSocket)> = VecDeque::new();
    let mut buffer = [0; 1_500];
    for socket in sockets.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let _ = socket.send(&stranger.initial(&rng.random::<[u8; ID]>(), &[])?);
        sent.packets += 1;
        sent.bytes.0 += PACKET as u64;
        waiting.push_back((Instant::now(), socket));
        pace(begin, sent.packets, per_second);
        for (since, socket) in std::mem::take(&mut waiting) {
            let mut is_answered = false;
            while let Ok(length) = socket.recv(&mut buffer) {
                sent.bytes.1 += length as u64;
                is_answered = true;
                if let Some((from, token)) = retry(&buffer[..length]) {
                    sent.retries += 1;
                    let _ = socket.send(&stranger.initial(from, token)?);
                    sent.bytes.0 += PACKET as u64;
                    is_answered = false;
                } else if buffer[0] & 0xf0 == 0xc0 {
                    sent.begun += 1;
                }
            }
            if !is_answered && since.elapsed() < RETRY {
                waiting.push_back((since, socket));
            }
        }
    }
    Ok(sent)
}

/// Waits until it is time for the next packet.
fn pace(begin: Instant, sent: u64, per_second: u32) {
    let due = begin + Duration::from_secs_f64(sent as f64 / f64::from(per_second));
    let early = due.saturating_duration_since(Instant::now());
    // Shorter sleeps are longer than what is asked for.
    if early > Duration::from_millis(1) {
        sleep(early);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_packet_is_as_long_as_it_must_be_and_differs_each_time() {
        let stranger = Stranger::new().expect("TLS");
        let packets = [1, 2].map(|id| stranger.initial(&[id; ID], &[]).expect("fits"));
        assert!(packets.iter().all(|packet| packet.len() == PACKET && packet[0] & 0xf0 == 0xc0));
        assert_ne!(packets[0], packets[1]);
        assert_eq!(stranger.initial(&[1; ID], &[7; 80]).expect("fits").len(), PACKET);
    }

    #[test]
    fn a_retry_is_taken_apart() {
        let packet = [&[0xf0, 0, 0, 0, 1, 2, 9, 9, 3, 1, 2, 3][..], b"token", &[0; TAG]].concat();
        assert_eq!(retry(&packet), Some((&[1, 2, 3][..], &b"token"[..])));
        assert_eq!(retry(&packet[..20]), None);
        assert_eq!(retry(&[0xc0; 40]), None);
    }

    #[test]
    fn a_real_endpoint_takes_the_packet_and_asks_for_the_address() {
        let (key, chain) = {
            let key = rcgen::KeyPair::generate().expect("a key");
            let leaf = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
            (crate::quic::private(&key), vec![leaf.der().clone()])
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a server");
        config.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(config).expect("QUIC");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let stop = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let (address, target) = std::sync::mpsc::channel();
            let flood = scope.spawn(|| {
                let target = target.into_iter().next().expect("an address");
                let sockets = sockets(Ipv4Addr::LOCALHOST, 1, target).expect("a socket");
                half_open(&sockets, 50, &stop).expect("sends")
            });
            runtime.block_on(async {
                let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
                let here = "127.0.0.1:0".parse().expect("address");
                let endpoint = quinn::Endpoint::server(server, here).expect("binds");
                address.send(endpoint.local_addr().expect("bound")).expect("it listens");
                loop {
                    let next = endpoint.accept().await.expect("a handshake");
                    match next.remote_address_validated() {
                        false => next.retry().expect("its address is not shown yet"),
                        true => break drop(next.accept().expect("a hello that is understood")),
                    }
                }
            });
            stop.store(true, Ordering::Relaxed);
            flood.join().expect("no panic")
        });
        assert!(sent.retries >= 1, "{sent:?}");
    }
}
