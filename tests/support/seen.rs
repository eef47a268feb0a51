//! What can be seen in objects, said shortly.

use chrono::{DateTime, Utc};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::ResourceExt as _;
use tokencache::{
    api::{TokenCache, TokenCacheStatus, names::ANNOTATION_EXPIRES_AT},
    time::parse_rfc3339,
};

/// Who holds a Lease; empty where nobody does.
pub fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// A TokenCache as a scenario sees it.
pub trait CacheView {
    /// Its status, empty if there is none yet.
    fn seen(&self) -> TokenCacheStatus;
    /// A condition.
    fn condition(&self, type_: &str) -> Option<&Condition>;
    /// Whether Ready is True, and its reason; empty before the first report.
    fn ready(&self) -> (bool, &str);
    /// The reason of Stalled, where it is True.
    fn stalled(&self) -> Option<&str>;
    /// The message of Ready.
    fn message(&self) -> &str;
    /// Whether the last report is about the spec as it is now.
    fn is_observed(&self) -> bool;

    /// Whether Ready has this status and reason.
    fn is(&self, ready: bool, reason: &str) -> bool {
        self.ready() == (ready, reason)
    }

    /// Reason of the last failure.
    fn last_failure(&self) -> String {
        self.seen().last_failure.map(|failure| failure.reason).unwrap_or_default()
    }
}

impl CacheView for TokenCache {
    fn seen(&self) -> TokenCacheStatus {
        self.status.clone().unwrap_or_default()
    }

    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == type_)
    }

    fn ready(&self) -> (bool, &str) {
        self.condition("Ready").map_or((false, ""), |ready| (ready.status == "True", &ready.reason))
    }

    fn stalled(&self) -> Option<&str> {
        self.condition("Stalled").filter(|stalled| stalled.status == "True").map(|stalled| stalled.reason.as_str())
    }

    fn message(&self) -> &str {
        self.condition("Ready").map_or("", |ready| &ready.message)
    }

    fn is_observed(&self) -> bool {
        self.seen().observed_generation == self.metadata.generation
    }
}

/// A Secret as a scenario sees it.
pub trait SecretView {
    /// A key of its data, as text.
    fn value(&self, key: &str) -> String;
    /// An annotation, or nothing.
    fn annotation(&self, key: &str) -> String;
    /// When it says that its value expires.
    fn expires_at(&self) -> DateTime<Utc>;

    /// The key that a Secret has by default.
    fn token(&self) -> String {
        self.value("token")
    }
}

impl SecretView for Secret {
    fn value(&self, key: &str) -> String {
        let bytes = self.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.clone());
        String::from_utf8(bytes.unwrap_or_default()).expect("text")
    }

    fn annotation(&self, key: &str) -> String {
        self.annotations().get(key).cloned().unwrap_or_default()
    }

    fn expires_at(&self) -> DateTime<Utc> {
        let text = self.annotation(ANNOTATION_EXPIRES_AT);
        parse_rfc3339(&text).unwrap_or_else(|error| panic!("expires_at is {text:?}: {error}"))
    }
}
