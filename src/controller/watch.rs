//! The watches of one namespace, or of all: TokenCaches whole, their Secrets and what they refer to as metadata only.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::{
    Api, Resource, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        Controller, WatchStreamExt as _, controller,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event},
    },
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Stop,
    secrets::Secrets,
    tend::{Context, Peers, reconcile},
};
use crate::{
    admin::Readiness,
    api::{
        TokenCache,
        names::{ANNOTATION_REFRESH_REQUESTED, LABEL_MANAGED, LABEL_SOURCE},
    },
    fetch::{Reference, ReferenceKind, references},
    limits::Limits,
    lock::Locks,
    metrics::Standing,
    notes::{Key, Notes},
    reason::Reason,
    references::{References, is_rotation},
    run::{Runner, owner},
};

/// A TokenCache, or the complaint about one that cannot be decoded: one bad object does not end the watch.
pub(super) type Guarded = DeserializeGuard<TokenCache>;
/// A Secret's metadata.
pub(super) type SecretMeta = PartialObjectMeta<Secret>;

/// Looks at TokenCaches at once. None waits for a run; the most wait for nothing at all, and each takes memory.
const LOOKS: u16 = 128;

/// What the watches of one scope are started with.
pub(super) struct Start {
    pub(super) runner: Runner,
    pub(super) limits: Limits,
    pub(super) peers: Peers,
    pub(super) stop: Stop,
    /// All namespaces where none is named.
    pub(super) namespace: Option<String>,
    pub(super) require_source_label: bool,
    /// Says why, where the first lists do not come.
    pub(super) readiness: Readiness,
}

impl Start {
    fn api<K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>>(&self) -> Api<K> {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.runner.client.clone(), namespace),
            None => Api::all(self.runner.client.clone()),
        }
    }

    /// Watches and tends until the stop; tells when all has been listed once.
    pub(super) async fn run(self, ready: oneshot::Sender<()>) {
        // What each refers to, and which Secret each writes.
        let (index, targets) = (References::default(), References::default());
        let notes = self.runner.notes.clone();

        // Not by `Store::wait_until_ready`: of several that wait so, kube wakes only one.
        let (caches_synced, secrets_synced) = (CancellationToken::new(), CancellationToken::new());

        let (caches, caches_writer) = reflector::store::<Guarded>();
        let known = caches.clone();
        self.runner.metrics.tell_of(move || {
            known.state().iter().filter_map(|object| object.0.as_ref().ok()).map(Standing::of).collect()
        });
        let watched_caches = {
            let books = Books {
                known: caches.clone(),
                references: index.clone(),
                targets: targets.clone(),
                notes: notes.clone(),
                peers: self.peers.clone(),
                locks: self.runner.locks.clone(),
            };
            kube::runtime::watcher(self.api::<Guarded>(), watcher::Config::default())
                .default_backoff()
                .modify(slim)
                .inspect_ok(move |event| books.keep(event))
                .inspect_err(log_watch("TokenCaches", &self.readiness))
                .reflect(caches_writer)
                .inspect_ok(tell_synced(&caches_synced))
                .applied_objects()
        };

        // A Secret that vanished while the watch was broken is told by no event, so after each list all are looked at.
        let (listed, after_list) = futures::channel::mpsc::unbounded();
        let secrets = Secrets::default();
        let managed = watcher::Config::default().labels(&format!("{LABEL_MANAGED}=true"));
        let watched_secrets = {
            let (notes, secrets) = (notes.clone(), secrets.clone());
            kube::runtime::watcher(self.api::<SecretMeta>(), managed)
                .default_backoff()
                .modify(|secret| secret.metadata.managed_fields = None)
                .inspect_ok(move |event| secret_event(event, &notes))
                .inspect_err(log_watch("Secrets", &self.readiness))
                .inspect_ok(move |event| secrets.apply(event))
                .inspect_ok(tell_synced(&secrets_synced))
                .inspect_ok(move |event| {
                    if matches!(event, Event::InitDone) {
                        // Nobody listens any more only when the controller has ended.
                        let _ = listed.unbounded_send(());
                    }
                })
                .touched_objects()
        };

        let source = if self.require_source_label {
            watcher::Config::default().labels(&format!("{LABEL_SOURCE}=true"))
        } else {
            watcher::Config::default()
        };
        let source_secrets = kube::runtime::watcher(self.api::<SecretMeta>(), source.clone())
            .default_backoff()
            .inspect_err(log_watch("source Secrets", &self.readiness))
            .applied_objects();
        let config_maps =
            kube::runtime::watcher(self.api::<PartialObjectMeta<ConfigMap>>(), watcher::Config::default())
                .default_backoff()
                .inspect_err(log_watch("ConfigMaps", &self.readiness))
                .applied_objects();
        let accounts = kube::runtime::watcher(self.api::<PartialObjectMeta<ServiceAccount>>(), source)
            .default_backoff()
            .inspect_err(log_watch("source ServiceAccounts", &self.readiness))
            .applied_objects();
        let unblocked = stream::select_all([
            changed(source_secrets, ReferenceKind::Secret).boxed(),
            changed(config_maps, ReferenceKind::ConfigMap).boxed(),
            changed(accounts, ReferenceKind::ServiceAccount).boxed(),
        ]);
        let unblocked = {
            let (caches, notes) = (caches.clone(), notes.clone());
            unblocked.flat_map(move |(namespace, reference)| {
                stream::iter(unblock(&caches, &notes, &index, &namespace, &reference))
            })
        };

        let runs = TaskTracker::new();
        let (ended, after_runs) = futures::channel::mpsc::unbounded();
        let context = Arc::new(Context {
            runner: self.runner.clone(),
            limits: self.limits.clone(),
            peers: self.peers.clone(),
            stop: self.stop.clone(),
            caches,
            secrets,
            secrets_synced: secrets_synced.clone(),
            runs: runs.clone(),
            ended,
        });
        tokio::spawn(async move {
            caches_synced.cancelled().await;
            secrets_synced.cancelled().await;
            let _ = ready.send(());
        });
        Controller::for_stream(watched_caches, context.caches.clone())
            .with_config(controller::Config::default().concurrency(LOOKS))
            .watches_stream(watched_secrets, move |secret| concerned(&secret, &targets))
            .reconcile_on(unblocked)
            .reconcile_on(after_runs)
            .reconcile_all_on(after_list)
            .graceful_shutdown_on(self.stop.begin.clone().cancelled_owned())
            .run(reconcile, |_, error, _| match *error {}, context)
            .for_each(|result| async {
                if let Err(error) = result {
                    // A requeued object that is gone by now is nothing to speak of; watch errors are logged above.
                    tracing::debug!(%error, "controller");
                }
            })
            .await;
        runs.close();
        runs.wait().await;
    }
}

