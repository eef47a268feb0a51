use serde_json::json;

use super::*;

fn job(spec: Value) -> Job {
    serde_json::from_value(json!({"template": {"spec": spec}})).unwrap()
}

fn with(change: Value) -> Job {
    let mut spec = json!({"containers": [{"name": "a", "image": "i"}]});
    for (key, value) in change.as_object().unwrap() {
        spec[key] = value.clone();
    }
    job(spec)
}

#[test]
fn what_is_tokencaches_own_matter_is_told_by_its_field() {
    assert_eq!(check(&with(json!({}))), Ok(()));
    let two = json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]);
    let mut named = with(json!({"containers": two}));
    named.result_container = Some("b".into());
    assert_eq!(check(&named), Ok(()));
    named.result_container = Some("c".into());
    assert_eq!(check(&named).unwrap_err().field, "spec.fetch.job.resultContainer");
    for (change, field) in [
        (json!({"containers": []}), "spec.fetch.job.template.spec.containers"),
        (json!({"containers": "x"}), "spec.fetch.job.template"),
        (json!({"containers": two}), "spec.fetch.job.resultContainer"),
        (json!({"restartPolicy": "OnFailure"}), "spec.fetch.job.template.spec.restartPolicy"),
        (
            json!({"initContainers": [{"name": "x", "image": "i"}, {"name": "tokencache-x", "image": "i"}]}),
            "spec.fetch.job.template.spec.initContainers[1].name",
        ),
        (
            json!({"volumes": [{"name": "tokencache-result", "emptyDir": {}}]}),
            "spec.fetch.job.template.spec.volumes[0].name",
        ),
        (
            json!({"containers": [{"name": "a", "livenessProbe": {}}]}),
            "spec.fetch.job.template.spec.containers[0].livenessProbe",
        ),
        (
            json!({"volumes": [{"name": "v", "rbd": {"image": "x", "monitors": ["m"]}}]}),
            "spec.fetch.job.template.spec.volumes[0].rbd",
        ),
        (
            json!({"volumes": [{"name": "v", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s"}}}]}),
            "spec.fetch.job.template.spec.volumes[0].csi.nodePublishSecretRef",
        ),
    ] {
        let invalid = check(&with(change.clone())).expect_err(&change.to_string());
        assert_eq!(invalid.field, field, "{invalid}");
    }
}

#[test]
fn every_secret_that_the_pod_could_read_is_found() {
    let found = secrets(&with(json!({
        "initContainers": [{"name": "x", "envFrom": [{"secretRef": {"name": "a"}}, {"configMapRef": {"name": "no"}}]}],
        "containers": [{"name": "y", "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "b", "key": "k", "optional": true}}},
            {"name": "B", "value": "no"},
        ]}],
        "volumes": [
            {"name": "v", "secret": {"secretName": "c"}},
            {"name": "w", "projected": {"sources": [{"secret": {"name": "d"}}, {"configMap": {"name": "no"}}]}},
        ],
    })));
    let expected = [("a", false), ("b", true), ("c", false), ("d", false)];
    assert_eq!(found, expected.map(|(name, optional)| (name.to_owned(), optional)).into());
}

#[test]
fn the_service_account_counts_where_the_pod_gets_its_token() {
    let token = json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]);
    for (change, expected) in [
        (json!({}), None),
        (json!({"automountServiceAccountToken": false}), None),
        (json!({"automountServiceAccountToken": true}), Some("default")),
        (json!({"volumes": token}), Some("default")),
        (json!({"serviceAccountName": "robot"}), Some("robot")),
        (json!({"serviceAccount": "robot"}), Some("robot")),
        (json!({"serviceAccountName": "robot", "automountServiceAccountToken": false}), Some("robot")),
    ] {
        assert_eq!(service_account(&with(change.clone())), expected, "{change}");
    }
}

/// The TokenCaches of the documentation, and the example.
pub(in crate::fetch::job) fn published() -> Vec<crate::api::TokenCache> {
    let page = include_str!("../../../docs/sources/job.md");
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let manifests =
        blocks.filter(|block| block.starts_with("apiVersion")).chain([include_str!("../../../examples/job.yaml")]);
    manifests.map(|manifest| serde_saphyr::from_str(manifest).expect(manifest)).collect()
}

#[test]
fn what_is_published_is_valid() {
    let published = published();
    assert_eq!(published.len(), 4);
    for cache in published {
        assert_eq!(crate::api::validate(&cache), Ok(()), "{:?}", cache.metadata.name);
        assert_eq!(crate::fetch::check(&cache.spec), Ok(()), "{:?}", cache.metadata.name);
    }
}
