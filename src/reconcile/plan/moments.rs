//! The moments that a decision goes by: pure.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};

use crate::{
    api::{ExpiresAt, Refresh, RefreshPolicy, Retry, TokenCache},
    reconcile::desired_secret::Lifetime,
    time::{floor, later},
};

/// The longest time before a refusal is checked again that does not come from the spec alone.
const RECHECK: Duration = Duration::from_secs(300);

/// How long after a refusal it is checked again at the latest.
pub(super) fn recheck_wait(retry: &Retry) -> TimeDelta {
    TimeDelta::from_std(RECHECK.min(retry.max())).unwrap_or_default()
}

/// The longest wait after a failure.
pub(super) fn longest_backoff(retry: &Retry) -> TimeDelta {
    TimeDelta::from_std(LONGEST_RETRY_AFTER.max(retry.max())).unwrap_or(TimeDelta::MAX)
}

/// How many failures in a row are repeated as soon as the spec says, even if that is sooner than the shortest interval.
const QUICK_RETRIES: i32 = 2;

/// A failure, as far as the time of the next attempt depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    /// Failures in a row, with this one.
    pub failures: i32,
    /// Whether the same request would be rejected again.
    pub is_refusal: bool,
    /// The pause that the server asked for.
    pub retry_after: Option<Duration>,
}

/// When a run that failed may be repeated.
#[must_use]
pub fn retry_at(
    retry: &Retry,
    failed: Failed,
    min_interval: TimeDelta,
    random: f64,
    now: DateTime<Utc>,
) -> DateTime<Utc> {
    let Failed { failures, is_refusal, retry_after } = failed;
    let wait = if is_refusal {
        let wait = RECHECK.min(retry.max());
        backoff(1, wait, wait, random, None)
    } else {
        backoff(failures, retry.initial(), retry.max(), random, retry_after)
    };
    let shortest = if failures > QUICK_RETRIES { min_interval } else { TimeDelta::zero() };
    later(now, TimeDelta::from_std(wait).unwrap_or_default().max(shortest))
}

/// A moment as status tells it. One that is further away than this program ever waits is not believed.
pub(super) fn believed(at: DateTime<Utc>, longest: TimeDelta, now: DateTime<Utc>) -> DateTime<Utc> {
    // Clocks of replicas may differ a little, and moments are rounded up.
    if at > later(now, longest + TimeDelta::minutes(1)) { now } else { at }
}

/// No value is fetched sooner after the one before, however short it lives.
pub(super) const SHORTEST_PAUSE: TimeDelta = TimeDelta::seconds(1);

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
        // Renewing about as long before the end as the value lives would fetch almost without a pause.
        _ => share(length, f64::from(refresh.percentage()) / 100.0 * (1.0 - jitter / 20.0)),
    };
    let at = later(expires_at, -before);
    Some(if length >= SHORT { floor(at) } else { at })
}

/// Whether a value of this lifetime can be renewed that long before its end, and is left alone for a twentieth of its
/// lifetime before.
#[must_use]
pub fn keeps(renew_before: crate::api::Duration, length: TimeDelta) -> bool {
    renew_before.as_chrono() <= length - length / 20
}

/// When this process starts the refresh: for short lifetimes by the exact times, where it knows them, but before the
/// moment at which others, who see whole seconds, take the value for expired.
pub(super) fn refresh_moment(
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
