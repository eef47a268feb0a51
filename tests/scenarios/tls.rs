//! The server's certificate is always verified.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::{Value, json};
use tokencache::api::names::LABEL_SOURCE;

use crate::support::{
    CacheView as _, Relay, Scene, SecretView as _,
    manifests::oauth2,
    scenario,
    server::{Options, TokenServer},
};

async fn tls_scene() -> (Scene, String) {
    let scene = Scene::with_server(Options { tls: true, ..Options::default() }).await;
    let ca_pem = scene.server.ca_pem().expect("an authority").to_owned();
    (scene, ca_pem)
}

fn patience(source: Value) -> Value {
    json!({"fetch": {"oauth2": source}, "retry": {"initialInterval": "10m", "maxInterval": "10m"}})
}

#[test]
fn an_unknown_authority_is_refused_until_it_is_named() {
    scenario(async {
        let (scene, ca_pem) = tls_scene().await;
        scene.cache("a", patience(json!({}))).await;
        let cache = scene.ns.await_ready("a", false, "FetchFailed").await;
        assert_eq!(cache.last_failure(), "TlsFailed");
        assert_eq!(scene.server.requests("a"), 0);
        scene.ns.await_event("a", "FetchFailed").await;

        scene.ns.patch_spec("a", oauth2(json!({"tls": {"caBundle": STANDARD.encode(ca_pem)}}))).await;
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn an_authority_is_taken_from_a_config_map_without_a_label_and_from_a_secret_with_one() {
    scenario(async {
        let (scene, ca_pem) = tls_scene().await;
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca": ca_pem}});
        scene.ns.create::<ConfigMap>(map).await;
        let ca = |kind: &str| json!({"tls": {"caRef": {"kind": kind, "name": "ca", "key": "ca"}}});
        scene.ready_cache("from-map", oauth2(ca("ConfigMap"))).await;

        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca"}, "stringData": {"ca": ca_pem}});
        scene.ns.create::<Secret>(secret).await;
        scene.cache("from-secret", oauth2(ca("Secret"))).await;
        scene.ns.await_ready("from-secret", false, "SourceNotAllowed").await;
        scene.ns.patch::<Secret>("ca", json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}})).await;
        scene.ns.await_ready("from-secret", true, "Fetched").await;
    });
}

#[test]
fn an_authority_in_a_missing_config_map_is_waited_for() {
    scenario(async {
        let (scene, ca_pem) = tls_scene().await;
        let ca = json!({"tls": {"caRef": {"kind": "ConfigMap", "name": "ca", "key": "ca"}}});
        scene.cache("a", oauth2(ca)).await;
        let cache = scene.ns.await_ready("a", false, "SourceNotFound").await;
        assert!(cache.message().contains("ConfigMap") && cache.message().contains("ca"), "{}", cache.message());
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca": ca_pem}});
        scene.ns.create::<ConfigMap>(map).await;
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn the_certificate_must_bear_the_name_of_the_host_or_the_one_that_the_owner_names() {
    scenario(async {
        let (scene, ca_pem) = tls_scene().await;
        let ca = STANDARD.encode(ca_pem);
        let tls = |name: &str| patience(json!({"tls": {"caBundle": ca, "serverName": name}}));
        scene.cache("wrong", tls("other.example.test")).await;
        let cache = scene.ns.await_ready("wrong", false, "FetchFailed").await;
        assert_eq!(cache.last_failure(), "TlsFailed");
        scene.ready_cache("right", tls("id.example.test")).await;
    });
}

#[test]
fn a_plain_server_at_an_https_url_is_a_tls_failure() {
    scenario(async {
        let scene = Scene::new().await;
        let url = scene.server.url("a").replace("http://", "https://");
        scene.cache("a", patience(json!({"tokenUrl": url}))).await;
        let cache = scene.ns.await_ready("a", false, "FetchFailed").await;
        assert_eq!(cache.last_failure(), "TlsFailed");
    });
}

#[test]
fn an_authority_that_rotates_is_followed_at_the_next_refresh_without_a_restart() {
    scenario(async {
        let (scene, old_ca) = tls_scene().await;
        let options = scene.server.options();
        // The same service, whose certificate is by another authority from now on.
        let (client_id, client_secret) = (options.client_id.clone(), options.client_secret.clone());
        let renewed = TokenServer::start(Options { tls: true, client_id, client_secret, ..Options::default() });
        let renewed = renewed.expect("a token server");
        let address = |server: &TokenServer| server.base().trim_start_matches("https://").parse().expect("an address");
        let relay = Relay::start(address(&scene.server)).await;

        for (kind, name) in [("ConfigMap", "from-map"), ("Secret", "from-secret")] {
            relay.lead_to(address(&scene.server));
            let metadata = json!({"name": "ca", "labels": {LABEL_SOURCE: "true"}});
            match kind {
                "ConfigMap" => {
                    let map = json!({"metadata": metadata, "data": {"ca": old_ca}});
                    scene.ns.create::<ConfigMap>(map).await;
                }
                _ => {
                    let secret = json!({"metadata": metadata, "stringData": {"ca": old_ca}});
                    scene.ns.create::<Secret>(secret).await;
                }
            }
            let url = format!("https://{}/c/{name}/token", relay.address);
            let tls = json!({"caRef": {"kind": kind, "name": "ca", "key": "ca"}});
            let mut spec = oauth2(json!({"tokenUrl": url, "tls": tls}));
            spec["retry"] = json!({"initialInterval": "1h", "maxInterval": "1h"});
            scene.ready_cache(name, spec).await;
            let first = scene.secret(name).await.token();

            relay.lead_to(address(&renewed));
            let new_ca = renewed.ca_pem().expect("an authority");
            match kind {
                "ConfigMap" => _ = scene.ns.patch::<ConfigMap>("ca", json!({"data": {"ca": new_ca}})).await,
                _ => _ = scene.ns.patch::<Secret>("ca", json!({"stringData": {"ca": new_ca}})).await,
            }
            scene.ns.request(name, "now").await;
            let what = "a token of the renewed server";
            let secret = scene.ns.await_secret(name, what, |secret| secret.token() != first).await;
            assert_eq!(secret.token(), renewed.issued(name)[0]);
        }
    });
}
