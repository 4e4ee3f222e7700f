//! A server where joiners expect an issuer, with any certificate, that keeps all it is told.
//!
//! Owns: its endpoint. Must not know: what makes an issuer. Driven by: the check of fake issuers.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, Incoming};
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;

use gossamer_wire::join::ALPN;

use crate::quic::Credentials;

/// More than a request has.
const MAX_TOLD_BYTES: usize = 65_536;

/// What a fake issuer was told.
#[derive(Debug, Default)]
pub struct Told {
    /// Connections that were begun.
    pub begun: usize,
    /// Bytes of streams and datagrams, decrypted.
    pub bytes: Vec<u8>,
}

/// Stands at an address of loopback with these credentials while `play` runs, which gets the address.
///
/// # Errors
/// Those of `play`; the credentials are none.
pub fn while_posing<T>(
    credentials: &Credentials,
    play: impl FnOnce(SocketAddr) -> Result<T>,
) -> Result<(T, Told)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = runtime.block_on(async { endpoint(credentials) })?;
    let (address, ended) = (endpoint.local_addr()?, Notify::new());
    std::thread::scope(|scope| {
        let server = scope.spawn(|| runtime.block_on(listen(&endpoint, &ended)));
        let played = play(address);
        ended.notify_one();
        let told = server.join().ok().context("a server that does not panic")?;
        Ok((played?, told))
    })
}

fn endpoint(credentials: &Credentials) -> Result<Endpoint> {
    let Credentials::Chain(chain, key) = credentials else { anyhow::bail!("a server needs a certificate") };
    let provider = Arc::new(ring::default_provider());
    let key = provider.key_provider.load_private_key(key.clone_key())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        // It does not mind a key that is not the certificate's.
        .with_cert_resolver(Arc::new(Shown(Arc::new(CertifiedKey::new(chain.clone(), key)))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    Ok(Endpoint::server(config, "127.0.0.1:0".parse()?)?)
}

#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Takes one connection after the other.
async fn listen(endpoint: &Endpoint, ended: &Notify) -> Told {
    let mut told = Told::default();
    loop {
        let incoming = tokio::select! {
            biased;
            () = ended.notified() => return told,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return told };
        told.begun += 1;
        tokio::select! {
            biased;
            () = ended.notified() => return told,
            () = hear(incoming, &mut told.bytes) => {}
        }
    }
}

/// Hears one joiner out and hangs up.
async fn hear(incoming: Incoming, bytes: &mut Vec<u8>) {
    // With half of a handshake a server may already send, and hear nothing yet.
    let Ok(connecting) = incoming.accept() else { return };
    let Ok(connection) = connecting.await else { return };
    tokio::select! {
        biased;
        heard = first_stream(&connection) => bytes.extend(heard.unwrap_or_default()),
        Ok(datagram) = connection.read_datagram() => bytes.extend_from_slice(&datagram),
        _ = connection.closed() => {}
    }
    connection.close(0_u32.into(), b"thanks");
}

async fn first_stream(connection: &Connection) -> Option<Vec<u8>> {
    let mut recv = tokio::select! {
        biased;
        Ok((_, recv)) = connection.accept_bi() => recv,
        Ok(recv) = connection.accept_uni() => recv,
        else => return std::future::pending().await,
    };
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = recv.read_chunk(MAX_TOLD_BYTES, true).await {
        bytes.extend_from_slice(&chunk.bytes);
    }
    Some(bytes)
}
