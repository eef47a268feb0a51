//! What one run leaves for the next, and the key of the run in progress: the Secret `tokencache-NAME-state`.
//!
//! `state-RUN` is the state that the run RUN left. The next pod mounts that very key: a kubelet whose cache is behind
//! waits for it, where under a fixed name it would provide an older state, such as a refresh token that is void by now.
//!
//! `unseal-RUN` is the private key of the newest run. It is stored before the Job is created, so that the result can be
//! read after a crash, by any replica. It also orders the writes: the state of a run is stored only while the Secret
//! holds the key of that run, by an update with `resourceVersion`. Its name sorts behind the state's, since
//! the first version took the first key for the state.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Client,
    api::{DeleteParams, PostParams, Preconditions},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::seal::KeyPair;
use crate::{
    api::{names::FIELD_MANAGER, reason::Reason},
    fetch::{
        Failure,
        state_secret::{StateSecret, name, objection, place},
    },
    k8s::{
        ApiError, call,
        object::OwnerRef,
        secret::{SealedSecret, SecretBytes},
    },
    time,
};

/// How long to try to store a state.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

const STATE: &str = "state-";
const KEY: &str = "unseal-";

/// The newest run, as it was before its Job was created.
#[derive(Debug)]
pub(super) struct Begun {
    /// Its result is sealed to this.
    pub(super) keys: KeyPair,
    /// Hash of the spec that it was made from.
    pub(super) fetch_hash: String,
    /// `expires_in` counts from then.
    pub(super) sent: DateTime<Utc>,
}

/// The same as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored<'a> {
    public_key: &'a str,
    private_key: &'a str,
    fetch_hash: &'a str,
    sent: &'a str,
}

impl Begun {
    fn to_bytes(&self) -> Result<SecretBytes, serde_json::Error> {
        let stored = Stored {
            public_key: &self.keys.public(),
            private_key: &self.keys.private(),
            fetch_hash: &self.fetch_hash,
            sent: &time::rfc3339(self.sent),
        };
        // Room from the start: a buffer that grows would leave copies behind.
        let mut bytes = Vec::with_capacity(1024);
        serde_json::to_writer(&mut bytes, &stored)?;
        Ok(bytes.into())
    }

    fn from_bytes(bytes: &SecretBytes) -> Option<Self> {
        let stored: Stored<'_> = serde_json::from_slice(bytes.expose()).ok()?;
        Some(Self {
            keys: KeyPair::restore(stored.public_key, stored.private_key).ok()?,
            fetch_hash: stored.fetch_hash.to_owned(),
            sent: time::parse_rfc3339(stored.sent).ok()?,
        })
    }
}

/// The Secret as it was read or written last; `None` where there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept(Option<SealedSecret>);

impl Kept {
    fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|secret| secret.data.keys()).map(String::as_str)
    }

    /// The key that holds the state.
    pub(super) fn state_key(&self) -> Option<&str> {
        self.keys().find(|key| key.starts_with(STATE))
    }

    fn holds(&self, prefix: &str, run: &str) -> bool {
        self.keys().any(|key| key.strip_prefix(prefix) == Some(run))
    }

    /// The newest run, unless nothing is known of it.
    pub(super) fn begun(&self) -> Option<Begun> {
        let data = self.0.iter().flat_map(|secret| &secret.data);
        let mut runs = data.filter_map(|(key, bytes)| Some((key.strip_prefix(KEY)?, Begun::from_bytes(bytes)?)));
        runs.find(|(run, begun)| *run == begun.keys.id()).map(|(_, begun)| begun)
    }

    /// Whether the state of a run is stored.
    pub(super) fn has_state_of(&self, run: &str) -> bool {
        self.holds(STATE, run)
    }

    /// Why the Secret is not to be used.
    fn refusal(&self, owner: &OwnerRef) -> Option<Failure> {
        let why = objection(owner, &self.0.as_ref()?.metadata)?;
        let message = format!(
            "{}, which must hold the state of the job, {why}: delete it, or rename the TokenCache",
            place(owner)
        );
        Some(Failure::new(Reason::JobFailed, message))
    }
}

/// Why a state was not stored.
#[derive(Debug)]
pub(super) enum NotStored {
    /// A later run has begun, or another client wrote to the Secret or deleted it.
    Displaced,
    /// The API server refused it, or was not reached.
    Api(ApiError),
}

