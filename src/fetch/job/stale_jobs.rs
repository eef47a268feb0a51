//! Jobs of earlier runs: they are deleted, and their pods are gone, before another Job is made.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Preconditions},
    runtime::watcher::{self, Event},
};

use super::{
    manifest::cache_label,
    owned::{is_of_former, is_ours, is_pod_of, is_pod_of_any},
    watch::{Forbidden, Watched, watched},
};
use crate::{
    api::{
        names::{LABEL_CACHE, LABEL_RUN},
        reason::Reason,
    },
    fetch::{Failure, Phase},
    k8s::{ApiError, call, object::OwnerRef},
};

/// Deletes a Job, and with it its pod. The Job stays until its pod is gone. That it is gone already is no error.
pub(super) async fn delete(client: &Client, namespace: &str, name: &str, uid: Option<String>) -> Result<(), ApiError> {
    let preconditions = Some(Preconditions { uid, resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::foreground() };
    match call(Api::<Job>::namespaced(client.clone(), namespace).delete(name, &params)).await {
        Err(error) if !matches!(error.code(), Some(404 | 409)) => Err(error),
        _ => Ok(()),
    }
}

/// What may still run of a run; a failed Job that is kept does not.
pub(super) fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether Kubernetes says that a Job has failed.
pub(super) fn has_failed(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Failed" && condition.status == "True")
}

/// Which Jobs are to go: all but the newest that failed, as many as are to be kept. `ended` is one that has failed by
/// the word of its pod, though its own condition may not say so yet.
fn superfluous<'a>(jobs: &'a [Job], owner: &OwnerRef, keep: usize, ended: Option<&str>) -> Vec<&'a Job> {
    let ours = jobs.iter().filter(|job| is_ours(job, owner));
    let (mut failed, mut others): (Vec<&Job>, Vec<&Job>) = ours.partition(|job| {
        (has_failed(job) || job.metadata.name.as_deref() == ended) && job.metadata.deletion_timestamp.is_none()
    });
    failed.sort_by_key(|job| {
        let newest = job.metadata.name.as_deref() == ended;
        (!newest, std::cmp::Reverse(job.metadata.creation_timestamp.clone()))
    });
    others.extend(failed.into_iter().skip(keep));
    others
}

/// The Jobs with the TokenCache's label, whoever created them.
pub(super) async fn list(client: &Client, owner: &OwnerRef) -> Result<Vec<Job>, Failure> {
    let api = Api::<Job>::namespaced(client.clone(), &owner.namespace);
    let jobs = call(api.list(&ListParams::default().labels(&selector(owner)))).await;
    jobs.map(|jobs| jobs.items).map_err(|error| not_done::<Job>("list", owner, &error))
}

fn selector(owner: &OwnerRef) -> String {
    format!("{LABEL_CACHE}={}", cache_label(&owner.name))
}

fn not_done<K: Resource<DynamicType = ()>>(verb: &'static str, owner: &OwnerRef, error: &ApiError) -> Failure {
    if error.code() == Some(403) {
        return Forbidden::new::<K>(verb, &owner.namespace).into();
    }
    let message = format!("{} of earlier runs cannot be seen to ({verb}): {error}", K::plural(&()));
    Failure::new(Reason::Unreachable, message)
}

/// Deletes what is superfluous after a run whose Job stays for a look.
pub(super) async fn prune(client: &Client, owner: &OwnerRef, keep: usize, ended: &str) -> Result<(), Failure> {
    for job in superfluous(&list(client, owner).await?, owner, keep, Some(ended)) {
        let deleted = delete(client, &owner.namespace, &job.name_any(), job.uid()).await;
        deleted.map_err(|error| not_done::<Job>("delete", owner, &error))?;
    }
    Ok(())
}

/// The pods with the label of a run that its Job, the one with this UID, controls.
pub(super) async fn pods_of(
    client: &Client,
    owner: &OwnerRef,
    run: &str,
    job: Option<&str>,
) -> Result<Vec<Pod>, Failure> {
    let api = Api::<Pod>::namespaced(client.clone(), &owner.namespace);
    let pods = call(api.list(&ListParams::default().labels(&format!("{LABEL_RUN}={run}")))).await;
    let pods = pods.map_err(|error| not_done::<Pod>("list", owner, &error))?;
    Ok(pods.items.into_iter().filter(|pod| is_pod_of(pod, job)).collect())
}

