//! The watches of one namespace, or of all: TokenCaches whole, their Secrets and what they refer to as metadata only.

use std::{collections::HashSet, fmt, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedSender, future, stream};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{
        Controller, WatchStreamExt as _, controller,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event},
    },
};
use tokio::sync::{SetOnce, oneshot};
use tokio_util::task::TaskTracker;

use super::{
    Stop, WatchContacts,
    api_outage::Recovery,
    books::{Books, secret_named},
    concurrency::Concurrency,
    reconcile::{Context, Peers, at, reconcile},
    store::{Kept, Secrets, Sent},
};
use crate::{
    api::names::{LABEL_MANAGED, LABEL_SOURCE},
    controller::reference_index::References,
    fetch::{Reference, ReferenceKind},
    k8s::{
        error::watch_message,
        metadata::MetadataOnly,
        object::{ObjectKey, controlling_token_cache},
        watch::watch_all,
    },
    reconcile::{run::Runner, source_change::SourceChange, state::Notes},
    telemetry::admin::Readiness,
};

/// A Secret's metadata.
pub(super) type SecretMeta = MetadataOnly<Secret>;

/// Looks at TokenCaches at once. None waits for a run; the most wait for nothing at all, and each takes memory.
const LOOKS: u16 = 128;

/// Objects in one page of a list. A page is in memory whole, and each object in it may have more than 1 MiB.
const PAGE: u32 = 100;

/// What the watches of one scope are started with.
pub(super) struct Start {
    pub(super) runner: Runner,
    pub(super) concurrency: Concurrency,
    pub(super) peers: Peers,
    pub(super) recovery: Recovery,
    pub(super) stop: Stop,
    /// All namespaces where none is named.
    pub(super) namespace: Option<String>,
    pub(super) require_source_label: bool,
    /// Says why, where the first lists do not come.
    pub(super) readiness: Readiness,
    pub(super) contacts: WatchContacts,
}

/// Whether a controller without a watch does not do its work, or only learns later what it could do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

