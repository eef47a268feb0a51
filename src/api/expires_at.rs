//! The moment at which a value expires.

use std::{borrow::Cow, fmt, str::FromStr};

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::time;

/// When a value expires: a moment, or never. Written as RFC 3339 in UTC and whole seconds, or as `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExpiresAt {
    /// It expires at this moment: at it, the value is no longer valid.
    At(DateTime<Utc>),
    /// It does not expire. Later than any moment.
    Never,
}

const NEVER: &str = "never";

impl ExpiresAt {
    /// Whether the value is valid no longer.
    #[must_use]
    pub fn is_past(self, now: DateTime<Utc>) -> bool {
        matches!(self, Self::At(moment) if moment <= now)
    }

    /// The moment, unless it is never.
    #[must_use]
    pub fn moment(self) -> Option<DateTime<Utc>> {
        match self {
            Self::At(moment) => Some(moment),
            Self::Never => None,
        }
    }

    /// Cut down to whole seconds, as it is stored: what others read is never later than the truth.
    #[must_use]
    pub fn whole_seconds(self) -> Self {
        match self {
            Self::At(moment) => Self::At(time::floor(moment)),
            Self::Never => Self::Never,
        }
    }
}

impl fmt::Display for ExpiresAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(moment) => f.write_str(&time::rfc3339(*moment)),
            Self::Never => f.write_str(NEVER),
        }
    }
}

impl FromStr for ExpiresAt {
    type Err = chrono::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == NEVER { Ok(Self::Never) } else { time::parse_rfc3339(text).map(Self::At) }
    }
}

impl Serialize for ExpiresAt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ExpiresAt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for ExpiresAt {
    fn schema_name() -> Cow<'static, str> {
        "ExpiresAt".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_expired_at_its_moment_and_not_before() -> Result<(), chrono::ParseError> {
        let expiry: ExpiresAt = "2026-01-02T03:04:05Z".parse()?;
        assert!(!expiry.is_past(time::parse_rfc3339("2026-01-02T03:04:04.999Z")?));
        assert!(expiry.is_past(time::parse_rfc3339("2026-01-02T03:04:05Z")?));
        assert!(!ExpiresAt::Never.is_past(DateTime::<Utc>::MAX_UTC));
        Ok(())
    }

    #[test]
    fn it_is_stored_in_utc_and_never_later_than_the_truth() -> Result<(), chrono::ParseError> {
        let expiry: ExpiresAt = "2026-01-02T05:04:05.999+02:00".parse()?;
        assert_eq!(expiry.whole_seconds().to_string(), "2026-01-02T03:04:05Z");
        assert_eq!("never".parse::<ExpiresAt>()?.to_string(), "never");
        Ok(())
    }
}
