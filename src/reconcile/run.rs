//! The story of one run: take the Lease, look again, fetch, write, report, release.

mod bind;

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument as _, Span, info_span};

use self::bind::LastWrite;
use crate::{
    api::{ExpiresAt, STALLED, Source, TokenCache, condition, reason::Reason},
    fetch::{Failure, Fetched, Fetcher, render_in_turn},
    k8s::{
        ApiError,
        error::is_retryable,
        events::Events,
        live, live_secret,
        object::{ObjectKey, OwnerRef},
    },
    lock::{Acquired, Hold, LastHolder, LockError, Locks},
    reconcile::{
        desired_secret::Lifetime,
        observe::{Watched, checked, note_found, note_written, observed},
        plan::{Observed, Plan, decide},
        state::Notes,
        write_secret::{Written, put, rehearse},
        write_status::Reporter,
    },
    telemetry::metrics::Metrics,
    time::Clock,
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
    /// Somebody else runs it, or the run came to nothing.
    Busy {
        /// After this time the Lease may be taken, if nothing happens before.
        retry_in: Duration,
        /// Who runs it, if somebody was seen to.
        holder: Option<String>,
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

impl RunError {
    /// Whether the API server is at fault, or was not reached; not where it understood and refused.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Lock(LockError::Timeout(_)) => true,
            Self::Lock(LockError::NotOwned { .. }) => false,
            Self::Lock(LockError::Api(error)) => is_retryable(error),
            Self::Api(error) => error.is_retryable(),
        }
    }
}

/// How often a run starts over because another hand wrote to the Secret.
const ROUNDS: usize = 3;

/// When a run that another one displaced is looked at again.
const RETRY_LOST: Duration = Duration::from_secs(1);

