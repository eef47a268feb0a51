//! Tends one TokenCache: looks at it, decides, acts, and says when to look again.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use futures::FutureExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{
    controller::Action,
    reflector::{ObjectRef, Store},
};
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Stop,
    finalize::finalize,
    watch::{Guarded, SecretMeta, key},
};
use crate::{
    api::TokenCache,
    fetch::destination,
    limits::Limits,
    notes::{Key, Note},
    observe::{ApiError, checked, live_secret, observed, verify},
    peers,
    plan::{Observed, Plan, Why, backoff, decide},
    reason::Reason,
    run::{Ran, RunError, Runner, owner},
    secret::{Integrity, SecretState, read},
    status::{READY, at_expiry, condition},
    store::remove,
    time::until,
};

/// The other replicas, shared by all that tend.
#[derive(Clone, Debug)]
pub(super) struct Peers(Arc<Mutex<peers::Peers>>);

impl Peers {
    pub(super) fn new(me: &str) -> Self {
        Self(Arc::new(Mutex::new(peers::Peers::new(me.to_owned()))))
    }

    pub(super) fn saw(&self, replica: &str, now: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).saw(replica, now);
    }

    fn rank(&self, key: &Key, now: Instant) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).rank(&object(key), now)
    }

    fn let_pass(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).let_pass(&object(key));
    }
}

fn object(key: &Key) -> String {
    format!("{}/{}", key.0, key.1)
}

/// What tending needs.
pub(super) struct Context {
    pub(super) runner: Runner,
    pub(super) limits: Limits,
    pub(super) peers: Peers,
    pub(super) stop: Stop,
    pub(super) caches: Store<Guarded>,
    pub(super) secrets: Store<SecretMeta>,
    /// Told when the Secrets have been listed once.
    pub(super) secrets_synced: CancellationToken,
}

/// No wait is longer, so that a clock that was set is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// After a run that others finished, or whose traces have not come through the watch yet.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long somebody else's write to a Secret waits to be explained by a status before its data is read.
const SETTLE: Duration = Duration::from_secs(1);
/// How often a Lease that somebody else holds is looked at.
const BUSY: Duration = Duration::from_secs(5);
/// How often an object that stands in the way and is not watched is looked at.
const RECHECK: Duration = Duration::from_secs(10);
/// How long a first run may take before status says that it goes on.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looks after one TokenCache. Errors are dealt with inside, since the backoff after them needs their number.
pub(super) async fn reconcile(object: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Infallible> {
    let key = key(&*object);
    let notes = &context.runner.notes;
    // A panic would end the watch of all.
    let tended = AssertUnwindSafe(context.tend(&object, &key)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(namespace = key.0, name = key.1, "a fault of this program kept the object from being tended");
        Ok(Some(RECHECK))
    });
    let wake = match tended {
        Ok(wake) => {
            notes.with(&key, |note| note.api_failures = 0);
            wake
        }
        Err(error) => {
            let failures = notes.with(&key, |note| {
                note.api_failures = note.api_failures.saturating_add(1);
                note.api_failures
            });
            let failures = i32::try_from(failures).unwrap_or(i32::MAX);
            let wait = backoff(failures, Duration::from_secs(1), Duration::from_secs(60), rand::random(), None);
            tracing::warn!(namespace = key.0, name = key.1, %error, again_in_ms = wait.as_millis(), "not tended");
            Some(wait)
        }
    };
    Ok(wake.map_or_else(Action::await_change, |wait| Action::requeue(wait.min(LONGEST_WAIT))))
}

