//! What a consumer gets from the library: each call as the design's table says it.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value as Json, json};
use tokencache::{
    api::{TokenCache, names::LABEL_MANAGED},
    client::{Client, Condition, Error, ExpiresAt, Value},
};

use crate::support::{
    CacheView as _, Scene, SecretView as _, scenario,
    server::{Behaviour, Expiry, Options},
};

pub fn client(scene: &Scene) -> Client {
    Client::new(scene.ns.client().clone(), &scene.ns.name)
}

pub fn lazy() -> Json {
    json!({"refresh": {"policy": "Lazy"}})
}

pub fn failing() -> Behaviour {
    Behaviour::Status(500, Vec::new(), String::new())
}

pub fn token(value: &impl AsRef<Value>) -> String {
    String::from_utf8(value.as_ref().select(None).expect("a token").expose().to_vec()).expect("text")
}

/// The reason for which a run failed.
pub fn reason(result: Result<Arc<Value>, Error>) -> String {
    match result {
        Err(Error::Failed { reason, .. }) => reason,
        other => panic!("not a failed run: {other:?}"),
    }
}

#[test]
fn a_fetch_gives_the_cached_value_and_its_expiry_without_a_run() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let (client, secret) = (client(&scene), scene.secret("a").await);
        let value = client.fetch("a").await.expect("a value");
        assert_eq!(token(&value), secret.token());
        assert_eq!(value.expires_at(), ExpiresAt::At(secret.expires_at()));
        assert_eq!(client.fetch_value("a").await.expect("a value").expose(), secret.token().as_bytes());
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_fetch_brings_the_first_value_of_a_lazy_cache_and_the_next_one_when_that_has_expired() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(3)));
        scene.cache("a", lazy()).await;
        let client = client(&scene);
        let first = client.fetch("a").await.expect("a value");
        scene.ns.await_ready("a", false, "Expired").await;
        assert_eq!(scene.server.requests("a"), 1);
        scene.server.set("a", Behaviour::Default);
        let second = client.fetch("a").await.expect("a value");
        assert_eq!(scene.server.issued("a"), [token(&first), token(&second)]);
    });
}

#[test]
fn a_failure_is_told_with_its_reason_is_not_cached_and_is_tried_again_by_the_next_fetch() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", failing());
        // Backoff alone would not try again within the test.
        scene
            .cache("a", json!({"refresh": {"policy": "Lazy"}, "retry": {"initialInterval": "1h", "maxInterval": "1h"}}))
            .await;
        let client = client(&scene);
        assert_eq!(reason(client.fetch("a").await), "ServerError");
        assert_eq!(reason(client.fetch("a").await), "ServerError");
        assert_eq!(scene.server.requests("a"), 2);
        scene.server.set("a", Behaviour::Default);
        let value = client.fetch("a").await.expect("a value");
        assert_eq!(scene.server.issued("a"), [token(&value)]);
    });
}

#[test]
fn a_refresh_brings_another_value_and_one_that_fails_leaves_the_old_one() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let client = client(&scene);
        let first = client.fetch("a").await.expect("a value");
        let second = client.refresh("a", Condition::Always).await.expect("a value");
        assert_ne!(token(&first), token(&second));
        scene.server.set("a", failing());
        assert_eq!(reason(client.refresh("a", Condition::Always).await), "ServerError");
        assert_eq!(token(&client.fetch("a").await.expect("a value")), token(&second));
    });
}

#[test]
fn a_conditional_refresh_runs_only_if_the_secret_still_is_the_old_one() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let client = client(&scene);
        let first = client.fetch("a").await.expect("a value");
        let second = client.refresh("a", Condition::from(&*first)).await.expect("a value");
        let again = client.refresh("a", Condition::from(&*first)).await.expect("a value");
        assert_eq!(token(&again), token(&second));
        let long_ago = Condition::IfFetchedAt("2026-01-02T03:04:05Z".parse().expect("a time"));
        assert_eq!(token(&client.refresh("a", long_ago).await.expect("a value")), token(&second));
        assert_eq!(scene.server.requests("a"), 2);
        let now = Condition::IfFetchedAt(second.fetched_at());
        assert_ne!(token(&client.refresh("a", now).await.expect("a value")), token(&second));
        assert_eq!(scene.server.requests("a"), 3);
    });
}

