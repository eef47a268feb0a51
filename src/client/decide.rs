//! What a consumer does next: pure, from what it found, what it wants, and the time.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use super::{
    Error,
    token_cache::Cache,
    value::{Found, Stamp, Value},
};
use crate::{api::next_run, time::later};

/// When a refresh is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Whatever the Secret holds.
    Always,
    /// If the Secret still holds the value that was fetched at this time, or no valid one.
    IfFetchedAt(DateTime<Utc>),
    /// If the Secret still holds this very value, or no valid one: for many who all saw that it failed them.
    IfStill(Stamp),
}

impl From<&Value> for Condition {
    fn from(value: &Value) -> Self {
        Self::IfStill(value.stamp().clone())
    }
}

/// What a caller wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A value with at least so much left.
    Valid(TimeDelta),
    /// Another value.
    Refresh(Condition),
}

/// A value that a run has just fetched at the request of this process, and that has expired by the clock, which must
/// therefore be wrong. It is valid for its lifetime, counted from the request on the monotonic clock.
#[derive(Clone, Debug)]
pub(super) struct Brought {
    stamp: Stamp,
    until: Instant,
}

impl Brought {
    /// The value that was found at `now` after a run that was requested at `asked_at`, if it was not there before and
    /// has expired by the clock.
    pub(super) fn of(found: &Found, asked: &Asked, asked_at: Instant, now: DateTime<Utc>) -> Option<Self> {
        let value = found.value().filter(|value| Some(value.stamp()) != asked.before.as_ref())?;
        if value.remaining(now).is_some() {
            return None;
        }
        let until = asked_at.checked_add(value.lifetime()?.to_std().ok()?)?;
        Some(Self { stamp: value.stamp().clone(), until })
    }

    /// How long this value is valid yet, if it is the one.
    pub(super) fn left(&self, value: &Value, now: Instant) -> Option<TimeDelta> {
        let left = self.until.checked_duration_since(now).filter(|left| !left.is_zero())?;
        (self.stamp == *value.stamp()).then(|| TimeDelta::from_std(left).ok()).flatten()
    }
}

/// The time by which values are judged.
#[derive(Clone, Debug)]
pub(super) struct Now {
    /// By the clock.
    pub(super) time: DateTime<Utc>,
    /// What counts where the clock is wrong.
    pub(super) brought: Option<(Brought, Instant)>,
}

impl Now {
    /// How long a value is valid yet; nothing where it has expired.
    pub(super) fn left(&self, value: &Value) -> Option<TimeDelta> {
        let brought = || self.brought.as_ref().and_then(|(brought, now)| brought.left(value, *now));
        value.remaining(self.time).or_else(brought)
    }

    /// When a value expires, by the clock as it is.
    pub(super) fn end(&self, value: &Value) -> Option<DateTime<Utc>> {
        let end = value.expires_at().moment()?;
        Some(if end > self.time { end } else { self.left(value).map_or(end, |left| later(self.time, left)) })
    }
}

/// That a run was asked for, by whomever.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// UID of the TokenCache.
    pub(super) uid: Option<String>,
    /// `status.runs` when it was asked: a greater one says that a run has ended since.
    pub(super) runs: i64,
    /// The value that was there.
    pub(super) before: Option<Stamp>,
}

impl Wish {
    /// The value in the Secret, where it will do without a run.
    pub(super) fn met(&self, found: &Found, now: &Now) -> Option<Arc<Value>> {
        let value = found.value()?;
        let left = now.left(value)?;
        let will_do = match self {
            Self::Valid(wanted) => left >= *wanted,
            Self::Refresh(Condition::Always) => false,
            Self::Refresh(Condition::IfFetchedAt(moment)) => value.fetched_at() != crate::time::floor(*moment),
            Self::Refresh(Condition::IfStill(stamp)) => value.stamp() != stamp,
        };
        will_do.then(|| value.clone())
    }

    /// Whether a run is asked for only if nothing has changed since the Secret was read.
    pub(super) fn is_conditional(&self) -> bool {
        *self != Self::Refresh(Condition::Always)
    }
}

/// What to do where the Secret does not meet the wish. The TokenCache was read before the Secret.
#[derive(Debug)]
pub(super) enum Ask {
    /// Ask for a run.
    Send,
    /// Somebody has asked, and is not answered yet: wait for the same run.
    Join(Asked),
    /// It would be in vain.
    Fail(Error),
}

/// Decides whether to ask.
pub(super) fn ask(cache: &Cache, found: &Found) -> Ask {
    if let Some(error) = hindrance(cache) {
        return Ask::Fail(error);
    }
    if matches!(found, Found::Foreign) {
        return Ask::Fail(Error::Failed {
            reason: "SecretNotOwned".into(),
            message: format!(
                "the Secret {}/{} belongs to somebody else: delete it, or set spec.target.name to another name",
                cache.namespace(),
                cache.secret_name()
            ),
        });
    }
    if cache.status.refresh_requested.is_some() { Ask::Join(asked(cache, found)) } else { Ask::Send }
}

