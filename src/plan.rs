//! What to do about a TokenCache: pure, from what was observed and the time.

use std::{fmt, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};

use crate::{
    api::{
        ExpiresAt, Invalid, Refresh, RefreshPolicy, RetentionPolicy, TokenCache, names::ANNOTATION_REFRESH_REQUESTED,
    },
    reason::Reason,
    secret::{Integrity, Lifetime, SecretState, Stored, fetch_hash},
    time::{floor, later},
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
    /// Whether an object that stood in the way of the last attempt has changed since.
    pub unblocked: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing, until then, or until something changes.
    Sleep(Option<DateTime<Utc>>),
    /// Fetch a value now.
    Fetch(Why),
    /// Nothing, until someone edits something.
    Refuse(Reason, String),
    /// Remove the Secret, whose value has expired.
    RemoveExpired(Stored),
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
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first value",
            Self::Cleared => "the Secret was deleted",
            Self::Requested => "requested",
            Self::SpecChanged => "the spec changed",
            Self::Drifted(how) => return write!(f, "the Secret was changed by another hand: {how}"),
            Self::Expired => "the value expired",
            Self::Due => "the value expires soon",
            Self::Unblocked => "what stood in the way has changed",
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

    fn failures(&self) -> i32 {
        self.cache.status.as_ref().map_or(0, |status| status.failures)
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
                    "the Secret {namespace}/{name} {whose}: it is left alone; delete it, or set spec.target.name to \
                     another name"
                ),
            ));
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
        let Some(status) = self.cache.status.as_ref().filter(|status| status.failures > 0) else { return false };
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
        let lifetime = match (&stored.integrity, stored.lifetime) {
            (Integrity::Drifted(how), _) => return Some((Why::Drifted(how.clone()), now)),
            (_, None) => return Some((Why::Drifted("its annotations cannot be read".into()), now)),
            (_, Some(lifetime)) => lifetime,
        };
        if lifetime.expires_at.is_past(now) {
            return wanted.then_some((Why::Expired, now));
        }
        let at = refresh_moment(&self.cache.spec.refresh, lifetime, self.exact, jitter(self.cache))?;
        Some((Why::Due, at))
    }
}

/// Decides.
#[must_use]
pub fn decide(observed: &Observed<'_>, now: DateTime<Utc>) -> Plan {
    let cache = observed.cache;
    if cache.spec.suspend {
        return Plan::Sleep(None);
    }
    if let Some(stored) = observed.stored()
        && cache.spec.target.expired_policy == RetentionPolicy::Delete
        && stored.lifetime.is_some_and(|lifetime| lifetime.expires_at.is_past(now))
    {
        return Plan::RemoveExpired(stored.clone());
    }
    if observed.secret == SecretState::Leftover && observed.invalid.is_none() {
        return Plan::Sleep(None);
    }
    // A request is met at once, backoff or not, even where the last run was refused: the asker may know better. So is
    // the deletion of the Secret, which is a request as well. What the spec or a foreign Secret forbids, none allows.
    let requested = observed.is_requested();
    let asked = requested || (observed.is_cleared(now) && cache.spec.refresh.policy == RefreshPolicy::Eager);
    if let Some((reason, message)) = observed.refusal()
        && (!asked || reason == Reason::SecretNotOwned || observed.invalid.is_some())
    {
        return Plan::Refuse(reason, message);
    }
    if requested {
        return Plan::Fetch(Why::Requested);
    }
    if asked {
        return Plan::Fetch(Why::Cleared);
    }
    if observed.unblocked && observed.failures() > 0 {
        return Plan::Fetch(Why::Unblocked);
    }
    let Some((why, at)) = observed.due(now) else { return Plan::Sleep(None) };
    let at = at.max(observed.backoff_until().unwrap_or(at));
    if at <= now { Plan::Fetch(why) } else { Plan::Sleep(Some(at)) }
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
    fn backoff_until(&self) -> Option<DateTime<Utc>> {
        let stored = self.cache.status.as_ref().and_then(|status| status.next_retry_at);
        let holds = self.failures() > 0 && self.is_same_generation() && !self.unblocked;
        if holds { self.exact_retry.or(stored) } else { None }
    }
}

