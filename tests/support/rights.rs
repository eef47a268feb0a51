//! The service account that controllers run under, with the rights that the chart gives.

use std::{io::Write as _, path::Path};

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    authorization::v1::SubjectAccessReview,
    core::v1::ServiceAccount,
    rbac::v1::{PolicyRule, Role, RoleBinding},
};
use kube::{Api, Client, api::PostParams, config::Kubeconfig};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{Cluster, Namespace, poll, within};

/// As the chart names it; so is its Role.
const ACCOUNT: &str = "tokencache";
/// Longer than any test takes.
const TOKEN_SECONDS: u32 = 24 * 3600;

/// A service account of a namespace, its rights there, and a kubeconfig with its token.
pub struct Account {
    kubeconfig: NamedTempFile,
}

impl Account {
    /// Creates the controllers' account and its Role, and waits until the API server knows of both.
    pub async fn create(client: &Client, namespace: &str, rules: Vec<PolicyRule>) -> Self {
        Self::named(client, namespace, ACCOUNT, rules).await
    }

    /// The same for an account of another name.
    pub async fn named(client: &Client, namespace: &str, account: &str, rules: Vec<PolicyRule>) -> Self {
        let probe = rules.last().cloned();
        create::<ServiceAccount>(client, namespace, account, json!({})).await;
        create::<Role>(client, namespace, account, json!({"rules": rules})).await;
        let binding = json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        });
        create::<RoleBinding>(client, namespace, account, binding).await;
        if let Some(probe) = probe {
            let holds = poll(|| async { is_allowed(client, namespace, account, &probe).await.then_some(()) });
            within("the rights hold", holds).await;
        }
        let request: TokenRequest =
            serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": TOKEN_SECONDS}}))
                .expect("a request");
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let token = answer.expect("a token").status.expect("a token").token;
        Self { kubeconfig: kubeconfig(&token).await }
    }

    /// Path of the kubeconfig.
    pub fn kubeconfig(&self) -> &str {
        self.kubeconfig.path().to_str().expect("a path in UTF-8")
    }
}

async fn create<K>(client: &Client, namespace: &str, name: &str, mut manifest: Value)
where
    K: super::namespace::Object + serde::Serialize,
{
    manifest["metadata"] = json!({"name": name});
    let object: K = serde_json::from_value(manifest).expect("an object");
    Api::<K>::namespaced(client.clone(), namespace).create(&PostParams::default(), &object).await.expect("created");
}

/// Takes these verbs on one resource from what the chart gives to a namespace's controllers, and gives back any other.
pub async fn withhold(ns: &Namespace, verbs: &[&str], group: &str, resource: &str) {
    let mut rules = chart_rules();
    for rule in &mut rules {
        let has = |list: &Option<Vec<String>>, wanted: &str| list.iter().flatten().any(|it| it == wanted);
        if has(&rule.api_groups, group) && has(&rule.resources, resource) {
            rule.verbs.retain(|verb| !verbs.contains(&verb.as_str()));
        }
    }
    // A rule without verbs is none.
    rules.retain(|rule| !rule.verbs.is_empty());
    ns.patch::<Role>(ACCOUNT, json!({"rules": rules})).await;
    for verb in verbs {
        await_right(ns, verb, group, resource, false).await;
    }
}

/// Gives back what was withheld.
pub async fn give_back(ns: &Namespace, verb: &str, group: &str, resource: &str) {
    ns.patch::<Role>(ACCOUNT, json!({"rules": chart_rules()})).await;
    await_right(ns, verb, group, resource, true).await;
}

async fn await_right(ns: &Namespace, verb: &str, group: &str, resource: &str, wanted: bool) {
    let list = |item: &str| Some(vec![item.to_owned()]);
    let rule = PolicyRule {
        api_groups: list(group),
        resources: list(resource),
        verbs: vec![verb.to_owned()],
        ..PolicyRule::default()
    };
    let ask = || async { (is_allowed(ns.client(), &ns.name, ACCOUNT, &rule).await == wanted).then_some(()) };
    within("the changed role is in force", poll(ask)).await;
}

/// The authorizer learns of a Role by a watch.
async fn is_allowed(client: &Client, namespace: &str, account: &str, rule: &PolicyRule) -> bool {
    let first = |list: &Option<Vec<String>>| list.as_ref().and_then(|list| list.first().cloned()).unwrap_or_default();
    let resource = first(&rule.resources);
    let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
    let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
        "user": format!("system:serviceaccount:{namespace}:{account}"),
        "resourceAttributes": {
            "namespace": namespace, "group": first(&rule.api_groups), "resource": resource,
            "subresource": subresource, "verb": rule.verbs.first(), "name": first(&rule.resource_names),
        },
    }}))
    .expect("a review");
    let answer = Api::all(client.clone()).create(&PostParams::default(), &review).await;
    answer.expect("an answer").status.is_some_and(|status| status.allowed)
}

/// The cluster of the tests' own kubeconfig, with this token as the only credential.
async fn kubeconfig(token: &str) -> NamedTempFile {
    let admin = Kubeconfig::read_from(&Cluster::get().await.kubeconfig).expect("a kubeconfig");
    let context = admin.contexts.iter().find(|context| Some(&context.name) == admin.current_context.as_ref());
    let cluster = context.and_then(|context| context.context.as_ref()).map(|context| context.cluster.as_str());
    let cluster = admin.clusters.iter().find(|named| Some(named.name.as_str()) == cluster).expect("a current cluster");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "controller",
        "clusters": [{"name": "cluster", "cluster": cluster.cluster}],
        "users": [{"name": "controller", "user": {"token": token}}],
        "contexts": [{"name": "controller", "context": {"cluster": "cluster", "user": "controller"}}],
    });
    // Only its owner may read it.
    let mut file = NamedTempFile::new().expect("a file");
    file.write_all(config.to_string().as_bytes()).expect("a kubeconfig is written");
    file
}

/// The rights that the chart gives.
pub fn chart_rules() -> Vec<PolicyRule> {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/tokencache/files");
    let read = |name: &str| -> Vec<PolicyRule> {
        let text = std::fs::read_to_string(files.join(name)).expect("the chart's rules");
        serde_saphyr::from_str(&text).expect("rules")
    };
    ["rules", "rules-jobs", "rules-service-account-tokens", "rules-restarts"]
        .iter()
        .flat_map(|name| read(&format!("{name}.yaml")))
        .collect()
}
