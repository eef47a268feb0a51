//! What to do about a TokenCache: pure, from what was observed and the time.

mod moments;

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};

pub use self::moments::{Failed, backoff, jitter, keeps, refresh_at, retry_at};
use self::moments::{SHORTEST_PAUSE, believed, longest_backoff, recheck_wait, refresh_moment};
use crate::{
    api::{Invalid, RefreshPolicy, RetentionPolicy, TokenCache, names::ANNOTATION_REFRESH_REQUESTED, reason::Reason},
    fetch::fetch_hash,
    reconcile::{
        desired_secret::{Lifetime, SecretState, Stored},
        throttle::{Brake, Cause},
    },
    time::later,
};

/// All that a decision needs to know, but for the time.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The object, from the watch or read live.
    pub cache: &'a TokenCache,
    /// What is wrong with its spec.
    pub invalid: Option<&'a Invalid>,
    /// Name of the Secret that was observed. The object may have another one by the time this is reported.
    pub secret_name: &'a str,
    /// The Secret of that name.
    pub secret: SecretState,
    /// The lifetime of the value in the Secret to the fraction of a second, where this process wrote it.
    pub exact: Option<Lifetime>,
    /// `status.nextRetryAt` to the fraction of a second, where this process computed it.
    pub exact_retry: Option<DateTime<Utc>>,
    /// Whether the failure that status tells is of no run. Then `exact_retry` alone says whether the last one failed.
    pub is_forged: bool,
    /// Whether an object that stood in the way of the last attempt has changed since.
    pub unblocked: bool,
    /// The fetches that this process did out of turn.
    pub brake: Option<&'a Brake>,
    /// The shortest time between two fetches.
    pub min_interval: TimeDelta,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing, until then, or until something changes.
    Sleep(Option<DateTime<Utc>>),
    /// Fetch a value now.
    Fetch(Why),
    /// Nothing, until then, or until someone edits something.
    Refuse(Reason, String, Option<DateTime<Utc>>),
}

/// Why a value is fetched; for the log, and for events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// There never was one.
    First,
    /// The Secret was deleted.
    Cleared,
    /// It was asked for.
    Requested,
    /// The spec changed.
    SpecChanged,
    /// Another hand changed the Secret; how, without values.
    Drifted(String),
    /// The old value expired.
    Expired,
    /// The old value expires soon.
    Due,
    /// What stood in the way of the last run has changed.
    Unblocked,
    /// The last run was refused, and the cause may be gone.
    Recheck,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first value",
            Self::Cleared => "the Secret was deleted",
            Self::Requested => "requested",
            Self::SpecChanged => "the spec changed",
            Self::Drifted(how) => return write!(f, "the Secret was changed by another client: {how}"),
            Self::Expired => "the value expired",
            Self::Due => "the value expires soon",
            Self::Unblocked => "the cause of the failure has changed",
            Self::Recheck => "checking whether it is still rejected",
        })
    }
}

