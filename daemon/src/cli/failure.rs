//! Failures of a command: one line for people, one number for scripts.
//!
//! Owns: the exit codes (design section 13) and which failure has which. Must not know: what commands do.
//! Driven by: every command; printed once, by `cli::main`.

use std::fmt;
use std::process::ExitCode;

use hyper::StatusCode;

use super::claim::SlotError;
use crate::api::ClientError;
use crate::app::RunError;
use crate::config::ConfigError;
use crate::identity::{InitError, JoinError};
use crate::store::StoreError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    NotFound = 4,
    Denied = 5,
    TimedOut = 124,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do its work: cause and remedy, each fault on a line.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Self { exit, text: text.to_string() }
    }

    pub(super) fn failed(text: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, text)
    }

    pub(super) fn usage(text: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for line in self.text.lines() {
            write!(f, "{separator}error: {line}")?;
            separator = "\n";
        }
        Ok(())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Unreachable { .. } => Exit::Unreachable,
            ClientError::TimedOut(_) => Exit::TimedOut,
            ClientError::Broken { .. } => Exit::Failed,
            ClientError::Refused { status, .. } => exit_of(*status),
        };
        Self::new(exit, error)
    }
}

fn exit_of(status: StatusCode) -> Exit {
    match status {
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            Exit::Usage
        }
        StatusCode::NOT_FOUND => Exit::NotFound,
        StatusCode::FORBIDDEN => Exit::Denied,
        _ => Exit::Failed,
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<SlotError> for Failure {
    fn from(error: SlotError) -> Self {
        Self::failed(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::failed(error)
    }
}

impl From<InitError> for Failure {
    fn from(error: InitError) -> Self {
        Self::failed(error)
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        let exit = if error.is_denied() { Exit::Denied } else { Exit::Failed };
        Self::new(exit, error)
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16) -> Exit {
        let status = StatusCode::from_u16(status).expect("a status");
        Failure::from(ClientError::Refused { status, text: "no; do this".to_owned() }).exit
    }

    #[test]
    fn what_the_daemon_says_becomes_the_exit_code_of_the_design() {
        for (status, exit) in [
            (400, Exit::Usage),
            (404, Exit::NotFound),
            (403, Exit::Denied),
            (409, Exit::Failed),
            (500, Exit::Failed),
            (503, Exit::Failed),
        ] {
            assert_eq!(refused(status), exit, "{status}");
        }
    }

    #[test]
    fn no_daemon_is_three_and_no_reply_is_a_hundred_and_twenty_four() {
        let cause = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = ClientError::Unreachable { socket: "/run/x.sock".into(), cause, fix: "start it" };
        let failure = Failure::from(error);
        assert_eq!(failure.exit as u8, 3);
        assert!(failure.to_string().contains("/run/x.sock"), "{failure}");
        assert_eq!(Failure::from(ClientError::TimedOut("/x".into())).exit as u8, 124);
    }

    #[test]
    fn each_fault_has_its_own_line() {
        assert_eq!(Failure::usage("a; b\nc; d").to_string(), "error: a; b\nerror: c; d");
    }
}
