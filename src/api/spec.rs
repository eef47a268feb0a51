//! `TokenCache`: what to fetch, when to refresh it, and where the value goes.
//!
//! Defaults are not written into the schema: a default that a later version adds would change stored objects, and with
//! them their fetch hash. They are in the accessors here, and in the descriptions that `kubectl explain` shows.

use std::{collections::BTreeMap, time};

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Duration, TokenCacheStatus, github_app::GitHubApp, http::Http, job::Job, oauth2::OAuth2, object_name,
    service_account_token::ServiceAccountToken,
};

/// Describes how to obtain a credential, when to refresh it, and the Secret that holds it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tokencache.dev",
    version = "v1alpha1",
    kind = "TokenCache",
    plural = "tokencaches",
    shortname = "tc",
    category = "tokencache",
    namespaced,
    status = "TokenCacheStatus",
    derive = "PartialEq",
    doc = "A credential that is kept fresh in a Secret.",
    validation = Rule::new("(has(self.spec.target) && has(self.spec.target.name)) || !(self.metadata.name.startsWith('tokencache-') && self.metadata.name.endsWith('-state'))").message("without spec.target.name the Secret is named like the TokenCache, and names like tokencache-NAME-state are reserved for the Secrets that store the states of jobs: set spec.target.name"),
    validation = Rule::new("(has(self.spec.target) && has(self.spec.target.name)) || !self.metadata.name.startsWith('sh.helm.release.')").message("without spec.target.name the Secret is named like the TokenCache, and names that begin with sh.helm.release. are reserved for Helm: set spec.target.name"),
    validation = Rule::new("self.metadata.name.size() <= 200").message("metadata.name must be at most 200 characters, since the names of its Lease and Secrets are made from it"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether the Secret holds a valid value"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expiresAt", description = "When the value expires"),
    printcolumn(name = "Refresh", type_ = "string", json_path = ".status.refreshAt", description = "When the next refresh is planned"),
    printcolumn(name = "Source", type_ = "string", json_path = ".status.source", description = "How the value is fetched"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Why it is ready or not"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretName", priority = 1),
    printcolumn(name = "Failures", type_ = "integer", json_path = ".status.failures", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct TokenCacheSpec {
    /// How the value is obtained: exactly one source.
    pub fetch: Fetch,

    /// When a fetched value expires.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expiry: Expiry,

    /// When a new value is fetched.
    #[serde(default, skip_serializing_if = "is_default")]
    pub refresh: Refresh,

    /// How failed fetches are retried.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retry: Retry,

    /// The Secret that holds the value.
    #[serde(default, skip_serializing_if = "is_default")]
    pub target: Target,

    /// If true, nothing is fetched and the Secret is not changed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub suspend: bool,

    /// Workloads that read the Secret only when they start. They are restarted each time the value changes, as by kubectl
    /// rollout restart. Their pod template must use the Secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub rollout_restart_targets: Vec<RolloutRestartTarget>,

    /// How workloads are restarted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rollout_restart: RolloutRestart,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A workload in the TokenCache's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRestartTarget {
    /// Deployment, StatefulSet or DaemonSet.
    pub kind: WorkloadKind,
    /// Name of the workload.
    #[schemars(length(min = 1, max = 253), regex(pattern = object_name::PATTERN))]
    pub name: String,
}

/// What can be restarted by a change of its pod template; each of the group apps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A StatefulSet.
    StatefulSet,
    /// A DaemonSet.
    DaemonSet,
}

/// How workloads are restarted.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRestart {
    /// Minimum time between two restarts of one workload, by any TokenCache. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s')").message("must be longer than 0s"))]
    pub min_interval: Option<Duration>,
}

impl RolloutRestart {
    /// Between two restarts of one workload.
    #[must_use]
    pub fn min_interval(&self) -> time::Duration {
        self.min_interval.map_or(time::Duration::from_secs(300), Duration::as_std)
    }
}

/// Exactly one source, and the time limit of a fetch.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.oauth2), has(self.http), has(self.githubApp), has(self.serviceAccountToken), has(self.job)].exists_one(set, set)").message("exactly one source must be set: oauth2, http, githubApp, serviceAccountToken or job"))]
#[serde(rename_all = "camelCase")]
// Boxed: a controller keeps many thousands of specs, each with one source.
pub struct Fetch {
    /// Time limit of a fetch, at most 10m. Default 30s; for job 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('10m')").message("must be longer than 0s and at most 10m"))]
    pub timeout: Option<Duration>,

