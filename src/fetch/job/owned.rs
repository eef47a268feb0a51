//! Which Jobs, pods and events belong to a run: pure. Labels only select; owners decide, since anybody who may create an
//! object may give it any label.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{Container, Event, Pod, PodSpec},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource, ResourceExt as _};

use super::manifest::{COLLECTOR, job_name};
use crate::{
    api::names::{GROUP, LABEL_RUN},
    k8s::object::{self, OwnerRef, is_kind},
};

/// The controlling owner, if it is of this group and kind.
fn controller<'a>(object: &'a impl Resource, group: &str, kind: &str) -> Option<&'a OwnerReference> {
    object::controller(object.meta()).filter(|owner| is_kind(owner, group, kind))
}

/// Whether a Job is controlled by this very TokenCache.
pub(super) fn is_ours(job: &Job, owner: &OwnerRef) -> bool {
    controller(job, GROUP, "TokenCache").is_some_and(|of| of.uid == owner.uid)
}

/// Whether a Job is controlled by a TokenCache of this name that was deleted. Kubernetes' garbage collector removes it.
pub(super) fn is_of_former(job: &Job, owner: &OwnerRef) -> bool {
    controller(job, GROUP, "TokenCache").is_some_and(|of| of.name == owner.name && of.uid != owner.uid)
}

/// The Job of a run, if there is one.
pub(super) fn job_of<'a>(jobs: &'a [Job], owner: &OwnerRef, run: &str) -> Option<&'a Job> {
    jobs.iter().find(|job| is_ours(job, owner) && job.labels().get(LABEL_RUN).is_some_and(|of| of == run))
}

/// Whether a pod is controlled by the Job with this UID.
pub(super) fn is_pod_of(pod: &Pod, job: Option<&str>) -> bool {
    let of = controller(pod, "batch", "Job").map(|of| of.uid.as_str());
    of.is_some() && of == job
}

/// Whether a pod has the containers of its Job, with the collector as it was made: the sealed result is that of its
/// program only then. Others may be injected beside them, and admission may take the images from another registry.
pub(super) fn is_as_made(pod: &Pod, job: &Job) -> bool {
    let made = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let Some((made, found)) = made.zip(pod.spec.as_ref()) else { return false };
    let collectors = collector_of(made).zip(collector_of(found));
    let same_program = collectors.is_some_and(|(made, found)| {
        made.args == found.args && made.command == found.command && image_name(made) == image_name(found)
    });
    same_program && init_containers(found).is_superset(&init_containers(made))
}

fn collector_of(spec: &PodSpec) -> Option<&Container> {
    spec.containers.iter().find(|container| container.name == COLLECTOR)
}

fn init_containers(spec: &PodSpec) -> BTreeSet<&str> {
    spec.init_containers.iter().flatten().map(|container| container.name.as_str()).collect()
}

fn image_name(container: &Container) -> Option<&str> {
    container.image.as_deref().map(last_segment)
}

/// The last part of an image's repository, without its tag and digest.
fn last_segment(image: &str) -> &str {
    let repository = image.split_once('@').map_or(image, |(repository, _)| repository);
    let last = repository.rsplit_once('/').map_or(repository, |(_, last)| last);
    last.split_once(':').map_or(last, |(name, _)| name)
}

