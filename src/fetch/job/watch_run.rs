//! Watches a run's Job and pod to their end. There is no watch when there is no run.

use std::{ops::ControlFlow, time::Duration};

use futures::{StreamExt as _, stream::SelectAll};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event as KubeEvent, Pod},
};
use kube::{
    Client, ResourceExt as _,
    runtime::watcher::{self, Event},
};
use tokio::time::{Instant, sleep_until};

use super::{
    owned::{is_as_made, is_event_of, is_pod_of},
    run_state::{LAG, Seen, Verdict, judge},
    stale_jobs::delete,
    watch::{Forbidden, watched},
};
use crate::{
    api::{names::LABEL_RUN, reason::Reason},
    fetch::{Failure, Phase},
};

/// Events are looked at when a pod does not start at once: most do.
const EVENTS_AFTER: Duration = Duration::from_secs(1);

/// What a watch brings.
enum News {
    Job(Result<Box<Event<Job>>, Forbidden>),
    Pod(Result<Box<Event<Pod>>, Forbidden>),
    Event(Result<Box<Event<KubeEvent>>, Forbidden>),
}

/// Follows a run until it is known how it ended: [`Verdict::Sealed`], [`Verdict::Ended`], [`Verdict::Failed`] or
/// [`Verdict::Unseen`].
pub(super) async fn follow(client: &Client, namespace: &str, job: &Job, run: &str, phase: &Phase) -> Verdict {
    let of_run = || watcher::Config::default().labels(&format!("{LABEL_RUN}={run}"));
    let mut news = SelectAll::new();
    news.push(watched(client, namespace, of_run()).map(|it| News::Job(it.map(Box::new))).boxed());
    news.push(watched(client, namespace, of_run()).map(|it| News::Pod(it.map(Box::new))).boxed());
    // By name, which no other object of a run has: the event of an eviction bears no UID.
    let events_of = |name: String| {
        let config = watcher::Config::default().fields(&format!("involvedObject.name={name}"));
        watched(client, namespace, config).map(|it| News::Event(it.map(Box::new))).boxed()
    };

    let mut seen = Seen { job: Some(job.clone()), ..Seen::default() };
    let uid = job.uid();
    let mut listed = Listed::default();
    let mut stuck: Option<Instant> = None;
    let mut ask_for_events = Some(Instant::now() + EVENTS_AFTER);
    let mut asked_about = Vec::new();
    let mut deleted = false;
    loop {
        let verdict = match judge(&seen) {
            Verdict::Deleted(failure) => {
                if !deleted {
                    // Who waits for the end of this run tries again, should this fail.
                    deleted = delete(client, namespace, &job.name_any(), job.uid()).await.is_ok();
                }
                Verdict::Stuck(failure, LAG)
            }
            verdict => verdict,
        };
        let give_up = match going_on(verdict, &mut stuck, phase) {
            ControlFlow::Continue(give_up) => give_up,
            ControlFlow::Break(verdict) => return verdict,
        };
        let wake = [give_up, ask_for_events].into_iter().flatten().min();
        tokio::select! {
            change = news.next() => match change {
                Some(change) => {
                    if let Err(forbidden) = take(&mut seen, &mut listed, uid.as_deref(), change) {
                        return Verdict::Unseen(forbidden.into());
                    }
                }
                // The watches have no end of their own.
                None => return Verdict::Unseen(Failure::new(Reason::JobFailed, "the watch of the Job ended")),
            },
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
        if ask_for_events.is_some_and(|at| Instant::now() >= at) {
            ask_for_events = None;
        }
        let about = seen.pod.as_ref().map_or_else(|| job.name_any(), |pod| pod.name_any());
        if ask_for_events.is_none() && !asked_about.contains(&about) {
            news.push(events_of(about.clone()));
            asked_about.push(about);
        }
    }
}

/// Shows what a run that has not ended does, and returns when it is given up. `stuck`: since when it does not progress.
fn going_on(verdict: Verdict, stuck: &mut Option<Instant>, phase: &Phase) -> ControlFlow<Verdict, Option<Instant>> {
    match verdict {
        Verdict::Going(doing) => phase.set(doing),
        Verdict::Waiting(what) => phase.wait(what),
        Verdict::Stuck(failure, patience) => {
            let until = *stuck.get_or_insert_with(Instant::now) + patience;
            if Instant::now() >= until {
                return ControlFlow::Break(Verdict::Failed(failure));
            }
            phase.set(failure.message);
            return ControlFlow::Continue(Some(until));
        }
        verdict => return ControlFlow::Break(verdict),
    }
    *stuck = None;
    ControlFlow::Continue(None)
}

/// Whether a list that a watch begins with, maybe after a gap, has held what was seen before.
#[derive(Default)]
struct Listed {
    job: bool,
    pod: bool,
}

/// Takes news in of the Job with this UID. Without Jobs and pods nothing can be known of a run; without events, less of
/// what goes wrong.
fn take(seen: &mut Seen, listed: &mut Listed, job: Option<&str>, news: News) -> Result<(), Forbidden> {
    match news {
        News::Job(event) => match *event? {
            Event::Init => listed.job = false,
            Event::InitDone => seen.job_gone |= seen.job.is_some() && !listed.job,
            Event::Apply(other) | Event::InitApply(other) | Event::Delete(other) if other.uid().as_deref() != job => {}
            Event::Apply(job) | Event::InitApply(job) => {
                listed.job = true;
                seen.job = Some(job);
            }
            Event::Delete(_) => seen.job_gone = true,
        },
        News::Pod(event) => match *event? {
            Event::Init => listed.pod = false,
            Event::InitDone => seen.pod_gone |= seen.pod.is_some() && !listed.pod,
            // Another client's pod with the label of the run.
            Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) if !is_pod_of(&pod, job) => {}
            Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) if !is_as_made_by(seen, &pod) => {
                seen.changed_pod = Some(pod.name_any());
            }
            // Another pod in the place of one that was deleted is not waited for.
            Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) if is_another(seen, &pod) => {}
            Event::Apply(pod) | Event::InitApply(pod) => {
                listed.pod = true;
                seen.pod = Some(pod);
            }
            Event::Delete(pod) => {
                // What it said last is judged first: it may have ended well.
                seen.pod_gone = true;
                seen.pod = Some(pod);
            }
        },
        News::Event(Ok(event)) => match *event {
            Event::Apply(event) | Event::InitApply(event) => {
                let pod = seen.pod.as_ref().and_then(|pod| pod.metadata.uid.as_deref());
                if is_event_of(&event, job, pod) {
                    seen.events.push(event);
                }
            }
            Event::InitDone => seen.no_events = None,
            Event::Init | Event::Delete(_) => {}
        },
        News::Event(Err(forbidden)) => seen.no_events = Some(forbidden),
    }
    Ok(())
}