/// Reads and writes the Secret of one TokenCache.
#[derive(Clone)]
pub(super) struct Store(StateSecret);

impl Store {
    pub(super) fn new(client: &Client, owner: &OwnerRef) -> Self {
        Self(StateSecret::new(client, owner))
    }

    async fn read(&self) -> Result<Kept, ApiError> {
        self.0.read().await.map(Kept)
    }

    fn place(&self) -> String {
        place(self.0.owner())
    }

    /// Reads the Secret.
    pub(super) async fn look(&self) -> Result<Kept, Failure> {
        let kept = self.read().await.map_err(|error| {
            let message = format!("the state of the last run, {}, cannot be read: {error}", self.place());
            Failure::new(Reason::Unreachable, message)
        })?;
        match kept.refusal(self.0.owner()) {
            Some(failure) => Err(failure),
            None => Ok(kept),
        }
    }

    /// Stores the key of a run that is about to begin.
    pub(super) async fn begin(&self, kept: Kept, begun: &Begun) -> Result<Kept, Failure> {
        let bytes = begun.to_bytes().map_err(|error| Failure::new(Reason::JobFailed, error.to_string()))?;
        let key = format!("{KEY}{}", begun.keys.id());
        let keep = |key: &str| !key.starts_with(KEY);
        let written = self.put(kept, keep, Some((key, bytes))).await;
        written.map_err(|error| {
            let place = self.place();
            let reason = if error.is_retryable() { Reason::Unreachable } else { Reason::WriteFailed };
            Failure::new(reason, format!("the key of the run was not stored in {place}: {error}"))
        })
    }

    /// Stores the state of a run, and removes the run's key unless its result is still to be used. Tries for a while:
    /// the state may be a refresh token that is worth more than the value.
    pub(super) async fn write(
        &self,
        kept: Option<Kept>,
        run: &str,
        state: &SecretString,
        keep_key: bool,
    ) -> Result<(), NotStored> {
        let since = Instant::now();
        let mut known = kept;
        loop {
            let error = match self.try_write(known.take(), run, state, keep_key).await {
                Ok(()) => return Ok(()),
                Err(NotStored::Displaced) => return Err(NotStored::Displaced),
                Err(NotStored::Api(error)) => error,
            };
            // Another client's write, such as a label: it is read again.
            let passes = error.is_retryable() || matches!(error.code(), Some(404 | 409));
            if !passes || since.elapsed() >= PATIENCE {
                return Err(NotStored::Api(error));
            }
            sleep(PAUSE).await;
        }
    }

    async fn try_write(
        &self,
        kept: Option<Kept>,
        run: &str,
        state: &SecretString,
        keep_key: bool,
    ) -> Result<(), NotStored> {
        let kept = match kept {
            Some(kept) => kept,
            None => self.read().await.map_err(NotStored::Api)?,
        };
        if kept.refusal(self.0.owner()).is_some() {
            return Err(NotStored::Displaced);
        }
        match (kept.holds(KEY, run), kept.has_state_of(run)) {
            (false, true) => return Ok(()),
            (true, true) if keep_key => return Ok(()),
            (false, false) => return Err(NotStored::Displaced),
            (true, _) => {}
        }
        let bytes = state.expose_secret().as_bytes().to_vec().into();
        let keep = |key: &str| if key.starts_with(KEY) { keep_key } else { !key.starts_with(STATE) };
        let written = self.put(kept, keep, Some((format!("{STATE}{run}"), bytes))).await;
        written.map(|_| ()).map_err(NotStored::Api)
    }

    /// Creates or updates the Secret, with these keys of what it held, and another.
    async fn put(
        &self,
        Kept(found): Kept,
        keep: impl Fn(&str) -> bool,
        entry: Option<(String, SecretBytes)>,
    ) -> Result<Kept, ApiError> {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let written = self.0.put(found, &params, |data| {
            data.retain(|key, _| keep(key));
            data.extend(entry);
        });
        written.await.map(|written| Kept(Some(written)))
    }

