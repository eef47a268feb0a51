//! Secrets and tokens stand in Secrets, and nowhere else.

use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Launch, Scene, assert_no_leak,
    manifests::oauth2,
    scenario,
    server::{Behaviour, Echo, Expiry, Options},
};

/// With all that any library would log.
async fn traced(options: Options) -> Scene {
    Scene::with(Launch { log: "trace", ..Launch::default() }, options).await
}

fn once(mut spec: Value) -> Value {
    spec["retry"] = json!({"initialInterval": "10m", "maxInterval": "10m"});
    spec
}

#[test]
fn a_fetch_that_works_leaves_no_trace_of_secret_or_token() {
    scenario(async {
        let scene = traced(Options::default()).await;
        scene.ready_cache("basic", json!({})).await;
        scene.ready_cache("post", oauth2(json!({"clientAuth": "Post"}))).await;
        let data = json!({"header": "'Bearer ' + token", "token": "token"});
        scene.ready_cache("expressions", json!({"target": {"data": data}})).await;
        for name in ["basic", "post", "expressions"] {
            scene.ns.request(name, "again").await;
            scene.ns.await_cache(name, "a second run", |cache| cache.seen().runs >= 2).await;
        }
        assert_no_leak(&scene.ns, &scene.server, &[&scene.controller]).await;
    });
}

#[test]
fn a_fetch_over_tls_leaves_no_trace_of_secret_or_token() {
    scenario(async {
        let scene = traced(Options { tls: true, ..Options::default() }).await;
        let ca =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, scene.server.ca_pem().expect("a CA"));
        scene.ready_cache("basic", oauth2(json!({"tls": {"caBundle": ca}}))).await;
        scene.ready_cache("post", oauth2(json!({"tls": {"caBundle": ca}, "clientAuth": "Post"}))).await;
        assert_no_leak(&scene.ns, &scene.server, &[&scene.controller]).await;
    });
}

#[test]
fn a_server_that_repeats_what_it_was_told_makes_nobody_else_tell_it() {
    scenario(async {
        let scene = traced(Options::default()).await;
        let echoes = [
            Echo::Description,
            Echo::Error,
            Echo::Location,
            Echo::Headers,
            Echo::ExpiresIn,
            Echo::Truncated,
            Echo::TokenType,
        ];
        for (n, echo) in echoes.into_iter().enumerate() {
            for auth in ["Basic", "Post"] {
                let name = format!("{}-{n}", auth.to_lowercase());
                scene.server.set(&name, Behaviour::Echo(echo));
                scene.cache(&name, once(oauth2(json!({"clientAuth": auth})))).await;
            }
        }
        for (n, echo) in echoes.into_iter().enumerate() {
            for auth in ["basic", "post"] {
                let failed = |cache: &TokenCache| cache.seen().runs >= 1;
                let cache = scene.ns.await_cache(&format!("{auth}-{n}"), &format!("{echo:?} fails"), failed).await;
                assert!(!cache.ready().0, "{echo:?} cannot give a value: {:?}", cache.ready());
                scene.ns.await_event(&format!("{auth}-{n}"), "FetchFailed").await;
            }
        }
        assert!(scene.server.all_issued().len() >= 6, "tokens were issued and must not be told");
        assert_no_leak(&scene.ns, &scene.server, &[&scene.controller]).await;
    });
}

#[test]
fn no_failure_tells_a_secret_or_a_token() {
    scenario(async {
        let scene = traced(Options::default()).await;
        let status = |status| Behaviour::Status(status, Vec::new(), String::new());
        let failing = [
            ("rejected", Behaviour::OAuthError("invalid_grant", "no".to_owned()), json!({})),
            ("limited", status(429), json!({})),
            ("broken", status(500), json!({})),
            ("closed", Behaviour::Close, json!({})),
            ("hangs", Behaviour::Hang, json!({"fetch": {"timeout": "1s"}})),
            ("garbage", Behaviour::Garbage, json!({})),
            ("huge", Behaviour::Huge, json!({})),
            ("no-expiry", Behaviour::Issue(Expiry::Unsaid), json!({})),
            ("expired", Behaviour::Issue(Expiry::In(0)), json!({})),
            ("nearly", Behaviour::Issue(Expiry::In(60)), json!({"refresh": {"minRemaining": "1h"}})),
            ("no-key", Behaviour::Default, json!({"target": {"data": {"token": "values[token]"}}})),
            ("wrong-type", Behaviour::Default, json!({"target": {"data": {"token": "token + 1"}}})),
            ("no-number", Behaviour::Default, json!({"target": {"data": {"token": "string(int(token))"}}})),
        ];
        for (name, behaviour, spec) in &failing {
            scene.server.set(name, behaviour.clone());
            scene.cache(name, once(spec.clone())).await;
        }
        for (name, ..) in &failing {
            let failed = |cache: &TokenCache| cache.seen().failures >= 1 || cache.stalled().is_some();
            scene.ns.await_cache(name, "it fails", failed).await;
        }
        assert_no_leak(&scene.ns, &scene.server, &[&scene.controller]).await;
    });
}

#[test]
fn a_secret_that_another_hand_changed_is_not_told_when_it_is_put_right() {
    scenario(async {
        let scene = traced(Options::default()).await;
        scene.ready_cache("a", json!({})).await;
        let change = json!({"metadata": {"labels": {"x": "y"}}});
        scene.ns.patch::<k8s_openapi::api::core::v1::Secret>("a", change).await;
        scene.ready_cache("b", json!({})).await;
        let change = json!({"stringData": {"more": "m"}});
        scene.ns.patch::<k8s_openapi::api::core::v1::Secret>("a", change).await;
        scene.ns.await_event("a", "Drifted").await;
        scene
            .ns
            .patch_spec("b", json!({"target": {"type": "kubernetes.io/basic-auth", "data": {"password": "token"}}}))
            .await;
        let typed =
            |secret: &k8s_openapi::api::core::v1::Secret| secret.type_.as_deref() == Some("kubernetes.io/basic-auth");
        scene.ns.await_secret("b", "the new type", typed).await;
        assert_no_leak(&scene.ns, &scene.server, &[&scene.controller]).await;
    });
}

#[test]
#[should_panic(expected = "stands in the")]
fn the_search_for_leaks_finds_one() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let token = scene.server.issued("a").remove(0);
        scene.ns.patch::<TokenCache>("a", json!({"metadata": {"annotations": {"leak": token}}})).await;
        assert_no_leak(&scene.ns, &scene.server, &[&scene.controller]).await;
    });
}
