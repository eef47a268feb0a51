//! Who asks for a new value gets one, and many who ask at once cost one run.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Scene, SecretView as _, pass, scenario,
    server::{Behaviour, Gate},
    version, within,
};

fn lazy() -> Value {
    json!({"refresh": {"policy": "Lazy"}})
}

fn has_run(times: i64) -> impl Fn(&TokenCache) -> bool {
    move |cache| cache.seen().runs >= times
}

#[test]
fn a_lazy_cache_fetches_nothing_until_somebody_asks() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", lazy()).await;
        let cache = scene.ns.await_ready("a", false, "Cleared").await;
        assert_eq!((cache.seen().runs, cache.stalled()), (0, None));
        // What was created later is ready, so this one was not merely late.
        scene.ready_cache("eager", json!({})).await;
        assert_eq!(scene.server.requests("a"), 0);
        assert!(scene.ns.api::<Secret>().get_opt("a").await.expect("an answer").is_none());

        scene.ns.request_by_status("a", "2026-01-02T03:04:05Z").await;
        let cache = scene.ns.await_cache("a", "one run", has_run(1)).await;
        assert!(cache.is(true, "Fetched"), "{:?}", cache.ready());
        assert_eq!((cache.seen().runs, cache.seen().refresh_requested), (1, None));
        assert_eq!(cache.seen().refresh_at, None, "no refresh is planned");
        assert_eq!(scene.server.issued("a"), [scene.secret("a").await.token()]);
    });
}

#[test]
fn a_lazy_value_that_expired_stays_so_until_somebody_asks() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(crate::support::server::Expiry::In(3)));
        scene.cache("a", lazy()).await;
        scene.ns.request_by_status("a", "2026-01-02T03:04:05Z").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        scene.ns.await_ready("a", false, "Expired").await;
        scene.ns.await_event("a", "Expired").await;
        pass(Duration::from_secs(2)).await;
        assert_eq!(scene.server.requests("a"), 1);

        scene.server.set("a", Behaviour::Default);
        scene.ns.request_by_status("a", "2026-01-02T03:05:05Z").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.requests("a"), 2);
    });
}

#[test]
fn the_annotation_asks_for_one_run_and_the_run_notes_its_value() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let before = scene.secret("a").await;

        scene.ns.request("a", "deploy 7").await;
        let cache = scene.ns.await_cache("a", "a second run", has_run(2)).await;
        assert_eq!(cache.seen().handled_request.as_deref(), Some("deploy 7"));
        let after = scene.secret("a").await;
        assert_ne!(before.token(), after.token());
        assert_eq!(scene.server.issued("a").last(), Some(&after.token()));

        // The same value again asks for nothing, and neither does its removal.
        scene.ns.request("a", "deploy 7").await;
        scene.ns.patch::<TokenCache>("a", json!({"metadata": {"annotations": null}})).await;
        scene.ready_cache("later", json!({})).await;
        assert_eq!(scene.server.requests("a"), 2);
        assert_eq!(version(&scene.secret("a").await), version(&after));
    });
}

#[test]
fn the_status_asks_for_one_run_and_the_run_clears_it() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        scene.ns.request_by_status("a", "2026-01-02T03:04:05Z").await;
        let cache = scene.ns.await_cache("a", "a second run", has_run(2)).await;
        assert_eq!(cache.seen().refresh_requested, None);
        assert_eq!(cache.seen().handled_request, None);
        scene.ready_cache("later", json!({})).await;
        assert_eq!(scene.server.requests("a"), 2);
    });
}

