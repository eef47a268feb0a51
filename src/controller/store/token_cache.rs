//! TokenCaches as the watch brings them. There may be very many, so each is kept as packed text, which takes less memory
//! than what it is decoded to, and read when it is looked at.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::value::RawValue;

use crate::controller::store::compact::Packed;
use crate::{
    api::{MAX_SPEC, TokenCache, names::ANNOTATION_REFRESH_REQUESTED},
    k8s::metadata,
    telemetry::metrics::Standing,
};

/// A TokenCache as the API server sends it. That one cannot be read does not end the watch of all; only its metadata
/// must be there.
#[derive(Clone, Debug, Resource)]
#[resource(inherit = TokenCache)]
pub(crate) struct Sent {
    metadata: ObjectMeta,
    text: String,
    spec: u64,
    /// How many bytes its spec has, where those are too many to keep.
    too_large: Option<usize>,
}

/// Most bytes of a status that is kept. What this program writes has a few KiB.
const MAX_STATUS: usize = 64 * 1024;

/// Most bytes of a request by annotation.
const MAX_REQUEST: usize = 1024;

/// What is kept of it.
#[derive(Serialize, Deserialize)]
struct Parts<'a> {
    #[serde(deserialize_with = "metadata::metadata")]
    metadata: ObjectMeta,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    spec: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    status: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Sent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Box::<RawValue>::deserialize(deserializer)?;
        let mut parts: Parts<'_> = serde_json::from_str(whole.get()).map_err(D::Error::custom)?;
        if let Some(annotations) = &mut parts.metadata.annotations {
            annotations.retain(|key, _| key == ANNOTATION_REFRESH_REQUESTED);
        }
        parts.metadata.annotations.take_if(|annotations| annotations.is_empty());
        // What somebody else wrote there, nobody asks for.
        parts.metadata.labels = None;
        parts.metadata.annotations.take_if(|annotations| annotations.values().any(|value| value.len() > MAX_REQUEST));
        let spec = parts.spec.map(RawValue::get);
        let too_large = spec.map(str::len).filter(|size| *size > MAX_SPEC);
        if too_large.is_some() {
            parts.spec = None;
        }
        // All that is decided by it can be found out again.
        parts.status.take_if(|status| status.get().len() > MAX_STATUS);
        parts.metadata.creation_timestamp = None;
        let text = serde_json::to_string(&parts).map_err(D::Error::custom)?;
        let mut hash = DefaultHasher::new();
        spec.hash(&mut hash);
        Ok(Self { metadata: parts.metadata, text, spec: hash.finish(), too_large })
    }
}

/// A TokenCache, or one that cannot be read.
#[derive(Clone, Debug, Resource, Deserialize)]
#[resource(inherit = TokenCache)]
#[serde(from = "Sent")]
pub(crate) struct Kept {
    /// Namespace and name, and no more.
    metadata: ObjectMeta,
    text: Packed,
    /// What is told of it at each scrape of the metrics.
    pub(in crate::controller) standing: Option<Standing>,
    /// `status.runs`
    pub(in crate::controller) runs: i64,
    /// A hash of the spec.
    pub(in crate::controller) spec: u64,
    too_large: Option<usize>,
}

/// What kube's controller is for can be sent.
impl From<Sent> for Kept {
    fn from(sent: Sent) -> Self {
        Self::of(sent).0
    }
}

impl Kept {
    /// Takes what was sent; with it comes what was read of it.
    pub(crate) fn of(sent: Sent) -> (Self, Result<TokenCache, String>) {
        let read = read(&sent.text, sent.too_large);
        let metadata =
            ObjectMeta { namespace: sent.metadata.namespace, name: sent.metadata.name, ..ObjectMeta::default() };
        let known = read.as_ref().ok();
        let runs = known.map_or(0, TokenCache::runs);
        let standing = known.map(Standing::of);
        (
            Self {
                metadata,
                text: Packed::new(&sent.text),
                standing,
                runs,
                spec: sent.spec,
                too_large: sent.too_large,
            },
            read,
        )
    }