/// Whether a node has taken a pod, so that it may have begun.
pub(super) fn is_on_node(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

/// Whether a pod is one of a TokenCache's runs. The pod of a Job that was deleted in the background outlives it for a
/// moment, and is told by the Job's name.
pub(super) fn is_pod_of_any(pod: &Pod, jobs: &[Job], owner: &OwnerRef) -> bool {
    let Some(of) = controller(pod, "batch", "Job") else { return false };
    if let Some(job) = jobs.iter().find(|job| job.metadata.name.as_ref() == Some(&of.name)) {
        return job.uid().as_ref() == Some(&of.uid) && (is_ours(job, owner) || is_of_former(job, owner));
    }
    let run = pod.labels().get(LABEL_RUN);
    run.is_some_and(|run| job_name(&owner.name, run) == of.name)
}

/// Whether an event is about the Job or the pod with one of these UIDs. That of an eviction bears no UID; it only says
/// why a pod was deleted, which is seen of the pod itself.
pub(super) fn is_event_of(event: &Event, job: Option<&str>, pod: Option<&str>) -> bool {
    match event.involved_object.uid.as_deref().filter(|uid| !uid.is_empty()) {
        Some(uid) => [job, pod].contains(&Some(uid)),
        None => event.reason.as_deref() == Some("TaintManagerEviction"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn owner() -> OwnerRef {
        OwnerRef { namespace: "ns".into(), name: "a".into(), uid: "uid-1".into() }
    }

    fn controlled(
        name: &str,
        run: &str,
        api_version: &str,
        kind: &str,
        by: &str,
        uid: &str,
        controller: bool,
    ) -> Value {
        json!({"metadata": {
            "name": name, "uid": format!("uid of {name}"), "labels": {LABEL_RUN: run},
            "ownerReferences": [{
                "apiVersion": api_version, "kind": kind, "name": by, "uid": uid, "controller": controller,
            }],
        }})
    }

    #[test]
    fn a_job_counts_by_group_kind_and_uid_of_its_controller() {
        for (api_version, kind, name, uid, controller, ours, former) in [
            ("tokencache.dev/v1alpha1", "TokenCache", "a", "uid-1", true, true, false),
            ("tokencache.dev/v1", "TokenCache", "a", "uid-1", true, true, false),
            ("tokencache.dev/v1alpha1", "TokenCache", "a", "uid-0", true, false, true),
            ("tokencache.dev/v1alpha1", "TokenCache", "b", "uid-0", true, false, false),
            ("tokencache.dev/v1alpha1", "TokenCache", "a", "uid-1", false, false, false),
            ("tokencache.dev/v1alpha1", "Other", "a", "uid-1", true, false, false),
            ("example.org/v1", "TokenCache", "a", "uid-1", true, false, false),
            ("v1", "TokenCache", "a", "uid-1", true, false, false),
        ] {
            let job = controlled("j", "r", api_version, kind, name, uid, controller);
            let job: Job = serde_json::from_value(job).unwrap();
            let is = (is_ours(&job, &owner()), is_of_former(&job, &owner()));
            assert_eq!(is, (ours, former), "{:?}", job.metadata.owner_references);
            assert_eq!(job_of(std::slice::from_ref(&job), &owner(), "r").is_some(), ours);
            assert!(job_of(&[job], &owner(), "other").is_none());
        }
    }

    #[test]
    fn a_pod_counts_by_the_uid_of_its_job() {
        let job = |name: &str, uid: &str| -> Job {
            let job = controlled(name, "r", "tokencache.dev/v1alpha1", "TokenCache", "a", uid, true);
            serde_json::from_value(job).unwrap()
        };
        let name = job_name("a", "r");
        let mut theirs = job("theirs", "uid-1");
        theirs.metadata.owner_references = None;
        let jobs = [job(&name, "uid-1"), job("former", "uid-0"), theirs];
        let uid_of = |name: &str| format!("uid of {name}");
        let gone = job_name("a", "gone");
        for (api_version, kind, by, uid, run, controller, one, any) in [
            ("batch/v1", "Job", name.as_str(), uid_of(&name), "r", true, true, true),
            ("batch/v1", "Job", &name, uid_of(&name), "r", false, false, false),
            ("batch/v1", "Job", &name, "made-up".into(), "r", true, false, false),
            ("apps/v1", "Job", &name, uid_of(&name), "r", true, false, false),
            ("batch/v1", "CronJob", &name, uid_of(&name), "r", true, false, false),
            ("batch/v1", "Job", "former", uid_of("former"), "r", true, false, true),
            ("batch/v1", "Job", "theirs", uid_of("theirs"), "r", true, false, false),
            ("batch/v1", "Job", &gone, "any".into(), "gone", true, false, true),
            ("batch/v1", "Job", "other", "any".into(), "gone", true, false, false),
        ] {
            let pod = controlled("p", run, api_version, kind, by, &uid, controller);
            let pod: Pod = serde_json::from_value(pod).unwrap();
            let is = (is_pod_of(&pod, Some(&uid_of(&name))), is_pod_of_any(&pod, &jobs, &owner()));
            assert_eq!(is, (one, any), "{:?}", pod.metadata.owner_references);
        }
        let pod: Pod = serde_json::from_value(json!({"metadata": {"labels": {LABEL_RUN: "r"}}})).unwrap();
        assert!(!is_pod_of(&pod, None) && !is_pod_of(&pod, Some("x")) && !is_pod_of_any(&pod, &jobs, &owner()));
    }

    #[test]
    fn a_pod_counts_only_with_the_containers_of_its_job() {
        let args = json!(["collect", "--key=KEY"]);
        let spec = |collector: Value, inits: Value| json!({"initContainers": inits, "containers": [collector]});
        let collector = |image: &str, args: &Value| json!({"name": COLLECTOR, "image": image, "args": args});
        let inits = json!([{"name": "tokencache-prepare"}, {"name": "fetch"}]);
        let template = spec(collector("registry.example:5000/tools/tokencache:1", &args), inits.clone());
        let job: Job =
            serde_json::from_value(json!({"metadata": {}, "spec": {"template": {"spec": template}}})).unwrap();
        let mut commanded = collector("tokencache:1", &args);
        commanded["command"] = json!(["sh"]);
        let injected = json!([{"name": "istio-init"}, {"name": "tokencache-prepare"}, {"name": "fetch"}]);
        for (pod, made) in [
            (template.clone(), true),
            (spec(collector("mirror.example/cache/tokencache@sha256:00", &args), injected), true),
            (spec(collector("tokencache", &args), inits.clone()), true),
            (spec(collector("registry.example:5000/tools/busybox:1", &args), inits.clone()), false),
            (spec(collector("tokencache:1", &json!(["collect", "--key=OTHER"])), inits.clone()), false),
            (spec(collector("tokencache:1", &json!(null)), inits.clone()), false),
            (spec(commanded, inits.clone()), false),
            (spec(collector("tokencache:1", &args), json!([{"name": "fetch"}])), false),
            (spec(json!({"name": "other", "image": "tokencache:1", "args": args}), inits), false),
        ] {
            let found: Pod = serde_json::from_value(json!({"metadata": {}, "spec": pod})).unwrap();
            assert_eq!(is_as_made(&found, &job), made, "{pod}");
        }
        assert!(!is_as_made(&Pod::default(), &job) && !is_as_made(&Pod::default(), &Job::default()));
    }

    #[test]
    fn an_event_counts_by_the_uid_of_what_it_is_about() {
        for (uid, reason, counts) in [
            (json!("job"), "FailedCreate", true),
            (json!("pod"), "FailedMount", true),
            (json!("other"), "NodeNotReady", false),
            (json!(null), "NodeNotReady", false),
            (json!(""), "FailedCreate", false),
            (json!(null), "TaintManagerEviction", true),
            (json!("other"), "TaintManagerEviction", false),
        ] {
            let event = json!({"metadata": {}, "involvedObject": {"uid": uid}, "reason": reason});
            let event: Event = serde_json::from_value(event).unwrap();
            assert_eq!(is_event_of(&event, Some("job"), Some("pod")), counts, "{uid} {reason}");
            assert!(uid != "pod" || !is_event_of(&event, Some("job"), None));
        }
    }
}
