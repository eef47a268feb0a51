//! Objects as strangers write them, from the watch to the decision.
#![allow(clippy::unwrap_used, reason = "tests")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use crate::{
    api::{TokenCache, names, validate},
    controller::{Kept, Sent},
    fetch::{fetch_hash, references},
    reconcile::{
        desired_secret::{SecretState, read},
        observe::observed,
        plan::decide,
        state::Note,
        status::at_expiry,
    },
    telemetry::metrics::Standing,
    testing::{
        fixtures::{at, cache},
        random_input::{damaged, fuzz, texts},
    },
};

/// All that is published, each with a status.
fn published() -> Vec<Value> {
    let status = json!({
        "observedGeneration": 1, "expiresAt": "2026-03-01T12:10:00Z", "refreshAt": "2026-03-01T12:08:00Z",
        "fetchedAt": "2026-03-01T12:00:00Z", "runs": 3, "failures": 1, "secretResourceVersion": "7", "lastRunBy": "a",
        "refreshRequested": "2026-03-01T12:00:01Z",
        "lastFailure": {"reason": "Rejected", "message": "no", "at": "2026-03-01T12:00:01Z"},
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Fetched", "message": "", "observedGeneration": 1,
            "lastTransitionTime": "2026-03-01T12:00:00Z",
        }],
    });
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples")).unwrap();
    let texts = folder.filter_map(|file| {
        let path = file.unwrap().path();
        path.extension().is_some_and(|extension| extension == "yaml").then(|| std::fs::read_to_string(path).unwrap())
    });
    let mut objects: Vec<Value> = texts
        .flat_map(|text| serde_saphyr::from_multiple::<Value>(&text).unwrap())
        .filter(|object| object["kind"] == "TokenCache")
        .collect();
    for object in &mut objects {
        object["status"] = status.clone();
        object["metadata"]["namespace"] = json!("ns");
        object["metadata"]["uid"] = json!("uid-1");
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["annotations"] = json!({names::ANNOTATION_REFRESH_REQUESTED: "1"});
    }
    objects
}

/// All that is done with an object before anything is sent anywhere.
fn tend(cache: &TokenCache, secret: Option<&ObjectMeta>) {
    let _ = (validate(cache), references(&cache.spec), fetch_hash(&cache.spec), Standing::of(cache));
    let note = Note::default();
    let seen = observed(cache, secret, &note);
    for now in [0.0, 600.0, 1e9] {
        let _ = (decide(&seen, at(now)), at_expiry(&seen, at(now)));
    }
}

#[test]
fn any_object_from_the_watch_is_read_and_decided_upon() {
    let published = published();
    assert!(published.len() > 5);
    let mut read = 0;
    fuzz(damaged(published), |object| {
        let sent = serde_json::from_value::<Sent>(object.clone());
        if let Ok((_, Ok(cache))) = sent.map(Kept::of) {
            read += 1;
            tend(&cache, None);
        }
    });
    assert!(read > 0);
}

#[test]
fn any_annotations_of_a_secret_are_read_and_decided_upon() {
    let keys = select(vec![
        names::ANNOTATION_EXPIRES_AT,
        names::ANNOTATION_FETCHED_AT,
        names::ANNOTATION_FETCH_HASH,
        names::ANNOTATION_DATA_HASH,
        names::ANNOTATION_CHANGED_AT,
        names::ANNOTATION_REFRESH_REQUESTED,
        "other",
    ]);
    let annotations = prop::collection::btree_map(keys.prop_map(str::to_owned), texts(), 0..7);
    let version = select(vec!["7", "8", ""]);
    let refresh = select(vec![json!({}), json!({"policy": "Lazy"}), json!({"renewBefore": "5m"})]);
    fuzz((annotations, version, refresh), |(annotations, version, refresh)| {
        let cache = cache(json!({"refresh": refresh}), json!({"secretResourceVersion": "7"}));
        let metadata = json!({
            "name": "a", "uid": "u", "resourceVersion": version, "annotations": annotations,
            "labels": {names::LABEL_MANAGED: "true"},
            "ownerReferences": [{
                "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": "uid-1", "controller": true,
            }],
        });
        let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        assert!(matches!(read(&cache, Some(&metadata), None), SecretState::Owned(_)));
        tend(&cache, Some(&metadata));
    });
}
