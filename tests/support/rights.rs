//! The service account that controllers run under, with the rights that the chart gives.

use std::{io::Write as _, path::Path};

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    authorization::v1::SubjectAccessReview,
    core::v1::{Namespace as KubeNamespace, ServiceAccount},
    rbac::v1::{PolicyRule, Role, RoleBinding},
};
use kube::{Api, Client, api::PostParams, config::Kubeconfig};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{Cluster, Namespace, poll, within};

/// The namespace of the controllers' account, as README.md says to install the chart.
pub const SYSTEM: &str = "tokencache-system";
/// As the chart names it; so is its Role.
const ACCOUNT: &str = "tokencache";
/// Longer than any test takes.
const TOKEN_SECONDS: u32 = 24 * 3600;

/// A service account of a namespace, its rights there, and a kubeconfig with its token.
pub struct Account {
    kubeconfig: NamedTempFile,
}

impl Account {
    /// The controllers' account, which is the same in all namespaces, with these rights in one of them.
    pub async fn controller(client: &Client, namespace: &str, rules: Vec<PolicyRule>) -> Self {
        create_system(client).await;
        Self::bound(client, namespace, (SYSTEM, ACCOUNT), rules).await
    }

    /// An account of the namespace itself.
    pub async fn named(client: &Client, namespace: &str, account: &str, rules: Vec<PolicyRule>) -> Self {
        create::<ServiceAccount>(client, namespace, account, json!({})).await;
        Self::bound(client, namespace, (namespace, account), rules).await
    }

    /// Creates a Role for an account, and waits until the API server knows of it.
    async fn bound(client: &Client, namespace: &str, (home, account): (&str, &str), rules: Vec<PolicyRule>) -> Self {
        let probe = rules.last().cloned();
        create::<Role>(client, namespace, account, json!({"rules": rules})).await;
        let binding = json!({
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": home}],
        });
        create::<RoleBinding>(client, namespace, account, binding).await;
        if let Some(probe) = probe {
            let user = user(home, account);
            let holds = poll(|| async { is_allowed(client, namespace, &user, &probe).await.then_some(()) });
            within("the rights hold", holds).await;
        }
        let request: TokenRequest =
            serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": TOKEN_SECONDS}}))
                .expect("a request");
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), home);
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let token = answer.expect("a token").status.expect("a token").token;
        Self { kubeconfig: kubeconfig(&token).await }
    }

    /// Path of the kubeconfig.
    pub fn kubeconfig(&self) -> &str {
        self.kubeconfig.path().to_str().expect("a path in UTF-8")
    }
}

/// As the API server names a service account.
fn user(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

/// Creates the namespace of the controllers' account, and that account, unless they are there.
pub async fn create_system(client: &Client) {
    let metadata = |name: &str| json!({"metadata": {"name": name}});
    let namespace: KubeNamespace = serde_json::from_value(metadata(SYSTEM)).expect("a namespace");
    unless_there(Api::all(client.clone()).create(&PostParams::default(), &namespace).await);
    let account: ServiceAccount = serde_json::from_value(metadata(ACCOUNT)).expect("an account");
    unless_there(Api::namespaced(client.clone(), SYSTEM).create(&PostParams::default(), &account).await);
}

fn unless_there<T>(created: kube::Result<T>) {
    match created {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("not created: {error}"),
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
    let ask =
        || async { (is_allowed(ns.client(), &ns.name, &user(SYSTEM, ACCOUNT), &rule).await == wanted).then_some(()) };
    within("the changed role is in force", poll(ask)).await;
}

/// The authorizer learns of a Role by a watch.
async fn is_allowed(client: &Client, namespace: &str, user: &str, rule: &PolicyRule) -> bool {
    let first = |list: &Option<Vec<String>>| list.as_ref().and_then(|list| list.first().cloned()).unwrap_or_default();
    let resource = first(&rule.resources);
    let (resource, subresource) = resource.split_once('/').unwrap_or((&resource, ""));
    let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
        "user": user,
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
