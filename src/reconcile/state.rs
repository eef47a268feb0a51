//! What a process remembers of each TokenCache beyond what the cluster stores. All of it can be lost.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Invalid, reason::Reason},
    fetch::Progress,
    reconcile::{
        desired_secret::{Lifetime, Verdict},
        plan::backoff,
        source_change::SourceChange,
        throttle::Brake,
    },
};

/// Namespace and name.
pub type Key = (String, String);

/// The notes on one TokenCache. There are as many as there are TokenCaches, so what is rarely there is on the heap.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// UID of the TokenCache.
    pub uid: Option<String>,
    /// What is wrong with the spec of this generation.
    pub checked: Option<(i64, Option<Box<Invalid>>)>,
    /// Whether the spec is being checked, whose end has the object looked at.
    pub checking: bool,
    /// The exact lifetime of the value in the Secret of this `resourceVersion`.
    pub exact: Option<(String, Lifetime)>,
    /// The exact moment of the next attempt.
    pub retry: Option<DateTime<Utc>>,
    /// Why the last run of this process failed, if it did.
    pub failed: Option<Reason>,
    /// Whether nobody else has had the Lease between that run and the last time that this process had it.
    pub ran_last: bool,
    /// The Secret as this process wrote it or found it live, until the watch shows it.
    pub ahead: Option<Box<Ahead>>,
    /// `status.runs` as this process wrote it, and when; an object with less has not come through the watch yet.
    pub reported: Option<(i64, Instant)>,
    /// The same, where that run failed for what its source had read, and the reason.
    pub waiting: Option<(i64, Reason)>,
    /// What is known of the data of the Secret of this `resourceVersion`.
    pub verified: Option<(String, Verdict)>,
    /// Since when the Secret of this `resourceVersion` waits to be verified.
    pub unverified: Option<Box<(String, Instant)>>,
    /// `status.runs` when an object that stood in the way of the last run changed.
    pub unblocked: Option<i64>,
    /// When an object that it refers to changed last, but for refresh tokens that were written back.
    pub source_changed: Option<Instant>,
    /// When a refresh token was last written back to a Secret that it refers to.
    pub rotated: Option<Instant>,
    /// The `resourceVersion` of the TokenCache whose status tells a failure that this process has not had, and whether no
    /// other client can have had it either.
    pub doubted: Option<Box<(String, bool)>>,
    /// Whether this process has looked at it before.
    pub met: bool,
    /// Since when the Secret is missing although status speaks of one.
    pub absent: Option<Instant>,
    /// Since when status has said that there is a valid value, although there is none.
    pub untrue: Option<Instant>,
    /// Since when a fetch has been due here.
    pub due_since: Option<Instant>,
    /// `status.runs` when somebody else was found to run it, and until when that is believed.
    pub busy: Option<(i64, Instant)>,
    /// The workloads' restarts.
    pub rollout: Rollout,
    /// Failures in a row of the Kubernetes API.
    pub api_failures: u32,
    /// Ends the run that is going on, or waits for its place.
    pub cancel: Option<CancellationToken>,
    /// What the run that is going on waits for.
    pub progress: Option<Progress>,
    /// Notified of each change of a Secret of this TokenCache during that run.
    pub changed: Option<Arc<Notify>>,
    /// Whether something called for a look while the run went on.
    pub called: bool,
    /// What the look after a run's end is to wait for.
    pub pause: Option<Duration>,
    /// The complaint that was reported of an object that cannot be decoded.
    pub undecodable: Option<String>,
    /// The fetches that were done out of turn.
    pub brake: Option<Box<Brake>>,
    /// The shortest time between two fetches, the same for all.
    pub min_interval: TimeDelta,
    /// Runs in a row that found nothing to do, although the watch shows that there is.
    pub in_vain: u32,
    /// The Secret of this UID was to be removed: how often that failed in a row, and when it is tried again.
    pub removal: Option<Box<(String, u32, Instant)>>,
}

/// How far the restarts of a TokenCache's workloads are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// All are done for the value that changed at this moment, as this generation of the spec names them.
    pub done: Option<(DateTime<Utc>, i64)>,
    /// Since when a rollout that goes on is waited for.
    pub rolling: Option<Instant>,
    /// What could not be restarted, as it was told last.
    pub complaint: String,
}

/// A Secret as it was written or read live, which may not have come through the watch yet.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// Its name.
    pub name: String,
    /// As it was written or read; `None` where it was found to be gone.
    pub metadata: Option<Arc<ObjectMeta>>,
    /// The `resourceVersion` that the watch showed then, and the one that was replaced; `None` where there was none. The
    /// watch is behind while it shows one of them.
    pub older: [Option<String>; 2],
}

impl Ahead {
    fn is_ahead_of(&self, version: Option<&str>) -> bool {
        self.older.iter().any(|older| older.as_deref() == version)
    }
}

/// A Secret's `resourceVersion`.
pub fn version(metadata: Option<&ObjectMeta>) -> Option<&str> {
    metadata.and_then(|metadata| metadata.resource_version.as_deref())
}

