//! A source's settings to a [`Fetched`] value; one file per source.

use std::{collections::BTreeMap, time::Duration};

use secrecy::SecretString;

use crate::{api::ExpiresAt, reason::Reason};

/// A credential as its source gave it. Does not print, and is wiped when dropped.
#[derive(Debug)]
pub struct Fetched {
    /// The token, where the source gives a single one.
    pub token: Option<SecretString>,
    /// Named values, where it gives several.
    pub values: BTreeMap<String, SecretString>,
    /// When it expires.
    pub expires_at: ExpiresAt,
}

/// Why a fetch gave no value. The message says what was wrong and where; it never holds a secret, a token or a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// The reason, which also decides whether trying again makes sense.
    pub reason: Reason,
    /// What was wrong and where.
    pub message: String,
    /// How long the server asked to be left alone (RFC 9110 §10.2.3).
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure after which the server named no wait.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }
}
