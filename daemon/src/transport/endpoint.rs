//! The one QUIC endpoint of the daemon and its settings.
//!
//! Owns: the QUIC endpoint and its configurations. Must not know: who is dialled, what streams carry.
//! Driven by: `transport`. The figures behind the settings are in `docs/adr/0005`.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, AsyncTimer, AsyncUdpSocket, ClientConfig, ConnectionId, ConnectionIdGenerator,
    Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, ServerConfig, TokioRuntime,
    TransportConfig, ValidationTokenConfig, VarInt,
};
use rand::RngExt as _;
use rand::rngs::StdRng;
use ring::hmac;
use thiserror::Error;

use gossamer_wire::limits::{
    MAX_ALL_INCOMING_BYTES, MAX_FLOWS_PER_PEER, MAX_GREETING, MAX_INCOMING, MAX_INCOMING_BYTES,
    MAX_UNREAD_PER_PEER,
};

use super::congestion::WindowsConfig;
use super::credit::MAX_UNREAD;
use super::data::MAX_LIVE;
use super::gather::Gathering;
use super::port::{MeshPort, TcpPort};
use super::socket::QuietSocket;
use super::tls::{self, Side};
use super::window::STREAM_WINDOW;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::supervise::Stage;

/// Control connections live on SWIM's own traffic.
const CONTROL_IDLE: Duration = Duration::from_secs(15 * 60);
/// Behind our own judgement of a silent peer (`silence`), which comes long before.
const DATA_IDLE: Duration = Duration::from_secs(30);
/// A payload that passes every path we met: 1,500 less IP and UDP headers.
const MAX_UDP_PAYLOAD: u16 = 1_472;

/// Streams a peer may have open on a control connection: the one of its frames.
pub(super) const CONTROL_STREAMS: u32 = 1;
/// Unread bytes of a stream of a control connection, and of the whole connection.
const CONTROL_STREAM_WINDOW: u32 = 64 << 10;
pub(super) const CONTROL_WINDOW: u32 = 256 << 10;
/// Unread bytes of a connection that has not greeted: a hello, or the request of a joiner.
pub(super) const GREETING_WINDOW: u32 = 16 << 10;
/// Unread and unsent datagrams of a connection; the oldest make room.
pub(super) const DATAGRAM_BUFFER: usize = 64 << 10;

/// Packets that may come before they are acknowledged, and the longest wait with fewer.
const ACK_AFTER: VarInt = VarInt::from_u32(10);
const ACK_WITHIN: Duration = Duration::from_millis(5);
/// How often larger packets are tried again. Rarely: an accepted control connection has this setting too.
const SIZES_EVERY: Duration = Duration::from_secs(60 * 60);

/// One peer pins no more unread bytes, whatever it opens.
const _: () = assert!(
    MAX_UNREAD
        + MAX_LIVE * DATAGRAM_BUFFER
        + CONTROL_WINDOW as usize
        + DATAGRAM_BUFFER
        + MAX_GREETING * (CONTROL_WINDOW as usize + DATAGRAM_BUFFER)
        <= MAX_UNREAD_PER_PEER
);

/// Why the mesh port could not be opened. The operator's fault; nothing was changed.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another program has it.
    #[error(
        "UDP port {0} is in use; stop the program that has it (`ss -lunp`), or start this daemon with --listen or --slot"
    )]
    InUse(SocketAddr),
    /// The system refused.
    #[error("UDP {0} cannot be bound: {1}")]
    Refused(SocketAddr, io::Error),
    /// A bug: the identity does not fit TLS.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// The endpoint with the client settings of its two kinds of connection.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    pub(super) endpoint: Endpoint,
    pub(super) control: ClientConfig,
    pub(super) data: ClientConfig,
}

/// What carries the mesh's datagrams.
#[derive(Clone, Debug)]
pub enum Udp {
    /// A socket bound to this address; the unspecified IPv6 address means both families.
    Bind(SocketAddr),
    /// A socket that is there already, for example one in memory.
    Given(Arc<dyn AsyncUdpSocket>),
}

/// What an endpoint is made of.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    pub(super) udp: &'a Udp,
    pub(super) side: Side<'a>,
    pub(super) reset_key: &'a [u8; 64],
    pub(super) clock: &'a Clock,
    pub(super) entropy: &'a Entropy,
}

