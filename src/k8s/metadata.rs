//! Metadata without `managedFields`, or with no more of them than who wrote and when: nobody here asks which fields were
//! written, and each of them would be decoded to an object of its own.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference, Time};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// For `#[serde(deserialize_with = …)]`: all metadata but `managedFields`.
///
/// # Errors
/// Those of the format.
pub fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let mut metadata = Slim::deserialize(deserializer)?;
    metadata.managed_fields = None;
    Ok(metadata)
}

#[derive(Deserialize)]
#[serde(remote = "ObjectMeta", rename_all = "camelCase")]
struct Slim {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    generate_name: Option<String>,
    generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "writers")]
    managed_fields: Option<Vec<ManagedFieldsEntry>>,
    name: Option<String>,
    namespace: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    resource_version: Option<String>,
    self_link: Option<String>,
    uid: Option<String>,
}

fn writers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<ManagedFieldsEntry>>, D::Error> {
    #[derive(Deserialize)]
    struct Writer {
        manager: Option<String>,
        time: Option<Time>,
    }
    let entries = Option::<Vec<Writer>>::deserialize(deserializer)?;
    let entry = |Writer { manager, time }| ManagedFieldsEntry { manager, time, ..ManagedFieldsEntry::default() };
    Ok(entries.map(|entries| entries.into_iter().map(entry).collect()))
}

/// The metadata of an object, with who wrote and when; the API server is asked for nothing more.
#[derive(Deserialize)]
#[serde(bound = "")]
pub struct MetadataOnly<K> {
    #[serde(deserialize_with = "Slim::deserialize")]
    metadata: ObjectMeta,
    #[serde(skip)]
    of: PhantomData<fn() -> K>,
}

impl<K> Clone for MetadataOnly<K> {
    fn clone(&self) -> Self {
        Self { metadata: self.metadata.clone(), of: PhantomData }
    }
}

impl<K> fmt::Debug for MetadataOnly<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.metadata.fmt(f)
    }
}

impl<K: Resource> Resource for MetadataOnly<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn metadata_api() -> bool {
        true
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Secret;
    use serde_json::json;

    use super::*;

    #[test]
    fn all_metadata_is_read_but_which_fields_were_managed() {
        let mut full = json!({
            "annotations": {"a": "b"}, "creationTimestamp": "2026-03-01T12:00:00Z", "deletionGracePeriodSeconds": 3,
            "deletionTimestamp": "2026-03-01T12:00:01Z", "finalizers": ["f"], "generateName": "g-", "generation": 4,
            "labels": {"c": "d"}, "name": "n", "namespace": "ns", "resourceVersion": "5", "selfLink": "/s", "uid": "u",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "v", "controller": true}],
        });
        let mut sent = full.clone();
        full["managedFields"] = json!([{"manager": "kubectl", "time": "2026-03-01T12:00:02Z"}]);
        sent["managedFields"] = full["managedFields"].clone();
        sent["managedFields"][0]["fieldsV1"] = json!({"f:data": {}});
        let read: MetadataOnly<Secret> = serde_json::from_value(json!({ "metadata": sent.clone() })).unwrap();
        assert_eq!(serde_json::to_value(read.meta()).unwrap(), full);

        #[derive(Deserialize)]
        struct Object(#[serde(deserialize_with = "metadata")] ObjectMeta);
        let Object(read) = serde_json::from_value(sent).unwrap();
        full.as_object_mut().unwrap().remove("managedFields");
        assert_eq!(serde_json::to_value(read).unwrap(), full);
    }
}
