//! A refresh token whose server gives another one in its place (RFC 6749 §6, RFC 9700 §4.14.2).
//!
//! From the moment at which the server answers, the old token is void, and the new one is in this process alone. So
//! before the old one is spent, the API server is asked whether the new one could be written; and the request, once it
//! is sent, and the write are not dropped with the fetch. What remains is the time from the answer to the write: who
//! is killed in it loses the token, and somebody must sign in again.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::header;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource as _, core::PartialObjectMeta};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{Exchange, Exchanged, answer};
use crate::{
    api::{names::FIELD_MANAGER_ROTATION, oauth2::SecretKeyRef},
    fetch::{Attempt, Failure, Phase, redact::Redactor},
    observe::{ApiError, limited},
    reason::Reason,
    sealed::{SealedSecret, SecretBytes},
};

/// The member of an answer that holds the new token.
pub(super) const MEMBER: &str = "refresh_token";

/// How long an answer is awaited after the fetch was given up, at least and at most. The request cannot be taken back,
/// so whatever ended the fetch, an answer that comes late is better than none: the new token may be in it. On SIGTERM
/// the controller gives fetches up after 5 s and ends after 18 s, so there is a second left to write the token.
const LATE: (Duration, Duration) = (Duration::from_secs(12), Duration::from_secs(60));

/// How long a new token is tried to be written: longer than an API server takes to be started anew, or upgraded.
const PATIENCE: Duration = Duration::from_secs(600);

/// Between two tries: first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// A refresh token as it was read, and where its successor goes.
pub(super) struct Rotation {
    client: kube::Client,
    namespace: String,
    reference: SecretKeyRef,
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
    /// Another hand put another token there, or deleted the Secret.
    Displaced,
}

/// Asks, and writes back what takes the token's place. Whoever drops this drops neither.
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
            Some(new) => rotation.write_back(new).await?,
        }
        Ok(exchanged)
    });
    let done = task.await;
    drop(guard);
    done.unwrap_or_else(|_| Err(Failure::new(Reason::Unreachable, "the request was cut off")))
}

impl Rotation {
    pub(super) fn of(attempt: &Attempt<'_>, reference: &SecretKeyRef, old: SecretString) -> Self {
        Self {
            client: attempt.client.clone(),
            namespace: attempt.namespace.to_owned(),
            reference: reference.clone(),
            old,
            phase: attempt.phase.clone(),
            late: attempt.late,
        }
    }

    fn place(&self) -> String {
        format!("key {} of Secret {}/{}", self.reference.key, self.namespace, self.reference.name)
    }

    /// A refusal of the token itself is final, unless the Secret holds another one by now.
    async fn explain(&self, answer::Refused { failure, invalid_grant }: answer::Refused) -> Failure {
        if !invalid_grant {
            return failure;
        }
        self.phase.set(format!("reading {} again", self.place()));
        // Where the Secret cannot be read, a change of it is noticed by the watch.
        if self.stored().await.is_ok_and(|stored| !holds(stored.as_ref(), &self.old)) {
            let message = format!(
                "{}: {} was changed while its old refresh token was in use; the next attempt reads it again",
                failure.message,
                self.place()
            );
            return Failure { message, ..failure };
        }
        let message = format!(
            "{}: the refresh token has expired, was revoked or was used before; somebody must sign in again, and put \
             the new refresh token into {}",
            failure.message,
            self.place()
        );
        Failure { reason: Reason::ReauthenticationRequired, message, ..failure }
    }

