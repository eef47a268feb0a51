//! What changes of the spec do.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView, Scene, SecretView as _,
    manifests::oauth2,
    pass, scenario,
    server::{Behaviour, Expiry, Gate},
    version, within,
};

#[test]
fn other_scopes_are_fetched_at_once() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", oauth2(json!({"scopes": ["read"]}))).await;
        let first = scene.secret("a").await;
        scene.ns.patch_spec("a", oauth2(json!({"scopes": ["read", "write"]}))).await;
        let second = scene.ns.await_secret("a", "a new value", |secret| secret.token() != first.token()).await;
        assert_eq!(scene.server.forms("a")[1]["scope"], "read write");
        assert_eq!(second.metadata.uid, first.metadata.uid, "the Secret is replaced, not made anew");
        let cache = scene.ns.await_cache("a", "the new spec is observed", CacheView::is_observed).await;
        assert!(cache.is(true, "Fetched") && cache.seen().runs == 2, "{:?}", cache.seen());
    });
}

/// What part of the hour's lifetime is left when a refresh is planned.
fn planned(cache: &TokenCache) -> TimeDelta {
    let status = cache.seen();
    let expires_at = status.expires_at.and_then(|expiry| expiry.moment()).expect("an expiry");
    expires_at - status.refresh_at.expect("a planned refresh")
}

#[test]
fn another_schedule_moves_the_refresh_and_fetches_nothing() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let secret = scene.secret("a").await;
        let observed = |cache: &TokenCache| cache.is_observed();

        scene.ns.patch_spec("a", json!({"refresh": {"renewBefore": "10m"}})).await;
        let cache = scene.ns.await_cache("a", "the refresh has moved", observed).await;
        let before = planned(&cache);
        assert!((TimeDelta::minutes(10) - before).abs() <= TimeDelta::seconds(1), "{before}");

        let half = json!({"refresh": {"renewBefore": null, "renewBeforePercentage": 50}});
        scene.ns.patch_spec("a", half).await;
        let before = planned(&scene.ns.await_cache("a", "the refresh has moved", observed).await);
        assert!((TimeDelta::seconds(1709)..=TimeDelta::seconds(1801)).contains(&before), "{before}");

        scene.ns.patch_spec("a", json!({"retry": {"maxInterval": "1m"}})).await;
        scene.ns.await_cache("a", "the new spec is observed", observed).await;
        assert_eq!(version(&scene.secret("a").await), version(&secret));
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_schedule_that_makes_the_refresh_overdue_fetches_at_once() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(200)));
        scene.ready_cache("a", json!({})).await;
        pass(Duration::from_secs(13)).await;
        scene.ns.patch_spec("a", json!({"refresh": {"renewBefore": "188s"}})).await;
        scene.ns.await_cache("a", "a second run", |cache| cache.seen().runs >= 2).await;
    });
}

#[test]
fn a_value_is_renewed_before_it_expires_at_the_planned_time() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(100)));
        let cache = scene.ready_cache("a", json!({"refresh": {"renewBefore": "93s"}})).await;
        let planned = cache.seen().refresh_at.expect("a planned refresh");
        let secret = scene.secret("a").await;
        let renewed = |cache: &TokenCache| cache.seen().runs >= 2;
        let cache = scene.ns.await_cache("a", "a refresh", renewed).await;
        assert!(Utc::now() >= planned, "not before {planned}");
        assert!(cache.seen().fetched_at.expect("a time") >= planned, "not before {planned}");
        let renewed = scene.secret("a").await;
        assert!(renewed.token() != secret.token() && renewed.metadata.uid == secret.metadata.uid);
    });
}

#[test]
fn a_secret_of_another_name_takes_the_place_of_the_old_one() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({"target": {"name": "old"}})).await;
        scene.ns.patch_spec("a", json!({"target": {"name": "new"}})).await;
        let secret = scene.ns.await_secret("new", "the Secret of the new name", |_| true).await;
        assert_eq!(scene.server.issued("a").last(), Some(&secret.token()));
        scene.ns.await_gone::<Secret>("old", "the Secret of the old name").await;
        let cache = scene.ns.await_cache("a", "the new spec is observed", CacheView::is_observed).await;
        assert_eq!(cache.seen().secret_name.as_deref(), Some("new"));
        assert!(cache.is(true, "Fetched"), "{:?}", cache.ready());
    });
}

