//! The story of one run: take the Lease, look again, fetch, write, report, release.

mod bind;

use std::{borrow::Cow, time::Duration};

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
        state::{Note, Notes},
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
pub enum RunOutcome {
    /// A fetch succeeded or failed, and was reported.
    Finished,
    /// There was nothing to do any more, or the TokenCache is gone.
    NotNeeded,
    /// The Lease is held by another run.
    HeldBy {
        /// Who holds it, if that was seen: nobody where others took it first each time.
        holder: Option<String>,
        /// The Lease can be taken after this time, if nothing happens before.
        retry_in: Duration,
    },
    /// An object of a deleted TokenCache of the same name is there until Kubernetes' garbage collector removes it.
    AwaitsGarbageCollection {
        /// When to check again.
        retry_in: Duration,
    },
    /// The Lease was lost to another run, which reports instead of this one.
    HoldLost,
    /// It was cancelled.
    Cancelled,
    /// It panicked, which is a bug.
    Panicked,
}

impl RunOutcome {
    /// When to try again, where the run did not come to a result.
    #[must_use]
    pub fn retry_in(&self) -> Option<Duration> {
        match self {
            Self::HeldBy { retry_in, .. } | Self::AwaitsGarbageCollection { retry_in } => Some(*retry_in),
            Self::HoldLost => Some(RETRY_LOST),
            Self::Panicked => Some(RETRY_PANICKED),
            Self::Finished | Self::NotNeeded | Self::Cancelled => None,
        }
    }
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

/// When to check again after the Lease was lost to another run.
const RETRY_LOST: Duration = Duration::from_secs(1);
/// When to try again after a panic.
const RETRY_PANICKED: Duration = Duration::from_secs(5);

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
    ) -> Result<RunOutcome, RunError> {
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
                return Ok(RunOutcome::HeldBy { holder, retry_in });
            }
            Ok(Acquired::Leftover(retry_in)) => {
                self.metrics.acquisition("busy");
                let lease = format!("Lease {}/{}", owner.namespace, owner.lease_name());
                self.report_waiting(&key, cache, watched.metadata.as_deref(), &lease).await?;
                return Ok(RunOutcome::AwaitsGarbageCollection { retry_in });
            }
            Err(error @ LockError::NotOwned { .. }) => {
                self.metrics.acquisition("error");
                let failure = Failure::new(Reason::LeaseNotOwned, error.to_string());
                let metadata = live_secret(&self.client, &owner.namespace, cache.secret_name()).await?;
                self.report_refusal(&key, cache, metadata.as_ref(), &failure).await?;
                return Ok(RunOutcome::Finished);
            }
            Err(error) => {
                self.metrics.acquisition("error");
                return Err(error.into());
            }
        };
        let ends = TaskTracker::new();
        let locked = LockedRun {
            runner: self,
            hold: &hold,
            owner: &owner,
            key: &key,
            shown: cache,
            shown_version: watched.shown.as_deref(),
            cancel,
            ends: &ends,
        };
        let outcome = Box::pin(locked.run(watched.metadata.as_deref())).await;
        // Another run may begin only when the end of this one's Job is known.
        ends.close();
        ends.wait().await;
        hold.release().instrument(info_span!("release")).await;
        outcome
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
}

/// A run that holds its Lease.
struct LockedRun<'a> {
    runner: &'a Runner,
    hold: &'a Hold,
    owner: &'a OwnerRef,
    key: &'a ObjectKey,
    /// The TokenCache as the watch shows it.
    shown: &'a TokenCache,
    /// The `resourceVersion` of the Secret that the watch shows.
    shown_version: Option<&'a str>,
    cancel: &'a CancellationToken,
    /// What still has to end after the run, such as a Job.
    ends: &'a TaskTracker,
}

/// What a run decides by: read live, but for what cannot have changed since the watch showed it.
struct Current<'a> {
    cache: Cow<'a, TokenCache>,
    metadata: Option<ObjectMeta>,
    note: Note,
}

