//! Jobs, without a node: a test itself does to a job's pod what a kubelet would.

mod allowed;
mod owners;
mod recovery;
mod refused;
mod waiting;

use std::{collections::BTreeSet, fs};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Secret},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::Status,
};
use serde_json::{Value, json};
use tokencache::api::names::LABEL_CACHE;

use crate::support::{Controller, Namespace, ended, manifests::merge, poll, within};

/// No scheduler places a pod with this selector.
fn nowhere() -> Value {
    json!({"tokencache.test/node": "none"})
}

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

/// A pod whose kubelet is the test.
struct RunningPod {
    api: Api<Pod>,
    pod: Pod,
}

impl RunningPod {
    /// Puts it on a node, and starts its container.
    async fn start(&self) {
        let name = self.pod.name_any();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "played-by-the-test"},
        });
        let bound: kube::Result<Status> =
            self.api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        bound.expect("it is bound");
        self.patch_status(json!({"initContainerStatuses": [
            status("tokencache-prepare", json!({"terminated": {"exitCode": 0}})),
            status("fetch", json!({"running": {}})),
        ]}))
        .await;
    }

    /// Lets its containers succeed with this result.
    async fn succeed(&self, result: &Value) {
        let message = sealed(&self.pod, result).await;
        let done = || json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        self.patch_status(json!({
            "phase": "Succeeded",
            "initContainerStatuses": [status("tokencache-prepare", done()), status("fetch", done())],
            "containerStatuses": [status(
                "tokencache-collect",
                json!({"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}),
            )],
        }))
        .await;
    }

    async fn patch_status(&self, change: Value) {
        let patch = Patch::Merge(json!({"status": change}));
        let patched = self.api.patch_status(&self.pod.name_any(), &PatchParams::default(), &patch).await;
        patched.expect("its status is patched");
    }

    /// As a kubelet does once its containers have ended.
    async fn remove(&self) {
        let at_once = DeleteParams::default().grace_period(0);
        // It may be gone already.
        let _ = self.api.delete(&self.pod.name_any(), &at_once).await;
    }

    /// The key of the state's Secret that it mounts.
    fn state_key(&self) -> Option<String> {
        let volumes = self.pod.spec.as_ref()?.volumes.as_ref()?;
        let volume = volumes.iter().find(|volume| volume.name == "tokencache-state")?;
        Some(volume.secret.as_ref()?.items.as_ref()?.first()?.key.clone())
    }
}

fn status(name: &str, state: Value) -> Value {
    json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

/// What the collector of a pod leaves of a result.
async fn sealed(pod: &Pod, result: &Value) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, message) = (folder.path().join("result"), folder.path().join("message"));
    fs::write(&file, result.to_string()).expect("it is written");
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first()).expect("a container");
    let arguments = container.args.clone().unwrap_or_default();
    let given = arguments.iter().filter(|argument| argument.starts_with("--key=") || argument.starts_with("--limit="));
    let mut command = tokio::process::Command::new(crate::support::binary());
    command.arg("collect").args(given).arg("--result").arg(&file).arg("--message").arg(&message);
    let ended = ended(command).await;
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    fs::read_to_string(message).expect("a message")
}
