//! What a run's Job, its pod and their events mean: pure. Nothing here compares a time of the cluster's with ours.

use std::time::Duration;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod, PodCondition, PodStatus},
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

/// A pod by what Kubernetes reports of it. The first rule that has a verdict decides.
fn judge_pod(pod: &Pod, seen: &Seen) -> Verdict {
    let facts = PodFacts::of(pod, seen);
    let collector = || facts.mains.iter().find(|status| status.name == COLLECTOR).and_then(terminated).map(collected);
    collector()
        .or_else(|| deadline(seen).map(Verdict::Failed))
        .or_else(|| facts.ended_by_node())
        .or_else(|| facts.disrupted())
        .or_else(|| facts.deleted())
        .or_else(|| facts.container_failed())
        .or_else(|| facts.unschedulable())
        .or_else(|| facts.running())
        .unwrap_or_else(|| facts.starting())
}

struct PodFacts<'a> {
    pod: &'a Pod,
    seen: &'a Seen,
    node: &'a str,
    phase: &'a str,
    reason: &'a str,
    message: String,
    conditions: &'a [PodCondition],
    inits: &'a [ContainerStatus],
    mains: &'a [ContainerStatus],
}

impl<'a> PodFacts<'a> {
    fn of(pod: &'a Pod, seen: &'a Seen) -> Self {
        let status = pod.status.as_ref();
        let text = |field: fn(&PodStatus) -> Option<&String>| status.and_then(field).map_or("", String::as_str);
        Self {
            pod,
            seen,
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default(),
            phase: text(|status| status.phase.as_ref()),
            reason: text(|status| status.reason.as_ref()),
            message: brief(text(|status| status.message.as_ref())),
            conditions: status.and_then(|status| status.conditions.as_deref()).unwrap_or_default(),
            inits: status.and_then(|status| status.init_container_statuses.as_deref()).unwrap_or_default(),
            mains: status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default(),
        }
    }

    fn containers(&self) -> impl Iterator<Item = &'a ContainerStatus> {
        self.inits.iter().chain(self.mains)
    }

    fn condition(&self, type_: &str, state: &str) -> Option<&'a PodCondition> {
        self.conditions.iter().find(|condition| condition.type_ == type_ && condition.status == state)
    }

    fn ended_by_node(&self) -> Option<Verdict> {
        let Self { node, message, .. } = self;
        match self.reason {
            "" => None,
            // Of the template's own activeDeadlineSeconds; the Job's deadline is in the Job's conditions.
            "DeadlineExceeded" => {
                let message =
                    format!("node {node} ended the pod at its activeDeadlineSeconds: DeadlineExceeded: {message}");
                Some(Verdict::Ended(Failure::new(Reason::Timeout, message)))
            }
            "Evicted" => Some(Verdict::Ended(job_failed(format!("the pod was evicted from node {node}: {message}")))),
            "NodeLost" => Some(Verdict::Failed(job_failed(format!("node {node} was lost: {message}")))),
            reason if self.phase == "Failed" => {
                Some(Verdict::Ended(job_failed(format!("node {node} ended the pod: {reason}: {message}"))))
            }
            _ => None,
        }
    }

    fn disrupted(&self) -> Option<Verdict> {
        let node = self.node;
        if let Some(disrupted) = self.condition("DisruptionTarget", "True") {
            let why = disrupted.reason.as_deref().unwrap_or_default();
            let message = brief(disrupted.message.as_deref().unwrap_or_default());
            let message = format!("the pod was disrupted on node {node}: {why}: {message}");
            return Some(Verdict::Failed(job_failed(message)));
        }
        let message = event(self.seen, &["NodeNotReady"])?;
        Some(Verdict::Failed(job_failed(format!("node {node} was lost: {message}"))))
    }

    fn deleted(&self) -> Option<Verdict> {
        let node = self.node;
        if !self.seen.pod_gone && self.pod.metadata.deletion_timestamp.is_none() {
            return None;
        }
        // The reason is in an event or in the Job's condition a moment later.
        Some(match event(self.seen, &["TaintManagerEviction"]) {
            Some(message) => {
                Verdict::Failed(job_failed(format!("node {node} was lost, or is being emptied: {message}")))
            }
            None => Verdict::Deleted(job_failed(format!("the pod was deleted while it ran on node {node}"))),
        })
    }

    fn container_failed(&self) -> Option<Verdict> {
        let Self { pod, node, message, .. } = self;
        let inits = self.inits.iter().filter(|status| !is_sidecar(pod, &status.name));
        let failed = inits
            .filter_map(|status| Some((status, terminated(status).filter(|ended| ended.exit_code != 0)?)))
            .map(|(status, ended)| format!("{}{}", container_ended(pod, &status.name, ended), injected(pod)))
            .next();
        if let Some(failed) = failed {
            return Some(Verdict::Ended(job_failed(failed)));
        }
        if let Some(problem) = self.containers().find_map(waiting_in_vain) {
            return Some(Verdict::Failed(job_failed(problem)));
        }
        let failed = || Verdict::Ended(job_failed(format!("the pod failed on node {node}: {message}")));
        (self.phase == "Failed").then(failed)
    }

    fn unschedulable(&self) -> Option<Verdict> {
        let condition = self.condition("PodScheduled", "False")?;
        if condition.reason.as_deref() != Some("Unschedulable") {
            return None;
        }
        let message = brief(condition.message.as_deref().unwrap_or_default());
        // An autoscaler takes minutes to bring a node, and starts over with each new pod.
        Some(Verdict::Waiting(format!("no node takes the pod (Unschedulable): {message}")))
    }

    fn running(&self) -> Option<Verdict> {
        let is_running = |status: &&ContainerStatus| is(status, |state| state.running.is_some());
        let running = self.containers().filter(is_running).find(|status| !is_sidecar(self.pod, &status.name))?;
        Some(Verdict::Going(format!("container {} was running on node {}", running.name, self.node)))
    }

    fn starting(&self) -> Verdict {
        let node = self.node;
        let started = self.inits.iter().any(|status| terminated(status).is_some());
        let setup = ["FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedCreatePodContainer"];
        if let Some(message) = event(self.seen, &setup).filter(|_| !started) {
            return Verdict::Stuck(job_failed(format!("node {node} cannot start the pod: {message}")), SETUP);
        }
        let doing = match node {
            "" => "waiting for the pod to be scheduled".to_owned(),
            node => format!("waiting for node {node} to start the pod's containers"),
        };
        Verdict::Going(match &self.seen.no_events {
            Some(forbidden) => format!("{doing}; what delays it cannot be seen: {forbidden}"),
            None => doing,
        })
    }
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
