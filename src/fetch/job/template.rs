//! What a template must not hold, and what it refers to: pure.
//!
//! Whoever may write a TokenCache has, by this source, the controller's right to create Jobs. The rules for Secrets and
//! service accounts are those of all sources: only what its owner opened is used.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Map, Value, json};

use super::manifest::{RESERVED, default, name, objects};
use crate::api::{Invalid, job::Job};

const FIELD: &str = "spec.fetch.job.template.spec";

const CONTAINERS: [&str; 2] = ["initContainers", "containers"];
/// Where a variable names a Secret.
const VARIABLE: &str = "/valueFrom/secretKeyRef";
/// The account of pods that name none.
pub(super) const DEFAULT_ACCOUNT: &str = "default";
/// Sources of projected volumes that say nothing of who the pod is.
const IMPERSONAL_SOURCES: [&str; 4] = ["clusterTrustBundle", "configMap", "downwardAPI", "secret"];
/// Labels of pods into which the webhook of Azure Workload Identity injects a token.
const AZURE_IDENTITY: &str = "azure.workload.identity/";

/// Kinds of volumes that give nothing away that its owner would have to open, but for `secret` and `projected`, of
/// which the Secrets are known.
const VOLUMES: [&str; 11] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "hostPath",
    "image",
    "nfs",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Checks what is tokencache's own matter; the rest is the API server's.
pub(super) fn check(job: &Job) -> Result<(), Invalid> {
    let spec = job.template.0.get("spec").unwrap_or(&Value::Null);
    serde_json::from_value::<PodTemplateSpec>(job.template.0.clone())
        .map_err(|error| Invalid::new("spec.fetch.job.template", format!("is no pod template: {error}")))?;
    if objects(spec, "containers").next().is_none() {
        return Err(Invalid::new(format!("{FIELD}.containers"), "must have at least one container"));
    }
    match &job.result_container {
        Some(wanted) if !objects(spec, "containers").any(|container| name(container) == wanted) => {
            let message = format!("names {wanted}, which is no container of the template");
            return Err(Invalid::new("spec.fetch.job.resultContainer", message));
        }
        None if objects(spec, "containers").count() > 1 => {
            let message = "must name one of the template's containers, which are several";
            return Err(Invalid::new("spec.fetch.job.resultContainer", message));
        }
        _ => {}
    }
    if spec.get("restartPolicy").is_some_and(|policy| policy != "Never") {
        let message = "must be Never: a run that failed is repeated by tokencache, as spec.retry says";
        return Err(Invalid::new(format!("{FIELD}.restartPolicy"), message));
    }
    for field in ["containers", "initContainers", "volumes"] {
        for (at, object) in objects(spec, field).enumerate() {
            if name(object).starts_with(RESERVED) {
                let message = format!("names that begin with {RESERVED} are tokencache's own");
                return Err(Invalid::new(format!("{FIELD}.{field}[{at}].name"), message));
            }
        }
    }
    for (at, container) in objects(spec, "containers").enumerate() {
        for probe in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if container.get(probe).is_some_and(|probe| !probe.is_null()) {
                let message = "has no meaning in a container that runs to its end";
                return Err(Invalid::new(format!("{FIELD}.containers[{at}].{probe}"), message));
            }
        }
    }
    for (at, volume) in objects(spec, "volumes").enumerate() {
        if let Some(kind) = volume.keys().find(|kind| *kind != "name" && !VOLUMES.contains(&kind.as_str())) {
            let message = format!("is not allowed here; these are: {}", VOLUMES.join(", "));
            return Err(Invalid::new(format!("{FIELD}.volumes[{at}].{kind}"), message));
        }
        if volume.get("csi").is_some_and(|csi| csi.get("nodePublishSecretRef").is_some()) {
            let message = "is not allowed here, since tokencache cannot tell whether the Secret is opened for it";
            return Err(Invalid::new(format!("{FIELD}.volumes[{at}].csi.nodePublishSecretRef"), message));
        }
    }
    Ok(())
}

/// The Secrets that the pod reads, and whether it may do without. A pull secret that does not exist is ignored by
/// Kubernetes.
pub(super) fn secrets(job: &Job) -> BTreeSet<(String, bool)> {
    let spec = job.template.0.get("spec").unwrap_or(&Value::Null);
    let mut found = BTreeSet::new();
    let mut add = |reference: Option<&Value>, field: &str| {
        let text = reference.and_then(|reference| reference.get(field)).and_then(Value::as_str);
        found.extend(text.map(|text| (text.to_owned(), is_optional(reference))));
    };
    for container in CONTAINERS.into_iter().flat_map(|field| objects(spec, field)) {
        for variable in list(container, "env") {
            add(variable.pointer(VARIABLE), "name");
        }
        for source in list(container, "envFrom") {
            add(source.get("secretRef"), "name");
        }
    }
    for volume in objects(spec, "volumes") {
        add(volume.get("secret"), "secretName");
        for source in projected(volume) {
            add(source.get("secret"), "name");
        }
    }
    let pull_secrets = objects(spec, "imagePullSecrets").map(name).filter(|name| !name.is_empty());
    found.extend(pull_secrets.map(|name| (name.to_owned(), true)));
    found
}

fn is_optional(reference: Option<&Value>) -> bool {
    reference.and_then(|reference| reference.get("optional")) == Some(&Value::Bool(true))
}