#[test]
fn clearing_deletes_the_value_and_an_eager_one_comes_back_while_a_lazy_one_waits_for_a_fetch() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("eager", json!({})).await;
        scene.cache("lazy", lazy()).await;
        let client = client(&scene);
        let first = client.fetch("lazy").await.expect("a value");
        assert!(client.clear("lazy").await.expect("cleared").deleted);
        assert!(!client.clear("lazy").await.expect("nothing to clear").deleted);
        let uid = scene.secret("eager").await.metadata.uid;
        assert!(client.clear("eager").await.expect("cleared").deleted);
        scene.ns.await_secret("eager", "a new Secret", |secret| secret.metadata.uid != uid).await;
        assert!(scene.ns.api::<Secret>().get_opt("lazy").await.expect("an answer").is_none());
        let second = client.fetch("lazy").await.expect("a value");
        assert_ne!(token(&first), token(&second));
    });
}

#[test]
fn clearing_all_deletes_the_values_of_those_with_the_labels_and_nothing_else() {
    scenario(async {
        let scene = Scene::new().await;
        let client = client(&scene);
        for name in ["a", "b", "other"] {
            scene.cache(name, lazy()).await;
            client.fetch(name).await.expect("a value");
        }
        for name in ["a", "b"] {
            scene.ns.patch::<TokenCache>(name, json!({"metadata": {"labels": {"team": "blue"}}})).await;
        }
        // As a job's state is kept.
        let state = json!({"metadata": {"name": "tokencache-a-state", "labels": {LABEL_MANAGED: "true"}}});
        scene.ns.create::<Secret>(state).await;
        let cleared = client.clear_all(Some("team=blue")).await.expect("cleared");
        assert_eq!(cleared.iter().map(|cleared| cleared.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let left = |secrets: Vec<Secret>| {
            let ours = |name: &String| ["a", "b", "other", "tokencache-a-state"].contains(&name.as_str());
            secrets.into_iter().filter_map(|secret| secret.metadata.name).filter(ours).collect::<Vec<_>>()
        };
        assert_eq!(left(scene.ns.list().await), ["other", "tokencache-a-state"]);
        client.clear_all(None).await.expect("cleared");
        assert_eq!(left(scene.ns.list().await), ["tokencache-a-state"]);
    });
}

#[test]
fn a_value_that_never_expires_is_fetched_once() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", json!({"expiry": {"never": true}, "refresh": {"policy": "Lazy"}})).await;
        let client = client(&scene);
        assert_eq!(client.fetch("a").await.expect("a value").expires_at(), ExpiresAt::Never);
        let longest = client.fetch_with_remaining("a", Duration::MAX).await.expect("a value");
        assert_eq!(longest.expires_at(), ExpiresAt::Never);
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_value_with_too_little_left_is_replaced_and_if_the_new_one_has_too_little_as_well_that_is_said() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(600)));
        scene.cache("a", lazy()).await;
        let client = client(&scene);
        let first = client.fetch_with_remaining("a", Duration::from_secs(60)).await.expect("a value");
        scene.server.set("a", Behaviour::Issue(Expiry::In(7200)));
        let second = client.fetch_with_remaining("a", Duration::from_secs(3600)).await.expect("a value");
        assert_ne!(token(&first), token(&second));
        let error = client.fetch_with_remaining("a", Duration::from_secs(7300)).await.expect_err("too much is asked");
        assert!(matches!(error, Error::NearlyExpired { .. }), "{error}");
        assert_eq!(scene.server.requests("a"), 3);
    });
}