impl Start {
    fn api<K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>>(&self) -> Api<K> {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.runner.client.clone(), namespace),
            None => Api::all(self.runner.client.clone()),
        }
    }

    /// Watches objects, and reports failures, and whether anything arrives.
    fn watch<K>(
        &self,
        what: &'static str,
        need: Need,
        config: watcher::Config,
    ) -> impl futures::Stream<Item = watcher::Result<Event<K>>> + Send + use<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
        K: Clone + serde::de::DeserializeOwned + fmt::Debug + Send + 'static,
    {
        let path = K::url_path(&(), self.namespace.as_deref());
        self.contacts.expect(path, config.label_selector.as_deref(), what, need == Need::Required);
        watch_all(self.api::<K>(), config.page_size(PAGE)).inspect_err(log_watch(what, &self.readiness))
    }

    /// Watches and reconciles until the stop. Sends `ready` when TokenCaches and Secrets have been listed once.
    pub(super) async fn run(self, ready: oneshot::Sender<()>) {
        let (caches, caches_writer) = reflector::store::<Kept>();
        let known = Known {
            caches,
            notes: self.runner.notes.clone(),
            references: References::default(),
            targets: References::default(),
            secrets: Secrets::default(),
            caches_listed: Listed::default(),
            secrets_listed: Listed::default(),
        };
        let shown = known.caches.clone();
        self.runner.metrics.tell_of(move || {
            shown.state().iter().filter_map(|object| Some((key(&**object), object.standing?))).collect()
        });
        let (unblocked, after_change) = futures::channel::mpsc::unbounded();
        let (listed, after_list) = futures::channel::mpsc::unbounded();
        let (ended, after_runs) = futures::channel::mpsc::unbounded();
        self.recovery.add(self.namespace.clone(), ended.clone());
        let token_caches = self.token_caches(&known, caches_writer);
        let secrets = self.secrets(&known, unblocked, listed);
        let after_others_change = self.source_changes(&known);

        let runs = TaskTracker::new();
        let context = Arc::new(self.context(&known, runs.clone(), ended));
        let (caches_listed, secrets_listed) = (known.caches_listed.clone(), known.secrets_listed.clone());
        tokio::spawn(async move {
            caches_listed.wait().await;
            secrets_listed.wait().await;
            let _ = ready.send(());
        });
        Controller::for_stream(token_caches, known.caches)
            .with_config(controller::Config::default().concurrency(LOOKS))
            .watches_stream(secrets, move |secret| concerned(&secret, &known.targets, &known.notes))
            .reconcile_on(after_change)
            .reconcile_on(after_others_change)
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

    /// The TokenCaches, which go to the store.
    fn token_caches(
        &self,
        known: &Known,
        writer: reflector::store::Writer<Kept>,
    ) -> impl futures::Stream<Item = watcher::Result<Kept>> + Send + use<> {
        let mut books = Books {
            known: known.caches.clone(),
            references: known.references.clone(),
            targets: known.targets.clone(),
            notes: known.notes.clone(),
            peers: self.peers.clone(),
            locks: self.runner.locks.clone(),
            listed: HashSet::new(),
        };
        let notes = known.notes.clone();
        self.watch::<Sent>("TokenCaches", Need::Required, watcher::Config::default())
            .map_ok(move |event| books.keep(event))
            .reflect(writer)
            .inspect_ok(on_list({
                let listed = known.caches_listed.clone();
                move || listed.set()
            }))
            .applied_objects()
            .try_filter(move |cache| future::ready(notes.may_look(&key(cache))))
            .filter(is_no_error)
    }

    /// The Secrets of TokenCaches. What may be unblocked by one is sent to `unblocked`, since a Secret of one TokenCache
    /// may be the source of another. A Secret that vanished while the watch was broken is in no event, so after each list
    /// `listed` has all TokenCaches reconciled.
    fn secrets(
        &self,
        known: &Known,
        unblocked: UnboundedSender<ObjectRef<Kept>>,
        listed: UnboundedSender<()>,
    ) -> impl futures::Stream<Item = watcher::Result<SecretMeta>> + Send + use<> {
        let managed = watcher::Config::default().labels(&format!("{LABEL_MANAGED}=true"));
        let (sources, secrets, notes) = (known.sources(), known.secrets.clone(), known.notes.clone());
        let (scope, secrets_listed) = (self.namespace.clone(), known.secrets_listed.clone());
        self.watch::<SecretMeta>("Secrets", Need::Required, managed)
            .inspect_ok(move |event| {
                let (Event::Apply(secret) | Event::InitApply(secret)) = event else { return };
                for at in sources.changed(ReferenceKind::Secret, secret) {
                    // The receiver is gone only when the controller has ended.
                    let _ = unblocked.unbounded_send(at);
                }
            })
            .modify(|secret| secret.meta_mut().managed_fields = None)
            .inspect_ok({
                let (secrets, notes) = (secrets.clone(), notes.clone());
                move |event| {
                    secrets.apply(event);
                    secret_event(event, &notes);
                }
            })
            .inspect_ok(on_list(move || {
                notes.listed(scope.as_deref(), |key| secrets.get(key).is_some());
                secrets_listed.set();
                let _ = listed.unbounded_send(());
            }))
            // After a list all are reconciled, whatever it brought.
            .try_filter_map(|event| match event {
                Event::Apply(secret) | Event::Delete(secret) => future::ok(Some(secret)),
                Event::Init | Event::InitApply(_) | Event::InitDone => future::ok(None),
            })
            .filter(is_no_error)
    }

    /// The TokenCaches that a change of another object unblocks: of a Secret that no TokenCache owns, a ConfigMap or a
    /// ServiceAccount.
    fn source_changes(&self, known: &Known) -> impl futures::Stream<Item = ObjectRef<Kept>> + Send + use<> {
        let opened = self.require_source_label.then(|| format!("{LABEL_SOURCE}=true"));
        let not_managed = format!("{LABEL_MANAGED}!=true");
        let others = opened.iter().chain([&not_managed]).map(String::as_str).collect::<Vec<_>>().join(",");
        let secrets = watcher::Config::default().labels(&others);
        let accounts = watcher::Config { label_selector: opened, ..watcher::Config::default() };
        let secrets = self.watch::<SecretMeta>("source Secrets", Need::Optional, secrets);
        let config_maps = self.watch::<MetadataOnly<ConfigMap>>("ConfigMaps", Need::Optional, Default::default());
        let accounts = self.watch::<MetadataOnly<ServiceAccount>>("source ServiceAccounts", Need::Optional, accounts);
        stream::select_all([
            known.sources().changes(secrets.applied_objects(), ReferenceKind::Secret).boxed(),
            known.sources().changes(config_maps.applied_objects(), ReferenceKind::ConfigMap).boxed(),
            known.sources().changes(accounts.applied_objects(), ReferenceKind::ServiceAccount).boxed(),
        ])
    }

    fn context(&self, known: &Known, runs: TaskTracker, ended: UnboundedSender<ObjectRef<Kept>>) -> Context {
        Context {
            runner: self.runner.clone(),
            concurrency: self.concurrency.clone(),
            peers: self.peers.clone(),
            stop: self.stop.clone(),
            caches: known.caches.clone(),
            secrets: known.secrets.clone(),
            secrets_listed: known.secrets_listed.clone(),
            runs,
            ended,
            recovery: self.recovery.clone(),
        }
    }
}

/// What the watches of one scope know together.
struct Known {
    caches: Store<Kept>,
    notes: Notes,
    /// The objects that each TokenCache refers to.
    references: References,
    /// The Secret that each TokenCache writes.
    targets: References,
    secrets: Secrets,
    caches_listed: Listed,
    secrets_listed: Listed,
}

impl Known {
    fn sources(&self) -> Sources {
        Sources { caches: self.caches.clone(), notes: self.notes.clone(), index: self.references.clone() }
    }
}