fn is_as_made_by(seen: &Seen, pod: &Pod) -> bool {
    seen.job.as_ref().is_some_and(|job| is_as_made(pod, job))
}

fn is_another(seen: &Seen, pod: &Pod) -> bool {
    seen.pod.as_ref().is_some_and(|first| first.uid() != pod.uid())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> serde_json::Value {
        json!({"containers": [{"name": "tokencache-collect", "image": "i", "args": ["--key=KEY"]}]})
    }

    fn pod(uid: &str, job: &str) -> Pod {
        let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": job, "controller": true});
        serde_json::from_value(json!({"metadata": {"uid": uid, "ownerReferences": [owner]}, "spec": spec()})).unwrap()
    }

    fn job(uid: &str) -> Job {
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"template": {"spec": spec()}}})).unwrap()
    }

    struct Run(Seen, Listed);

    impl Default for Run {
        fn default() -> Self {
            Self(Seen { job: Some(job("job")), ..Seen::default() }, Listed::default())
        }
    }

    impl Run {
        fn news(&mut self, news: News) {
            take(&mut self.0, &mut self.1, Some("job"), news).unwrap();
        }

        fn pod(&mut self, event: Event<Pod>) {
            self.news(News::Pod(Ok(Box::new(event))));
        }

        fn pod_uid(&self) -> Option<String> {
            self.0.pod.as_ref().and_then(|pod| pod.uid())
        }
    }

    #[test]
    fn the_pod_that_kubernetes_makes_in_the_place_of_a_deleted_one_is_not_taken_for_it() {
        let mut run = Run::default();
        run.pod(Event::Apply(pod("first", "job")));
        run.pod(Event::Apply(pod("second", "job")));
        run.pod(Event::Delete(pod("second", "job")));
        assert_eq!((run.pod_uid().as_deref(), run.0.pod_gone), (Some("first"), false));
        for event in [Event::Init, Event::InitApply(pod("second", "job")), Event::InitDone] {
            run.pod(event);
        }
        assert!(run.0.pod_gone, "the first is gone from the list");
    }

    #[test]
    fn what_belongs_to_another_job_is_not_taken_for_the_runs_own() {
        let mut run = Run::default();
        let unowned = Pod { metadata: pod("x", "job").metadata, ..Pod::default() };
        let unowned =
            Pod { metadata: kube::core::ObjectMeta { owner_references: None, ..unowned.metadata }, ..unowned };
        let mut forged = pod("x", "job");
        forged.spec.as_mut().unwrap().containers[0].args = None;
        for other in [pod("x", "other"), unowned, forged] {
            run.pod(Event::InitApply(other.clone()));
            run.pod(Event::Apply(other.clone()));
            run.pod(Event::Delete(other));
        }
        assert!(run.0.pod.is_none() && !run.0.pod_gone);
        run.pod(Event::Apply(pod("own", "job")));
        assert_eq!(run.pod_uid().as_deref(), Some("own"));

        run.0.job = None;
        for event in [Event::Apply(job("other")), Event::Delete(job("other"))] {
            run.news(News::Job(Ok(Box::new(event))));
        }
        assert!(run.0.job.is_none() && !run.0.job_gone);
        run.news(News::Job(Ok(Box::new(Event::Apply(job("job"))))));
        assert!(run.0.job.is_some());

        let lost = |uid: &str| -> KubeEvent {
            let about = json!({"metadata": {}, "involvedObject": {"uid": uid}, "reason": "NodeNotReady"});
            serde_json::from_value(about).unwrap()
        };
        for uid in ["other", "", "own"] {
            run.news(News::Event(Ok(Box::new(Event::Apply(lost(uid))))));
        }
        assert_eq!(run.0.events, [lost("own")]);
    }
}