    /// An OAuth 2.0 token endpoint (RFC 6749).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<Box<OAuth2>>,

    /// Any API that returns a credential for an HTTP request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Box<Http>>,

    /// A token of a service account, from the TokenRequest API. The ServiceAccount must have the label
    /// tokencache.dev/source: "true".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<Box<ServiceAccountToken>>,

    /// An installation token of a GitHub App.
    #[serde(default, rename = "githubApp", skip_serializing_if = "Option::is_none")]
    pub github_app: Option<Box<GitHubApp>>,

    /// Runs a container as a Job and reads the credential that it writes to $TOKENCACHE_RESULT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Box<Job>>,
}

/// The one source that a `fetch` names.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// An OAuth 2.0 token endpoint.
    OAuth2(&'a OAuth2),
    /// An HTTP request.
    Http(&'a Http),
    /// A token of a service account.
    ServiceAccountToken(&'a ServiceAccountToken),
    /// An installation token of a GitHub App.
    GitHubApp(&'a GitHubApp),
    /// A container of the user's.
    Job(&'a Job),
}

impl Source<'_> {
    /// The name of the source's field, for people and as a metric's label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OAuth2(_) => "oauth2",
            Self::Http(_) => "http",
            Self::ServiceAccountToken(_) => "serviceAccountToken",
            Self::GitHubApp(_) => "githubApp",
            Self::Job(_) => "job",
        }
    }
}

impl Fetch {
    /// The source; `None` when none is named, which validation refuses.
    #[must_use]
    pub fn source(&self) -> Option<Source<'_>> {
        let oauth2 = self.oauth2.as_deref().map(Source::OAuth2);
        let service_account_token = self.service_account_token.as_deref().map(Source::ServiceAccountToken);
        let github_app = self.github_app.as_deref().map(Source::GitHubApp);
        let http = self.http.as_deref().map(Source::Http);
        oauth2.or(http).or(github_app).or(service_account_token).or(self.job.as_deref().map(Source::Job))
    }

    /// One attempt's limit.
    #[must_use]
    pub fn timeout(&self) -> time::Duration {
        let default = if self.job.is_some() { 300 } else { 30 };
        self.timeout.map_or(time::Duration::from_secs(default), Duration::as_std)
    }
}

/// When a fetched value expires.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.never) && self.never && (has(self.ttl) || has(self.maxAge)))").message("never cannot be combined with ttl or maxAge"))]
#[serde(rename_all = "camelCase")]
pub struct Expiry {
    /// Lifetime of values whose response contains no expiry. Without it, such a response is an error (NoExpiry).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s')").message("must be longer than 0s"))]
    pub ttl: Option<Duration>,

    /// Maximum lifetime, also if the response contains a longer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s')").message("must be longer than 0s"))]
    pub max_age: Option<Duration>,

    /// If true, the value does not expire; it is refreshed only on request or when the spec changes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub never: bool,
}

/// When a new value is fetched.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.renewBefore) && has(self.renewBeforePercentage))").message("renewBefore and renewBeforePercentage cannot both be set"))]
#[serde(rename_all = "camelCase")]
pub struct Refresh {
    /// Eager (default): a new value is fetched before the old one expires. Lazy: a value is fetched only on request.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: RefreshPolicy,

    /// How long before the expiry an eager refresh starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) > duration('0s')").message("must be longer than 0s"))]
    pub renew_before: Option<Duration>,

    /// Percentage of the lifetime that is left when an eager refresh starts. Default 20, reduced by up to a twentieth of
    /// it, fixed per object, so that many objects do not refresh at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 99))]
    pub renew_before_percentage: Option<i32>,

    /// Minimum remaining lifetime of a fetched value; less is an error (NearlyExpired). Default 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_remaining: Option<Duration>,
}

impl Refresh {
    /// Percent of the lifetime that is left when an eager refresh starts, before jitter.
    #[must_use]
    pub fn percentage(&self) -> i32 {
        self.renew_before_percentage.unwrap_or(20)
    }
}

/// Whether a value is renewed before it expires, or on request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::api::without_description)]
pub enum RefreshPolicy {
    /// Before the old one expires.
    #[default]
    Eager,
    /// Only on request.
    Lazy,
}

