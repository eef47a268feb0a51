//! What is refused until somebody edits something, and goes on by itself when that has happened.

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tokencache::api::{TokenCache, names::LABEL_SOURCE};

use crate::support::{
    CacheView as _, Controller, Launch, Scene,
    manifests::{CREDENTIALS, SECRET_KEY, oauth2, source_secret, token_cache},
    scenario,
    server::Options,
    version,
};

/// Waits for a refusal, and sees that it is told everywhere.
async fn is_refused(scene: &Scene, name: &str, reason: &str) -> TokenCache {
    let cache = scene.ns.await_ready(name, false, reason).await;
    assert_eq!(cache.stalled(), Some(reason));
    assert!(cache.is_observed(), "{:?}", cache.seen());
    scene.ns.await_event(name, reason).await;
    cache
}

async fn goes_on(scene: &Scene, name: &str) {
    let cache = scene.ns.await_ready(name, true, "Fetched").await;
    assert_eq!(cache.stalled(), None);
}

fn reference(name: &str, key: &str) -> Value {
    oauth2(json!({"clientSecretRef": {"name": name, "key": key}}))
}

#[test]
fn a_secret_that_its_owner_did_not_open_is_not_read_and_the_label_lets_it_go_on() {
    scenario(async {
        let scene = Scene::new().await;
        let secret = &scene.server.options().client_secret;
        scene.ns.create::<Secret>(source_secret("closed", secret, false)).await;
        scene.cache("a", reference("closed", SECRET_KEY)).await;
        let cache = is_refused(&scene, "a", "SourceNotAllowed").await;
        let message = cache.message();
        assert!(message.contains("closed") && message.contains(LABEL_SOURCE), "it says how to open it: {message}");
        assert_eq!(scene.server.requests("a"), 0);
        scene.ns.patch::<Secret>("closed", json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}})).await;
        goes_on(&scene, "a").await;
    });
}

#[test]
fn a_label_with_another_value_opens_nothing() {
    scenario(async {
        let scene = Scene::new().await;
        let mut closed = source_secret("closed", &scene.server.options().client_secret, true);
        closed["metadata"]["labels"][LABEL_SOURCE] = json!("false");
        scene.ns.create::<Secret>(closed).await;
        scene.cache("a", reference("closed", SECRET_KEY)).await;
        is_refused(&scene, "a", "SourceNotAllowed").await;
        assert_eq!(scene.server.requests("a"), 0);
    });
}

#[test]
fn a_secret_that_was_closed_again_is_not_read_any_more_and_the_value_stays() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        scene.ns.patch::<Secret>(CREDENTIALS, json!({"metadata": {"labels": null}})).await;
        scene.ns.request("a", "now").await;
        let cache = scene.ns.await_ready("a", true, "RefreshFailing").await;
        assert_eq!((cache.last_failure().as_str(), cache.stalled()), ("SourceNotAllowed", Some("SourceNotAllowed")));
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_missing_secret_is_waited_for() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", reference("absent", SECRET_KEY)).await;
        let cache = is_refused(&scene, "a", "SourceNotFound").await;
        assert!(cache.message().contains("absent"), "{}", cache.message());
        scene.ns.create::<Secret>(source_secret("absent", &scene.server.options().client_secret, true)).await;
        goes_on(&scene, "a").await;
    });
}

#[test]
fn a_missing_key_is_waited_for() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", reference(CREDENTIALS, "other")).await;
        let cache = is_refused(&scene, "a", "SourceNotFound").await;
        assert!(cache.message().contains("other"), "{}", cache.message());
        let secret = &scene.server.options().client_secret;
        scene.ns.patch::<Secret>(CREDENTIALS, json!({"stringData": {"other": secret}})).await;
        goes_on(&scene, "a").await;
    });
}

#[test]
fn a_client_id_from_a_secret_is_read_like_the_secret() {
    scenario(async {
        let scene = Scene::new().await;
        let id = &scene.server.options().client_id;
        let change = json!({"clientId": null, "clientIdRef": {"name": CREDENTIALS, "key": "clientId"}});
        scene.cache("a", oauth2(change)).await;
        is_refused(&scene, "a", "SourceNotFound").await;
        scene.ns.patch::<Secret>(CREDENTIALS, json!({"stringData": {"clientId": id}})).await;
        goes_on(&scene, "a").await;
    });
}

