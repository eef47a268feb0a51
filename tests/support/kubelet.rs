//! A test in the role of the kubelet: it binds the pods that no scheduler places, and reports what their containers do.

use std::fs;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    core::Status,
};
use serde_json::{Value, json};

use super::{binary, ended};

/// No scheduler places a pod with this selector.
pub fn nowhere() -> Value {
    json!({"tokencache.test/node": "none"})
}

/// A pod whose kubelet is the test.
pub struct RunningPod {
    /// Where it is.
    pub api: Api<Pod>,
    /// As it was found.
    pub pod: Pod,
}

impl RunningPod {
    /// Puts it on a node, and starts its container.
    pub async fn start(&self) {
        self.bind().await.expect("it is bound");
        self.report_start().await.expect("its status is patched");
    }

    /// Puts it on a node.
    pub async fn bind(&self) -> kube::Result<()> {
        let name = self.pod.name_any();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "played-by-the-test"},
        });
        let bound: kube::Result<Status> =
            self.api.create_subresource("binding", &name, &PostParams::default(), &binding).await;
        bound.map(drop)
    }

    /// Reports that its container runs.
    pub async fn report_start(&self) -> kube::Result<Pod> {
        self.report(json!({"initContainerStatuses": [
            status("tokencache-prepare", json!({"terminated": {"exitCode": 0}})),
            status("fetch", json!({"running": {}})),
        ]}))
        .await
    }

    /// Lets its containers succeed with this result.
    pub async fn succeed(&self, result: &Value) {
        self.report_success(&self.sealed(result).await).await.expect("its status is patched");
    }

    /// Reports that its containers succeeded, and the message of the collector.
    pub async fn report_success(&self, message: &str) -> kube::Result<Pod> {
        let done = || json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        self.report(json!({
            "phase": "Succeeded",
            "initContainerStatuses": [status("tokencache-prepare", done()), status("fetch", done())],
            "containerStatuses": [status(
                "tokencache-collect",
                json!({"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}),
            )],
        }))
        .await
    }

    /// Reports that its container failed with this last line.
    pub async fn report_failure(&self, message: &str) -> kube::Result<Pod> {
        let done = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        let failed = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": message}});
        self.report(json!({
            "phase": "Failed",
            "initContainerStatuses": [status("tokencache-prepare", done), status("fetch", failed)],
        }))
        .await
    }

    /// Changes its status.
    pub async fn patch_status(&self, change: Value) {
        self.report(change).await.expect("its status is patched");
    }

    async fn report(&self, change: Value) -> kube::Result<Pod> {
        let patch = Patch::Merge(json!({"status": change}));
        self.api.patch_status(&self.pod.name_any(), &PatchParams::default(), &patch).await
    }

    /// As a kubelet does once its containers have ended.
    pub async fn remove(&self) {
        let at_once = DeleteParams::default().grace_period(0);
        // It may be gone already.
        let _ = self.api.delete(&self.pod.name_any(), &at_once).await;
    }

    /// The key of the state's Secret that it mounts.
    pub fn state_key(&self) -> Option<String> {
        let volumes = self.pod.spec.as_ref()?.volumes.as_ref()?;
        let volume = volumes.iter().find(|volume| volume.name == "tokencache-state")?;
        Some(volume.secret.as_ref()?.items.as_ref()?.first()?.key.clone())
    }

    /// What its collector leaves of a result.
    pub async fn sealed(&self, result: &Value) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, message) = (folder.path().join("result"), folder.path().join("message"));
        fs::write(&file, result.to_string()).expect("it is written");
        let container = self.pod.spec.as_ref().and_then(|spec| spec.containers.first()).expect("a container");
        let arguments = container.args.clone().unwrap_or_default();
        let given =
            arguments.iter().filter(|argument| argument.starts_with("--key=") || argument.starts_with("--limit="));
        let mut command = tokio::process::Command::new(binary());
        command.arg("collect").args(given).arg("--result").arg(&file).arg("--message").arg(&message);
        let ended = ended(command).await;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        fs::read_to_string(message).expect("a message")
    }
}

fn status(name: &str, state: Value) -> Value {
    json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}
