//! The story of one run: take the Lease, look again, fetch, write, report, release.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{Source, TokenCache},
    events::Events,
    fetch::{Failure, Fetched, Fetcher, render},
    lock::{Acquired, Hold, LockError, Locks, Owner},
    metrics::Metrics,
    notes::{Key, Notes},
    observe::{ApiError, checked, live, live_secret, note_failed, note_reported, note_written, observed},
    plan::{Observed, Plan, Why, backoff, decide},
    reason::Reason,
    report::Reporter,
    secret::{Integrity, Lifetime, SecretState, Stored, fetch_hash},
    status::{Ended, STALLED, after_run, at_rest, condition},
    store::{Written, put, remove},
    time::{Clock, later},
};

/// Runs fetches. The controller and `fetch --direct` share it.
#[derive(Clone)]
pub struct Runner {
    /// For the API, with kube's own retry off.
    pub client: Client,
    /// For the time of day.
    pub clock: Clock,
    /// The Leases.
    pub locks: Locks,
    /// The sources.
    pub fetcher: Fetcher,
    /// Status and events.
    pub reporter: Reporter,
    /// Events.
    pub events: Events,
    /// What is counted.
    pub metrics: Metrics,
    /// What is remembered.
    pub notes: Notes,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ran {
    /// A fetch was done, well or badly, and reported.
    Done,
    /// There was nothing to do any more, or the TokenCache is gone.
    NotNeeded,
    /// Somebody else runs it.
    Busy {
        /// After this time the Lease may be taken, if nothing happens before.
        retry_in: Duration,
        /// Who runs it.
        holder: String,
    },
    /// It was told to end.
    Cancelled,
}

/// Why a run could not be done; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The Lease could not be taken.
    #[error("the Lease could not be taken: {0}")]
    Lock(#[from] LockError),
    /// The Kubernetes API failed.
    #[error("the Kubernetes API failed: {0}")]
    Api(#[from] ApiError),
}

/// How often a run starts over because another hand wrote to the Secret.
const ROUNDS: usize = 3;

/// When a run that another one displaced is looked at again.
const RETRY_LOST: Duration = Duration::from_secs(1);

/// What the Lease is taken for.
#[must_use]
pub fn owner(cache: &TokenCache) -> Owner {
    Owner {
        namespace: cache.metadata.namespace.clone().unwrap_or_default(),
        name: cache.metadata.name.clone().unwrap_or_default(),
        uid: cache.metadata.uid.clone().unwrap_or_default(),
    }
}

impl Runner {
    /// Runs, if it is needed and nobody else does. `cancel` ends a fetch that is under way; `watched` is the Secret's
    /// metadata as a watch has it, if there is one.
    ///
    /// # Errors
    /// When the API server fails; the run's own failures are reported in status instead.
    pub async fn run(
        &self,
        cache: &TokenCache,
        watched: Option<&ObjectMeta>,
        cancel: &CancellationToken,
    ) -> Result<Ran, RunError> {
        let owner = owner(cache);
        let key = (owner.namespace.clone(), owner.name.clone());
        let ran_before = cache.status.as_ref().is_some_and(|status| status.runs > 0);
        let hold = match self.locks.acquire(&owner, ran_before).await {
            Ok(Acquired::Hold(hold)) => {
                self.metrics.acquisition("acquired");
                hold
            }
            Ok(Acquired::Busy { retry_in, holder }) => {
                self.metrics.acquisition("busy");
                return Ok(Ran::Busy { retry_in, holder });
            }
            Err(error @ LockError::NotOwned { .. }) => {
                self.metrics.acquisition("error");
                let failure = Failure::new(Reason::LeaseNotOwned, error.to_string());
                let metadata = live_secret(&self.client, &owner.namespace, cache.secret_name()).await?;
                self.report_refusal(&key, cache, metadata.as_ref(), &failure).await?;
                return Ok(Ran::Done);
            }
            Err(error) => {
                self.metrics.acquisition("error");
                return Err(error.into());
            }
        };
        let ends = TaskTracker::new();
        let ran = self.under_lock(&hold, &owner, &key, watched, cancel, &ends).await;
        // Only then may another run begin: its own Job is known to be ending.
        ends.close();
        ends.wait().await;
        hold.release().await;
        ran
    }

    async fn under_lock(
        &self,
        hold: &Hold,
        owner: &Owner,
        key: &Key,
        mut watched: Option<&ObjectMeta>,
        cancel: &CancellationToken,
        ends: &TaskTracker,
    ) -> Result<Ran, RunError> {
        for round in 1..=ROUNDS {
            // Look again, live: who had the Lease before may have done all that was to do.
            let Some(cache) = live(&self.client, key).await?.filter(|cache| {
                cache.metadata.uid.as_deref() == Some(&owner.uid) && cache.metadata.deletion_timestamp.is_none()
            }) else {
                return Ok(Ran::NotNeeded);
            };
            let metadata = match watched.take().filter(|watched| is_newest(&cache, watched)) {
                Some(watched) => Some(watched.clone()),
                None => live_secret(&self.client, &owner.namespace, cache.secret_name()).await?,
            };
            let note = checked(&self.notes, key, &cache);
            let seen = observed(&cache, metadata.as_ref(), &note);
            let why = match decide(&seen, self.clock.now()) {
                Plan::Fetch(why) => why,
                // Found only now, since Secrets without the label are not watched. Else status says it already.
                Plan::Refuse(Reason::SecretNotOwned, message) if !is_reported(&seen) => {
                    let failure = Failure::new(Reason::SecretNotOwned, message);
                    self.report_refusal(key, &cache, metadata.as_ref(), &failure).await?;
                    return Ok(Ran::Done);
                }
                Plan::RemoveExpired(stored) => {
                    remove(&self.client, &owner.namespace, cache.secret_name(), &stored).await?;
                    continue;
                }
                _ => return Ok(Ran::NotNeeded),
            };
            let started = Instant::now();
            // A process that was frozen since is told so by the clock before any timer runs.
            let fetched = if hold.is_lost() {
                Err(lost())
            } else {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Ok(Ran::Cancelled),
                    () = hold.lost() => Err(lost()),
                    fetched = self.fetcher.fetch_leaving(&cache, ends) => fetched,
                }
            };
            let fetched_at = self.clock.now();
            let fetched = if hold.is_lost() { Err(lost()) } else { fetched };
            let result = match fetched {
                Ok(fetched) => {
                    let lifetime = Lifetime { fetched_at, expires_at: fetched.expires_at };
                    let write = self.write(&cache, owner, metadata.as_ref(), &fetched, lifetime);
                    let written = tokio::select! {
                        written = write => written,
                        () = hold.lost() => Err(lost()),
                    };
                    match written {
                        Ok(Written::Done(written)) => {
                            Ok((note_written(&self.notes, key, metadata, *written, lifetime), lifetime))
                        }
                        // The result is dropped and the plan made anew.
                        Ok(Written::Conflict) if round < ROUNDS => {
                            tracing::info!(
                                namespace = key.0,
                                name = key.1,
                                "the Secret was changed during the run: starting over"
                            );
                            continue;
                        }
                        Ok(Written::Conflict) => Err(Failure::new(
                            Reason::WriteFailed,
                            format!("the Secret {}/{} keeps being changed by another hand", key.0, cache.secret_name()),
                        )),
                        Err(failure) => Err(failure),
                    }
                }
                Err(failure) => Err(failure),
            };
            // Whoever lost the Lease to another run leaves the word to that one.
            let lost = matches!(&result, Err(failure) if failure.reason == Reason::LockLost);
            if lost && !hold.is_still_mine().await {
                tracing::warn!(namespace = key.0, name = key.1, "the run was cancelled, since its Lease was lost");
                return Ok(Ran::Busy { retry_in: RETRY_LOST, holder: String::new() });
            }
            self.finish(key, &seen, &why, result, started, lost).await?;
            return Ok(Ran::Done);
        }
        Ok(Ran::Busy { retry_in: RETRY_LOST, holder: String::new() })
    }

    async fn write(
        &self,
        cache: &TokenCache,
        owner: &Owner,
        found: Option<&ObjectMeta>,
        fetched: &Fetched,
        lifetime: Lifetime,
    ) -> Result<Written, Failure> {
        // An expression of the user's may compute for a while.
        let data = tokio::task::block_in_place(|| render(&cache.spec.target, fetched, &owner.name, &owner.namespace))?;
        let data = data.into_iter().map(|(key, value)| (key, value.into())).collect();
        put(&self.client, cache, owner, found, data, lifetime).await.map_err(|error| {
            let name = cache.secret_name();
            Failure::new(Reason::WriteFailed, format!("the Secret {}/{name} was not written: {error}", owner.namespace))
        })
    }

    /// Says how a run ended: in status, events, metrics and the log, from one value.
    async fn finish(
        &self,
        key: &Key,
        seen: &Observed<'_>,
        why: &Why,
        result: Result<(String, Lifetime), Failure>,
        started: Instant,
        lost: bool,
    ) -> Result<(), RunError> {
        let took = started.elapsed();
        let now = self.clock.now();
        let before = seen.cache.status.clone().unwrap_or_default();
        let mut left = seen.clone();
        let mut next_retry_at = None;
        match &result {
            Ok((version, lifetime)) => {
                let stored = Lifetime {
                    fetched_at: crate::time::floor(lifetime.fetched_at),
                    expires_at: lifetime.expires_at.whole_seconds(),
                };
                left.secret = SecretState::Owned(Stored {
                    uid: String::new(),
                    resource_version: version.clone(),
                    lifetime: Some(stored),
                    fetch_hash: fetch_hash(&seen.cache.spec),
                    changed_at: None,
                    integrity: Integrity::Intact,
                });
            }
            Err(failure) => {
                let failures = before.failures.saturating_add(1);
                let retry = &seen.cache.spec.retry;
                let wait = backoff(failures, retry.initial(), retry.max(), rand::random(), failure.retry_after);
                let at = later(now, chrono::TimeDelta::from_std(wait).unwrap_or_default());
                note_failed(&self.notes, key, at);
                next_retry_at = Some(at);
            }
        }
        let ended = Ended {
            by: self.locks.replica(),
            generation: seen.cache.metadata.generation,
            failure: result.as_ref().err(),
            next_retry_at,
            answered: seen.open_request(),
            written: result.as_ref().ok().map(|(version, _)| version.as_str()),
        };
        let source = seen.cache.spec.fetch.source().map_or("none", Source::name);
        self.metrics.fetched(source, result.as_ref().map(|_| ()).map_err(|failure| failure.reason), took);
        log(key, source, why, &result, took);
        let wanted = |cache: &TokenCache| {
            // Of two runs that both ended, the one that lost its Lease is the older.
            let runs = cache.status.as_ref().map_or(0, |status| status.runs);
            (!lost || runs == before.runs).then(|| after_run(&Observed { cache, ..left.clone() }, &ended, now))
        };
        if self.reporter.report(key, seen.cache, wanted).await? {
            let refused = result.as_ref().err().is_some_and(|failure| failure.reason.is_refusal());
            note_reported(&self.notes, key, before.runs + 1, refused.then_some(started));
        }
        self.announce(seen.cache, why, before.failures, &result).await;
        Ok(())
    }

    /// A refresh as planned, after one that went well, is no event: it would be a write for nothing new.
    async fn announce(
        &self,
        cache: &TokenCache,
        why: &Why,
        failures: i32,
        result: &Result<(String, Lifetime), Failure>,
    ) {
        match why {
            Why::Cleared => self.events.publish(cache, Reason::Cleared, "the Secret was deleted").await,
            Why::Drifted(_) => self.events.publish(cache, Reason::Drifted, &why.to_string()).await,
            _ => {}
        }
        match result {
            Ok((_, lifetime)) if *why != Why::Due || failures > 0 => {
                let note =
                    format!("fetched a value that is valid until {} ({why})", lifetime.expires_at.whole_seconds());
                self.events.publish(cache, Reason::Fetched, &note).await;
            }
            Ok(_) => {}
            // A refusal is published with the condition Stalled.
            Err(failure) if failure.reason.is_refusal() => {}
            Err(failure) => self.events.publish(cache, Reason::FetchFailed, &failure.to_string()).await,
        }
    }

    /// Reports a run that was refused before anything was fetched.
    async fn report_refusal(
        &self,
        key: &Key,
        cache: &TokenCache,
        metadata: Option<&ObjectMeta>,
        failure: &Failure,
    ) -> Result<(), RunError> {
        tracing::warn!(namespace = key.0, name = key.1, reason = %failure.reason, error = failure.message, "refused");
        let now = self.clock.now();
        let note = checked(&self.notes, key, cache);
        let runs = cache.status.as_ref().map_or(0, |status| status.runs);
        let generation = cache.metadata.generation;
        let wanted = |cache: &TokenCache| {
            let seen = observed(cache, metadata, &note);
            let ended = Ended {
                by: self.locks.replica(),
                generation,
                failure: Some(failure),
                next_retry_at: None,
                answered: seen.open_request(),
                written: None,
            };
            let now_runs = cache.status.as_ref().map_or(0, |status| status.runs);
            (now_runs == runs).then(|| after_run(&seen, &ended, now))
        };
        if self.reporter.report(key, cache, wanted).await? {
            note_reported(&self.notes, key, runs + 1, None);
        }
        Ok(())
    }

    /// Brings status in line where no run is called for.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn rest(&self, key: &Key, seen: &Observed<'_>) -> Result<(), ApiError> {
        let now = self.clock.now();
        let version = &seen.cache.metadata.resource_version;
        // After a conflict the watch brings the newer object, which is then looked at anew.
        let wanted = |cache: &TokenCache| {
            (cache.metadata.resource_version == *version).then(|| at_rest(&Observed { cache, ..seen.clone() }, now))
        };
        self.reporter.report(key, seen.cache, wanted).await.map(|_| ())
    }
}

