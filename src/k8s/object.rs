//! Names of objects, and who owns them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::api::{TokenCache, names::GROUP};

/// Namespace and name of an object.
pub type ObjectKey = (String, String);

/// A TokenCache that owns what is made for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnerRef {
    /// Namespace of the TokenCache, and of the Lease.
    pub namespace: String,
    /// Name of the TokenCache.
    pub name: String,
    /// UID of the TokenCache.
    pub uid: String,
}

impl OwnerRef {
    /// Refers to this TokenCache.
    #[must_use]
    pub fn of(cache: &TokenCache) -> Self {
        Self {
            namespace: cache.metadata.namespace.clone().unwrap_or_default(),
            name: cache.metadata.name.clone().unwrap_or_default(),
            uid: cache.metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// Whether this very TokenCache controls the object with this metadata.
    #[must_use]
    pub fn controls(&self, metadata: &ObjectMeta) -> bool {
        controlling_token_cache(metadata).is_some_and(|owner| owner.uid == self.uid)
    }

    /// Namespace and name of the TokenCache.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        (self.namespace.clone(), self.name.clone())
    }

    /// Name of the Lease.
    #[must_use]
    pub fn lease_name(&self) -> String {
        format!("tokencache-{}", self.name)
    }

    /// The reference by which the TokenCache owns what is made for it.
    #[must_use]
    pub fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: "tokencache.dev/v1alpha1".into(),
            kind: "TokenCache".into(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            // It would take one more right where OwnerReferencesPermissionEnforcement is on, which besides refuses it
            // until it knows a definition that was just created.
            block_owner_deletion: None,
        }
    }
}

/// The controlling owner of an object.
#[must_use]
pub fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether an owner is of this API group, in any version, and of this kind.
#[must_use]
pub fn is_kind(owner: &OwnerReference, group: &str, kind: &str) -> bool {
    owner.kind == kind && owner.api_version.split_once('/').is_some_and(|(of, _)| of == group)
}

/// The TokenCache that controls an object, if one does.
#[must_use]
pub fn controlling_token_cache(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    controller(metadata).filter(|owner| is_kind(owner, GROUP, "TokenCache"))
}
