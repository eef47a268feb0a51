//! What a process remembers of each TokenCache beyond what the cluster stores. All of it can be lost.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{api::Invalid, fetch::Progress, reason::Reason, references::Change, secret::Lifetime};

/// Namespace and name.
pub type Key = (String, String);

/// The notes on one TokenCache. There are as many as there are TokenCaches, so what is rarely there is on the heap.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// UID of the TokenCache.
    pub uid: Option<String>,
    /// What is wrong with the spec of this generation.
    pub checked: Option<(i64, Option<Box<Invalid>>)>,
    /// The exact lifetime of the value in the Secret of this `resourceVersion`.
    pub exact: Option<(String, Lifetime)>,
    /// The exact moment of the next attempt.
    pub retry: Option<DateTime<Utc>>,
    /// The Secret as this process wrote it, until the watch shows it.
    pub ahead: Option<Box<Ahead>>,
    /// `status.runs` as this process wrote it, and when; an object with less has not come through the watch yet.
    pub reported: Option<(i64, Instant)>,
    /// The same, where that run failed for what its source had read, and the reason.
    pub waiting: Option<(i64, Reason)>,
    /// Whether the Secret of this `resourceVersion` was found as it had been written.
    pub verified: Option<(String, bool)>,
    /// Since when the Secret of this `resourceVersion` waits to be verified.
    pub unverified: Option<Box<(String, Instant)>>,
    /// `status.runs` when an object that stood in the way of the last run changed.
    pub unblocked: Option<i64>,
    /// When an object that it refers to changed last, but for refresh tokens that were written back.
    pub source_changed: Option<Instant>,
    /// When a refresh token was last written back to a Secret that it refers to.
    pub rotated: Option<Instant>,
    /// Whether this process has looked at it before.
    pub met: bool,
    /// Since when the Secret is missing although status speaks of one.
    pub absent: Option<Instant>,
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
    /// Whether something called for a look while the run went on.
    pub called: bool,
    /// What the look after a run's end is to wait for.
    pub pause: Option<Duration>,
    /// The complaint that was reported of an object that cannot be decoded.
    pub undecodable: Option<String>,
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

/// A Secret that was written but may not have come through the watch yet.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// As it was written.
    pub metadata: Arc<ObjectMeta>,
    /// The `resourceVersion` that it replaced.
    pub before: Option<String>,
    /// When it was written.
    pub since: Instant,
}