#[test]
fn fifty_who_ask_at_once_cost_no_more_than_two_runs() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", lazy()).await;
        scene.ns.await_ready("a", false, "Cleared").await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
        let ask = |n: usize| {
            let (ns, at) = (&scene.ns, format!("2026-01-02T03:04:{n:02}Z"));
            async move { ns.request_by_status("a", &at).await }
        };
        join_all((0..25).map(ask)).await;
        within("the run begins", scene.server.await_requests("a", 1)).await;
        join_all((25..50).map(ask)).await;
        gate.open();
        let answered = |cache: &TokenCache| cache.seen().refresh_requested.is_none() && cache.is(true, "Fetched");
        scene.ns.await_cache("a", "all are answered", answered).await;
        scene.ready_cache("later", json!({})).await;
        let cache: TokenCache = scene.ns.get("a").await;
        assert_eq!(cache.seen().refresh_requested, None);
        assert!(cache.seen().runs <= 2 && scene.server.requests("a") <= 2, "{} runs", cache.seen().runs);
        assert_eq!(scene.server.in_flight_max("a"), 1);
    });
}

#[test]
fn a_request_of_a_lazy_cache_is_tried_again_until_there_is_a_value() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Status(500, Vec::new(), String::new()));
        scene.cache("a", lazy()).await;
        scene.ns.await_ready("a", false, "Cleared").await;
        scene.ns.request_by_status("a", "2026-01-02T03:04:05Z").await;
        let cache = scene.ns.await_cache("a", "one failed run", has_run(1)).await;
        assert_eq!(cache.last_failure(), "ServerError");
        within("it is tried again", scene.server.await_requests("a", 3)).await;
        scene.server.set("a", Behaviour::Default);
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn a_request_that_failed_while_a_lazy_value_was_valid_is_not_tried_again_when_that_is_gone() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", lazy()).await;
        scene.ns.request_by_status("a", "2026-01-02T03:04:05Z").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        scene.server.set("a", Behaviour::Status(500, Vec::new(), String::new()));
        scene.ns.request_by_status("a", "2026-01-02T03:05:05Z").await;
        scene.ns.await_cache("a", "one failed run", has_run(2)).await;
        scene.server.set("a", Behaviour::Default);
        scene.ns.delete::<Secret>("a").await;
        scene.ns.await_ready("a", false, "Cleared").await;
        scene.ready_cache("later", json!({})).await;
        assert_eq!(scene.server.requests("a"), 2);
        scene.ns.request_by_status("a", "2026-01-02T03:06:05Z").await;
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn an_annotation_changed_during_the_run_stays_open_and_gets_a_run_of_its_own() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
        scene.ns.request("a", "first").await;
        within("the run begins", scene.server.await_requests("a", 2)).await;
        scene.ns.request("a", "second").await;
        gate.open();
        let answered = |cache: &TokenCache| cache.seen().handled_request.as_deref() == Some("second");
        let cache = scene.ns.await_cache("a", "the second request is answered", answered).await;
        assert_eq!(cache.seen().runs, 3);
        assert_eq!(scene.server.requests("a"), 3);
    });
}

#[test]
fn a_deleted_secret_comes_back_by_itself_where_the_policy_is_eager() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let first = scene.secret("a").await;
        scene.ns.delete::<Secret>("a").await;
        let second =
            scene.ns.await_secret("a", "a new Secret", |secret| secret.metadata.uid != first.metadata.uid).await;
        assert_ne!(second.token(), first.token());
        scene.ns.await_event("a", "Cleared").await;
        scene.ns.await_cache("a", "two runs", has_run(2)).await;
        assert_eq!(scene.server.requests("a"), 2);
    });
}

#[test]
fn a_deleted_secret_stays_away_until_somebody_asks_where_the_policy_is_lazy() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", lazy()).await;
        scene.ns.request_by_status("a", "2026-01-02T03:04:05Z").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        scene.ns.delete::<Secret>("a").await;
        scene.ns.await_ready("a", false, "Cleared").await;
        scene.ns.await_event("a", "Cleared").await;
        scene.ready_cache("later", json!({})).await;
        assert!(scene.ns.api::<Secret>().get_opt("a").await.expect("an answer").is_none());
        scene.ns.request_by_status("a", "2026-01-02T03:05:05Z").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.requests("a"), 2);
    });
}