impl Runner {
    /// Runs, if it is needed and nobody else does. `cancel` ends a fetch that is under way; `watched` is what a watch
    /// tells of the Secret, if there is one.
    ///
    /// # Errors
    /// When the API server fails; the run's own failures are reported in status instead.
    #[tracing::instrument(skip_all, fields(namespace, name, source, why, outcome, reason, otel.status_code))]
    pub async fn run(
        &self,
        cache: &TokenCache,
        watched: &Watched,
        cancel: &CancellationToken,
    ) -> Result<Ran, RunError> {
        let owner = OwnerRef::of(cache);
        let key = owner.key();
        let source = cache.spec.fetch.source().map_or("none", Source::name);
        Span::current().record("namespace", &key.0).record("name", &key.1).record("source", source);
        let last = match cache.status.as_ref().filter(|status| status.runs > 0).map(|status| &status.last_run_by) {
            None => LastHolder::Nobody,
            Some(by) if by.as_deref() == Some(self.locks.replica()) => LastHolder::Me,
            Some(_) => LastHolder::Another,
        };
        let hold = match self.locks.acquire(&owner, last).instrument(info_span!("acquire")).await {
            Ok(Acquired::Hold(hold)) => {
                self.metrics.acquisition("acquired");
                hold
            }
            Ok(Acquired::Busy { retry_in, holder }) => {
                self.metrics.acquisition("busy");
                return Ok(Ran::Busy { retry_in, holder });
            }
            Ok(Acquired::Leftover(retry_in)) => {
                self.metrics.acquisition("busy");
                let lease = format!("Lease {}/{}", owner.namespace, owner.lease_name());
                self.report_waiting(&key, cache, watched.metadata.as_deref(), &lease).await?;
                return Ok(Ran::Busy { retry_in, holder: None });
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
        let ran = Box::pin(self.under_lock(&hold, &owner, cache, watched, cancel, &ends)).await;
        // Only then may another run begin: its own Job is known to be ending.
        ends.close();
        ends.wait().await;
        hold.release().instrument(info_span!("release")).await;
        ran
    }

    async fn under_lock(
        &self,
        hold: &Hold,
        owner: &OwnerRef,
        shown: &TokenCache,
        watched: &Watched,
        cancel: &CancellationToken,
        ends: &TaskTracker,
    ) -> Result<Ran, RunError> {
        let key = &owner.key();
        let progress = self.notes.with_known(key, |note| note.progress.clone()).flatten().unwrap_or_default();
        if !hold.is_uninterrupted() {
            self.notes.with(key, |note| note.ran_last = false);
        }
        let mut known = watched.metadata.as_deref();
        let shown_version = watched.shown.as_deref();
        for round in 1..=ROUNDS {
            let current = |cache: &TokenCache| {
                cache.metadata.uid.as_deref() == Some(&owner.uid) && cache.metadata.deletion_timestamp.is_none()
            };
            let seen_by_watch = known.take();
            let as_left = round == 1 && hold.is_uninterrupted() && self.is_as_left(key, shown, seen_by_watch);
            let live_cache;
            let cache = if as_left && current(shown) {
                shown
            } else {
                // Look again, live: who had the Lease before may have done all that was to do.
                let found = live(&self.client, key).instrument(info_span!("look again")).await?;
                let Some(found) = found.filter(current) else { return Ok(Ran::NotNeeded) };
                live_cache = found;
                &live_cache
            };
            let metadata = match seen_by_watch.filter(|watched| is_newest(cache, watched)) {
                Some(watched) => Some(watched.clone()),
                None => {
                    let found = live_secret(&self.client, &owner.namespace, cache.secret_name()).await?;
                    note_found(&self.notes, key, cache, shown_version, found.as_ref());
                    found
                }
            };
            let note = checked(&self.notes, key, cache).await;
            let mut seen = observed(cache, metadata.as_ref(), &note);
            if hold.is_uninterrupted() && note.may_doubt() && seen.is_told_failure() {
                // Nobody else can have had it.
                seen = seen.with_own_failure(note.retry);
            }
            let why = match decide(&seen, self.clock.now()) {
                Plan::Fetch(why) => why,
                // Found only now, since Secrets without the label are not watched. Else status says it already.
                Plan::Refuse(Reason::SecretNotOwned, message, _) if !is_reported(&seen) => {
                    let failure = Failure::new(Reason::SecretNotOwned, message);
                    self.report_refusal(key, cache, metadata.as_ref(), &failure).await?;
                    return Ok(Ran::Done);
                }
                _ => return Ok(Ran::NotNeeded),
            };
            let started = Instant::now();
            if let Err(failure) = self.rehearse(cache, owner, metadata.as_ref()).await {
                self.finish(key, &seen, &why, Err(failure), started, false).await?;
                return Ok(Ran::Done);
            }
            // A process that was frozen since is told so by the clock before any timer runs.
            let fetched = if hold.is_lost() {
                Err(lost())
            } else {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => return Ok(Ran::Cancelled),
                    () = hold.lost() => Err(lost()),
                    fetched = self.fetcher.fetch_leaving(cache, uid(metadata.as_ref()), ends, &progress)
                        .instrument(info_span!("fetch")) => fetched,
                }
            };
            let fetched_at = self.clock.now();
            let fetched = if hold.is_lost() { Err(lost()) } else { fetched };
            let result = match fetched {
                Ok(fetched) => {
                    let lifetime = Lifetime { fetched_at, expires_at: fetched.expires_at };
                    let write = async {
                        match self.write(cache, owner, metadata.as_ref(), &fetched, lifetime).await? {
                            Written::Done(written) => {
                                let first = (*written, lifetime);
                                self.bind(cache, owner, metadata.as_ref(), first, ends).await.map(Some)
                            }
                            Written::Conflict => Ok(None),
                        }
                    };
                    let write = write.instrument(info_span!("write"));
                    let written = tokio::select! {
                        written = write => written,
                        () = hold.lost() => Err(lost()),
                    };
                    match written {
                        Ok(Some(LastWrite { written, lifetime, replaced })) => {
                            let version = note_written(&self.notes, key, (shown_version, replaced), written, lifetime);
                            Ok((version, lifetime))
                        }
                        // The result is dropped and the plan made anew.
                        Ok(None) if round < ROUNDS => {
                            tracing::info!(
                                namespace = key.0,
                                name = key.1,
                                "the Secret was changed during the run: starting over"
                            );
                            continue;
                        }
                        Ok(None) => Err(Failure::new(
                            Reason::WriteFailed,
                            format!(
                                "the Secret {}/{} keeps being changed by another client",
                                key.0,
                                cache.secret_name()
                            ),
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
                return Ok(Ran::Busy { retry_in: RETRY_LOST, holder: None });
            }
            self.finish(key, &seen, &why, result, started, lost).await?;
            return Ok(Ran::Done);
        }
        Ok(Ran::Busy { retry_in: RETRY_LOST, holder: None })
    }

    /// Whether a TokenCache and its Secret are shown by the watch as this process's last run left them, or as one that
    /// never ran. Where nobody has held the Lease since, no other run can have been, and a live look at the TokenCache
    /// would find nothing that a watch does not bring.
    fn is_as_left(&self, key: &ObjectKey, shown: &TokenCache, watched: Option<&ObjectMeta>) -> bool {
        let (written, reported) = self.notes.with(key, |note| {
            let version = note.exact.as_ref().map(|(version, _)| version.clone());
            (version, note.reported.map(|(runs, _)| runs))
        });
        let runs = shown.runs();
        match watched {
            None => written.is_none() && reported.unwrap_or(runs) == 0,
            Some(watched) => {
                written.is_some()
                    && written == watched.resource_version
                    && is_newest(shown, watched)
                    && reported == Some(runs)
            }
        }
    }

    /// After a value could not be written, the next one is not fetched before it can be.
    async fn rehearse(&self, cache: &TokenCache, owner: &OwnerRef, found: Option<&ObjectMeta>) -> Result<(), Failure> {
        let status = cache.status.as_ref().filter(|status| status.failures > 0);
        let failure = status.and_then(|status| status.last_failure.as_ref());
        if failure.is_none_or(|failure| failure.reason != Reason::WriteFailed.as_str()) {
            return Ok(());
        }
        let now = self.clock.now();
        let lifetime = Lifetime { fetched_at: now, expires_at: ExpiresAt::At(now) };
        rehearse(&self.client, cache, owner, found, lifetime).await.map_err(|error| {
            let message = format!(
                "nothing was fetched, since the Secret {}/{} could not be written: {error}",
                owner.namespace,
                cache.secret_name()
            );
            Failure::new(Reason::WriteFailed, message)
        })
    }

    async fn write(
        &self,
        cache: &TokenCache,
        owner: &OwnerRef,
        found: Option<&ObjectMeta>,
        fetched: &Fetched,
        lifetime: Lifetime,
    ) -> Result<Written, Failure> {
        let data = render_in_turn(&cache.spec.target, fetched, &owner.name, &owner.namespace).await?;
        put(&self.client, cache, owner, found, data, lifetime).await.map_err(|error| {
            let name = cache.secret_name();
            Failure::new(Reason::WriteFailed, format!("the Secret {}/{name} was not written: {error}", owner.namespace))
        })
    }
}

fn uid(metadata: Option<&ObjectMeta>) -> Option<&str> {
    metadata.and_then(|found| found.uid.as_deref())
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
