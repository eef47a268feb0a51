//! What the controller asks of the API server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokencache::api::TokenCache;

use super::client::lazy;
use crate::support::{
    CacheView as _, Controller, Invariant, Launch, Metrics, Namespace, Scene,
    manifests::token_cache,
    pass, scenario,
    server::{Behaviour, Expiry, Options},
    version,
};

const MANY: usize = 200;

/// Traces of so many objects would tell nobody anything, and cost time.
fn quiet() -> Launch<'static> {
    Launch { log: "info", ..Launch::default() }
}

async fn versions(ns: &Namespace) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    for secret in ns.list::<Secret>().await {
        versions.insert(format!("Secret {}", secret.name_any()), version(&secret));
    }
    for cache in ns.list::<TokenCache>().await {
        versions.insert(format!("TokenCache {}", cache.name_any()), version(&cache));
    }
    for lease in ns.list::<Lease>().await {
        versions.insert(format!("Lease {}", lease.name_any()), version(&lease));
    }
    versions
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("a{n}")).collect()
}

async fn create_all(scene: &Scene, names: &[String]) {
    join_all(names.iter().map(|name| scene.cache(name, json!({})))).await;
}

/// The requests of each verb and resource between two looks.
fn difference(before: &Metrics, after: &Metrics) -> String {
    let lines = |metrics: &Metrics| {
        let lines = metrics.0.lines().filter(|line| line.starts_with("tokencache_api_requests_total"));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect::<BTreeMap<_, _>>()
    };
    let (before, after) = (lines(before), lines(after));
    let changed = after.iter().filter(|(series, value)| before.get(*series) != Some(value));
    changed
        .map(|(series, value)| format!("{series}: {:?} to {value}", before.get(series)))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_controller_that_starts_with_200_valid_caches_fetches_and_writes_nothing_and_then_is_still() {
    scenario(async {
        let scene = Scene::with(quiet(), Options::default()).await;
        let names = names(MANY);
        let crowd = "hundreds of first values at once, whose reports wait for their turn";
        let exempt = scene.ns.exempt_each(Invariant::NotReadyWithValue, &names, crowd);
        create_all(&scene, &names).await;
        scene.ns.await_all_ready(&names).await;
        drop(exempt);
        let Scene { controller, server, ns } = scene;
        // By SIGTERM, so that the runs that are going on end, and with them their Leases.
        controller.terminate().await;
        let (before, requests) = (versions(&ns).await, server.all_requests());
        assert_eq!((before.len() >= 3 * MANY, requests), (true, MANY));

        let controller = Controller::launch(&ns, quiet()).await;
        let scene = Scene { controller, server, ns };
        // Time for whatever it might want to do about any of them.
        pass(Duration::from_secs(5)).await;
        let started = scene.controller.metrics().await;
        assert_eq!(started.writes(), 0.0, "{}", started.0);
        assert_eq!(scene.server.all_requests(), requests);
        let after = versions(&scene.ns).await;
        let touched: Vec<_> = before.iter().filter(|(name, version)| after.get(*name) != Some(version)).collect();
        assert!(touched.is_empty() && after.len() == before.len(), "{touched:?}");

        pass(Duration::from_secs(10)).await;
        let idle = scene.controller.metrics().await;
        let requests = (idle.writes() - started.writes(), idle.reads() - started.reads());
        assert_eq!(requests, (0.0, 0.0), "while nothing happens:\n{}", difference(&started, &idle));

        // And yet it is awake.
        scene.ready_cache("later", json!({})).await;
    });
}

#[test]
fn an_eager_refresh_costs_at_most_four_writes_and_one_read() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(100)));
        // Refreshed every eight seconds: long enough to look in between, when all of the last one is done.
        scene.cache("a", json!({"refresh": {"renewBefore": "92s"}})).await;
        let runs = |times: i64| move |cache: &TokenCache| cache.seen().runs >= times;
        // The first refresh may cost more: what is asked once is asked then.
        scene.ns.await_cache("a", "the first refresh", runs(2)).await;
        pass(Duration::from_secs(3)).await;
        let before = scene.controller.metrics().await;
        assert_eq!(scene.ns.get::<TokenCache>("a").await.seen().runs, 2, "the machine is too slow to look in between");
        scene.ns.await_cache("a", "the second refresh", runs(3)).await;
        pass(Duration::from_secs(3)).await;
        let after = scene.controller.metrics().await;
        assert_eq!(scene.ns.get::<TokenCache>("a").await.seen().runs, 3, "the machine is too slow to look in between");

        let (writes, reads) = (after.writes() - before.writes(), after.reads() - before.reads());
        let difference = difference(&before, &after);
        println!("one refresh: {writes} writes, {reads} reads\n{difference}");
        assert!((3.0..=4.0).contains(&writes), "{writes} writes:\n{difference}");
        // That of the client's secret.
        assert!(reads <= 1.0, "{reads} reads:\n{difference}");
        assert_eq!(scene.server.requests("a"), 3);
    });
}