impl Observed<'_> {
    /// The Secret, if it is the TokenCache's own.
    #[must_use]
    pub fn stored(&self) -> Option<&Stored> {
        match &self.secret {
            SecretState::Owned(stored) => Some(stored),
            SecretState::Absent | SecretState::Leftover | SecretState::Foreign(_) => None,
        }
    }

    /// When the value in the Secret expires.
    #[must_use]
    pub fn lifetime(&self) -> Option<Lifetime> {
        self.stored().and_then(|stored| stored.lifetime)
    }

    /// The lifetime of the value in the Secret, if that is valid: it has not expired, and is as it was written.
    #[must_use]
    pub fn valid(&self, now: DateTime<Utc>) -> Option<Lifetime> {
        let stored = self.stored().filter(|stored| stored.damage().is_none())?;
        stored.lifetime.filter(|lifetime| !lifetime.expires_at.is_past(now))
    }

    /// The request by annotation that is still open.
    #[must_use]
    pub fn open_request(&self) -> Option<&str> {
        let asked = self.cache.metadata.annotations.as_ref()?.get(ANNOTATION_REFRESH_REQUESTED)?;
        let handled = self.cache.status.as_ref().and_then(|status| status.handled_request.as_ref());
        (Some(asked) != handled).then_some(asked)
    }

    fn is_requested(&self) -> bool {
        self.open_request().is_some()
            || self.cache.status.as_ref().is_some_and(|status| status.refresh_requested.is_some())
    }

    /// Whether a Secret with a valid value was deleted, and nothing was tried since.
    fn is_cleared(&self, now: DateTime<Utc>) -> bool {
        let Some(status) = &self.cache.status else { return false };
        let expired = status.expires_at.is_some_and(|expiry| expiry.is_past(now));
        self.secret == SecretState::Absent && status.fetched_at.is_some() && !expired
    }

    /// Failed runs in a row.
    #[must_use]
    pub fn failures(&self) -> i32 {
        if self.is_forged {
            return i32::from(self.exact_retry.is_some());
        }
        self.cache.status.as_ref().map_or(0, |status| status.failures.max(0))
    }

    /// Whether status tells a failure that this process has not had. Not where it says whose the Secret or the Lease is:
    /// whether that is so is looked at.
    #[must_use]
    pub fn is_told_failure(&self) -> bool {
        let Some(status) = self.cache.status.as_ref().filter(|status| status.failures > 0) else { return false };
        let reason = status.last_failure.as_ref().and_then(|failure| Reason::refusal(&failure.reason));
        let is_looked_at = matches!(reason, Some(Reason::SecretNotOwned | Reason::LeaseNotOwned));
        !is_looked_at && self.exact_retry.is_none()
    }

    /// The same with what this process knows of its own last run in the place of what status tells: when it is tried again,
    /// if it failed.
    #[must_use]
    pub fn with_own_failure(self, retry_at: Option<DateTime<Utc>>) -> Self {
        Self { is_forged: true, exact_retry: retry_at, ..self }
    }

    /// Whether what status says about failures concerns the spec as it is now.
    fn is_same_generation(&self) -> bool {
        let observed = self.cache.status.as_ref().and_then(|status| status.observed_generation);
        observed == self.cache.metadata.generation
    }

    /// The refusal that stands: of the spec, of the Secret, or of the last run, with nothing changed since.
    #[must_use]
    pub fn refusal(&self) -> Option<(Reason, String)> {
        if let Some(invalid) = self.invalid {
            return Some((Reason::InvalidSpec, invalid.to_string()));
        }
        if let SecretState::Foreign(whose) = &self.secret {
            let namespace = self.cache.metadata.namespace.as_deref().unwrap_or_default();
            let name = self.secret_name;
            return Some((
                Reason::SecretNotOwned,
                format!(
                    "Secret {namespace}/{name} {whose} and is not modified. Delete it or choose another spec.target.name"
                ),
            ));
        }
        if self.is_forged {
            return None;
        }
        let failure = self.cache.status.as_ref().and_then(|status| status.last_failure.as_ref())?;
        let reason = Reason::refusal(&failure.reason)?;
        let stands = self.failures() > 0 && self.is_same_generation() && !self.unblocked;
        // That Secret is seen above while it stands in the way.
        let gone = reason == Reason::SecretNotOwned && self.stored().is_some();
        (stands && !gone).then(|| (reason, failure.message.clone()))
    }

    /// Whether the last failure answered a request that was made while the value was valid. If that is gone since, a
    /// lazy one is not fetched again before somebody asks.
    #[must_use]
    pub fn failed_while_valid(&self) -> bool {
        let status = self.cache.status.as_ref().filter(|status| status.failures > 0 && !self.is_forged);
        let Some(status) = status else { return false };
        let Some(failed_at) = status.last_failure.as_ref().and_then(|failure| failure.time) else { return false };
        // Status names the expiry of a Secret that is gone until that is reported.
        let expires_at = match self.lifetime() {
            Some(lifetime) => Some(lifetime.expires_at),
            None => status.expires_at.filter(|_| status.fetched_at.is_some()),
        };
        expires_at.is_some_and(|expiry| !expiry.is_past(failed_at))
    }

    /// Why and when the next fetch is due, before backoff. `None`: not until something changes.
    fn due(&self, now: DateTime<Utc>) -> Option<(Why, DateTime<Utc>)> {
        let lazy = self.cache.spec.refresh.policy == RefreshPolicy::Lazy;
        // A lazy fetch that was asked for and failed is repeated while there is no value.
        let wanted = !lazy || (self.failures() > 0 && !self.failed_while_valid());
        let Some(stored) = self.stored() else {
            let expired = self.cache.status.as_ref().and_then(|status| status.expires_at);
            let why = match expired {
                _ if self.is_cleared(now) => Why::Cleared,
                Some(expired) if expired.is_past(now) => Why::Expired,
                _ => Why::First,
            };
            return wanted.then_some((why, now));
        };
        if stored.fetch_hash != fetch_hash(&self.cache.spec) {
            return Some((Why::SpecChanged, now));
        }
        if let Some(how) = stored.drift() {
            return Some((Why::Drifted(how), now));
        }
        let lifetime = stored.lifetime?;
        let paced = later(self.exact.unwrap_or(lifetime).fetched_at, SHORTEST_PAUSE.max(self.min_interval));
        if lifetime.expires_at.is_past(now) {
            return wanted.then_some((Why::Expired, now.max(paced)));
        }
        let at = refresh_moment(&self.cache.spec.refresh, lifetime, self.exact, jitter(self.cache))?;
        Some((Why::Due, at.max(paced)))
    }

    /// The cause of a fetch that is limited in how often it is done; `None` where something else limits it.
    #[must_use]
    pub fn cause(&self, why: &Why) -> Option<Cause> {
        match why {
            Why::Requested => Some(Cause::Request),
            Why::Drifted(_) | Why::Cleared | Why::Unblocked => Some(Cause::Repair),
            // Not of a new generation, but another controller computes another hash.
            Why::SpecChanged if self.is_same_generation() => Some(Cause::Repair),
            // The status of a Secret that was deleted does not tell so for long.
            Why::First if self.cache.runs() > 0 && self.failures() == 0 => Some(Cause::Repair),
            // An edit ends the backoff after failures.
            _ => (self.cache.runs() > 0 && !self.is_same_generation()).then_some(Cause::Edit),
        }
    }

    /// When a fetch that was to begin at `at` may begin.
    fn paced(&self, why: &Why, at: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
        let until = self.brake_until(why, self.min_interval, now);
        until.map_or(at, |until| at.max(until))
    }

    fn brake_until(&self, why: &Why, min_interval: TimeDelta, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.brake.zip(self.cause(why)).and_then(|(brake, cause)| brake.until(cause, min_interval, now))
    }

    /// Why a fetch is called for that does not wait for a backoff.
    fn called_for(&self, now: DateTime<Utc>) -> Option<Why> {
        if self.is_requested() {
            return Some(Why::Requested);
        }
        // The deletion of the Secret is a request as well.
        (self.is_cleared(now) && self.cache.spec.refresh.policy == RefreshPolicy::Eager).then_some(Why::Cleared)
    }

    /// Why a fetch that is due waits, since there were many for the same cause within an hour, or the shortest interval is
    /// long. A wait of seconds is not worth a write of status.
    #[must_use]
    pub fn held_back(&self, now: DateTime<Utc>) -> Option<Why> {
        let unblocked = (self.unblocked && self.failures() > 0).then_some(Why::Unblocked);
        let why = self.called_for(now).or(unblocked).or_else(|| self.overdue(now))?;
        let is_braked = self.brake_until(&why, TimeDelta::zero(), now).is_some();
        (is_braked || self.paced(&why, now, now) > later(now, WORTH_TELLING)).then_some(why)
    }

    fn overdue(&self, now: DateTime<Utc>) -> Option<Why> {
        self.due(now).filter(|(_, at)| *at <= now).map(|(why, _)| why)
    }

    /// Why another replica may hold a fetch back that this one does not hold back: each counts its own fetches, and each
    /// finds out for itself that an object was changed.
    pub fn held_back_elsewhere(&self, now: DateTime<Utc>) -> impl Iterator<Item = Why> {
        let unblocked = (self.failures() > 0).then_some(Why::Unblocked);
        self.called_for(now).or_else(|| self.overdue(now)).into_iter().chain(unblocked)
    }

    /// The Secret, if its value has expired and it is not to stay then.
    #[must_use]
    pub fn to_remove(&self, now: DateTime<Utc>) -> Option<&Stored> {
        let target = &self.cache.spec.target;
        let stored = self.stored().filter(|_| target.expired_policy == RetentionPolicy::Delete);
        let expired = |stored: &&Stored| stored.lifetime.is_some_and(|lifetime| lifetime.expires_at.is_past(now));
        stored.filter(expired).filter(|_| !self.cache.spec.suspend)
    }

    /// When a refusal that stands is checked again, although nobody edited anything.
    fn recheck_at(&self, reason: Reason, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Those are looked at by the controller itself, or caused by the spec alone.
        if self.invalid.is_some() || matches!(reason, Reason::SecretNotOwned | Reason::LeaseNotOwned) {
            return None;
        }
        if !reason.is_repeated() {
            return None;
        }
        // A lazy one whose request was answered by the refusal waits for the next request.
        if self.cache.spec.refresh.policy == RefreshPolicy::Lazy && self.due(now).is_none() {
            return None;
        }
        let status = self.cache.status.as_ref()?;
        let failed_at = status.last_failure.as_ref().and_then(|failure| failure.time);
        let unknown = || failed_at.map(|at| later(at, recheck_wait(&self.cache.spec.retry)));
        let at = self.exact_retry.or(status.next_retry_at).or_else(unknown).unwrap_or(now);
        Some(believed(at, recheck_wait(&self.cache.spec.retry), now))
    }
}

