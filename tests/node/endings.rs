//! Whatever interrupts a run, its Job is taken over or ends, and there are never two pods of one TokenCache at once.

use std::{pin::pin, sync::Arc};

use futures::StreamExt as _;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Secret},
};
use kube::{
    ResourceExt as _,
    api::DeleteParams,
    runtime::watcher::{self, Event, watcher},
};
use serde_json::json;
use tokencache::api::TokenCache;
use tokio::sync::Mutex;

use crate::{
    node::{ARGUMENTS, AtOnce, Stage, is_fetching, is_live, on_node},
    support::{CacheView as _, Controller, Namespace, SecretView as _, in_background, poll, within},
};

/// A run that takes its time, and says which it was.
pub const SLOW: &str = r#"sleep 5; echo "{\"token\": \"$(hostname)\", \"expires_in\": 3600}" > $TOKENCACHE_RESULT"#;

/// The most pods that were ever live at once, and how many there were in all.
#[derive(Default)]
pub struct Most {
    pub at_once: usize,
    pub names: Vec<String>,
}

pub fn count_pods(ns: &Namespace) -> Arc<Mutex<Most>> {
    let most = Arc::new(Mutex::new(Most::default()));
    let (shared, pods) = (most.clone(), ns.api::<Pod>());
    in_background(async move {
        let mut at_once = AtOnce::default();
        let mut events = pin!(watcher(pods, watcher::Config::default()));
        while let Some(event) = events.next().await {
            let count = match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    let mut most = shared.lock().await;
                    if is_live(&pod) && !most.names.contains(&pod.name_any()) {
                        most.names.push(pod.name_any());
                    }
                    at_once.after(pod.uid().unwrap_or_default(), Some(&pod))
                }
                Ok(Event::Delete(pod)) => at_once.after(pod.uid().unwrap_or_default(), None),
                _ => continue,
            };
            let mut most = shared.lock().await;
            most.at_once = most.at_once.max(count);
        }
    });
    most
}

#[test]
fn when_the_controller_is_killed_in_mid_run_another_takes_its_job_over() {
    on_node(async {
        let ns = Namespace::new().await;
        let most = count_pods(&ns);
        // Short, and yet longer than a busy machine keeps a renewal waiting.
        let arguments = [ARGUMENTS.as_slice(), &["--lease-duration", "6s"]].concat();
        let killed = Controller::start(&ns, &arguments).await;
        let stage = Stage { controller: Controller::start(&ns, &arguments).await, ns };
        stage.script("a", SLOW, json!({})).await;
        let first = stage.pod("a", "the container runs", is_fetching).await;
        let lease: k8s_openapi::api::coordination::v1::Lease = stage.ns.get("tokencache-a").await;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).expect("a holder");
        // Whichever of the two has it.
        let survivor = if holder.starts_with(&killed.identity) {
            killed.kill().await;
            stage.controller
        } else {
            stage.controller.kill().await;
            killed
        };
        let cache = stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.seen().last_run_by.as_deref(), Some(survivor.identity.as_str()));
        let secret: Secret = stage.ns.get("a").await;
        assert_eq!(secret.token(), first.name_any(), "the value is that of the Job that was there");
        let most = most.lock().await;
        assert_eq!((most.at_once, most.names.len()), (1, 1), "{:?}", most.names);
    });
}

#[test]
fn when_the_controller_is_stopped_in_mid_run_the_next_takes_its_job_over() {
    on_node(async {
        let ns = Namespace::new().await;
        let most = count_pods(&ns);
        let stage = Stage { controller: Controller::start(&ns, &ARGUMENTS).await, ns };
        stage.script("a", &SLOW.replace("sleep 5", "sleep 12"), json!({})).await;
        let pod = stage.pod("a", "the container runs", is_fetching).await.name_any();
        let Stage { controller, ns } = stage;
        let (status, took) = controller.terminate().await;
        assert!(status.success() && took.as_secs() < 10, "{status} {took:?}");
        let lease: k8s_openapi::api::coordination::v1::Lease = ns.get("tokencache-a").await;
        assert_eq!(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default(), "", "the Lease is free");

        let stage = Stage { controller: Controller::start(&ns, &ARGUMENTS).await, ns };
        stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(stage.ns.get::<Secret>("a").await.token(), pod);
        let most = most.lock().await;
        assert_eq!((most.at_once, most.names.len()), (1, 1), "{:?}", most.names);
    });
}

#[test]
fn suspending_or_deleting_a_token_cache_ends_its_job() {
    on_node(async {
        let stage = Stage::new().await;
        for (name, timeout) in [("a", "25s"), ("b", "5m")] {
            stage.script(name, "sleep 600", json!({"fetch": {"timeout": timeout}})).await;
            stage.pod(name, "the container runs", is_fetching).await;
        }
        // The one may still have a result until its time is up; of the other nobody would want it.
        stage.ns.patch_spec("a", json!({"suspend": true})).await;
        stage.ns.delete::<TokenCache>("b").await;
        for name in ["a", "b"] {
            let gone =
                || async { (stage.pods(name).await.is_empty() && stage.jobs(name).await.is_empty()).then_some(()) };
            within("the Job and its pod are gone", poll(gone)).await;
        }
        stage.ns.await_ready("a", false, "Suspended").await;
    });
}

#[test]
fn a_job_or_pod_that_another_hand_deletes_is_told_at_once() {
    on_node(async {
        let stage = Stage::new().await;
        for name in ["pod", "job"] {
            stage.script(name, "sleep 600", json!({})).await;
            stage.pod(name, "the container runs", is_fetching).await;
        }
        let pod = stage.pods("pod").await.remove(0).name_any();
        stage.ns.api::<Pod>().delete(&pod, &DeleteParams::default()).await.expect("deleted");
        let job = stage.jobs("job").await.remove(0).name_any();
        stage.ns.api::<Job>().delete(&job, &DeleteParams::background()).await.expect("deleted");
        for name in ["pod", "job"] {
            let (reason, message) = stage.failure(name).await;
            assert!(reason == "JobFailed" && message.contains("deleted"), "{name}: {reason}: {message}");
        }
    });
}
