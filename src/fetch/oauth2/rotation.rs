//! A refresh token whose server gives another one in its place (RFC 6749 §6, RFC 9700 §4.14.2).
//!
//! The Secret that `refreshTokenRef` names holds the first token, and is only read. Its successors are stored in the
//! TokenCache's own Secret for states, with a hash of the first one. If that hash is not the hash of the token in the
//! user's Secret any more, somebody has signed in again, and the token there is used.
//!
//! From the moment at which the server answers, the old token is void, and the new one is in this process alone. So
//! before the old one is spent, the API server is asked whether the new one could be written; and the request, once it
//! is sent, and the write are not dropped with the fetch. What remains is the time from the answer to the write: who
//! is killed in it loses the token, and somebody must sign in again.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kube::{Api, Client, api::PostParams};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Exchange, Exchanged, answer};
use crate::{
    api::{names::FIELD_MANAGER_ROTATION, oauth2::SecretKeyRef, reason::Reason},
    fetch::{
        Attempt, Failure, Phase,
        redact::Redactor,
        source_objects::trimmed,
        state_secret::{StateSecret, objection, place},
    },
    k8s::{ApiError, call, secret::SealedSecret},
};

/// The member of an answer that holds the new token.
pub(super) const MEMBER: &str = "refresh_token";

/// The key of the state Secret with the newest token.
const TOKEN: &str = "refresh-token";
/// The key with the hash of the token that it descends from. In a Secret it helps nobody to guess that.
const SEED: &str = "refresh-token-seed";

/// How long an answer is awaited after the fetch was given up, at least and at most. The request cannot be taken back,
/// so whatever ended the fetch, an answer that comes late is better than none: the new token may be in it. On SIGTERM
/// the controller gives fetches up after 5 s and ends after 18 s, so there is a second left to write the token.
const LATE: (Duration, Duration) = (Duration::from_secs(12), Duration::from_secs(60));

/// How long a new token is tried to be written: longer than an API server takes to be started anew, or upgraded.
const PATIENCE: Duration = Duration::from_secs(600);

/// Between two tries: first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A refresh token with the hash of the one that it descends from.
#[derive(Clone)]
struct Descendant {
    seed: String,
    token: SecretString,
}

impl PartialEq for Descendant {
    fn eq(&self, other: &Self) -> bool {
        (&self.seed, self.token.expose_secret()) == (&other.seed, other.token.expose_secret())
    }
}

impl Descendant {
    /// The one that a state Secret holds.
    fn of(secret: &SealedSecret) -> Option<Self> {
        let text = |key: &str| std::str::from_utf8(secret.data.get(key)?.expose()).ok();
        Some(Self { seed: text(SEED)?.to_owned(), token: text(TOKEN).filter(|token| !token.is_empty())?.into() })
    }
}

/// A refresh token as it was read, and where its successor goes.
pub(super) struct Rotation {
    client: Client,
    state: StateSecret,
    /// The state Secret as it was read.
    found: Option<SealedSecret>,
    reference: SecretKeyRef,
    /// Hash of the token in the user's Secret.
    seed: String,
    /// What is sent.
    old: SecretString,
    phase: Phase,
    late: Duration,
}

/// How long an answer is awaited after the fetch was given up: by then the Lease, of this duration, may be lost, and
/// another client may take it after a third of its duration.
pub(in crate::fetch) fn late(lease_duration: Duration) -> Duration {
    (lease_duration / 3).clamp(LATE.0, LATE.1)
}

/// How a write went.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Done,
    /// Another client stored another token there.
    Displaced,
}

/// Asks, and stores what takes the token's place. Whoever drops this drops neither.
pub(super) async fn exchange(
    attempt: &Attempt<'_>,
    exchange: Exchange,
    rotation: Rotation,
) -> Result<Exchanged, Failure> {
    rotation.rehearse().await?;
    let given_up = CancellationToken::new();
    let guard = given_up.clone().drop_guard();
    let task = attempt.ends.spawn(async move {
        let late = rotation.late;
        let exchanged = tokio::select! {
            biased;
            exchanged = exchange.run() => exchanged,
            () = async { given_up.cancelled().await; sleep(late).await } => {
                return Err(Failure::new(Reason::Timeout, "given up"));
            }
        };
        let exchanged = match exchanged {
            Ok(exchanged) => exchanged,
            Err(refused) => return Err(rotation.explain(refused).await),
        };
        let new = answer::text(&exchanged.members, MEMBER).filter(|new| !new.expose_secret().is_empty());
        match new {
            // The server keeps the old one.
            None => {}
            Some(new) if new.expose_secret() == rotation.old.expose_secret() => {}
            Some(new) => rotation.store(new).await?,
        }
        Ok(exchanged)
    });
    let done = task.await;
    drop(guard);
    done.unwrap_or_else(|_| Err(Failure::new(Reason::Unreachable, "the request was cut off")))
}

