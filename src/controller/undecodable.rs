//! Objects that cannot be decoded, since their definition in the cluster is older or newer than this controller.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PartialObjectMetaExt as _, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{finalizer::set, reconcile::Context};
use crate::{
    api::{READY, STALLED, TokenCache, names::FINALIZER, reason::Reason},
    k8s::{ApiError, call, object::ObjectKey},
    reconcile::write_secret::set_free,
    time::rfc3339,
};

impl Context {
    /// Says so once, in status and by an event; lets the object go when it is deleted.
    pub(super) async fn report_undecodable(
        &self,
        key: &ObjectKey,
        metadata: ObjectMeta,
        complaint: &str,
    ) -> Result<Option<Duration>, ApiError> {
        if metadata.deletion_timestamp.is_some() {
            if metadata.finalizers.iter().flatten().any(|name| name == FINALIZER) {
                let found = call(self.unread(key).get(&key.1)).await?;
                let named = found.data.pointer("/spec/target/name").and_then(Value::as_str).unwrap_or(&key.1);
                let mut secrets = self.former_secrets(key, &found.metadata, named);
                secrets.push(named.to_owned());
                finalize(&self.runner.client, &found.metadata, &secrets).await?;
            }
            return Ok(None);
        }
        if !self.runner.notes.with(key, |note| note.complain(Some(complaint))) {
            return Ok(None);
        }
        tracing::warn!(namespace = key.0, name = key.1, complaint, "undecodable");
        match self.write_complaint(key, metadata, complaint).await {
            Err(error) if !matches!(error.code(), Some(404 | 409)) => {
                self.runner.notes.with(key, |note| note.complain(None));
                Err(error)
            }
            _ => Ok(None),
        }
    }

    /// The API for objects that cannot be decoded.
    fn unread(&self, key: &ObjectKey) -> Api<DynamicObject> {
        let resource = ApiResource::erase::<TokenCache>(&());
        Api::namespaced_with(self.runner.client.clone(), &key.0, &resource)
    }

    async fn write_complaint(&self, key: &ObjectKey, metadata: ObjectMeta, complaint: &str) -> Result<(), ApiError> {
        let api = self.unread(key);
        let found = call(api.get(&key.1)).await?;
        let told = found.data.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
        if told.into_iter().any(|condition| condition["type"] == STALLED && condition["message"] == complaint) {
            return Ok(());
        }
        let now = rfc3339(self.runner.clock.now());
        let condition = |type_: &str, status: &str| {
            json!({
                "type": type_, "status": status, "reason": Reason::InvalidSpec.as_str(), "message": complaint,
                "lastTransitionTime": now, "observedGeneration": metadata.generation,
            })
        };
        let patch = json!({
            "metadata": { "resourceVersion": found.metadata.resource_version },
            "status": { "conditions": [condition(READY, "False"), condition(STALLED, "True")] },
        });
        call(api.patch_status(&key.1, &PatchParams::default(), &Patch::Merge(patch))).await?;
        let object = metadata.into_response_partial::<TokenCache>();
        self.runner.events.publish(&object, Reason::InvalidSpec, complaint).await;
        Ok(())
    }
}

/// That it has the finalizer says that its Secret is to be retained.
///
/// # Errors
/// When the API server fails.
async fn finalize(client: &Client, metadata: &ObjectMeta, secrets: &[String]) -> Result<(), ApiError> {
    for name in secrets {
        set_free(client, metadata, name).await?;
    }
    let finalizers = metadata.finalizers.iter().flatten().filter(|name| *name != FINALIZER);
    set(client, metadata, finalizers.cloned().collect()).await
}
