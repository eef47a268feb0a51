//! What belongs to a run is decided by owner references, not by labels.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, ResourceQuota, Secret},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use super::{RunningPod, Stage, job, nowhere, result};
use crate::support::{CacheView as _, Namespace, SecretView as _, poll, rights::withhold, scenario, within};

/// The pod of a Job as somebody else makes it: with its labels and its template, and no owner.
pub(super) fn forged(job: &Job) -> Value {
    let mut spec = json!(job.spec.as_ref().expect("a spec").template.spec);
    // Outside of the quota below.
    spec["activeDeadlineSeconds"] = json!(600);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{}-x", job.name_any()), "labels": job.labels()},
        "spec": spec,
    })
}

/// Keeps the Job controller from creating pods, and nobody else.
pub(super) async fn no_pods_of_jobs(ns: &Namespace) {
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}, "scopes": ["NotTerminating"]},
    });
    ns.create::<ResourceQuota>(quota).await;
    let counted = |quota: Option<&ResourceQuota>| {
        quota.is_some_and(|it| it.status.as_ref().is_some_and(|status| status.used.is_some()))
    };
    ns.await_object("none", "the quota counts", counted).await;
    // Else the run would end as soon as it sees the quota's refusal.
    withhold(ns, &["list", "watch"], "", "events").await;
}

#[test]
fn a_result_is_taken_from_the_jobs_own_pod_only() {
    scenario(async {
        let mut stage = Stage::new().await;
        stage.ns.lift_policies("another client makes a pod with the labels of a run").await;
        let _controller = stage.controller().await;
        no_pods_of_jobs(&stage.ns).await;
        stage.ns.create::<TokenCache>(job("a", json!({"retry": {"initialInterval": "5m"}}))).await;
        let found = poll(|| async { stage.jobs("a").await.pop() });
        let made = within("a Job", found).await;
        let pod: Pod = stage.ns.create(forged(&made)).await;
        let forged = RunningPod { api: stage.ns.api(), pod };
        forged.succeed(&result("forged", json!("forged"))).await;
        let ran = |cache: &TokenCache| cache.seen().runs > 0;
        let cache = stage.ns.await_cache("a", "the run has ended", ran).await;
        assert_eq!(cache.last_failure(), "JobFailed", "{}", cache.message());
        assert!(stage.ns.api::<Secret>().get_opt("a").await.expect("an answer").is_none(), "no value was taken");
        assert_eq!(stage.state("a").await, None);

        stage.ns.delete::<ResourceQuota>("none").await;
        stage.ns.request("a", "again").await;
        stage.pod("a").await.succeed(&result("good", Value::Null)).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(stage.ns.get::<Secret>("a").await.token(), "good");
        assert!(stage.ns.api::<Pod>().get_opt(&forged.pod.name_any()).await.expect("an answer").is_some());
    });
}

#[test]
fn a_run_neither_waits_for_pods_nor_deletes_jobs_that_only_bear_its_labels() {
    scenario(async {
        let mut stage = Stage::new().await;
        stage.ns.lift_policies("another client makes a pod and a Job with the labels of a run").await;
        let labels = json!({"tokencache.dev/cache": "a", "tokencache.dev/managed": "true"});
        let spec = json!({
            "nodeSelector": nowhere(), "automountServiceAccountToken": false,
            "containers": [{"name": "x", "image": "tokencache.test/none:1"}],
        });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "theirs", "labels": labels}, "spec": spec,
        });
        let theirs: Pod = stage.ns.create(pod).await;
        let mut template = json!({"spec": spec});
        template["spec"]["restartPolicy"] = "Never".into();
        let job_of_theirs = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": "theirs", "labels": labels, "ownerReferences": [{
                "apiVersion": "example.org/v1", "kind": "TokenCache", "name": "a", "controller": true,
                "uid": "00000000-0000-4000-8000-000000000000",
            }]},
            "spec": {"parallelism": 0, "template": template},
        });
        stage.ns.create::<Job>(job_of_theirs).await;
        let _controller = stage.controller().await;
        stage.ns.create::<TokenCache>(job("a", json!({}))).await;
        stage.known.insert(theirs.name_any());
        stage.pod("a").await.succeed(&result("good", Value::Null)).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        for (kind, found) in [
            ("pod", stage.ns.get::<Pod>("theirs").await.metadata),
            ("Job", stage.ns.get::<Job>("theirs").await.metadata),
        ] {
            assert!(found.deletion_timestamp.is_none(), "the {kind} of theirs is left alone");
        }
    });
}
