//! What the demo prints: beats as they happen, and one result per step.
//!
//! Owns: the two forms, for people and for programs. Must not know: what the steps do. Driven by: `demo`.

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::cli::output;

/// A step of the demo; the names are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Step {
    Start,
    Join,
    Expose,
    Dns,
    Relay,
    Failover,
    Cleanup,
}

impl Step {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Join => "join",
            Self::Expose => "expose",
            Self::Dns => "dns",
            Self::Relay => "relay",
            Self::Failover => "failover",
            Self::Cleanup => "cleanup",
        }
    }
}

/// How the demo reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    People,
    Json,
}

/// The printer.
#[derive(Debug)]
pub(super) struct Report {
    form: Form,
    step_began: Instant,
}

#[derive(Serialize)]
struct Line<'a> {
    step: Step,
    ok: bool,
    detail: &'a str,
    ms: u128,
}

impl Report {
    pub(super) fn new(form: Form) -> Self {
        Self { form, step_began: Instant::now() }
    }

    /// Begins a step: from here on its time counts.
    pub(super) fn begin(&mut self, title: &str) {
        self.step_began = Instant::now();
        self.say(format_args!("\n{title}"));
    }

    /// Shows a command as a user would type it.
    pub(super) fn command(&self, words: &[&str]) {
        self.say(format_args!("  $ gossamer {}", words.join(" ")));
    }

    /// Shows something that happened.
    pub(super) fn beat(&self, what: &str) {
        self.say(format_args!("    {what}"));
    }

    /// Ends a step.
    pub(super) fn end(&self, step: Step, result: &Result<String, String>) {
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(why) => (false, why),
        };
        let took = self.step_began.elapsed();
        match self.form {
            Form::Json => {
                let line = Line { step, ok, detail, ms: took.as_millis() };
                output::data(serde_json::to_string(&line).unwrap_or_default());
            }
            Form::People => {
                let mark = if ok { "ok" } else { "FAILED" };
                output::data(format_args!("  {mark}: {detail} ({})", milliseconds(took)));
            }
        }
    }

    fn say(&self, line: std::fmt::Arguments<'_>) {
        if self.form == Form::People {
            output::data(line);
        }
    }
}

pub(super) fn milliseconds(time: Duration) -> String {
    if time < Duration::from_millis(10) {
        format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
    } else {
        format!("{} ms", time.as_millis())
    }
}

/// Shortens a token, which is a secret, and long, to its end: all of a mesh begin alike.
pub(super) fn short(token: &str) -> String {
    let skipped = token.chars().count().saturating_sub(6);
    let end: String = token.chars().skip(skipped).collect();
    format!("gsm1_..{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_one_json_object_with_stable_names() {
        let line = Line { step: Step::Failover, ok: true, detail: "0 failed", ms: 7 };
        let json = serde_json::to_string(&line).expect("serializes");
        assert_eq!(json, r#"{"step":"failover","ok":true,"detail":"0 failed","ms":7}"#);
        for step in [Step::Start, Step::Join, Step::Expose, Step::Dns, Step::Relay, Step::Cleanup] {
            assert_eq!(serde_json::to_value(step).expect("serializes"), step.name());
        }
    }

    #[test]
    fn times_and_tokens_are_short() {
        assert_eq!(milliseconds(Duration::from_micros(2_340)), "2.3 ms");
        assert_eq!(milliseconds(Duration::from_millis(1_234)), "1234 ms");
        assert_eq!(short("gsm1_abcdefghijklmnop"), "gsm1_..klmnop");
    }
}