#[test]
fn a_changed_client_secret_is_used_at_the_next_fetch() {
    scenario(async {
        let scene = Scene::new().await;
        let right = scene.server.options().client_secret.clone();
        scene.ns.create::<Secret>(source_secret("changing", "wrong", true)).await;
        let mut spec = reference("changing", SECRET_KEY);
        spec["retry"] = json!({"initialInterval": "10m", "maxInterval": "10m"});
        scene.cache("a", spec).await;
        let cache = scene.ns.await_ready("a", false, "FetchFailed").await;
        assert_eq!(cache.last_failure(), "Rejected");
        scene.ns.patch::<Secret>("changing", json!({"stringData": {SECRET_KEY: right}})).await;
        scene.ns.request("a", "now").await;
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn loopback_addresses_are_refused_however_they_are_written() {
    scenario(async {
        let scene = Scene::with(Launch { loopback: false, ..Launch::default() }, Options::default()).await;
        let port = scene.server.base().rsplit(':').next().expect("a port").to_owned();
        let hosts = ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"];
        for (n, host) in hosts.iter().enumerate() {
            let url = format!("http://{host}:{port}/c/a/token");
            scene.cache(&format!("a{n}"), oauth2(json!({"tokenUrl": url}))).await;
        }
        for n in 0..hosts.len() {
            is_refused(&scene, &format!("a{n}"), "AddressNotAllowed").await;
        }
        assert_eq!(scene.server.all_requests(), 0);
        // Another URL is another attempt.
        let cache = scene.ns.patch_spec("a0", oauth2(json!({"tokenUrl": "http://[::1]:1/token"}))).await;
        let observed = move |now: &TokenCache| now.seen().observed_generation == cache.metadata.generation;
        scene.ns.await_cache("a0", "the new spec is observed", observed).await;
    });
}

#[test]
fn metadata_and_link_local_addresses_are_refused() {
    scenario(async {
        let scene = Scene::new().await;
        let hosts = ["169.254.169.254", "169.254.1.1", "[fe80::1]", "[fd00:ec2::254]"];
        for (n, host) in hosts.iter().enumerate() {
            let url = format!("http://{host}/latest/meta-data/");
            scene.cache(&format!("a{n}"), oauth2(json!({"tokenUrl": url}))).await;
        }
        for n in 0..hosts.len() {
            is_refused(&scene, &format!("a{n}"), "AddressNotAllowed").await;
        }
    });
}

#[test]
fn a_denied_address_is_refused_though_it_is_within_what_is_allowed() {
    scenario(async {
        let scene = Scene::with_arguments(&["--deny-cidr", "127.0.0.1/32"]).await;
        scene.cache("a", json!({})).await;
        is_refused(&scene, "a", "AddressNotAllowed").await;
        assert_eq!(scene.server.requests("a"), 0);
    });
}

/// Changes of a good spec that no rule allows, and the field that the message must name.
fn invalid_specs() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("no-source", json!({"fetch": {"oauth2": null}}), "spec.fetch"),
        ("two-ids", oauth2(json!({"clientIdRef": {"name": "s", "key": "k"}})), "clientId"),
        ("no-secret", oauth2(json!({"clientSecretRef": null})), "clientSecretRef"),
        ("own-params", oauth2(json!({"extraParams": {"scope": "x"}})), "spec.fetch.oauth2.extraParams"),
        ("bad-url", oauth2(json!({"tokenUrl": "https://["})), "spec.fetch.oauth2.tokenUrl"),
        ("two-renewals", json!({"refresh": {"renewBefore": "1m", "renewBeforePercentage": 10}}), "spec.refresh"),
        ("never-ttl", json!({"expiry": {"never": true, "ttl": "1h"}}), "spec.expiry"),
        ("retry", json!({"retry": {"initialInterval": "1m", "maxInterval": "1s"}}), "spec.retry"),
        ("type", json!({"target": {"type": "kubernetes.io/service-account-token"}}), "spec.target.type"),
        ("label", json!({"target": {"labels": {"tokencache.dev/managed": "no"}}}), "spec.target.labels"),
        ("annotation", json!({"target": {"annotations": {"tokencache.dev/x": "y"}}}), "spec.target.annotations"),
        ("timeout", json!({"fetch": {"timeout": "11m"}}), "spec.fetch.timeout"),
        ("expression", json!({"target": {"data": {"token": "tokn"}}}), "spec.target.data"),
        ("syntax", json!({"target": {"data": {"token": "token +"}}}), "spec.target.data"),
        ("key", json!({"target": {"data": {"a/b": "token"}}}), "spec.target.data"),
    ]
}

#[test]
fn an_invalid_spec_is_refused_with_its_field_and_works_once_it_is_corrected() {
    scenario(async {
        let scene = Scene::new().await;
        let mut stored = Vec::new();
        for (name, change, field) in invalid_specs() {
            match scene.ns.try_create::<TokenCache>(token_cache(name, &scene.server, change)).await {
                Ok(_) => stored.push((name, field)),
                // An API server of 1.25 or newer runs the rules itself.
                Err(kube::Error::Api(status)) if status.code == 422 => {
                    assert!(status.message.contains(field), "{name}: {}", status.message);
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
        assert!(!stored.is_empty(), "expressions are only checked by the controller");
        for (name, field) in stored {
            let cache = is_refused(&scene, name, "InvalidSpec").await;
            assert!(cache.message().contains(field), "{name}: {}", cache.message());
            assert_eq!(scene.server.requests(name), 0, "{name}");
            // No request changes what the spec forbids.
            scene.ns.request(name, "please").await;
            let mut right = scene.ns.get::<TokenCache>(name).await;
            let wanted = token_cache(name, &scene.server, json!({}));
            right.spec = serde_json::from_value(wanted["spec"].clone()).expect("a spec");
            scene
                .ns
                .api::<TokenCache>()
                .replace(name, &kube::api::PostParams::default(), &right)
                .await
                .expect("corrected");
            goes_on(&scene, name).await;
        }
    });
}

/// A TokenCache whose spec nobody need understand.
#[derive(Clone, Debug, kube::Resource, serde::Deserialize)]
#[resource(inherit = TokenCache)]
struct Unread {
    metadata: kube::core::ObjectMeta,
    #[serde(default)]
    status: Value,
}

#[test]
fn an_object_that_cannot_be_read_is_told_so_once_and_delays_no_other() {
    scenario(async {
        let scene = Scene::new().await;
        // The pattern of the schema allows it; the type does not.
        let bad = token_cache("bad", &scene.server, json!({"refresh": {"minRemaining": "999999999h"}}));
        scene.ns.try_create::<TokenCache>(bad).await.expect("the schema allows it");
        scene.ready_cache("good", json!({})).await;
        let told = |object: Option<&Unread>| {
            let conditions = object.and_then(|object| object.status["conditions"].as_array());
            let stalled = conditions.into_iter().flatten().find(|condition| condition["type"] == "Stalled");
            stalled.is_some_and(|stalled| {
                let message = stalled["message"].as_str().unwrap_or_default();
                stalled["reason"] == "InvalidSpec" && message.contains("999999999h")
            })
        };
        let bad = scene.ns.await_object("bad", "it is told what is wrong with it", told).await.expect("it exists");
        scene.ns.await_event("bad", "InvalidSpec").await;

        let Scene { controller, server, ns } = scene;
        controller.kill().await;
        let controller = Controller::start(&ns, &[]).await;
        let scene = Scene { controller, server, ns };
        scene.ready_cache("later", json!({})).await;
        assert_eq!(
            version(&scene.ns.get::<Unread>("bad").await),
            version(&bad),
            "the new controller has nothing to add"
        );

        let right = json!({"spec": {"refresh": null}});
        scene.ns.patch::<Unread>("bad", right).await;
        goes_on(&scene, "bad").await;
        assert_eq!(scene.server.requests("bad"), 1);
    });
}
