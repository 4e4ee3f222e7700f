//! Fuzz body: what an upstream server sends, from its bytes to what a client may hear.
//!
//! Owns: what must hold for any bytes. Must not know: where they come from. Driven by: the fuzz crate, and the tests below.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};

use super::reply::{self, Read};
use super::rules::Rules;
use crate::{Question, Zone, Zones};

/// Takes `bytes` for the answer to a query whose id they guess right.
///
/// # Panics
/// When something about the mesh would be passed on: a bug.
pub fn fuzz_upstream(bytes: &[u8]) {
    let Ok(zone) = Zone::new("mesh.internal", Ipv4Addr::new(127, 240, 0, 0), 16) else { return };
    let Ok(name) = Name::from_ascii("www.example.") else { return };
    let mut sent = Message::query();
    sent.metadata.id = bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    sent.add_query(Query::query(name.clone(), RecordType::A));
    let Read::Answer(answer) = reply::read(bytes, &sent) else { return };
    let Ok(suffix) = "corp.example".parse() else { return };
    let Ok(zones) = Zones::from(zone).with_suffix(suffix) else { return };
    let rules = Rules::new(Arc::new(zones), Some(Vec::new()));
    let question = Question { name, record_type: RecordType::A };
    if let Ok(content) = rules.sift(&question, answer, true) {
        let records = content.answers.iter().chain(&content.authorities).chain(&content.additionals);
        for record in records {
            assert!(!rules.is_foreign(&question, record), "{record} would be passed on");
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::{A, CNAME, SRV};
    use hickory_proto::rr::{RData, Record};
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn answer() -> Vec<u8> {
        let name = |text: &str| Name::from_ascii(text).expect("name");
        let record = |owner: &str, data| Record::from_rdata(name(owner), 60, data);
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name("www.example."), RecordType::A));
        message.answers = vec![
            record("www.example.", RData::CNAME(CNAME(name("b.internal.")))),
            record("b.internal.", RData::SRV(SRV::new(1, 2, 3, name("c.mesh.internam.")))),
            record("b.internal.", RData::A(A::new(127, 241, 3, 4))),
        ];
        message.additionals = vec![record("c.mesh.internam.", RData::A(A::new(192, 0, 2, 1)))];
        message.to_vec().expect("written")
    }

    #[test]
    fn damaged_answers_say_nothing_about_the_mesh() {
        let mut random = StdRng::seed_from_u64(1);
        for _ in 0..20_000 {
            let mut bytes = answer();
            for _ in 0..random.random_range(1..6) {
                let at = random.random_range(0..bytes.len());
                match random.random_range(0..4) {
                    0 => bytes[at] = random.random(),
                    1 => bytes[at] ^= 1 << random.random_range(0..8),
                    2 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.random()),
                }
            }
            fuzz_upstream(&bytes);
        }
    }

    #[test]
    fn answers_cut_at_every_byte_do_no_harm() {
        let bytes = answer();
        (0..=bytes.len()).for_each(|end| fuzz_upstream(&bytes[..end]));
    }
}
