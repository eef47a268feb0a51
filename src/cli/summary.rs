//! A TokenCache as `list` and `status` show it. Never its value.

use k8s_openapi::api::coordination::v1::Lease;
use serde::Serialize;

use crate::{
    api::{ExpiresAt, LastFailure},
    client::Cache,
    text::visible_line,
    time::rfc3339,
};

/// What people ask of a TokenCache. Its texts come from whoever may write its status or its Lease, so a terminal must not
/// act on them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) ready: bool,
    pub(super) reason: String,
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<ExpiresAt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fetched_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_retry_at: Option<String>,
    pub(super) source: String,
    pub(super) secret: String,
    pub(super) runs: i64,
    pub(super) failures: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_failure: Option<LastFailure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_run_by: Option<String>,
    /// Who runs it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lock: Option<String>,
    #[serde(skip)]
    pub(super) cache: Cache,
}

impl Summary {
    /// Of a TokenCache and its Lease, if that is there and may be read.
    pub(super) fn new(cache: Cache, lease: Option<&Lease>) -> Self {
        let status = cache.status.clone();
        let ready = cache.condition("Ready").cloned();
        let holder = lease.and_then(|lease| lease.spec.as_ref()).and_then(|spec| spec.holder_identity.clone());
        Self {
            namespace: cache.namespace().to_owned(),
            name: cache.name().to_owned(),
            ready: ready.as_ref().is_some_and(|ready| ready.status == "True"),
            reason: ready.as_ref().map_or_else(|| "Unknown".to_owned(), |ready| visible_line(&ready.reason)),
            message: ready
                .map_or_else(|| "no controller has looked at it yet".to_owned(), |ready| visible_line(&ready.message)),
            expires_at: status.expires_at,
            fetched_at: status.fetched_at.map(rfc3339),
            refresh_at: status.refresh_at.map(rfc3339),
            next_retry_at: status.next_retry_at.map(rfc3339),
            source: visible_line(&status.source.unwrap_or_default()),
            secret: visible_line(cache.secret_name()),
            runs: status.runs,
            failures: status.failures,
            last_failure: status.last_failure.map(|failure| LastFailure {
                reason: visible_line(&failure.reason),
                message: visible_line(&failure.message),
                ..failure
            }),
            last_run_by: status.last_run_by.as_deref().map(visible_line),
            lock: holder.as_deref().map(visible_line).filter(|holder| !holder.is_empty()),
            cache,
        }
    }
}