/// How long the write of a status is expected to come through the watch; after that the watch is believed.
const WATCH_LAG: Duration = Duration::from_secs(5);

/// The wait after the first of several runs in a row that find nothing to do, and the longest. The watch brings what they
/// found, and with it the next look; this is for when it does not.
const IN_VAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The same for the removal of a Secret that is refused or does not come to its end.
const REMOVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Whether it is the moment to look at a TokenCache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is.
    Now,
    /// When the run that goes on has ended.
    AfterRun,
    /// After this time, or at the next change.
    In(Duration),
}

impl Note {
    /// Something calls for a look.
    pub fn look(&mut self) -> Turn {
        if self.waits_for_run() {
            return Turn::AfterRun;
        }
        self.pause.take().map_or(Turn::Now, Turn::In)
    }

    /// Whether a look that is called for waits for the end of a run, which then has the object looked at.
    ///
    /// Not by `self.called |= waits`: Rust 1.95 forgets what `waits` is, where it optimises (rust-lang/rust#158206).
    pub fn waits_for_run(&mut self) -> bool {
        if self.cancel.is_none() {
            return false;
        }
        self.called = true;
        true
    }

    /// Nothing of what was known holds any more, but that a run goes on.
    pub fn reset(&mut self, uid: Option<String>) {
        let (cancel, changed) = (self.cancel.take(), self.changed.take());
        let Self { called, min_interval, .. } = *self;
        *self = Self { uid, cancel, changed, called, min_interval, ..Self::default() };
    }

    /// The metadata of the Secret of this name: as this process wrote or read it, while the watch shows an older version.
    #[must_use]
    pub fn newest(&self, name: &str, shown: Option<Arc<ObjectMeta>>) -> Option<Arc<ObjectMeta>> {
        match &self.ahead {
            Some(ahead) if ahead.name == name && ahead.is_ahead_of(version(shown.as_deref())) => ahead.metadata.clone(),
            _ => shown,
        }
    }

    /// Takes notice of a Secret that came through the watch, without a `resourceVersion` when it was deleted.
    pub fn watched(&mut self, metadata: &ObjectMeta, resource_version: Option<&str>) {
        self.notify_run();
        // A TokenCache may own others: one of a former name, and the state of its job.
        let concerns = |ahead: &Ahead| Some(ahead.name.as_str()) == metadata.name.as_deref();
        let behind = |ahead: &Ahead| match resource_version {
            Some(_) => ahead.is_ahead_of(resource_version),
            // It was made anew since.
            None => ahead.metadata.as_deref().is_some_and(|newer| newer.uid != metadata.uid),
        };
        if self.ahead.as_deref().is_some_and(|ahead| concerns(ahead) && !behind(ahead)) {
            self.ahead = None;
        }
    }

    /// Notifies the run that is in progress that a Secret may have changed.
    fn notify_run(&self) {
        if let Some(changed) = &self.changed {
            changed.notify_one();
        }
    }

    /// Keeps in mind why the object cannot be decoded, if so. Gives whether that is new.
    pub fn complain(&mut self, complaint: Option<&str>) -> bool {
        let is_new = self.undecodable.as_deref() != complaint;
        if is_new {
            self.undecodable = complaint.map(Into::into);
        }
        is_new
    }

    /// How long to wait after a run that found nothing to do.
    pub fn ran_in_vain(&mut self) -> Duration {
        self.in_vain = self.in_vain.saturating_add(1);
        let runs = i32::try_from(self.in_vain).unwrap_or(i32::MAX);
        backoff(runs, IN_VAIN.0, IN_VAIN.1, 1.0, None)
    }