impl Context {
    async fn tend(&self, object: &Guarded, key: &Key) -> Result<Option<Duration>, RunError> {
        let cache = match &object.0 {
            Ok(cache) => cache,
            Err(undecodable) => return Ok(self.report_undecodable(key, object, &undecodable.error).await?),
        };
        // Before the first list of the Secrets has come, every Secret would seem absent.
        tokio::select! {
            () = self.secrets_synced.cancelled() => {}
            () = self.stop.begin.cancelled() => return Ok(None),
        }
        if finalize(&self.runner.client, cache).await? {
            return Ok(None);
        }
        let mut note = checked(&self.runner.notes, key, cache);
        if note.is_ahead_of(cache.status.as_ref().map_or(0, |status| status.runs)) {
            return Ok(Some(LOOK_AGAIN));
        }
        let metadata = self.secret_metadata(key, cache, &note);
        self.meet(key, cache, &mut note);
        let settle = self.verify(key, cache, metadata.as_deref(), &mut note).await?;
        let recheck = self.recheck(key, cache, metadata.as_deref(), &mut note).await?;
        let seen = observed(cache, metadata.as_deref(), &note);
        let now = self.runner.clock.now();
        let plan = decide(&seen, now);
        let fetching = matches!(plan, Plan::Fetch(_));
        if !fetching {
            self.runner.notes.with(key, |note| note.due_since = None);
        }
        let wake = match plan {
            Plan::Fetch(why) => self.fetch(key, cache, &seen, metadata.clone(), &why).await?,
            Plan::Sleep(at) => {
                // What the watch has not brought yet must not be reported as if it were gone or changed.
                if settle.is_none() {
                    self.runner.rest(key, &seen).await?;
                }
                at.map(|at| until(at, now))
            }
            Plan::Refuse(..) => {
                if settle.is_none() {
                    self.runner.rest(key, &seen).await?;
                }
                None
            }
            Plan::RemoveExpired(stored) => {
                remove(&self.runner.client, &key.0, cache.secret_name(), &stored).await?;
                self.runner.rest(key, &Observed { secret: SecretState::Absent, ..seen.clone() }).await?;
                Some(LOOK_AGAIN)
            }
        };
        let expiry = seen.lifetime().and_then(|lifetime| lifetime.expires_at.moment()).filter(|moment| *moment > now);
        let expiry = expiry.map(|moment| until(moment, self.runner.clock.now()));
        // What was fetched just now comes through the watch first.
        let restarts = if fetching { None } else { self.restarts(key, cache, &seen).await };
        Ok([wake, settle, recheck, expiry, restarts].into_iter().flatten().min())
    }

    /// The Secret's metadata, as the watch has it or as this process wrote it.
    fn secret_metadata(&self, key: &Key, cache: &TokenCache, note: &Note) -> Option<Arc<ObjectMeta>> {
        let at = ObjectRef::<SecretMeta>::new(cache.secret_name()).within(&key.0);
        let watched = self.secrets.get(&at).map(|secret| Arc::new(secret.metadata.clone()));
        note.newest(watched).filter(|metadata| metadata.name.as_deref() == Some(cache.secret_name()))
    }

    /// A Secret that another hand wrote to is read once and compared, unless a status explains the write first.
    async fn verify(
        &self,
        key: &Key,
        cache: &TokenCache,
        metadata: Option<&ObjectMeta>,
        note: &mut Note,
    ) -> Result<Option<Duration>, ApiError> {
        let written = cache.status.as_ref().and_then(|status| status.secret_resource_version.as_ref());
        let stored = match observed(cache, metadata, note).secret {
            SecretState::Owned(stored) => stored,
            SecretState::Absent if written.is_some() => {
                let since = self.runner.notes.with(key, |note| *note.absent.get_or_insert_with(Instant::now));
                return Ok(SETTLE.checked_sub(since.elapsed()).filter(|left| !left.is_zero()));
            }
            SecretState::Absent | SecretState::Foreign(_) => return Ok(None),
        };
        self.runner.notes.with(key, |note| note.absent = None);
        if stored.integrity != Integrity::Unverified {
            return Ok(None);
        }
        let version = stored.resource_version;
        let since = match &note.unverified {
            Some((waiting, since)) if *waiting == version => *since,
            _ => Instant::now(),
        };
        let waited = since.elapsed();
        if waited < SETTLE {
            self.runner.notes.with(key, |note| note.unverified = Some((version, since)));
            return Ok(Some(SETTLE - waited));
        }
        let verified = verify(&self.runner.client, &key.0, cache.secret_name()).await?;
        let is_current = verified.as_ref().is_some_and(|(read, _)| *read == version);
        *note = self.runner.notes.with(key, |note| {
            note.verified = verified;
            note.clone()
        });
        // Else the watch is behind.
        Ok((!is_current).then_some(LOOK_AGAIN))
    }

