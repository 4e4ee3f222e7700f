//! The check of each reply, and the first of those that were not right.
//!
//! Owns: what a right reply is, the words about one that is not. Must not know: sockets, time limits.
//! Driven by: the load, with each reply and its question.

use std::fmt;
use std::time::{Duration, Instant};

/// Wrong replies of one run that are kept for the report.
const KEPT: usize = 10;

/// What was wrong with the replies of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdicts {
    /// SERVFAIL.
    pub(super) failed: u64,
    /// NOERROR with another number of records than there are.
    pub(super) torn: u64,
    /// Any other code, or truncated.
    pub(super) other: u64,
    since: Option<Instant>,
    /// The first of them.
    odd: Vec<Odd>,
}

/// A wrong reply.
#[derive(Clone, Debug)]
struct Odd {
    after: Duration,
    question: Vec<u8>,
    /// As far as it went.
    head: Vec<u8>,
    records: u16,
}

impl Verdicts {
    /// Counts from a moment on.
    pub(super) fn since(began: Instant) -> Self {
        Self { since: Some(began), ..Self::default() }
    }

    /// Judges a reply that has just come to a query whose answer has so many records.
    pub(super) fn judge(&mut self, reply: &[u8], query: &[u8], records: u16) {
        let right = match records_of(reply) {
            Ok(found) => {
                self.torn += u64::from(found != records);
                found == records
            }
            Err(SERVFAIL) => {
                self.failed += 1;
                false
            }
            Err(_) => {
                self.other += 1;
                false
            }
        };
        if !right && self.odd.len() < KEPT {
            self.odd.push(Odd {
                after: self.since.map(|since| since.elapsed()).unwrap_or_default(),
                question: query.get(HEADER..).unwrap_or_default().to_vec(),
                head: reply.get(..reply.len().min(HEADER)).unwrap_or_default().to_vec(),
                records,
            });
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.failed += other.failed;
        self.torn += other.torn;
        self.other += other.other;
        let room = KEPT.saturating_sub(self.odd.len());
        self.odd.extend(other.odd.into_iter().take(room));
    }

    /// Returns how many replies were not right.
    pub(super) const fn wrong(&self) -> u64 {
        self.failed + self.torn + self.other
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failed, torn, other, odd, .. } = self;
        write!(f, "{failed} SERVFAIL, {torn} with another number of records, {other} with another code")?;
        odd.iter().try_for_each(|odd| write!(f, "\n  {odd}"))
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.after.as_secs_f64() * 1e3;
        write!(f, "after {milliseconds:.3} ms: {} got ", question(&self.question))?;
        let word = |at: usize| self.head.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        let [Some(flags), Some(answers), Some(authorities), Some(additionals)] = [2, 6, 8, 10].map(word)
        else {
            return write!(f, "{} bytes", self.head.len());
        };
        write!(
            f,
            "code {}, flags {flags:#06x}, {answers} answers (not {}), {authorities} authorities, {additionals} \
             additionals",
            flags & 0x0f,
            self.records
        )
    }
}

/// Returns how many records the answer of a reply has; its code when that is not NOERROR, [`NO_ANSWER`] when it is
/// truncated or no reply.
pub(super) fn records_of(reply: &[u8]) -> Result<u16, u8> {
    let (Some(flags), Some(count)) = (reply.get(2..4), reply.get(6..8)) else { return Err(NO_ANSWER) };
    match flags[1] & 0x0f {
        0 if flags[0] & TRUNCATED != 0 => Err(NO_ANSWER),
        0 => Ok(u16::from_be_bytes([count[0], count[1]])),
        code => Err(code),
    }
}

/// Returns name and type of a question, for people.
fn question(bytes: &[u8]) -> String {
    let (mut name, mut at) = (String::new(), 0);
    while let Some(length) = bytes.get(at).copied().filter(|length| *length > 0) {
        let label = bytes.get(at + 1..at + 1 + usize::from(length)).unwrap_or_default();
        name.push_str(&String::from_utf8_lossy(label));
        name.push('.');
        at += 1 + usize::from(length);
    }
    match bytes.get(at + 2) {
        Some(1) => format!("{name} A"),
        Some(33) => format!("{name} SRV"),
        kind => format!("{name} {kind:?}"),
    }
}

const HEADER: usize = 12;
const TRUNCATED: u8 = 0x02;
const SERVFAIL: u8 = 2;
/// Not a code of the wire, which has four bits.
const NO_ANSWER: u8 = 0xff;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::query;

    fn reply(flags: [u8; 2], answers: u8) -> Vec<u8> {
        vec![0, 7, flags[0], flags[1], 0, 1, 0, answers, 0, 1, 0, 2]
    }

    #[test]
    fn each_wrong_reply_is_counted_and_the_first_ones_are_told() {
        let mut verdicts = Verdicts::since(Instant::now());
        let asked = query(&["_http", "_tcp", "svc-00001"], 33);
        for (flags, answers) in
            [([0x84, 0], 3), ([0x84, 2], 0), ([0x84, 3], 0), ([0x84, 0], 1), ([0x86, 0], 3)]
        {
            verdicts.judge(&reply(flags, answers), &asked, 3);
        }
        assert_eq!((verdicts.failed, verdicts.torn, verdicts.other, verdicts.wrong()), (1, 1, 2, 4));
        let said = verdicts.to_string();
        let second = " ms: _http._tcp.svc-00001.mesh.internal. SRV got code 3, flags 0x8403, 0 answers \
                      (not 3), 1 authorities, 2 additionals";
        assert!(said.contains(second), "{said}");
    }

    #[test]
    fn a_flood_of_wrong_replies_is_told_in_a_few_lines() {
        let mut verdicts = Verdicts::since(Instant::now());
        for _ in 0..1_000 {
            verdicts.judge(&[], &query(&["a"], 1), 1);
        }
        let mut all = verdicts.clone();
        all.add(verdicts);
        assert_eq!((all.other, all.to_string().lines().count()), (2_000, KEPT + 1));
    }
}
