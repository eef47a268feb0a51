//! A value as consumers get it.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use zeroize::Zeroizing;

use super::Error;
use crate::{
    api::{
        ExpiresAt,
        names::{ANNOTATION_DATA_HASH, ANNOTATION_EXPIRES_AT, ANNOTATION_FETCHED_AT},
    },
    k8s::{
        object::controlling_token_cache,
        secret::{SealedSecret, SecretBytes},
    },
    time::{self, Clock, Deadline},
};

/// A credential with its lifetime. Its keys and bytes do not print, and are wiped when it is dropped.
#[derive(Clone)]
pub struct Value {
    data: BTreeMap<String, SecretBytes>,
    expires_at: ExpiresAt,
    deadline: Deadline,
    stamp: Stamp,
}

/// Which value it is, without the value: what a conditional refresh is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub(super) fetched_at: DateTime<Utc>,
    pub(super) hash: String,
}

/// The key under which a Secret holds its value, unless `target.data` says otherwise.
const TOKEN: &str = "token";

impl Value {
    /// One that expired long ago.
    pub(super) fn none() -> Self {
        let long_ago = DateTime::UNIX_EPOCH;
        Self::new(BTreeMap::new(), ExpiresAt::At(long_ago), Stamp { fetched_at: long_ago, hash: String::new() })
    }

    fn new(data: BTreeMap<String, SecretBytes>, expires_at: ExpiresAt, stamp: Stamp) -> Self {
        Self { data, expires_at, deadline: Deadline::at(expires_at.moment()), stamp }
    }

    pub(super) fn has_expired(&self, clock: &Clock) -> bool {
        clock.has_passed(self.deadline)
    }

    /// For how long it was valid when it was fetched; nothing where it does not expire.
    pub(super) fn lifetime(&self) -> Option<TimeDelta> {
        Some(self.expires_at.moment()?.signed_duration_since(self.fetched_at()).max(TimeDelta::zero()))
    }

    /// When it expires.
    #[must_use]
    pub fn expires_at(&self) -> ExpiresAt {
        self.expires_at
    }

    /// When it was fetched, in whole seconds.
    #[must_use]
    pub fn fetched_at(&self) -> DateTime<Utc> {
        self.stamp.fetched_at
    }

    /// Which value it is.
    #[must_use]
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// The bytes under a key of the Secret.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&SecretBytes> {
        self.data.get(key)
    }

    /// The keys and their bytes, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &SecretBytes)> {
        self.data.iter().map(|(key, bytes)| (key.as_str(), bytes))
    }

    /// The bytes under that key, or, where none is named, under `token` or under the only key.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`], with the keys that there are.
    pub fn select(&self, key: Option<&str>) -> Result<&SecretBytes, Error> {
        let found = match key {
            Some(key) => self.data.get(key),
            None => self.data.get(TOKEN).or_else(|| self.data.values().next().filter(|_| self.data.len() == 1)),
        };
        found.ok_or_else(|| Error::NoSuchKey {
            key: key.unwrap_or(TOKEN).to_owned(),
            keys: self.data.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// `{"data": {…}, "expiresAt": …, "fetchedAt": …}` and a line's end, with all keys or with one of them.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`], and [`Error::NotText`] where a value is not UTF-8.
    pub fn to_json(&self, key: Option<&str>) -> Result<Zeroizing<Vec<u8>>, Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Shown<'a> {
            data: BTreeMap<&'a str, &'a str>,
            expires_at: String,
            fetched_at: String,
        }
        if key.is_some() {
            self.select(key)?;
        }
        let mut data = BTreeMap::new();
        for (name, bytes) in self.entries().filter(|(name, _)| key.is_none_or(|key| key == *name)) {
            let text = std::str::from_utf8(bytes.expose()).map_err(|_| Error::NotText { key: name.to_owned() })?;
            data.insert(name, text);
        }
        let expires_at = self.expires_at.whole_seconds().to_string();
        let shown = Shown { data, expires_at, fetched_at: time::rfc3339(self.fetched_at()) };
        // Large enough, so that no part of it stays behind where it grew.
        let size = self.entries().map(|(key, bytes)| 6 * (key.len() + bytes.expose().len()) + 8).sum::<usize>() + 128;
        let mut json = Zeroizing::new(Vec::with_capacity(size));
        let written = serde_json::to_writer(&mut *json, &shown);
        written.map_err(|error| Error::Api(Arc::new(kube::Error::SerdeError(error))))?;
        json.push(b'\n');
        Ok(json)
    }

    /// How long it is valid yet; nothing where it has expired, and the longest time where it does not expire.
    #[must_use]
    pub fn remaining(&self, now: DateTime<Utc>) -> Option<TimeDelta> {
        match self.expires_at {
            ExpiresAt::Never => Some(TimeDelta::MAX),
            ExpiresAt::At(moment) => {
                let left = moment.signed_duration_since(now);
                (left > TimeDelta::zero()).then_some(left)
            }
        }
    }
}

/// As one word without spaces or quotes, for those who hand it on as text.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", time::rfc3339(self.fetched_at), self.hash)
    }
}

