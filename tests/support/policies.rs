//! The chart's ValidatingAdmissionPolicies, bound in the test cluster if its API server supports them (Kubernetes 1.30 and
//! newer). So all scenarios run with them.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
};

use k8s_openapi::api::core::v1::{Namespace as KubeNamespace, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
    core::{DynamicObject, GroupVersionKind, discovery::ApiResource},
};
use serde_json::json;
use tokencache::api::names::LABEL_RUN;

use super::{Cluster, Namespace, poll, rights::SYSTEM, within};

const GROUP_VERSION: &str = "admissionregistration.k8s.io/v1";
/// A namespace with this label and the value `off` is exempt, in the test cluster only.
const LABEL: &str = "tokencache.test/policies";
/// The policy that even an administrator cannot pass, so that it shows what the API server has loaded.
const PROBED: &str = "tokencache-runs";

/// Whether the API server supports ValidatingAdmissionPolicies.
pub async fn are_supported(client: &Client) -> bool {
    let found = client.list_api_group_resources(GROUP_VERSION).await;
    found.is_ok_and(|list| list.resources.iter().any(|resource| resource.name == "validatingadmissionpolicies"))
}

/// The same for the cluster of the tests; if not, prints that the test is skipped.
pub async fn supported() -> bool {
    let supported = are_supported(&Cluster::get().await.client).await;
    if !supported {
        eprintln!("skipped: the API server has no ValidatingAdmissionPolicies, which Kubernetes 1.30 and newer have");
    }
    supported
}

/// The policies and bindings of `config/`, in the order in which they are applied: the bindings first, and [`PROBED`] last.
fn manifests() -> Vec<DynamicObject> {
    let mut objects: Vec<DynamicObject> = Vec::new();
    for file in ["policies.yaml", "policy-authors.yaml"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        objects.extend(serde_saphyr::from_multiple::<DynamicObject>(&text).expect("policies"));
    }
    objects.sort_by_key(|object| (!is_binding(object), object.metadata.name.as_deref() == Some(PROBED)));
    for binding in objects.iter_mut().filter(|object| is_binding(object)) {
        let not_off = json!([{"key": LABEL, "operator": "NotIn", "values": ["off"]}]);
        binding.data["spec"]["matchResources"] = json!({"namespaceSelector": {"matchExpressions": not_off}});
    }
    objects
}

fn is_binding(object: &DynamicObject) -> bool {
    object.types.as_ref().is_some_and(|types| types.kind.ends_with("Binding"))
}

/// Applies the policies, and waits until the API server enforces them.
pub async fn bind(client: &Client) {
    if !are_supported(client).await {
        println!("without policies: the API server has no ValidatingAdmissionPolicies");
        return;
    }
    let mut objects = manifests();
    let mut hasher = DefaultHasher::new();
    json!(objects).to_string().hash(&mut hasher);
    // An earlier process may have applied other ones, so the probed policy says in its message which these are.
    let mark = format!("{:016x}", hasher.finish());
    let probed = objects.last_mut().expect("policies");
    let message = probed.data["spec"]["validations"][0]["message"].as_str().expect("a message").to_owned();
    probed.data["spec"]["validations"][0]["message"] = json!(format!("{message} ({mark})"));
    for object in &objects {
        let types = object.types.as_ref().expect("a kind");
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", &types.kind);
        let plural =
            if is_binding(object) { "validatingadmissionpolicybindings" } else { "validatingadmissionpolicies" };
        let api = Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, plural));
        let params = PatchParams::apply("tests").force();
        let name = object.metadata.name.as_deref().expect("a name");
        let applied = api.patch(name, &params, &Patch::Apply(object)).await;
        applied.unwrap_or_else(|error| panic!("cannot apply policy {name}: {error}"));
    }
    let enforced =
        poll(|| async { denial(client, SYSTEM).await.is_some_and(|text| text.contains(&mark)).then_some(()) });
    within("the policies are enforced", enforced).await;
}

/// How the probed policy denies a pod, if it does. The namespace may have the level `restricted` of Pod Security.
async fn denial(client: &Client, namespace: &str) -> Option<String> {
    let security = json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"generateName": "probe-", "labels": {LABEL_RUN: "probe"}},
        "spec": {
            "containers": [{"name": "probe", "image": "probe", "securityContext": security}],
            "automountServiceAccountToken": false,
        },
    }))
    .expect("a pod");
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let created = Api::<Pod>::namespaced(client.clone(), namespace).create(&params, &pod).await;
    created.err().map(|error| error.to_string()).filter(|text| text.contains(PROBED))
}

impl Namespace {
    /// Exempts this namespace from the policies, for a test of what tokencache itself does about a client that the policies
    /// would stop. `reason` says which client.
    pub async fn lift_policies(&self, reason: &str) {
        if !are_supported(self.client()).await {
            return;
        }
        println!("{} is exempt from the policies: {reason}", self.name);
        let label = Patch::Merge(json!({"metadata": {"labels": {LABEL: "off"}}}));
        let namespaces: Api<KubeNamespace> = Api::all(self.client().clone());
        namespaces
            .patch_metadata(&self.name, &PatchParams::default(), &label)
            .await
            .expect("the namespace is labelled");
        let lifted = poll(|| async { denial(self.client(), &self.name).await.is_none().then_some(()) });
        within("the policies are lifted", lifted).await;
    }
}
