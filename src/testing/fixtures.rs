//! Objects for tests.
#![allow(clippy::expect_used, reason = "tests")]

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::{
    api::{ExpiresAt, TokenCache},
    fetch::fetch_hash,
    reconcile::{
        desired_secret::{Integrity, Lifetime, SecretState, Stored},
        plan::Observed,
    },
    time::parse_rfc3339,
};

/// The moment at which tests begin.
pub(crate) fn start() -> DateTime<Utc> {
    parse_rfc3339("2026-03-01T12:00:00Z").expect("a time")
}

/// So many seconds after [`start`].
pub(crate) fn at(seconds: f64) -> DateTime<Utc> {
    start() + TimeDelta::milliseconds((seconds * 1000.0) as i64)
}

/// A valid TokenCache of generation 1, with parts of its spec and its whole status replaced.
pub(crate) fn cache(spec: Value, status: Value) -> TokenCache {
    let mut whole = json!({"fetch": {"oauth2": {
        "tokenUrl": "https://id.example.com/token", "clientId": "me", "clientSecretRef": {"name": "s", "key": "k"},
    }}});
    for (key, value) in spec.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    let mut object = json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
        "metadata": {"name": "a", "namespace": "ns", "uid": "uid-1", "generation": 1}, "spec": whole,
    });
    if !status.is_null() {
        object["status"] = status;
    }
    serde_json::from_value(object).expect("a TokenCache")
}

/// A value fetched at `from` that expires at `to`, in seconds after [`start`].
pub(crate) fn lifetime(from: f64, to: f64) -> Lifetime {
    Lifetime { fetched_at: at(from), expires_at: ExpiresAt::At(at(to)) }
}

/// The TokenCache's own Secret, as it was written, with this value.
pub(crate) fn stored(cache: &TokenCache, lifetime: Lifetime) -> Stored {
    Stored {
        uid: "uid-s".into(),
        resource_version: "7".into(),
        lifetime: Some(lifetime),
        fetch_hash: fetch_hash(&cache.spec),
        changed_at: None,
        integrity: Integrity::Intact,
        mutated: None,
    }
}

/// What is observed of a TokenCache whose Secret is as given.
pub(crate) fn observed(cache: &TokenCache, secret: Option<Stored>) -> Observed<'_> {
    Observed {
        cache,
        invalid: None,
        secret_name: cache.secret_name(),
        secret: secret.map_or(SecretState::Absent, SecretState::Owned),
        exact: None,
        exact_retry: None,
        is_forged: false,
        unblocked: false,
        brake: None,
        min_interval: chrono::TimeDelta::zero(),
    }
}
