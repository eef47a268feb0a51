//! The writes to the Secret. Each carries the `resourceVersion` that was seen, or is a create.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams, Preconditions},
};

use crate::{
    api::{
        ExpiresAt, TokenCache,
        names::{ANNOTATION_DATA_HASH, ANNOTATION_EXPIRES_AT, FIELD_MANAGER, is_state_name},
    },
    k8s::{
        ApiError, call, live, live_secret,
        object::{ObjectKey, OwnerRef},
        secret::{SealedSecret, SecretBytes},
    },
    reconcile::desired_secret::{Lifetime, Stored, desired, desired_at_once, holds_value, needs_managed_fields},
};

/// How a write of the Secret ended.
#[derive(Debug)]
pub enum Written {
    /// It is written; its metadata as the API server answered.
    Done(Box<ObjectMeta>),
    /// Another hand wrote to it meanwhile.
    Conflict,
}

/// Writes of one Secret before it is given up; only faults that may pass are repeated.
const TRIES: u32 = 5;

/// Creates the Secret, or replaces the one that was found.
///
/// # Errors
/// When the API server refuses it, or keeps failing.
pub async fn put(
    client: &Client,
    cache: &TokenCache,
    owner: &OwnerRef,
    found: Option<&ObjectMeta>,
    data: BTreeMap<String, SecretBytes>,
    lifetime: Lifetime,
) -> Result<Written, ApiError> {
    let api = Api::<SealedSecret>::namespaced(client.clone(), &owner.namespace);
    let name = cache.secret_name();
    let whole = match found.filter(|found| needs_managed_fields(cache, found)) {
        // If it has changed meanwhile, the write is refused.
        Some(found) => live_secret(client, &owner.namespace, name).await?.filter(|whole| is_same_version(whole, found)),
        None => None,
    };
    let mut secret = desired(cache, owner, whole.as_ref().or(found), data, lifetime);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    let mut exists = found.is_some();
    let mut tries = 0;
    // Whether a try before may have been carried out although it was not answered.
    let mut unanswered = false;
    loop {
        let result = if exists {
            call(api.replace(name, &params, &secret)).await
        } else {
            call(api.create(&params, &secret)).await
        };
        tries += 1;
        match result {
            Ok(written) => return Ok(Written::Done(Box::new(written.metadata))),
            Err(error) => match error.code() {
                Some(409) if unanswered => return find_write(client, &owner.namespace, name, &secret.metadata).await,
                Some(409) => return Ok(Written::Conflict),
                // It was removed because its value had expired; else somebody cleared it, and wants a newer value.
                Some(404) if exists && expired(found, lifetime) => {
                    exists = false;
                    detach(&mut secret);
                }
                Some(404) if exists => return Ok(Written::Conflict),
                // The type cannot be changed, nor anything of an immutable Secret: it must be recreated.
                Some(422) if exists && found.is_none_or(|found| found.finalizers.iter().flatten().next().is_none()) => {
                    let seen = secret.metadata.clone();
                    detach(&mut secret);
                    if !remove_to_recreate(&api, &seen, &secret).await? {
                        return Ok(Written::Conflict);
                    }
                    exists = false;
                }
                code if error.is_retryable() && tries < TRIES => {
                    unanswered |= code != Some(429);
                    tokio::time::sleep(Duration::from_millis(50) * 2_u32.pow(tries)).await;
                }
                _ => return Err(error),
            },
        }
    }
}

/// After a conflict: whether it was this very write that came before, and was not answered.
async fn find_write(client: &Client, namespace: &str, name: &str, wanted: &ObjectMeta) -> Result<Written, ApiError> {
    let metadata = live_secret(client, namespace, name).await?;
    Ok(match metadata.filter(|metadata| is_same_write(metadata, wanted)) {
        Some(metadata) => Written::Done(Box::new(metadata)),
        None => Written::Conflict,
    })
}