/// Whether a Secret's metadata from the watch is as the last run left it, by the live status: then reading it again
/// would tell nothing new, and were it wrong, the write with its `resourceVersion` would be refused.
fn is_newest(cache: &TokenCache, watched: &ObjectMeta) -> bool {
    let written = cache.status.as_ref().and_then(|status| status.secret_resource_version.as_ref());
    written.is_some()
        && written == watched.resource_version.as_ref()
        && watched.name.as_deref() == Some(cache.secret_name())
}

fn lost() -> Failure {
    Failure::new(
        Reason::LockLost,
        "the Lease could not be renewed in time, so the fetch was cancelled; is the Kubernetes API overloaded?",
    )
}

/// Whether status says of this very spec that a foreign Secret stands in the way.
fn is_reported(seen: &Observed<'_>) -> bool {
    let stalled = condition(seen.cache.status.as_ref(), STALLED);
    let observed = seen.cache.status.as_ref().and_then(|status| status.observed_generation);
    stalled == Some(("True", Reason::SecretNotOwned.as_str()))
        && observed == seen.cache.metadata.generation
        && !seen.unblocked
}

fn log(key: &Key, source: &str, why: &Why, result: &Result<(String, Lifetime), Failure>, took: Duration) {
    let (namespace, name, took_ms) = (&key.0, &key.1, took.as_millis());
    match result {
        Ok((_, lifetime)) => {
            let expires_at = lifetime.expires_at.whole_seconds();
            tracing::info!(namespace, name, source, %why, took_ms, %expires_at, "fetched");
        }
        Err(Failure { reason, message, .. }) => {
            tracing::warn!(namespace, name, source, %why, took_ms, %reason, error = message, "fetch failed");
        }
    }
}
