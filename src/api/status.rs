//! `status`: a report that can be lost and rebuilt. The Secret's annotations are the truth about the value.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::ExpiresAt;
use crate::time::rfc3339_option;

/// What the controllers saw and did last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenCacheStatus {
    /// The generation of the spec that was dealt with to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the Secret holds a value that has not expired. Stalled: somebody probably has to edit something first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// When the value in the Secret expires: RFC 3339, or never.
    #[serde(default, deserialize_with = "if_readable", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<ExpiresAt>,

    /// When the value in the Secret was fetched.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub fetched_at: Option<DateTime<Utc>>,

    /// When the next refresh is planned.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub refresh_at: Option<DateTime<Utc>>,

    /// Finished runs, ever. Who asked for a new value waits until it is greater.
    #[serde(default)]
    pub runs: i64,

    /// Failed runs in a row.
    #[serde(default)]
    pub failures: i32,

    /// The last run that failed; kept when a later one succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,

    /// When a failed fetch is tried again.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_retry_at: Option<DateTime<Utc>>,

    /// Set by a consumer to the time, to ask for a new value; the next run to end clears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub refresh_requested: Option<String>,

    /// The value of the annotation tokencache.dev/refresh_requested that a run has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handled_request: Option<String>,

    /// Name of the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,

    /// The Secret's resourceVersion as it was written: a Secret that still has it was touched by nobody since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_resource_version: Option<String>,

    /// How the value is fetched: the name of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,

    /// Who did the last run: the identity of the controller, by default its host or pod name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run_by: Option<String>,
}

/// A status can be lost and rebuilt: what somebody wrote into it must not make the object unreadable.
fn if_readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ExpiresAt>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}

/// A failed run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// When it ended.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub time: Option<DateTime<Utc>>,
    /// The reason, one word.
    pub reason: String,
    /// What was wrong and where.
    pub message: String,
}

/// The number of runs after one more. It always changes, since clients that wait for a run compare it: anyone who can
/// patch the status can write the largest number.
#[must_use]
pub fn next_run(runs: i64) -> i64 {
    runs.checked_add(1).unwrap_or(1)
}