/// Deletes a Secret that cannot be changed as needed, after the API server would accept its successor. Returns whether it
/// is gone; not if another client has changed it.
async fn remove_to_recreate(
    api: &Api<SealedSecret>,
    seen: &ObjectMeta,
    successor: &SealedSecret,
) -> Result<bool, ApiError> {
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    try_out(api, &params, successor).await?;
    match delete(api, seen.name.as_deref().unwrap_or_default(), seen).await {
        Err(error) if error.code() == Some(409) => Ok(false),
        deleted => deleted.map(|_| true),
    }
}

/// Replaces the value that the same run has just written, if nobody else has changed the Secret since.
///
/// # Errors
/// When the API server refuses it or fails.
pub async fn put_at_once(
    client: &Client,
    cache: &TokenCache,
    owner: &OwnerRef,
    written: &ObjectMeta,
    data: BTreeMap<String, SecretBytes>,
    lifetime: Lifetime,
) -> Result<ObjectMeta, ApiError> {
    let api = Api::<SealedSecret>::namespaced(client.clone(), &owner.namespace);
    let secret = desired_at_once(cache, owner, written, data, lifetime);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    Ok(call(api.replace(cache.secret_name(), &params, &secret)).await?.metadata)
}

/// Removes a Secret whose value is void, if nobody else has changed it since it was written.
///
/// # Errors
/// When the API server fails.
pub async fn discard(client: &Client, namespace: &str, name: &str, written: &ObjectMeta) -> Result<(), ApiError> {
    delete(&Api::namespaced(client.clone(), namespace), name, written).await.map(|_| ())
}

fn is_same_version(one: &ObjectMeta, other: &ObjectMeta) -> bool {
    one.uid == other.uid && one.resource_version == other.resource_version
}

fn expired(found: Option<&ObjectMeta>, lifetime: Lifetime) -> bool {
    let annotations = found.and_then(|found| found.annotations.as_ref());
    let expires_at = annotations.and_then(|map| map.get(ANNOTATION_EXPIRES_AT));
    expires_at.and_then(|text| text.parse::<ExpiresAt>().ok()).is_some_and(|expiry| expiry.is_past(lifetime.fetched_at))
}

/// Whether this is the very Secret that was sent: its hash is over the value and the moment of the fetch.
fn is_same_write(found: &ObjectMeta, sent: &ObjectMeta) -> bool {
    let hash =
        |metadata: &ObjectMeta| metadata.annotations.as_ref().and_then(|map| map.get(ANNOTATION_DATA_HASH)).cloned();
    let owners = |metadata: &ObjectMeta| metadata.owner_references.clone();
    hash(found) == hash(sent) && owners(found) == owners(sent)
}

fn detach(secret: &mut SealedSecret) {
    secret.metadata.resource_version = None;
    secret.metadata.uid = None;
}

