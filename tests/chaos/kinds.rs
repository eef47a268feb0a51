//! TokenCaches of further kinds beside the others: lazy ones, rotating refresh tokens, values that are removed when they
//! expire, a changing `target.name`, and a client that keeps changing labels. All faults reach them as well.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_REFRESH_REQUESTED, LABEL_MANAGED},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    population::patch,
    world::{LIFETIME, RENEW_BEFORE, RETRY, TIMEOUT, World},
};
use crate::support::{
    CacheView as _, faketime,
    manifests::{merge, token_cache},
    opened, tokencache, tokencache_at,
};

/// Has a value only after a consumer has requested it.
const LAZY: &str = "lazy";
/// Uses a refresh token, of which the server gives another one each time and voids the one before.
const ROTATING: &str = "rotating";
/// Its expired Secret is removed.
const REMOVED: &str = "removed";
/// Its `target.name` changes again and again.
const RENAMED: &str = "renamed";
/// Another client keeps changing a label that its `target` sets.
const RELABELLED: &str = "relabelled";
/// The Secret with the refresh token.
const SESSION: &str = "session";
/// For how long a lazy value that has expired is watched for a fetch that nobody has requested.
const UNASKED: Duration = Duration::from_secs(8);
/// How often a client writes its label.
const RELABEL: Duration = Duration::from_millis(500);

/// What others do to the objects of these kinds, until it is ended.
pub struct Kinds {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Kinds {
    /// Creates one object of each kind, and begins to trouble them.
    pub async fn begin(world: &Arc<World>) -> Self {
        let session = opened(SESSION, json!({"token": world.server.sign_in(ROTATING)}));
        world.ns.create::<Secret>(session).await;
        let reference = json!({"name": SESSION, "key": "token"});
        let grant = json!({"fetch": {"oauth2": {"grant": "RefreshToken", "refreshTokenRef": reference}}});
        create(world, LAZY, json!({"refresh": {"policy": "Lazy", "renewBefore": null}})).await;
        create(world, ROTATING, grant).await;
        create(world, REMOVED, json!({"target": {"expiredPolicy": "Delete"}})).await;
        create(world, RENAMED, json!({})).await;
        create(world, RELABELLED, json!({"target": {"labels": {"example.com/team": "blue"}}})).await;
        let mut kinds = Self { stop: Arc::default(), tasks: JoinSet::new() };
        kinds.again_and_again(world, Duration::from_secs(4), |world, turn| async move {
            // Of a consumer, whatever its clock says.
            let clock = ["+10m", "-10m"][turn % 2];
            fetch_lazy(&world, clock, "5s").await;
        });
        kinds.again_and_again(world, Duration::from_secs(7), |world, turn| async move {
            let change = json!({"spec": {"target": {"name": format!("{RENAMED}-{}", turn % 3)}}});
            patch(&world.ns.api::<TokenCache>(), RENAMED, change).await;
        });
        kinds.again_and_again(world, RELABEL, |world, _| async move {
            let change = json!({"metadata": {"labels": {"example.com/team": "red"}}});
            patch(&world.ns.api::<Secret>(), RELABELLED, change).await;
        });
        // A process that dies between the server's answer and the write loses the token: a person signs in again.
        kinds.again_and_again(world, Duration::from_secs(2), |world, _| async move { sign_in_again(&world).await });
        kinds
    }

    /// Does something every so often, until the end.
    fn again_and_again<F>(
        &mut self,
        world: &Arc<World>,
        pause: Duration,
        act: impl Fn(Arc<World>, usize) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let (world, stop) = (world.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            for turn in 0.. {
                sleep(pause).await;
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                act(world.clone(), turn).await;
            }
        });
    }

    /// Others leave the objects alone from now on.
    pub async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
    }
}

