//! Tends one TokenCache: looks at it, decides, acts, and says when to look again.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures::{FutureExt as _, channel::mpsc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{
    controller::Action,
    reflector::{ObjectRef, Store},
};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    Stop,
    api_outage::Recovery,
    concurrency::{Concurrency, slot_for},
    finalizer::finalize,
    store::Kept,
    store::Secrets,
    watch::{Listed, key},
};
use crate::{
    api::{TokenCache, reason::Reason},
    controller::preferred_replica,
    k8s::{
        ApiError, live_secret,
        object::{ObjectKey, OwnerRef},
    },
    reconcile::{
        desired_secret::{Integrity, SecretState, read},
        observe::{Watched, checked, checked_at_once, note_found, observed, verify},
        plan::{Observed, Plan, backoff, decide},
        run::{RunError, Runner},
        state::{Note, Turn, version},
        status::at_rest,
    },
    time::until,
};

/// The other replicas, shared by all that tend.
#[derive(Clone, Debug)]
pub(super) struct Peers(Arc<Mutex<preferred_replica::Peers>>);

impl Peers {
    pub(super) fn new(me: &str) -> Self {
        Self(Arc::new(Mutex::new(preferred_replica::Peers::new(me.to_owned()))))
    }

    pub(super) fn saw(&self, replica: &str, now: Instant) {
        self.0.lock().saw(replica, now);
    }

    fn rank(&self, key: &ObjectKey, now: Instant) -> u32 {
        self.0.lock().rank(&object(key), now)
    }

    pub(super) fn let_pass(&self, key: &ObjectKey) {
        self.0.lock().let_pass(&object(key));
    }
}

fn object(key: &ObjectKey) -> String {
    format!("{}/{}", key.0, key.1)
}

/// What tending needs.
pub(super) struct Context {
    pub(super) runner: Runner,
    pub(super) concurrency: Concurrency,
    pub(super) peers: Peers,
    pub(super) stop: Stop,
    pub(super) caches: Store<Kept>,
    pub(super) secrets: Secrets,
    pub(super) secrets_listed: Listed,
    /// The runs that go on or wait for their place. They are not waited for by what tends, since kube's controller polls
    /// all that it waits for whenever one of them moves.
    pub(super) runs: TaskTracker,
    /// Told of each TokenCache whose run has ended.
    pub(super) ended: mpsc::UnboundedSender<ObjectRef<Kept>>,
    /// Ends the pauses of all once the API server is back.
    pub(super) recovery: Recovery,
}

/// What became of a look at a TokenCache.
enum Look {
    /// All is done; when to look again.
    Done(Option<Duration>),
    /// It is not the moment; when to look again.
    Early(Duration),
    /// A run or a check of the spec goes on; its end is the next look.
    Running,
}

/// No wait is longer, so that a clock that was set is noticed.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// The longest pause after failures of the Kubernetes API. However many objects wait for it, they come to it in so many
/// looks and runs at once as may be. The first run that finds it back ends the pauses of all.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// After a run that others finished, or whose traces have not come through the watch yet.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long somebody else's write to a Secret waits to be explained by a status before its data is read.
const SETTLE: Duration = Duration::from_secs(1);
/// How long each replica that is not to go first lets the others go: longer than a busy one takes to come to it.
const GRACE: TimeDelta = TimeDelta::milliseconds(1500);
/// How often an object that stands in the way and is not watched is looked at.
pub(super) const RECHECK: Duration = Duration::from_secs(10);

/// Looks after one TokenCache. Errors are dealt with inside, since the backoff after them needs their number.
pub(super) async fn reconcile(object: Arc<Kept>, context: Arc<Context>) -> Result<Action, Infallible> {
    let key = key(&*object);
    // A panic would end the watch of all.
    let tended = AssertUnwindSafe(context.tend(&object, &key)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(namespace = key.0, name = key.1, "reconcile panicked (bug)");
        Ok(Look::Done(Some(RECHECK)))
    });
    let wake = match tended {
        Ok(Look::Running) => None,
        Ok(Look::Early(wait)) => Some(wait),
        Ok(Look::Done(wake)) => context.settled(&key, Ok(wake)),
        Err(error) => context.settled(&key, Err(error)),
    };
    Ok(wake.map_or_else(Action::await_change, |wait| Action::requeue(wait.min(LONGEST_WAIT))))
}

impl Context {
    /// Counts failures of the API in a row, and says when to look again after one.
    pub(super) fn settled(&self, key: &ObjectKey, tended: Result<Option<Duration>, RunError>) -> Option<Duration> {
        let notes = &self.runner.notes;
        match tended {
            Ok(wake) => {
                notes.with_known(key, |note| note.api_failures = 0);
                wake
            }
            Err(error) => {
                let failures = notes.with(key, |note| {
                    note.api_failures = note.api_failures.saturating_add(1);
                    note.api_failures
                });
                let failures = i32::try_from(failures).unwrap_or(i32::MAX);
                let wait = backoff(failures, Duration::from_secs(1), LONGEST_BACKOFF, rand::random(), None);
                tracing::warn!(
                    namespace = key.0, name = key.1, %error, again_in_ms = wait.as_millis(), "reconcile failed"
                );
                Some(wait)
            }
        }
    }