impl Rotation {
    /// Reads the newest token; `first` is that of the user's Secret.
    pub(super) async fn find(
        attempt: &Attempt<'_>,
        reference: &SecretKeyRef,
        first: SecretString,
    ) -> Result<Self, Failure> {
        let state = StateSecret::new(attempt.client, &attempt.owner);
        let place = place(&attempt.owner);
        attempt.phase.set(format!("reading {place}"));
        let found = state.read().await.map_err(|error| {
            let reason = if error.is_retryable() { Reason::Unreachable } else { Reason::WriteFailed };
            Failure::new(reason, format!("{place}, which may hold a newer refresh token, cannot be read: {error}"))
        })?;
        if let Some(why) = found.as_ref().and_then(|found| objection(&attempt.owner, &found.metadata)) {
            let message = format!(
                "nothing was sent, since a new refresh token could not be stored: {place} {why}. To go on, delete it, or \
                 rename the TokenCache"
            );
            return Err(Failure::new(Reason::WriteFailed, message));
        }
        let seed = hash(&first);
        let newer = found.as_ref().and_then(Descendant::of).filter(|stored| stored.seed == seed);
        Ok(Self {
            client: attempt.client.clone(),
            state,
            found,
            reference: reference.clone(),
            seed,
            old: newer.map_or(first, |newer| newer.token),
            phase: attempt.phase.clone(),
            late: attempt.late,
        })
    }

    /// The token to send.
    pub(super) fn token(&self) -> &SecretString {
        &self.old
    }

    /// What the state Secret held when it was read.
    fn known(&self) -> Option<Descendant> {
        self.found.as_ref().and_then(Descendant::of)
    }

    fn is_first(&self) -> bool {
        self.known().is_none_or(|known| known.seed != self.seed)
    }

    /// Where people put a token.
    fn user_place(&self) -> String {
        format!("key {} of Secret {}/{}", self.reference.key, self.state.owner().namespace, self.reference.name)
    }

    /// A refusal of the token itself is final, unless there is another one by now.
    async fn explain(&self, answer::Refused { failure, invalid_grant }: answer::Refused) -> Failure {
        if !invalid_grant {
            return failure;
        }
        if let Some(place) = self.changed().await {
            let message = format!(
                "{}: {place} was changed while an older refresh token was in use; the next attempt reads it again",
                failure.message,
            );
            return Failure { message, ..failure };
        }
        let hint = if self.is_first() {
            " A TokenCache that is created again starts with the token of that key, which may have been used before."
        } else {
            ""
        };
        let message = format!(
            "{}: the refresh token has expired, was revoked or was used before; somebody must sign in again, and put \
             the new refresh token into {}.{hint}",
            failure.message,
            self.user_place()
        );
        Failure { reason: Reason::ReauthenticationRequired, message, ..failure }
    }

    /// Which of both Secrets holds another token than was read, if one does. A change of one that cannot be read is noticed
    /// by the watch.
    async fn changed(&self) -> Option<String> {
        self.phase.set(format!("reading {} again", self.user_place()));
        let api = Api::<SealedSecret>::namespaced(self.client.clone(), &self.state.owner().namespace);
        if let Ok(secret) = call(api.get_opt(&self.reference.name)).await {
            let first = secret.as_ref().and_then(|secret| secret.data.get(&self.reference.key));
            let first = first.and_then(|first| std::str::from_utf8(first.expose()).ok());
            if first.is_none_or(|first| hash(&trimmed(first).into()) != self.seed) {
                return Some(self.user_place());
            }
        }
        let place = place(self.state.owner());
        self.phase.set(format!("reading {place} again"));
        let found = self.state.read().await.ok()?;
        (found.as_ref().and_then(Descendant::of) != self.known()).then_some(place)
    }

