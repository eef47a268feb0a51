//! What each ValidatingAdmissionPolicy of the chart allows and denies. Each request is a dry run, by an account that has
//! the permission for it, so that only the policy decides.

mod authors;
mod controller;
mod guards;
mod status;
mod workloads;

use http::{Method, Request, header::CONTENT_TYPE};
use k8s_openapi::api::rbac::v1::PolicyRule;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokencache::{api::TokenCache, client::connect};

use crate::support::{Account, Namespace, policies};

/// A request in a namespace.
struct Call {
    method: Method,
    path: String,
    body: Value,
}

/// Where a resource of a namespace is served.
fn path(resource: &str) -> String {
    let api = match resource.split('/').next().unwrap_or_default() {
        "tokencaches" => "apis/tokencache.dev/v1alpha1",
        "leases" => "apis/coordination.k8s.io/v1",
        "jobs" => "apis/batch/v1",
        "deployments" | "statefulsets" | "daemonsets" => "apis/apps/v1",
        _ => "api/v1",
    };
    format!("/{api}/namespaces/NAMESPACE/{resource}")
}

/// Creates an object.
fn create(resource: &str, body: Value) -> Call {
    Call { method: Method::POST, path: path(resource), body }
}

/// Changes an object, named as `secrets/a`, by a merge patch.
fn patch(object: &str, body: Value) -> Call {
    Call { method: Method::PATCH, path: path(object), body }
}

/// Deletes an object. The API server takes the options of a deletion from its body, if there is one.
fn delete(object: &str) -> Call {
    Call { method: Method::DELETE, path: path(object), body: json!({"dryRun": ["All"]}) }
}

/// What the API server must do with a request.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Allow,
    /// A policy denies it, in these words.
    Deny(&'static str),
}

use self::Verdict::{Allow, Deny};

/// A client with the permissions of one account, in one namespace.
struct Actor {
    client: Client,
    namespace: String,
}

impl Actor {
    async fn new(account: &Account, namespace: &str) -> Self {
        let file = Kubeconfig::read_from(account.kubeconfig()).expect("a kubeconfig");
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        Self::with(config.expect("a configuration"), namespace)
    }

    fn with(mut config: Config, namespace: &str) -> Self {
        config.default_retry = false;
        Self { client: connect(config).expect("a client"), namespace: namespace.to_owned() }
    }

    /// An account of the namespace with these rules.
    async fn named(ns: &Namespace, name: &str, rules: Value) -> Self {
        let rules: Vec<PolicyRule> = serde_json::from_value(rules).expect("rules");
        Self::new(&Account::named(ns.client(), &ns.name, name, rules).await, &ns.name).await
    }

    /// Sends a request; the message of the API server if it refuses it.
    async fn send(&self, call: &Call, dry_run: bool) -> Result<(), String> {
        let path = call.path.replace("NAMESPACE", &self.namespace);
        let content_type =
            if call.method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let query = if dry_run { "?dryRun=All" } else { "" };
        let request = Request::builder().method(&call.method).uri(format!("{path}{query}"));
        let request = request.header(CONTENT_TYPE, content_type).body(call.body.to_string().into_bytes());
        let answer = self.client.request_text(request.expect("a request")).await;
        answer.map(drop).map_err(|error| match error {
            kube::Error::Api(status) => status.message,
            other => other.to_string(),
        })
    }

    /// Sends each request as a dry run, and fails with all that went otherwise.
    async fn try_all(&self, rows: Vec<(&str, Call, Verdict)>) {
        let mut wrong = Vec::new();
        for (what, call, verdict) in rows {
            let answer = self.send(&call, true).await;
            let right = match (&answer, verdict) {
                (Ok(()), Allow) => true,
                (Err(text), Deny(words)) => text.contains("ValidatingAdmissionPolicy") && text.contains(words),
                _ => false,
            };
            if !right {
                wrong.push(format!("{what}: {verdict:?}, but {answer:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// A namespace where no controller runs, if the API server supports policies.
async fn stage() -> Option<Namespace> {
    if policies::supported().await { Some(Namespace::new().await) } else { None }
}

/// A TokenCache that nobody looks after.
async fn token_cache(ns: &Namespace, name: &str) -> TokenCache {
    ns.create(json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "metadata": {"name": name},
        "spec": {"suspend": true, "fetch": {"http": {"url": "https://id.example.com/", "result": {"token": "response.body"}}}},
    }))
    .await
}

/// The reference by which a TokenCache controls an object.
fn owner(cache: &TokenCache) -> Value {
    json!([{
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "controller": true,
        "name": cache.metadata.name, "uid": cache.metadata.uid,
    }])
}

/// A rule of a Role.
fn rule(group: &str, resource: &str, verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
}

/// The permission by which a client counts as a controller.
fn may_update_status() -> Value {
    rule("tokencache.dev", "tokencaches/status", &["update"])
}

/// A pod that no node takes.
fn pod_spec() -> Value {
    json!({
        "restartPolicy": "Never", "automountServiceAccountToken": false,
        "nodeSelector": {"tokencache.test/node": "none"},
        "containers": [{"name": "a", "image": "tokencache.test/none:1"}],
    })
}
