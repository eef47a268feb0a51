//! The Secret that should be, from the spec and a value; and what a Secret that is there tells about its value.

mod target_keys;
mod writers;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest as _, Sha256};

pub use self::writers::{is_written_by_others, written_at};
use crate::{
    api::{
        ExpiresAt, TokenCache,
        names::{
            ANNOTATION_CHANGED_AT, ANNOTATION_DATA_HASH, ANNOTATION_EXPIRES_AT, ANNOTATION_FETCH_HASH,
            ANNOTATION_FETCHED_AT, GROUP, LABEL_MANAGED, LABEL_STATE, is_state_name,
        },
    },
    fetch::{fetch_hash, spec_hash::hex},
    k8s::{
        object::OwnerRef,
        object::{controller, controlling_token_cache, is_kind},
        secret::{SealedSecret, SecretBytes},
    },
    time,
};

/// When a value was fetched, and when it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// When it was fetched.
    pub fetched_at: DateTime<Utc>,
    /// When it expires.
    pub expires_at: ExpiresAt,
}

/// Whether a Secret still is as tokencache wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// It is.
    Intact,
    /// Somebody wrote to it; reading its data will tell.
    Unverified,
    /// Its data is; another client changed this label or annotation.
    Relabelled(String),
    /// It is not; what differs, without values.
    Drifted(String),
}

/// What a Secret's metadata tells about the value in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// UID, for deletion.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// From the annotations; `None` where they cannot be read.
    pub lifetime: Option<Lifetime>,
    /// From the annotation.
    pub fetch_hash: String,
    /// When its data last changed, from the annotation.
    pub changed_at: Option<DateTime<Utc>>,
    /// Whether it is as it was written.
    pub integrity: Integrity,
    /// A label or annotation that is not as the spec says, although this is how tokencache's write was stored: an
    /// admission webhook or policy changes it.
    pub mutated: Option<String>,
}

/// What is known of the data of a Secret of one `resourceVersion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This process wrote it.
    Written,
    /// It was read, and is as it was written.
    Same,
    /// It was read, and is not.
    Changed,
}

impl Stored {
    /// How the data or the annotations about it were changed, so that the value is not to be relied on.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        match &self.integrity {
            Integrity::Drifted(how) => Some(how),
            Integrity::Intact | Integrity::Unverified | Integrity::Relabelled(_) => None,
        }
    }

    /// How another client changed it, if it is to be written anew for that.
    #[must_use]
    pub fn drift(&self) -> Option<String> {
        match &self.integrity {
            Integrity::Drifted(how) => Some(how.clone()),
            Integrity::Relabelled(key) => Some(format!("{key} was changed")),
            Integrity::Intact | Integrity::Unverified => None,
        }
    }
}

/// The Secret of the target's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretState {
    /// There is none.
    Absent,
    /// It belongs to a TokenCache of the same name that was deleted, and is about to be removed by Kubernetes' garbage
    /// collector.
    Leftover,
    /// It belongs to somebody else, who is named for people.
    Foreign(String),
    /// It belongs to the TokenCache.
    Owned(Stored),
}

