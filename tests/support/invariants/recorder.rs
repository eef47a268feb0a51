//! Records what becomes of the TokenCaches and Secrets of a namespace, by watches of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        watcher,
        watcher::{Config, Event},
    },
};
use parking_lot::{Mutex, MutexGuard};
use tokencache::api::TokenCache;
use tokio::task::AbortHandle;

use super::{
    Invariant, Violation, judge,
    pulse::Pulses,
    timeline::{CacheVersion, Change, Entry, SecretVersion, Timeline, now},
};
use crate::support::{
    RUNTIME,
    namespace::Object,
    server::observer::Observer,
    spans::{Span, union},
};

/// A controller that was just started or thawed has this long to catch up, in seconds.
const CATCH_UP: f64 = 1.0;

/// So many violations are shown.
const SHOWN: usize = 10;
/// The pause after an error of a watch.
const AGAIN: Duration = Duration::from_millis(100);

/// What was recorded so far.
#[derive(Default)]
pub(super) struct Record {
    entries: Vec<Entry>,
    /// When controllers were at work, each.
    at_work: Vec<Span>,
    exemptions: Vec<(Invariant, String, Span)>,
    servers: Vec<Observer>,
    /// When it was finished.
    end: Option<f64>,
    watches: Vec<AbortHandle>,
}

/// Records one namespace.
pub struct Recorder {
    namespace: String,
    pulses: Pulses,
    record: Arc<Mutex<Record>>,
}

/// A controller is at work until this is dropped.
pub struct AtWork(Arc<Mutex<Record>>, usize);

/// An invariant need not hold for an object until this is dropped.
#[must_use = "it ends when it is dropped"]
pub struct Exemption(Arc<Mutex<Record>>, usize);

impl Recorder {
    /// Begins to record.
    pub fn start(client: &Client, namespace: &str) -> Self {
        let record: Arc<Mutex<Record>> = Arc::default();
        let caches =
            follow::<TokenCache>(client, namespace, &record, |cache| Change::Cache(cache.map(CacheVersion::of)));
        let secrets =
            follow::<Secret>(client, namespace, &record, |secret| Change::Secret(secret.map(SecretVersion::of)));
        lock(&record).watches.extend([caches, secrets]);
        Self { namespace: namespace.to_owned(), pulses: Pulses::of_process(client), record }
    }

    /// From now on, a controller is at work.
    pub fn at_work(&self) -> AtWork {
        let mut record = lock(&self.record);
        record.at_work.push(Span::new(now() + CATCH_UP, f64::INFINITY));
        AtWork(self.record.clone(), record.at_work.len() - 1)
    }

    /// From now on, an invariant need not hold for an object.
    pub fn exempt(&self, invariant: Invariant, object: &str) -> Exemption {
        let mut record = lock(&self.record);
        record.exemptions.push((invariant, object.to_owned(), Span::new(now(), f64::INFINITY)));
        Exemption(self.record.clone(), record.exemptions.len() - 1)
    }

    /// The versions of a TokenCache that came after this `resourceVersion` and are known by now.
    pub fn versions(&self, name: &str, after: &str) -> Vec<CacheVersion> {
        let after: u64 = after.parse().expect("a resourceVersion");
        let later = |entry: &Entry| entry.version > after && entry.name == name;
        let entries = self.timeline().entries.into_iter().filter(later);
        entries.filter_map(|entry| if let Change::Cache(version) = entry.change { version } else { None }).collect()
    }

    /// Judges the requests to this server as well.
    pub fn counts_requests(&self, server: Observer) {
        lock(&self.record).servers.push(server);
    }

    /// Ends the record.
    pub fn finish(&self) {
        let mut record = lock(&self.record);
        record.end.get_or_insert_with(now);
        record.watches.drain(..).for_each(|watch| watch.abort());
    }

    /// What was recorded, until it was finished or until now.
    pub fn timeline(&self) -> Timeline {
        let record = lock(&self.record);
        let (end, moment) = (now(), Instant::now());
        let unix = |at: Instant| end - moment.saturating_duration_since(at).as_secs_f64();
        let (mut requests, mut void) = (BTreeMap::<String, Vec<f64>>::new(), BTreeMap::<String, Vec<f64>>::new());
        for server in &record.servers {
            for (name, times) in server.arrivals() {
                requests.entry(name).or_default().extend(times.into_iter().map(unix));
            }
            for (name, times) in server.resent() {
                void.entry(name).or_default().extend(times.into_iter().map(|(_, sent)| unix(sent)));
            }
        }
        let mut timeline = Timeline {
            entries: record.entries.clone(),
            end: record.end.unwrap_or(end),
            controllers: union(&record.at_work),
            turnover: record.at_work.iter().flat_map(|span| [span.from, span.to]).collect(),
            pulses: self.pulses.clone(),
            requests,
            void,
            exemptions: record.exemptions.clone(),
        };
        timeline.settle();
        timeline
    }

    /// Which invariants do not hold, if any.
    pub fn violated(&self) -> Option<String> {
        let violations = judge(&self.timeline());
        let shown: Vec<String> = violations.iter().take(SHOWN).map(Violation::to_string).collect();
        let (count, shown) = (violations.len(), shown.join("\n"));
        (count > 0).then(|| format!("invariants do not hold in {}, {count} times:\n{shown}", self.namespace))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        lock(&self.0).at_work[self.1].to = now();
    }
}

impl Drop for Exemption {
    fn drop(&mut self) {
        lock(&self.0).exemptions[self.1].2.to = now();
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock()
}

/// Records each version of the objects of one type, however often the watch has to begin anew.
fn follow<K: Object + Sync>(
    client: &Client,
    namespace: &str,
    record: &Arc<Mutex<Record>>,
    change: fn(Option<&K>) -> Change,
) -> AbortHandle {
    let (api, record) = (Api::<K>::namespaced(client.clone(), namespace), record.clone());
    let task = RUNTIME.spawn(async move {
        let add = |version: u64, name: &str, object: Option<&K>| {
            let entry = Entry { at: now(), version, name: name.to_owned(), change: change(object) };
            lock(&record).entries.push(entry);
        };
        let version = |object: &K| object.resource_version().and_then(|version| version.parse().ok()).unwrap_or(0);
        let mut events = pin!(watcher(api, Config::default()));
        let (mut known, mut listed, mut newest) = (BTreeSet::new(), BTreeSet::new(), 0);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(object) | Event::InitApply(object)) => {
                    newest = newest.max(version(&object));
                    known.insert(object.name_any());
                    listed.insert(object.name_any());
                    add(version(&object), &object.name_any(), Some(&object));
                }
                Ok(Event::Delete(object)) => {
                    newest = newest.max(version(&object));
                    known.remove(&object.name_any());
                    add(version(&object), &object.name_any(), None);
                }
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitDone) => {
                    // Deleted while the watch was broken.
                    known.difference(&listed).for_each(|gone| add(newest, gone, None));
                    known = listed.clone();
                }
                // The watcher begins anew.
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    });
    task.abort_handle()
}
