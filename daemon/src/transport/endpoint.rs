//! The one QUIC endpoint of the daemon and its settings.
//!
//! Owns: the UDP socket and the QUIC configurations. Must not know: who is dialled, what streams carry.
//! Driven by: `transport`. The figures behind the settings are in `docs/adr/0005`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, ServerConfig,
    TransportConfig, ValidationTokenConfig, VarInt,
};
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use gossamer_wire::limits::{MAX_FLOWS_PER_PEER, MAX_INCOMING};

use super::tls::{self, Trust};
use crate::identity::Identity;

/// Control connections live on SWIM's own traffic.
const CONTROL_IDLE: Duration = Duration::from_secs(15 * 60);
/// A dead peer resets its flows after this (design section 9).
const DATA_IDLE: Duration = Duration::from_secs(3);
/// A payload that passes every path we met: 1,500 less IP and UDP headers.
const MAX_UDP_PAYLOAD: u16 = 1_472;

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

/// Binds the mesh port. `listen` with the unspecified IPv6 address means both families.
///
/// # Errors
/// See [`BindError`].
pub(super) fn bind(
    listen: SocketAddr,
    identity: &Identity,
    trust: &Trust,
    reset_key: &[u8; 64],
) -> Result<Endpoints, BindError> {
    let tls_error = |error: &dyn std::fmt::Display| BindError::Tls(error.to_string());
    let server_tls = tls::server(identity, trust).map_err(|error| tls_error(&error))?;
    let server_tls = QuicServerConfig::try_from(server_tls).map_err(|error| tls_error(&error))?;
    let mut server = ServerConfig::with_crypto(Arc::new(server_tls));
    server
        .transport_config(Arc::new(accepted_settings()))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(16 << 10)
        .incoming_buffer_size_total(1 << 20);
    // Addresses are validated by Retry under load; remembered tokens would cost 220 B per handshake.
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0);
    server.validation_token_config(tokens);

    let client_tls = tls::client(identity, trust).map_err(|error| tls_error(&error))?;
    let client_tls = Arc::new(QuicClientConfig::try_from(client_tls).map_err(|error| tls_error(&error))?);
    let client = |settings: TransportConfig| {
        let mut config = ClientConfig::new(Arc::clone(&client_tls) as _);
        config.transport_config(Arc::new(settings));
        config
    };

    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset_key)));
    config.cid_generator(|| Box::new(ShortIds));
    let _ = config.max_udp_payload_size(MAX_UDP_PAYLOAD);
    let socket = socket(listen)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new(config, Some(server), socket, runtime)
        .map_err(|error| BindError::Refused(listen, error))?;
    Ok(Endpoints { endpoint, control: client(control_settings()), data: client(data_settings()) })
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

/// Lets an accepted connection take flows, once its hello said that it is a data connection.
pub(super) fn widen(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_FLOWS_PER_PEER));
    connection.set_receive_window(VarInt::from_u32(DATA_WINDOW));
    connection.set_send_window(u64::from(DATA_WINDOW));
}

const CONTROL_STREAM_WINDOW: u32 = 64 << 10;
const DATA_STREAM_WINDOW: u32 = 1 << 20;
const DATA_WINDOW: u32 = 4 << 20;

fn control_settings() -> TransportConfig {
    let mut settings = TransportConfig::default();
    settings
        .max_idle_timeout(idle(CONTROL_IDLE))
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(4))
        .stream_receive_window(VarInt::from_u32(CONTROL_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(4 * CONTROL_STREAM_WINDOW))
        .send_window(u64::from(4 * CONTROL_STREAM_WINDOW))
        .datagram_receive_buffer_size(Some(64 << 10))
        .datagram_send_buffer_size(64 << 10)
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false);
    settings
}

fn data_settings() -> TransportConfig {
    let mut settings = TransportConfig::default();
    settings
        .max_idle_timeout(idle(DATA_IDLE))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_FLOWS_PER_PEER))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(DATA_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(DATA_WINDOW))
        .send_window(u64::from(DATA_WINDOW))
        .datagram_receive_buffer_size(Some(64 << 10))
        .datagram_send_buffer_size(64 << 10);
    settings
}

/// What an accepted connection may do before its hello has said what it is for: as little as a control one.
/// The stream window cannot be raised later, so it is the one of data connections.
fn accepted_settings() -> TransportConfig {
    let mut settings = control_settings();
    settings.stream_receive_window(VarInt::from_u32(DATA_STREAM_WINDOW));
    settings
}

fn idle(timeout: Duration) -> Option<IdleTimeout> {
    IdleTimeout::try_from(timeout).ok()
}

fn socket(listen: SocketAddr) -> Result<UdpSocket, BindError> {
    let error = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse(listen),
        _ => BindError::Refused(listen, error),
    };
    let open = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.bind(&address.into())?;
        io::Result::Ok(UdpSocket::from(socket))
    };
    match open(listen) {
        // A host without IPv6.
        Err(cause) if listen.ip() == Ipv6Addr::UNSPECIFIED && cause.kind() != io::ErrorKind::AddrInUse => {
            open((Ipv4Addr::UNSPECIFIED, listen.port()).into()).map_err(error)
        }
        result => result.map_err(error),
    }
}

/// Random 4-byte connection ids: 24 bytes less per probe than quinn's default (measured), and 2^32 of them are
/// plenty for one socket.
#[derive(Debug)]
struct ShortIds;

impl ConnectionIdGenerator for ShortIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; 4]>())
    }

    fn cid_len(&self) -> usize {
        4
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