/// Lifetimes below this count from the exact time, since whole seconds would be too coarse.
const SHORT: TimeDelta = TimeDelta::seconds(10);

/// When an eager refresh of a value is planned, as all replicas compute it from what is stored. `None`: never.
#[must_use]
pub fn refresh_at(refresh: &Refresh, lifetime: Lifetime, jitter: f64) -> Option<DateTime<Utc>> {
    if refresh.policy == RefreshPolicy::Lazy {
        return None;
    }
    let ExpiresAt::At(expires_at) = lifetime.expires_at else { return None };
    let length = expires_at.signed_duration_since(lifetime.fetched_at).max(TimeDelta::zero());
    let before = match refresh.renew_before {
        Some(before) if keeps(before, length) => before.as_chrono(),
        // Renewing as long before the end as the value lives would fetch without a pause.
        _ => share(length, f64::from(refresh.percentage()) / 100.0 * (1.0 - jitter / 20.0)),
    };
    let at = later(expires_at, -before);
    Some(if length >= SHORT { floor(at) } else { at })
}

/// Whether a value of this lifetime can be renewed that long before its end and still rest a while: two seconds, or a
/// hundredth of a life that is shorter than that would allow.
#[must_use]
pub fn keeps(renew_before: crate::api::Duration, length: TimeDelta) -> bool {
    renew_before.as_chrono() <= length - (length / 100).min(TimeDelta::seconds(2))
}

/// When this process starts the refresh: for short lifetimes by the exact times, where it knows them, but before the
/// moment at which others, who see whole seconds, take the value for expired.
fn refresh_moment(
    refresh: &Refresh,
    lifetime: Lifetime,
    exact: Option<Lifetime>,
    jitter: f64,
) -> Option<DateTime<Utc>> {
    let planned = refresh_at(refresh, lifetime, jitter)?;
    let Some(exact) = exact else { return Some(planned) };
    let (Some(end), Some(seen_end)) = (exact.expires_at.moment(), lifetime.expires_at.moment()) else {
        return Some(planned);
    };
    let length = end.signed_duration_since(exact.fetched_at);
    if length >= SHORT {
        return Some(planned);
    }
    let planned = refresh_at(refresh, exact, jitter)?;
    let half = later(exact.fetched_at, length / 2);
    Some(planned.min(later(seen_end, -length / 10)).max(half))
}

fn share(length: TimeDelta, share: f64) -> TimeDelta {
    let seconds = length.as_seconds_f64() * share.clamp(0.0, 1.0);
    TimeDelta::milliseconds((seconds * 1000.0) as i64)
}

/// A number from 0 to 1, fixed per object and spread evenly over objects.
#[must_use]
pub fn jitter(cache: &TokenCache) -> f64 {
    let digest = Sha256::digest(cache.metadata.uid.as_deref().unwrap_or_default());
    let number = digest.iter().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    f64::from(number) / f64::from(u32::MAX)
}

/// How long to wait after the given number of failures in a row: doubling from `initial` to `max`, of which the upper
/// half is random (`random` from 0 to 1). A server's own wish is obeyed where it is longer.
#[must_use]
pub fn backoff(
    failures: i32,
    initial: Duration,
    max: Duration,
    random: f64,
    retry_after: Option<Duration>,
) -> Duration {
    let doublings = u32::try_from(failures.saturating_sub(1)).unwrap_or(0).min(31);
    let full = initial.saturating_mul(1 << doublings).min(max);
    let wait = full / 2 + (full / 2).mul_f64(random.clamp(0.0, 1.0));
    retry_after.map_or(wait, |wish| wish.min(LONGEST_RETRY_AFTER).max(wait))
}

/// A server's `Retry-After` is obeyed to at most this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
