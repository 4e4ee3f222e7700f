//! The cache of upstream answers.
//!
//! Owns: how long and how much is kept. Must not know: sockets, who asks. Driven by: `forward`.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use tokio::time::Instant;

use super::Asked;
use super::rules::Content;
use crate::Question;

/// What makes two questions the same one for upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: Name,
    record_type: RecordType,
    asked: Asked,
}

impl Key {
    pub(super) fn new(question: &Question, asked: Asked) -> Self {
        Self { name: question.name.to_lowercase(), record_type: question.record_type, asked }
    }
}

/// The answers. moka evicts what is asked for seldom: a flood of names that are asked for once pushes nothing out
/// that is in use.
#[derive(Debug)]
pub(super) struct Cache(moka::sync::Cache<Key, Arc<Kept>>);

#[derive(Debug)]
struct Kept {
    content: Content,
    since: Instant,
    lasts: Duration,
}

impl Cache {
    pub(super) fn new() -> Self {
        let cache = moka::sync::Cache::builder().max_capacity(MAX_BYTES).weigher(weight).build();
        Self(cache)
    }

    /// Keeps an answer for as long as all of it holds; what may not be kept is not.
    pub(super) fn keep(&self, key: Key, content: &Content, now: Instant) {
        let lasts = lifetime(content);
        if lasts > Duration::ZERO {
            self.0.insert(key, Arc::new(Kept { content: content.clone(), since: now, lasts }));
        }
    }

    /// Returns an answer that still holds, with the times to live that are left.
    pub(super) fn get(&self, key: &Key, now: Instant) -> Option<Content> {
        let kept = self.0.get(key)?;
        let age = now.saturating_duration_since(kept.since);
        if age >= kept.lasts {
            self.0.invalidate(key);
            return None;
        }
        let mut content = kept.content.clone();
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let Content { answers, authorities, additionals, .. } = &mut content;
        for record in answers.iter_mut().chain(authorities).chain(additionals) {
            record.ttl = record.ttl.saturating_sub(seconds);
        }
        Some(content)
    }
}

/// The shortest time to live of the answer; of a negative one also that of its SOA (RFC 2308 5). Zero for what says
/// nothing about the name.
fn lifetime(content: &Content) -> Duration {
    if !matches!(content.rcode, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Duration::ZERO;
    }
    let has_data = content.answers.iter().any(|record| record.record_type() != RecordType::CNAME);
    let positive = content.rcode == ResponseCode::NoError && has_data;
    let negative = content.authorities.iter().find_map(negative_ttl).unwrap_or_default();
    let negative = (!positive).then_some(negative.min(MAX_NEGATIVE_TTL));
    let shortest = content.answers.iter().map(|record| record.ttl).chain(negative).min();
    Duration::from_secs(shortest.unwrap_or_default().into())
}

fn negative_ttl(record: &Record) -> Option<u32> {
    match &record.data {
        RData::SOA(data) => Some(record.ttl.min(data.minimum)),
        _ => None,
    }
}

/// About the bytes an entry takes: names and data are on the heap.
fn weight(_: &Key, kept: &Arc<Kept>) -> u32 {
    let Content { answers, authorities, additionals, .. } = &kept.content;
    let records = answers.iter().chain(authorities).chain(additionals);
    let bytes: usize = records.map(|record| RECORD_BYTES + data_bytes(record)).sum();
    u32::try_from(ENTRY_BYTES + bytes).unwrap_or(u32::MAX)
}

/// As many bytes as the record has in a message; more where it is read into lists of small parts.
fn data_bytes(record: &Record) -> usize {
    let encoded = record.to_bytes().map_or_else(|_| u16::MAX.into(), |bytes| bytes.len());
    let is_list = matches!(
        record.record_type(),
        RecordType::TXT | RecordType::SVCB | RecordType::HTTPS | RecordType::CSYNC
    );
    if is_list { encoded * PART_FACTOR } else { encoded }
}

/// Memory of the cache: about 12,000 answers of ordinary size.
const MAX_BYTES: u64 = 16 << 20;

/// Key, entry and what moka keeps of both.
const ENTRY_BYTES: usize = 640;