async fn create(world: &World, name: &str, change: Value) {
    let text = |duration: Duration| format!("{}s", duration.as_secs());
    let mut settings = json!({
        "fetch": {"timeout": text(TIMEOUT), "oauth2": {"tokenUrl": world.url(name)}},
        "refresh": {"renewBefore": text(RENEW_BEFORE)},
        "retry": {"initialInterval": "500ms", "maxInterval": text(RETRY)},
    });
    merge(&mut settings, change);
    world.ns.create::<TokenCache>(token_cache(name, &world.server, settings)).await;
}

/// Requests the lazy value as a consumer with such a clock does. Gives why there is none.
async fn fetch_lazy(world: &World, clock: &str, limit: &str) -> Option<String> {
    let arguments = ["fetch", LAZY, "--timeout", limit];
    // Without TLS: a clock that is behind would find the test cluster's certificate not valid yet.
    let (kubeconfig, ns) = (world.ways[0].kubeconfig(), &world.ns.name);
    let ended = match faketime() {
        Some(_) => tokencache_at(clock, kubeconfig, ns, &arguments).await,
        None => tokencache(kubeconfig, ns, &arguments).await,
    };
    (ended.code != 0).then(|| format!("code {} with the clock {clock}: {}", ended.code, ended.stderr))
}

async fn sign_in_again(world: &World) {
    let caches: Api<TokenCache> = world.ns.api();
    let Ok(Ok(cache)) = timeout(TIMEOUT, caches.get(ROTATING)).await else { return };
    if cache.stalled() == Some("ReauthenticationRequired") {
        let token = world.server.sign_in(ROTATING);
        patch(&world.ns.api::<Secret>(), SESSION, json!({"stringData": {"token": token}})).await;
    }
}

/// What is not as it should be, once all is well again and nobody troubles the objects.
pub async fn judge(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for clock in ["+10m", "-10m"] {
        wrong
            .extend(fetch_lazy(world, clock, "30s").await.map(|why| format!("{LAZY}: no value for a consumer: {why}")));
    }
    let before = world.server.requests(LAZY);
    sleep(LIFETIME + UNASKED).await;
    if world.server.requests(LAZY) != before {
        wrong.push(format!("{LAZY}: a value that nobody has requested was fetched"));
    }
    // A family of refresh tokens that is whole goes on.
    sign_in_again(world).await;
    let stamp = json!({"metadata": {"annotations": {ANNOTATION_REFRESH_REQUESTED: "at last"}}});
    world.ns.patch::<TokenCache>(ROTATING, stamp).await;
    let asked = |cache: &TokenCache| cache.seen().handled_request.as_deref() == Some("at last") && cache.ready().0;
    world.ns.await_cache(ROTATING, "the last request brings a value", asked).await;
    for name in [REMOVED, RENAMED, RELABELLED] {
        // Values that live as short as these are renewed all the time: Ready now, or soon.
        world.ns.await_cache(name, "it is Ready", |cache| cache.ready().0).await;
    }
    // What is renewed on time costs a request each few seconds; twice that, and some for the faults, is not a flood.
    let allowed = 2.0 * world.weather.now() / (LIFETIME - RENEW_BEFORE).as_secs_f64() + 20.0;
    let requests = world.server.requests(RELABELLED);
    if requests as f64 > allowed {
        wrong.push(format!("{RELABELLED}: {requests} requests, where {allowed:.0} are allowed"));
    }
    wrong.extend(more_than_one_secret(world).await);
    wrong
}

/// The TokenCaches with more than one managed Secret, that of a state apart.
async fn more_than_one_secret(world: &World) -> Vec<String> {
    let managed = ListParams::default().labels(&format!("{LABEL_MANAGED}=true"));
    let secrets = world.ns.api::<Secret>().list(&managed).await.expect("a list").items;
    let mut owned: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for secret in secrets.iter().filter(|secret| !secret.name_any().ends_with("-state")) {
        let Some(owner) = secret.owner_references().first() else { continue };
        owned.entry(owner.uid.clone()).or_default().push(secret.name_any());
    }
    let many = owned.into_values().filter(|names| names.len() > 1);
    many.map(|names| format!("more than one Secret of a TokenCache: {}", names.join(", "))).collect()
}
