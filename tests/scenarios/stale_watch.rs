//! The watch of Secrets is behind, or brings nothing at all.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    Action, CacheView as _, Controller, FlakyApi, Launch, Scene, When, pass, scenario,
    server::{Behaviour, Expiry, Options},
    version, within,
};

/// The watches of the Secrets that tokencache writes.
fn managed() -> When {
    When::watch("secrets").query("labelSelector=tokencache.dev/managed=true")
}

fn lazy() -> Value {
    json!({"refresh": {"policy": "Lazy"}})
}

/// A scene whose controller goes through the proxy.
async fn through_proxy(rule: Option<Action>) -> (Scene, FlakyApi) {
    let (ns, server) = Scene::stage(Options::default()).await;
    let api = FlakyApi::start(&ns, 0, Default::default()).await;
    if let Some(action) = rule {
        api.always(managed(), action);
    }
    let launch = Launch { kubeconfig: Some(api.kubeconfig()), ..Launch::default() };
    let controller = Controller::launch(&ns, launch).await;
    (Scene { controller, server, ns }, api)
}

/// A second controller behind a proxy, which cannot take Leases: all runs are the first one's.
async fn onlooker(scene: &Scene) -> (Controller, FlakyApi) {
    let api = FlakyApi::start(&scene.ns, 0, Default::default()).await;
    api.always(When::any().path("/leases"), Action::Answer(StatusCode::SERVICE_UNAVAILABLE, "no Leases"));
    let launch = Launch { kubeconfig: Some(api.kubeconfig()), ..Launch::default() };
    (Controller::launch(&scene.ns, launch).await, api)
}

/// Changes something of the object that concerns nobody.
async fn touch(scene: &Scene, name: &str) {
    scene.ns.patch::<TokenCache>(name, json!({"metadata": {"labels": {"touched": "yes"}}})).await;
}

async fn one_that_is_behind_does_not_report_that_the_secret_is_gone(cleared_before: bool) {
    let scene = Scene::new().await;
    let (behind, api) = onlooker(&scene).await;
    scene.cache("a", lazy()).await;
    scene.ns.await_ready("a", false, "Cleared").await;
    if cleared_before {
        scene.ns.request("a", "first").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        scene.ns.delete::<k8s_openapi::api::core::v1::Secret>("a").await;
        scene.ns.await_ready("a", false, "Cleared").await;
    }
    assert_eq!(api.freeze(&managed()), 1);
    scene.ns.request("a", "now").await;
    let ready = scene.ns.await_ready("a", true, "Fetched").await;
    pass(Duration::from_secs(3)).await;
    api.thaw(&managed());
    pass(Duration::from_secs(1)).await;
    let versions = scene.ns.recorder().expect("a scenario is recorded").versions("a", &version(&ready));
    let after: Vec<_> = versions.iter().map(|cache| (cache.ready, cache.reason.as_str())).collect();
    assert!(after.iter().all(|ready| *ready == (Some(true), "Fetched")), "{after:?}");
    assert!(after.len() < 5, "{} versions of the status", after.len());
    drop(behind);
}

#[test]
fn a_replica_whose_watch_is_behind_does_not_report_that_the_secret_is_gone() {
    scenario(one_that_is_behind_does_not_report_that_the_secret_is_gone(false));
}

#[test]
fn a_replica_whose_watch_is_behind_does_not_report_that_the_secret_is_gone_though_it_once_was() {
    scenario(one_that_is_behind_does_not_report_that_the_secret_is_gone(true));
}

#[test]
fn a_replica_whose_watch_is_behind_neither_reports_that_the_value_has_expired_nor_removes_it() {
    scenario(async {
        let scene = Scene::new().await;
        let (behind, api) = onlooker(&scene).await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(10)));
        scene.cache("a", json!({"target": {"expiredPolicy": "Delete"}})).await;
        let first = scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(api.freeze(&managed()), 1);
        let deletes = api.count(When::request(Method::DELETE, "/secrets/a"));
        scene.server.set("a", Behaviour::Default);
        scene.ns.await_cache("a", "a second value", |cache| cache.seen().runs == 2).await;
        let expiry = first.seen().expires_at.and_then(|expiry| expiry.moment()).expect("a time");
        pass((expiry - chrono::Utc::now()).to_std().unwrap_or_default() + Duration::from_secs(4)).await;
        let versions = scene.ns.recorder().expect("a scenario is recorded").versions("a", &version(&first));
        let ready: Vec<_> = versions.iter().map(|cache| cache.ready).collect();
        assert!(!ready.is_empty() && ready.iter().all(|ready| *ready == Some(true)), "{ready:?}");
        assert!(deletes.hits() <= 1, "{} DELETEs", deletes.hits());
        assert!(versions.len() < 5, "{} versions", versions.len());
        drop(behind);
    });
}

#[test]
fn what_a_controller_wrote_itself_is_believed_though_the_watch_never_brings_it() {
    scenario(async {
        let (scene, _api) = through_proxy(Some(Action::Swallow)).await;
        scene.cache("a", lazy()).await;
        scene.ns.request("a", "now").await;
        let ready = scene.ns.await_ready("a", true, "Fetched").await;
        // Longer than a controller waits for a watch to bring its own writes.
        pass(Duration::from_secs(7)).await;
        touch(&scene, "a").await;
        pass(Duration::from_secs(3)).await;
        let now: TokenCache = scene.ns.get("a").await;
        assert_eq!(now.ready(), ready.ready());
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_watch_that_brings_nothing_does_not_cause_runs_that_find_nothing_to_do() {
    scenario(async {
        let (scene, api) = through_proxy(Some(Action::Swallow)).await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(8)));
        scene.ready_cache("a", json!({})).await;
        scene.server.set("a", Behaviour::Default);
        within("a second value", scene.server.await_requests("a", 2)).await;
        pass(Duration::from_secs(7)).await;
        let requests = api.count(When::any());
        touch(&scene, "a").await;
        pass(Duration::from_secs(10)).await;
        assert!(requests.hits() < 10, "{} requests", requests.hits());
        assert_eq!(scene.server.requests("a"), 2);
    });
}

#[test]
fn a_watch_that_is_refused_does_not_delay_refreshes() {
    scenario(async {
        let refused = Action::Answer(StatusCode::INTERNAL_SERVER_ERROR, "no watch today");
        let (scene, api) = through_proxy(Some(refused)).await;
        let refusals = api.count(managed());
        scene.ready_cache("a", json!({})).await;
        // While nothing else happens, the pauses that kube's controller makes after errors become longer and longer.
        refusals.await_hits(5).await;
        let asked = Instant::now();
        scene.ns.request("a", "now").await;
        scene.ns.await_cache("a", "another value", |cache| cache.seen().runs == 2).await;
        assert!(asked.elapsed() < Duration::from_secs(5), "a request waited for {:?}", asked.elapsed());
    });
}