    /// Removes the key of a run that has ended without a state, and the Secret with it where that holds nothing else. A
    /// failure is of no consequence: the next run replaces the key.
    pub(super) async fn forget(&self, kept: Kept, run: &str) {
        let is_key = |key: &str| key.strip_prefix(KEY) == Some(run);
        let Some(secret) = &kept.0 else { return };
        let removed = if kept.keys().all(is_key) {
            let ObjectMeta { uid, resource_version, .. } = secret.metadata.clone();
            let preconditions = Some(Preconditions { uid, resource_version });
            let params = DeleteParams { preconditions, ..DeleteParams::default() };
            call(self.0.api().delete(&name(self.0.owner()), &params)).await.map(|_| ())
        } else {
            self.put(kept, |key| !is_key(key), None).await.map(|_| ())
        };
        if let Err(error) = removed {
            let OwnerRef { namespace, name, .. } = self.0.owner();
            tracing::debug!(namespace, name, %error, "the key of the job's run was not removed");
        }
    }

    /// What to report where the state of a run was not stored.
    pub(super) fn not_stored(&self, why: &NotStored) -> Failure {
        let place = self.place();
        let message = match why {
            NotStored::Displaced => format!(
                "the job's state was not stored, and its value not used, since another client wrote to {place} during \
                 the run"
            ),
            NotStored::Api(error) => format!("the job's state was not stored in {place}: {error}"),
        };
        Failure::new(Reason::WriteFailed, message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::names::ANNOTATION_EXPIRES_AT;

    fn owner() -> OwnerRef {
        OwnerRef { namespace: "ns".into(), name: "a".into(), uid: "uid-1".into() }
    }

    fn kept(metadata: Value, data: Vec<(String, SecretBytes)>) -> Kept {
        let metadata = serde_json::from_value(metadata).unwrap();
        Kept(Some(SealedSecret { metadata, type_: None, immutable: None, data: data.into_iter().collect() }))
    }

    fn begun() -> Begun {
        let sent = time::parse_rfc3339("2026-03-01T12:00:00Z").unwrap();
        Begun { keys: KeyPair::generate().unwrap(), fetch_hash: "hash".into(), sent }
    }

    #[test]
    fn a_run_is_read_as_it_was_stored_and_its_key_does_not_print() {
        let begun = begun();
        let bytes = begun.to_bytes().unwrap();
        let id = begun.keys.id();
        let stored = kept(json!({}), vec![(format!("unseal-{id}"), bytes.clone()), ("state-x".into(), vec![].into())]);
        let read = stored.begun().unwrap();
        assert_eq!((read.keys.id(), &read.fetch_hash, read.sent), (id.clone(), &begun.fetch_hash, begun.sent));
        let sealed = super::super::seal::seal(b"hunter2", &begun.keys.public(), 4096).unwrap();
        assert_eq!(read.keys.open(&sealed).unwrap().as_slice(), b"hunter2");
        assert_eq!(stored.state_key(), Some("state-x"));
        let private = begun.keys.private();
        for shown in [format!("{stored:?}"), format!("{read:?}"), format!("{begun:?}")] {
            assert!(!shown.contains(private.as_str()), "{shown}");
        }
        // Under the name of another run, or damaged, it is none.
        assert!(kept(json!({}), vec![("unseal-other".into(), bytes)]).begun().is_none());
        assert!(kept(json!({}), vec![(format!("unseal-{id}"), b"{}".to_vec().into())]).begun().is_none());
        assert!(Kept::default().begun().is_none());
    }

    #[test]
    fn only_the_token_caches_own_secret_for_states_is_used() {
        let controlled = |uid: &str, controller: bool| {
            json!({"ownerReferences": [{
                "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": uid,
                "controller": controller,
            }]})
        };
        let mut value = controlled("uid-1", true);
        value["annotations"] = json!({ANNOTATION_EXPIRES_AT: "2026-03-01T12:00:00Z"});
        for (metadata, words) in [
            (controlled("uid-1", true), None),
            (controlled("uid-1", false), Some("is not controlled by")),
            (controlled("uid-0", true), Some("is not controlled by")),
            (json!({}), Some("is not controlled by")),
            (value, Some("holds a credential")),
        ] {
            let refusal = kept(metadata.clone(), Vec::new()).refusal(&owner());
            match words {
                None => assert_eq!(refusal, None, "{metadata}"),
                Some(words) => assert!(refusal.unwrap().message.contains(words), "{metadata}"),
            }
        }
        assert_eq!(Kept::default().refusal(&owner()), None);
    }
}