    /// The TokenCache, or why it cannot be read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(in crate::controller) fn read(&self) -> Result<TokenCache, String> {
        read(&self.text.text(), self.too_large)
    }

    /// All metadata of one that cannot be read.
    pub(in crate::controller) fn all_metadata(&self) -> ObjectMeta {
        // What was written by the same library can be read.
        serde_json::from_str::<Parts<'_>>(&self.text.text()).map(|parts| parts.metadata).unwrap_or_default()
    }
}

fn read(text: &str, too_large: Option<usize>) -> Result<TokenCache, String> {
    if let Some(size) = too_large {
        return Err(format!("spec: has {size} bytes, more than the {MAX_SPEC} that are allowed"));
    }
    serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        // Where in the line it is says nothing to who sees no line.
        let words = text.rsplit_once(" at line ").map_or(text.as_str(), |(error, _)| error);
        format!("this controller cannot read the object: {words}; is its definition up to date?")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sent(spec: Value) -> Value {
        json!({
            "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "spec": spec, "status": {"runs": 3},
            "metadata": {
                "namespace": "ns", "name": "a", "uid": "u", "generation": 2, "resourceVersion": "7",
                "annotations": {ANNOTATION_REFRESH_REQUESTED: "1", "other": "x"},
                "managedFields": [{"manager": "kubectl"}],
            },
        })
    }

    #[test]
    fn a_token_cache_is_kept_without_what_nobody_asks_for() {
        let spec = json!({"fetch": {"oauth2": {"tokenUrl": "https://a.example"}}});
        let sent: Sent = serde_json::from_str(&sent(spec.clone()).to_string()).unwrap();
        assert_eq!(sent.metadata.resource_version.as_deref(), Some("7"), "the watch goes by it");
        let (kept, read) = Kept::of(sent);
        let cache = read.unwrap();
        assert_eq!(kept.read().unwrap(), cache);
        assert_eq!((kept.runs, kept.standing), (3, Some(Standing::of(&cache))));
        assert_eq!(serde_json::to_value(&cache.spec).unwrap(), spec);
        let annotations = cache.metadata.annotations.unwrap();
        assert_eq!(annotations.into_iter().collect::<Vec<_>>(), [(ANNOTATION_REFRESH_REQUESTED.into(), "1".into())]);
        assert_eq!((cache.metadata.managed_fields, cache.metadata.uid.as_deref()), (None, Some("u")));
    }

    #[test]
    fn one_that_cannot_be_read_says_why_and_keeps_its_metadata() {
        let sent: Sent = serde_json::from_str(&sent(json!({"fetch": 1})).to_string()).unwrap();
        let (kept, read) = Kept::of(sent);
        let complaint = read.unwrap_err();
        assert!(complaint.contains("invalid type: integer `1`") && !complaint.contains("line "), "{complaint}");
        assert_eq!(kept.read().unwrap_err(), complaint);
        assert_eq!(kept.all_metadata().generation, Some(2));
        assert!(serde_json::from_value::<Sent>(json!({"spec": {}})).is_err());
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let mut large =
            sent(json!({"fetch": {"oauth2": {"tokenUrl": "https://a.example"}}, "x": "y".repeat(MAX_SPEC)}));
        large["metadata"]["labels"] = json!({"a": "b"});
        large["metadata"]["annotations"][ANNOTATION_REFRESH_REQUESTED] = json!("x".repeat(MAX_REQUEST + 1));
        large["status"]["secretName"] = json!("x".repeat(MAX_STATUS));
        let sent: Sent = serde_json::from_str(&large.to_string()).unwrap();
        assert!(sent.text.len() < 1024, "{}", sent.text);
        let (kept, read) = Kept::of(sent);
        let complaint = read.unwrap_err();
        assert!(complaint.starts_with("spec: has 13"), "{complaint}");
        assert_eq!(kept.read().unwrap_err(), complaint);
        assert_eq!(kept.all_metadata().generation, Some(2));
    }
}
