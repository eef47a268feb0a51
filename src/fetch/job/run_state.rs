//! What a run's Job, its pod and their events mean: pure. Nothing here compares a time of the cluster's with ours.

use std::time::Duration;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod},
};

use super::{
    manifest::COLLECTOR,
    message::{brief, ends, last_line},
    result::{SEALED, read_failed},
    watch::Forbidden,
};
use crate::{api::reason::Reason, fetch::Failure};

/// What has been seen of a run so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Its Job; `None` before it came through the watch.
    pub(super) job: Option<Job>,
    /// It was there, and is no more.
    pub(super) job_gone: bool,
    /// Its pod.
    pub(super) pod: Option<Pod>,
    /// It was there, and is no more.
    pub(super) pod_gone: bool,
    /// A pod that its Job controls, but whose containers are not those of the Job.
    pub(super) changed_pod: Option<String>,
    /// Events on both.
    pub(super) events: Vec<Event>,
    /// Why there are none.
    pub(super) no_events: Option<Forbidden>,
}

/// What it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on; what it is doing.
    Going(String),
    /// It waits for something that may take long, and that people can do something about.
    Waiting(String),
    /// It may come to nothing: a failure, if nothing better is seen for so long.
    Stuck(Failure, Duration),
    /// Its pod is being deleted: the Job has to go before Kubernetes makes another pod in its place. Why, may be seen
    /// a moment later.
    Deleted(Failure),
    /// The collector's sealed text.
    Sealed(String),
    /// The pod ended by itself without a result.
    Ended(Failure),
    /// It has failed, and something of it may still be there, or start.
    Failed(Failure),
    /// It cannot be followed; how it goes is not known.
    Unseen(Failure),
}

/// How long the reason why no pod was created may stay unknown.
const STUCK: Duration = Duration::from_secs(10);
/// How long a node may fail to set up a pod. The kubelet tries again by itself: a volume is attached late where another
/// node still has it, and a new node has no network for its first seconds.
const SETUP: Duration = Duration::from_secs(45);
/// How long a pod may be missing after its Job failed, and the cause of its deletion unknown.
pub(super) const LAG: Duration = Duration::from_secs(3);

fn job_failed(message: impl Into<String>) -> Failure {
    Failure::new(Reason::JobFailed, message)
}

/// Judges.
pub(super) fn judge(seen: &Seen) -> Verdict {
    match &seen.pod {
        Some(pod) => judge_pod(pod, seen),
        None => judge_job(seen),
    }
}

fn judge_job(seen: &Seen) -> Verdict {
    if let Some(failure) = deadline(seen) {
        return Verdict::Failed(failure);
    }
    if seen.job_gone {
        return Verdict::Failed(job_failed("the Job was deleted by another hand before it had a pod"));
    }
    // Quotas and admission are told by events only, in the API server's words.
    if let Some(message) = event(seen, &["FailedCreate"]) {
        return Verdict::Failed(job_failed(format!("the pod could not be created: {message}")));
    }
    match failed_condition(seen) {
        Some((reason, message)) => Verdict::Stuck(job_failed(format!("the Job failed: {reason}: {message}")), LAG),
        None => match (&seen.changed_pod, &seen.no_events) {
            (Some(pod), _) => Verdict::Going(format!(
                "waiting for the Job's own pod: the containers of pod {pod} are not those of the Job, so that its result \
                 is not used"
            )),
            // A quota's or an admission's refusal is told nowhere else.
            (None, Some(forbidden)) => Verdict::Stuck(
                job_failed(format!("no pod was created, and why not cannot be seen: {forbidden}")),
                STUCK,
            ),
            (None, None) => Verdict::Going("waiting for Kubernetes' Job controller to create the pod".into()),
        },
    }
}