/// Asks whether the Secret could be written, by a dry run with the same metadata, type and keys. Where the API server does
/// not say so clearly, it could.
///
/// # Errors
/// How the API server, a quota or an admission webhook or policy refuses it.
pub async fn rehearse(
    client: &Client,
    cache: &TokenCache,
    owner: &OwnerRef,
    found: Option<&ObjectMeta>,
    lifetime: Lifetime,
) -> Result<(), ApiError> {
    let api = Api::<SealedSecret>::namespaced(client.clone(), &owner.namespace);
    let mut keys: Vec<String> = cache.spec.target.data.keys().cloned().collect();
    if keys.is_empty() {
        keys.push("token".into());
    }
    // Every type of Secret takes this.
    let data = keys.into_iter().map(|key| (key, b"{}".to_vec().into())).collect();
    let secret = desired(cache, owner, found, data, lifetime);
    let params = PostParams { dry_run: true, field_manager: Some(FIELD_MANAGER.into()) };
    let rehearsed = match found {
        None => call(api.create(&params, &secret)).await,
        Some(_) => call(api.replace(cache.secret_name(), &params, &secret)).await,
    };
    match rehearsed {
        // The type or an immutable Secret, which is then made anew; or a webhook that knows no dry run.
        Err(error) if found.is_some() && error.code() == Some(422) => {
            let mut secret = secret;
            detach(&mut secret);
            try_out(&api, &params, &secret).await
        }
        Err(error) if matches!(error.code(), Some(400 | 404 | 409)) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Creates a Secret of another name without storing it.
async fn try_out(api: &Api<SealedSecret>, params: &PostParams, secret: &SealedSecret) -> Result<(), ApiError> {
    let mut trial = secret.clone();
    trial.metadata.name = None;
    trial.metadata.generate_name = Some("tokencache-".into());
    call(api.create(&PostParams { dry_run: true, ..params.clone() }, &trial)).await.map(|_| ())
}

async fn delete(api: &Api<SealedSecret>, name: &str, seen: &ObjectMeta) -> Result<Removal, ApiError> {
    let preconditions = Preconditions { uid: seen.uid.clone(), resource_version: seen.resource_version.clone() };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match call(api.delete(name, &params)).await {
        Err(error) if error.code() == Some(404) => Ok(Removal::Gone),
        // Where the object is answered, it is still there.
        deleted => Ok(deleted?.either(|_| Removal::Pending, |_| Removal::Gone)),
    }
}

/// What became of a Secret that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Gone,
    /// It goes when others have removed their finalizers from it.
    Pending,
    /// It is not as it was seen, and stays.
    Changed,
}

/// Removes a Secret, if it still is as it was seen.
///
/// # Errors
/// When the API server fails.
pub async fn remove(client: &Client, namespace: &str, name: &str, stored: &Stored) -> Result<Removal, ApiError> {
    let api = Api::<SealedSecret>::namespaced(client.clone(), namespace);
    let seen = ObjectMeta {
        uid: Some(stored.uid.clone()),
        resource_version: Some(stored.resource_version.clone()),
        ..ObjectMeta::default()
    };
    match delete(&api, name, &seen).await {
        Err(error) if error.code() == Some(409) => Ok(Removal::Changed),
        deleted => deleted,
    }
}

/// Removes the Secret of a former `target.name`, unless the TokenCache as it is now has another spec than `cache`, or its
/// status does not name its Secret yet, or there is no value in that.
///
/// # Errors
/// When the API server fails.
pub async fn remove_former(client: &Client, key: &ObjectKey, cache: &TokenCache, former: &str) -> Result<(), ApiError> {
    let Some(current) = live(client, key).await? else { return Ok(()) };
    let is_reported =
        current.status.as_ref().and_then(|status| status.secret_name.as_deref()) == Some(cache.secret_name());
    if current.metadata.uid != cache.metadata.uid
        || current.metadata.generation != cache.metadata.generation
        || current.metadata.deletion_timestamp.is_some()
        || former == cache.secret_name()
        || !is_reported
    {
        return Ok(());
    }
    let is_value = |found: &ObjectMeta| holds_value(&current.metadata, found);
    let namespace = key.0.as_str();
    if !live_secret(client, namespace, cache.secret_name()).await?.as_ref().is_some_and(is_value) {
        return Ok(());
    }
    let Some(found) = live_secret(client, namespace, former).await?.filter(is_value) else { return Ok(()) };
    match delete(&Api::namespaced(client.clone(), namespace), former, &found).await {
        // It was changed meanwhile, and is looked at again.
        Err(error) if error.code() == Some(409) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let (namespace, name) = key;
            tracing::info!(namespace, name, former, "the Secret of the former target.name was removed");
            Ok(())
        }
    }
}

/// Takes the owner reference of the TokenCache with this metadata off its Secret, so that the Secret outlives it.
///
/// # Errors
/// When the API server fails, or the Secret was changed meanwhile.
pub async fn set_free(client: &Client, cache: &ObjectMeta, name: &str) -> Result<(), ApiError> {
    if is_state_name(name) {
        return Ok(());
    }
    let namespace = cache.namespace.as_deref().unwrap_or_default();
    // Whole, since only a patch could do without the data, and the controller may patch no Secret.
    let api = Api::<SealedSecret>::namespaced(client.clone(), namespace);
    let Some(mut secret) = call(api.get_opt(name)).await? else { return Ok(()) };
    let owners = secret.metadata.owner_references.get_or_insert_default();
    let before = owners.len();
    owners.retain(|owner| Some(&owner.uid) != cache.uid.as_ref());
    if owners.len() == before {
        return Ok(());
    }
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    call(api.replace(name, &params, &secret)).await.map(|_| ())
}
