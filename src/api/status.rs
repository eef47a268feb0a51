//! `status`: a report that can be lost and rebuilt. The Secret's annotations are the truth about the value.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::ExpiresAt;
use crate::time::rfc3339_option;

/// The largest number that JavaScript and other readers of JSON tell exactly.
const MAX_RUNS: i64 = 1 << 53;
/// The longest name of an object. Identities of replicas are no longer either.
pub(crate) const MAX_NAME: usize = 253;
/// All annotations of an object together are no longer.
const MAX_ANNOTATION: usize = 256 * 1024;
/// As long as the message of a condition may be.
const MAX_MESSAGE: usize = 32 * 1024;

/// The last observed state and the last fetch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenCacheStatus {
    /// The most recent generation processed by the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the Secret holds a value that has not expired. Stalled: the controller cannot make progress without a change by
    /// the user.
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

    /// Total number of completed fetches. A client that requests a new value waits until it increases.
    #[serde(default)]
    #[schemars(range(min = 0, max = MAX_RUNS))]
    pub runs: i64,

    /// Consecutive failed fetches.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failures: i32,

    /// The last failed fetch; kept when a later one succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,

    /// When a failed fetch is retried.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_retry_at: Option<DateTime<Utc>>,

    /// Set by a consumer to the current time to request a new value. The next completed fetch clears it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub refresh_requested: Option<String>,

    /// The last handled value of the annotation tokencache.dev/refresh_requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_ANNOTATION))]
    pub handled_request: Option<String>,

    /// Name of the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NAME))]
    pub secret_name: Option<String>,

    /// The resourceVersion of the Secret after the last write. It shows whether another client has changed the Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NAME))]
    pub secret_resource_version: Option<String>,

    /// Name of the source, such as oauth2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NAME))]
    pub source: Option<String>,

    /// The replica that performed the last fetch, by default the name of its host or pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_NAME))]
    pub last_run_by: Option<String>,
}

/// A status can be lost and rebuilt: what somebody wrote into it must not make the object unreadable.
fn if_readable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ExpiresAt>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|text| text.parse().ok()))
}

/// A failed fetch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFailure {
    /// When it ended.
    #[serde(default, with = "rfc3339_option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub time: Option<DateTime<Utc>>,
    /// The reason, one word.
    #[schemars(length(max = MAX_NAME))]
    pub reason: String,
    /// Description of the failure.
    #[schemars(length(max = MAX_MESSAGE))]
    pub message: String,
}

/// The number of runs after one more. It always changes, since clients that wait for a run compare it: anyone who can
/// patch the status can write the largest number, and before the definition had limits, any.
#[must_use]
pub fn next_run(runs: i64) -> i64 {
    if (0..MAX_RUNS).contains(&runs) { runs + 1 } else { 1 }
}

impl TokenCacheStatus {
    /// The same within the limits of the definition. What somebody wrote before it had any would else be in the way of every
    /// later report.
    #[must_use]
    pub fn within_limits(mut self) -> Self {
        let shorten = |text: &mut String, max: usize| {
            if let Some((end, _)) = text.char_indices().nth(max) {
                text.truncate(end);
            }
        };
        self.runs = self.runs.clamp(0, MAX_RUNS);
        self.failures = self.failures.max(0);
        if let Some(failure) = &mut self.last_failure {
            shorten(&mut failure.reason, MAX_NAME);
            shorten(&mut failure.message, MAX_MESSAGE);
        }
        let names = [&mut self.secret_name, &mut self.secret_resource_version, &mut self.source, &mut self.last_run_by];
        for (text, max) in
            names.map(|text| (text, MAX_NAME)).into_iter().chain([(&mut self.handled_request, MAX_ANNOTATION)])
        {
            text.iter_mut().for_each(|text| shorten(text, max));
        }
        self
    }
}
