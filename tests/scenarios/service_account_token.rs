//! The source `serviceAccountToken`: the API server itself issues and checks the tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::{
    authentication::v1::TokenReview,
    core::v1::{Secret, ServiceAccount},
};
use kube::{ResourceExt as _, api::PostParams};
use serde_json::{Value, json};
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_AUDIENCES, ANNOTATION_CHANGED_AT, LABEL_SOURCE},
};

use crate::support::{CacheView as _, Scene, SecretView as _, poll, scenario, within};

/// A ServiceAccount with the source label, which allows these audiences.
async fn account(scene: &Scene, name: &str, audiences: &str) {
    let metadata =
        json!({"name": name, "labels": {LABEL_SOURCE: "true"}, "annotations": {ANNOTATION_AUDIENCES: audiences}});
    scene
        .ns
        .create::<ServiceAccount>(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}))
        .await;
}

const VAULT: &str = "https://vault.example.com";

/// The lifetime of a token, in seconds.
fn lifetime(token: &str) -> i64 {
    let claims = claims(token);
    claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap()
}

/// A spec with this source in the place of the scene's.
fn token_of(account: &str, settings: Value) -> Value {
    let mut source = json!({"serviceAccountName": account});
    for (key, value) in settings.as_object().expect("an object") {
        source[key] = value.clone();
    }
    json!({"fetch": {"oauth2": null, "serviceAccountToken": source}})
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("a JWT");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("claims")
}

/// What the API server says of a token that is shown to one of these audiences.
async fn review(scene: &Scene, token: &str, audience: &str) -> (bool, Option<String>) {
    let review = serde_json::from_value(json!({"spec": {"token": token, "audiences": [audience]}})).expect("a review");
    let api: kube::Api<TokenReview> = kube::Api::all(scene.ns.client().clone());
    let status = api.create(&PostParams::default(), &review).await.expect("a review").status.expect("a status");
    (status.authenticated == Some(true), status.user.and_then(|user| user.username))
}

#[test]
fn a_token_is_the_accounts_for_the_audiences_and_expires_when_the_api_server_says() {
    scenario(async {
        let scene = Scene::new().await;
        account(&scene, "robot", VAULT).await;
        let settings = json!({"audiences": [VAULT], "expiration": "20m"});
        scene.ready_cache("a", token_of("robot", settings)).await;
        let secret = scene.secret("a").await;
        let token = secret.token();
        let claims = claims(&token);
        assert_eq!(claims["aud"], json!(["https://vault.example.com"]));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 1200);
        assert_eq!(secret.expires_at().timestamp(), claims["exp"]);
        let user = format!("system:serviceaccount:{}:robot", scene.ns.name);
        assert_eq!(review(&scene, &token, "https://vault.example.com").await, (true, Some(user)));
        assert!(!review(&scene, &token, "https://other.example.com").await.0);
        assert_eq!(scene.server.all_requests(), 0);
    });
}

#[test]
fn without_settings_a_token_is_for_the_api_server_and_lives_an_hour() {
    scenario(async {
        let scene = Scene::new().await;
        account(&scene, "robot", "kube-apiserver").await;
        scene.ready_cache("a", token_of("robot", json!({}))).await;
        assert_eq!(lifetime(&scene.secret("a").await.token()), 3600);
    });
}

#[test]
fn an_account_that_is_missing_or_closed_is_waited_for() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", token_of("robot", json!({}))).await;
        let cache = scene.ns.await_ready("a", false, "SourceNotFound").await;
        assert_eq!(cache.stalled(), Some("SourceNotFound"));
        assert!(cache.message().contains("ServiceAccount") && cache.message().contains("robot"), "{}", cache.message());

        let closed = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
        scene.ns.create::<ServiceAccount>(closed).await;
        scene.ns.request("a", "now").await;
        let cache = scene.ns.await_ready("a", false, "SourceNotAllowed").await;
        let command =
            format!("kubectl label serviceaccount robot -n {} --overwrite {LABEL_SOURCE}=true", scene.ns.name);
        assert!(cache.message().contains(&command), "{}", cache.message());

        // The label alone gives no token of the API server's audience.
        let label = json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}});
        scene.ns.patch::<ServiceAccount>("robot", label).await;
        let command = format!(
            "kubectl annotate serviceaccount robot -n {} --overwrite {ANNOTATION_AUDIENCES}=kube-apiserver",
            scene.ns.name
        );
        let cache = scene.ns.await_cache("a", "what lacks now", |cache| cache.message().contains(&command)).await;
        assert_eq!(cache.stalled(), Some("SourceNotAllowed"));
        let other = json!({"metadata": {"annotations": {ANNOTATION_AUDIENCES: VAULT}}});
        scene.ns.patch::<ServiceAccount>("robot", other).await;
        let told = |cache: &TokenCache| cache.message().contains(&format!("={VAULT},kube-apiserver"));
        scene.ns.await_cache("a", "what lacks still", told).await;

        let annotation = json!({"metadata": {"annotations": {ANNOTATION_AUDIENCES: "kube-apiserver"}}});
        scene.ns.patch::<ServiceAccount>("robot", annotation).await;
        let cache = scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.stalled(), None);
    });
}