/// A record without the data that is on the heap.
const RECORD_BYTES: usize = 320;

/// What a list takes for a byte of a message: a string of one character is 2 bytes there, and 16 with 16 on the heap here.
const PART_FACTOR: usize = 20;

/// Longest time an absence is kept, seconds: RFC 2308 5 suggests one to three hours at most; people wait for names
/// that they have just made.
const MAX_NEGATIVE_TTL: u32 = 300;

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{A, CNAME, OPENPGPKEY, SOA, TXT};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("name")
    }

    fn key(text: &str) -> Key {
        Key::new(&Question { name: name(text), record_type: RecordType::A }, Asked::default())
    }

    fn content(rcode: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Content {
        Content { rcode, answers, authorities, additionals: Vec::new() }
    }

    fn a(ttl: u32) -> Record {
        Record::from_rdata(name("a.example."), ttl, RData::A(A::new(192, 0, 2, 1)))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let data = SOA::new(name("ns.example."), name("h.example."), 1, 2, 3, 4, minimum);
        Record::from_rdata(name("example."), ttl, RData::SOA(data))
    }

    #[test]
    fn an_answer_lasts_as_long_as_its_shortest_record_and_ages() {
        let (cache, start) = (Cache::new(), Instant::now());
        cache.keep(key("A.Example."), &content(ResponseCode::NoError, vec![a(9), a(5)], Vec::new()), start);
        let kept = cache.get(&key("a.example."), start + Duration::from_secs(3)).expect("kept");
        assert_eq!(kept.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [6, 2]);
        assert_eq!(cache.get(&key("a.example."), start + Duration::from_secs(5)), None);
    }

    #[test]
    fn an_absence_lasts_as_its_soa_says_but_not_long() {
        let seconds = |content: &Content| lifetime(content).as_secs();
        let absent = |soa| content(ResponseCode::NXDomain, Vec::new(), vec![soa]);
        assert_eq!(seconds(&absent(soa(60, 10))), 10);
        assert_eq!(seconds(&absent(soa(20, 3600))), 20);
        assert_eq!(seconds(&absent(soa(86_400, 86_400))), 300);
        assert_eq!(seconds(&content(ResponseCode::NXDomain, Vec::new(), Vec::new())), 0, "no SOA");
        let alias = Record::from_rdata(name("a.example."), 7, RData::CNAME(CNAME(name("b.example."))));
        assert_eq!(seconds(&content(ResponseCode::NoError, vec![alias], vec![soa(60, 60)])), 7);
    }

    #[test]
    fn failures_and_answers_of_no_time_are_not_kept() {
        assert_eq!(lifetime(&content(ResponseCode::ServFail, vec![a(9)], Vec::new())), Duration::ZERO);
        assert_eq!(lifetime(&content(ResponseCode::NoError, vec![a(0)], Vec::new())), Duration::ZERO);
    }

    #[test]
    fn an_entry_weighs_as_much_as_its_data_whatever_the_type() {
        let weighs = |data: RData| {
            let record = Record::from_rdata(name("a.example."), 60, data);
            let content = content(ResponseCode::NoError, vec![record], Vec::new());
            weight(
                &key("a.example."),
                &Arc::new(Kept { content, since: Instant::now(), lasts: Duration::MAX }),
            )
        };
        let of_bytes = |bytes| weighs(RData::OPENPGPKEY(OPENPGPKEY::new(vec![1; bytes])));
        assert_eq!(of_bytes(40_000), of_bytes(0) + 40_000);
        assert!(weighs(RData::TXT(TXT::new(vec!["x".to_owned(); 10_000]))) > 10_000 * 32);
    }

    #[test]
    fn a_flood_of_names_fills_a_bounded_cache() {
        let (cache, now) = (Cache::new(), Instant::now());
        let one = content(ResponseCode::NoError, vec![a(60); 4], Vec::new());
        for number in 0..20_000 {
            cache.keep(key(&format!("n{number}.example.")), &one, now);
        }
        cache.0.run_pending_tasks();
        assert!(cache.0.weighted_size() <= MAX_BYTES, "{}", cache.0.weighted_size());
        assert!(cache.0.entry_count() > 1_000, "{}", cache.0.entry_count());
    }
}
