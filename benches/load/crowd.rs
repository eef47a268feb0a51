//! Many tasks at once, and waiting for what becomes of many TokenCaches.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future::join_all};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::{
    Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::Deserialize;
use tokencache::api::TokenCache;
use tokio::{sync::oneshot, task::JoinHandle};

use crate::support::Namespace;

/// Does something for each number below `count`, so many at once.
pub async fn for_all<F: Future<Output = ()> + Send + 'static>(
    count: usize,
    at_once: usize,
    act: impl Fn(usize) -> F + Send + Sync + 'static,
) {
    let (next, act) = (Arc::new(AtomicUsize::new(0)), Arc::new(act));
    let workers = (0..at_once).map(|_| {
        let (next, act) = (next.clone(), act.clone());
        tokio::spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    break;
                }
                Box::pin(act(number)).await;
            }
        })
    });
    join_all(workers).await.into_iter().for_each(|worker| worker.expect("a worker"));
}

/// Does something for the numbers below `count` over and over for a time, so many at once: how often each second.
pub async fn rate_of<F: Future<Output = ()> + Send + 'static>(
    count: usize,
    at_once: usize,
    window: Duration,
    act: impl Fn(usize) -> F + Send + Sync + 'static,
) -> f64 {
    let (done, act, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(act), Instant::now());
    // Each worker has objects of its own, so that none is written by two.
    let workers = (0..at_once.min(count)).map(|worker| {
        let (done, act) = (done.clone(), act.clone());
        tokio::spawn(async move {
            for number in (worker..count).step_by(at_once).cycle() {
                if begun.elapsed() >= window {
                    break;
                }
                Box::pin(act(number)).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    join_all(workers).await.into_iter().for_each(|worker| worker.expect("a worker"));
    done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

/// What is looked at of a TokenCache.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = TokenCache)]
pub struct Brief {
    metadata: ObjectMeta,
    #[serde(default)]
    status: BriefStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct BriefStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

impl Brief {
    fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }
}

/// Begins to watch; the task ends when so many are Ready.
pub async fn all_ready(ns: &Namespace, count: usize) -> JoinHandle<()> {
    let api = kube::Api::<Brief>::namespaced(ns.client().clone(), &ns.name);
    let (listed, begun) = oneshot::channel();
    let task = tokio::spawn(async move {
        let mut listed = Some(listed);
        let mut ready = BTreeSet::new();
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while ready.len() < count {
            match events.next().await.expect("a watch does not end") {
                Ok(watcher::Event::InitDone) => {
                    let _ = listed.take().map(|listed| listed.send(()));
                }
                Ok(watcher::Event::Apply(cache) | watcher::Event::InitApply(cache)) if cache.is_ready() => {
                    ready.insert(cache.name_any());
                }
                _ => {}
            }
        }
    });
    begun.await.expect("the watch begins");
    task
}
