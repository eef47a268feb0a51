//! A user of the cluster with the controller's own rights in one namespace, or with less.

use k8s_openapi::api::{
    authorization::v1::SubjectAccessReview,
    rbac::v1::{ClusterRole, PolicyRule, Role, RoleBinding},
};
use kube::{
    Api,
    api::PostParams,
    config::{AuthInfo, Kubeconfig},
};
use serde_json::json;

use super::{Cluster, Namespace, poll, within};

/// A user with the rights of config/rbac.yaml in a namespace.
pub struct User {
    /// Path of its kubeconfig: the admin's, who acts as this user.
    pub kubeconfig: String,
    name: String,
    _folder: tempfile::TempDir,
}

const ROLE: &str = "controller";

impl User {
    /// A new one.
    pub async fn new(ns: &Namespace) -> Self {
        let name = format!("user-of-{}", ns.name);
        let mut file = Kubeconfig::read_from(&Cluster::get().await.kubeconfig).expect("a kubeconfig");
        for user in &mut file.auth_infos {
            user.auth_info.get_or_insert_with(AuthInfo::default).impersonate = Some(name.clone());
        }
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubeconfig");
        // With the admin's key in it: for its owner alone, as the folder is.
        std::fs::write(&path, serde_saphyr::to_string(&file).expect("YAML")).expect("a kubeconfig");
        ns.create::<Role>(json!({"metadata": {"name": ROLE}, "rules": published()})).await;
        let binding = json!({
            "metadata": {"name": ROLE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ROLE},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
        });
        ns.create::<RoleBinding>(binding).await;
        let user = Self { kubeconfig: path.to_string_lossy().into_owned(), name, _folder: folder };
        user.await_access(ns, "update", "coordination.k8s.io", "leases", true).await;
        user
    }

    /// From now on it has the rights of config/rbac.yaml, less these verbs on one resource.
    pub async fn lacks(&self, ns: &Namespace, verbs: &[&str], group: &str, resource: &str) {
        let mut rules = published();
        for rule in &mut rules {
            let is = |list: &Option<Vec<String>>, wanted: &str| list.iter().flatten().any(|it| it == wanted);
            if is(&rule.api_groups, group) && is(&rule.resources, resource) {
                rule.verbs.retain(|verb| !verbs.contains(&verb.as_str()));
            }
        }
        // A rule without verbs is none.
        rules.retain(|rule| !rule.verbs.is_empty());
        ns.patch::<Role>(ROLE, json!({"rules": rules})).await;
        for verb in verbs {
            self.await_access(ns, verb, group, resource, false).await;
        }
    }

    /// From now on it has the rights of config/rbac.yaml.
    pub async fn lacks_nothing(&self, ns: &Namespace, verb: &str, group: &str, resource: &str) {
        ns.patch::<Role>(ROLE, json!({"rules": published()})).await;
        self.await_access(ns, verb, group, resource, true).await;
    }

    /// The API server learns of a changed role by a watch.
    async fn await_access(&self, ns: &Namespace, verb: &str, group: &str, resource: &str, wanted: bool) {
        let review = json!({"metadata": {}, "spec": {"user": self.name, "resourceAttributes": {
            "namespace": ns.name, "verb": verb, "group": group, "resource": resource,
        }}});
        let review: SubjectAccessReview = serde_json::from_value(review).expect("a review");
        let reviews = Api::<SubjectAccessReview>::all(ns.client().clone());
        let is = || async {
            let answer = reviews.create(&PostParams::default(), &review).await.expect("an answer");
            (answer.status.is_some_and(|status| status.allowed) == wanted).then_some(())
        };
        within("the role is in force", poll(is)).await;
    }
}

/// The rules that users are told to install.
fn published() -> Vec<PolicyRule> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/rbac.yaml");
    let text = std::fs::read_to_string(file).expect(file);
    let document =
        text.split("\n---\n").find(|document| document.contains("kind: ClusterRole\n")).expect("a ClusterRole");
    let role: ClusterRole = serde_saphyr::from_str(document).expect("a ClusterRole");
    role.rules.expect("rules")
}
