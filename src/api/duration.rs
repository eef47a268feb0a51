//! Durations as Kubernetes writes them.

use std::{borrow::Cow, fmt, str::FromStr, time};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A length of time in the format of Go's `time.ParseDuration`: `30s`, `5m`, `1h30m`. Whole milliseconds,
/// never negative, at most ten years.
///
/// kube's own `Duration` parses the format, but panics where the number overflows or an inner part is negative. A
/// TokenCache that somebody wrote by hand must not be able to do that, so the text is checked here first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(time::Duration);

/// Also in the CRD, where the API server checks it.
const PATTERN: &str = r"^(0|([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)){1,4})$";
const MAX: time::Duration = time::Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why a text is not a [`Duration`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a duration: write it like 30s, 5m or 1h30m, at most ten years (87600h)")]
pub struct InvalidDuration {
    text: String,
}

impl Duration {
    /// A duration of whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// As the standard library's type.
    #[must_use]
    pub const fn as_std(self) -> time::Duration {
        self.0
    }

    /// As chrono's type; exact, since [`Duration`] is at most ten years.
    #[must_use]
    pub fn as_chrono(self) -> chrono::TimeDelta {
        chrono::TimeDelta::from_std(self.0).unwrap_or(chrono::TimeDelta::MAX)
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

fn is_well_formed(text: &str) -> bool {
    if text == "0" {
        return true;
    }
    let mut rest = text;
    for _ in 0..4 {
        let digits = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let whole = digits(rest);
        if !(1..=9).contains(&whole) {
            return false;
        }
        rest = &rest[whole..];
        if let Some(fraction) = rest.strip_prefix('.') {
            let length = digits(fraction);
            if !(1..=9).contains(&length) {
                return false;
            }
            rest = &fraction[length..];
        }
        let Some(after) = ["ms", "s", "m", "h"].iter().find_map(|unit| rest.strip_prefix(unit)) else {
            return false;
        };
        rest = after;
        if rest.is_empty() {
            return true;
        }
    }
    false
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, InvalidDuration> {
        let invalid = || InvalidDuration { text: text.chars().take(40).collect() };
        if !is_well_formed(text) {
            return Err(invalid());
        }
        let parsed: kube::core::Duration = text.parse().map_err(|_| invalid())?;
        // kube computes in floating point: back to the millisecond, which is as fine as the format goes here.
        let nanos = time::Duration::from(parsed).as_nanos() + 500_000;
        let parsed = time::Duration::from_millis(u64::try_from(nanos / 1_000_000).map_err(|_| invalid())?);
        if parsed > MAX { Err(invalid()) } else { Ok(Self(parsed)) }
    }
}

impl fmt::Display for Duration {
    /// Without units that are zero: `1h30m`, `45s`, `1s500ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let parts = [
            (seconds / 3600, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (u64::from(self.0.subsec_millis()), "ms"),
        ];
        if parts.iter().all(|(number, _)| *number == 0) {
            return f.write_str("0s");
        }
        parts.iter().filter(|(number, _)| *number > 0).try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 40, "pattern": PATTERN })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("0", 0),
            ("0s", 0),
            ("87600h", MAX.as_millis()),
        ] {
            assert_eq!(text.parse::<Duration>().map(|d| d.0.as_millis()), Ok(millis), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in
            ["", "5", "-5s", "1s-5s", "5 m", "5d", "1e9s", ".5s", "s", "87601h", "999999999h", "１s", "1h1h1h1h1h"]
        {
            let error = text.parse::<Duration>().expect_err(text).to_string();
            assert!(error.contains("1h30m"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "\\PC{0,30}|[0-9.smh-]{0,40}") {
            let _ = text.parse::<Duration>();
        }

        #[test]
        fn what_is_written_is_read_back(millis in 0_u64..MAX.as_millis() as u64) {
            let duration = Duration(time::Duration::from_millis(millis));
            prop_assert_eq!(duration.to_string().parse::<Duration>(), Ok(duration));
        }
    }
}