/// Reads a Secret's metadata. `verified` is what is known of the data of a `resourceVersion`.
#[must_use]
pub fn read(cache: &TokenCache, metadata: Option<&ObjectMeta>, verified: Option<(&str, Verdict)>) -> SecretState {
    let Some(metadata) = metadata else { return SecretState::Absent };
    match controller(metadata) {
        None => return SecretState::Foreign("has no controlling owner".into()),
        Some(owner) if Some(&owner.uid) != cache.metadata.uid.as_ref() => {
            let former = is_kind(owner, GROUP, "TokenCache") && Some(&owner.name) == cache.metadata.name.as_ref();
            let managed = metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_MANAGED));
            return match (former, managed) {
                (true, true) => SecretState::Leftover,
                // Its removal will not be noticed.
                (true, false) => SecretState::Foreign(
                    "is still owned by a deleted TokenCache of the same name (waiting for garbage collection)".into(),
                ),
                (false, _) => SecretState::Foreign(format!("is owned by {} {}", owner.kind, owner.name)),
            };
        }
        Some(_) => {}
    }
    let annotation = |key: &str| metadata.annotations.as_ref().and_then(|map| map.get(key)).map_or("", String::as_str);
    let expires_at = annotation(ANNOTATION_EXPIRES_AT).parse().ok();
    let fetched_at = time::parse_rfc3339(annotation(ANNOTATION_FETCHED_AT)).ok();
    let lifetime = fetched_at.zip(expires_at).map(|(fetched_at, expires_at)| Lifetime { fetched_at, expires_at });
    let resource_version = metadata.resource_version.clone().unwrap_or_default();
    let written = cache.status.as_ref().and_then(|status| status.secret_resource_version.as_ref());
    let missing = missing_label(cache, metadata);
    let verdict = match verified.filter(|(version, _)| *version == resource_version) {
        Some((_, verdict)) => Some(verdict),
        None => (written == Some(&resource_version)).then_some(Verdict::Written),
    };
    let mut mutated = None;
    let integrity = if lifetime.is_none() {
        Integrity::Drifted("its annotations cannot be read".into())
    } else {
        match (verdict, missing) {
            (None, _) => Integrity::Unverified,
            (Some(Verdict::Changed), _) => Integrity::Drifted("its data or annotations were changed".into()),
            (Some(Verdict::Same), Some(key)) => Integrity::Relabelled(key),
            // Writing it again would come to the same.
            (Some(Verdict::Written), missing) => {
                mutated = missing;
                Integrity::Intact
            }
            (Some(Verdict::Same), None) => Integrity::Intact,
        }
    };
    SecretState::Owned(Stored {
        uid: metadata.uid.clone().unwrap_or_default(),
        resource_version,
        lifetime,
        fetch_hash: annotation(ANNOTATION_FETCH_HASH).to_owned(),
        changed_at: time::parse_rfc3339(annotation(ANNOTATION_CHANGED_AT)).ok(),
        integrity,
        mutated,
    })
}

/// Whether a Secret holds a value that was fetched for the TokenCache with this metadata, whatever the Secret's name is. The
/// Secret for states is none.
#[must_use]
pub fn holds_value(cache: &ObjectMeta, secret: &ObjectMeta) -> bool {
    let owner = controlling_token_cache(secret);
    let annotated = |key| secret.annotations.as_ref().is_some_and(|map| map.contains_key(key));
    cache.uid.is_some()
        && owner.map(|owner| &owner.uid) == cache.uid.as_ref()
        && annotated(ANNOTATION_FETCH_HASH)
        && annotated(ANNOTATION_EXPIRES_AT)
        && !secret.name.as_deref().is_some_and(is_state_name)
        && !secret.labels.as_ref().is_some_and(|labels| labels.contains_key(LABEL_STATE))
}

/// The first label or annotation that should be there and is not, or has another value.
fn missing_label(cache: &TokenCache, metadata: &ObjectMeta) -> Option<String> {
    let target = &cache.spec.target;
    let is = |map: &Option<BTreeMap<String, String>>, key: &str, value: &str| {
        map.as_ref().and_then(|map| map.get(key)).is_some_and(|found| found == value)
    };
    if !is(&metadata.labels, LABEL_MANAGED, "true") {
        return Some(format!("the label {LABEL_MANAGED}"));
    }
    let label = target.labels.iter().find(|(key, value)| !is(&metadata.labels, key, value));
    let annotation = target.annotations.iter().find(|(key, value)| !is(&metadata.annotations, key, value));
    label.map(|(key, _)| format!("the label {key}")).or(annotation.map(|(key, _)| format!("the annotation {key}")))
}

/// The keys of a Secret's labels and annotations that come from `target`, as it records them.
#[must_use]
pub fn target_keys(metadata: &ObjectMeta) -> BTreeSet<String> {
    target_keys::all(metadata)
}

/// Whether which of a Secret's labels and annotations come from an earlier `target` is known only with its
/// `managedFields`.
#[must_use]
pub fn needs_managed_fields(cache: &TokenCache, found: &ObjectMeta) -> bool {
    target_keys::are_unknown(&cache.spec.target, found)
}

