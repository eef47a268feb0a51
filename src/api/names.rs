//! The names under `tokencache.dev/` that users and other programs meet: labels, annotations, the finalizer.

/// API group of [`TokenCache`](super::TokenCache), and the prefix of every label and annotation below.
pub const GROUP: &str = "tokencache.dev";

/// Prefix that users may not use in `target.labels` and `target.annotations`.
pub const RESERVED_PREFIX: &str = "tokencache.dev/";

/// Label with value `"true"` on every Secret and Lease that tokencache wrote. Secrets are watched by it.
pub const LABEL_MANAGED: &str = "tokencache.dev/managed";

/// Label with value `"true"` on the Secrets that store the state of a job and rotated refresh tokens.
pub const LABEL_STATE: &str = "tokencache.dev/state";

/// Label with value `"true"` by which the owner of a Secret lets TokenCaches of its namespace read it.
pub const LABEL_SOURCE: &str = "tokencache.dev/source";

/// Annotation by which the owner of a ServiceAccount with the label above allows tokens of it: the audiences, separated
/// by commas or white space.
pub const ANNOTATION_AUDIENCES: &str = "tokencache.dev/audiences";

/// Stands for the API server's own audience in that annotation, whatever the API server calls itself.
pub const API_SERVER_AUDIENCE: &str = "kube-apiserver";

/// Annotation of a source Secret: the hosts to which its owner lets its contents be sent, separated by commas or spaces,
/// each a name, `*.` and a name, or an address, with a port or without. Without the annotation: to all.
pub const ANNOTATION_HOSTS: &str = "tokencache.dev/hosts";

/// Label of Jobs and their pods: the name of the TokenCache that they run for, or its beginning and a hash.
pub const LABEL_CACHE: &str = "tokencache.dev/cache";

/// Label of a Job and its pod: the one run that made them.
pub const LABEL_RUN: &str = "tokencache.dev/run";

/// Annotation of the Secret: when the value expires, RFC 3339 in UTC, or `never`.
pub const ANNOTATION_EXPIRES_AT: &str = "tokencache.dev/expires_at";

/// Annotation of the Secret: when the value was fetched, RFC 3339 in UTC.
pub const ANNOTATION_FETCHED_AT: &str = "tokencache.dev/fetched_at";

/// Annotation of the Secret: hash of the parts of the spec that decide what the Secret holds.
pub const ANNOTATION_FETCH_HASH: &str = "tokencache.dev/fetch_hash";

/// Annotation of the Secret: when its data last changed from one value to another, RFC 3339 in UTC. Without it, they
/// have been the same since the first fetch.
pub const ANNOTATION_CHANGED_AT: &str = "tokencache.dev/changed_at";

/// Annotation of the Secret: hash of its data, then that of the data and the four annotations above, as they were
/// written.
pub const ANNOTATION_DATA_HASH: &str = "tokencache.dev/data_hash";

/// Annotation of the Secret: the keys of the labels and annotations that come from `target.labels` and
/// `target.annotations`, as JSON. Keys that the spec no longer has are removed from the Secret by it.
pub const ANNOTATION_TARGET_KEYS: &str = "tokencache.dev/target_keys";

/// Annotation of the TokenCache: a value that differs from `status.handledRequest` asks for one run.
pub const ANNOTATION_REFRESH_REQUESTED: &str = "tokencache.dev/refresh_requested";

/// Annotation of a pod template: when tokencache last changed it to restart its workload, RFC 3339 in UTC.
pub const ANNOTATION_RESTARTED_AT: &str = "tokencache.dev/restarted_at";

/// Annotation of a pod template, after the TokenCache's name and a dot: the `changed_at` of the value for which it was
/// last restarted.
pub const ANNOTATION_RESTARTED_FOR: &str = "tokencache.dev/restarted_for";

/// Whether Secrets of that name are reserved for states (`tokencache-NAME-state`), of jobs and of rotated refresh tokens: no
/// value is written to them, and they are neither removed nor retained with one.
#[must_use]
pub fn is_state_name(name: &str) -> bool {
    name.starts_with("tokencache-") && name.ends_with("-state")
}

/// Finalizer of a TokenCache with `target.deletionPolicy: Retain`: the Secret is set free before the owner goes.
pub const FINALIZER: &str = "tokencache.dev/retain-secret";

/// Field manager of every write.
pub const FIELD_MANAGER: &str = "tokencache";

/// Field manager of the writes of rotated refresh tokens.
pub const FIELD_MANAGER_ROTATION: &str = "tokencache-rotation";
