//! Where log lines go and which ones are written.
//!
//! Owns: the subscriber. Must not know: what is logged. Driven by: `cli`, once, before anything else runs.

use std::io;

use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::LogFormat;

/// Writes log lines to standard error from here on: standard output belongs to the commands' data. A thread of its own
/// writes them, for flows must not wait for who reads them; what waits is written when the guard is dropped. Of lines that
/// find 16,384 before them the newest are lost, and counted.
///
/// # Errors
/// Somebody has installed a subscriber before; that one stays.
pub fn install(level: Level, format: LogFormat) -> Result<(Levels, WorkerGuard), TryInitError> {
    let writer = NonBlockingBuilder::default().buffered_lines_limit(MOST_WAITING).lossy(true);
    let (writer, guard) = writer.thread_name("log").finish(io::stderr());
    let lost = writer.error_counter();
    let (layer, handle) = layer(level, format, writer);
    tracing_subscriber::registry().with(layer).try_init().map(|()| (Levels { handle, lost }, guard))
}

/// Changes how detailed the lines are that are written, and counts those that were not. Clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Levels {
    handle: Handle,
    lost: ErrorCounter,
}

type Handle = reload::Handle<Targets, Registry>;

/// Lines that wait to be written: some MiB, and some seconds of access lines.
const MOST_WAITING: usize = 16_384;

impl Levels {
    /// Writes lines up to this level from here on.
    pub fn set(&self, level: Level) {
        // It fails only where the subscriber is gone, and with it every line.
        let _ = self.handle.reload(filter(level));
    }

    /// Returns how many lines were lost because too many waited.
    pub fn lost(&self) -> u64 {
        self.lost.dropped_lines() as u64
    }
}

/// Libraries that say more than an operator wants at the level of ours: hickory and quinn describe single
/// packets at INFO, rustls every failed handshake of a stranger at WARN.
const CALMED: [(&str, Level); 3] =
    [("hickory_server", Level::WARN), ("quinn", Level::WARN), ("rustls", Level::ERROR)];

/// Returns what is written: our own lines up to `level`, those of loud libraries up to their own bound
/// unless `level` asks for details.
fn filter(level: Level) -> Targets {
    let is_detailed = level > Level::INFO;
    let bounds = CALMED.map(|(target, bound)| (target, if is_detailed { level } else { bound.min(level) }));
    Targets::new().with_default(LevelFilter::from_level(level)).with_targets(bounds)
}

fn layer<W>(level: Level, format: LogFormat, writer: W) -> (Box<dyn Layer<Registry> + Send + Sync>, Handle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = fmt::layer().with_writer(writer).with_ansi(false);
    let (filter, handle) = reload::Layer::new(filter(level));
    let layer = match format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    (layer, handle)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Collects lines in memory.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut lines = self.0.lock().map_err(|_| io::ErrorKind::Other)?;
            lines.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(level: Level, format: LogFormat, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let (layer, _levels) = layer(level, format, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = lines.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn log_everything() {
        tracing::debug!("ours in detail");
        tracing::info!(node = "vm-b", "ours");
        tracing::info!(target: "quinn::connection", "a packet");
        tracing::warn!(target: "rustls::server", "a stranger");
        tracing::error!(target: "rustls::server", "a fault");
    }

    #[test]
    fn loud_libraries_are_calmed_at_the_default_level() {
        let text = written(Level::INFO, LogFormat::Text, log_everything);
        assert!(text.contains("ours") && text.contains("a fault"), "{text}");
        for unwanted in ["in detail", "a packet", "a stranger"] {
            assert!(!text.contains(unwanted), "{text}");
        }
    }

    #[test]
    fn who_asks_for_details_gets_those_of_libraries_too() {
        let text = written(Level::DEBUG, LogFormat::Text, log_everything);
        for wanted in ["in detail", "a packet", "a stranger"] {
            assert!(text.contains(wanted), "{text}");
        }
    }

    #[test]
    fn the_level_can_change_while_lines_are_written() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (layer, levels) = layer(Level::INFO, LogFormat::Text, move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::debug!("before");
            levels.reload(filter(Level::DEBUG)).expect("the subscriber lives");
            tracing::debug!("in between");
            levels.reload(filter(Level::INFO)).expect("the subscriber lives");
            tracing::debug!("after");
        });
        let text = String::from_utf8(lines.0.lock().expect("not poisoned").clone()).expect("text");
        assert!(text.contains("in between") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn a_stricter_level_binds_libraries_too() {
        let text = written(Level::ERROR, LogFormat::Text, || {
            log_everything();
            tracing::warn!(target: "quinn", "a dropped packet");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn every_json_line_is_one_object_with_its_fields() {
        let text = written(Level::INFO, LogFormat::Json, log_everything);
        assert_eq!(text.lines().count(), 2);
        let first: serde_json::Value =
            serde_json::from_str(text.lines().next().expect("a line")).expect("json");
        assert_eq!((first["message"].as_str(), first["node"].as_str()), (Some("ours"), Some("vm-b")));
        assert_eq!(first["level"], "INFO");
    }

    #[test]
    fn text_has_no_terminal_codes() {
        assert!(!written(Level::INFO, LogFormat::Text, log_everything).contains('\u{1b}'));
    }
}