fn judge_pod(pod: &Pod, seen: &Seen) -> Verdict {
    let status = pod.status.clone().unwrap_or_default();
    let inits = status.init_container_statuses.unwrap_or_default();
    let mains = status.container_statuses.unwrap_or_default();
    if let Some(ended) = mains.iter().find(|status| status.name == COLLECTOR).and_then(terminated) {
        return collected(ended);
    }
    if let Some(failure) = deadline(seen) {
        return Verdict::Failed(failure);
    }
    let reason = status.reason.as_deref().unwrap_or_default();
    let message = brief(status.message.as_deref().unwrap_or_default());
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    match reason {
        "" => {}
        // Of the template's own activeDeadlineSeconds; the Job's deadline is in the Job's conditions.
        "DeadlineExceeded" => {
            let message =
                format!("node {node} ended the pod at its activeDeadlineSeconds: DeadlineExceeded: {message}");
            return Verdict::Ended(Failure::new(Reason::Timeout, message));
        }
        "Evicted" => return Verdict::Ended(job_failed(format!("the pod was evicted from node {node}: {message}"))),
        "NodeLost" => return Verdict::Failed(job_failed(format!("node {node} was lost: {message}"))),
        reason if status.phase.as_deref() == Some("Failed") => {
            return Verdict::Ended(job_failed(format!("node {node} ended the pod: {reason}: {message}")));
        }
        _ => {}
    }
    let conditions = status.conditions.unwrap_or_default();
    let condition = |type_: &str, state: &str| {
        conditions.iter().find(|condition| condition.type_ == type_ && condition.status == state)
    };
    if let Some(disrupted) = condition("DisruptionTarget", "True") {
        let why = disrupted.reason.as_deref().unwrap_or_default();
        let message = brief(disrupted.message.as_deref().unwrap_or_default());
        return Verdict::Failed(job_failed(format!("the pod was disrupted on node {node}: {why}: {message}")));
    }
    if let Some(message) = event(seen, &["NodeNotReady"]) {
        return Verdict::Failed(job_failed(format!("node {node} was lost: {message}")));
    }
    if seen.pod_gone || pod.metadata.deletion_timestamp.is_some() {
        // Why, the event or the Job's condition says a moment later.
        return match event(seen, &["TaintManagerEviction"]) {
            Some(message) => {
                Verdict::Failed(job_failed(format!("node {node} was lost, or is being emptied: {message}")))
            }
            None => Verdict::Deleted(job_failed(format!("the pod was deleted while it ran on node {node}"))),
        };
    }
    for status in inits.iter().filter(|status| !is_sidecar(pod, &status.name)) {
        if let Some(ended) = terminated(status).filter(|ended| ended.exit_code != 0) {
            let ended = container_ended(pod, &status.name, ended);
            return Verdict::Ended(job_failed(format!("{ended}{}", injected(pod))));
        }
    }
    for status in inits.iter().chain(&mains) {
        if let Some(problem) = waiting_in_vain(status) {
            return Verdict::Failed(job_failed(problem));
        }
    }
    if status.phase.as_deref() == Some("Failed") {
        return Verdict::Ended(job_failed(format!("the pod failed on node {node}: {message}")));
    }
    if let Some(unscheduled) =
        condition("PodScheduled", "False").filter(|it| it.reason.as_deref() == Some("Unschedulable"))
    {
        let message = brief(unscheduled.message.as_deref().unwrap_or_default());
        // An autoscaler takes minutes to bring a node, and starts over with each new pod.
        return Verdict::Waiting(format!("no node takes the pod (Unschedulable): {message}"));
    }
    let running = inits
        .iter()
        .chain(&mains)
        .find(|status| is(status, |state| state.running.is_some()) && !is_sidecar(pod, &status.name));
    if let Some(running) = running {
        return Verdict::Going(format!("container {} was running on node {node}", running.name));
    }
    let started = inits.iter().any(|status| terminated(status).is_some());
    let setup = ["FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedCreatePodContainer"];
    if let Some(message) = event(seen, &setup).filter(|_| !started) {
        return Verdict::Stuck(job_failed(format!("node {node} cannot start the pod: {message}")), SETUP);
    }
    let mut doing = match node.as_str() {
        "" => "waiting for the pod to be scheduled".into(),
        node => format!("waiting for node {node} to start the pod's containers"),
    };
    if let Some(forbidden) = &seen.no_events {
        doing = format!("{doing}; what delays it cannot be seen: {forbidden}");
    }
    Verdict::Going(doing)
}

fn collected(ended: &ContainerStateTerminated) -> Verdict {
    let message = ended.message.as_deref().unwrap_or_default();
    if let Some(sealed) = message.strip_prefix(SEALED).filter(|_| ended.exit_code == 0) {
        return Verdict::Sealed(sealed.to_owned());
    }
    Verdict::Ended(read_failed(message).unwrap_or_else(|| {
        let reason = ended.reason.as_deref().unwrap_or_default();
        let message = if message.is_empty() { reason.to_owned() } else { brief(message) };
        job_failed(format!("the collector of the result ended with exit code {}: {message}", ended.exit_code))
    }))
}

