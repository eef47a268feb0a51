//! A pod that no node takes.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use super::{Stage, job, result};
use crate::support::{CacheView as _, SecretView as _, scenario};

/// What a scheduler says of a pod for which it finds no node; the one of this cluster may say the same.
fn unschedulable() -> Value {
    json!({"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/9 nodes are available",
    }]})
}

#[test]
fn a_pod_that_no_node_takes_waits_in_one_job_and_that_is_seen_until_a_node_takes_it() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        stage.ns.create::<TokenCache>(job("a", json!({}))).await;
        let pod = stage.pod("a").await;
        pod.patch_status(unschedulable()).await;
        let told = |cache: &TokenCache| cache.is(false, "Pending") && cache.message().contains("Unschedulable");
        stage.ns.await_cache("a", "the scheduler's words", told).await;
        // It used to be given up after 10 s.
        crate::support::pass(std::time::Duration::from_secs(12)).await;
        assert_eq!(stage.jobs("a").await.len(), 1);
        pod.start().await;
        let going = |cache: &TokenCache| cache.is(false, "Pending") && !cache.message().contains("Unschedulable");
        stage.ns.await_cache("a", "it is not told any more", going).await;
        pod.succeed(&result("first", Value::Null)).await;
        let cache = stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!((cache.seen().runs, cache.last_failure().as_str()), (1, ""));
    });
}

#[test]
fn a_change_of_the_spec_ends_a_job_that_no_node_takes() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        stage.ns.create::<TokenCache>(job("a", json!({}))).await;
        let first = stage.pod("a").await;
        first.patch_status(unschedulable()).await;
        stage.ns.patch_spec("a", json!({"target": {"labels": {"team": "blue"}}})).await;
        let second = stage.pod("a").await;
        assert!(stage.ns.api::<Pod>().get_opt(&first.pod.metadata.name.clone().unwrap()).await.unwrap().is_none());
        second.succeed(&result("second", Value::Null)).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        let secret: k8s_openapi::api::core::v1::Secret = stage.ns.get("a").await;
        assert_eq!(secret.token(), "second");
    });
}
