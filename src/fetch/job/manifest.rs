//! The Job of one run, from the user's template: pure.
//!
//! The template's containers become init containers, and the collector the pod's only container: so it starts when
//! they have succeeded, without a permission and without a change of their commands. Another one goes before them: it
//! makes the file for the result, and shows that the collector's image is there before anything is fetched with it.

use std::time::Duration;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::security;
use crate::{
    api::{
        job::Job,
        names::{LABEL_CACHE, LABEL_MANAGED, LABEL_RUN},
    },
    fetch::state_secret,
    k8s::object::OwnerRef,
};

/// The collector's container.
pub(super) const COLLECTOR: &str = "tokencache-collect";
/// The container that makes the file for the result.
pub(super) const PREPARER: &str = "tokencache-prepare";
/// Field of a Job's spec since Kubernetes 1.28: no pod is created in the place of one that has not ended.
pub(super) const REPLACEMENT: &str = "podReplacementPolicy";
/// Names that begin so are not for users.
pub(super) const RESERVED: &str = "tokencache-";

const RESULT_VOLUME: &str = "tokencache-result";
const RESULT_FOLDER: &str = "/tokencache/result";
const RESULT: &str = "/tokencache/result/result.json";
const STATE_VOLUME: &str = "tokencache-state";
const STATE_FOLDER: &str = "/tokencache/state";
const STATE: &str = "/tokencache/state/state.json";

/// The kubelet cuts a container's message at the first, and the messages of all containers together at the second.
const ONE_MESSAGE: usize = 4096;
const ALL_MESSAGES: usize = 12 * 1024;

/// How long a pod may be on a node that does not answer. Kubernetes' default is 5 minutes, as long as a run may take.
const NODE_LOST_AFTER: i64 = 15;
/// There is nothing to save in a fetch that is cancelled, and a shell as process 1 ignores SIGTERM.
const GRACE: i64 = 5;

/// What a Job is made from.
#[derive(Debug)]
pub(super) struct Run<'a> {
    /// Whose run it is.
    pub(super) owner: &'a OwnerRef,
    /// The source.
    pub(super) job: &'a Job,
    /// The run's own name.
    pub(super) id: &'a str,
    /// Public key of the run.
    pub(super) key: &'a str,
    /// When Kubernetes ends it, should nobody else.
    pub(super) deadline: Duration,
    /// The collector's image.
    pub(super) image: &'a str,
    /// Key of the state's Secret that holds the last run's state.
    pub(super) state_key: Option<&'a str>,
}

/// Value of the label that all Jobs of one TokenCache bear.
pub(super) fn cache_label(name: &str) -> String {
    if name.len() <= 63 {
        return name.to_owned();
    }
    let hash: String = Sha256::digest(name).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hash}", beginning(name, 46))
}

/// Name of a run's Job; a pod's labels must hold it, so it has 63 characters at most.
pub(super) fn job_name(name: &str, id: &str) -> String {
    format!("tokencache-{}-{}", beginning(name, 40), beginning(id, 10))
}

fn beginning(name: &str, length: usize) -> &str {
    let end = name.floor_char_boundary(length);
    name.get(..end).unwrap_or(name).trim_end_matches(|c: char| !c.is_ascii_alphanumeric())
}

/// A list of objects in a pod's spec.
pub(super) fn objects<'a>(spec: &'a Value, field: &str) -> impl Iterator<Item = &'a Map<String, Value>> + use<'a> {
    spec.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

/// Name of an object in such a list.
pub(super) fn name(object: &Map<String, Value>) -> &str {
    object.get("name").and_then(Value::as_str).unwrap_or_default()
}

/// Name of the container that writes the result.
pub(super) fn result_container(job: &Job) -> Option<&str> {
    let spec = job.template.0.get("spec")?;
    job.result_container.as_deref().or_else(|| objects(spec, "containers").next().map(name))
}

/// The Job of a run.
pub(super) fn manifest(run: &Run<'_>) -> Value {
    let labels = json!({
        LABEL_MANAGED: "true", LABEL_CACHE: cache_label(&run.owner.name), LABEL_RUN: run.id,
    });
    let mut template = run.job.template.0.clone();
    let mut metadata =
        template.get_mut("metadata").map(Value::take).filter(Value::is_object).unwrap_or_else(|| json!({}));
    merge(&mut metadata, "labels", &labels);
    // Policies look at the Job as well as at its pod.
    let mut of_job = json!({
        "name": job_name(&run.owner.name, run.id),
        "namespace": run.owner.namespace,
        "ownerReferences": [run.owner.reference()],
    });
    for field in ["labels", "annotations"] {
        merge(&mut of_job, field, metadata.get(field).unwrap_or(&Value::Null));
    }
    let spec = pod_spec(run, template.get_mut("spec").map(Value::take).unwrap_or_default());
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": of_job,
        "spec": {
            "backoffLimit": 0,
            REPLACEMENT: "Failed",
            "activeDeadlineSeconds": run.deadline.as_secs() + 1,
            "template": {"metadata": metadata, "spec": spec},
        },
    })
}

