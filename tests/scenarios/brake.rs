//! What calls for a fetch again and again, or stands in the way of one.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{ResourceQuota, Secret, ServiceAccount};
use kube::{
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokencache::{
    api::{
        ExpiresAt, TokenCache,
        names::{ANNOTATION_AUDIENCES, ANNOTATION_FETCH_HASH, FIELD_MANAGER, LABEL_SOURCE},
    },
    fetch::fetch_hash,
    k8s::{object::OwnerRef, secret::SealedSecret},
    reconcile::desired_secret::{Lifetime, desired},
    time::{Clock, floor},
};

use crate::support::{
    Action, CacheView as _, Controller, FlakyApi, Invariant, Launch, Scene, SecretView as _, When, pass, poll,
    scenario,
    server::{Behaviour, Expiry, Options},
    within,
};

async fn through_proxy() -> (Scene, FlakyApi) {
    let (ns, server) = Scene::stage(Options::default()).await;
    let api = FlakyApi::start(&ns, 0, Default::default()).await;
    let launch = Launch { kubeconfig: Some(api.kubeconfig()), ..Launch::default() };
    let controller = Controller::launch(&ns, launch).await;
    (Scene { controller, server, ns }, api)
}

fn blue() -> Value {
    json!({"target": {"labels": {"team": "blue"}}})
}

#[test]
fn a_label_that_an_admission_webhook_changes_costs_a_note_and_no_fetch() {
    scenario(async {
        let (scene, api) = through_proxy().await;
        for method in [Method::POST, Method::PUT] {
            let secrets = When::any().method(method).path("/secrets");
            api.always(secrets, Action::edit_body(|secret| secret["metadata"]["labels"]["team"] = json!("red")));
        }
        scene.cache("a", blue()).await;
        let noted = |cache: &TokenCache| cache.is(true, "Fetched") && cache.message().contains("the label team");
        let cache = scene.ns.await_cache("a", "a note about the label", noted).await;
        assert!(cache.message().contains("admission webhook"), "{}", cache.message());
        pass(Duration::from_secs(5)).await;
        assert_eq!(scene.server.requests("a"), 1);
        scene.ns.request("a", "now").await;
        scene.ns.await_cache("a", "another value", |cache| cache.seen().runs == 2).await;
        pass(Duration::from_secs(5)).await;
        assert_eq!(scene.server.requests("a"), 2);
    });
}

/// Another client that changes a Secret in this way whenever it is not so.
async fn insist(scene: &Scene, change: Value, is_so: impl Fn(&Secret) -> bool) {
    let secrets = scene.ns.api::<Secret>();
    let mut changes = watcher::watch_object(secrets, "a").default_backoff().boxed();
    while let Ok(Some(found)) = changes.try_next().await {
        if found.is_some_and(|secret| !is_so(&secret)) {
            scene.ns.patch::<Secret>("a", change.clone()).await;
        }
    }
}

/// Few tokens are requested while the other client is at work.
async fn for_a_while(scene: &Scene, other_client: impl Future<Output = ()>) {
    let time = Duration::from_secs(20);
    tokio::select! {
        () = other_client => panic!("the watch ended"),
        () = pass(time) => {}
    }
    let requests = scene.server.requests("a");
    assert!((3..=6).contains(&requests), "{requests} requests in {time:?}");
}

/// A controller of another version, which knows a field of the spec that this one does not, and so fetches whatever was
/// fetched without it.
async fn other_version(scene: &Scene) {
    let mut cache: TokenCache = scene.ns.get("a").await;
    cache.spec.target.data.insert("other".into(), "token".into());
    let hash = fetch_hash(&cache.spec);
    let api = scene.ns.api::<SealedSecret>();
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    let mut changes = watcher::watch_object(scene.ns.api::<Secret>(), "a").default_backoff().boxed();
    while let Ok(Some(found)) = changes.try_next().await {
        let Some(metadata) = found.map(|secret| secret.metadata) else { continue };
        if metadata.annotations.as_ref().and_then(|map| map.get(ANNOTATION_FETCH_HASH)) == Some(&hash) {
            continue;
        }
        let now = floor(Clock::system().now());
        let expires_at = ExpiresAt::At(now + chrono::TimeDelta::hours(1));
        let data = [("token".to_owned(), b"theirs".to_vec().into())].into();
        let lifetime = Lifetime { fetched_at: now, expires_at };
        let secret = desired(&cache, &OwnerRef::of(&cache), Some(&metadata), data, lifetime);
        // Another write may have come first; then the watch brings that.
        let _ = api.replace("a", &params, &secret).await;
    }
}

#[test]
fn two_versions_of_the_controller_that_hash_a_spec_differently_do_not_flood_the_token_server() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        for_a_while(&scene, other_version(&scene)).await;
        let held_back = |cache: &TokenCache| cache.message().contains("several times within an hour");
        let cache = scene.ns.await_cache("a", "a note about the other version", held_back).await;
        assert!(cache.is(true, "Fetched") && cache.message().contains("of another version"), "{}", cache.message());
    });
}

