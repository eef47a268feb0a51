//! The one place that reads a clock, and that knows how times are written.

use std::{sync::Arc, time::SystemTime};

use chrono::{DateTime, SecondsFormat, SubsecRound as _, TimeDelta, Utc};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp,
};

/// The clock that is handed to whatever must know the time of day. Decisions take the moment itself instead.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> TimeDelta + Send + Sync>);

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(TimeDelta::zero))
    }

    /// The system's clock, plus what `offset` gives at each reading.
    #[must_use]
    pub fn corrected(offset: impl Fn() -> TimeDelta + Send + Sync + 'static) -> Self {
        Self(Arc::new(offset))
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> DateTime<Utc> {
        later(Utc::now(), (self.0)())
    }

    /// Whether a deadline has passed.
    #[must_use]
    pub fn has_passed(&self, deadline: Deadline) -> bool {
        let Some(moment) = deadline.0 else { return false };
        let (now, offset) = (SystemTime::now(), (self.0)());
        // Most clocks are right, and then nothing is computed.
        match offset.to_std() {
            Ok(ahead) if ahead.is_zero() => moment <= now,
            Ok(ahead) => now.checked_add(ahead).is_none_or(|now| moment <= now),
            Err(_) => moment.checked_add(offset.abs().to_std().unwrap_or_default()).is_some_and(|moment| moment <= now),
        }
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

/// A moment in the system clock's own terms, for those who ask all the time whether it is past: a calendar would cost
/// them more than the clock.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<SystemTime>);

impl Deadline {
    /// At this moment, or never.
    #[must_use]
    pub fn at(moment: Option<DateTime<Utc>>) -> Self {
        Self(moment.map(SystemTime::from))
    }
}

/// Cut to whole seconds, as times are stored.
#[must_use]
pub fn floor(moment: DateTime<Utc>) -> DateTime<Utc> {
    moment.trunc_subsecs(0)
}

/// Up to the next whole second, for moments before which nothing may happen.
#[must_use]
pub fn ceil(moment: DateTime<Utc>) -> DateTime<Utc> {
    let floor = floor(moment);
    if floor == moment { moment } else { later(floor, TimeDelta::seconds(1)) }
}

/// RFC 3339, UTC, whole seconds: `2026-01-02T03:04:05Z`.
#[must_use]
pub fn rfc3339(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Reads RFC 3339 with any offset and any fraction of a second.
///
/// # Errors
/// When the text is something else.
pub fn parse_rfc3339(text: &str) -> Result<DateTime<Utc>, chrono::ParseError> {
    DateTime::parse_from_rfc3339(text).map(|moment| moment.to_utc())
}

/// A later (or, by a negative delta, earlier) moment; at the end of the calendar, the end of the calendar.
#[must_use]
pub fn later(moment: DateTime<Utc>, delta: TimeDelta) -> DateTime<Utc> {
    let end = if delta < TimeDelta::zero() { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    moment.checked_add_signed(delta).unwrap_or(end)
}

/// How long from `now` until `moment`; zero when it is past.
#[must_use]
pub fn until(moment: DateTime<Utc>, now: DateTime<Utc>) -> std::time::Duration {
    moment.signed_duration_since(now).to_std().unwrap_or_default()
}

fn timestamp(moment: DateTime<Utc>) -> Timestamp {
    Timestamp::from_microsecond(moment.timestamp_micros()).unwrap_or_default()
}

/// As Kubernetes' `Time`, for conditions.
#[must_use]
pub fn to_kube(moment: DateTime<Utc>) -> Time {
    Time(timestamp(floor(moment)))
}

/// From Kubernetes' `Time`.
#[must_use]
pub fn from_kube(time: &Time) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.0.as_second(), 0)
}

/// As Kubernetes' `MicroTime`, for Leases.
#[must_use]
pub fn to_kube_micro(moment: DateTime<Utc>) -> MicroTime {
    MicroTime(timestamp(moment))
}

/// `Option<DateTime<Utc>>` in RFC 3339 and whole seconds, for serde.
pub mod rfc3339_option {
    use std::borrow::Cow;

    use super::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    /// # Errors
    /// None of its own.
    pub fn serialize<S: Serializer>(moment: &Option<DateTime<Utc>>, serializer: S) -> Result<S::Ok, S::Error> {
        match moment {
            Some(moment) => serializer.serialize_str(&super::rfc3339(*moment)),
            None => serializer.serialize_none(),
        }
    }

    /// # Errors
    /// When the text is not RFC 3339.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        Option::<Cow<'de, str>>::deserialize(deserializer)?
            .map(|text| super::parse_rfc3339(&text).map_err(D::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_at_the_end_of_the_calendar_do_not_overflow() {
        assert_eq!(later(DateTime::<Utc>::MAX_UTC, TimeDelta::seconds(1)), DateTime::<Utc>::MAX_UTC);
        assert_eq!(later(DateTime::<Utc>::MIN_UTC, TimeDelta::seconds(-1)), DateTime::<Utc>::MIN_UTC);
        assert_eq!(ceil(DateTime::<Utc>::MAX_UTC), DateTime::<Utc>::MAX_UTC);
    }

    #[test]
    fn a_deadline_is_past_when_the_clock_says_so() {
        let now = Utc::now();
        let of = |hours: i64| later(now, TimeDelta::hours(hours));
        for (offset, moment, expected) in [
            (0, Some(now), true),
            (0, Some(DateTime::UNIX_EPOCH), true),
            (0, Some(of(1)), false),
            (0, None, false),
            (2, Some(of(1)), true),
            (2, Some(of(3)), false),
            (-2, Some(of(-1)), false),
            (-2, Some(of(-3)), true),
            (-2, Some(DateTime::<Utc>::MAX_UTC), false),
            (-2, None, false),
        ] {
            let clock = Clock::corrected(move || TimeDelta::hours(offset));
            assert_eq!(clock.has_passed(Deadline::at(moment)), expected, "{offset} h: {moment:?}");
        }
    }

    #[test]
    fn moments_are_cut_down_or_up_to_whole_seconds() -> Result<(), chrono::ParseError> {
        let moment = parse_rfc3339("2026-01-02T03:04:05.001Z")?;
        assert_eq!(rfc3339(floor(moment)), "2026-01-02T03:04:05Z");
        assert_eq!(rfc3339(ceil(moment)), "2026-01-02T03:04:06Z");
        assert_eq!(ceil(floor(moment)), floor(moment));
        Ok(())
    }
}
