//! The node, the image of the collector on it, and jobs that run there.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Secret},
};
use kube::ResourceExt as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokencache::api::{TokenCache, names::LABEL_CACHE};
use tokio::sync::{OnceCell, RwLock};

use crate::support::{CacheView as _, Controller, Namespace, image::load_program, manifests::merge, scenario, within};

/// With a shell and the usual tools.
pub const BUSYBOX: &str = "tokencache.test/busybox:1";
/// With the program under test.
pub const COLLECTOR: &str = "tokencache.test/collector:1";
/// What a controller needs to know for it.
pub const ARGUMENTS: [&str; 2] = ["--collector-image", COLLECTOR];

static IMAGE: OnceCell<()> = OnceCell::const_new();
/// Shared by the scenarios that use the node, and had alone by one that stops it.
static NODE: RwLock<()> = RwLock::const_new(());

/// Runs a scenario, if there is a node.
pub fn on_node(story: impl Future<Output = ()>) {
    with_node(async {
        let _shared = NODE.read().await;
        story.await;
    });
}

/// Runs a scenario that may stop the node, beside no other one.
pub fn alone_on_node(story: impl Future<Output = ()>) {
    with_node(async {
        let _alone = NODE.write().await;
        story.await;
    });
}

fn with_node(story: impl Future<Output = ()>) {
    let Ok(cluster) = std::env::var("TOKENCACHE_CLUSTER") else {
        eprintln!("skipped, since there is no node: hack/cluster.sh run --node -- cargo test --test node");
        return;
    };
    scenario(async move {
        IMAGE.get_or_init(|| load_program(&cluster, COLLECTOR)).await;
        story.await;
    });
}

/// The cluster's kubelet, frozen until this is dropped: to the others, its node is lost.
pub struct FrozenNode(Pid);

impl FrozenNode {
    /// Freezes it.
    pub fn new() -> Self {
        let kubeconfig = std::env::var("TOKENCACHE_TEST_KUBECONFIG").expect("a cluster");
        let init = Path::new(&kubeconfig).with_file_name("node-init.pid");
        let init = std::fs::read_to_string(&init).unwrap_or_else(|error| panic!("{}: {error}", init.display()));
        let init = init.split(' ').next().expect("a pid").to_owned();
        let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children")).expect("its children");
        let is_kubelet = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "kubelet")
        };
        let kubelet = children.split_whitespace().find(is_kubelet).expect("a kubelet");
        let kubelet = Pid::from_raw(kubelet.parse().expect("a pid")).expect("a pid");
        kill_process(kubelet, Signal::STOP).expect("it is stopped");
        Self(kubelet)
    }
}

impl Drop for FrozenNode {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).expect("it goes on");
    }
}

/// A namespace with a controller.
pub struct Stage {
    pub controller: Controller,
    pub ns: Namespace,
}

impl Stage {
    pub async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With further arguments for the controller.
    pub async fn with(arguments: &[&str]) -> Self {
        let ns = Namespace::new().await;
        let controller = Controller::start(&ns, &[ARGUMENTS.as_slice(), arguments].concat()).await;
        Self { controller, ns }
    }

    /// Creates a TokenCache whose job runs a script; `spec` is merged over its spec.
    pub async fn script(&self, name: &str, script: &str, spec: Value) -> TokenCache {
        self.ns.create(cache(name, script, spec)).await
    }

    /// Waits until a run has failed, and gives its reason and message.
    pub async fn failure(&self, name: &str) -> (String, String) {
        let failed = |cache: &TokenCache| cache.seen().last_failure.is_some();
        let cache = self.ns.await_cache(name, "a run has failed", failed).await;
        let failure = cache.seen().last_failure.expect("a failure");
        (failure.reason, failure.message)
    }

    /// Asks for a new value, and waits until the Secret holds another than before.
    pub async fn refreshed(&self, name: &str, asked: &str) -> Secret {
        let before: Secret = self.ns.get(name).await;
        self.ns.request(name, asked).await;
        self.ns.await_secret(name, "a new value", |secret| secret.data != before.data).await
    }

    /// Waits until a pod of a TokenCache is as it should be.
    pub async fn pod(&self, name: &str, what: &str, condition: impl Fn(&Pod) -> bool) -> Pod {
        let ask = || async { self.pods(name).await.into_iter().find(|pod| condition(pod)) };
        within(what, crate::support::poll(ask)).await
    }

    /// The pods of a TokenCache.
    pub async fn pods(&self, name: &str) -> Vec<Pod> {
        let pods = self.ns.list::<Pod>().await;
        pods.into_iter().filter(|pod| pod.labels().get(LABEL_CACHE).is_some_and(|of| of == name)).collect()
    }

    /// The Jobs of a TokenCache.
    pub async fn jobs(&self, name: &str) -> Vec<Job> {
        let jobs = self.ns.list::<Job>().await;
        jobs.into_iter().filter(|job| job.labels().get(LABEL_CACHE).is_some_and(|of| of == name)).collect()
    }
}

/// A TokenCache whose job runs a script in busybox.
pub fn cache(name: &str, script: &str, spec: Value) -> Value {
    let mut cache = json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
        "metadata": {"name": name},
        "spec": {
            "fetch": {"job": {"template": {"spec": {
                "securityContext": {"runAsUser": 1000},
                "containers": [{"name": "fetch", "image": BUSYBOX, "command": ["sh", "-ec", script]}],
            }}}},
            // One failure is looked at, not a row of them.
            "retry": {"initialInterval": "5m"},
        },
    });
    merge(&mut cache["spec"], spec);
    cache
}

/// A change of the template's pod spec, as a change of the spec.
pub fn pod_spec(change: Value) -> Value {
    json!({"fetch": {"job": {"template": {"spec": change}}}})
}

/// A change of the only container, as a change of the spec.
pub fn container(change: Value) -> Value {
    let mut container = json!({"name": "fetch", "image": BUSYBOX, "command": ["sh", "-ec", "exit 7"]});
    merge(&mut container, change);
    pod_spec(json!({"containers": [container]}))
}

/// Whether the container `fetch` of a pod is running.
pub fn is_fetching(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
    let running = |state: &k8s_openapi::api::core::v1::ContainerState| state.running.is_some();
    statuses.into_iter().flatten().any(|it| it.name == "fetch" && it.state.as_ref().is_some_and(running))
}

/// Whether a pod may still do something: one that no node has does nothing.
pub fn is_live(pod: &Pod) -> bool {
    if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
        return false;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Counts pods that may do something at once, from what a watch tells, over the whole of a scenario.
#[derive(Default)]
pub struct AtOnce(BTreeMap<String, bool>);

impl AtOnce {
    /// How many there are after this change; `None` for a pod that is gone.
    pub fn after(&mut self, uid: String, pod: Option<&Pod>) -> usize {
        self.0.insert(uid, pod.is_some_and(is_live));
        self.0.values().filter(|live| **live).count()
    }
}
