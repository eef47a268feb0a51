//! When an object that a TokenCache refers to changes, it tries again at once if it stood still because of it, and else
//! does nothing.

use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use serde_json::{Value, json};
use tokencache::api::names::LABEL_SOURCE;

use crate::support::{
    CacheView as _, Proxy, Scene,
    manifests::{CREDENTIALS, SECRET_KEY, oauth2, source_secret},
    scenario,
    server::Options,
};

/// With a wait after a failure that no test waits for.
fn patient(mut spec: Value) -> Value {
    spec["retry"] = json!({"initialInterval": "1h", "maxInterval": "1h"});
    spec
}

fn config_map(name: &str, ca: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca": ca}})
}

#[test]
fn a_client_that_was_rejected_tries_again_at_once_with_the_corrected_secret_and_others_do_not() {
    scenario(async {
        let scene = Scene::new().await;
        let right = scene.server.options().client_secret.clone();
        scene.ns.create::<Secret>(source_secret("shared", "wrong", true)).await;
        let by = |key: &str| patient(oauth2(json!({"clientSecretRef": {"name": "shared", "key": key}})));
        scene.ns.patch::<Secret>("shared", json!({"stringData": {"right": right}})).await;
        scene.ready_cache("healthy", by("right")).await;
        scene.ready_cache("elsewhere", patient(json!({}))).await;
        scene.cache("rejected", by(SECRET_KEY)).await;
        let cache = scene.ns.await_ready("rejected", false, "FetchFailed").await;
        assert_eq!(cache.last_failure(), "Rejected");

        scene.ns.patch::<Secret>("shared", json!({"stringData": {SECRET_KEY: right}})).await;
        scene.ns.await_ready("rejected", true, "Fetched").await;
        // By then the change has been seen.
        assert_eq!(scene.server.requests("rejected"), 2);
        assert_eq!((scene.server.requests("healthy"), scene.server.requests("elsewhere")), (1, 1));
    });
}

#[test]
fn one_whose_source_is_kept_fresh_by_another_tries_again_at_once_when_that_has_changed() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("first", json!({})).await;
        scene.ns.patch::<Secret>("first", json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}})).await;
        let by_first = oauth2(json!({"clientSecretRef": {"name": "first", "key": "later"}}));
        scene.cache("second", patient(by_first)).await;
        scene.ns.await_ready("second", false, "SourceNotFound").await;
        let right = format!("'{}'", scene.server.options().client_secret);
        scene.ns.patch_spec("first", json!({"target": {"data": {"token": "token", "later": right}}})).await;
        scene.ns.await_ready("second", true, "Fetched").await;
    });
}

#[test]
fn one_that_fails_for_another_reason_keeps_its_backoff() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("down", crate::support::server::Behaviour::Status(503, Vec::new(), String::new()));
        scene.cache("down", patient(json!({}))).await;
        scene.ns.await_ready("down", false, "FetchFailed").await;
        scene.cache("waits", patient(oauth2(json!({"clientSecretRef": {"name": CREDENTIALS, "key": "later"}})))).await;
        scene.ns.await_ready("waits", false, "SourceNotFound").await;
        let right = &scene.server.options().client_secret;
        scene.ns.patch::<Secret>(CREDENTIALS, json!({"stringData": {"later": right}})).await;
        scene.ns.await_ready("waits", true, "Fetched").await;
        assert_eq!(scene.server.requests("down"), 1);
    });
}

#[test]
fn a_corrected_config_map_lets_a_connection_that_was_not_trusted_go_on_at_once() {
    scenario(async {
        let scene = Scene::with_server(Options { tls: true, ..Options::default() }).await;
        let other = Scene::stage(Options { tls: true, ..Options::default() }).await;
        let wrong = other.1.ca_pem().expect("an authority");
        let right = scene.server.ca_pem().expect("an authority");
        let by =
            |name: &str| patient(oauth2(json!({"tls": {"caRef": {"kind": "ConfigMap", "name": name, "key": "ca"}}})));
        scene.ns.create::<ConfigMap>(config_map("wrong", wrong)).await;
        scene.ns.create::<ConfigMap>(config_map("right", right)).await;
        scene.ready_cache("healthy", by("right")).await;
        scene.cache("distrusts", by("wrong")).await;
        let cache = scene.ns.await_ready("distrusts", false, "FetchFailed").await;
        assert_eq!(cache.last_failure(), "TlsFailed");
        scene.ns.patch::<ConfigMap>("right", json!({"metadata": {"annotations": {"touched": "yes"}}})).await;
        scene.ns.patch::<ConfigMap>("wrong", json!({"data": {"ca": right}})).await;
        scene.ns.await_ready("distrusts", true, "Fetched").await;
        assert_eq!(scene.server.requests("healthy"), 1);
    });
}

#[test]
fn a_proxy_is_tried_again_at_once_with_the_corrected_password() {
    scenario(async {
        let scene = Scene::with_server(Options { tls: true, ..Options::default() }).await;
        let proxy = Proxy::start("user", "pass word").await;
        let mut login = source_secret("proxy", "", true);
        login["stringData"] = json!({"username": "user", "password": "wrong"});
        scene.ns.create::<Secret>(login).await;
        let ca = scene.server.ca_pem().expect("an authority");
        scene.ns.create::<ConfigMap>(config_map("ca", ca)).await;
        let spec = patient(oauth2(json!({
            "tls": {"caRef": {"kind": "ConfigMap", "name": "ca", "key": "ca"}},
            "proxy": {"url": format!("http://{}", proxy.address), "credentialsRef": {"name": "proxy"}},
        })));
        scene.cache("a", spec).await;
        let cache = scene.ns.await_ready("a", false, "FetchFailed").await;
        let message = cache.message();
        assert!(message.contains("proxy") && message.contains("credentialsRef"), "{message}");
        assert!(!message.contains("wrong"), "{message}");
        assert_eq!(scene.server.requests("a"), 0);

        scene.ns.patch::<Secret>("proxy", json!({"stringData": {"password": "pass word"}})).await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(proxy.tunnels(), [scene.server.base().trim_start_matches("https://")]);
    });
}

#[test]
fn an_account_that_is_opened_lets_only_those_go_on_that_wait_for_it() {
    scenario(async {
        let scene = Scene::new().await;
        let account = |name: &str, labels: Value| {
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {
                "name": name, "labels": labels, "annotations": {"tokencache.dev/audiences": "kube-apiserver"},
            }})
        };
        let by = |name: &str| {
            patient(json!({"fetch": {"oauth2": null, "serviceAccountToken": {"serviceAccountName": name}}}))
        };
        scene.ns.create::<ServiceAccount>(account("open", json!({"tokencache.dev/source": "true"}))).await;
        scene.ns.create::<ServiceAccount>(account("closed", json!({}))).await;
        let healthy = scene.ready_cache("healthy", by("open")).await;
        scene.cache("waits", by("closed")).await;
        scene.ns.await_ready("waits", false, "SourceNotAllowed").await;
        scene.ns.patch::<ServiceAccount>("open", json!({"metadata": {"annotations": {"touched": "yes"}}})).await;
        let opened = json!({"metadata": {"labels": {"tokencache.dev/source": "true"}}});
        scene.ns.patch::<ServiceAccount>("closed", opened).await;
        scene.ns.await_ready("waits", true, "Fetched").await;
        let now = scene.ns.get::<tokencache::api::TokenCache>("healthy").await;
        assert_eq!(now.seen().runs, healthy.seen().runs);
    });
}
