//! The moment at which a value expires, while nobody can renew it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Controller, Scene, SecretView as _, pass, scenario,
    server::{Behaviour, Expiry},
    within,
};

/// A cache with a value that is to be renewed five seconds after it was fetched, and expires thirteen seconds later: time
/// enough, on a busy machine, to break something before the one and to see what comes of it before the other.
async fn living(mut settings: Value) -> (Scene, DateTime<Utc>) {
    let scene = Scene::new().await;
    scene.server.set("a", Behaviour::Issue(Expiry::In(18)));
    settings["refresh"] = json!({"renewBefore": "13s"});
    scene.cache("a", settings).await;
    let secret = scene.ns.await_secret("a", "the first value", |_| true).await;
    (scene, secret.expires_at())
}

/// The same, and the one attempt to renew it has failed.
async fn dying(target: Value) -> (Scene, DateTime<Utc>) {
    let retry = json!({"initialInterval": "10m", "maxInterval": "10m"});
    let (scene, expires_at) = living(json!({"retry": retry, "target": target})).await;
    scene.server.set("a", Behaviour::Status(503, Vec::new(), String::new()));
    scene.ns.await_ready("a", true, "RefreshFailing").await;
    (scene, expires_at)
}

/// The cache, once Ready has turned False, which has to be at this moment.
async fn await_expired_at(scene: &Scene, expires_at: DateTime<Utc>) -> TokenCache {
    let cache = scene.ns.await_ready("a", false, "Expired").await;
    let seconds = cache.condition("Ready").expect("Ready").last_transition_time.0.as_second();
    let late = DateTime::from_timestamp(seconds, 0).expect("a time") - expires_at;
    assert!((TimeDelta::zero()..=TimeDelta::seconds(2)).contains(&late), "{late} after its expiry");
    cache
}

#[test]
fn ready_turns_false_at_the_moment_of_expiry_though_no_attempt_is_made_then() {
    scenario(async {
        let (scene, expires_at) = dying(json!({})).await;
        let cache = await_expired_at(&scene, expires_at).await;
        assert!(cache.message().contains("ServerError"), "{}", cache.message());
        scene.ns.await_event("a", "Expired").await;
        assert_eq!(scene.server.requests("a"), 2);
        assert_eq!(scene.secret("a").await.expires_at(), expires_at, "by default, the Secret stays");
    });
}

#[test]
fn ready_turns_false_at_the_moment_of_expiry_though_a_fetch_is_going_on() {
    scenario(async {
        let (scene, expires_at) = living(json!({})).await;
        scene.server.set("a", Behaviour::Hang);
        let cache = await_expired_at(&scene, expires_at).await;
        // The run that hangs is still the same one.
        assert_eq!((cache.seen().runs, scene.server.requests("a")), (1, 2));
    });
}

/// Fetches take longer than any test waits: a status that is seen meanwhile is not the report of one that failed.
const LONG_FETCH: fn() -> Value = || json!({"fetch": {"timeout": "10m"}});

#[test]
fn ready_turns_false_during_the_fetch_for_a_value_that_expired_while_no_controller_ran() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(8)));
        scene.ready_cache("a", LONG_FETCH()).await;
        scene.ns.await_free_lease("a").await;
        let Scene { controller, server, ns } = scene;
        controller.kill().await;
        let expires_at = ns.get::<Secret>("a").await.expires_at();
        pass((expires_at - Utc::now() + TimeDelta::seconds(1)).to_std().unwrap_or_default()).await;
        server.set("a", Behaviour::Hang);
        let cache: TokenCache = ns.get("a").await;
        let runs = cache.seen().runs;
        assert!(cache.ready().0, "nobody was there to report it");
        let _controller = Controller::start(&ns, &[]).await;
        let cache = ns.await_ready("a", false, "Expired").await;
        assert_eq!(cache.seen().runs, runs, "the fetch has not ended");
    });
}

#[test]
fn ready_turns_false_during_the_fetch_for_a_secret_that_was_deleted() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", LONG_FETCH()).await;
        scene.server.set("a", Behaviour::Hang);
        scene.ns.delete::<Secret>("a").await;
        let cache = scene.ns.await_ready("a", false, "Pending").await;
        assert_eq!(cache.seen().runs, 1, "the fetch has not ended");
        assert!(cache.message().contains("Fetching a new value"), "{}", cache.message());
    });
}

#[test]
fn ready_turns_false_when_the_secret_is_deleted_during_a_fetch() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", LONG_FETCH()).await;
        scene.server.set("a", Behaviour::Hang);
        scene.ns.request("a", "now").await;
        within("the fetch begins", scene.server.await_requests("a", 2)).await;
        scene.ns.delete::<Secret>("a").await;
        let cache = scene.ns.await_ready("a", false, "Pending").await;
        assert_eq!((cache.seen().runs, scene.server.requests("a")), (1, 2), "the fetch has not ended");
    });
}

#[test]
fn ready_turns_false_at_the_moment_of_expiry_though_one_who_is_dead_holds_the_lease() {
    scenario(async {
        let (scene, expires_at) = living(json!({})).await;
        scene.ns.await_free_lease("a").await;
        let held = json!({"spec": {"holderIdentity": "somebody-dead_0_1", "leaseDurationSeconds": 600}});
        scene.ns.patch::<Lease>("tokencache-a", held).await;
        let cache = await_expired_at(&scene, expires_at).await;
        assert_eq!((cache.seen().runs, scene.server.requests("a")), (1, 1));
    });
}

#[test]
fn an_expired_secret_is_removed_where_the_owner_wants_it() {
    scenario(async {
        let (scene, expires_at) = dying(json!({"expiredPolicy": "Delete"})).await;
        scene.ns.await_gone::<Secret>("a", "the Secret").await;
        assert!(Utc::now() >= expires_at, "not before it expired");
        scene.ns.await_ready("a", false, "Expired").await;
        scene.ns.request("a", "still failing").await;
        within("another attempt", scene.server.await_requests("a", 3)).await;
        scene.server.set("a", Behaviour::Default);
        scene.ns.request("a", "healed").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.issued("a").last(), Some(&scene.secret("a").await.token()));
    });
}

#[test]
fn a_value_that_expired_while_no_controller_ran_is_renewed_by_the_next_one() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(4)));
        scene.cache("a", json!({})).await;
        let first = scene.ns.await_secret("a", "the first value", |_| true).await;
        let Scene { controller, server, ns } = scene;
        controller.terminate().await;
        let left = first.expires_at() - Utc::now();
        pass(left.to_std().unwrap_or_default() + Duration::from_millis(100)).await;
        server.set("a", Behaviour::Default);
        let controller = crate::support::Controller::start(&ns, &[]).await;
        let second = ns.await_secret("a", "a new value", |secret| secret.expires_at() > Utc::now()).await;
        assert_eq!(server.issued("a").last(), Some(&second.token()));
        ns.await_ready("a", true, "Fetched").await;
        drop(controller);
    });
}

#[test]
fn short_tokens_are_renewed_without_a_gap() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(3)));
        scene.cache("a", json!({})).await;
        within("five tokens", scene.server.await_requests("a", 5)).await;
        // Were each renewed as soon as it is there, a lifetime of three seconds would hold many more.
        let arrivals = scene.server.arrivals("a");
        let gap = (arrivals[4] - arrivals[0]) / 4;
        assert!(gap >= Duration::from_secs(1), "{gap:?}");
        let cache: TokenCache = scene.ns.get("a").await;
        assert_eq!(cache.seen().failures, 0);
    });
}
