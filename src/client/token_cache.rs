//! A TokenCache as consumers read it: only what they need, so that a source they do not know yet is no hindrance.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::Resource;
use serde::{Deserialize, Serialize};

use crate::{
    api::{TokenCache, TokenCacheStatus},
    k8s::metadata,
};

/// A TokenCache without the parts that say how its value is fetched.
#[derive(Clone, Debug, Default, Resource, Serialize, Deserialize)]
#[resource(inherit = TokenCache)]
pub(crate) struct Cache {
    #[serde(deserialize_with = "metadata::metadata")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: Spec,
    #[serde(default)]
    pub(crate) status: TokenCacheStatus,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Spec {
    #[serde(default)]
    target: Target,
    #[serde(default)]
    refresh: Refresh,
    #[serde(default)]
    pub(crate) suspend: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Target {
    name: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Refresh {
    policy: Option<String>,
}

impl Cache {
    pub(crate) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Name of the Secret that holds the value.
    pub(crate) fn secret_name(&self) -> &str {
        self.spec.target.name.as_deref().unwrap_or(self.name())
    }

    /// Whether nobody renews the value unless a consumer asks.
    pub(crate) fn is_lazy(&self) -> bool {
        self.spec.refresh.policy.as_deref() == Some("Lazy")
    }

    pub(crate) fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// Whether the last report is about the spec as it is now.
    pub(crate) fn is_observed(&self) -> bool {
        self.status.observed_generation == self.metadata.generation
    }
}