/// Opens the mesh port, with the TCP socket of its number; a network in memory has none. The tasks of the QUIC library run on
/// the stage.
///
/// # Errors
/// See [`BindError`].
pub(super) fn open(stage: &Stage, opening: &Opening<'_>) -> Result<(Endpoints, Option<TcpPort>), BindError> {
    let Opening { udp, side, reset_key, clock, entropy } = opening;
    let tls_error = |error: &dyn std::fmt::Display| BindError::Tls(error.to_string());
    let server_tls = tls::server(side).map_err(|error| tls_error(&error))?;
    let server_tls = QuicServerConfig::try_from(server_tls).map_err(|error| tls_error(&error))?;
    let mut server = ServerConfig::with_crypto(Arc::new(server_tls));
    server
        .transport_config(Arc::new(accepted_settings()))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(MAX_INCOMING_BYTES)
        .incoming_buffer_size_total(MAX_ALL_INCOMING_BYTES)
        .time_source(Arc::new(Clock::clone(clock)));
    // Addresses are validated by Retry under load; remembered tokens would cost 220 B per handshake.
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    server.validation_token_config(tokens);

    let client_tls = tls::client(side).map_err(|error| tls_error(&error))?;
    let client_tls = Arc::new(QuicClientConfig::try_from(client_tls).map_err(|error| tls_error(&error))?);
    let client = |settings: TransportConfig| {
        let mut config = ClientConfig::new(Arc::clone(&client_tls) as _);
        config.transport_config(Arc::new(settings));
        config
    };

    let runtime = Arc::new(OnStage(stage.clone()));
    let (config, server) = (endpoint_config(reset_key, entropy), Some(server));
    let (endpoint, tcp) = match udp {
        Udp::Bind(listen) => {
            let port = MeshPort::bind(*listen)?;
            let endpoint = Endpoint::new(config, server, port.udp, runtime);
            (endpoint.map_err(|error| BindError::Refused(*listen, error))?, Some(port.tcp))
        }
        Udp::Given(socket) => {
            let unnamed = (Ipv4Addr::UNSPECIFIED, 0).into();
            let address = socket.local_addr().unwrap_or(unnamed);
            let endpoint = Endpoint::new_with_abstract_socket(config, server, Arc::clone(socket), runtime);
            (endpoint.map_err(|error| BindError::Refused(address, error))?, None)
        }
    };
    Ok((Endpoints { endpoint, control: client(control_settings()), data: client(data_settings()) }, tcp))
}

fn endpoint_config(reset_key: &[u8; 64], entropy: &Entropy) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
    let ids = entropy.clone();
    config.cid_generator(move || Box::new(ShortIds(ids.rng("connection ids"))));
    config.rng_seed(Some(entropy.rng("endpoint").random()));
    let _ = config.max_udp_payload_size(MAX_UDP_PAYLOAD);
    config
}

/// Makes an endpoint that only dials, for a joiner.
///
/// # Errors
/// The system refused a socket.
pub(crate) fn dial_only(peer: SocketAddr) -> io::Result<Endpoint> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    Endpoint::client(any)
}

/// Makes the client configuration of a joiner.
///
/// # Errors
/// A bug in the provider.
pub(crate) fn joiner(tls: rustls::ClientConfig) -> Result<ClientConfig, String> {
    let tls = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::new(Arc::new(tls));
    let mut settings = control_settings();
    settings.max_idle_timeout(idle(Duration::from_secs(10)));
    config.transport_config(Arc::new(settings));
    Ok(config)
}

/// Lets an accepted connection have the window of a control connection, once its hello was read.
pub(super) fn raise(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(CONTROL_WINDOW));
}

/// Lets an accepted connection take flows, once its hello said that it is a data connection. Its windows are `credit`'s.
pub(super) fn widen(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_FLOWS_PER_PEER));
}

fn control_settings() -> TransportConfig {
    let mut settings = TransportConfig::default();
    settings
        .max_idle_timeout(idle(CONTROL_IDLE))
        .max_concurrent_bidi_streams(VarInt::from_u32(CONTROL_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(CONTROL_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONTROL_WINDOW))
        .send_window(u64::from(CONTROL_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER)
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false);
    settings
}

pub(crate) fn data_settings() -> TransportConfig {
    let mut settings = TransportConfig::default();
    settings
        .max_idle_timeout(idle(DATA_IDLE))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_FLOWS_PER_PEER))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(STREAM_WINDOW)
        .receive_window(VarInt::from_u32(GREETING_WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(DATAGRAM_BUFFER);
    make_fast(&mut settings);
    settings
}

/// What an accepted connection may do before its hello has said what it is for, and all that a joiner may do: one
/// stream, and a window that holds a hello or a request. What cannot be changed later is that of data connections: the
/// stream window, and how packets are sent.
fn accepted_settings() -> TransportConfig {
    let mut settings = control_settings();
    settings.stream_receive_window(STREAM_WINDOW).receive_window(VarInt::from_u32(GREETING_WINDOW));
    make_fast(&mut settings);
    settings
}

/// Sets what a connection that moves much data needs: several packets with one system call, packets as large as the
/// path takes, an acknowledgement for ten of them, and a fair share of a crowded path.
fn make_fast(settings: &mut TransportConfig) {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_AFTER).max_ack_delay(Some(ACK_WITHIN));
    let mut sizes = MtuDiscoveryConfig::default();
    sizes.interval(SIZES_EVERY);
    settings
        .enable_segmentation_offload(true)
        .mtu_discovery_config(Some(sizes))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(WindowsConfig::default()));
}

fn idle(timeout: Duration) -> Option<IdleTimeout> {
    IdleTimeout::try_from(timeout).ok()
}

/// Random 4-byte connection ids: 24 bytes less per probe than quinn's default (measured), and 2^32 of them are
/// plenty for one socket.
#[derive(Debug)]
struct ShortIds(StdRng);

impl ConnectionIdGenerator for ShortIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.random::<[u8; 4]>())
    }

    fn cid_len(&self) -> usize {
        4
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Runs the tasks of the QUIC library where the other tasks of the transport run.
#[derive(Debug)]
struct OnStage(Stage);

impl Runtime for OnStage {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn_foreign(task);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.0.enter();
        let (gathering, flusher) = Gathering::new(QuietSocket::new(socket)?);
        self.0.spawn_foreign(flusher);
        Ok(gathering)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}