fn pod_spec(run: &Run<'_>, mut spec: Value) -> Value {
    let result = result_container(run.job).unwrap_or_default().to_owned();
    let pod_security = spec.get("securityContext").cloned().unwrap_or_default();
    let own = |name: &str, arguments: Value| {
        let container = objects(&spec, "containers").find(|container| self::name(container) == result);
        json!({
            "name": name, "image": run.image, "imagePullPolicy": "IfNotPresent", "args": arguments,
            // An image of another version may not know these arguments, and says so in its output.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "securityContext": security::of_our_own(&pod_security, container),
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"},
            },
            "volumeMounts": [{"name": RESULT_VOLUME, "mountPath": RESULT_FOLDER}],
        })
    };
    let count = 2 + objects(&spec, "initContainers").count() + objects(&spec, "containers").count();
    let limit = ONE_MESSAGE.min(ALL_MESSAGES / count);
    let preparer = own(PREPARER, json!(["collect", "--prepare", "--result", RESULT]));
    // One word each: a key may begin with '-', and would be read as a flag.
    let arguments = [("result", RESULT), ("key", run.key), ("limit", &limit.to_string())];
    let arguments = arguments.map(|(flag, value)| format!("--{flag}={value}"));
    let collector = own(COLLECTOR, std::iter::once("collect".to_owned()).chain(arguments).collect());

    let mut steps = vec![preparer];
    for field in ["initContainers", "containers"] {
        for mut container in taken(&mut spec, field) {
            security::complete(&mut container);
            if field == "containers" && container.get("name").and_then(Value::as_str) == Some(&result) {
                with_files(&mut container);
            }
            steps.push(container);
        }
    }
    let mut volumes = taken(&mut spec, "volumes");
    volumes.push(json!({"name": RESULT_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "2Mi"}}));
    volumes.push(match run.state_key {
        Some(key) => json!({"name": STATE_VOLUME, "secret": {
            "secretName": state_secret::name(run.owner), "items": [{"key": key, "path": "state.json"}],
        }}),
        None => json!({"name": STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
    });
    spec["initContainers"] = Value::Array(steps);
    spec["containers"] = json!([collector]);
    spec["volumes"] = Value::Array(volumes);
    security::complete_pod(&mut spec);
    default(&mut spec, "restartPolicy", "Never".into());
    default(&mut spec, "terminationGracePeriodSeconds", GRACE.into());
    default(&mut spec, "enableServiceLinks", false.into());
    tolerations(&mut spec);
    spec
}

/// Tells the container where its files are. What is first may be used in the user's own variables, as `$(NAME)`.
fn with_files(container: &mut Value) {
    let files = [("TOKENCACHE_RESULT", RESULT), ("TOKENCACHE_STATE", STATE)];
    let mut env: Vec<Value> = files.iter().map(|(variable, path)| json!({"name": variable, "value": path})).collect();
    let own = |variable: &Value| files.iter().any(|(name, _)| variable.get("name") == Some(&json!(name)));
    env.extend(taken(container, "env").into_iter().filter(|variable| !own(variable)));
    let mut mounts = taken(container, "volumeMounts");
    mounts.push(json!({"name": RESULT_VOLUME, "mountPath": RESULT_FOLDER}));
    mounts.push(json!({"name": STATE_VOLUME, "mountPath": STATE_FOLDER, "readOnly": true}));
    container["env"] = Value::Array(env);
    container["volumeMounts"] = Value::Array(mounts);
}

fn tolerations(spec: &mut Value) {
    let mut tolerations = taken(spec, "tolerations");
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |toleration: &Value| {
            toleration.get("key").is_none_or(|of| of == key)
                && toleration.get("effect").is_none_or(|of| of == "NoExecute")
        };
        if !tolerations.iter().any(tolerates) {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOST_AFTER,
            }));
        }
    }
    spec["tolerations"] = Value::Array(tolerations);
}

fn taken(object: &mut Value, field: &str) -> Vec<Value> {
    match object.get_mut(field).map(Value::take) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

/// Sets a field, unless the user did.
pub(super) fn default(object: &mut Value, field: &str, value: Value) {
    if let Some(object) = object.as_object_mut()
        && object.get(field).is_none_or(Value::is_null)
    {
        object.insert(field.to_owned(), value);
    }
}

fn merge(object: &mut Value, field: &str, more: &Value) {
    default(object, field, json!({}));
    if let (Some(Value::Object(into)), Some(more)) = (object.get_mut(field), more.as_object()) {
        into.extend(more.clone());
    }
}

/// The API server's complaint about a Job in the words of the template that the user wrote.
pub(super) fn in_the_users_words(complaint: &str, job: &Job) -> String {
    let spec = job.template.0.get("spec").unwrap_or(&Value::Null);
    let inits = objects(spec, "initContainers").count();
    let containers = objects(spec, "containers").count();
    let mut text = complaint.to_owned();
    // From the last: the first index is a beginning of others.
    for at in (0..inits + containers).rev() {
        let theirs = if at < inits { format!("initContainers[{at}]") } else { format!("containers[{}]", at - inits) };
        // A mark, so that what was renamed is not renamed again.
        let theirs = theirs.replacen("ontainers[", "ontainers\u{0}[", 1);
        text = text.replace(&format!("initContainers[{}]", at + 1), &theirs);
    }
    text.replace('\u{0}', "").replace("spec.template.", "spec.fetch.job.template.")
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