#[test]
fn where_no_label_is_required_any_account_of_the_namespace_serves() {
    scenario(async {
        let scene = Scene::with_arguments(&["--require-source-label=false"]).await;
        scene.cache("a", token_of("robot", json!({}))).await;
        scene.ns.await_ready("a", false, "SourceNotFound").await;
        let closed = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
        scene.ns.create::<ServiceAccount>(closed).await;
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn a_token_is_void_when_its_secret_or_its_token_cache_is_deleted() {
    scenario(async {
        let scene = Scene::new().await;
        account(&scene, "robot", VAULT).await;
        let cache = scene.ready_cache("a", token_of("robot", json!({"audiences": [VAULT]}))).await;
        let secret = scene.secret("a").await;
        let first = secret.token();
        assert_eq!(claims(&first)["kubernetes.io"]["secret"]["uid"], json!(secret.metadata.uid), "it is bound");
        assert!(review(&scene, &first, VAULT).await.0);
        assert_eq!(cache.seen().runs, 1);
        assert!(!secret.annotations().contains_key(ANNOTATION_CHANGED_AT), "it is the first value");

        scene.ns.delete::<Secret>("a").await;
        await_void(&scene, &first).await;
        // The Secret holds for a moment a token that is not bound to it yet.
        scene.ns.await_cache("a", "the second run has ended", |cache| cache.seen().runs == 2).await;
        let second = scene.secret("a").await.token();
        assert!(review(&scene, &second, VAULT).await.0);

        // The Secret of another type is another Secret.
        let data = json!({"username": "'me'", "password": "token"});
        scene.ns.patch_spec("a", json!({"target": {"type": "kubernetes.io/basic-auth", "data": data}})).await;
        scene.ns.await_cache("a", "the third run has ended", |cache| cache.seen().runs == 3).await;
        let third = scene.secret("a").await.value("password");
        assert!(review(&scene, &third, VAULT).await.0);
        await_void(&scene, &second).await;

        scene.ns.delete::<TokenCache>("a").await;
        await_void(&scene, &third).await;
    });
}

/// Waits until the API server takes a token for void. It remembers for some seconds what it said before.
async fn await_void(scene: &Scene, token: &str) {
    let void = || async { (!review(scene, token, VAULT).await.0).then_some(()) };
    within("the token is void", poll(void)).await;
}

#[test]
fn a_token_lives_no_longer_than_the_controller_allows() {
    scenario(async {
        let scene = Scene::with_arguments(&["--max-token-lifetime", "2h"]).await;
        account(&scene, "robot", VAULT).await;
        for (name, expiration, seconds) in [("long", "87600h", 7200), ("short", "30m", 1800)] {
            let settings = json!({"audiences": [VAULT], "expiration": expiration});
            scene.ready_cache(name, token_of("robot", settings)).await;
            let secret = scene.secret(name).await;
            assert_eq!(lifetime(&secret.token()), seconds);
            assert_eq!(secret.expires_at().timestamp(), claims(&secret.token())["exp"]);
        }
    });
}

#[test]
fn a_lifetime_that_kubernetes_does_not_issue_is_refused_by_the_rule() {
    scenario(async {
        let scene = Scene::new().await;
        account(&scene, "robot", "kube-apiserver").await;
        let wrong = token_of("robot", json!({"expiration": "5m"}));
        let manifest = crate::support::manifests::token_cache("a", &scene.server, wrong);
        match scene.ns.try_create::<TokenCache>(manifest).await {
            Ok(_) => {
                let cache = scene.ns.await_ready("a", false, "InvalidSpec").await;
                let message = cache.message();
                assert!(message.contains("spec.fetch.serviceAccountToken.expiration"), "{message}");
                assert!(message.contains("at least 10m"), "{message}");
            }
            Err(error) => assert!(error.to_string().contains("at least 10m"), "{error}"),
        }
    });
}
