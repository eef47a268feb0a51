//! The Secret `tokencache-NAME-state`: what a TokenCache has learned and cannot be fetched again. The state of a job and a
//! rotated refresh token are stored there, each under keys of its own.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, api::PostParams};

use crate::{
    api::names::{ANNOTATION_EXPIRES_AT, LABEL_MANAGED, LABEL_STATE},
    k8s::{
        ApiError, call,
        object::OwnerRef,
        secret::{SealedSecret, SecretBytes},
    },
};

/// The Secret's name.
pub(super) fn name(owner: &OwnerRef) -> String {
    format!("{}-state", owner.lease_name())
}

/// The Secret with its namespace, for messages.
pub(super) fn place(owner: &OwnerRef) -> String {
    format!("Secret {}/{}", owner.namespace, name(owner))
}

/// Why a Secret of that name must not be used, if so.
pub(super) fn objection(owner: &OwnerRef, metadata: &ObjectMeta) -> Option<&'static str> {
    let owned = owner.controls(metadata);
    let is_value = metadata.annotations.as_ref().is_some_and(|map| map.contains_key(ANNOTATION_EXPIRES_AT));
    match (owned, is_value) {
        (false, _) => Some("is not controlled by this TokenCache"),
        (true, true) => Some("holds a credential that was fetched"),
        (true, false) => None,
    }
}

/// Reads and writes the Secret of one TokenCache.
#[derive(Clone)]
pub(super) struct StateSecret {
    api: Api<SealedSecret>,
    owner: OwnerRef,
}

impl StateSecret {
    pub(super) fn new(client: &Client, owner: &OwnerRef) -> Self {
        Self { api: Api::namespaced(client.clone(), &owner.namespace), owner: owner.clone() }
    }

    pub(super) fn owner(&self) -> &OwnerRef {
        &self.owner
    }

    pub(super) fn api(&self) -> &Api<SealedSecret> {
        &self.api
    }

    pub(super) async fn read(&self) -> Result<Option<SealedSecret>, ApiError> {
        call(self.api.get_opt(&name(&self.owner))).await
    }

    /// Creates the Secret, or updates it if it still is as it was found.
    pub(super) async fn put(
        &self,
        found: Option<SealedSecret>,
        params: &PostParams,
        change: impl FnOnce(&mut BTreeMap<String, SecretBytes>),
    ) -> Result<SealedSecret, ApiError> {
        let name = name(&self.owner);
        let exists = found.is_some();
        let mut secret = found.unwrap_or_else(|| SealedSecret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(self.owner.namespace.clone()),
                owner_references: Some(vec![self.owner.reference()]),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".into()),
            immutable: None,
            data: BTreeMap::new(),
        });
        let labels = secret.metadata.labels.get_or_insert_default();
        labels.extend([LABEL_MANAGED, LABEL_STATE].map(|label| (label.to_owned(), "true".to_owned())));
        change(&mut secret.data);
        if exists {
            call(self.api.replace(&name, params, &secret)).await
        } else {
            call(self.api.create(params, &secret)).await
        }
    }
}
