//! `tokencache-controller`, for workloads: their restart, and nothing else.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use serde_json::{Value, json};

use super::{Actor, Allow, Deny, create, delete, patch, rule, stage};
use crate::support::{Namespace, scenario};

fn workload(kind: &str) -> Value {
    let labels = json!({"app": "web"});
    let mut workload = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": "web", "labels": labels, "annotations": {"note": "x"}},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels, "annotations": {"note": "x"}},
            "spec": {"nodeSelector": {"tokencache.test/node": "none"}, "containers": [{"name": "a", "image": "x"}]},
        }},
    });
    match kind {
        "Deployment" => workload["spec"]["replicas"] = 0.into(),
        "StatefulSet" => {
            workload["spec"]["replicas"] = 0.into();
            workload["spec"]["serviceName"] = "web".into();
        }
        _ => {}
    }
    workload
}

async fn controller(ns: &Namespace, resource: &str) -> Actor {
    super::controller::controller(ns, json!([rule("apps", resource, &["create", "delete"])])).await
}

/// A restart, with one more change.
fn restart(change: Value) -> Value {
    let mut patch = json!({"spec": {"template": {"metadata": {"annotations": {
        "tokencache.dev/restarted_at": "2026-01-02T03:04:05Z", "a.tokencache.dev/restarted_for": "2026-01-02T03:04:05Z",
    }}}}});
    crate::support::manifests::merge(&mut patch, change);
    patch
}

async fn prove(ns: &Namespace, kind: &str, resource: &str) {
    let object = format!("{resource}/web");
    let of_template = |change: Value| json!({"spec": {"template": change}});
    let denied = Deny("only annotations of a restart may change");
    let image = json!({"spec": {"containers": [{"name": "a", "image": "evil"}]}});
    let mut new = workload(kind);
    new["metadata"]["name"] = "new".into();
    let row = |change: Value| patch(&object, restart(change));
    let mut rows = vec![
        ("a restart", row(json!({})), Allow),
        ("an image", row(of_template(image)), denied),
        ("a host's network", row(of_template(json!({"spec": {"hostNetwork": true}}))), denied),
        ("a label of pods", row(of_template(json!({"metadata": {"labels": {"a": "b"}}}))), denied),
        ("an annotation of pods", row(of_template(json!({"metadata": {"annotations": {"a": "b"}}}))), denied),
        (
            "an annotation of pods removed",
            patch(&object, of_template(json!({"metadata": {"annotations": {"note": null}}}))),
            denied,
        ),
        ("a label", row(json!({"metadata": {"labels": {"a": "b"}}})), denied),
        ("an annotation", row(json!({"metadata": {"annotations": {"note": "y"}}})), denied),
        ("an annotation removed", patch(&object, json!({"metadata": {"annotations": {"note": null}}})), denied),
        ("a finalizer", row(json!({"metadata": {"finalizers": ["example.com/x"]}})), denied),
        ("another field", row(json!({"spec": {"minReadySeconds": 7}})), denied),
        ("a new workload", create(resource, new), denied),
        ("a workload removed", delete(&object), denied),
    ];
    if kind != "DaemonSet" {
        rows.push(("more replicas", row(json!({"spec": {"replicas": 7}})), denied));
    }
    controller(ns, resource).await.try_all(rows).await;
}

#[test]
fn of_a_deployment_only_a_restart() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        ns.create::<Deployment>(workload("Deployment")).await;
        prove(&ns, "Deployment", "deployments").await;
    });
}

#[test]
fn of_a_stateful_set_only_a_restart() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        ns.create::<StatefulSet>(workload("StatefulSet")).await;
        prove(&ns, "StatefulSet", "statefulsets").await;
    });
}

#[test]
fn of_a_daemon_set_only_a_restart() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        ns.create::<DaemonSet>(workload("DaemonSet")).await;
        prove(&ns, "DaemonSet", "daemonsets").await;
    });
}
