//! What we are measured against besides other programs: a bare UDP echo, and hickory's server over a plain map.
//!
//! Owns: both. Must not know: the suite. Driven by: the suite, as processes of their own (`dns-reference`).

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use clap::{Args, ValueEnum};
use hickory_proto::op::{Header, HeaderCounts, Metadata, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

/// A process that answers.
#[derive(Clone, Debug, Args)]
pub(crate) struct Reference {
    kind: Kind,
    address: SocketAddr,
    /// A master file as the suite writes it; for `hickory`.
    zone: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Sends every datagram back.
    Echo,
    /// hickory-server over a map of records.
    Hickory,
}

pub(crate) fn run(asked: &Reference) -> Result<()> {
    match asked.kind {
        Kind::Echo => echo(asked.address),
        Kind::Hickory => hickory(asked.address, asked.zone.as_deref().context("a zone file")?),
    }
}

fn echo(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut buffer = [0; 4_096];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        // The reply bit, so that the generator takes it for a reply.
        if let Some(flags) = buffer.get_mut(2) {
            *flags |= 0x80;
        }
        let _ = socket.send_to(&buffer[..length], from);
    }
}

fn hickory(address: SocketAddr, zone: &Path) -> Result<()> {
    let records = Arc::new(read(&std::fs::read_to_string(zone)?)?);
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut server = Server::new(Plain(records));
        server.register_socket(tokio::net::UdpSocket::bind(address).await?);
        Ok(server.block_until_done().await?)
    })
}

type Records = HashMap<(LowerName, RecordType), Vec<Record>>;

/// Reads the lines `owner ttl IN A|SRV data`.
fn read(text: &str) -> Result<Records> {
    let mut records = Records::new();
    for line in text.lines().skip(4) {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let (owner, ttl, data) = match fields.as_slice() {
            [owner, ttl, "IN", "A", address] => (owner, ttl, RData::A(A(address.parse()?))),
            [owner, ttl, "IN", "SRV", priority, weight, port, target] => {
                let target = Name::from_ascii(target)?;
                (owner, ttl, RData::SRV(SRV::new(priority.parse()?, weight.parse()?, port.parse()?, target)))
            }
            _ => continue,
        };
        let name = Name::from_ascii(format!("{owner}.mesh.internal."))?;
        let kind = data.record_type();
        let key = (LowerName::new(&name), kind);
        records.entry(key).or_default().push(Record::from_rdata(name, ttl.parse()?, data));
    }
    Ok(records)
}

#[derive(Clone)]
struct Plain(Arc<Records>);

#[async_trait]
impl RequestHandler for Plain {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut client: R,
    ) -> ResponseInfo {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.authoritative = true;
        let lost = Header { metadata, counts: HeaderCounts::default() }.into();
        let Ok(asked) = request.request_info() else { return lost };
        let empty = Vec::new();
        let of = |name: &LowerName, kind| self.0.get(&(name.clone(), kind)).unwrap_or(&empty);
        let answers = of(asked.query.name(), asked.query.query_type());
        let glue: Vec<&Record> = answers
            .iter()
            .filter_map(|record| match &record.data {
                RData::SRV(data) => of(&LowerName::new(&data.target), RecordType::A).first(),
                _ => None,
            })
            .collect();
        if answers.is_empty() {
            metadata.response_code = ResponseCode::NXDomain;
        }
        let builder = MessageResponseBuilder::from_message_request(request);
        let message = builder.build(metadata, answers, [], [], glue);
        client.send_response(message).await.unwrap_or(lost)
    }
}
