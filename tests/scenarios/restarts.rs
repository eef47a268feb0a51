//! Workloads that read the Secret only when they start.

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};
use tokencache::api::names::ANNOTATION_CHANGED_AT;

use crate::support::{Scene, SecretView as _, scenario};

/// One without pods, since there is no node: its rollout is over at once.
fn deployment(name: &str, secret: &str) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {
                "containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "v", "secret": {"secretName": secret}}],
            },
        }},
    })
}

/// The `changed_at` of the value that the TokenCache `a` restarted it for.
fn restarted_for(deployment: &Deployment) -> Option<String> {
    let template = deployment.spec.as_ref()?.template.metadata.as_ref()?;
    template.annotations.as_ref()?.get("a.tokencache.dev/restarted_for").cloned()
}

fn targets(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"kind": "Deployment", "name": name})).collect()
}

#[test]
fn a_deployment_is_restarted_when_the_value_has_changed_and_not_more_often_than_it_may() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ns.create::<Deployment>(deployment("web", "a")).await;
        let spec = json!({"rolloutRestartTargets": targets(&["web"]), "rolloutRestart": {"minInterval": "1h"}});
        scene.ready_cache("a", spec).await;
        let changed_at = async |than: &str| {
            let what = "its value has changed";
            let changed = |at: &str| !at.is_empty() && at != than;
            let secret = scene.ns.await_secret("a", what, |secret| changed(&secret.annotation(ANNOTATION_CHANGED_AT)));
            secret.await.annotation(ANNOTATION_CHANGED_AT)
        };
        let restarted = async |at: &str| {
            let what = format!("it was restarted for the value of {at}");
            let is = |web: Option<&Deployment>| web.is_some_and(|web| restarted_for(web).as_deref() == Some(at));
            scene.ns.await_object("web", &what, is).await
        };

        assert_eq!(restarted_for(&scene.ns.get("web").await), None, "the first value replaces none");
        scene.ns.request("a", "1").await;
        let first = changed_at("").await;
        restarted(&first).await;
        scene.ns.await_event("a", "RolloutRestarted").await;

        scene.ns.request("a", "2").await;
        let second = changed_at(&first).await;
        assert_eq!(restarted_for(&scene.ns.get("web").await), Some(first), "it may be restarted once an hour");
        scene.ns.patch_spec("a", json!({"rolloutRestart": {"minInterval": "1ms"}})).await;
        restarted(&second).await;
    });
}

#[test]
fn what_cannot_be_restarted_is_told_and_the_rest_is() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ns.create::<Deployment>(deployment("stranger", "other")).await;
        scene.ns.create::<Deployment>(deployment("web", "a")).await;
        let spec = json!({"rolloutRestartTargets": targets(&["missing", "stranger", "web"])});
        scene.ready_cache("a", spec).await;
        scene.ns.request("a", "1").await;
        scene
            .ns
            .await_object("web", "it was restarted", |web| web.is_some_and(|web| restarted_for(web).is_some()))
            .await;
        let words = scene.ns.await_event("a", "RolloutRestartFailed").await.message.unwrap_or_default();
        assert!(words.contains("Deployment missing: does not exist"), "{words}");
        assert!(words.contains("Deployment stranger: its pod template does not use the Secret a"), "{words}");
        assert_eq!(restarted_for(&scene.ns.get("stranger").await), None);
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}
