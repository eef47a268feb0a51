//! Restarts workloads that read the Secret only when they start, by a change of their pod template.
//!
//! What was done stands in the pod template itself, so that it is done once, whichever replica does it, and is seen by
//! whoever looks why the pods were restarted.

use std::time::Duration;

use chrono::{DateTime, Utc};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

use crate::{
    api::{
        RolloutRestartTarget, TokenCache, WorkloadKind,
        names::{ANNOTATION_RESTARTED_AT, ANNOTATION_RESTARTED_FOR, FIELD_MANAGER},
    },
    k8s::{ApiError, call},
    time,
};

/// How long a rollout that goes on is waited for. One that never ends may need this very restart.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How often a rollout that goes on is looked at.
const POLL: Duration = Duration::from_secs(5);

/// How often what cannot be restarted is looked at.
const RETRY: Duration = Duration::from_secs(60);

/// Why a workload is to be restarted, and how often it may be.
#[derive(Clone, Copy, Debug)]
pub struct Cause<'a> {
    /// Name of the TokenCache.
    pub cache: &'a str,
    /// Name of its Secret.
    pub secret: &'a str,
    /// When the value changed, by which restarts for it are told from those for others.
    pub changed_at: DateTime<Utc>,
    /// When the Secret was written with it: the pods of a workload that was created before may have the former value.
    pub written_at: DateTime<Utc>,
    /// Between two restarts.
    pub min_interval: Duration,
    /// Whether a rollout that goes on is no longer waited for.
    pub impatient: bool,
}

/// What is to be done with a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its pods are of the new value.
    Nothing,
    /// It is to be restarted.
    Restart,
    /// A rollout goes on: to be looked at again after a while.
    Rolling,
    /// It was restarted not long ago: to be looked at again after this time.
    TooSoon(Duration),
    /// Restarting it would be in vain: what is wrong, and what would be right.
    Refused(String),
}

/// Looks at a workload as the API server gives it.
#[must_use]
pub fn decide(workload: &Value, kind: WorkloadKind, cause: &Cause<'_>, now: DateTime<Utc>) -> Step {
    let template = &workload["spec"]["template"];
    if !uses(&template["spec"], cause.secret) {
        return Step::Refused(format!(
            "its pod template does not use the Secret {}: mount it or take variables from it, or take the workload out \
             of spec.rolloutRestartTargets",
            cause.secret
        ));
    }
    let annotation = |key: &str| template["metadata"]["annotations"][key].as_str();
    if annotation(&restarted_for(cause.cache)) == Some(&time::rfc3339(cause.changed_at)) {
        return Step::Nothing;
    }
    let created = workload["metadata"]["creationTimestamp"].as_str().and_then(|text| time::parse_rfc3339(text).ok());
    if created.is_some_and(|created| created > cause.written_at) {
        return Step::Nothing;
    }
    if !cause.impatient && is_rolling(workload, kind) {
        return Step::Rolling;
    }
    let restarted = annotation(ANNOTATION_RESTARTED_AT).and_then(|text| time::parse_rfc3339(text).ok());
    // A moment to come is of another clock, and tells nothing.
    let since = restarted.and_then(|restarted| now.signed_duration_since(restarted).to_std().ok());
    match since.and_then(|since| cause.min_interval.checked_sub(since)).filter(|left| !left.is_zero()) {
        Some(left) => Step::TooSoon(left),
        None => Step::Restart,
    }
}

fn restarted_for(cache: &str) -> String {
    format!("{cache}.{ANNOTATION_RESTARTED_FOR}")
}