    /// What a process finds refused when it first meets an object, it tries once: what stood in the way may have changed
    /// while nobody watched.
    fn meet(&self, key: &Key, cache: &TokenCache, note: &mut Note) {
        if note.met {
            return;
        }
        let status = cache.status.as_ref().filter(|status| status.failures > 0);
        // The address rules are this process's own, and may not be those of the one before.
        let may_pass = |reason: &str| Reason::is_of_source(reason) || reason == Reason::AddressNotAllowed.as_str();
        let waiting =
            status.filter(|status| status.last_failure.as_ref().is_some_and(|failure| may_pass(&failure.reason)));
        *note = self.runner.notes.with(key, |note| {
            note.met = true;
            note.unblocked = waiting.map(|status| status.runs).or(note.unblocked);
            note.clone()
        });
    }

    /// Looks whether a Secret or Lease that is not watched still stands in the way.
    async fn recheck(
        &self,
        key: &Key,
        cache: &TokenCache,
        metadata: Option<&ObjectMeta>,
        note: &mut Note,
    ) -> Result<Option<Duration>, RunError> {
        let stands = match observed(cache, metadata, note).refusal() {
            _ if cache.spec.suspend => return Ok(None),
            Some((Reason::SecretNotOwned, _)) if metadata.is_none() => {
                let metadata = live_secret(&self.runner.client, &key.0, cache.secret_name()).await?;
                matches!(read(cache, metadata.as_ref(), None), SecretState::Foreign(_))
            }
            Some((Reason::LeaseNotOwned, _)) => self.runner.locks.is_foreign(&owner(cache)).await?,
            _ => return Ok(None),
        };
        if stands {
            return Ok(Some(RECHECK));
        }
        let runs = cache.status.as_ref().map_or(0, |status| status.runs);
        *note = self.runner.notes.with(key, |note| {
            note.unblocked = Some(runs);
            note.clone()
        });
        Ok(None)
    }

    /// Runs, unless other replicas are to go first.
    async fn fetch(
        &self,
        key: &Key,
        cache: &TokenCache,
        seen: &Observed<'_>,
        metadata: Option<Arc<ObjectMeta>>,
        why: &Why,
    ) -> Result<Option<Duration>, RunError> {
        let now = Instant::now();
        let due_since = self.runner.notes.with(key, |note| *note.due_since.get_or_insert(now));
        let first = grace(seen).saturating_mul(self.peers.rank(key, now));
        let waited = now.duration_since(due_since);
        if waited < first {
            return Ok(Some(first - waited));
        }
        tracing::debug!(namespace = key.0, name = key.1, %why, "a fetch is due");
        let ran = self.run(key, cache, seen, metadata).await?;
        if !matches!(ran, Ran::Busy { .. }) {
            self.runner.notes.with(key, |note| note.due_since = None);
        }
        Ok(match ran {
            // The watch brings what was reported, and with it the next look; this is for when it does not.
            Ran::Done => {
                // Else each that is gone would cost every object its grace, for as long as it is remembered.
                if !first.is_zero() {
                    self.peers.let_pass(key);
                }
                Some(LOOK_AGAIN)
            }
            Ran::NotNeeded => Some(LOOK_AGAIN),
            Ran::Busy { retry_in, holder } => {
                tracing::debug!(namespace = key.0, name = key.1, holder, "somebody else runs it");
                if let Some((process, _)) = holder.rsplit_once('_')
                    && let Some((replica, _)) = process.rsplit_once('_')
                {
                    self.peers.saw(replica, Instant::now());
                }
                // Looked at in between, so that a renewal is seen when it comes and not a duration later.
                Some(retry_in.min(BUSY))
            }
            Ran::Cancelled => None,
        })
    }