/// A text is no [`Stamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this does not say which value it is")]
pub struct InvalidStamp;

impl FromStr for Stamp {
    type Err = InvalidStamp;

    fn from_str(text: &str) -> Result<Self, InvalidStamp> {
        let (fetched_at, hash) = text.split_once('/').ok_or(InvalidStamp)?;
        let known = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !hash.chars().all(known) {
            return Err(InvalidStamp);
        }
        Ok(Self { fetched_at: time::parse_rfc3339(fetched_at).map_err(|_| InvalidStamp)?, hash: hash.to_owned() })
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value")
            .field("expires_at", &self.expires_at)
            .field("fetched_at", &self.stamp.fetched_at)
            .finish_non_exhaustive()
    }
}

/// The Secret of a TokenCache as a consumer finds it.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// There is none, or none that holds a value.
    Absent,
    /// It belongs to somebody else.
    Foreign,
    /// It is the TokenCache's own.
    Own(Arc<Value>),
}

impl Found {
    /// Reads the Secret of the TokenCache of that name.
    pub(super) fn of(cache: &str, secret: Option<SealedSecret>) -> Self {
        let Some(secret) = secret else { return Self::Absent };
        if !is_own(cache, &secret.metadata) {
            return Self::Foreign;
        }
        let annotation = |key: &str| secret.metadata.annotations.as_ref().and_then(|map| map.get(key));
        let expires_at = annotation(ANNOTATION_EXPIRES_AT).and_then(|text| text.parse().ok());
        let fetched_at = annotation(ANNOTATION_FETCHED_AT).and_then(|text| time::parse_rfc3339(text).ok());
        // Without them nobody knows whether it is valid: the controller fetches anew.
        let (Some(expires_at), Some(fetched_at)) = (expires_at, fetched_at) else { return Self::Absent };
        let hash = annotation(ANNOTATION_DATA_HASH).cloned().unwrap_or_default();
        let stamp = Stamp { fetched_at, hash };
        Self::Own(Arc::new(Value::new(secret.data, expires_at, stamp)))
    }

    pub(super) fn value(&self) -> Option<&Arc<Value>> {
        match self {
            Self::Own(value) => Some(value),
            Self::Absent | Self::Foreign => None,
        }
    }
}

/// Whether the controlling owner is the TokenCache of that name.
pub(super) fn is_own(cache: &str, metadata: &ObjectMeta) -> bool {
    controlling_token_cache(metadata).is_some_and(|owner| owner.name == cache)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    /// A Secret of the TokenCache `a` with a value fetched at one and expiring at the other time.
    pub(in crate::client) fn secret(fetched_at: &str, expires_at: &str, data: Json) -> SealedSecret {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {
                "name": "a",
                "ownerReferences": [{
                    "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": "u",
                    "controller": true,
                }],
                "annotations": {
                    ANNOTATION_FETCHED_AT: fetched_at, ANNOTATION_EXPIRES_AT: expires_at,
                    ANNOTATION_DATA_HASH: format!("{fetched_at} {expires_at} {data}"),
                },
            },
            "data": data,
        }))
        .unwrap()
    }

    /// A value that does not expire.
    pub(crate) fn value(data: Json) -> Arc<Value> {
        let secret = secret("2026-03-01T12:00:00Z", "never", data);
        Found::of("a", Some(secret)).value().unwrap().clone()
    }

    #[test]
    fn the_key_token_or_the_only_one_is_taken_unless_one_is_named() {
        let (one, two) = (json!({"a": "MQ=="}), json!({"a": "MQ==", "b": "Mg=="}));
        let with_token = json!({"a": "MQ==", "token": "Mg=="});
        for (data, key, expected) in [
            (&one, None, Some("1")),
            (&two, None, None),
            (&two, Some("b"), Some("2")),
            (&two, Some("c"), None),
            (&with_token, None, Some("2")),
            (&json!({}), None, None),
        ] {
            let value = value(data.clone());
            let found = value.select(key).ok().map(|bytes| std::str::from_utf8(bytes.expose()).unwrap());
            assert_eq!(found, expected, "{data} {key:?}");
        }
        let error = value(two).select(None).unwrap_err().to_string();
        assert!(error.contains("a, b"), "{error}");
    }

    #[test]
    fn a_value_does_not_print() {
        let text = format!("{:?}", value(json!({"token": "aHVudGVyMg=="})));
        assert!(!text.contains("hunter2") && !text.contains("104") && text.contains("Never"), "{text}");
    }

    #[test]
    fn only_a_secret_that_the_token_cache_controls_is_its_own() {
        let good = secret("2026-03-01T12:00:00Z", "never", json!({}));
        assert!(matches!(Found::of("a", Some(good.clone())), Found::Own(_)));
        assert!(matches!(Found::of("b", Some(good.clone())), Found::Foreign));
        assert!(matches!(Found::of("a", None), Found::Absent));
        let mut free = good.clone();
        free.metadata.owner_references = None;
        assert!(matches!(Found::of("a", Some(free)), Found::Foreign));
        let mut bare = good;
        bare.metadata.annotations = None;
        assert!(matches!(Found::of("a", Some(bare)), Found::Absent));
    }
}