/// With a TokenCache that has run once, because it was asked to, and whose Lease is free.
async fn scene_with_one_that_has_run() -> Scene {
    let scene = Scene::new().await;
    scene.ns.create::<TokenCache>(token_cache("a", &scene.server, lazy())).await;
    scene.ns.request("a", "1").await;
    scene.ns.await_cache("a", "it has run", |cache| cache.seen().runs == 1).await;
    scene.ns.await_free_lease("a").await;
    scene
}

#[test]
fn a_lease_that_somebody_else_has_had_since_is_read_and_not_written_in_vain() {
    scenario(async {
        let scene = scene_with_one_that_has_run().await;
        // As another replica would have left both.
        scene.ns.patch::<Lease>("tokencache-a", json!({"metadata": {"labels": {"example.com/had": "it"}}})).await;
        let change = Patch::Merge(json!({"status": {"lastRunBy": "another"}}));
        let patched = scene.ns.api::<TokenCache>().patch_status("a", &PatchParams::default(), &change).await;
        patched.expect("a status");
        // The controller has seen this, and with it all that came before.
        scene.ready_cache("later", json!({})).await;
        scene.ns.await_free_lease("later").await;

        let before = scene.controller.metrics().await;
        scene.ns.request("a", "2").await;
        scene.ns.await_cache("a", "it has run again", |cache| cache.seen().runs == 2).await;
        scene.ns.await_free_lease("a").await;
        let after = scene.controller.metrics().await;
        let sent = |verb: &str| after.requests(verb, "leases") - before.requests(verb, "leases");
        assert_eq!((sent("get"), sent("update")), (1.0, 2.0), "{}", difference(&before, &after));
    });
}

#[test]
fn a_lease_that_was_found_held_is_not_read_again_at_each_change_of_its_object() {
    scenario(async {
        let scene = scene_with_one_that_has_run().await;
        let held_by = |holder: &str| json!({"spec": {"holderIdentity": holder, "leaseDurationSeconds": 600}});
        scene.ns.patch::<Lease>("tokencache-a", held_by("another_1_1")).await;
        let (before, begun) = (scene.controller.metrics().await, Instant::now());
        let changes = 5;
        for change in 0..changes {
            scene.ns.request("a", &format!("held {change}")).await;
            // The controller has seen this, and with it all that came before.
            scene.ready_cache(&format!("later{change}"), json!({})).await;
        }
        let after = scene.controller.metrics().await;
        let taken = begun.elapsed().as_secs() / 5;
        let reads = after.requests("get", "leases") - before.requests("get", "leases");
        assert!(taken < changes - 2, "the machine is too slow to tell");
        // By the first it was found held, after the write in vain as it was left; then once in five seconds.
        assert!(reads <= 1.0 + taken as f64, "{reads} reads:\n{}", difference(&before, &after));
        scene.ns.patch::<Lease>("tokencache-a", held_by("")).await;
        scene.ns.await_cache("a", "it has run again", |cache| cache.seen().runs == 2).await;
    });
}

#[test]
fn twenty_caches_whose_server_hangs_do_not_delay_two_hundred_others() {
    scenario(async {
        let scene = Scene::with(quiet(), Options::default()).await;
        // An address of its own, as a server that hangs has.
        let hanging_options = Options {
            listen: ([127, 0, 0, 2], 0).into(),
            client_id: scene.server.options().client_id.clone(),
            client_secret: scene.server.options().client_secret.clone(),
            ..Options::default()
        };
        let hanging = crate::support::server::TokenServer::start(hanging_options).expect("a server");
        for n in 0..20 {
            let name = format!("hanging{n}");
            hanging.set(&name, Behaviour::Hang);
            // So long that whatever waits for them does not come at all.
            let fetch = json!({"timeout": "10m", "oauth2": {"tokenUrl": hanging.url(&name)}});
            scene.cache(&name, json!({"fetch": fetch})).await;
        }
        crate::support::within("the hanging server is busy", hanging.await_requests("hanging0", 1)).await;
        let start = Instant::now();
        let names = names(MANY);
        let crowd = "hundreds of first values at once, whose reports wait for their turn";
        let exempt = scene.ns.exempt_each(Invariant::NotReadyWithValue, &names, crowd);
        create_all(&scene, &names).await;
        scene.ns.await_all_ready(&names).await;
        drop(exempt);
        println!("{MANY} caches were ready after {:?}", start.elapsed());
        let stuck: TokenCache = scene.ns.get("hanging0").await;
        assert!(!stuck.ready().0);
    });
}

#[test]
fn many_failing_caches_do_not_keep_the_api_server_busy() {
    scenario(async {
        let scene = Scene::with(quiet(), Options::default()).await;
        let names = names(20);
        for name in &names {
            scene.server.set(name, Behaviour::Status(500, Vec::new(), String::new()));
            scene.cache(name, json!({"retry": {"initialInterval": "1h", "maxInterval": "1h"}})).await;
        }
        for name in &names {
            scene.ns.await_ready(name, false, "FetchFailed").await;
        }
        pass(Duration::from_secs(3)).await;
        let before = scene.controller.metrics().await;
        pass(Duration::from_secs(5)).await;
        let after = scene.controller.metrics().await;
        let requests = (after.writes() - before.writes(), after.reads() - before.reads());
        assert_eq!(requests, (0.0, 0.0), "while all wait:\n{}", difference(&before, &after));
    });
}