    /// Runs in a task of its own. Meanwhile status says when the old value expires, and that a long first run goes on.
    async fn run(
        &self,
        key: &Key,
        cache: &TokenCache,
        seen: &Observed<'_>,
        metadata: Option<Arc<ObjectMeta>>,
    ) -> Result<Ran, RunError> {
        let cancel = self.stop.cancel.child_token();
        self.runner.notes.with(key, |note| note.cancel = Some(cancel.clone()));
        let (runner, limits, stop) = (self.runner.clone(), self.limits.clone(), self.stop.begin.clone());
        let (cache, fresh) = (cache.clone(), condition(cache.status.as_ref(), READY).is_none());
        let mut running = AbortOnDropHandle::new(tokio::spawn(async move {
            let place = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(Ran::Cancelled),
                () = cancel.cancelled() => return Ok(Ran::Cancelled),
                place = limits.place(destination(&cache.spec)) => place,
            };
            let ran = runner.run(&cache, metadata.as_deref(), &cancel).await;
            drop(place);
            ran
        }));
        let expiry = seen.lifetime().and_then(|lifetime| lifetime.expires_at.moment());
        let now = self.runner.clock.now();
        let mut moments: Vec<Duration> =
            expiry.filter(|moment| *moment > now).map(|moment| until(moment, now)).into_iter().collect();
        if fresh {
            moments.push(PATIENCE);
        }
        moments.sort_unstable();
        let started = Instant::now();
        let mut moments = moments.into_iter();
        let mut next = moments.next();
        let ran = loop {
            let wait = next.map(|moment| moment.saturating_sub(started.elapsed()));
            tokio::select! {
                ran = &mut running => break ran,
                () = sleep(wait.unwrap_or(LONGEST_WAIT)), if wait.is_some() => {
                    next = moments.next();
                    if let Err(error) = self.report_meanwhile(key).await {
                        tracing::debug!(namespace = key.0, name = key.1, %error, "not reported during a run");
                    }
                }
            }
        };
        self.runner.notes.with(key, |note| note.cancel = None);
        match ran {
            Ok(ran) => ran,
            Err(panicked) => {
                tracing::error!(namespace = key.0, name = key.1, error = %panicked, "a run ended unexpectedly");
                Ok(Ran::Busy { retry_in: RECHECK, holder: String::new() })
            }
        }
    }

    /// Brings status in line with the time while a run goes on, and removes an expired Secret if it is to go.
    async fn report_meanwhile(&self, key: &Key) -> Result<(), ApiError> {
        let at = ObjectRef::<Guarded>::new(&key.1).within(&key.0);
        let Some(object) = self.caches.get(&at) else { return Ok(()) };
        let Ok(cache) = &object.0 else { return Ok(()) };
        let note = checked(&self.runner.notes, key, cache);
        let metadata = self.secret_metadata(key, cache, &note);
        let mut seen = observed(cache, metadata.as_deref(), &note);
        let now = self.runner.clock.now();
        if let Plan::RemoveExpired(stored) = decide(&seen, now) {
            remove(&self.runner.client, &key.0, cache.secret_name(), &stored).await?;
            seen.secret = SecretState::Absent;
        }
        let runs = cache.status.as_ref().map_or(0, |status| status.runs);
        let wanted = |cache: &TokenCache| {
            let current = cache.status.as_ref().map_or(0, |status| status.runs);
            (current == runs).then(|| at_expiry(&Observed { cache, ..seen.clone() }, now))
        };
        self.runner.reporter.report(key, cache, wanted).await.map(|_| ())
    }
}

/// How long each replica that is not to go first lets the others go; short where the value lives short.
fn grace(seen: &Observed<'_>) -> Duration {
    let length = seen
        .lifetime()
        .and_then(|lifetime| lifetime.expires_at.moment().map(|end| end.signed_duration_since(lifetime.fetched_at)));
    let second = TimeDelta::seconds(1);
    length.map_or(second, |length| (length / 10).clamp(TimeDelta::zero(), second)).to_std().unwrap_or_default()
}
