//! A namespace of a test's own, and waiting for what becomes of the objects in it.

use std::{
    collections::BTreeSet,
    fmt::{Debug, Write as _},
    pin::pin,
    sync::Arc,
};

use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        coordination::v1::Lease,
        core::v1::{Event, Namespace as KubeNamespace, Secret},
        rbac::v1::PolicyRule,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher},
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_DATA_HASH, ANNOTATION_REFRESH_REQUESTED},
};
use tokio::sync::OnceCell;

use super::{
    Cluster, DEADLINE, RECORDERS,
    controller::Log,
    in_background,
    invariants::{Exemption, Invariant, Recorder},
    poll,
    rights::{Account, chart_rules},
    seen::{CacheView as _, holder},
    within,
};

/// What the scenarios work with.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + 'static
{
}

/// A namespace that is deleted when it is dropped.
pub struct Namespace {
    /// Its name.
    pub name: String,
    client: Client,
    logs: Mutex<Vec<(String, Log)>>,
    account: OnceCell<Account>,
    recorder: Option<Arc<Recorder>>,
}

/// The `resourceVersion`: two that are equal say that nobody wrote in between.
pub fn version(object: &impl kube::ResourceExt) -> String {
    object.resource_version().expect("a resourceVersion")
}

impl Namespace {
    /// A new, empty one.
    pub async fn new() -> Self {
        let client = Cluster::get().await.client.clone();
        let name = format!("tc-{:016x}", rand::random::<u64>());
        let mut namespace = Self { name, client, logs: Mutex::default(), account: OnceCell::new(), recorder: None };
        namespace.create_namespace().await;
        // Goes on at once after the API server was away.
        let watching = Cluster::get().await.impatient().await;
        let recorder = RECORDERS.try_with(|recorders| {
            let recorder = Arc::new(Recorder::start(&watching, &namespace.name));
            recorders.lock().push(recorder.clone());
            recorder
        });
        namespace.recorder = recorder.ok();
        namespace
    }