/// What is remembered of a TokenCache at which a request stands.
pub(super) fn asked(cache: &Cache, found: &Found) -> Asked {
    Asked {
        uid: cache.metadata.uid.clone(),
        runs: cache.status.runs,
        before: found.value().map(|value| value.stamp().clone()),
    }
}

/// Whether a Secret that was not there, when it was read before the TokenCache, need not be read again: no run has
/// ended in between.
pub(super) fn still_absent(cache: &Cache, found: &Found) -> bool {
    matches!(found, Found::Absent) && cache.status.secret_resource_version.is_none()
}

/// Why no run will be made, however often it is asked for.
fn hindrance(cache: &Cache) -> Option<Error> {
    if cache.spec.suspend {
        return Some(Error::Suspended { name: cache.name().to_owned() });
    }
    let stalled = cache.condition("Stalled").filter(|stalled| stalled.status == "True" && cache.is_observed())?;
    // Others are tried once more when somebody asks.
    (stalled.reason == "InvalidSpec")
        .then(|| Error::Failed { reason: stalled.reason.clone(), message: stalled.message.clone() })
}

/// What the TokenCache says to one who waits.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing yet.
    NotYet,
    /// A run has ended.
    Ended,
    /// The TokenCache was made anew: ask again.
    Anew,
    /// None will.
    Fail(Error),
}

/// Whether the run that was asked for has ended.
pub(super) fn answer(cache: &Cache, asked: &Asked) -> Answer {
    if cache.metadata.uid != asked.uid {
        return Answer::Anew;
    }
    // After the largest number that there is they are counted from the start.
    if cache.status.runs > asked.runs || (asked.runs == i64::MAX && cache.status.runs != asked.runs) {
        return Answer::Ended;
    }
    hindrance(cache).map_or(Answer::NotYet, Answer::Fail)
}

/// What comes of a run that has ended, with the Secret read after it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The value.
    Give(Arc<Value>),
    /// The run brought none.
    Fail(Error),
    /// What was asked for is still open: ask again.
    Again,
}

/// Concludes. `again` says whether it may be asked once more.
pub(super) fn conclude(wish: &Wish, cache: &Cache, asked: &Asked, found: &Found, again: bool, now: &Now) -> Outcome {
    if let Some(value) = wish.met(found, now) {
        return Outcome::Give(value);
    }
    let valid = found.value().filter(|value| now.left(value).is_some());
    let failed = cache.status.failures > 0;
    // Of several runs since, the last may have failed after one that brought a value.
    let is_new = valid.is_some_and(|value| Some(value.stamp()) != asked.before.as_ref());
    if failed && !is_new {
        return Outcome::Fail(last_failure(cache));
    }
    match (wish, valid) {
        (Wish::Refresh(Condition::Always), Some(value)) => Outcome::Give(value.clone()),
        // Fetched within the very second that the condition names.
        (Wish::Refresh(Condition::IfFetchedAt(_)), Some(value)) if is_new => Outcome::Give(value.clone()),
        // The run had written its value before it was asked for, and it is the very value that has failed.
        (Wish::Refresh(_), _) if again => Outcome::Again,
        (Wish::Refresh(_), Some(value)) => Outcome::Give(value.clone()),
        (Wish::Valid(wanted), Some(value)) => Outcome::Fail(Error::NearlyExpired {
            name: cache.name().to_owned(),
            left: now.left(value).and_then(|left| left.to_std().ok()).unwrap_or_default(),
            wanted: wanted.to_std().unwrap_or_default(),
        }),
        // Deleted by somebody in the meantime.
        (Wish::Valid(_), None) if again && found.value().is_none() => Outcome::Again,
        (_, None) => Outcome::Fail(Error::Expired { name: cache.name().to_owned() }),
    }
}

/// The failure of the only run since it was asked for: it has brought nothing, and the Secret need not be read.
pub(super) fn failed(cache: &Cache, asked: &Asked) -> Option<Error> {
    (cache.status.failures > 0 && cache.status.runs == next_run(asked.runs)).then(|| last_failure(cache))
}

fn last_failure(cache: &Cache) -> Error {
    let failure = cache.status.last_failure.as_ref();
    Error::Failed {
        reason: failure.map_or_else(|| "FetchFailed".to_owned(), |failure| failure.reason.clone()),
        message: failure.map_or_else(|| "status.lastFailure is missing".to_owned(), |failure| failure.message.clone()),
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