fn list<'a>(object: &'a Map<String, Value>, field: &str) -> &'a [Value] {
    object.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn projected(volume: &Map<String, Value>) -> &[Value] {
    volume.get("projected").and_then(Value::as_object).map(|projected| list(projected, "sources")).unwrap_or_default()
}

/// The job without its references to these Secrets, which did not exist when they were looked at. Kubernetes reads an
/// optional Secret whenever it comes to exist, even while the pod runs, and whether its owner allows that is not known.
pub(super) fn without(job: &Job, absent: &BTreeSet<String>) -> Job {
    let mut job = job.clone();
    let is_absent = |reference: Option<&Value>, field: &str| {
        let name = reference.and_then(|reference| reference.get(field)).and_then(Value::as_str);
        name.is_some_and(|name| absent.contains(name))
    };
    let Some(spec) = job.template.0.get_mut("spec").and_then(Value::as_object_mut) else { return job };
    let retain = |object: &mut Map<String, Value>, field: &str, keeps: &dyn Fn(&Value) -> bool| {
        if let Some(list) = object.get_mut(field).and_then(Value::as_array_mut) {
            list.retain(keeps);
        }
    };
    let each = |spec: &mut Map<String, Value>, field: &str, change: &dyn Fn(&mut Map<String, Value>)| {
        let list = spec.get_mut(field).and_then(Value::as_array_mut);
        list.into_iter().flatten().filter_map(Value::as_object_mut).for_each(change);
    };
    retain(spec, "imagePullSecrets", &|secret| !is_absent(Some(secret), "name"));
    for field in CONTAINERS {
        each(spec, field, &|container| {
            retain(container, "env", &|variable| !is_absent(variable.pointer(VARIABLE), "name"));
            retain(container, "envFrom", &|source| !is_absent(source.get("secretRef"), "name"));
        });
    }
    each(spec, "volumes", &|volume| {
        let mut empty = is_absent(volume.get("secret"), "secretName");
        if let Some(projected) = volume.get_mut("projected").and_then(Value::as_object_mut) {
            let before = list(projected, "sources").len();
            retain(projected, "sources", &|source| !is_absent(source.get("secret"), "name"));
            empty = before > 0 && list(projected, "sources").is_empty();
        }
        if empty {
            // The containers mount it.
            volume.retain(|kind, _| kind == "name");
            volume.insert("emptyDir".to_owned(), json!({}));
        }
    });
    job
}

/// The service account that the template names.
pub(super) fn named_account(job: &Job) -> Option<&str> {
    let spec = job.template.0.get("spec")?;
    let text = |field: &str| spec.get(field).and_then(Value::as_str).filter(|name| !name.is_empty());
    text("serviceAccountName").or_else(|| text("serviceAccount"))
}

/// The service account whose identity the pod can use in a way that the template tells: it is named, its token is
/// mounted, or a volume acts for it.
pub(super) fn service_account(job: &Job) -> Option<&str> {
    named_account(job).or_else(|| uses_identity(job).then_some(DEFAULT_ACCOUNT))
}

/// Whether the pod gets an identity by its account even where the template does not name it.
pub(super) fn uses_identity(job: &Job) -> bool {
    let spec = job.template.0.get("spec").unwrap_or(&Value::Null);
    let mounted = spec.get("automountServiceAccountToken") == Some(&Value::Bool(true));
    let volumes = objects(spec, "volumes").any(|volume| {
        // The kubelet gives CSI drivers a token of the account, whatever is mounted into the containers.
        ["csi", "ephemeral"].iter().any(|kind| volume.get(*kind).is_some_and(|volume| !volume.is_null()))
            || projected(volume).iter().filter_map(Value::as_object).any(|source| {
                source.iter().any(|(kind, of)| !of.is_null() && !IMPERSONAL_SOURCES.contains(&kind.as_str()))
            })
    });
    let labels = job.template.0.pointer("/metadata/labels").and_then(Value::as_object);
    let injected = labels.is_some_and(|labels| labels.keys().any(|key| key.starts_with(AZURE_IDENTITY)));
    mounted || volumes || injected
}

/// The audiences of the tokens of its account that the pod mounts, for each of them; none stands for the API server's own.
pub(super) fn token_audiences(job: &Job) -> Vec<Vec<String>> {
    let spec = job.template.0.get("spec").unwrap_or(&Value::Null);
    let automount = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    // Kubernetes mounts one unless the pod or the account says otherwise; this does so only for an account that is named.
    let mounted = automount.unwrap_or(named_account(job).is_some());
    let tokens = objects(spec, "volumes").flat_map(projected).filter_map(|source| source.get("serviceAccountToken"));
    let audience = |token: &Value| {
        let audience = token.get("audience").and_then(Value::as_str).filter(|audience| !audience.is_empty());
        audience.map(str::to_owned).into_iter().collect()
    };
    mounted.then(Vec::new).into_iter().chain(tokens.filter(|token| !token.is_null()).map(audience)).collect()
}

/// The job under an account that was chosen for those that name none, without its token.
pub(super) fn under(mut job: Job, account: Option<&str>) -> Job {
    if let Some(account) = account.filter(|_| named_account(&job).is_none())
        && let Some(spec) = job.template.0.get_mut("spec")
    {
        default(spec, "automountServiceAccountToken", false.into());
        spec["serviceAccountName"] = account.into();
    }
    job
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
#[cfg(test)]
pub(super) use tests::published;