fn container_ended(pod: &Pod, name: &str, ended: &ContainerStateTerminated) -> String {
    let message = ended.message.as_deref().unwrap_or_default();
    match ended.reason.as_deref().unwrap_or_default() {
        "OOMKilled" => {
            let limit =
                memory_limit(pod, name).map(|limit| format!(", of which it may have {limit}")).unwrap_or_default();
            format!("container {name} ran out of memory{limit} (OOMKilled)")
        }
        reason @ ("StartError" | "ContainerCannotRun") => {
            format!("container {name} could not be started ({reason}): {}", brief(message))
        }
        _ => match (last_line(message), ended.signal) {
            (line, _) if !line.is_empty() => {
                format!("container {name} ended with exit code {}: {line}", ended.exit_code)
            }
            (_, Some(signal)) if signal != 0 => format!("container {name} was ended by signal {signal}"),
            _ => format!("container {name} ended with exit code {} and no output", ended.exit_code),
        },
    }
}

/// A hint for pods into which something was injected that starts only when the containers of the job have ended.
fn injected(pod: &Pod) -> String {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.as_str());
    let others: Vec<_> = containers.filter(|name| *name != COLLECTOR).collect();
    if others.is_empty() {
        return String::new();
    }
    format!(
        "; the injected container {} starts only after the job's containers: if they need it, have it injected as a \
         native sidecar, or not at all",
        others.join(", ")
    )
}

fn memory_limit(pod: &Pod, name: &str) -> Option<String> {
    let inits = pod.spec.as_ref()?.init_containers.as_ref()?;
    let container = inits.iter().find(|container| container.name == name)?;
    Some(container.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}

fn waiting_in_vain(status: &ContainerStatus) -> Option<String> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let what = match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "ErrImageNeverPull"
        | "InvalidImageName"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => {
            format!("the image {} of container {} cannot be pulled", status.image, status.name)
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" | "CrashLoopBackOff" => {
            format!("container {} cannot be started", status.name)
        }
        _ => return None,
    };
    let message = waiting.message.as_deref().unwrap_or_default();
    let said = ends(message);
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let cure = if wants_credentials(message) { PULL_SECRETS } else { "" };
    Some(format!("{what} ({reason}){said}{cure}"))
}

/// What to do about a registry that wants credentials.
const PULL_SECRETS: &str = "; a registry's credentials are named by spec.fetch.job.template.spec.imagePullSecrets, also those for the image of \
     tokencache-prepare and tokencache-collect";

/// Whether a registry refuses a pull for want of credentials, as containerd, CRI-O and Docker word it.
fn wants_credentials(message: &str) -> bool {
    let message = message.to_lowercase();
    ["401 unauthorized", "403 forbidden", "authentication required", "authorization failed", "access denied"]
        .iter()
        .chain(&["no basic auth credentials", "insufficient_scope", "pull access", "unauthorized:", "denied:"])
        .any(|words| message.contains(words))
}

/// An init container that runs beside the others, since Kubernetes 1.28.
fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    inits.clone().any(|container| container.name == name && container.restart_policy.as_deref() == Some("Always"))
}

fn is(status: &ContainerStatus, what: impl Fn(&ContainerState) -> bool) -> bool {
    status.state.as_ref().is_some_and(what)
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn failed_condition(seen: &Seen) -> Option<(&str, String)> {
    let conditions = seen.job.as_ref()?.status.as_ref()?.conditions.as_ref()?;
    let failed = conditions.iter().find(|condition| {
        matches!(condition.type_.as_str(), "Failed" | "FailureTarget") && condition.status == "True"
    })?;
    Some((failed.reason.as_deref().unwrap_or_default(), brief(failed.message.as_deref().unwrap_or_default())))
}

fn deadline(seen: &Seen) -> Option<Failure> {
    failed_condition(seen).filter(|(reason, _)| *reason == "DeadlineExceeded").map(|_| too_late())
}

fn too_late() -> Failure {
    Failure::new(Reason::Timeout, "the Job was not done within spec.fetch.timeout (DeadlineExceeded)")
}

/// The newest message among events with one of these reasons.
fn event(seen: &Seen, reasons: &[&str]) -> Option<String> {
    let is = |event: &&Event| event.reason.as_deref().is_some_and(|reason| reasons.contains(&reason));
    seen.events.iter().rev().find(is).map(|event| brief(event.message.as_deref().unwrap_or_default()))
}

#[cfg(test)]
#[path = "run_state_tests.rs"]
mod tests;