    /// Whether a new token could be written: else the old one had better not be spent.
    async fn rehearse(&self) -> Result<(), Failure> {
        self.phase.set(format!("asking the Kubernetes API server whether {} can be written", self.place()));
        let Err(error) = self.patch("rehearsal", true).await else { return Ok(()) };
        let reason = match error.code() {
            // A webhook that knows no dry run says nothing about the write itself.
            Some(400) => return Ok(()),
            Some(403) => Reason::SourceNotAllowed,
            _ if error.is_of_server() => Reason::Unreachable,
            _ => Reason::WriteFailed,
        };
        let message = format!(
            "nothing was sent, since a new refresh token could not be written back to {}: {}",
            self.place(),
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
    async fn write_back(&self, new: &SecretString) -> Result<(), Failure> {
        self.phase.set(format!("writing the new refresh token to {}", self.place()));
        let since = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            let problem = match self.try_write(new).await {
                Ok(Written::Done) => return Ok(()),
                Ok(Written::Displaced) => {
                    // Somebody signed in again, and theirs is the newer one. The token that was got is good all the same.
                    tracing::warn!(
                        namespace = self.namespace,
                        secret = self.reference.name,
                        key = self.reference.key,
                        "the refresh token was changed by another hand while a new one was fetched: it is left as it is"
                    );
                    return Ok(());
                }
                Err(error) => self.told(&error, Some(new)),
            };
            if since.elapsed() >= PATIENCE {
                let message = format!(
                    "the new refresh token was not written to {}: {problem}; the old one is void, so somebody may have \
                     to sign in again",
                    self.place()
                );
                return Err(Failure::new(Reason::WriteFailed, message));
            }
            tracing::warn!(
                namespace = self.namespace,
                secret = self.reference.name,
                error = problem,
                "the new refresh token is not written yet: trying again"
            );
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn try_write(&self, new: &SecretString) -> Result<Written, ApiError> {
        let Err(error) = self.patch(new.expose_secret(), false).await else { return Ok(Written::Done) };
        if error.is_of_server() {
            return Err(error);
        }
        // The old token is not there any more, be it by a write of ours that was not answered; or the write is refused.
        let stored = self.stored().await?;
        match () {
            () if holds(stored.as_ref(), new) => Ok(Written::Done),
            () if holds(stored.as_ref(), &self.old) => Err(error),
            () => Ok(Written::Displaced),
        }
    }

    /// What the key holds now.
    async fn stored(&self) -> Result<Option<SecretBytes>, ApiError> {
        let api = Api::<SealedSecret>::namespaced(self.client.clone(), &self.namespace);
        let found = limited(api.get_opt(&self.reference.name)).await?;
        Ok(found.and_then(|mut found| found.data.remove(&self.reference.key)))
    }

    /// Replaces the old token, and nothing but it: a JSON patch (RFC 6902) fails where the key holds something else. The
    /// Secret is the user's, so whatever else changes in it is no conflict.
    async fn patch(&self, new: &str, dry_run: bool) -> Result<(), ApiError> {
        let SecretKeyRef { name, key } = &self.reference;
        let path = format!("/data/{}", key.replace('~', "~0").replace('/', "~1"));
        let encode = |text: &str| Value::String(BASE64_STANDARD.encode(text));
        let patch = json!([
            {"op": "test", "path": path, "value": encode(self.old.expose_secret())},
            {"op": "replace", "path": path, "value": encode(new)},
        ]);
        let dry_run = if dry_run { "&dryRun=All" } else { "" };
        let url = format!(
            "{}/{name}?fieldManager={FIELD_MANAGER_ROTATION}{dry_run}",
            Secret::url_path(&(), Some(&self.namespace))
        );
        let body = Zeroizing::new(patch.to_string());
        let request = http::Request::patch(url)
            .header(header::CONTENT_TYPE, "application/json-patch+json")
            // The answer need not repeat the Secret.
            .header(header::ACCEPT, "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")
            .body(body.as_bytes().to_vec())
            .map_err(kube::Error::HttpError)?;
        limited(self.client.request::<PartialObjectMeta<Secret>>(request)).await.map(|_| ())
    }
}

fn holds(stored: Option<&SecretBytes>, token: &SecretString) -> bool {
    stored.is_some_and(|stored| stored.expose() == token.expose_secret().as_bytes())
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