impl Current<'_> {
    /// With what is known while the Lease is held.
    fn observed(&self, hold: &Hold) -> Observed<'_> {
        let seen = observed(&self.cache, self.metadata.as_ref(), &self.note);
        if hold.is_uninterrupted() && self.note.may_doubt() && seen.is_told_failure() {
            // No other replica can have had the failure.
            return seen.with_own_failure(self.note.retry);
        }
        seen
    }
}

impl<'a> LockedRun<'a> {
    /// Checks again, fetches, writes and reports. Starts over where another client changed the Secret meanwhile.
    async fn run(&self, watched: Option<&ObjectMeta>) -> Result<RunOutcome, RunError> {
        let Runner { notes, clock, .. } = self.runner;
        if !self.hold.is_uninterrupted() {
            notes.with(self.key, |note| note.ran_last = false);
        }
        let mut watched = watched;
        let mut rounds_left = ROUNDS;
        loop {
            let first = rounds_left == ROUNDS;
            rounds_left = rounds_left.saturating_sub(1);
            let Some(current) = self.check_again(watched.take(), first).await? else {
                return Ok(RunOutcome::NotNeeded);
            };
            let seen = current.observed(self.hold);
            let why = match decide(&seen, clock.now()) {
                Plan::Fetch(why) => why,
                // Found only now, since Secrets without the label are not watched. Otherwise status has it already.
                Plan::Refuse(Reason::SecretNotOwned, message, _) if !is_reported(&seen) => {
                    let failure = Failure::new(Reason::SecretNotOwned, message);
                    self.runner.report_refusal(self.key, &current.cache, current.metadata.as_ref(), &failure).await?;
                    return Ok(RunOutcome::Finished);
                }
                _ => return Ok(RunOutcome::NotNeeded),
            };
            let started = Instant::now();
            let result = match self.fetch_and_write(&current).await {
                Step::Done(result) => result,
                Step::Cancelled => return Ok(RunOutcome::Cancelled),
                Step::Conflict if rounds_left > 0 => {
                    tracing::info!(
                        namespace = self.key.0,
                        name = self.key.1,
                        "the Secret was changed during the fetch, starting over"
                    );
                    continue;
                }
                Step::Conflict => Err(contended(self.key, &current.cache)),
            };
            // After the Lease was lost to another run, that one reports.
            let lost = matches!(&result, Err(failure) if failure.reason == Reason::LockLost);
            if lost && !self.hold.is_still_mine().await {
                tracing::warn!(
                    namespace = self.key.0,
                    name = self.key.1,
                    "the run was cancelled, since its Lease was lost"
                );
                return Ok(RunOutcome::HoldLost);
            }
            self.runner.finish(self.key, &seen, &why, result, started, lost).await?;
            return Ok(RunOutcome::Finished);
        }
    }