/// Whether the first list of a watch has arrived. Cloning shares it. Not `Store::wait_until_ready`: kube wakes only one
/// of several that wait.
#[derive(Clone, Default)]
pub(super) struct Listed(Arc<SetOnce<()>>);

impl Listed {
    fn set(&self) {
        // Later lists change nothing.
        let _ = self.0.set(());
    }

    /// Waits for the first list.
    pub(super) async fn wait(&self) {
        self.0.wait().await;
    }
}

/// Calls a function after each list, when the store holds it.
fn on_list<K>(mut then: impl FnMut()) -> impl FnMut(&Event<K>) {
    move |event| {
        if matches!(event, Event::InitDone) {
            then();
        }
    }
}

/// After an error, kube's controller heeds nothing for a while, not even the end of a run: the longer, the more of them
/// came in a row. The watches wait by themselves, and say what broke them.
fn is_no_error<K>(event: &watcher::Result<K>) -> future::Ready<bool> {
    future::ready(event.is_ok())
}

pub(super) fn key(object: &impl Resource) -> ObjectKey {
    let metadata = object.meta();
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// The TokenCaches that a Secret concerns: its owner, and those that would write it if it were not somebody else's. One
/// of the Secret's own name may not exist; kube's controller passes over it. Those that a run keeps from being looked at
/// are looked at when it ends.
fn concerned(secret: &SecretMeta, targets: &References, notes: &Notes) -> Vec<ObjectRef<Kept>> {
    let namespace = secret.namespace().unwrap_or_default();
    let mut names = targets.to(&namespace, &secret_named(&secret.name_any()));
    names.extend(owner_of(secret.meta()));
    names.push(secret.name_any());
    names.sort_unstable();
    names.dedup();
    let keys = names.into_iter().map(|name| (namespace.clone(), name));
    keys.filter(|key| notes.may_look(key)).map(|key| at(&key)).collect()
}

/// The name of the TokenCache that owns a Secret.
pub(super) fn owner_of(secret: &ObjectMeta) -> Option<String> {
    controlling_token_cache(secret).map(|owner| owner.name.clone())
}

fn secret_event(event: &Event<SecretMeta>, notes: &Notes) {
    let (object, version) = match event {
        Event::Apply(object) | Event::InitApply(object) => (object, object.meta().resource_version.as_deref()),
        Event::Delete(object) => (object, None),
        Event::Init | Event::InitDone => return,
    };
    if let Some(owner) = owner_of(object.meta()) {
        let key = (object.namespace().unwrap_or_default(), owner);
        notes.with_known(&key, |note| note.watched(object.meta(), version));
    }
}

/// What wakes those that wait for an object that they refer to.
#[derive(Clone)]
struct Sources {
    caches: Store<Kept>,
    notes: Notes,
    index: References,
}

impl Sources {
    /// The TokenCaches that stand still because of objects that change.
    fn changes<K: Resource<DynamicType = ()> + Send>(
        self,
        objects: impl futures::Stream<Item = Result<K, watcher::Error>> + Send,
        kind: ReferenceKind,
    ) -> impl futures::Stream<Item = ObjectRef<Kept>> + Send {
        let objects = objects.filter_map(|object| future::ready(object.ok()));
        objects.flat_map(move |object| stream::iter(self.changed(kind, &object)))
    }

    /// The TokenCaches that stand still because of an object that has now changed; they may try again at once.
    fn changed(&self, kind: ReferenceKind, object: &impl Resource<DynamicType = ()>) -> Vec<ObjectRef<Kept>> {
        let namespace = object.namespace().unwrap_or_default();
        let waiting = self.index.to(&namespace, &Reference { kind, name: object.name_any() });
        if waiting.is_empty() {
            return Vec::new();
        }
        let change = SourceChange::newest(object.meta());
        let waits = |name: String| {
            let key = (namespace.clone(), name);
            let at = at(&key);
            let status = self.caches.get(&at)?.read().ok()?.status.unwrap_or_default();
            let failure = status.last_failure.as_ref().filter(|_| status.failures > 0);
            let failed = failure.map(|failure| failure.reason.as_str());
            let helps = self.notes.with(&key, |note| note.source_changed(change, status.runs, failed));
            helps.then_some(at)
        };
        waiting.into_iter().filter_map(waits).collect()
    }
}

/// Logs what breaks a watch; a controller that is not ready yet tells its probe as well.
fn log_watch(what: &'static str, readiness: &Readiness) -> impl FnMut(&watcher::Error) + use<> {
    let readiness = readiness.clone();
    move |error| {
        let error = watch_message(error);
        tracing::warn!(error, "watch on {what} failed, retrying");
        readiness.send_if_modified(|waiting| match waiting {
            Some(waiting) => {
                *waiting = format!("{what} cannot be watched: {error}");
                true
            }
            None => false,
        });
    }
}
