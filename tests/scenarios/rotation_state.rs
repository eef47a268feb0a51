//! Where rotated refresh tokens are stored: in the TokenCache's own Secret. The one that `refreshTokenRef` names is only
//! read.

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Scene, SecretView as _,
    manifests::{oauth2, token_cache},
    opened,
    rights::Account,
    scenario, state_name,
};

fn refreshing(secret: &str, key: &str) -> Value {
    oauth2(json!({"grant": "RefreshToken", "refreshTokenRef": {"name": secret, "key": key}}))
}

/// A controller, and the TokenCache `a` with a refresh token that its server has rotated once. Gives the first token.
async fn rotated() -> (Scene, String) {
    let scene = Scene::new().await;
    let seed = scene.server.sign_in("a");
    scene.ns.create::<Secret>(opened("session", json!({"token": seed}))).await;
    scene.ready_cache("a", refreshing("session", "token")).await;
    (scene, seed)
}

async fn refresh(scene: &Scene, request: &str) -> TokenCache {
    scene.ns.request("a", request).await;
    let answered = |cache: &TokenCache| cache.seen().handled_request.as_deref() == Some(request);
    scene.ns.await_cache("a", "the request is answered", answered).await
}

async fn stored(scene: &Scene) -> String {
    scene.ns.get::<Secret>(&state_name("a")).await.value("refresh-token")
}

#[test]
fn an_author_of_token_caches_cannot_have_a_labelled_secret_overwritten() {
    scenario(async {
        let scene = Scene::new().await;
        let ns = &scene.ns;
        ns.lift_policies("the author has permissions on TokenCaches only").await;
        let rule = json!({"apiGroups": ["tokencache.dev"], "resources": ["tokencaches"], "verbs": ["*"]});
        let rules = vec![serde_json::from_value(rule).expect("a rule")];
        let author = Account::named(ns.client(), &ns.name, "author", rules).await;
        let kubeconfig = Kubeconfig::read_from(author.kubeconfig()).expect("a kubeconfig");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
        let client = Client::try_from(config).expect("a client");

        // The secret of another client. That the author's server takes it for a refresh token is the author's doing.
        let secret = opened("idp", json!({"clientSecret": scene.server.sign_in("a"), "clientId": "x"}));
        let before = ns.create::<Secret>(secret).await;
        let patch = Patch::Merge(json!({"stringData": {"clientSecret": "forged"}}));
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &ns.name);
        let refused = secrets.patch("idp", &PatchParams::default(), &patch).await.expect_err("no right on Secrets");
        assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));

        let cache = token_cache("a", &scene.server, refreshing("idp", "clientSecret"));
        let cache: TokenCache = serde_json::from_value(cache).expect("a TokenCache");
        let caches: Api<TokenCache> = Api::namespaced(client, &ns.name);
        caches.create(&PostParams::default(), &cache).await.expect("created by its author");
        ns.await_ready("a", true, "Fetched").await;
        refresh(&scene, "again").await;
        let after: Secret = ns.get("idp").await;
        assert_eq!(after.metadata.resource_version, before.metadata.resource_version);
        assert_eq!(Some(stored(&scene).await), scene.server.refresh_token("a"));
    });
}

#[test]
fn a_tool_that_keeps_writing_the_first_refresh_token_anew_breaks_nothing() {
    scenario(async {
        let (scene, seed) = rotated().await;
        let ns = &scene.ns;
        for turn in 1..=3 {
            // Each time it is another Secret with the same token, and another version of it.
            ns.delete::<Secret>("session").await;
            ns.create::<Secret>(opened("session", json!({"token": seed}))).await;
            ns.patch::<Secret>("session", json!({"metadata": {"annotations": {"applied": turn.to_string()}}})).await;
            let cache = refresh(&scene, &turn.to_string()).await;
            assert!(cache.is(true, "Fetched"), "{:?}: {}", cache.ready(), cache.message());
            assert_eq!(Some(stored(&scene).await), scene.server.refresh_token("a"));
        }
        assert_eq!(scene.server.resent("a"), []);
    });
}

#[test]
fn a_refresh_token_of_a_new_sign_in_replaces_the_one_that_was_rotated() {
    scenario(async {
        let (scene, _) = rotated().await;
        let again = scene.server.sign_in("a");
        scene.ns.patch::<Secret>("session", json!({"stringData": {"token": again}})).await;
        for request in ["first", "second"] {
            let cache = refresh(&scene, request).await;
            assert!(cache.is(true, "Fetched"), "{:?}: {}", cache.ready(), cache.message());
            assert_eq!(Some(stored(&scene).await), scene.server.refresh_token("a"));
        }
        assert_eq!(scene.ns.get::<Secret>("session").await.token(), again);
        assert_eq!(scene.server.resent("a"), []);
    });
}

#[test]
fn a_token_that_an_earlier_version_wrote_back_is_used_without_another_sign_in() {
    scenario(async {
        let (ns, server) = Scene::stage(crate::support::server::Options::default()).await;
        server.sign_in("a");
        ns.create::<Secret>(opened("session", json!({"token": "void"}))).await;
        // As that version has left it: the newest token is in the user's Secret, and there is no other.
        let manager = PatchParams { field_manager: Some("tokencache-rotation".into()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"stringData": {"token": server.refresh_token("a")}}));
        ns.api::<Secret>().patch("session", &manager, &patch).await.expect("patched");
        let controller = crate::support::Controller::start(&ns, &[]).await;
        let scene = Scene { controller, server, ns };
        scene.ready_cache("a", refreshing("session", "token")).await;
        for request in ["first", "second"] {
            assert!(refresh(&scene, request).await.is(true, "Fetched"));
        }
        assert_eq!(Some(stored(&scene).await), scene.server.refresh_token("a"));
        assert_eq!(scene.server.resent("a"), []);
    });
}

#[test]
fn a_token_cache_that_is_created_again_starts_with_the_token_of_its_secret_and_says_so() {
    scenario(async {
        let (scene, _) = rotated().await;
        let ns = &scene.ns;
        ns.delete::<TokenCache>("a").await;
        // The test cluster may have no garbage collector.
        for name in ["a".to_owned(), state_name("a")] {
            let _ = ns.api::<Secret>().delete(&name, &kube::api::DeleteParams::default()).await;
        }
        let exempt = ns.exempt(
            crate::support::Invariant::VoidRefreshToken,
            "a",
            "the newest token was deleted with the first TokenCache",
        );
        scene.cache("a", refreshing("session", "token")).await;
        let stalled = |cache: &TokenCache| cache.stalled() == Some("ReauthenticationRequired");
        let cache = ns.await_cache("a", "somebody must sign in again", stalled).await;
        drop(exempt);
        for words in ["sign in again", "created again", "key token of Secret"] {
            assert!(cache.message().contains(words), "{}", cache.message());
        }
        let again = scene.server.sign_in("a");
        ns.patch::<Secret>("session", json!({"stringData": {"token": again}})).await;
        ns.await_ready("a", true, "Fetched").await;
        assert_eq!(Some(stored(&scene).await), scene.server.refresh_token("a"));
    });
}
