//! The rights that jobs need: those of the chart suffice, and what is missing is told.

use k8s_openapi::api::core::v1::{ResourceQuota, Secret};
use serde_json::json;

use crate::{
    node::{ARGUMENTS, Stage, on_node},
    support::{CacheView as _, Controller, Namespace, manifests::source_secret, rights::withhold},
};

const WORKS: &str = r#"echo '{"token": "x", "expires_in": 3600, "state": 1}' > "$TOKENCACHE_RESULT""#;

#[test]
fn with_the_charts_rights_jobs_run_and_each_right_that_is_missing_is_told_at_once() {
    on_node(async {
        let stage = Stage::new().await;
        stage.ns.create::<Secret>(source_secret("s", "hunter2", true)).await;
        let spec = json!({"fetch": {"job": {"template": {"spec": {
            "volumes": [{"name": "s", "secret": {"secretName": "s"}}], "serviceAccountName": "default",
        }}}}});
        let account = json!({"metadata": {
            "labels": {"tokencache.dev/source": "true"}, "annotations": {"tokencache.dev/audiences": "kube-apiserver"},
        }});
        let found = |account: Option<&k8s_openapi::api::core::v1::ServiceAccount>| account.is_some();
        stage.ns.await_object("default", "it is there", found).await;
        stage.ns.patch::<k8s_openapi::api::core::v1::ServiceAccount>("default", account).await;
        stage.script("works", WORKS, spec.clone()).await;
        stage.ns.await_ready("works", true, "Fetched").await;
        stage.ns.request("works", "again").await;
        stage
            .ns
            .await_cache("works", "it ran again", |cache| cache.seen().runs == 2 && cache.seen().failures == 0)
            .await;

        for (name, verb, group, resource, told) in [
            ("a", "list", "batch", "jobs", "lacks list on jobs.batch"),
            ("b", "watch", "batch", "jobs", "lacks watch on jobs.batch"),
            ("c", "create", "batch", "jobs", "cannot create resource \"jobs\""),
            ("d", "list", "", "pods", "lacks list on pods"),
            ("e", "watch", "", "pods", "lacks watch on pods"),
            ("f", "get", "", "serviceaccounts", "lacks get on serviceaccounts"),
        ] {
            withhold(&stage.ns, &[verb], group, resource).await;
            stage.script(name, WORKS, spec.clone()).await;
            let (reason, message) = stage.failure(name).await;
            assert!(reason == "JobFailed" && message.contains(told), "{name}: {reason}: {message}");
        }

        // Without events a run goes well, but a quota's refusal could not be told from a delay.
        withhold(&stage.ns, &["list", "watch"], "", "events").await;
        stage.script("g", WORKS, json!({})).await;
        stage.ns.await_ready("g", true, "Fetched").await;
        let none = json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}});
        stage.ns.create::<ResourceQuota>(none).await;
        let counted = |quota: Option<&ResourceQuota>| {
            quota.is_some_and(|it| it.status.as_ref().is_some_and(|s| s.used.is_some()))
        };
        stage.ns.await_object("none", "the quota counts", counted).await;
        stage.script("h", WORKS, json!({})).await;
        let (reason, message) = stage.failure("h").await;
        assert!(reason == "JobFailed" && message.contains("lacks list on events"), "{reason}: {message}");
    });
}

#[test]
fn a_controller_that_is_to_run_no_jobs_refuses_them_and_one_that_may_takes_them_up() {
    on_node(async {
        let ns = Namespace::new().await;
        let arguments = [ARGUMENTS.as_slice(), &["--allow-jobs=false"]].concat();
        let stage = Stage { controller: Controller::start(&ns, &arguments).await, ns };
        stage.script("a", WORKS, json!({})).await;
        let cache = stage.ns.await_cache("a", "it is stalled", |it| it.stalled() == Some("SourceNotAllowed")).await;
        assert!(cache.message().contains("--allow-jobs=true"), "{}", cache.message());
        assert!(stage.jobs("a").await.is_empty());
        let Stage { controller, ns } = stage;
        controller.terminate().await;
        let stage = Stage { controller: Controller::start(&ns, &ARGUMENTS).await, ns };
        stage.ns.await_ready("a", true, "Fetched").await;
    });
}