#[test]
fn of_two_clients_that_fight_over_a_label_neither_floods_the_token_server() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", blue()).await;
        let is_red = |secret: &Secret| secret.metadata.labels.as_ref().is_some_and(|labels| labels["team"] == "red");
        for_a_while(&scene, insist(&scene, json!({"metadata": {"labels": {"team": "red"}}}), is_red)).await;
        let held_back = |cache: &TokenCache| cache.message().contains("several times within an hour");
        let cache = scene.ns.await_cache("a", "a note about the fight", held_back).await;
        assert!(cache.is(true, "Fetched") && cache.message().contains("the label team"), "{}", cache.message());
    });
}

#[test]
fn data_that_another_client_writes_again_and_again_is_put_right_ever_more_rarely_and_is_not_ready() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let is_mine = |secret: &Secret| secret.token() == "mine";
        let data = "the data of the Secret is another client's, which is not to be seen from its metadata";
        let exempt = scene.ns.exempt(Invariant::NotReadyWithValue, "a", data);
        for_a_while(&scene, insist(&scene, json!({"stringData": {"token": "mine"}}), is_mine)).await;
        let cache = scene.ns.await_ready("a", false, "Drifted").await;
        assert!(cache.message().contains("several times within an hour"), "{}", cache.message());
        // Once the other client has stopped, the Secret is put right.
        scene.ns.await_ready("a", true, "Fetched").await;
        drop(exempt);
    });
}

#[test]
fn a_secret_that_is_deleted_again_and_again_is_made_anew_ever_more_rarely() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let stop = AtomicBool::new(false);
        let cleaner = async {
            while !stop.load(Ordering::Relaxed) {
                let _ = scene.ns.api::<Secret>().delete("a", &Default::default()).await;
                pass(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            () = cleaner => {}
            () = pass(Duration::from_secs(20)) => stop.store(true, Ordering::Relaxed),
        }
        let requests = scene.server.requests("a");
        assert!((3..=6).contains(&requests), "{requests} requests");
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

/// Retries that a test can wait for.
fn quick(mut spec: Value) -> Value {
    spec["retry"] = json!({"initialInterval": "1s", "maxInterval": "2s"});
    spec
}

#[test]
fn a_token_request_that_is_refused_is_made_again_though_no_object_changes() {
    scenario(async {
        let (scene, api) = through_proxy().await;
        let robot = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {
                "name": "robot", "labels": {LABEL_SOURCE: "true"}, "annotations": {ANNOTATION_AUDIENCES: "kube-apiserver"},
            },
        });
        scene.ns.create::<ServiceAccount>(robot).await;
        let rbac = r#"serviceaccounts "robot" is forbidden: User "u" cannot create resource "serviceaccounts/token""#;
        let policy = "admission webhook \"p\" denied the request: no tokens today";
        for (name, status, words, reason) in [
            ("right", StatusCode::FORBIDDEN, rbac, "SourceNotAllowed"),
            ("webhook", StatusCode::FORBIDDEN, policy, "FetchFailed"),
            ("policy", StatusCode::UNPROCESSABLE_ENTITY, policy, "FetchFailed"),
        ] {
            let token = When::request(Method::POST, "/serviceaccounts/robot/token");
            let refused = api.always(token, Action::Answer(status, words));
            let source = json!({"oauth2": null, "serviceAccountToken": {"serviceAccountName": "robot"}});
            scene.cache(name, quick(json!({"fetch": source}))).await;
            let cache = scene.ns.await_ready(name, false, reason).await;
            assert_eq!(cache.stalled().is_some(), reason == "SourceNotAllowed", "{}", cache.message());
            assert!(cache.seen().next_retry_at.is_some());
            refused.remove();
            scene.ns.await_ready(name, true, "Fetched").await;
        }
    });
}