    async fn tend(self: &Arc<Self>, object: &Kept, key: &ObjectKey) -> Result<Look, RunError> {
        match self.runner.notes.with(key, Note::look) {
            Turn::Now => {}
            Turn::AfterRun => return Ok(Look::Running),
            Turn::In(wait) => return Ok(Look::Early(wait)),
        }
        let cache = &match object.read() {
            Ok(cache) => cache,
            Err(complaint) => {
                let report = Box::pin(self.report_undecodable(key, object.all_metadata(), &complaint));
                return Ok(Look::Done(report.await?));
            }
        };
        // Before the first list of the Secrets has come, every Secret would seem absent.
        tokio::select! {
            () = self.secrets_listed.wait() => {}
            () = self.stop.begin.cancelled() => return Ok(Look::Done(None)),
        }
        let formers = self.former_secrets(key, &cache.metadata, cache.secret_name());
        if finalize(&self.runner.client, cache, &formers).await? {
            return Ok(Look::Done(None));
        }
        self.runner.notes.with_known(key, |note| note.complain(None));
        let Some(note) = self.checked(key, cache) else { return Ok(Look::Running) };
        if note.is_ahead_of(cache.runs()) {
            return Ok(Look::Early(LOOK_AGAIN));
        }
        self.decide_and_act(key, cache, note).await
    }

    /// Decides by what is known of a TokenCache that has been read and checked, and does it.
    async fn decide_and_act(
        self: &Arc<Self>,
        key: &ObjectKey,
        cache: &TokenCache,
        mut note: Note,
    ) -> Result<Look, RunError> {
        let mut watched = self.watched(key, cache, &note);
        self.meet(key, cache, &mut note);
        let settle = self.verify(key, cache, &watched, &mut note).await?;
        let recheck = self.recheck(key, cache, watched.metadata.as_deref(), &mut note).await?;
        self.doubt(key, cache, watched.metadata.as_deref(), &mut note).await;
        let now = self.runner.clock.now();
        let mut plan = decide(&observed(cache, watched.metadata.as_deref(), &note), now);
        let mut removal = None;
        // What the watch has not brought yet must not be reported as if it were gone or changed.
        if settle.is_none() && !matches!(plan, Plan::Fetch(_)) {
            let before = version(watched.metadata.as_deref()).map(str::to_owned);
            if self.confirm(key, cache, &note, &mut watched, |seen| at_rest(seen, now)).await? {
                return Ok(Look::Early(Duration::ZERO));
            }
            removal = self.remove_expired(key, cache, &note, &mut watched, now).await;
            if version(watched.metadata.as_deref()) != before.as_deref() {
                plan = decide(&observed(cache, watched.metadata.as_deref(), &note), now);
            }
        }
        let seen = observed(cache, watched.metadata.as_deref(), &note);
        let untrue = self.untrue(key, &seen);
        if !matches!(plan, Plan::Fetch(_)) {
            self.runner.notes.with(key, |note| (note.due_since, note.in_vain) = (None, 0));
        }
        let wake = match plan {
            Plan::Fetch(why) => match self.turn(key, &seen, &note) {
                None => {
                    tracing::debug!(namespace = key.0, name = key.1, %why, "a fetch is due");
                    self.begin(key, cache, &seen);
                    return Ok(Look::Running);
                }
                // Another replica is at it, or goes first; a restart waits for the value that it brings.
                Some(wait) => {
                    let left = untrue.filter(|left| !left.is_zero());
                    if untrue != left {
                        self.report_meanwhile(key).await?;
                    }
                    let sooner = [Some(wait), settle, recheck, removal, left, self.until_expiry(&seen, now)];
                    return Ok(Look::Early(sooner.into_iter().flatten().min().unwrap_or(wait)));
                }
            },
            Plan::Sleep(at) | Plan::Refuse(_, _, at) => {
                if settle.is_none() {
                    self.runner.rest(key, &seen).await?;
                }
                at.map(|at| until(at, now))
            }
        };
        let former = self.remove_former_secrets(key, cache, &seen).await?;
        let restarts = self.restarts(key, cache, &seen).await;
        let expiry = self.until_expiry(&seen, now);
        Ok(Look::Done([wake, settle, recheck, removal, expiry, former, restarts].into_iter().flatten().min()))
    }

    /// The notes on a TokenCache whose spec is checked. `None` while it is being checked, which has the object looked at
    /// when it is done: compiling expressions takes a while, and looks are few.
    fn checked(self: &Arc<Self>, key: &ObjectKey, cache: &TokenCache) -> Option<Note> {
        let notes = &self.runner.notes;
        if let Some(note) = checked_at_once(notes, key, cache) {
            return Some(note);
        }
        let is_begun = notes.with(key, |note| std::mem::replace(&mut note.checking, true));
        if !is_begun {
            let (context, key, cache) = (self.clone(), key.clone(), cache.clone());
            tokio::spawn(async move {
                checked(&context.runner.notes, &key, &cache).await;
                context.runner.notes.with_known(&key, |note| note.checking = false);
                // Nobody listens any more only when the controller ends.
                let _ = context.ended.unbounded_send(at(&key));
            });
        }
        None
    }

