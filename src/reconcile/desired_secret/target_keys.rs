//! Which labels and annotations of a Secret come from `target`: those that the spec no longer has are removed, and those
//! of other clients stay.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::{
    Target,
    names::{ANNOTATION_TARGET_KEYS, FIELD_MANAGER, RESERVED_PREFIX},
};

/// The keys of labels and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TargetKeys {
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    labels: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    annotations: BTreeSet<String>,
}

impl TargetKeys {
    /// Those that the spec has.
    fn of(target: &Target) -> Self {
        let keys = |map: &BTreeMap<String, String>| map.keys().cloned().collect();
        Self { labels: keys(&target.labels), annotations: keys(&target.annotations) }
    }

    /// Those that the spec had when the Secret was written, as the Secret records them.
    fn recorded(metadata: &ObjectMeta) -> Option<Self> {
        serde_json::from_str(metadata.annotations.as_ref()?.get(ANNOTATION_TARGET_KEYS)?).ok()
    }

    /// Those that tokencache wrote, as the API server tracks them: for a Secret of a version that recorded nothing.
    fn managed(metadata: &ObjectMeta) -> Self {
        let entries = metadata.managed_fields.iter().flatten();
        let ours = entries.filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
        let mut keys = Self::default();
        for fields in ours.filter_map(|entry| entry.fields_v1.as_ref()) {
            keys.labels.extend(names(&fields.0["f:metadata"]["f:labels"]));
            keys.annotations.extend(names(&fields.0["f:metadata"]["f:annotations"]));
        }
        keys
    }
}

/// The keys of all labels and annotations that come from `target`, as the Secret records them.
pub(super) fn all(metadata: &ObjectMeta) -> BTreeSet<String> {
    let recorded = TargetKeys::recorded(metadata).unwrap_or_default();
    recorded.labels.into_iter().chain(recorded.annotations).collect()
}

/// The names of the fields of a map in `fieldsV1`.
fn names(fields: &Value) -> impl Iterator<Item = String> {
    fields
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys())
        .filter_map(|key| Some(key.strip_prefix("f:")?.into()))
}

/// Whether only `managedFields` can tell which of the labels and annotations come from an earlier `target`.
pub(super) fn are_unknown(target: &Target, metadata: &ObjectMeta) -> bool {
    let foreign = |map: &Option<BTreeMap<String, String>>, known: &BTreeMap<String, String>| {
        map.iter().flatten().any(|(key, _)| !key.starts_with(RESERVED_PREFIX) && !known.contains_key(key))
    };
    TargetKeys::recorded(metadata).is_none()
        && (foreign(&metadata.labels, &target.labels) || foreign(&metadata.annotations, &target.annotations))
}

/// Puts the target's labels and annotations on a Secret's metadata, removes those of the target that it was written for,
/// and records which they are.
pub(super) fn replace(target: &Target, metadata: &mut ObjectMeta) {
    let former = TargetKeys::recorded(metadata).unwrap_or_else(|| TargetKeys::managed(metadata));
    let own = |key: &String| key.starts_with(RESERVED_PREFIX);
    let labels = metadata.labels.get_or_insert_default();
    labels.retain(|key, _| own(key) || !former.labels.contains(key));
    labels.extend(target.labels.clone());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| own(key) || !former.annotations.contains(key));
    annotations.extend(target.annotations.clone());
    let record = serde_json::to_string(&TargetKeys::of(target)).unwrap_or_default();
    annotations.insert(ANNOTATION_TARGET_KEYS.to_owned(), record);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target(value: Value) -> Target {
        serde_json::from_value(value).unwrap()
    }

    fn metadata(value: Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    fn written(target: &Target, mut metadata: ObjectMeta) -> Value {
        replace(target, &mut metadata);
        json!({"labels": metadata.labels, "annotations": metadata.annotations})
    }

    #[test]
    fn keys_that_the_spec_no_longer_has_are_removed_and_those_of_others_stay() {
        let record = json!({"labels": ["team", "app"], "annotations": ["note"]}).to_string();
        let found = metadata(json!({
            "labels": {"team": "blue", "app": "x", "backup": "yes", "tokencache.dev/managed": "true"},
            "annotations": {"note": "ours", "seen-by": "scanner", ANNOTATION_TARGET_KEYS: record},
        }));
        assert!(!are_unknown(&Target::default(), &found));
        assert_eq!(
            written(&target(json!({"labels": {"app": "y"}})), found),
            json!({
                "labels": {"app": "y", "backup": "yes", "tokencache.dev/managed": "true"},
                "annotations": {"seen-by": "scanner", ANNOTATION_TARGET_KEYS: r#"{"labels":["app"]}"#},
            })
        );
    }

    #[test]
    fn where_nothing_is_recorded_the_fields_that_tokencache_manages_tell() {
        let fields = |labels: Value| json!({"f:metadata": {"f:labels": labels, "f:annotations": {"f:note": {}}}});
        let found = |annotations: Value| {
            metadata(json!({
                "labels": {"team": "blue", "backup": "yes", "tokencache.dev/managed": "true"}, "annotations": annotations,
                "managedFields": [
                    {"manager": "tokencache", "fieldsV1": fields(json!({
                        ".": {}, "f:team": {}, "f:tokencache.dev/managed": {},
                    }))},
                    {"manager": "kubectl-label", "fieldsV1": fields(json!({"f:backup": {}}))},
                ],
            }))
        };
        for annotations in [json!({"note": "ours"}), json!({"note": "ours", ANNOTATION_TARGET_KEYS: "made up"})] {
            let found = found(annotations);
            assert!(are_unknown(&Target::default(), &found));
            assert_eq!(
                written(&Target::default(), found),
                json!({
                    "labels": {"backup": "yes", "tokencache.dev/managed": "true"},
                    "annotations": {ANNOTATION_TARGET_KEYS: "{}"},
                })
            );
        }
        let known = target(json!({"labels": {"team": "blue", "backup": "yes"}, "annotations": {"note": "ours"}}));
        assert!(!are_unknown(&known, &found(json!({"note": "ours"}))), "nothing could be removed");
    }

    #[test]
    fn a_made_up_record_removes_nothing_of_tokencaches_own() {
        let record =
            json!({"labels": ["tokencache.dev/managed"], "annotations": ["tokencache.dev/expires_at"]}).to_string();
        let found = metadata(json!({
            "labels": {"tokencache.dev/managed": "true"},
            "annotations": {"tokencache.dev/expires_at": "never", ANNOTATION_TARGET_KEYS: record},
        }));
        assert_eq!(
            written(&Target::default(), found),
            json!({
                "labels": {"tokencache.dev/managed": "true"},
                "annotations": {"tokencache.dev/expires_at": "never", ANNOTATION_TARGET_KEYS: "{}"},
            })
        );
    }
}
