//! The one list of reasons: in conditions, events, metrics and logs.

use std::fmt;

/// Why something is as it is, in one word. Its name is its variant's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    // Reasons of Ready.
    /// The Secret holds a valid value.
    Fetched,
    /// The value is still valid; the newest attempt failed.
    RefreshFailing,
    /// The first fetch has not ended yet.
    Pending,
    /// The value expired.
    Expired,
    /// There is no value, and the newest attempt failed.
    FetchFailed,
    /// `spec.suspend` is set.
    Suspended,
    /// There is no value, and none was requested yet.
    Cleared,
    /// Another client changed the Secret.
    Drifted,

    // Failures of a run.
    /// No connection, or it broke.
    Unreachable,
    /// The TLS handshake failed.
    TlsFailed,
    /// The attempt took longer than `fetch.timeout`.
    Timeout,
    /// HTTP 429.
    RateLimited,
    /// HTTP 5xx.
    ServerError,
    /// HTTP 3xx or 4xx, or an OAuth `error`.
    Rejected,
    /// An answer that holds no credential.
    InvalidResponse,
    /// An answer above the limit.
    ResponseTooLarge,
    /// Neither the result nor `expiry` says when the value expires.
    NoExpiry,
    /// The value has less left than `refresh.minRemaining`.
    NearlyExpired,
    /// The Job of a run failed, or could not be run.
    JobFailed,
    /// The Lease could not be renewed, so the run was cancelled.
    LockLost,
    /// A value was fetched, but the API server did not take the Secret.
    WriteFailed,

    // Terminal errors: they usually need a change by the user.
    /// The spec breaks a rule.
    InvalidSpec,
    /// A Secret with the name of the target is owned by another object.
    SecretNotOwned,
    /// A Lease with the name of the lock is owned by another object.
    LeaseNotOwned,
    /// A referenced Secret, ConfigMap or key is missing.
    SourceNotFound,
    /// A referenced Secret lacks the label that lets it be read.
    SourceNotAllowed,
    /// The address rules forbid the server's address.
    AddressNotAllowed,
    /// The refresh token is invalid: a user must sign in again.
    ReauthenticationRequired,

    // Events only.
    /// A workload was restarted because the value has changed.
    RolloutRestarted,
    /// A workload could not be restarted.
    RolloutRestartFailed,
}

impl Reason {
    /// The reason's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetched => "Fetched",
            Self::RefreshFailing => "RefreshFailing",
            Self::Pending => "Pending",
            Self::Expired => "Expired",
            Self::FetchFailed => "FetchFailed",
            Self::Suspended => "Suspended",
            Self::Cleared => "Cleared",
            Self::Unreachable => "Unreachable",
            Self::TlsFailed => "TlsFailed",
            Self::Timeout => "Timeout",
            Self::RateLimited => "RateLimited",
            Self::ServerError => "ServerError",
            Self::Rejected => "Rejected",
            Self::InvalidResponse => "InvalidResponse",
            Self::ResponseTooLarge => "ResponseTooLarge",
            Self::NoExpiry => "NoExpiry",
            Self::NearlyExpired => "NearlyExpired",
            Self::JobFailed => "JobFailed",
            Self::LockLost => "LockLost",
            Self::WriteFailed => "WriteFailed",
            Self::InvalidSpec => "InvalidSpec",
            Self::SecretNotOwned => "SecretNotOwned",
            Self::LeaseNotOwned => "LeaseNotOwned",
            Self::SourceNotFound => "SourceNotFound",
            Self::SourceNotAllowed => "SourceNotAllowed",
            Self::AddressNotAllowed => "AddressNotAllowed",
            Self::ReauthenticationRequired => "ReauthenticationRequired",
            Self::Drifted => "Drifted",
            Self::RolloutRestarted => "RolloutRestarted",
            Self::RolloutRestartFailed => "RolloutRestartFailed",
        }
    }

    /// An early retry would fail again.
    const REFUSALS: [Self; 7] = [
        Self::InvalidSpec,
        Self::SecretNotOwned,
        Self::LeaseNotOwned,
        Self::SourceNotFound,
        Self::SourceNotAllowed,
        Self::AddressNotAllowed,
        Self::ReauthenticationRequired,
    ];

    /// Whether the same fetch is repeated after a time, although nothing changed and it was not requested.
    ///
    /// A refresh token that the server has refused is not sent again: a server that detects reuse may revoke every token
    /// of that sign-in (RFC 9700, section 4.14.2).
    #[must_use]
    pub fn is_repeated(self) -> bool {
        self != Self::ReauthenticationRequired
    }

    /// Whether an early retry would fail again, because a user usually has to change something first.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        Self::REFUSALS.contains(&self)
    }

    /// Whether a run that failed for the reason of that name may go well when what its source read has changed.
    #[must_use]
    pub fn is_of_source(name: &str) -> bool {
        [
            Self::SourceNotFound,
            Self::SourceNotAllowed,
            Self::InvalidSpec,
            Self::Rejected,
            Self::TlsFailed,
            Self::ReauthenticationRequired,
        ]
        .iter()
        .any(|reason| reason.as_str() == name)
    }

    /// The refusal of that name, as `status.lastFailure` stores it.
    #[must_use]
    pub fn refusal(name: &str) -> Option<Self> {
        Self::REFUSALS.into_iter().find(|reason| reason.as_str() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
