//! What was recorded: each version of an object, reduced to what is judged. Values are only kept as hashes.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    hash::{Hash, Hasher as _},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use chrono::{DateTime, SecondsFormat, Utc};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use serde_json::Value;
use tokencache::api::{
    ExpiresAt, RefreshPolicy, TokenCache,
    names::{ANNOTATION_DATA_HASH, ANNOTATION_EXPIRES_AT, ANNOTATION_REFRESH_REQUESTED, LABEL_MANAGED},
};

use super::{Invariant, pulse::Pulses};
use crate::support::{seen::CacheView as _, spans::Span};

/// Unix seconds now.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// Unix seconds as people read them.
pub fn clock(seconds: f64) -> String {
    let time = DateTime::<Utc>::from_timestamp_millis((seconds * 1000.0) as i64).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// One version of a TokenCache.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheVersion {
    pub uid: String,
    pub generation: i64,
    pub deleting: bool,
    pub ready: Option<bool>,
    /// Reason of `Ready`.
    pub reason: String,
    pub secret_name: Option<String>,
    /// Planned refresh, in Unix seconds.
    pub refresh_at: Option<f64>,
    pub runs: i64,
    pub failures: i32,
    /// The request by annotation, and the one by status.
    pub requests: (Option<String>, Option<String>),
    pub lazy: bool,
    /// The shortest pause after a failure, in seconds.
    pub retry: f64,
    /// Names in the spec of objects that may be its sources.
    pub sources: Arc<[String]>,
    /// The whole status, in JSON.
    pub status: Arc<str>,
}

/// One version of a Secret.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SecretVersion {
    /// UID of the TokenCache that controls it.
    pub owner: Option<String>,
    /// Whether it has the label of a Secret that tokencache wrote.
    pub managed: bool,
    /// When its value expires by its annotation, in Unix seconds; infinite for a value that does not expire.
    pub expires: Option<f64>,
    /// The annotation that only the controller writes, and each time that it writes a value.
    pub written: String,
    /// Hash of its data.
    pub data: u64,
    /// Whether another client has changed the data or the expiry since a controller wrote them.
    pub tampered: bool,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A TokenCache has this version, or is gone.
    Cache(Option<CacheVersion>),
    /// A Secret has this version, or is gone.
    Secret(Option<SecretVersion>),
}

/// A change, and when it was made.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it was received, in Unix seconds.
    pub at: f64,
    /// The `resourceVersion`: the order of changes, over all kinds of objects.
    pub version: u64,
    /// Name of the object.
    pub name: String,
    /// The change.
    pub change: Change,
}

/// All that a test recorded of one namespace.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// In the order in which they were made.
    pub entries: Vec<Entry>,
    /// When it ends, in Unix seconds.
    pub end: f64,
    /// When a controller was at work.
    pub controllers: Vec<Span>,
    /// When each of them began and ended.
    pub turnover: Vec<f64>,
    /// How late the machine was.
    pub pulses: Pulses,
    /// When requests reached the token server, by TokenCache.
    pub requests: BTreeMap<String, Vec<f64>>,
    /// When void refresh tokens were sent, by TokenCache.
    pub void: BTreeMap<String, Vec<f64>>,
    /// What the test breaks deliberately.
    pub exemptions: Vec<(Invariant, String, Span)>,
}

impl Timeline {
    /// Brings the entries into order, and finds which values were tampered with. What was received after a later change
    /// was made before that was received.
    pub fn settle(&mut self) {
        self.entries.retain(|entry| entry.at <= self.end);
        self.entries.sort_by_key(|entry| entry.version);
        let mut earliest = f64::INFINITY;
        for entry in self.entries.iter_mut().rev() {
            earliest = earliest.min(entry.at);
            entry.at = earliest;
        }
        let mut last: BTreeMap<&str, SecretVersion> = BTreeMap::new();
        for Entry { name, change, .. } in &mut self.entries {
            match change {
                Change::Secret(Some(secret)) => {
                    let before = last.get(name.as_str()).filter(|before| before.written == secret.written);
                    secret.tampered = before.is_some_and(|before| {
                        before.tampered || (before.data, before.expires) != (secret.data, secret.expires)
                    });
                    last.insert(name, secret.clone());
                }
                Change::Secret(None) => drop(last.remove(name.as_str())),
                Change::Cache(_) => {}
            }
        }
    }

    /// When an invariant is judged for an object.
    pub fn judged(&self, invariant: Invariant, object: &str) -> Vec<Span> {
        let exempt: Vec<Span> = self
            .exemptions
            .iter()
            .filter(|(of, name, _)| *of == invariant && name == object)
            .map(|(_, _, span)| *span)
            .collect();
        self.controllers.iter().flat_map(|span| span.without(&exempt)).collect()
    }
}

impl CacheVersion {
    /// What is judged of a TokenCache.
    pub fn of(cache: &TokenCache) -> Self {
        let (seen, spec) = (cache.seen(), &cache.spec);
        let status = serde_json::to_string(&seen).unwrap_or_default();
        let mut sources = Vec::new();
        names(&serde_json::to_value(spec).unwrap_or_default(), &mut sources);
        Self {
            uid: cache.uid().unwrap_or_default(),
            generation: cache.metadata.generation.unwrap_or_default(),
            deleting: cache.metadata.deletion_timestamp.is_some(),
            ready: cache.condition("Ready").map(|ready| ready.status == "True"),
            reason: cache.ready().1.to_owned(),
            refresh_at: seen.refresh_at.map(|at| at.timestamp() as f64),
            runs: seen.runs,
            failures: seen.failures,
            requests: (cache.annotations().get(ANNOTATION_REFRESH_REQUESTED).cloned(), seen.refresh_requested),
            lazy: spec.refresh.policy == RefreshPolicy::Lazy,
            retry: spec.retry.initial().as_secs_f64(),
            secret_name: seen.secret_name,
            sources: sources.into(),
            status: status.into(),
        }
    }
}

impl SecretVersion {
    /// What is judged of a Secret.
    pub fn of(secret: &Secret) -> Self {
        let owner = secret.owner_references().iter().find(|owner| owner.controller == Some(true));
        let annotation = |key: &str| secret.annotations().get(key).cloned().unwrap_or_default();
        let expires = annotation(ANNOTATION_EXPIRES_AT).parse::<ExpiresAt>().ok();
        Self {
            owner: owner.map(|owner| owner.uid.clone()),
            managed: secret.labels().get(LABEL_MANAGED).is_some_and(|value| value == "true"),
            expires: expires.map(|at| at.moment().map_or(f64::INFINITY, |moment| moment.timestamp() as f64)),
            written: annotation(ANNOTATION_DATA_HASH),
            data: hash(&secret.data.iter().flatten().map(|(key, bytes)| (key, &bytes.0)).collect::<Vec<_>>()),
            tampered: false,
        }
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Collects the names that refer to objects: the members `name` and `secretName`.
fn names(of: &Value, found: &mut Vec<String>) {
    match of {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(name) if key == "name" || key == "secretName" => found.push(name.clone()),
                    _ => names(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, found)),
        _ => {}
    }
}