/// Deletes the Jobs of earlier runs among these, but for failed ones that are kept, and waits until nothing of them runs.
/// Those of a TokenCache of the same name that was deleted are the garbage collector's to remove.
pub(super) async fn clear(
    client: &Client,
    owner: &OwnerRef,
    keep: usize,
    jobs: &[Job],
    phase: &Phase,
) -> Result<(), Failure> {
    phase.set("deleting Jobs of earlier runs".into());
    let superfluous = superfluous(jobs, owner, keep, None);
    for job in &superfluous {
        if job.metadata.deletion_timestamp.is_none() {
            let deleted = delete(client, &owner.namespace, &job.name_any(), job.uid()).await;
            deleted.map_err(|error| not_done::<Job>("delete", owner, &error))?;
        }
    }
    let former = jobs.iter().filter(|job| is_of_former(job, owner));
    let going: Vec<_> = superfluous.into_iter().chain(former).filter_map(|job| job.uid()).collect();
    let pods = Api::<Pod>::namespaced(client.clone(), &owner.namespace);
    let listed = call(pods.list(&ListParams::default().labels(&selector(owner)))).await;
    let listed = listed.map_err(|error| not_done::<Pod>("list", owner, &error))?;
    let counts = |pod: &Pod| is_live(pod) && is_pod_of_any(pod, jobs, owner);
    if going.is_empty() && !listed.items.iter().any(counts) {
        return Ok(());
    }
    let config = || watcher::Config::default().labels(&selector(owner));
    gone(
        watched(client, &owner.namespace, config()),
        |job: &Job| going.contains(&job.uid().unwrap_or_default()).then(|| format!("Job {}", job.name_any())),
        phase,
    )
    .await?;
    gone(
        watched(client, &owner.namespace, config()),
        |pod: &Pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no");
            counts(pod)
                .then(|| format!("pod {} on {node} node", pod.name_any()).replace("on no node", "that has no node"))
        },
        phase,
    )
    .await?;
    Ok(())
}

/// Waits until no object is left that counts; `what` names those that do.
async fn gone<K: Resource>(
    mut events: Watched<K>,
    what: impl Fn(&K) -> Option<String>,
    phase: &Phase,
) -> Result<(), Forbidden> {
    let mut left: BTreeMap<String, String> = BTreeMap::new();
    let mut complete = false;
    while let Some(event) = events.next().await {
        let uid = |object: &K| object.meta().uid.clone().unwrap_or_default();
        match event? {
            Event::Init => {
                left.clear();
                complete = false;
            }
            Event::InitDone => complete = true,
            Event::Delete(object) => {
                left.remove(&uid(&object));
            }
            Event::Apply(object) | Event::InitApply(object) => match what(&object) {
                Some(name) => {
                    left.insert(uid(&object), name);
                }
                None => {
                    left.remove(&uid(&object));
                }
            },
        }
        if !complete {
            continue;
        }
        match left.values().next() {
            None => return Ok(()),
            Some(name) => phase.set(format!("{name} of an earlier run was still ending")),
        }
    }
    Ok(())
}

/// Waits until no pod of a run's Job can do anything any more but end.
pub(super) async fn ending(client: &Client, namespace: &str, run: &str, job: Option<&str>) -> Result<(), Forbidden> {
    let config = watcher::Config::default().labels(&format!("{LABEL_RUN}={run}"));
    let runs = |pod: &Pod| {
        let counts = is_live(pod) && pod.metadata.deletion_timestamp.is_none() && is_pod_of(pod, job);
        counts.then(|| pod.name_any())
    };
    gone(watched(client, namespace, config), runs, &Phase::default()).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn owner() -> OwnerRef {
        OwnerRef { namespace: "ns".into(), name: "a".into(), uid: "a".into() }
    }

    fn job(name: &str, minute: u32, state: &str, owner: &str) -> Job {
        let conditions = if state.is_empty() { json!([]) } else { json!([{"type": state, "status": "True"}]) };
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "uid": name, "creationTimestamp": format!("2026-03-01T12:{minute:02}:00Z"),
                "ownerReferences": [{
                    "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": owner, "uid": owner,
                    "controller": true,
                }],
            },
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn names(jobs: &[Job], keep: usize, ended: Option<&str>) -> Vec<String> {
        let mut names: Vec<String> =
            superfluous(jobs, &owner(), keep, ended).iter().map(|job| job.name_any()).collect();
        names.sort();
        names
    }

    #[test]
    fn all_go_but_the_newest_that_failed() {
        let jobs = [
            job("failed-1", 1, "Failed", "a"),
            job("done", 2, "Complete", "a"),
            job("failed-2", 3, "Failed", "a"),
            job("running", 4, "", "a"),
            job("foreign", 5, "", "b"),
        ];
        assert_eq!(names(&jobs, 1, None), ["done", "failed-1", "running"]);
        assert_eq!(names(&jobs, 0, None), ["done", "failed-1", "failed-2", "running"]);
        assert_eq!(names(&jobs, 5, None), ["done", "running"]);
        assert_eq!(names(&jobs, 1, Some("running")), ["done", "failed-1", "failed-2"], "it failed a moment ago");
    }

    #[test]
    fn a_job_that_is_being_deleted_is_not_kept() {
        let mut jobs = [job("failed", 1, "Failed", "a")];
        jobs[0].metadata.deletion_timestamp = jobs[0].metadata.creation_timestamp.clone();
        assert_eq!(names(&jobs, 1, None), ["failed"]);
    }

    #[test]
    fn only_a_pod_that_has_ended_is_not_live() {
        for (status, live) in [
            (json!({"phase": "Succeeded"}), false),
            (json!({"phase": "Failed"}), false),
            (json!({"phase": "Running"}), true),
            (json!({"phase": "Pending"}), true),
            (json!({"phase": "Unknown"}), true),
            (json!({}), true),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap();
            assert_eq!(is_live(&pod), live, "{status}");
        }
    }
}