/// A longer wait for the shortest interval is told.
const WORTH_TELLING: TimeDelta = TimeDelta::seconds(10);

/// Decides.
#[must_use]
pub fn decide(observed: &Observed<'_>, now: DateTime<Utc>) -> Plan {
    let cache = observed.cache;
    if cache.spec.suspend {
        return Plan::Sleep(None);
    }
    if observed.secret == SecretState::Leftover && observed.invalid.is_none() {
        return Plan::Sleep(None);
    }
    // A request is met at once, backoff or not, even where the last run was refused: the asker may know better. So is
    // the deletion of the Secret. What the spec or a foreign Secret forbids, none allows.
    let paced = |why: Why, at: DateTime<Utc>| {
        let at = observed.paced(&why, at, now).max(now);
        (why, at)
    };
    let asked = observed.called_for(now).map(|why| paced(why, now));
    if let Some((reason, message)) = observed.refusal() {
        if reason == Reason::SecretNotOwned || observed.invalid.is_some() {
            return Plan::Refuse(reason, message, None);
        }
        let recheck = observed.recheck_at(reason, now).map(|at| paced(Why::Recheck, at));
        return match earlier(asked, recheck) {
            Some((why, at)) if at <= now => Plan::Fetch(why),
            next => Plan::Refuse(reason, message, next.map(|(_, at)| at)),
        };
    }
    let next = if observed.unblocked && observed.failures() > 0 {
        Some(paced(Why::Unblocked, now))
    } else {
        observed.due(now).map(|(why, at)| paced(why, at.max(observed.backoff_until(now).unwrap_or(at))))
    };
    match earlier(asked, next) {
        Some((why, at)) if at <= now => Plan::Fetch(why),
        next => Plan::Sleep(next.map(|(_, at)| at)),
    }
}

/// The one that comes first; the first, where both come at once.
fn earlier(one: Option<(Why, DateTime<Utc>)>, other: Option<(Why, DateTime<Utc>)>) -> Option<(Why, DateTime<Utc>)> {
    match (one, other) {
        (Some(one), Some(other)) => Some(if other.1 < one.1 { other } else { one }),
        (one, other) => one.or(other),
    }
}

impl Observed<'_> {
    /// When a run that failed is repeated, which may not be before `retry_at`, by what all replicas see: one that was asked
    /// for while the value is valid is not repeated before that is due, if ever.
    #[must_use]
    pub fn next_attempt(&self, retry_at: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let (why, at) = Self { exact: None, ..self.clone() }.due(now)?;
        Some(if why == Why::Due { at.max(retry_at) } else { retry_at })
    }

    /// Before which moment a failed fetch is not repeated.
    fn backoff_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let stored = self.cache.status.as_ref().and_then(|status| status.next_retry_at);
        let holds = self.failures() > 0 && self.is_same_generation() && !self.unblocked;
        let longest = longest_backoff(&self.cache.spec.retry);
        if holds { self.exact_retry.or(stored).map(|at| believed(at, longest, now)) } else { None }
    }
}

#[cfg(test)]
mod tests;
