//! TokenCaches of further kinds beside the others: lazy ones, rotating refresh tokens, values that are removed when they
//! expire, a changing `target.name`, a client that keeps changing labels, and jobs (`jobs.rs`). All faults reach them as
//! well.

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
    jobs,
    population::{manifest, patch},
    rhythm::SHORT,
    world::{TIMEOUT, World},
};
use crate::support::{CacheView as _, DEADLINE, faketime, opened, poll, tokencache, tokencache_at};

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
/// All of these.
const KINDS: [&str; 5] = [LAZY, ROTATING, REMOVED, RENAMED, RELABELLED];
/// For how long a lazy value that has expired is watched for a fetch that nobody has requested.
const UNASKED: Duration = Duration::from_secs(8);
/// How often a client writes its label.
const RELABEL: Duration = Duration::from_millis(500);
/// There is one consumer's process in this time at most.
const CONSUMER: Duration = Duration::from_secs(1);

/// How many of each kind there are beside so many TokenCaches.
fn each(caches: usize) -> usize {
    caches.div_ceil(10)
}

fn named(kind: &str, caches: usize) -> Vec<String> {
    (0..each(caches)).map(|index| format!("{kind}-{index}")).collect()
}

/// The names of all that there are beside so many TokenCaches.
pub fn names(caches: usize) -> Vec<String> {
    KINDS.iter().flat_map(|kind| named(kind, caches)).chain(jobs::names(each(caches))).collect()
}

/// The Secret with the refresh token of a TokenCache.
fn session(name: &str) -> String {
    format!("session-{name}")
}

/// What others do to the objects of these kinds, until it is ended.
pub struct Kinds {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
    caches: usize,
    kubelet: jobs::Kubelet,
}

impl Kinds {
    /// Creates the objects, and begins to trouble them.
    pub async fn begin(world: &Arc<World>, caches: usize) -> Self {
        let kubelet = jobs::begin(world, &jobs::names(each(caches))).await;
        let mut kinds = Self { stop: Arc::default(), tasks: JoinSet::new(), caches, kubelet };
        let pause = Duration::from_secs(4).max(CONSUMER * u32::try_from(each(caches)).unwrap_or(u32::MAX));
        for name in named(LAZY, caches) {
            create(world, &name, json!({"refresh": {"policy": "Lazy", "renewBefore": null}})).await;
            kinds.again_and_again(world, &name, pause, |world, name, turn| async move {
                // Of a consumer, whatever its clock says.
                let clock = ["+10m", "-10m"][turn % 2];
                fetch_lazy(&world, &name, clock, "5s").await;
            });
        }
        for name in named(ROTATING, caches) {
            let token = opened(&session(&name), json!({"token": world.server.sign_in(&name)}));
            world.ns.create::<Secret>(token).await;
            let reference = json!({"name": session(&name), "key": "token"});
            let grant = json!({"fetch": {"oauth2": {"grant": "RefreshToken", "refreshTokenRef": reference}}});
            create(world, &name, grant).await;
            // A process that dies between the server's answer and the write loses the token: a person signs in again.
            kinds.again_and_again(world, &name, Duration::from_secs(2), |world, name, _| async move {
                sign_in_again(&world, &name).await;
            });
        }
        for name in named(REMOVED, caches) {
            create(world, &name, json!({"target": {"expiredPolicy": "Delete"}})).await;
        }
        for name in named(RENAMED, caches) {
            create(world, &name, json!({})).await;
            kinds.again_and_again(world, &name, Duration::from_secs(7), |world, name, turn| async move {
                let change = json!({"spec": {"target": {"name": format!("{name}-{}", turn % 3)}}});
                patch(&world.ns.api::<TokenCache>(), &name, change).await;
            });
        }
        for name in named(RELABELLED, caches) {
            create(world, &name, json!({"target": {"labels": {"example.com/team": "blue"}}})).await;
            kinds.again_and_again(world, &name, RELABEL, |world, name, _| async move {
                let change = json!({"metadata": {"labels": {"example.com/team": "red"}}});
                patch(&world.ns.api::<Secret>(), &name, change).await;
            });
        }
        kinds
    }

    /// Does something to a TokenCache every so often, until the end.
    fn again_and_again<F>(
        &mut self,
        world: &Arc<World>,
        name: &str,
        pause: Duration,
        act: impl Fn(Arc<World>, String, usize) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let (world, name, stop) = (world.clone(), name.to_owned(), self.stop.clone());
        self.tasks.spawn(async move {
            for turn in 0.. {
                sleep(pause).await;
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                act(world.clone(), name.clone(), turn).await;
            }
        });
    }