    /// Reads what to decide by; `None` if the TokenCache is gone. Whoever held the Lease before may have done all that was
    /// to do, so it is read live, unless nobody can have held it.
    async fn check_again(&self, watched: Option<&ObjectMeta>, first: bool) -> Result<Option<Current<'a>>, RunError> {
        let Self { runner, owner, key, shown, .. } = *self;
        let is_current = |cache: &TokenCache| {
            cache.metadata.uid.as_deref() == Some(&owner.uid) && cache.metadata.deletion_timestamp.is_none()
        };
        let as_left = first && self.hold.is_uninterrupted() && runner.is_as_left(key, shown, watched);
        let cache = if as_left && is_current(shown) {
            Cow::Borrowed(shown)
        } else {
            let found = live(&runner.client, key).instrument(info_span!("look again")).await?;
            let Some(found) = found.filter(is_current) else { return Ok(None) };
            Cow::Owned(found)
        };
        let metadata = match watched.filter(|watched| is_newest(&cache, watched)) {
            Some(watched) => Some(watched.clone()),
            None => {
                let found = live_secret(&runner.client, &owner.namespace, cache.secret_name()).await?;
                note_found(&runner.notes, key, &cache, self.shown_version, found.as_ref());
                found
            }
        };
        let note = checked(&runner.notes, key, &cache).await;
        Ok(Some(Current { cache, metadata, note }))
    }

    async fn fetch_and_write(&self, current: &Current<'_>) -> Step {
        let Self { runner, owner, hold, .. } = *self;
        let (cache, metadata) = (&current.cache, current.metadata.as_ref());
        if let Err(failure) = runner.rehearse(cache, owner, metadata).await {
            return Step::Done(Err(failure));
        }
        let Some(fetched) = self.fetch(cache, metadata).await else { return Step::Cancelled };
        let fetched_at = runner.clock.now();
        let fetched = match fetched {
            _ if hold.is_lost() => return Step::Done(Err(lost())),
            Ok(fetched) => fetched,
            Err(failure) => return Step::Done(Err(failure)),
        };
        let lifetime = Lifetime { fetched_at, expires_at: fetched.expires_at };
        let write = self.write(cache, metadata, &fetched, lifetime).instrument(info_span!("write"));
        let written = tokio::select! {
            written = write => written,
            () = hold.lost() => Err(lost()),
        };
        match written {
            Ok(Some(LastWrite { written, lifetime, replaced })) => {
                let before = (self.shown_version, replaced);
                Step::Done(Ok((note_written(&runner.notes, self.key, before, written, lifetime), lifetime)))
            }
            Ok(None) => Step::Conflict,
            Err(failure) => Step::Done(Err(failure)),
        }
    }

    /// Fetches; `None` if that is cancelled.
    async fn fetch(&self, cache: &TokenCache, metadata: Option<&ObjectMeta>) -> Option<Result<Fetched, Failure>> {
        let Self { runner, key, .. } = *self;
        // A process that was frozen is told so by the clock before any timer runs.
        if self.hold.is_lost() {
            return Some(Err(lost()));
        }
        let progress = runner.notes.with_known(key, |note| note.progress.clone()).flatten().unwrap_or_default();
        let fetch = runner.fetcher.fetch_leaving(cache, uid(metadata), self.ends, &progress);
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => None,
            () = self.hold.lost() => Some(Err(lost())),
            fetched = fetch.instrument(info_span!("fetch")) => Some(fetched),
        }
    }

    /// Writes the Secret; `None` if another client has changed it since it was read.
    async fn write(
        &self,
        cache: &TokenCache,
        found: Option<&ObjectMeta>,
        fetched: &Fetched,
        lifetime: Lifetime,
    ) -> Result<Option<LastWrite>, Failure> {
        let Self { runner, owner, .. } = *self;
        let data = render_in_turn(&cache.spec.target, fetched, &owner.name, &owner.namespace).await?;
        let written = put(&runner.client, cache, owner, found, data, lifetime).await.map_err(|error| {
            let name = cache.secret_name();
            Failure::new(Reason::WriteFailed, format!("the Secret {}/{name} was not written: {error}", owner.namespace))
        })?;
        match written {
            Written::Done(written) => runner.bind(cache, owner, found, (*written, lifetime), self.ends).await.map(Some),
            Written::Conflict => Ok(None),
        }
    }
}

/// How far a round of a run came.
enum Step {
    /// To its end: with the Secret's `resourceVersion` and the lifetime, or a failure.
    Done(Result<(String, Lifetime), Failure>),
    /// The run was cancelled.
    Cancelled,
    /// Another client changed the Secret.
    Conflict,
}

fn contended(key: &ObjectKey, cache: &TokenCache) -> Failure {
    let message = format!(
        "Secret {}/{} is being modified by another client; gave up after {ROUNDS} attempts",
        key.0,
        cache.secret_name()
    );
    Failure::new(Reason::WriteFailed, message)
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