/// Tells when the first list has come, for the event after which the store holds it.
fn tell_synced<K>(synced: &CancellationToken) -> impl FnMut(&Event<K>) + use<K> {
    let synced = synced.clone();
    move |event| {
        if matches!(event, Event::InitDone) {
            synced.cancel();
        }
    }
}

/// Drops what is not needed before an object is kept.
fn slim(object: &mut Guarded) {
    let metadata = object.meta_mut();
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, _| key == ANNOTATION_REFRESH_REQUESTED);
    }
    metadata.annotations.take_if(|annotations| annotations.is_empty());
    // A list that was read has room for several; there is one condition.
    if let Ok(TokenCache { status: Some(status), .. }) = &mut object.0 {
        status.conditions.shrink_to_fit();
    }
}

pub(super) fn key(object: &impl Resource) -> Key {
    let metadata = object.meta();
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// What is kept in step with the TokenCaches as the watch brings them.
struct Books {
    known: Store<Guarded>,
    references: References,
    targets: References,
    notes: Notes,
    peers: Peers,
    locks: Locks,
}

impl Books {
    /// Follows an event; ends runs that are not wanted any more, and learns who else is at work.
    fn keep(&self, event: &Event<Guarded>) {
        match event {
            Event::Apply(object) | Event::InitApply(object) => {
                let key = key(object);
                let Ok(cache) = &object.0 else { return };
                self.references.set(&key, references(&cache.spec));
                // The most are named like their TokenCache, and need no entry.
                let other = Some(cache.secret_name()).filter(|name| *name != key.1);
                self.targets.set(&key, other.map(secret_named).into_iter().collect());
                if cache.spec.suspend || cache.metadata.deletion_timestamp.is_some() {
                    self.notes.cancel(&key);
                }
                // Only a run that has just ended tells of a replica that is at work.
                if matches!(event, Event::Apply(_))
                    && let Some(status) = &cache.status
                    && let Some(replica) = &status.last_run_by
                    && self.known.get(&ObjectRef::from_obj(object)).is_some_and(|known| runs(&known) < status.runs)
                {
                    self.peers.saw(replica, Instant::now());
                }
            }
            Event::Delete(object) => {
                let key = key(object);
                self.references.set(&key, Vec::new());
                self.targets.set(&key, Vec::new());
                self.notes.forget(&key);
                if let Ok(cache) = &object.0 {
                    self.locks.forget(&owner(cache));
                }
            }
            Event::Init | Event::InitDone => {}
        }
    }
}

fn runs(object: &Guarded) -> i64 {
    object.0.as_ref().ok().and_then(|cache| cache.status.as_ref()).map_or(0, |status| status.runs)
}

fn secret_named(name: &str) -> Reference {
    Reference { kind: ReferenceKind::Secret, name: name.to_owned() }
}

/// The TokenCaches that a Secret concerns: its owner, and those that would write it if it were not somebody else's. One
/// of the Secret's own name may not exist; kube's controller passes over it.
fn concerned(secret: &SecretMeta, targets: &References) -> Vec<ObjectRef<Guarded>> {
    let namespace = secret.namespace().unwrap_or_default();
    let mut names = targets.to(&namespace, &secret_named(&secret.name_any()));
    names.extend(owner_of(secret));
    names.push(secret.name_any());
    names.sort_unstable();
    names.dedup();
    names.iter().map(|name| ObjectRef::new(name).within(&namespace)).collect()
}

/// The name of the TokenCache that owns a Secret.
fn owner_of(secret: &SecretMeta) -> Option<String> {
    let owner = secret.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    (owner.kind == "TokenCache").then(|| owner.name.clone())
}

fn secret_event(event: &Event<SecretMeta>, notes: &Notes) {
    let (object, version) = match event {
        Event::Apply(object) | Event::InitApply(object) => (object, object.metadata.resource_version.as_deref()),
        Event::Delete(object) => (object, None),
        Event::Init | Event::InitDone => return,
    };
    if let Some(owner) = owner_of(object) {
        let key = (object.metadata.namespace.clone().unwrap_or_default(), owner);
        notes.with_known(&key, |note| note.watched(object.metadata.name.as_deref(), version));
    }
}

fn changed<K: Resource<DynamicType = ()> + Send>(
    objects: impl futures::Stream<Item = Result<K, watcher::Error>> + Send,
    kind: ReferenceKind,
) -> impl futures::Stream<Item = (String, Reference)> + Send {
    objects.filter_map(move |object| async move {
        let object = object.ok().filter(|object| !is_rotation(object.meta()))?;
        Some((object.namespace()?, Reference { kind, name: object.name_any() }))
    })
}

/// The TokenCaches that stand still because of an object that has now changed; they may try again at once.
fn unblock(
    caches: &Store<Guarded>,
    notes: &Notes,
    index: &References,
    namespace: &str,
    reference: &Reference,
) -> Vec<ObjectRef<Guarded>> {
    let waits = |name: &String| {
        let at = ObjectRef::<Guarded>::new(name).within(namespace);
        let object = caches.get(&at)?;
        let status = object.0.as_ref().ok()?.status.clone().unwrap_or_default();
        let failure = status.last_failure.as_ref().filter(|_| status.failures > 0);
        let watched = failure.filter(|failure| Reason::is_of_source(&failure.reason)).map(|_| status.runs);
        notes.with(&(namespace.to_owned(), name.clone()), |note| {
            // A run that is under way may have looked just before.
            note.source_changed = Some(Instant::now());
            let waiting = if note.is_ahead_of(status.runs) { note.waiting } else { watched };
            note.unblocked = waiting.or(note.unblocked);
            waiting.map(|_| at)
        })
    };
    index.to(namespace, reference).iter().filter_map(waits).collect()
}

/// Logs what breaks a watch; a controller that is not ready yet tells its probe as well.
fn log_watch(what: &'static str, readiness: &Readiness) -> impl FnMut(&watcher::Error) + use<> {
    let readiness = readiness.clone();
    move |error| {
        tracing::warn!(%error, "the watch of {what} broke; it is taken up again");
        readiness.send_if_modified(|waiting| match waiting {
            Some(waiting) => {
                *waiting = format!("{what} cannot be watched: {error}");
                true
            }
            None => false,
        });
    }
}