    /// Whether a new token could be stored: else the old one had better not be spent.
    async fn rehearse(&self) -> Result<(), Failure> {
        let place = place(self.state.owner());
        self.phase.set(format!("asking the Kubernetes API server whether {place} can be written"));
        let Err(error) = self.put(self.found.clone(), &"rehearsal".into(), true).await else { return Ok(()) };
        let reason = match error.code() {
            // A webhook that knows no dry run says nothing about the write itself.
            Some(400) => return Ok(()),
            _ if error.is_retryable() => Reason::Unreachable,
            _ => Reason::WriteFailed,
        };
        let message = format!(
            "nothing was sent, since a new refresh token could not be stored in {place}: {}",
            self.told(&error, None)
        );
        Err(Failure::new(reason, message))
    }

    /// What was said of a write, by the API server or an admission webhook, without what was to be written.
    fn told(&self, error: &ApiError, new: Option<&SecretString>) -> String {
        let mut redactor = Redactor::default();
        for token in [Some(&self.old), new].into_iter().flatten() {
            redactor.hide(token.expose_secret());
        }
        redactor.clean(&error.to_string())
    }

    /// Writes until it is written.
    async fn store(&self, new: &SecretString) -> Result<(), Failure> {
        let place = place(self.state.owner());
        self.phase.set(format!("writing the new refresh token to {place}"));
        let (namespace, name) = (&self.state.owner().namespace, &self.state.owner().name);
        let since = Instant::now();
        let mut pause = PAUSES.0;
        // First over what was read before the request, which costs no further read.
        let mut known = Some(self.found.clone());
        loop {
            let problem = match self.try_store(known.take(), new).await {
                Ok(Written::Done) => return Ok(()),
                Ok(Written::Displaced) => {
                    // Theirs is the newer one. The token that was got is good all the same.
                    tracing::warn!(
                        namespace,
                        name,
                        "another client stored another refresh token while a new one was fetched: it is kept"
                    );
                    return Ok(());
                }
                Err(error) => self.told(&error, Some(new)),
            };
            if since.elapsed() >= PATIENCE {
                let message = format!(
                    "the new refresh token was not written to {place}: {problem}; the old one is void, so somebody may \
                     have to sign in again"
                );
                return Err(Failure::new(Reason::WriteFailed, message));
            }
            tracing::warn!(namespace, name, error = problem, "the new refresh token is not written yet: trying again");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Writes once. `found` is the Secret as it was read; it is read again where it is not known.
    async fn try_store(&self, found: Option<Option<SealedSecret>>, new: &SecretString) -> Result<Written, ApiError> {
        let found = match found {
            Some(found) => found,
            None => {
                let found = self.state.read().await?;
                let stored = found.as_ref().and_then(Descendant::of);
                let wanted = Descendant { seed: self.seed.clone(), token: new.clone() };
                let is_ours =
                    found.as_ref().is_none_or(|found| objection(self.state.owner(), &found.metadata).is_none());
                match stored {
                    // A write that was not answered.
                    Some(stored) if stored == wanted => return Ok(Written::Done),
                    stored if !is_ours || (stored.is_some() && stored != self.known()) => {
                        return Ok(Written::Displaced);
                    }
                    _ => found,
                }
            }
        };
        self.put(found, new, false).await.map(|()| Written::Done)
    }

    async fn put(&self, found: Option<SealedSecret>, token: &SecretString, dry_run: bool) -> Result<(), ApiError> {
        let params = PostParams { dry_run, field_manager: Some(FIELD_MANAGER_ROTATION.into()) };
        let written = self.state.put(found, &params, |data| {
            data.insert(TOKEN.to_owned(), token.expose_secret().as_bytes().to_vec().into());
            data.insert(SEED.to_owned(), self.seed.clone().into_bytes().into());
        });
        written.await.map(|_| ())
    }
}

fn hash(token: &SecretString) -> String {
    BASE64_STANDARD.encode(Sha256::digest(token.expose_secret()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_awaited_for_a_third_of_the_lease_within_limits() {
        for (lease, expected) in [(1, 12), (15, 12), (60, 20), (3600, 60)] {
            assert_eq!(late(Duration::from_secs(lease)), Duration::from_secs(expected));
        }
    }
}
