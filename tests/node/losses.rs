//! What a run loses in its midst: its Lease, the right to renew it, its node.

use std::time::Duration;

use chrono::{SecondsFormat, Utc};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Secret},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::wait::await_condition,
};
use serde_json::json;
use tokencache::api::TokenCache;

use crate::{
    endings::{SLOW, count_pods},
    node::{ARGUMENTS, FrozenNode, Stage, alone_on_node, is_fetching, is_live, on_node},
    support::{
        CacheView as _, Controller, Namespace, SecretView as _, poll,
        rights::{give_back, withhold},
        within,
    },
};

const SHORT: [&str; 4] = [ARGUMENTS[0], ARGUMENTS[1], "--lease-duration", "3s"];

/// Waits until no Job and no pod is left.
async fn all_gone(stage: &Stage, name: &str) {
    let gone = || async { (stage.pods(name).await.is_empty() && stage.jobs(name).await.is_empty()).then_some(()) };
    within("the Job and its pod are gone", poll(gone)).await;
}

#[test]
fn when_another_client_takes_the_lease_in_mid_run_the_next_holder_takes_the_job_over() {
    on_node(async {
        let ns = Namespace::new().await;
        let most = count_pods(&ns);
        let stage = Stage { controller: Controller::start(&ns, &SHORT).await, ns };
        stage.script("a", SLOW, json!({})).await;
        let first = stage.pod("a", "the container runs", is_fetching).await.name_any();
        // One that died with it: the controller may have it back when it stood still for as long.
        let taken = json!({"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 15}});
        stage.ns.patch::<Lease>("tokencache-a", taken).await;
        let cache = stage.ns.await_ready("a", true, "Fetched").await;
        let secret: Secret = stage.ns.get("a").await;
        assert_eq!(secret.token(), first, "the value is that of the Job that was there");
        assert_eq!((cache.seen().runs, cache.seen().failures), (1, 0), "the run that was displaced left no word");
        all_gone(&stage, "a").await;
        let most = most.lock().await;
        assert_eq!((most.at_once, most.names.len()), (1, 1), "{:?}", most.names);
    });
}

#[test]
fn when_the_lease_can_no_more_be_renewed_that_is_told_and_the_job_is_taken_over_later() {
    on_node(async {
        let ns = Namespace::new().await;
        let most = count_pods(&ns);
        let stage = Stage { controller: Controller::start(&ns, &SHORT).await, ns };
        let script = SLOW.replace("sleep 5", "sleep 20");
        stage.script("a", &script, json!({"retry": {"initialInterval": "1s"}})).await;
        let first = stage.pod("a", "the container runs", is_fetching).await.name_any();
        withhold(&stage.ns, &["update"], "coordination.k8s.io", "leases").await;
        let (reason, message) = stage.failure("a").await;
        assert!(reason == "LockLost" && message.contains("could not be renewed"), "{reason}: {message}");
        stage.pod("a", "the pod has ended", |pod| !is_live(pod)).await;
        assert!(stage.ns.api::<Secret>().get_opt("a").await.expect("an answer").is_none(), "nothing was written");
        give_back(&stage.ns, "update", "coordination.k8s.io", "leases").await;
        stage.ns.await_ready("a", true, "Fetched").await;
        let secret: Secret = stage.ns.get("a").await;
        assert_eq!(secret.token(), first);
        let most = most.lock().await;
        assert_eq!((most.at_once, most.names.len()), (1, 1), "{:?}", most.names);
    });
}

#[test]
fn a_node_that_is_lost_in_mid_run_is_told_and_no_other_pod_starts_before_the_first_is_known_to_be_gone() {
    alone_on_node(async {
        let ns = Namespace::new().await;
        let most = count_pods(&ns);
        let stage = Stage { controller: Controller::start(&ns, &ARGUMENTS).await, ns };
        stage.script("a", "sleep 600", json!({})).await;
        let pod = stage.pod("a", "the container runs", is_fetching).await;
        let name = pod.spec.and_then(|spec| spec.node_name).expect("a node");

        // Of a cluster that has lost all its nodes, Kubernetes believes none to be lost.
        let other = OtherNode::new(&stage.ns).await;
        let frozen = FrozenNode::new();
        // Kubernetes itself takes 40 s to call a node lost, and the pod stays for 15 s more.
        let nodes = Api::<Node>::all(stage.ns.client().clone());
        let lost =
            await_condition(nodes.clone(), &name, |node: Option<&Node>| node.is_some_and(|node| !is_ready(node)));
        tokio::time::timeout(Duration::from_secs(120), lost).await.expect("the node is lost").expect("a watch");
        let (reason, message) = stage.failure("a").await;
        assert_eq!(reason, "JobFailed");
        // Since Kubernetes 1.26 the taint manager marks the pod before any event names the node.
        let told = [format!("node {name} was lost"), format!("disrupted on node {name}: DeletionByTaintManager")];
        assert!(told.iter().any(|told| message.contains(told)), "{message}");
        // Whether its containers still run nobody knows: another run waits.
        stage.ns.patch_spec("a", crate::node::container(json!({"command": ["sh", "-ec", SLOW]}))).await;
        let waits = |line: &str| line.contains("deleting Jobs of earlier runs") || line.contains("fetch failed");
        within(
            "the next run has been looked at",
            poll(|| async { stage.controller.log().lines().any(waits).then_some(()) }),
        )
        .await;
        assert_eq!(most.lock().await.names.len(), 1);
        drop(frozen);

        stage.ns.await_ready("a", true, "Fetched").await;
        let most = most.lock().await;
        assert_eq!((most.at_once, most.names.len()), (1, 2), "{:?}", most.names);
        let back = await_condition(nodes, &name, |node: Option<&Node>| node.is_some_and(is_ready));
        within("the node is back", back).await.expect("a watch");
        other.remove().await;
    });
}

/// A node that is alive and takes no pods, until this is dropped.
struct OtherNode {
    nodes: Api<Node>,
    heart: tokio::task::JoinHandle<()>,
}

const OTHER: &str = "other";

impl OtherNode {
    async fn new(ns: &Namespace) -> Self {
        let (nodes, leases) =
            (Api::<Node>::all(ns.client().clone()), Api::<Lease>::namespaced(ns.client().clone(), "kube-node-lease"));
        let node = json!({"metadata": {"name": OTHER}, "spec": {"unschedulable": true}});
        let node: Node = serde_json::from_value(node).expect("a node");
        // One that a failed test left behind would do.
        let _ = nodes.create(&PostParams::default(), &node).await;
        let now = || Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true);
        let ready = json!({"status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": now(),
            "lastTransitionTime": now(),
        }]}});
        nodes.patch_status(OTHER, &PatchParams::default(), &Patch::Merge(ready)).await.expect("it is ready");
        let heart = tokio::spawn(async move {
            let mut pause = tokio::time::interval(Duration::from_secs(2));
            loop {
                pause.tick().await;
                let beat = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": OTHER},
                    "spec": {"holderIdentity": OTHER, "leaseDurationSeconds": 40, "renewTime": now()},
                });
                let apply = PatchParams::apply("test").force();
                // A beat that is missed is made up for by the next.
                let _ = leases.patch(OTHER, &apply, &Patch::Apply(beat)).await;
            }
        });
        Self { nodes, heart }
    }
}

impl OtherNode {
    async fn remove(self) {
        self.heart.abort();
        self.nodes.delete(OTHER, &DeleteParams::default()).await.expect("it is deleted");
    }
}

impl Drop for OtherNode {
    fn drop(&mut self) {
        self.heart.abort();
    }
}

/// Whether pods may be put on it.
fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let tainted = node.spec.as_ref().is_some_and(|spec| spec.taints.is_some());
    conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True") && !tainted
}