/// How failed fetches are retried: exponential backoff with jitter on the upper half.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.initialInterval) && has(self.maxInterval)) || duration(self.initialInterval) <= duration(self.maxInterval)").message("initialInterval must not be longer than maxInterval"))]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Wait time after the first failure, doubled after each further one. At least 100ms. Default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms')").message("must be at least 100ms"))]
    pub initial_interval: Option<Duration>,

    /// Maximum wait time. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms')").message("must be at least 100ms"))]
    pub max_interval: Option<Duration>,
}

impl Retry {
    /// Wait after the first failure.
    #[must_use]
    pub fn initial(&self) -> time::Duration {
        self.initial_interval.map_or(time::Duration::from_secs(1), Duration::as_std)
    }

    /// Longest wait.
    #[must_use]
    pub fn max(&self) -> time::Duration {
        self.max_interval.map_or(time::Duration::from_secs(300), Duration::as_std).max(self.initial())
    }
}

/// Most bytes that a spec may have as JSON, as it is stored. The controller keeps the specs of all objects.
pub const MAX_SPEC: usize = 128 * 1024;

/// The Secret that holds the value.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Name of the Secret. Default: the TokenCache's name. Names like tokencache-NAME-state and names that begin with
    /// sh.helm.release. are reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = object_name::PATTERN)
    )]
    #[x_kube(
        validation = Rule::new("!(self.startsWith('tokencache-') && self.endsWith('-state'))").message("must not be like tokencache-NAME-state, which is reserved for the Secrets that store the states of jobs"),
        validation = Rule::new("!self.startsWith('sh.helm.release.')").message("must not begin with sh.helm.release., which is reserved for the Secrets that store the releases of Helm"),
    )]
    pub name: Option<String>,

    /// Type of the Secret. Default Opaque. The controller's flag --target-types lists the allowed types.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("!(self in ['kubernetes.io/service-account-token', 'bootstrap.kubernetes.io/token'])").message("kubernetes.io/service-account-token and bootstrap.kubernetes.io/token are refused: Kubernetes gives them rights of their own; use Opaque"))]
    pub type_: Option<String>,

    /// Labels of the Secret. Keys with the prefix tokencache.dev/ are rejected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('tokencache.dev/'))").message("keys under tokencache.dev/ are tokencache's own"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations of the Secret. Keys with the prefix tokencache.dev/ are rejected.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('tokencache.dev/'))").message("keys under tokencache.dev/ are tokencache's own"))]
    pub annotations: BTreeMap<String, String>,

    /// Data of the Secret: maps each key to a CEL expression that returns a string or bytes. Variables: `token` (string),
    /// `values` (map), `expiresAt` (timestamp or null) and `metadata` (name and namespace of the TokenCache).
    /// Default: {token: "token"}.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub data: BTreeMap<String, String>,

    /// Retain (default): the Secret is kept after its value expires. Delete: it is deleted when the value expires.
    #[serde(default, skip_serializing_if = "is_default")]
    pub expired_policy: RetentionPolicy,

    /// Whether to delete (Delete, the default) or keep (Retain) the Secret when the TokenCache is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<RetentionPolicy>,
}

/// Whether a Secret is kept or deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::api::without_description)]
pub enum RetentionPolicy {
    /// Keep it.
    #[default]
    Retain,
    /// Delete it.
    Delete,
}

impl Target {
    /// Type of the Secret.
    #[must_use]
    pub fn secret_type(&self) -> &str {
        self.type_.as_deref().unwrap_or("Opaque")
    }

    /// Key to CEL expression.
    #[must_use]
    pub fn data(&self) -> BTreeMap<String, String> {
        if self.data.is_empty() {
            BTreeMap::from([("token".to_owned(), "token".to_owned())])
        } else {
            self.data.clone()
        }
    }

    /// What happens to the Secret when the TokenCache is deleted.
    #[must_use]
    pub fn deletion_policy(&self) -> RetentionPolicy {
        self.deletion_policy.unwrap_or(RetentionPolicy::Delete)
    }
}

impl super::TokenCache {
    /// Name of the Secret that holds the value.
    #[must_use]
    pub fn secret_name(&self) -> &str {
        self.spec.target.name.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// Runs so far, as `status` counts them.
    #[must_use]
    pub fn runs(&self) -> i64 {
        self.status.as_ref().map_or(0, |status| status.runs)
    }
}