    /// Others leave the objects alone from now on.
    pub async fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
    }

    /// What is not as it should be, once all is well again and nobody troubles the objects.
    pub async fn judge(&self, world: &World) -> Vec<String> {
        let named = |kind: &str| named(kind, self.caches);
        let mut wrong = judge_lazy(world, &named(LAZY)).await;
        for name in named(ROTATING) {
            // A family of refresh tokens that is whole goes on.
            sign_in_again(world, &name).await;
            let stamp = json!({"metadata": {"annotations": {ANNOTATION_REFRESH_REQUESTED: "at last"}}});
            world.ns.patch::<TokenCache>(&name, stamp).await;
            let asked =
                |cache: &TokenCache| cache.seen().handled_request.as_deref() == Some("at last") && cache.ready().0;
            wrong.extend(missed(world, &name, "the last request brings no value", asked).await);
        }
        for name in [REMOVED, RENAMED, RELABELLED].into_iter().flat_map(named) {
            // Values that live as short as these are renewed all the time: Ready now, or soon.
            wrong.extend(missed(world, &name, "it is not Ready", |cache| cache.ready().0).await);
        }
        // What is renewed on time costs a request each few seconds; twice that, and some for the faults, is not a flood.
        let allowed = 2.0 * world.weather.now() / (SHORT.lifetime - SHORT.renew_before).as_secs_f64() + 20.0;
        for name in named(RELABELLED) {
            let requests = world.server.requests(&name);
            if requests as f64 > allowed {
                wrong.push(format!("{name}: {requests} requests, where {allowed:.0} are allowed"));
            }
        }
        wrong.extend(self.kubelet.judge(world, &jobs::names(each(self.caches))).await);
        wrong.extend(not_one_secret(world).await);
        wrong
    }
}

async fn create(world: &World, name: &str, change: Value) {
    world.ns.create::<TokenCache>(manifest(world, name, change)).await;
}

/// Requests the lazy value as a consumer with such a clock does. Gives why there is none.
async fn fetch_lazy(world: &World, name: &str, clock: &str, limit: &str) -> Option<String> {
    let arguments = ["fetch", name, "--timeout", limit];
    // Without TLS: a clock that is behind would find the test cluster's certificate not valid yet.
    let (kubeconfig, ns) = (world.ways[0].kubeconfig(), &world.ns.name);
    let ended = match faketime() {
        Some(_) => tokencache_at(clock, kubeconfig, ns, &arguments).await,
        None => tokencache(kubeconfig, ns, &arguments).await,
    };
    (ended.code != 0).then(|| format!("code {} with the clock {clock}: {}", ended.code, ended.stderr))
}

async fn sign_in_again(world: &World, name: &str) {
    let caches: Api<TokenCache> = world.ns.api();
    let Ok(Ok(cache)) = timeout(TIMEOUT, caches.get(name)).await else { return };
    if cache.stalled() == Some("ReauthenticationRequired") {
        let token = world.server.sign_in(name);
        patch(&world.ns.api::<Secret>(), &session(name), json!({"stringData": {"token": token}})).await;
    }
}

/// Waits until a TokenCache is as it should be. Gives what is wrong where it does not become so.
async fn missed(world: &World, name: &str, what: &str, condition: impl Fn(&TokenCache) -> bool) -> Option<String> {
    let api = world.seen::<TokenCache>();
    let becomes = poll(|| async { api.get(name).await.is_ok_and(|cache| condition(&cache)).then_some(()) });
    timeout(DEADLINE, becomes).await.is_err().then(|| format!("{name}: {what} within {DEADLINE:?}"))
}

async fn judge_lazy(world: &World, names: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    for name in names {
        for clock in ["+10m", "-10m"] {
            let missing = fetch_lazy(world, name, clock, "30s").await;
            wrong.extend(missing.map(|why| format!("{name}: no value for a consumer: {why}")));
        }
    }
    let requests = || names.iter().map(|name| world.server.requests(name));
    let before: Vec<usize> = requests().collect();
    sleep(SHORT.lifetime + UNASKED).await;
    let unasked = names.iter().zip(before).zip(requests()).filter(|((_, before), now)| before != now);
    wrong.extend(unasked.map(|((name, _), _)| format!("{name}: a value that nobody has requested was fetched")));
    wrong
}

/// The TokenCaches that have not exactly one managed Secret, that of a state apart. All of them have a value by now.
async fn not_one_secret(world: &World) -> Vec<String> {
    let managed = ListParams::default().labels(&format!("{LABEL_MANAGED}=true"));
    let secrets = world.ns.api::<Secret>().list(&managed).await.expect("a list").items;
    let mut owned: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for secret in secrets.iter().filter(|secret| !secret.name_any().ends_with("-state")) {
        let Some(owner) = secret.owner_references().first() else { continue };
        owned.entry(owner.uid.clone()).or_default().push(secret.name_any());
    }
    let caches: Vec<TokenCache> = world.ns.list().await;
    let of = |cache: &TokenCache| owned.get(&cache.uid().unwrap_or_default()).cloned().unwrap_or_default();
    let counted = caches.iter().map(|cache| (cache.name_any(), of(cache))).filter(|(_, secrets)| secrets.len() != 1);
    counted.map(|(name, secrets)| format!("{name}: {} Secrets: {}", secrets.len(), secrets.join(", "))).collect()
}
