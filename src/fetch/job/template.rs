//! What a template must not hold, and what it refers to: pure.
//!
//! Whoever may write a TokenCache has, by this source, the controller's right to create Jobs. The rules for Secrets and
//! service accounts are those of all sources: only what its owner opened is used.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Map, Value};

use super::manifest::{RESERVED, name, objects};
use crate::api::{Invalid, job::Job};

const FIELD: &str = "spec.fetch.job.template.spec";

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

/// The Secrets that the pod reads, and whether it may do without.
pub(super) fn secrets(job: &Job) -> BTreeSet<(String, bool)> {
    let spec = job.template.0.get("spec").unwrap_or(&Value::Null);
    let mut found = BTreeSet::new();
    let mut add = |reference: Option<&Value>, field: &str| {
        let text = reference.and_then(|reference| reference.get(field)).and_then(Value::as_str);
        let optional = reference.and_then(|reference| reference.get("optional")) == Some(&Value::Bool(true));
        found.extend(text.map(|text| (text.to_owned(), optional)));
    };
    let list = |object: &'_ Map<String, Value>, field: &str| {
        object.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    for container in ["initContainers", "containers"].into_iter().flat_map(|field| objects(spec, field)) {
        for variable in list(container, "env") {
            add(variable.pointer("/valueFrom/secretKeyRef"), "name");
        }
        for source in list(container, "envFrom") {
            add(source.get("secretRef"), "name");
        }
    }
    for volume in objects(spec, "volumes") {
        add(volume.get("secret"), "secretName");
        let projected = volume.get("projected").and_then(Value::as_object);
        for source in projected.map(|projected| list(projected, "sources")).unwrap_or_default() {
            add(source.get("secret"), "name");
        }
    }
    found
}

/// The service account whose token the pod gets, if it gets one.
pub(super) fn service_account(job: &Job) -> Option<&str> {
    let spec = job.template.0.get("spec")?;
    let text = |field: &str| spec.get(field).and_then(Value::as_str).filter(|name| !name.is_empty());
    let named = text("serviceAccountName").or_else(|| text("serviceAccount"));
    let mounted = spec.get("automountServiceAccountToken") == Some(&Value::Bool(true));
    let projected = objects(spec, "volumes").any(|volume| {
        let sources = volume.get("projected").and_then(|projected| projected.get("sources"));
        sources
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .any(|source| source.get("serviceAccountToken").is_some())
    });
    named.or((mounted || projected).then_some("default"))
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
#[cfg(test)]
pub(super) use tests::published;
