//! Jobs, without a node: a test itself does to a job's pod what a kubelet would.

mod allowed;
mod owners;
mod recovery;
mod refused;
mod waiting;

use std::collections::BTreeSet;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Secret},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokencache::api::names::LABEL_CACHE;

use crate::support::{
    Controller, Namespace,
    kubelet::{RunningPod, nowhere},
    manifests::merge,
    poll, within,
};

/// A TokenCache with a job that no node takes; `spec` is merged over its spec.
fn job(name: &str, spec: Value) -> Value {
    let mut cache = json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
        "metadata": {"name": name},
        "spec": {
            "fetch": {"job": {"template": {"spec": {
                "nodeSelector": nowhere(),
                "containers": [{"name": "fetch", "image": "tokencache.test/none:1"}],
            }}}},
            "retry": {"initialInterval": "1s"},
        },
    });
    merge(&mut cache["spec"], spec);
    cache
}

/// A result with a token, and a state if there is one.
fn result(token: &str, state: Value) -> Value {
    json!({"token": token, "expires_in": 3600, "state": state})
}

/// A namespace whose jobs are run by hand.
struct Stage {
    ns: Namespace,
    /// Pods that were given out.
    known: BTreeSet<String>,
}

impl Stage {
    async fn new() -> Self {
        Self { ns: Namespace::new().await, known: BTreeSet::new() }
    }

    async fn controller(&self) -> Controller {
        Controller::start(&self.ns, &["--lease-duration", "3s"]).await
    }

    async fn jobs(&self, name: &str) -> Vec<Job> {
        let jobs = self.ns.list::<Job>().await;
        jobs.into_iter().filter(|job| job.labels().get(LABEL_CACHE).is_some_and(|of| of == name)).collect()
    }

    /// Waits for the pod of the next run.
    async fn pod(&mut self, name: &str) -> RunningPod {
        let ask = || async {
            let pods = self.ns.list::<Pod>().await;
            pods.into_iter().find(|pod| {
                pod.labels().get(LABEL_CACHE).is_some_and(|of| of == name)
                    && pod.owner_references().iter().any(|owner| owner.kind == "Job")
                    && !self.known.contains(&pod.name_any())
            })
        };
        let Ok(pod) = tokio::time::timeout(crate::support::DEADLINE, poll(ask)).await else {
            self.ns.fail(name, "the pod of a run").await
        };
        self.known.insert(pod.name_any());
        RunningPod { api: self.ns.api(), pod }
    }

    /// The state that the last run left.
    async fn state(&self, name: &str) -> Option<String> {
        let secret = self.ns.api::<Secret>().get_opt(&format!("tokencache-{name}-state")).await.expect("an answer")?;
        let state = secret.data?.into_iter().find(|(key, _)| key.starts_with("state-"))?;
        Some(String::from_utf8(state.1.0).expect("text"))
    }

    /// Waits until this state is stored.
    async fn await_state(&self, name: &str, state: &str) {
        let stored = || async { (self.state(name).await.as_deref() == Some(state)).then_some(()) };
        if tokio::time::timeout(crate::support::DEADLINE, poll(stored)).await.is_err() {
            self.ns.fail(name, &format!("the state {state}, not {:?}", self.state(name).await)).await
        }
    }

    async fn await_no_job(&self, name: &str) {
        within("no Job is left", poll(|| async { self.jobs(name).await.is_empty().then_some(()) })).await;
    }
}