    async fn create_namespace(&self) {
        let namespace = serde_json::from_value(json!({"metadata": {"name": self.name}})).expect("a namespace");
        let namespaces: Api<KubeNamespace> = Api::all(self.client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.expect("the namespace is created");
    }

    /// Deletes it with all that is in it, and creates an empty one of that name.
    pub async fn create_again(&self) {
        let namespaces: Api<KubeNamespace> = Api::all(self.client.clone());
        namespaces.delete(&self.name, &DeleteParams::default()).await.expect("the namespace is deleted");
        let gone = || async { namespaces.get_opt(&self.name).await.expect("an answer").is_none().then_some(()) };
        within("the namespace is gone", poll(gone)).await;
        self.create_namespace().await;
    }

    /// What records it, in a scenario.
    pub fn recorder(&self) -> Option<Arc<Recorder>> {
        self.recorder.clone()
    }

    /// The test is about to break an invariant deliberately. It need not hold for this TokenCache until what this gives
    /// is dropped. `reason` says what the test does that no controller can do anything about.
    #[must_use = "it ends when it is dropped"]
    pub fn exempt(&self, invariant: Invariant, cache: &str, reason: &str) -> Option<Exemption> {
        println!("{cache} is exempt from {invariant:?}: {reason}");
        self.recorder.as_ref().map(|recorder| recorder.exempt(invariant, cache))
    }

    /// The same for several TokenCaches.
    #[must_use = "they end when they are dropped"]
    pub fn exempt_each(&self, invariant: Invariant, caches: &[String], reason: &str) -> Vec<Exemption> {
        println!("{} TokenCaches are exempt from {invariant:?}: {reason}", caches.len());
        let recorder = self.recorder.iter();
        recorder.flat_map(|recorder| caches.iter().map(|cache| recorder.exempt(invariant, cache))).collect()
    }

    /// Its objects of one type.
    pub fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The client, for requests that no method here has.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What its controllers run under: a service account with the chart's own rights, in this namespace and no other.
    pub async fn account(&self) -> &Account {
        // On the heap: the stack of a test's own thread is small in a debug build.
        let create = || Box::pin(Account::controller(&self.client, &self.name, chart_rules()));
        self.account.get_or_init(create).await
    }

    /// Lets its controllers run under other rights than the chart's; to be said before the first of them is started.
    pub async fn grant(&self, rules: Vec<PolicyRule>) {
        let account = Box::pin(Account::controller(&self.client, &self.name, rules)).await;
        assert!(self.account.set(account).is_ok(), "no controller runs yet");
    }

    /// From now on, failures show this log.
    pub fn show_log_of(&self, controller: &str, log: Log) {
        self.logs.lock().push((controller.to_owned(), log));
    }

    /// What all controllers of this namespace have logged so far.
    pub fn logs(&self) -> Vec<(String, String)> {
        let logs = self.logs.lock();
        logs.iter().map(|(controller, log)| (format!("log of {controller}"), log.text())).collect()
    }

    /// Creates an object from its manifest, or says why the API server refused it.
    pub async fn try_create<K: Object>(&self, manifest: Value) -> kube::Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(manifest).expect("an object");
        let resource = ApiResource::erase::<K>(&());
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.name, &resource);
        api.create(&PostParams::default(), &object).await
    }

    /// Creates an object from its manifest.
    pub async fn create<K: Object>(&self, manifest: Value) -> K {
        let created = self.try_create::<K>(manifest).await.unwrap_or_else(|error| panic!("not created: {error}"));
        created.try_parse().expect("what was created")
    }

    /// Reads an object.
    pub async fn get<K: Object>(&self, name: &str) -> K {
        self.api::<K>().get(name).await.unwrap_or_else(|error| panic!("cannot read {name}: {error}"))
    }

    /// All objects of one type.
    pub async fn list<K: Object>(&self) -> Vec<K> {
        self.api::<K>().list(&ListParams::default()).await.expect("a list").items
    }

    /// Changes an object by a merge patch.
    pub async fn patch<K: Object>(&self, name: &str, change: Value) -> K {
        let patched = self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(change)).await;
        patched.unwrap_or_else(|error| panic!("cannot patch {name}: {error}"))
    }

    /// Changes the spec of a TokenCache by a merge patch.
    pub async fn patch_spec(&self, name: &str, change: Value) -> TokenCache {
        self.patch(name, json!({"spec": change})).await
    }

    /// Asks for a new value as people do: by the annotation.
    pub async fn request(&self, name: &str, value: &str) -> TokenCache {
        self.patch(name, json!({"metadata": {"annotations": {ANNOTATION_REFRESH_REQUESTED: value}}})).await
    }

    /// Asks for a new value as consumers do: by a patch of the status.
    pub async fn request_by_status(&self, name: &str, at: &str) -> TokenCache {
        self.patch_status(name, json!({"refreshRequested": at})).await
    }

    /// Changes the status of a TokenCache by a merge patch.
    pub async fn patch_status(&self, name: &str, change: Value) -> TokenCache {
        let change = json!({ "status": change });
        let patched = self.api::<TokenCache>().patch_status(name, &PatchParams::default(), &Patch::Merge(change)).await;
        patched.unwrap_or_else(|error| panic!("cannot patch the status of {name}: {error}"))
    }

    /// Deletes an object.
    pub async fn delete<K: Object>(&self, name: &str) {
        let deleted = self.api::<K>().delete(name, &DeleteParams::default()).await;
        deleted.unwrap_or_else(|error| panic!("cannot delete {name}: {error}"));
    }

    /// Waits until an object is as it should be; `None` is an object that does not exist.
    pub async fn await_object<K: Object>(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(Option<&K>) -> bool,
    ) -> Option<K> {
        let changes = watcher::watch_object(self.api::<K>(), name).default_backoff();
        self.first(changes, name, what, |object| condition(object.as_ref())).await
    }

    /// Waits until a TokenCache is as it should be.
    pub async fn await_cache(&self, name: &str, what: &str, condition: impl Fn(&TokenCache) -> bool) -> TokenCache {
        self.await_object(name, what, |cache: Option<&TokenCache>| cache.is_some_and(&condition))
            .await
            .expect("it exists")
    }

    /// Waits until a Secret is as it should be.
    pub async fn await_secret(&self, name: &str, what: &str, condition: impl Fn(&Secret) -> bool) -> Secret {
        self.await_object(name, what, |secret: Option<&Secret>| secret.is_some_and(&condition))
            .await
            .expect("it exists")
    }

    /// Waits until nobody holds the Lease of a TokenCache.
    pub async fn await_free_lease(&self, name: &str) -> Lease {
        let free = |lease: Option<&Lease>| lease.is_some_and(|lease| holder(lease).is_empty());
        let lease = self.await_object(&format!("tokencache-{name}"), "a Lease that is free", free).await;
        lease.expect("it exists")
    }

    /// Waits until an object is gone.
    pub async fn await_gone<K: Object>(&self, name: &str, what: &str) {
        self.await_object(name, what, |object: Option<&K>| object.is_none()).await;
    }

    /// Waits until Ready has this status and reason.
    pub async fn await_ready(&self, name: &str, ready: bool, reason: &str) -> TokenCache {
        let what = format!("Ready is {ready} with the reason {reason}");
        self.await_cache(name, &what, |cache| cache.is(ready, reason)).await
    }

    /// Waits until all of these are Ready. The deadline begins anew with each that is: many take a busy machine long,
    /// but those that are stuck do not come at all.
    pub async fn await_all_ready(&self, names: &[String]) {
        let changes = watcher(self.api::<TokenCache>(), watcher::Config::default()).applied_objects().default_backoff();
        let mut missing: BTreeSet<String> = names.iter().cloned().collect();
        let ready = changes.filter_map(async |cache| cache.ok().filter(|cache| cache.ready().0));
        let mut ready = pin!(ready.map(|cache| cache.name_any()));
        while let Some(name) = missing.first().cloned() {
            let next = async { while ready.next().await.is_some_and(|name| !missing.remove(&name)) {} };
            if tokio::time::timeout(DEADLINE, next).await.is_err() {
                self.fail(&name, &format!("it and {} others are Ready", missing.len() - 1)).await;
            }
        }
    }

    /// Waits for an event with this reason on a TokenCache.
    pub async fn await_event(&self, name: &str, reason: &str) -> Event {
        let what = format!("an event {reason}");
        let config = watcher::Config::default().fields(&format!("involvedObject.name={name}"));
        let events = watcher(self.api::<Event>(), config).applied_objects().default_backoff();
        self.first(events, name, &what, |event: &Event| event.reason.as_deref() == Some(reason)).await
    }

    /// The events on a TokenCache.
    pub async fn events(&self, name: &str) -> Vec<Event> {
        let events = ListParams::default().fields(&format!("involvedObject.name={name}"));
        self.api::<Event>().list(&events).await.expect("a list").items
    }

    async fn first<T>(
        &self,
        changes: impl Stream<Item = watcher::Result<T>>,
        name: &str,
        what: &str,
        condition: impl Fn(&T) -> bool,
    ) -> T {
        // An error of a watch is no news: the watcher goes on by itself.
        let good =
            changes.filter_map(async |change| change.ok()).filter(|object| std::future::ready(condition(object)));
        let mut good = pin!(good);
        match tokio::time::timeout(DEADLINE, good.next()).await {
            Ok(Some(object)) => object,
            Ok(None) | Err(_) => self.fail(name, what).await,
        }
    }

    /// Ends the test with all that can be known about one TokenCache.
    pub async fn fail(&self, name: &str, what: &str) -> ! {
        let mut text = format!("{name} in {}: not within {DEADLINE:?}: {what}\n", self.name);
        if let Ok(cache) = self.api::<TokenCache>().get(name).await {
            show(&mut text, "the TokenCache", json!({"metadata": cache.metadata, "status": cache.seen()}));
        }
        for secret in self.list::<Secret>().await {
            if secret.annotations().contains_key(ANNOTATION_DATA_HASH) {
                show(&mut text, "a Secret", json!(secret.metadata));
            }
        }
        if let Ok(lease) = self.api::<Lease>().get(&format!("tokencache-{name}")).await {
            show(&mut text, "the Lease", json!(lease));
        }
        for event in self.events(name).await {
            let note = (event.type_, event.reason, event.message, event.series.and_then(|series| series.count));
            let _ = writeln!(text, "event: {note:?}");
        }
        for (controller, log) in self.logs() {
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains(r#""level":"TRACE""#)).collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            let _ = writeln!(text, "--- {controller}, its end:\n{tail}");
        }
        panic!("{text}");
    }
}

fn show(text: &mut String, what: &str, mut object: Value) {
    for path in ["/managedFields", "/metadata/managedFields"] {
        if let Some(fields) = object.pointer_mut(path) {
            *fields = Value::Null;
        }
    }
    let _ = writeln!(text, "--- {what}:\n{}", serde_saphyr::to_string(&object).unwrap_or_default());
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.recorder.iter().for_each(|recorder| recorder.finish());
        let (namespaces, name) = (Api::<KubeNamespace>::all(self.client.clone()), self.name.clone());
        in_background(async move {
            // A cluster that is about to be taken down need not be clean.
            let _ = namespaces.delete(&name, &DeleteParams::background()).await;
        });
    }
}
