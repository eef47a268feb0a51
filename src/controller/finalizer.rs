//! `target.deletionPolicy: Retain`: a finalizer sets the Secret free before its TokenCache goes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    api::{RetentionPolicy, TokenCache, names::FINALIZER},
    k8s::{ApiError, call},
    reconcile::write_secret::set_free,
};

/// Does what deletion calls for, and keeps the finalizer as the policy wants it. True: there is nothing else to do.
/// `formers` are the names of Secrets that may hold its value as well, since `target.name` was changed.
///
/// # Errors
/// When the API server fails.
pub(super) async fn finalize(client: &Client, cache: &TokenCache, formers: &[String]) -> Result<bool, ApiError> {
    let finalizers = cache.metadata.finalizers.clone().unwrap_or_default();
    let has = finalizers.iter().any(|name| name == FINALIZER);
    let without = || finalizers.iter().filter(|name| *name != FINALIZER).cloned().collect::<Vec<_>>();
    let retains = cache.spec.target.deletion_policy() == RetentionPolicy::Retain;
    if cache.metadata.deletion_timestamp.is_some() {
        if has {
            if retains {
                for name in formers.iter().map(String::as_str).chain([cache.secret_name()]) {
                    set_free(client, &cache.metadata, name).await?;
                }
            }
            set(client, &cache.metadata, without()).await?;
        }
        return Ok(true);
    }
    match (retains, has) {
        (true, false) => {
            set(client, &cache.metadata, [finalizers.clone(), vec![FINALIZER.to_owned()]].concat()).await?
        }
        (false, true) => set(client, &cache.metadata, without()).await?,
        _ => return Ok(false),
    }
    // The watch brings the object as it is now.
    Ok(true)
}

/// Replaces the finalizers.
///
/// # Errors
/// When the API server fails.
pub(super) async fn set(client: &Client, metadata: &ObjectMeta, finalizers: Vec<String>) -> Result<(), ApiError> {
    let patch = json!({ "metadata": {
        "uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": finalizers,
    }});
    let api = Api::<TokenCache>::namespaced(client.clone(), metadata.namespace.as_deref().unwrap_or_default());
    let name = metadata.name.as_deref().unwrap_or_default();
    match call(api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch))).await {
        Err(error) if error.code() == Some(404) => Ok(()),
        other => other.map(|_| ()),
    }
}