#[test]
fn where_no_secret_can_be_written_no_further_value_is_fetched() {
    scenario(async {
        let (scene, api) = through_proxy().await;
        let refused = api.always(
            When::request(Method::POST, "/secrets"),
            Action::Answer(StatusCode::FORBIDDEN, "secrets \"a\" is forbidden: exceeded quota: q"),
        );
        scene.cache("a", quick(json!({}))).await;
        let cache = scene.ns.await_cache("a", "four failures", |cache| cache.seen().failures >= 4).await;
        assert_eq!(cache.last_failure(), "WriteFailed");
        assert!(cache.message().contains("exceeded quota"), "{}", cache.message());
        assert_eq!(scene.server.requests("a"), 1);
        refused.remove();
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.requests("a"), 2);
    });
}

#[test]
fn in_a_namespace_whose_quota_of_secrets_is_used_up_one_value_is_fetched() {
    scenario(async {
        let scene = Scene::new().await;
        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"},
            "spec": {"hard": {"count/secrets": "0"}},
        });
        scene.ns.create::<ResourceQuota>(quota).await;
        let counted = |quota: Option<&ResourceQuota>| {
            quota.and_then(|quota| quota.status.as_ref()).is_some_and(|status| status.used.is_some())
        };
        scene.ns.await_object("q", "the quota is counted", counted).await;
        scene.cache("a", quick(json!({}))).await;
        let cache = scene.ns.await_cache("a", "three failures", |cache| cache.seen().failures >= 3).await;
        assert!(cache.message().contains("exceeded quota"), "{}", cache.message());
        assert_eq!(scene.server.requests("a"), 1);
        scene.ns.delete::<ResourceQuota>("q").await;
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

/// A cache whose value expires and is to be removed then, while its server fails.
async fn dying(scene: &Scene) {
    scene.server.set("a", Behaviour::Issue(Expiry::In(12)));
    let spec = json!({
        "target": {"expiredPolicy": "Delete"}, "refresh": {"renewBefore": "8s"},
        "retry": {"initialInterval": "10m", "maxInterval": "10m"},
    });
    scene.ready_cache("a", spec).await;
    scene.server.set("a", Behaviour::Status(503, Vec::new(), String::new()));
    within("an attempt that fails", scene.server.await_requests("a", 2)).await;
}

#[test]
fn an_expired_secret_that_a_finalizer_holds_does_not_keep_a_value_from_being_fetched() {
    scenario(async {
        let scene = Scene::new().await;
        dying(&scene).await;
        scene.ns.patch::<Secret>("a", json!({"metadata": {"finalizers": ["example.com/held"]}})).await;
        scene.ns.await_ready("a", false, "Expired").await;
        scene.server.set("a", Behaviour::Default);
        scene.ns.request("a", "now").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        scene.ns.patch::<Secret>("a", json!({"metadata": {"finalizers": null}})).await;
    });
}

#[test]
fn an_expired_secret_that_cannot_be_removed_is_reported_as_expired_and_fetched_anew() {
    scenario(async {
        let (scene, api) = through_proxy().await;
        let deletes = When::request(Method::DELETE, "/secrets/a");
        api.always(deletes.clone(), Action::Answer(StatusCode::FORBIDDEN, "denied by a webhook"));
        let deletes = api.count(deletes);
        dying(&scene).await;
        scene.ns.await_ready("a", false, "Expired").await;
        deletes.await_hits(2).await;
        scene.server.set("a", Behaviour::Default);
        scene.ns.request("a", "now").await;
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn a_lease_that_cannot_be_created_since_its_namespace_is_gone_is_not_tried_again_at_once() {
    scenario(async {
        let (scene, api) = through_proxy().await;
        let create = When::request(Method::POST, "/leases");
        let refused = api.always(create.clone(), Action::Answer(StatusCode::NOT_FOUND, "namespaces \"x\" not found"));
        scene.cache("a", json!({})).await;
        let failed =
            || async { Some(scene.controller.metrics().await.acquisitions("error")).filter(|failed| *failed >= 3.0) };
        let failed = within("three attempts", poll(failed)).await;
        let creates = refused.hits();
        assert!(creates as f64 <= failed + 1.0, "{creates} creates in {failed} attempts");
        refused.remove();
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}