#[test]
fn a_secret_of_another_type_is_made_anew() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let first = scene.secret("a").await;
        let basic = json!({"type": "kubernetes.io/basic-auth", "data": {"username": "'oauth2'", "password": "token"}});
        scene.ns.patch_spec("a", json!({"target": basic})).await;
        let typed = |secret: &Secret| secret.type_.as_deref() == Some("kubernetes.io/basic-auth");
        let second = scene.ns.await_secret("a", "the new type", typed).await;
        assert_ne!(second.metadata.uid, first.metadata.uid);
        assert_eq!(second.value("username"), "oauth2");
        assert_eq!(scene.server.issued("a").last(), Some(&second.value("password")));
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn the_secret_holds_what_the_expressions_say_and_bears_the_targets_labels() {
    scenario(async {
        let scene = Scene::new().await;
        let target = json!({
            "labels": {"team": "blue"}, "annotations": {"note": "ours"},
            "data": {
                "header": "'Bearer ' + token",
                "where": "metadata.namespace + '/' + metadata.name",
                "expires": "string(expiresAt)",
            },
        });
        scene.ready_cache("a", json!({"target": target})).await;
        let secret = scene.secret("a").await;
        assert_eq!(secret.value("header"), format!("Bearer {}", scene.server.issued("a")[0]));
        assert_eq!(secret.value("where"), format!("{}/a", scene.ns.name));
        let expires = tokencache::time::parse_rfc3339(&secret.value("expires")).expect("a time");
        assert!((expires - secret.expires_at()).abs() <= TimeDelta::seconds(1), "{expires}");
        assert_eq!(secret.data.as_ref().map(|data| data.len()), Some(3));
        assert_eq!(secret.labels().get("team").map(String::as_str), Some("blue"));
        assert_eq!(secret.annotation("note"), "ours");
    });
}

#[test]
fn other_keys_or_labels_of_the_target_are_there_soon() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({"target": {"labels": {"team": "blue"}}})).await;
        scene.ns.patch_spec("a", json!({"target": {"labels": {"team": "red"}}})).await;
        let red = |secret: &Secret| secret.labels().get("team").map(String::as_str) == Some("red");
        scene.ns.await_secret("a", "the new label", red).await;
        scene.ns.patch_spec("a", json!({"target": {"data": {"access": "token"}}})).await;
        let keys = |secret: &Secret| secret.data.as_ref().is_some_and(|data| data.keys().eq(["access"]));
        scene.ns.await_secret("a", "the new key, and only that", keys).await;
        scene.ns.await_cache("a", "the new spec is observed", CacheView::is_observed).await;
    });
}

#[test]
fn while_suspended_nothing_is_fetched_and_the_secret_stays() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let secret = scene.secret("a").await;
        let observed = |cache: &TokenCache| cache.is_observed();
        let mut change = oauth2(json!({"scopes": ["more"]}));
        change["suspend"] = Value::Bool(true);
        scene.ns.patch_spec("a", change).await;
        let cache = scene.ns.await_cache("a", "the new spec is observed", observed).await;
        assert!(cache.is(true, "Suspended"), "the value is still valid: {:?}", cache.ready());
        scene.ns.request("a", "now").await;
        scene.cache("new", json!({"suspend": true})).await;
        scene.ns.await_ready("new", false, "Suspended").await;
        scene.ready_cache("later", json!({})).await;
        assert_eq!((scene.server.requests("a"), scene.server.requests("new")), (1, 0));
        assert_eq!(version(&scene.secret("a").await), version(&secret));

        for name in ["a", "new"] {
            scene.ns.patch_spec(name, json!({"suspend": null})).await;
            scene.ns.await_ready(name, true, "Fetched").await;
        }
        assert_eq!(scene.server.forms("a")[1]["scope"], "more");
        let cache = scene.ns.await_cache("a", "the new spec is observed", observed).await;
        assert_eq!(cache.seen().handled_request.as_deref(), Some("now"));
    });
}

#[test]
fn with_its_token_cache_the_secret_goes() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        scene.ns.delete::<TokenCache>("a").await;
        scene.ns.await_gone::<Secret>("a", "the Secret").await;
        let lease = "tokencache-a";
        scene.ns.await_gone::<k8s_openapi::api::coordination::v1::Lease>(lease, "the Lease").await;
    });
}

#[test]
fn the_secret_stays_where_the_owner_wants_to_retain_it() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({"target": {"deletionPolicy": "Retain"}})).await;
        let before = scene.secret("a").await;
        assert_eq!(before.owner_references().len(), 1, "it is owned while the TokenCache lives");
        scene.ns.delete::<TokenCache>("a").await;
        scene.ns.await_gone::<TokenCache>("a", "the TokenCache").await;
        let after = scene.secret("a").await;
        assert_eq!((after.owner_references().len(), after.token()), (0, before.token()));

        // One that was Delete until lately is retained just as well.
        scene.ready_cache("b", json!({})).await;
        scene.ns.patch_spec("b", json!({"target": {"deletionPolicy": "Retain"}})).await;
        scene.ns.await_cache("b", "the new spec is observed", CacheView::is_observed).await;
        scene.ns.delete::<TokenCache>("b").await;
        scene.ns.await_gone::<TokenCache>("b", "the TokenCache").await;
        assert!(scene.secret("b").await.owner_references().is_empty());
    });
}

#[test]
fn a_token_cache_that_is_deleted_during_its_run_leaves_no_secret() {
    scenario(async {
        let scene = Scene::new().await;
        let gate = Gate::new();
        let behind = Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default));
        scene.server.set("a", behind);
        scene.cache("a", json!({})).await;
        within("the run begins", scene.server.await_requests("a", 1)).await;
        scene.ns.delete::<TokenCache>("a").await;
        scene.ns.await_gone::<TokenCache>("a", "the TokenCache").await;
        gate.open();
        scene.ready_cache("later", json!({})).await;
        scene.ns.await_gone::<Secret>("a", "no Secret, or one that is collected").await;
    });
}