#[test]
fn the_secret_may_bear_another_name() {
    scenario(async {
        let scene = Scene::new().await;
        let mut spec = lazy();
        spec["target"] = json!({"name": "elsewhere"});
        scene.cache("a", spec).await;
        let client = client(&scene);
        let value = client.fetch("a").await.expect("a value");
        assert_eq!(token(&value), scene.secret("elsewhere").await.token());
        assert!(client.clear("a").await.expect("cleared").deleted);
        assert!(scene.ns.api::<Secret>().get_opt("elsewhere").await.expect("an answer").is_none());
        // Of a client that knows nothing yet.
        let other = self::client(&scene);
        let mut handle = other.watch("a");
        let (fetched, watched) = (client.fetch("a").await.expect("a value"), handle.ready().await);
        assert_eq!((token(&fetched), token(&watched)), (token(&watched), scene.secret("elsewhere").await.token()));
        client.refresh("a", Condition::Always).await.expect("a value");
        handle.changed().await;
    });
}

#[test]
fn what_no_run_will_ever_answer_fails_at_once_and_says_why() {
    scenario(async {
        let scene = Scene::new().await;
        let client = client(&scene);
        let error = client.fetch("nobody").await.expect_err("there is none");
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        assert!(matches!(client.clear("nobody").await, Err(Error::NotFound { .. })));

        scene.cache("suspended", json!({"suspend": true})).await;
        let error = client.fetch("suspended").await.expect_err("it is suspended");
        assert!(matches!(error, Error::Suspended { .. }), "{error}");

        scene.ns.create::<Secret>(json!({"metadata": {"name": "theirs"}})).await;
        scene.cache("theirs", json!({})).await;
        assert_eq!(reason(client.fetch("theirs").await), "SecretNotOwned");
        let error = client.clear("theirs").await.expect_err("it is theirs");
        assert!(matches!(error, Error::NotOwned { .. }), "{error}");

        scene.cache("invalid", json!({"fetch": {"oauth2": {"tokenUrl": "http://["}}})).await;
        assert_eq!(reason(client.fetch("invalid").await), "InvalidSpec");
    });
}

#[test]
fn a_controller_that_stands_still_keeps_nobody_from_a_value_that_is_valid() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        scene.cache("missing", lazy()).await;
        scene.ns.await_ready("missing", false, "Cleared").await;
        scene.controller.stop();
        let client = client(&scene);
        let value = client.fetch("a").await.expect("a value");
        assert_eq!(token(&value), scene.secret("a").await.token());
        assert_eq!(token(&client.watch("a").ready().await), token(&value));
        let error = client.with_timeout(Duration::from_secs(5)).fetch("missing").await.expect_err("nobody fetches");
        assert!(matches!(&error, Error::Timeout { what, .. } if what.contains("controller")), "{error}");
        // Who has asked is answered when it goes on.
        let (value, ()) = tokio::join!(client.fetch("missing"), async { scene.controller.cont() });
        value.expect("a value");
    });
}

#[test]
fn without_any_controller_a_value_that_is_valid_is_had() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let Scene { controller, server, ns } = scene;
        controller.kill().await;
        let client = Client::new(ns.client().clone(), &ns.name);
        assert_eq!(server.issued("a"), [token(&client.fetch("a").await.expect("a value"))]);
        let cache: TokenCache = ns.get("a").await;
        assert_eq!(cache.seen().refresh_requested, None, "nothing was asked for");
    });
}

#[test]
fn the_library_prints_no_value() {
    scenario(async {
        let scene = Scene::with_server(Options::default()).await;
        scene.ready_cache("a", json!({})).await;
        let client = client(&scene);
        let (value, handle) = (client.fetch("a").await.expect("a value"), client.watch("a"));
        handle.ready().await;
        let bytes = value.select(None).expect("a token");
        let text = format!("{value:?} {bytes:?} {handle:?} {client:?} {:?}", handle.get());
        let part = &token(&value)[..20];
        assert!(!text.contains(part), "{text}");
    });
}