/// Whether a pod's spec names the Secret. Who may create a TokenCache shall not restart what has nothing to do with it.
fn uses(pod: &Value, secret: &str) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let is = |value: &Value| value.as_str() == Some(secret);
    let volumes = list(&pod["volumes"]).iter().any(|volume| {
        is(&volume["secret"]["secretName"])
            || list(&volume["projected"]["sources"]).iter().any(|source| is(&source["secret"]["name"]))
    });
    let containers = ["initContainers", "containers"].iter().flat_map(|field| list(&pod[*field])).any(|container| {
        list(&container["env"]).iter().any(|variable| is(&variable["valueFrom"]["secretKeyRef"]["name"]))
            || list(&container["envFrom"]).iter().any(|source| is(&source["secretRef"]["name"]))
    });
    volumes || containers || list(&pod["imagePullSecrets"]).iter().any(|reference| is(&reference["name"]))
}

/// Whether pods of an older template are still being replaced, as `kubectl rollout status` sees it.
fn is_rolling(workload: &Value, kind: WorkloadKind) -> bool {
    let (spec, status) = (&workload["spec"], &workload["status"]);
    let count = |value: &Value| value.as_i64().unwrap_or_default();
    if count(&status["observedGeneration"]) < count(&workload["metadata"]["generation"]) {
        return true;
    }
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    match kind {
        WorkloadKind::Deployment => {
            let updated = count(&status["updatedReplicas"]);
            spec["paused"] != true && (updated < wanted || count(&status["replicas"]) > updated)
        }
        WorkloadKind::StatefulSet => {
            spec["updateStrategy"]["type"] != "OnDelete"
                && status["currentRevision"] != status["updateRevision"]
                && count(&status["updatedReplicas"]) < wanted
        }
        WorkloadKind::DaemonSet => {
            spec["updateStrategy"]["type"] != "OnDelete"
                && count(&status["updatedNumberScheduled"]) < count(&status["desiredNumberScheduled"])
        }
    }
}

/// How a target was left.
#[derive(Debug)]
pub enum Left {
    /// Nothing more is to be done.
    Done,
    /// It was restarted.
    Restarted,
    /// A rollout goes on.
    Rolling(Duration),
    /// To be looked at again after this time.
    Again(Duration),
    /// It cannot be restarted; it is looked at again after this time.
    Failed(String, Duration),
}

/// Restarts a target if it is to be.
pub async fn restart(
    client: &Client,
    cache: &TokenCache,
    target: &RolloutRestartTarget,
    cause: &Cause<'_>,
    now: DateTime<Utc>,
) -> Left {
    let namespace = cache.metadata.namespace.as_deref().unwrap_or_default();
    let kind = format!("{:?}", target.kind);
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", &kind));
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
    let failed = |why: String| Left::Failed(format!("{kind} {}: {why}", target.name), RETRY);
    let refused = |error: ApiError, verb: &str| match error.code() {
        // Another hand was quicker, perhaps another replica.
        Some(409) => Left::Again(Duration::from_secs(1)),
        Some(403) => failed(format!(
            "tokencache's own role lacks {verb} on {} in namespace {namespace}, which restarts need",
            resource.plural
        )),
        _ => failed(error.to_string()),
    };
    let workload = match call(api.get_opt(&target.name)).await {
        Ok(Some(workload)) => workload,
        Ok(None) => return failed("does not exist; it is named in spec.rolloutRestartTargets".into()),
        Err(error) => return refused(error, "get"),
    };
    let seen = json!({"metadata": workload.metadata, "spec": workload.data["spec"], "status": workload.data["status"]});
    match decide(&seen, target.kind, cause, now) {
        Step::Nothing => Left::Done,
        Step::Rolling => Left::Rolling(POLL),
        Step::TooSoon(left) => Left::Again(left),
        Step::Refused(why) => failed(why),
        Step::Restart => {
            let patch = json!({
                "metadata": {"resourceVersion": workload.metadata.resource_version, "uid": workload.metadata.uid},
                "spec": {"template": {"metadata": {"annotations": {
                    ANNOTATION_RESTARTED_AT: time::rfc3339(now),
                    restarted_for(cause.cache): time::rfc3339(cause.changed_at),
                }}}},
            });
            let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
            match call(api.patch(&target.name, &params, &Patch::Merge(patch))).await {
                Ok(_) => Left::Restarted,
                Err(error) => refused(error, "patch"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
