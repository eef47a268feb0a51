//! Who wrote what of a Secret, and when, by its `managedFields`. Only a live read has them.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use serde_json::Value;

use crate::{
    api::names::{FIELD_MANAGER, RESERVED_PREFIX},
    time,
};

fn is_ours(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
}

fn moment(entry: &ManagedFieldsEntry) -> Option<DateTime<Utc>> {
    time::from_kube(entry.time.as_ref()?)
}

fn newest(entries: &[ManagedFieldsEntry]) -> Option<DateTime<Utc>> {
    entries.iter().filter(|entry| is_ours(entry)).filter_map(moment).max()
}

/// When tokencache last wrote to the Secret, by the API server's clock.
#[must_use]
pub fn written_at(metadata: &ObjectMeta) -> Option<DateTime<Utc>> {
    newest(metadata.managed_fields.as_deref().unwrap_or_default())
}

/// Whether another field manager has written data or annotations of tokencache since tokencache last wrote to the Secret.
///
/// A write that leaves a value as it was is none, and no entry tells of it, unless it is a server-side apply. Whatever others
/// wrote before, tokencache has overwritten.
#[must_use]
pub fn is_written_by_others(entries: &[ManagedFieldsEntry]) -> bool {
    let ours = newest(entries);
    // Times are whole seconds: in the same one, the other's write may be the later.
    let since = |entry: &&ManagedFieldsEntry| ours.is_none_or(|ours| moment(entry).is_none_or(|theirs| theirs >= ours));
    let theirs = entries.iter().filter(|entry| !is_ours(entry)).filter(since);
    theirs.filter_map(|entry| entry.fields_v1.as_ref()).any(|fields| has_value(&fields.0))
}

/// Whether these fields are of the value, or say something of it.
fn has_value(fields: &Value) -> bool {
    let has = |at: &str, prefix: &str| {
        let keys = fields.pointer(at).and_then(Value::as_object);
        keys.is_some_and(|keys| {
            keys.keys().any(|key| key.strip_prefix("f:").is_some_and(|key| key.starts_with(prefix)))
        })
    };
    has("/f:data", "") || has("/f:metadata/f:annotations", RESERVED_PREFIX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::fixtures::at;

    fn entries(fields: Value) -> Vec<ManagedFieldsEntry> {
        serde_json::from_value(fields).expect("entries")
    }

    #[test]
    fn when_tokencache_wrote_it_is_told_from_when_others_did() {
        let metadata = |fields| ObjectMeta { managed_fields: Some(entries(fields)), ..ObjectMeta::default() };
        let fields = json!([
            {"manager": "tokencache", "time": "2026-03-01T12:00:00Z"},
            {"manager": "tokencache", "time": "2026-03-01T12:00:07Z"},
            {"manager": "kubectl", "time": "2026-03-01T12:00:09Z"},
        ]);
        assert_eq!(written_at(&metadata(fields)), Some(at(7.0)));
        assert_eq!(written_at(&metadata(json!([]))), None);
    }

    #[test]
    fn a_later_write_of_others_to_the_value_is_seen_and_no_other() {
        let data = json!({"f:data": {"f:token": {}}});
        let annotation = |key: &str| json!({"f:metadata": {"f:annotations": {key: {}}}});
        for (manager, seconds, fields, expected) in [
            ("tokencache", 9, data.clone(), false),
            ("kubectl-edit", 9, data.clone(), true),
            ("kubectl-edit", 5, data.clone(), true),
            ("kubectl-edit", 4, data.clone(), false),
            ("kubectl-edit", 9, json!({"f:data": {".": {}}}), false),
            ("kubectl-edit", 9, json!({"f:type": {}}), false),
            ("kubectl-edit", 9, annotation("f:tokencache.dev/expires_at"), true),
            ("kubectl-edit", 9, annotation("f:tokencache.dev/data_hash"), true),
            ("kubectl-edit", 9, annotation("f:note"), false),
            ("kubectl-edit", 9, json!({"f:metadata": {"f:labels": {"f:tokencache.dev/managed": {}}}}), false),
        ] {
            let time = format!("2026-03-01T12:00:0{seconds}Z");
            let theirs = json!({"manager": manager, "time": time, "fieldsV1": fields});
            let ours = json!({"manager": "tokencache", "time": "2026-03-01T12:00:05Z", "fieldsV1": data});
            assert_eq!(is_written_by_others(&entries(json!([ours, theirs]))), expected, "{theirs}");
        }
        let theirs = json!([{"manager": "restore", "fieldsV1": data}]);
        assert!(is_written_by_others(&entries(theirs)), "without a time, and without an entry of tokencache");
        assert!(!is_written_by_others(&[]), "managedFields were removed: the hash decides");
    }
}
