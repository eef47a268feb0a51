//! Reads only: a TokenCache, its Secret's metadata and what is remembered of both, made one [`Observed`].

use std::sync::Arc;

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::{
    api::{Invalid, TokenCache, reason::Reason, validate},
    fetch,
    k8s::{ApiError, call},
    k8s::{object::ObjectKey, secret::SecretWithManagers},
    reconcile::{
        desired_secret::{Lifetime, SecretState, Verdict, is_intact, is_written_by_others, read},
        plan::Observed,
        state::{Ahead, Note, Notes, version},
    },
    time::ceil,
};

/// Puts together what is known. `metadata` is that of the Secret of the target's name.
#[must_use]
pub fn observed<'a>(cache: &'a TokenCache, metadata: Option<&ObjectMeta>, note: &'a Note) -> Observed<'a> {
    let verified = note.verified.as_ref().map(|(version, verdict)| (version.as_str(), *verdict));
    let version = version(metadata);
    let runs = cache.runs();
    let next_retry_at = cache.status.as_ref().and_then(|status| status.next_retry_at);
    let doubted = note.doubted.as_deref();
    let is_forged = doubted
        .is_some_and(|(doubted, is_forged)| *is_forged && Some(doubted) == cache.metadata.resource_version.as_ref());
    let seen = Observed {
        cache,
        invalid: note.checked.as_ref().and_then(|(_, invalid)| invalid.as_deref()),
        secret_name: cache.secret_name(),
        secret: read(cache, metadata, verified),
        exact: note.exact.as_ref().filter(|(known, _)| Some(known.as_str()) == version).map(|(_, lifetime)| *lifetime),
        exact_retry: note.retry.filter(|at| Some(ceil(*at)) == next_retry_at),
        unblocked: note.unblocked == Some(runs),
        is_forged: false,
        brake: note.brake.as_deref(),
        min_interval: note.min_interval,
    };
    if is_forged { seen.with_own_failure(note.retry) } else { seen }
}

/// The notes on a TokenCache, with its spec checked once per generation.
pub async fn checked(notes: &Notes, key: &ObjectKey, cache: &TokenCache) -> Note {
    if let Some(note) = checked_at_once(notes, key, cache) {
        return note;
    }
    let whole = cache.clone();
    let invalid = fetch::apart(&key.0, move || check(&whole).err()).await;
    let invalid = invalid.unwrap_or_else(|| Some(Invalid::new("spec", "cannot be checked")));
    note_checked(notes, key, cache, invalid)
}

/// The same where that takes little time; `None` where it does not.
#[must_use]
pub fn checked_at_once(notes: &Notes, key: &ObjectKey, cache: &TokenCache) -> Option<Note> {
    let found = notes.with(key, |note| {
        // Made again under the same name: nothing of what was known holds.
        if note.uid != cache.metadata.uid {
            note.reset(cache.metadata.uid.clone());
        }
        let is_checked = note.checked.as_ref().is_some_and(|(of, _)| *of == generation(cache));
        is_checked.then(|| note.clone())
    });
    found.or_else(|| fetch::is_quick(&key.0, &cache.spec).then(|| note_checked(notes, key, cache, check(cache).err())))
}

fn note_checked(notes: &Notes, key: &ObjectKey, cache: &TokenCache, invalid: Option<Invalid>) -> Note {
    notes.with(key, |note| {
        note.checked = Some((generation(cache), invalid.map(Box::new)));
        note.clone()
    })
}

fn generation(cache: &TokenCache) -> i64 {
    cache.metadata.generation.unwrap_or_default()
}

fn check(cache: &TokenCache) -> Result<(), Invalid> {
    validate(cache)?;
    fetch::check(cache.metadata.namespace.as_deref().unwrap_or_default(), &cache.spec)
}

/// Reads a Secret whole, and compares it with how it was written.
///
/// # Errors
/// When the API server fails.
pub async fn verify(client: &Client, namespace: &str, name: &str) -> Result<Option<(ObjectMeta, Verdict)>, ApiError> {
    let api = Api::<SecretWithManagers>::namespaced(client.clone(), namespace);
    let secret = call(api.get_opt(name)).await?;
    Ok(secret.map(|secret| {
        let (secret, managers) = secret.split();
        // Anyone who may write the Secret can compute the hash.
        let is_same = is_intact(&secret) && !is_written_by_others(&managers);
        (secret.metadata, if is_same { Verdict::Same } else { Verdict::Changed })
    }))
}

/// A Secret's metadata, for a run.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// As it is known: as the watch shows it, or newer.
    pub metadata: Option<Arc<ObjectMeta>>,
    /// The `resourceVersion` that the watch shows.
    pub shown: Option<String>,
}

/// What is remembered after a value was written over the Secret that was `found`, while the watch showed `shown`. Gives
/// its `resourceVersion`.
pub fn note_written(
    notes: &Notes,
    key: &ObjectKey,
    (shown, found): (Option<&str>, Option<ObjectMeta>),
    written: ObjectMeta,
    lifetime: Lifetime,
) -> String {
    let version = written.resource_version.clone().unwrap_or_default();
    notes.with(key, |note| {
        note.exact = Some((version.clone(), lifetime));
        note.verified = Some((version.clone(), Verdict::Written));
        let older = [shown.map(Into::into), found.and_then(|found| found.resource_version)];
        let name = written.name.clone().unwrap_or_default();
        note.ahead = Some(Box::new(Ahead { name, metadata: Some(Arc::new(written)), older }));
    });
    version
}

/// What is remembered after the Secret of a TokenCache was read live while the watch showed `shown`. Gives whether it is:
/// of a Secret that belongs to somebody else, no watch would bring what becomes of it.
pub fn note_found(
    notes: &Notes,
    key: &ObjectKey,
    cache: &TokenCache,
    shown: Option<&str>,
    found: Option<&ObjectMeta>,
) -> bool {
    let is_noted =
        version(found) != shown && matches!(read(cache, found, None), SecretState::Absent | SecretState::Owned(_));
    let ahead = is_noted.then(|| {
        let mut metadata = found.cloned();
        if let Some(metadata) = &mut metadata {
            // As the watch keeps it.
            metadata.managed_fields = None;
        }
        let shown = shown.map(str::to_owned);
        let name = cache.secret_name().to_owned();
        Box::new(Ahead { name, metadata: metadata.map(Arc::new), older: [shown.clone(), shown] })
    });
    notes.with_known(key, |note| note.ahead = ahead);
    is_noted
}

/// What is remembered after a run was reported. `failed`: where it failed for what its source had read, since when that
/// was looked at, and the reason. A change after that may be what it waits for, and was not noticed as such when it came.
pub fn note_reported(notes: &Notes, key: &ObjectKey, runs: i64, failed: Option<(Instant, Reason)>) {
    notes.with(key, |note| {
        note.reported = Some((runs, Instant::now()));
        note.waiting = failed.map(|(_, reason)| (runs, reason));
        if failed.is_some_and(|(began, reason)| note.has_source_changed_since(began, reason)) {
            note.unblocked = Some(runs);
        }
    });
}

/// What is remembered of how a run went: if it failed, why, and when it is tried again.
pub fn note_outcome(notes: &Notes, key: &ObjectKey, failed: Option<(Reason, DateTime<Utc>)>) {
    notes.with(key, |note| {
        (note.failed, note.retry) = failed.unzip();
        note.ran_last = true;
    });
}
