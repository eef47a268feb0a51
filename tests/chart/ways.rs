//! The ways to install: the chart for all namespaces or for some, and the manifests of `config/`.

use std::fs;

use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Pod};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    support::{DEADLINE, poll},
    tools::{chart, must, repository, run},
};

/// Where the controllers run.
const NAMESPACE: &str = "tokencache-system";
/// Their image, in two parts.
pub const IMAGE: (&str, &str) = ("tokencache.test/tokencache", "1");
const SELECTOR: &str = "app.kubernetes.io/name=tokencache";

/// A way to install.
pub enum Way {
    /// By helm; the namespaces to look after, or none for all.
    Helm(Vec<String>),
    /// By `kubectl apply -k`, from a copy of `config/` and `crds/`.
    Kustomize(TempDir),
}

impl Way {
    /// As the README says, with the image of this test.
    pub fn kustomize() -> Self {
        let copy = tempfile::tempdir().expect("a folder");
        for folder in ["config", "crds"] {
            fs::create_dir(copy.path().join(folder)).expect("a folder");
            for entry in fs::read_dir(repository(folder)).expect(folder) {
                let entry = entry.expect("an entry");
                let mut text = fs::read_to_string(entry.path()).expect("a manifest");
                text = text.replace("newName: tokencache", &format!("newName: {}", IMAGE.0));
                text = text.replace("newTag: 0.1.0", &format!("newTag: \"{}\"", IMAGE.1));
                // It came with Kubernetes 1.21; the tests' own is 1.20.
                text = text.replace("apiVersion: policy/v1\n", &format!("apiVersion: {}\n", policy_version()));
                fs::write(copy.path().join(folder).join(entry.file_name()), text).expect("a copy");
            }
        }
        Self::Kustomize(copy)
    }

    /// Installs, and waits until all pods are ready.
    pub fn install(&self) {
        self.helm("install", "64");
        self.apply();
    }

    /// Changes the deployment, and waits until all pods are new and ready.
    pub fn upgrade(&self) {
        self.helm("upgrade", "32");
        if let Self::Kustomize(copy) = self {
            let file = copy.path().join("config/controller.yaml");
            let text = fs::read_to_string(&file).expect("a manifest");
            fs::write(&file, text.replace("--concurrency=64", "--concurrency=32")).expect("a manifest");
        }
        self.apply();
    }

    fn helm(&self, verb: &str, concurrency: &str) {
        let Self::Helm(namespaces) = self else { return };
        let concurrency = format!("concurrency={concurrency}");
        let (repository, tag) = (format!("image.repository={}", IMAGE.0), format!("image.tag={}", IMAGE.1));
        let watch = format!("watchNamespaces={{{}}}", namespaces.join(","));
        let mut arguments = vec![verb, "tokencache", "--namespace", NAMESPACE, "--wait", "--timeout", "3m"];
        // Kubernetes 1.20 takes the definition only so: it does not know the rules in it.
        arguments.extend(["--server-side=false", "--disable-openapi-validation"]);
        arguments.extend(["--set-string", &tag, "--set", &repository, "--set", &concurrency]);
        if !namespaces.is_empty() {
            arguments.extend(["--set", &watch]);
        }
        let chart = chart();
        arguments.push(&chart);
        must("helm", &arguments);
    }

    fn apply(&self) {
        let Self::Kustomize(copy) = self else { return };
        let folder = copy.path().join("config");
        must("kubectl", &["apply", "--validate=false", "-k", folder.to_str().expect("a path")]);
        if policies_are_supported() {
            let file = folder.join("policies.yaml");
            must("kubectl", &["apply", "-f", file.to_str().expect("a path")]);
        }
        let status = ["rollout", "status", "deployment/tokencache", "--namespace", NAMESPACE, "--timeout", "3m"];
        must("kubectl", &status);
    }

    /// Takes away what was installed, but not the definition, and waits until no pod is left.
    pub async fn uninstall(&self, client: &Client) {
        match self {
            Self::Helm(_) => drop(must("helm", &["uninstall", "tokencache", "--namespace", NAMESPACE])),
            Self::Kustomize(copy) => {
                let file = |name: &str| copy.path().join("config").join(name).to_string_lossy().into_owned();
                must("kubectl", &["delete", "-f", &file("controller.yaml"), "-f", &file("rbac.yaml")]);
                if policies_are_supported() {
                    must("kubectl", &["delete", "-f", &file("policies.yaml")]);
                }
            }
        }
        of_pods("its pods are gone", poll(|| async { pods(client).await.is_empty().then_some(()) })).await;
    }
}

fn policy_version() -> &'static str {
    let known = must("kubectl", &["api-versions"]);
    if known.lines().any(|line| line == "policy/v1") { "policy/v1" } else { "policy/v1beta1" }
}

/// Whether the API server has ValidatingAdmissionPolicies, which came with Kubernetes 1.30.
fn policies_are_supported() -> bool {
    let known = must("kubectl", &["api-resources", "--api-group=admissionregistration.k8s.io", "--output=name"]);
    known.contains("validatingadmissionpolicies.")
}

/// Creates the namespace of the controllers, with the level that they need, if it is not there.
pub async fn namespace(client: &Client) {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE, "labels": labels}})).expect("it");
    match Api::<KubeNamespace>::all(client.clone()).create(&PostParams::default(), &namespace).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        created => drop(created.expect("the namespace is created")),
    }
}

/// Waits as `within` does, but tells all that is known of the controllers' pods where it was in vain.
pub async fn of_pods<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(DEADLINE, future).await else {
        let known = [
            &["get", "deployments,replicasets,pods", "--output", "wide"][..],
            &["describe", "pods"],
            &["logs", "--selector", SELECTOR, "--tail", "40"],
        ];
        let mut told = format!("not within {DEADLINE:?}: {what}\n");
        for arguments in known {
            let output = run("kubectl", &[&["--namespace", NAMESPACE], arguments].concat());
            told += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
        }
        panic!("{told}");
    };
    value
}

/// The controllers' pods.
pub async fn pods(client: &Client) -> Vec<Pod> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    pods.list(&ListParams::default().labels(SELECTOR)).await.expect("pods").items
}
