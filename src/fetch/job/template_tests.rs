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
        "imagePullSecrets": [{"name": "pull"}],
    })));
    let expected = [("a", false), ("b", true), ("c", false), ("d", false), ("pull", true)];
    assert_eq!(found, expected.map(|(name, optional)| (name.to_owned(), optional)).into());
}

#[test]
fn references_to_absent_secrets_are_left_out_and_all_others_stay() {
    let spec = |gone: bool| {
        let env = |name: &str| json!({"name": name, "valueFrom": {"secretKeyRef": {"name": name, "key": "k", "optional": true}}});
        let from = |name: &str| json!({"secretRef": {"name": name, "optional": true}});
        let of = |make: &dyn Fn(&str) -> Value| {
            let all = [make("kept"), make("gone")];
            Value::Array(all.into_iter().take(if gone { 2 } else { 1 }).collect())
        };
        let container = json!({"name": "a", "env": of(&env), "envFrom": of(&from), "image": "i"});
        let empty = |name: &str, volume: Value| {
            let mut volume = if gone { volume } else { json!({"emptyDir": {}}) };
            volume["name"] = name.into();
            volume
        };
        json!({
            "initContainers": [container], "containers": [container],
            "imagePullSecrets": of(&|name| json!({"name": name})),
            "volumes": [
                {"name": "v", "secret": {"secretName": "kept", "optional": true}},
                empty("w", json!({"secret": {"secretName": "gone", "optional": true}})),
                {"name": "x", "projected": {"sources": of(&|name| json!({"secret": {"name": name, "optional": true}}))}},
                empty("y", json!({"projected": {"sources": [{"secret": {"name": "gone", "optional": true}}]}})),
                {"name": "z", "configMap": {"name": "gone"}},
            ],
        })
    };
    let absent = BTreeSet::from(["gone".to_owned()]);
    assert_eq!(without(&job(spec(true)), &absent), job(spec(false)));
    assert_eq!(without(&job(spec(true)), &BTreeSet::new()), job(spec(true)));
    for odd in [json!(null), json!("x"), json!({"containers": {"env": "x"}, "volumes": [1, {"projected": null}]})] {
        assert_eq!(without(&job(odd.clone()), &absent), job(odd));
    }
}

#[test]
fn the_service_account_counts_where_the_pod_can_use_its_identity() {
    let source =
        |source: Value| json!([{"name": "v", "projected": {"sources": [{"configMap": {"name": "c"}}, source]}}]);
    for (change, expected) in [
        (json!({}), None),
        (json!({"automountServiceAccountToken": false}), None),
        (json!({"automountServiceAccountToken": true}), Some("default")),
        (json!({"volumes": source(json!({"serviceAccountToken": {"path": "t"}}))}), Some("default")),
        (json!({"volumes": source(json!({"podCertificate": {"signerName": "s"}}))}), Some("default")),
        (json!({"volumes": source(json!({"sourceOfTheFuture": {}}))}), Some("default")),
        (json!({"volumes": source(json!({"clusterTrustBundle": {"name": "b"}}))}), None),
        (json!({"volumes": source(json!({"secret": {"name": "s"}, "serviceAccountToken": null}))}), None),
        (json!({"volumes": source(json!({"downwardAPI": {}}))}), None),
        (json!({"volumes": [{"name": "v", "csi": {"driver": "secrets-store.csi.k8s.io"}}]}), Some("default")),
        (json!({"volumes": [{"name": "v", "ephemeral": {}}]}), Some("default")),
        (json!({"volumes": [{"name": "v", "emptyDir": {}}]}), None),
        (json!({"serviceAccountName": "robot"}), Some("robot")),
        (json!({"serviceAccount": "robot"}), Some("robot")),
        (json!({"serviceAccountName": "robot", "automountServiceAccountToken": false}), Some("robot")),
    ] {
        assert_eq!(service_account(&with(change.clone())), expected, "{change}");
    }
    let mut labelled = with(json!({}));
    labelled.template.0["metadata"] = json!({"labels": {"azure.workload.identity/use": "true"}});
    assert_eq!(service_account(&labelled), Some("default"));
}

#[test]
fn the_audiences_of_all_tokens_that_the_pod_mounts_are_found() {
    let token = |audience: Value| json!({"serviceAccountToken": {"path": "t", "audience": audience}});
    let volumes =
        json!([{"name": "v", "projected": {"sources": [token(json!("a")), token(json!(null)), token(json!(""))]}}]);
    let api = Vec::<String>::new;
    for (change, expected) in [
        (json!({}), vec![]),
        (json!({"serviceAccountName": "robot"}), vec![api()]),
        (json!({"serviceAccountName": "robot", "automountServiceAccountToken": false}), vec![]),
        (json!({"automountServiceAccountToken": true}), vec![api()]),
        (json!({"volumes": volumes}), vec![vec!["a".to_owned()], api(), api()]),
    ] {
        assert_eq!(token_audiences(&with(change.clone())), expected, "{change}");
    }
}

#[test]
fn jobs_that_name_no_account_get_the_chosen_one_without_its_token() {
    let under = |change: Value| under(with(change), Some("none")).template.0["spec"].clone();
    let spec = under(json!({}));
    assert_eq!((&spec["serviceAccountName"], &spec["automountServiceAccountToken"]), (&json!("none"), &json!(false)));
    let spec = under(json!({"automountServiceAccountToken": true}));
    assert_eq!((&spec["serviceAccountName"], &spec["automountServiceAccountToken"]), (&json!("none"), &json!(true)));
    let spec = under(json!({"serviceAccountName": "robot"}));
    assert_eq!((&spec["serviceAccountName"], spec.get("automountServiceAccountToken")), (&json!("robot"), None));
    assert_eq!(super::under(with(json!({})), None), with(json!({})));
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
        assert_eq!(crate::fetch::check("ns", &cache.spec), Ok(()), "{:?}", cache.metadata.name);
    }
}
