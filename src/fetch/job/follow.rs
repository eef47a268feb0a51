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
    judge::{Seen, Verdict, judge},
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

/// Follows a run until it is known how it ended; never [`Verdict::Going`] or [`Verdict::Stuck`].
pub(super) async fn follow(client: &Client, namespace: &str, job: &Job, run: &str, phase: &Phase) -> Verdict {
    let of_run = || watcher::Config::default().labels(&format!("{LABEL_RUN}={run}"));
    let mut news = SelectAll::new();
    news.push(watched(client, namespace, of_run()).map(|it| News::Job(it.map(Box::new))).boxed());
    news.push(watched(client, namespace, of_run()).map(|it| News::Pod(it.map(Box::new))).boxed());
    let events_of = |uid: String| {
        let config = watcher::Config::default().fields(&format!("involvedObject.uid={uid}"));
        watched(client, namespace, config).map(|it| News::Event(it.map(Box::new))).boxed()
    };

    let mut seen = Seen::default();
    let mut listed = Listed::default();
    let mut stuck: Option<Instant> = None;
    let mut ask_for_events = Some(Instant::now() + EVENTS_AFTER);
    let mut asked_about = Vec::new();
    loop {
        let give_up = match judge(&seen) {
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
        let about = seen.pod.as_ref().and_then(|pod| pod.uid()).or_else(|| job.uid());
        if let Some(about) = about.filter(|about| ask_for_events.is_none() && !asked_about.contains(about)) {
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
        News::Event(Ok(event)) => {
            seen.no_events = None;
            if let Event::Apply(event) | Event::InitApply(event) = *event {
                seen.events.push(event);
            }
        }
        News::Event(Err(forbidden)) => seen.no_events = Some(forbidden),
    }
    Ok(())
}