    /// How long a value that was valid `then` still is.
    pub(super) fn until_expiry(&self, seen: &Observed<'_>, then: DateTime<Utc>) -> Option<Duration> {
        let expiry = seen.lifetime().and_then(|lifetime| lifetime.expires_at.moment()).filter(|moment| *moment > then);
        expiry.map(|moment| until(moment, self.runner.clock.now()))
    }

    /// What is known of the Secret: as the watch has it, or as this process wrote or read it.
    pub(super) fn watched(&self, key: &ObjectKey, cache: &TokenCache, note: &Note) -> Watched {
        let shown = self.secrets.get(&(key.0.clone(), cache.secret_name().to_owned())).map(Arc::new);
        let shown_version = version(shown.as_deref()).map(Into::into);
        Watched { metadata: note.newest(cache.secret_name(), shown), shown: shown_version }
    }

    /// A Secret that another client wrote to is read once and compared, unless a status explains the write first.
    async fn verify(
        &self,
        key: &ObjectKey,
        cache: &TokenCache,
        watched: &Watched,
        note: &mut Note,
    ) -> Result<Option<Duration>, ApiError> {
        let written = cache.status.as_ref().and_then(|status| status.secret_resource_version.as_ref());
        let stored = match observed(cache, watched.metadata.as_deref(), note).secret {
            SecretState::Owned(stored) => stored,
            SecretState::Absent if written.is_some() => {
                let since = self.runner.notes.with(key, |note| *note.absent.get_or_insert_with(Instant::now));
                return Ok(SETTLE.checked_sub(since.elapsed()).filter(|left| !left.is_zero()));
            }
            SecretState::Absent | SecretState::Leftover | SecretState::Foreign(_) => {
                self.runner.notes.with(key, |note| note.absent = None);
                return Ok(None);
            }
        };
        self.runner.notes.with(key, |note| note.absent = None);
        if stored.integrity != Integrity::Unverified {
            return Ok(None);
        }
        let version = stored.resource_version;
        let waiting = note.unverified.as_deref().filter(|(waiting, _)| *waiting == version);
        let since = waiting.map_or_else(Instant::now, |(_, since)| *since);
        let waited = since.elapsed();
        if waited < SETTLE {
            self.runner.notes.with(key, |note| note.unverified = Some(Box::new((version, since))));
            return Ok(Some(SETTLE - waited));
        }
        let name = cache.secret_name();
        let (found, verdict) = verify(&self.runner.client, &key.0, name).await?.unzip();
        let read = crate::reconcile::state::version(found.as_ref()).map(str::to_owned);
        let is_current = read.as_ref() == Some(&version);
        if !is_current {
            note_found(&self.runner.notes, key, cache, watched.shown.as_deref(), found.as_ref());
        }
        *note = self.runner.notes.with(key, |note| {
            note.verified = read.zip(verdict);
            note.clone()
        });
        // Else the watch is behind.
        Ok((!is_current).then_some(LOOK_AGAIN))
    }

    /// What a process finds refused when it first meets an object, it tries once: what stood in the way may have changed
    /// while nobody watched.
    fn meet(&self, key: &ObjectKey, cache: &TokenCache, note: &mut Note) {
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
        key: &ObjectKey,
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
            Some((Reason::LeaseNotOwned, _)) => self.runner.locks.is_foreign(&OwnerRef::of(cache)).await?,
            _ => return Ok(None),
        };
        if stands {
            return Ok(Some(RECHECK));
        }
        let runs = cache.runs();
        *note = self.runner.notes.with(key, |note| {
            note.unblocked = Some(runs);
            note.clone()
        });
        Ok(None)
    }

    /// When to look again, where a run is not to begin now: another replica is at it, or is to go first.
    fn turn(&self, key: &ObjectKey, seen: &Observed<'_>, note: &Note) -> Option<Duration> {
        let now = Instant::now();
        let due_since = self.runner.notes.with(key, |note| *note.due_since.get_or_insert(now));
        let runs = seen.cache.runs();
        let has_slot = || {
            let (work, request) = slot_for(&key.0, &seen.cache.spec);
            self.concurrency.has_slot(work, &request)
        };
        note.is_busy_for(runs, now).or_else(|| {
            preferred_replica::lets_go_first(
                self.peers.rank(key, now),
                grace(seen),
                now.duration_since(due_since),
                has_slot,
            )
        })
    }
}

pub(super) fn at((namespace, name): &ObjectKey) -> ObjectRef<Kept> {
    ObjectRef::new(name).within(namespace)
}

/// How long each replica that is not to go first lets the others go; short where the value lives short.
fn grace(seen: &Observed<'_>) -> Duration {
    let length = seen
        .lifetime()
        .and_then(|lifetime| lifetime.expires_at.moment().map(|end| end.signed_duration_since(lifetime.fetched_at)));
    length.map_or(GRACE, |length| (length / 10).clamp(TimeDelta::zero(), GRACE)).to_std().unwrap_or_default()
}
