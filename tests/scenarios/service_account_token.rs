//! The source `serviceAccountToken`: the API server itself issues and checks the tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::{authentication::v1::TokenReview, core::v1::ServiceAccount};
use kube::api::PostParams;
use serde_json::{Value, json};
use tokencache::api::{TokenCache, names::LABEL_SOURCE};

use crate::support::{CacheView as _, Scene, SecretView as _, scenario};

async fn account(scene: &Scene, name: &str, labels: Value) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "labels": labels}});
    scene.ns.create::<ServiceAccount>(account).await;
}

fn opened() -> Value {
    json!({LABEL_SOURCE: "true"})
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
        account(&scene, "robot", opened()).await;
        let settings = json!({"audiences": ["https://vault.example.com"], "expiration": "20m"});
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
        account(&scene, "robot", opened()).await;
        scene.ready_cache("a", token_of("robot", json!({}))).await;
        let token = scene.secret("a").await.token();
        let claims = claims(&token);
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
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

        account(&scene, "robot", json!({})).await;
        scene.ns.request("a", "now").await;
        let cache = scene.ns.await_ready("a", false, "SourceNotAllowed").await;
        let command =
            format!("kubectl label serviceaccount robot -n {} --overwrite {LABEL_SOURCE}=true", scene.ns.name);
        assert!(cache.message().contains(&command), "{}", cache.message());

        scene.ns.patch::<ServiceAccount>("robot", json!({"metadata": {"labels": opened()}})).await;
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
        account(&scene, "robot", json!({})).await;
        scene.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn a_lifetime_that_kubernetes_does_not_issue_is_refused_by_the_rule() {
    scenario(async {
        let scene = Scene::new().await;
        account(&scene, "robot", opened()).await;
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
