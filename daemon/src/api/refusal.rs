//! Refusals: which status stands for which failure.
//!
//! Owns: the mapping of the handles' errors. Must not know: exit codes of the command line.
//! Driven by: `handlers`.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::messages::Problem;
use crate::authority::AuthorityError;
use crate::identity::issuer::TokenError;
use crate::identity::root_keys::RootKeyError;
use crate::register::{DrainError, ExposeError, WithdrawError};

/// A reply that is not a success.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    error: String,
}

impl Refusal {
    /// Any other one.
    pub(super) fn of(status: StatusCode, error: impl ToString) -> Self {
        Self { status, error: error.to_string() }
    }

    /// The caller's fault: it was not understood.
    pub(super) fn malformed(error: impl ToString) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error: error.to_string() }
    }

    /// What was named is not there.
    pub(super) fn not_found(error: impl ToString) -> Self {
        Self { status: StatusCode::NOT_FOUND, error: error.to_string() }
    }

    /// What was named is there, but not for this node or this user.
    pub(super) fn denied(error: impl ToString) -> Self {
        Self { status: StatusCode::FORBIDDEN, error: error.to_string() }
    }

    /// It cannot be done in the present state.
    pub(super) fn conflict(error: impl ToString) -> Self {
        Self { status: StatusCode::CONFLICT, error: error.to_string() }
    }

    fn failed(error: impl ToString) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, error: error.to_string() }
    }

    fn stopping() -> Self {
        let error = "the daemon is stopping; try again when it runs".to_owned();
        Self { status: StatusCode::SERVICE_UNAVAILABLE, error }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(Problem { error: self.error })).into_response()
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self { status: rejection.status(), error: rejection.body_text() }
    }
}

impl From<ExposeError> for Refusal {
    fn from(error: ExposeError) -> Self {
        match error {
            ExposeError::NotAllowed { .. }
            | ExposeError::FqdnNotAllowed { .. }
            | ExposeError::Owned { .. } => Self::denied(error),
            ExposeError::NoPort { .. }
            | ExposeError::Record(_)
            | ExposeError::Target { .. }
            | ExposeError::UnixUdp { .. }
            | ExposeError::ProxyUdp { .. } => Self::malformed(error),
            ExposeError::TooMany | ExposeError::NoRoom => Self::conflict(error),
            ExposeError::NotDurable(_) => Self::failed(error),
            ExposeError::Stopping => Self::stopping(),
        }
    }
}

impl From<AuthorityError> for Refusal {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::NoRoot(_)
            | AuthorityError::NoIssuer(_)
            | AuthorityError::Spent(_)
            | AuthorityError::NotAfter(_)
            | AuthorityError::RootKey(RootKeyError::Passphrase) => Self::denied(error),
            AuthorityError::NotAnIssuer(_) | AuthorityError::NotARoot(_) => Self::not_found(error),
            AuthorityError::RootKey(RootKeyError::Store(_) | RootKeyError::Encrypt) => Self::failed(error),
            AuthorityError::RootKey(_) => Self::malformed(error),
            AuthorityError::Itself
            | AuthorityError::HoldsIssuer(_)
            | AuthorityError::LastIssuer(_)
            | AuthorityError::OwnGroup { .. }
            | AuthorityError::Narrower(_)
            | AuthorityError::Rotating(_)
            | AuthorityError::TooManyRoots
            | AuthorityError::TooManyStatements(_)
            | AuthorityError::OnlyRoot(_)
            | AuthorityError::Depended { .. }
            | AuthorityError::NotExported
            | AuthorityError::TooMany => Self::conflict(error),
            AuthorityError::Silent(_) | AuthorityError::Certificate(_) | AuthorityError::Store(_) => {
                Self::failed(error)
            }
            AuthorityError::Stopping => Self::stopping(),
        }
    }
}

impl From<DrainError> for Refusal {
    fn from(error: DrainError) -> Self {
        match error {
            DrainError::Unknown { .. } => Self::not_found(error),
            DrainError::Owned { .. } => Self::denied(error),
            DrainError::NotDurable(_) => Self::failed(error),
            DrainError::Stopping => Self::stopping(),
        }
    }
}

impl From<WithdrawError> for Refusal {
    fn from(error: WithdrawError) -> Self {
        match error {
            WithdrawError::Unknown { .. } => Self::not_found(error),
            WithdrawError::Owned { .. } => Self::denied(error),
            WithdrawError::NotDurable(_) => Self::failed(error),
            WithdrawError::Stopping => Self::stopping(),
        }
    }
}

impl From<TokenError> for Refusal {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::TooLong(_)
            | TokenError::Addresses { .. }
            | TokenError::Denied(..)
            | TokenError::Unlimited
            | TokenError::TooMany => Self::malformed(error),
            TokenError::NoIssuer(..) | TokenError::Scope(_) | TokenError::NoRoot => Self::conflict(error),
            TokenError::Unknown(_) => Self::not_found(error),
            TokenError::Store(_) => Self::failed(error),
            TokenError::Stopping => Self::stopping(),
        }
    }
}