/// The Secret that should be: what other clients put on the one that is there stays.
#[must_use]
pub fn desired(
    cache: &TokenCache,
    owner: &OwnerRef,
    found: Option<&ObjectMeta>,
    data: BTreeMap<String, SecretBytes>,
    lifetime: Lifetime,
) -> SealedSecret {
    let mut metadata = ObjectMeta {
        name: Some(cache.secret_name().to_owned()),
        namespace: Some(owner.namespace.clone()),
        ..ObjectMeta::default()
    };
    if let Some(found) = found {
        metadata.resource_version = found.resource_version.clone();
        metadata.uid = found.uid.clone();
        metadata.labels = found.labels.clone();
        metadata.annotations = found.annotations.clone();
        metadata.managed_fields = found.managed_fields.clone();
        metadata.finalizers = found.finalizers.clone();
        metadata.owner_references = found.owner_references.clone();
    }
    let owners = metadata.owner_references.get_or_insert_default();
    if !owners.iter().any(|reference| reference.uid == owner.uid) {
        owners.push(owner.reference());
    }
    target_keys::replace(&cache.spec.target, &mut metadata);
    // The API server keeps them by itself.
    metadata.managed_fields = None;
    metadata.labels.get_or_insert_default().insert(LABEL_MANAGED.to_owned(), "true".to_owned());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(ANNOTATION_EXPIRES_AT.to_owned(), lifetime.expires_at.whole_seconds().to_string());
    annotations.insert(ANNOTATION_FETCHED_AT.to_owned(), time::rfc3339(lifetime.fetched_at));
    annotations.insert(ANNOTATION_FETCH_HASH.to_owned(), fetch_hash(&cache.spec));
    match changed_at(cache, found, &data, lifetime.fetched_at) {
        Some(moment) => annotations.insert(ANNOTATION_CHANGED_AT.to_owned(), time::rfc3339(moment)),
        None => annotations.remove(ANNOTATION_CHANGED_AT),
    };
    let mut secret =
        SealedSecret { metadata, type_: Some(cache.spec.target.secret_type().to_owned()), immutable: None, data };
    add_hash(&mut secret);
    secret
}

/// The same in the place of a value that the same run has just written: for consumers both are one change.
#[must_use]
pub fn desired_at_once(
    cache: &TokenCache,
    owner: &OwnerRef,
    written: &ObjectMeta,
    data: BTreeMap<String, SecretBytes>,
    lifetime: Lifetime,
) -> SealedSecret {
    let mut secret = desired(cache, owner, Some(written), data, lifetime);
    let changed_at = written.annotations.as_ref().and_then(|map| map.get(ANNOTATION_CHANGED_AT));
    let annotations = secret.metadata.annotations.get_or_insert_default();
    match changed_at {
        Some(moment) => annotations.insert(ANNOTATION_CHANGED_AT.to_owned(), moment.clone()),
        None => annotations.remove(ANNOTATION_CHANGED_AT),
    };
    add_hash(&mut secret);
    secret
}

fn add_hash(secret: &mut SealedSecret) {
    let hash = data_hash(secret);
    secret.metadata.annotations.get_or_insert_default().insert(ANNOTATION_DATA_HASH.to_owned(), hash);
}

/// When the data last changed. The first value of all replaces none; one after a Secret was deleted does.
fn changed_at(
    cache: &TokenCache,
    found: Option<&ObjectMeta>,
    data: &BTreeMap<String, SecretBytes>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let Some(found) = found else {
        return (cache.runs() > 0).then_some(now);
    };
    let annotation = |key| found.annotations.as_ref().and_then(|map| map.get(key)).map_or("", String::as_str);
    let before = time::parse_rfc3339(annotation(ANNOTATION_CHANGED_AT)).ok();
    if annotation(ANNOTATION_DATA_HASH).split_once('-').is_some_and(|(hash, _)| hash == hex(&digest(data).finalize())) {
        return before;
    }
    // Stored in whole seconds, and told apart by them.
    Some(before.map_or(now, |before| now.max(before + TimeDelta::seconds(1))))
}

/// Whether a Secret that was read whole is as it was written.
#[must_use]
pub fn is_intact(secret: &SealedSecret) -> bool {
    let annotations = secret.metadata.annotations.as_ref();
    annotations.and_then(|map| map.get(ANNOTATION_DATA_HASH)).is_some_and(|hash| *hash == data_hash(secret))
}

/// Hash of the data, and one of the data and the annotations that say how long it is valid and by which spec.
fn data_hash(secret: &SealedSecret) -> String {
    let data = digest(&secret.data);
    let mut all = data.clone();
    for key in [ANNOTATION_EXPIRES_AT, ANNOTATION_FETCHED_AT, ANNOTATION_FETCH_HASH, ANNOTATION_CHANGED_AT] {
        let annotations = secret.metadata.annotations.as_ref();
        add(&mut all, annotations.and_then(|map| map.get(key)).map_or("", String::as_str).as_bytes());
    }
    format!("{}-{}", hex(&data.finalize()), hex(&all.finalize()))
}

fn digest(data: &BTreeMap<String, SecretBytes>) -> Sha256 {
    let mut hash = Sha256::new();
    for (key, value) in data {
        add(&mut hash, key.as_bytes());
        add(&mut hash, value.expose());
    }
    hash
}

fn add(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_be_bytes());
    hash.update(part);
}

#[cfg(test)]
mod tests;
