//! Watches a run's Job and pod to their end. There is no watch when there is no run.

use std::time::Duration;

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
    judge::{LAG, Seen, Verdict, judge},
    leftovers::delete,
    watch::{Forbidden, watched},
};
use crate::{api::names::LABEL_RUN, fetch::Phase};

/// Events are looked at when a pod does not start at once: most do.
const EVENTS_AFTER: Duration = Duration::from_secs(1);

/// What a watch brings.
enum News {
    Job(Result<Box<Event<Job>>, Forbidden>),
    Pod(Result<Box<Event<Pod>>, Forbidden>),
    Event(Result<Box<Event<KubeEvent>>, Forbidden>),
}

/// Follows a run until it is known how it ended: [`Verdict::Sealed`], [`Verdict::Ended`] or [`Verdict::Failed`].
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

    let mut seen = Seen::default();
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
        let give_up = match verdict {
            Verdict::Going(doing) => {
                phase.set(doing);
                stuck = None;
                None
            }
            Verdict::Stuck(failure, patience) => {
                let until = *stuck.get_or_insert_with(Instant::now) + patience;
                if Instant::now() >= until {
                    return Verdict::Failed(failure);
                }
                phase.set(failure.message);
                Some(until)
            }
            verdict => return verdict,
        };
        let wake = [give_up, ask_for_events].into_iter().flatten().min();
        tokio::select! {
            change = news.next() => match change {
                Some(change) => {
                    if let Err(forbidden) = take(&mut seen, &mut listed, change) {
                        return Verdict::Failed(forbidden.into());
                    }
                }
                // The watches have no end of their own.
                None => return Verdict::Going(String::new()),
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

/// Whether a list that a watch begins with, maybe after a gap, has held what was seen before.
#[derive(Default)]
struct Listed {
    job: bool,
    pod: bool,
}

/// Takes news in. Without Jobs and pods nothing can be known of a run; without events, less of what goes wrong.
fn take(seen: &mut Seen, listed: &mut Listed, news: News) -> Result<(), Forbidden> {
    match news {
        News::Job(event) => match *event? {
            Event::Init => listed.job = false,
            Event::InitDone => seen.job_gone |= seen.job.is_some() && !listed.job,
            Event::Apply(job) | Event::InitApply(job) => {
                listed.job = true;
                seen.job = Some(job);
            }
            Event::Delete(_) => seen.job_gone = true,
        },
        News::Pod(event) => match *event? {
            Event::Init => listed.pod = false,
            Event::InitDone => seen.pod_gone |= seen.pod.is_some() && !listed.pod,
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
            Event::Apply(event) | Event::InitApply(event) => seen.events.push(event),
            Event::InitDone => seen.no_events = None,
            Event::Init | Event::Delete(_) => {}
        },
        News::Event(Err(forbidden)) => seen.no_events = Some(forbidden),
    }
    Ok(())
}

fn is_another(seen: &Seen, pod: &Pod) -> bool {
    seen.pod.as_ref().is_some_and(|first| first.uid() != pod.uid())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pod_that_kubernetes_makes_in_the_place_of_a_deleted_one_is_not_taken_for_it() {
        let pod = |uid: &str| -> Pod { serde_json::from_value(json!({"metadata": {"uid": uid}})).unwrap() };
        let (mut seen, mut listed) = (Seen::default(), Listed::default());
        let mut news = |event| take(&mut seen, &mut listed, News::Pod(Ok(Box::new(event)))).unwrap();
        news(Event::Apply(pod("first")));
        news(Event::Apply(pod("second")));
        news(Event::Delete(pod("second")));
        assert_eq!((seen.pod.as_ref().and_then(|pod| pod.uid()).as_deref(), seen.pod_gone), (Some("first"), false));
        let mut news = |event| take(&mut seen, &mut listed, News::Pod(Ok(Box::new(event)))).unwrap();
        for event in [Event::Init, Event::InitApply(pod("second")), Event::InitDone] {
            news(event);
        }
        assert!(seen.pod_gone, "the first is gone from the list");
    }
}