/// How long a write is expected to come through the watch; after that the watch is believed.
const WATCH_LAG: Duration = Duration::from_secs(5);

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
        *self = Self { uid, cancel: self.cancel.take(), called: self.called, ..Self::default() };
    }

    /// The Secret's metadata: as written by this process, while the watch still shows what was before.
    #[must_use]
    pub fn newest(&self, watched: impl FnOnce() -> Option<Arc<ObjectMeta>>) -> Option<Arc<ObjectMeta>> {
        match &self.ahead {
            Some(ahead) if ahead.since.elapsed() < WATCH_LAG => Some(ahead.metadata.clone()),
            _ => watched(),
        }
    }

    /// Takes notice of a Secret that came through the watch, without a `resourceVersion` when it was deleted.
    pub fn watched(&mut self, name: Option<&str>, resource_version: Option<&str>) {
        // A TokenCache may own others: one of a former name, and the state of its job.
        if self.ahead.as_ref().is_some_and(|ahead| ahead.metadata.name.as_deref() != name) {
            return;
        }
        let stale = self
            .ahead
            .as_ref()
            .is_some_and(|ahead| resource_version.is_some() && resource_version == ahead.before.as_deref());
        if !stale {
            self.ahead = None;
        }
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
    pub fn source_changed(&mut self, change: Change, runs: i64, failed: Option<&str>) -> bool {
        // A run that is in progress may have read the object just before.
        let last = match change {
            Change::Rotation => &mut self.rotated,
            Change::Other => &mut self.source_changed,
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

    /// Whether an object whose change may help against this failure has changed since.
    #[must_use]
    pub fn has_source_changed_since(&self, began: Instant, reason: Reason) -> bool {
        let changes = [(Change::Rotation, self.rotated), (Change::Other, self.source_changed)];
        let since = |(change, at): (Change, Option<Instant>)| {
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
pub struct Notes(Arc<Mutex<HashMap<Key, Box<Note>>>>);

impl Notes {
    /// Reads or changes the notes on one TokenCache.
    pub fn with<T>(&self, key: &Key, use_note: impl FnOnce(&mut Note) -> T) -> T {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        use_note(notes.entry(key.clone()).or_default())
    }

    /// Reads or changes the notes on one TokenCache, if there are any.
    pub fn with_known<T>(&self, key: &Key, use_note: impl FnOnce(&mut Note) -> T) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key).map(|note| use_note(note))
    }

    /// Whether a TokenCache can be looked at now. If a run goes on, its end has it looked at instead.
    #[must_use]
    pub fn may_look(&self, key: &Key) -> bool {
        self.with_known(key, Note::waits_for_run) != Some(true)
    }

    /// Forgets a TokenCache that is gone, and ends its run.
    pub fn forget(&self, key: &Key) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match notes.get_mut(key) {
            Some(note) if note.uid.is_some() => {
                note.cancel = None;
                note.pause = pause.filter(|_| !note.called);
                note.called = false;
            }
            _ => drop(notes.remove(key)),
        }
    }

    /// Ends the pauses of those whose last look or run failed since the Kubernetes API did, and gives them, to be looked at.
    #[must_use]
    pub fn end_pauses(&self) -> Vec<Key> {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waited = Vec::new();
        for (key, note) in notes.iter_mut().filter(|(_, note)| note.api_failures > 0 && note.cancel.is_none()) {
            note.pause = None;
            waited.push(key.clone());
        }
        waited
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
mod tests {
    use super::*;

    fn key() -> Key {
        ("ns".to_owned(), "a".to_owned())
    }

    fn running(notes: &Notes) -> CancellationToken {
        let cancel = CancellationToken::new();
        notes.with(&key(), |note| {
            note.reset(Some("uid-1".to_owned()));
            note.cancel = Some(cancel.clone());
        });
        cancel
    }

    fn look(notes: &Notes) -> Turn {
        notes.with(&key(), Note::look)
    }

    #[test]
    fn looks_wait_for_the_end_of_a_run_and_then_for_its_pause() {
        let (notes, pause) = (Notes::default(), Duration::from_secs(5));
        notes.with(&key(), |note| note.reset(Some("uid-1".to_owned())));
        assert_eq!(look(&notes), Turn::Now);
        notes.with(&key(), |note| note.cancel = Some(CancellationToken::new()));
        notes.run_ended(&key(), Some(pause));
        assert_eq!((look(&notes), look(&notes)), (Turn::In(pause), Turn::Now));
    }

    #[test]
    fn what_called_for_a_look_during_a_run_does_not_wait_for_its_pause() {
        let notes = Notes::default();
        assert!(notes.may_look(&key()));
        let calls: [fn(&Notes); 2] =
            [|notes| assert_eq!(look(notes), Turn::AfterRun), |notes| assert!(!notes.may_look(&key()))];
        for call in calls {
            running(&notes);
            call(&notes);
            notes.run_ended(&key(), Some(Duration::from_secs(5)));
            assert_eq!(look(&notes), Turn::Now);
        }
    }

    #[test]
    fn those_that_the_api_holds_up_need_not_wait_longer_unless_they_run_again() {
        let notes = Notes::default();
        running(&notes);
        notes.with(&key(), |note| note.api_failures = 1);
        notes.with(&("ns".to_owned(), "b".to_owned()), |_| {});
        assert!(notes.end_pauses().is_empty());
        notes.run_ended(&key(), Some(Duration::from_secs(5)));
        assert_eq!((notes.end_pauses(), look(&notes)), (vec![key()], Turn::Now));
    }

    #[test]
    fn one_that_is_made_anew_waits_for_the_run_of_the_one_that_is_gone() {
        let notes = Notes::default();
        let cancel = running(&notes);
        notes.forget(&key());
        assert!(cancel.is_cancelled());
        assert_eq!(look(&notes), Turn::AfterRun);
        notes.with(&key(), |note| note.reset(Some("uid-2".to_owned())));
        assert_eq!(look(&notes), Turn::AfterRun);
        notes.run_ended(&key(), None);
        assert_eq!(look(&notes), Turn::Now);
    }

    #[test]
    fn a_refresh_token_that_is_written_back_late_wakes_who_was_refused_with_the_old_one() {
        let (began, reauthentication) = (Instant::now(), Reason::ReauthenticationRequired);
        // By status, as the watch shows it.
        let mut note = Note::default();
        assert!(!note.source_changed(Change::Rotation, 7, Some("Rejected")));
        assert!(!note.source_changed(Change::Rotation, 7, None));
        assert_eq!(note.unblocked, None);
        assert!(note.source_changed(Change::Rotation, 7, Some("ReauthenticationRequired")));
        assert_eq!(note.unblocked, Some(7));
        // By what this process reported, which the watch does not show yet.
        let reported = Some((8, Instant::now()));
        let mut ahead = Note { reported, waiting: Some((8, reauthentication)), ..Note::default() };
        assert!(ahead.source_changed(Change::Rotation, 7, None));
        assert_eq!(ahead.unblocked, Some(8));
        let mut ahead = Note { reported, waiting: Some((8, Reason::InvalidSpec)), ..Note::default() };
        assert!(!ahead.source_changed(Change::Rotation, 7, Some("ReauthenticationRequired")));
        // During the run, before its failure is reported.
        let mut note = Note::default();
        note.source_changed(Change::Rotation, 7, None);
        assert!(note.has_source_changed_since(began, reauthentication));
        assert!(!note.has_source_changed_since(began, Reason::InvalidSpec), "it may be the run's own write");
        assert!(!note.has_source_changed_since(Instant::now() + Duration::from_secs(1), reauthentication));
        note.source_changed(Change::Other, 7, None);
        assert!(note.has_source_changed_since(began, Reason::InvalidSpec));
    }

    #[test]
    fn a_lease_that_was_found_held_is_left_alone_for_a_while_or_until_that_run_has_ended() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let note = Note { busy: Some((7, now + second)), ..Note::default() };
        assert_eq!(note.is_busy_for(7, now), Some(second));
        assert_eq!((note.is_busy_for(8, now), note.is_busy_for(7, now + second)), (None, None));
        assert_eq!(Note::default().is_busy_for(0, now), None);
    }

    #[test]
    fn nothing_is_kept_of_one_that_is_gone() {
        let notes = Notes::default();
        running(&notes);
        notes.forget(&key());
        notes.run_ended(&key(), None);
        running(&notes);
        notes.run_ended(&key(), None);
        notes.forget(&key());
        assert!(notes.0.lock().unwrap().is_empty());
    }
}