    /// For how long the removal of the Secret of this UID is not tried again.
    #[must_use]
    pub fn removal_waits(&self, uid: &str, now: Instant) -> Option<Duration> {
        let (_, _, until) = self.removal.as_deref().filter(|(of, _, _)| of == uid)?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Takes notice of a removal that failed. Gives how long to wait before it is tried again.
    pub fn removal_failed(&mut self, uid: &str, now: Instant) -> Duration {
        let before = self.removal.as_deref().filter(|(of, _, _)| of == uid).map_or(0, |(_, failures, _)| *failures);
        let failures = before.saturating_add(1);
        let wait = backoff(i32::try_from(failures).unwrap_or(i32::MAX), REMOVAL.0, REMOVAL.1, 1.0, None);
        self.removal = Some(Box::new((uid.to_owned(), failures, now + wait)));
        wait
    }

    /// For how long the Lease need not be looked at, since somebody else holds it whose run has not ended: that would
    /// show in `status.runs`.
    #[must_use]
    pub fn is_busy_for(&self, runs: i64, now: Instant) -> Option<Duration> {
        let (_, until) = self.busy.filter(|(seen, _)| *seen == runs)?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// An object that it refers to has changed. `failed` is the failure that status shows, if any: `status.runs`, and the
    /// reason. Whether the change may help: then the next look fetches again.
    pub fn source_changed(&mut self, change: SourceChange, runs: i64, failed: Option<&str>) -> bool {
        // A run that is in progress may have read the object just before.
        let last = match change {
            SourceChange::Rotation => &mut self.rotated,
            SourceChange::Other => &mut self.source_changed,
        };
        *last = Some(Instant::now());
        let (runs, failed) = if self.is_ahead_of(runs) {
            self.waiting.map_or((runs, None), |(runs, reason)| (runs, Some(reason.as_str())))
        } else {
            (runs, failed)
        };
        let helps = failed.is_some_and(|reason| change.may_help(reason));
        if helps {
            self.unblocked = Some(runs);
        }
        helps
    }

    /// Whether another failure that status tells may be disregarded, where nobody else has had the Lease since. Not after
    /// one that is never repeated by itself.
    #[must_use]
    pub fn may_doubt(&self) -> bool {
        self.ran_last && self.failed.is_none_or(Reason::is_repeated)
    }

    /// Whether an object whose change may help against this failure has changed since.
    #[must_use]
    pub fn has_source_changed_since(&self, began: Instant, reason: Reason) -> bool {
        let changes = [(SourceChange::Rotation, self.rotated), (SourceChange::Other, self.source_changed)];
        let since = |(change, at): (SourceChange, Option<Instant>)| {
            change.may_help(reason.as_str()) && at.is_some_and(|at| at >= began)
        };
        changes.into_iter().any(since)
    }

    /// Whether an object with this `status.runs` is older than what this process wrote.
    #[must_use]
    pub fn is_ahead_of(&self, runs: i64) -> bool {
        self.reported.is_some_and(|(reported, since)| runs < reported && since.elapsed() < WATCH_LAG)
    }
}

/// The notes on all. A table has room for more than it holds, so each is on the heap.
#[derive(Clone, Debug, Default)]
pub struct Notes(Arc<Mutex<HashMap<Key, Box<Note>>>>, TimeDelta);

impl Notes {
    /// None yet, of TokenCaches that are fetched no more often than this.
    #[must_use]
    pub fn with_min_interval(min_interval: TimeDelta) -> Self {
        Self(Arc::default(), min_interval)
    }

    /// Reads or changes the notes on one TokenCache.
    pub fn with<T>(&self, key: &Key, use_note: impl FnOnce(&mut Note) -> T) -> T {
        let mut notes = self.0.lock();
        let note = notes.entry(key.clone()).or_insert_with(|| Note { min_interval: self.1, ..Note::default() }.into());
        use_note(note)
    }

    /// Reads or changes the notes on one TokenCache, if there are any.
    pub fn with_known<T>(&self, key: &Key, use_note: impl FnOnce(&mut Note) -> T) -> Option<T> {
        self.0.lock().get_mut(key).map(|note| use_note(note))
    }

    /// Whether a TokenCache can be looked at now. If a run goes on, its end has it looked at instead.
    #[must_use]
    pub fn may_look(&self, key: &Key) -> bool {
        self.with_known(key, Note::waits_for_run) != Some(true)
    }

    /// Forgets a TokenCache that is gone, and ends its run.
    pub fn forget(&self, key: &Key) {
        let mut notes = self.0.lock();
        match notes.get_mut(key) {
            // Another one of that name waits for its end.
            Some(note) if let Some(cancel) = note.cancel.clone() => {
                cancel.cancel();
                note.reset(None);
            }
            _ => drop(notes.remove(key)),
        }
    }

    /// A run has ended. The next look is to wait so long, unless something called for one meanwhile.
    pub fn run_ended(&self, key: &Key, pause: Option<Duration>) {
        let mut notes = self.0.lock();
        match notes.get_mut(key) {
            Some(note) if note.uid.is_some() => {
                (note.cancel, note.changed) = (None, None);
                note.pause = pause.filter(|_| !note.called);
                note.called = false;
            }
            _ => drop(notes.remove(key)),
        }
    }

    /// Ends the pauses of those whose last look or run failed since the Kubernetes API did, and gives them, to be looked at.
    #[must_use]
    pub fn end_pauses(&self) -> Vec<Key> {
        let mut notes = self.0.lock();
        let mut waited = Vec::new();
        for (key, note) in notes.iter_mut().filter(|(_, note)| note.api_failures > 0 && note.cancel.is_none()) {
            note.pause = None;
            waited.push(key.clone());
        }
        waited
    }

    /// After a list of the Secrets: those that it does not hold may be gone, whatever was known of them.
    pub fn listed(&self, scope: Option<&str>, holds: impl Fn(&Key) -> bool) {
        let mut notes = self.0.lock();
        let within = |namespace: &str| scope.is_none_or(|scope| scope == namespace);
        for ((namespace, _), note) in notes.iter_mut().filter(|((namespace, _), _)| within(namespace)) {
            if note.ahead.as_deref().is_some_and(|ahead| !holds(&(namespace.clone(), ahead.name.clone()))) {
                note.ahead = None;
            }
            note.notify_run();
        }
    }

    /// Ends the run that is going on, if any.
    pub fn cancel(&self, key: &Key) {
        self.with_known(key, |note| {
            if let Some(cancel) = &note.cancel {
                cancel.cancel();
            }
        });
    }
}

#[cfg(test)]
mod tests;
