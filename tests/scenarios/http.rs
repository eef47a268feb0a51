//! The source `http`, at a login that follows no standard.

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Scene, SecretView as _, assert_no_leak,
    manifests::{CREDENTIALS, SECRET_KEY, merge, source_secret},
    scenario,
    server::{Behaviour, Options},
};

/// A spec with this source in the place of the scene's.
fn login(scene: &Scene, name: &str, change: Value) -> Value {
    let mut source = json!({
        "url": format!("{}/c/{name}/login", scene.server.base()),
        "json": "{'user': secrets.user, 'password': secrets.password}",
        "secrets": {
            "user": {"name": CREDENTIALS, "key": "user"}, "password": {"name": CREDENTIALS, "key": SECRET_KEY},
        },
        "result": {
            "token": "response.json.session.token",
            "expiresAt": "now + duration(string(response.json.session.lifetime) + 's')",
        },
    });
    merge(&mut source, change);
    json!({
        "fetch": {"oauth2": null, "http": source}, "retry": {"initialInterval": "10m", "maxInterval": "10m"},
    })
}

async fn scene() -> Scene {
    let scene = Scene::new().await;
    let user = scene.server.options().client_id.clone();
    scene.ns.patch::<Secret>(CREDENTIALS, json!({"stringData": {"user": user}})).await;
    scene
}

#[test]
fn the_example_works_as_it_stands_but_for_the_url() {
    scenario(async {
        let options = Options { client_id: "demo".into(), client_secret: "replace-me".into(), ..Options::default() };
        let scene = Scene::with_server(options).await;
        let text = include_str!("../../examples/http.yaml");
        let text = text.replace("https://api.example.com/login", &format!("{}/c/a/login", scene.server.base()));
        let [secret, cache]: [Value; 2] =
            serde_saphyr::from_multiple(&text).expect("YAML").try_into().expect("two objects");
        scene.ns.create::<Secret>(secret).await;
        scene.ns.create::<TokenCache>(cache).await;
        scene.ns.await_ready("shop-api", true, "Fetched").await;
        assert_eq!(scene.secret("shop-api").await.token(), scene.server.issued("a")[0]);
    });
}

#[test]
fn a_login_gives_the_token_and_its_expiry_and_nothing_leaks() {
    scenario(async {
        let scene = scene().await;
        let values = json!({"result": {"values": {"kind": "response.headers['content-type']"}}});
        let mut spec = login(&scene, "a", values);
        spec["target"] = json!({"data": {"token": "token", "kind": "values.kind"}});
        scene.ready_cache("a", spec).await;
        let secret = scene.secret("a").await;
        assert_eq!(
            (secret.token(), secret.value("kind")),
            (scene.server.issued("a")[0].clone(), "application/json".into())
        );
        let left = secret.expires_at() - chrono::Utc::now();
        assert!((3000..=3600).contains(&left.num_seconds()), "{left}");
        assert_no_leak(&scene.ns, &scene.server, &[&scene.controller]).await;
    });
}

#[test]
fn a_wrong_password_is_rejected_and_the_right_one_is_tried_at_once() {
    scenario(async {
        let scene = scene().await;
        scene.ns.create::<Secret>(source_secret("changing", "wrong", true)).await;
        let secrets = json!({"secrets": {"password": {"name": "changing", "key": SECRET_KEY}}});
        scene.cache("a", login(&scene, "a", secrets)).await;
        let cache = scene.ns.await_ready("a", false, "FetchFailed").await;
        assert_eq!(cache.last_failure(), "Rejected");
        assert!(cache.message().contains("401 Unauthorized") && !cache.message().contains("unknown user"), "no body");
        let right = &scene.server.options().client_secret;
        scene.ns.patch::<Secret>("changing", json!({"stringData": {SECRET_KEY: right}})).await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.requests("a"), 2);
    });
}

#[test]
fn what_is_missing_in_the_secrets_is_waited_for() {
    scenario(async {
        let scene = scene().await;
        let reading = |name: &str, key: &str| json!({"secrets": {"password": {"name": name, "key": key}}});
        scene.cache("gone", login(&scene, "gone", reading("later", SECRET_KEY))).await;
        scene.cache("key", login(&scene, "key", reading(CREDENTIALS, "later"))).await;
        scene.ns.create::<Secret>(source_secret("unopened", &scene.server.options().client_secret, false)).await;
        scene.cache("closed", login(&scene, "closed", reading("unopened", SECRET_KEY))).await;
        for (name, reason, words) in [
            ("gone", "SourceNotFound", "/later does not exist"),
            ("key", "SourceNotFound", "has no key later: its keys are clientSecret, user"),
            ("closed", "SourceNotAllowed", "kubectl label secret unopened"),
        ] {
            let cache = scene.ns.await_ready(name, false, reason).await;
            assert_eq!(cache.stalled(), Some(reason));
            assert!(cache.message().contains(words), "{}", cache.message());
            assert_eq!(scene.server.requests(name), 0);
        }
        let right = &scene.server.options().client_secret;
        scene.ns.create::<Secret>(source_secret("later", right, true)).await;
        scene.ns.patch::<Secret>(CREDENTIALS, json!({"stringData": {"later": right}})).await;
        scene.ns.patch::<Secret>("unopened", json!({"metadata": {"labels": {"tokencache.dev/source": "true"}}})).await;
        for name in ["gone", "key", "closed"] {
            let cache = scene.ns.await_ready(name, true, "Fetched").await;
            assert_eq!(cache.stalled(), None);
        }
    });
}

#[test]
fn a_response_that_does_not_fit_is_told_with_what_was_there() {
    scenario(async {
        let scene = scene().await;
        let kind = |kind: &str| vec![("content-type", kind.to_owned())];
        for (name, behaviour, reason, words) in [
            (
                "member",
                Behaviour::Status(
                    200,
                    kind("application/json"),
                    r#"{"session":{"jwt":"hunter2","lifetime":5}}"#.into(),
                ),
                "InvalidResponse",
                "spec.fetch.http.result.token: response.json.session has no key token: it has jwt, lifetime",
            ),
            (
                "page",
                Behaviour::Status(200, kind("text/html"), "<html>hunter2</html>".into()),
                "InvalidResponse",
                "response.json is null, which has no key session: the body is not JSON",
            ),
            (
                "type",
                Behaviour::Status(200, kind("application/json"), r#"{"session":{"token":7,"lifetime":5}}"#.into()),
                "InvalidResponse",
                "result.token: gives an int, not a string",
            ),
            ("forbidden", Behaviour::Status(403, kind("text/plain"), "hunter2".into()), "Rejected", "403 Forbidden"),
            ("broken", Behaviour::Status(502, kind("text/plain"), "hunter2".into()), "ServerError", "502 Bad Gateway"),
            ("busy", Behaviour::Status(429, kind("text/plain"), "hunter2".into()), "RateLimited", "429"),
            (
                "huge",
                Behaviour::Status(200, kind("text/plain"), "hunter2".repeat(200_000)),
                "ResponseTooLarge",
                "larger than 1048576 bytes",
            ),
        ] {
            scene.server.set(name, behaviour);
            scene.cache(name, login(&scene, name, json!({}))).await;
            let cache = scene.ns.await_ready(name, false, "FetchFailed").await;
            assert_eq!(cache.last_failure(), reason, "{name}: {}", cache.message());
            assert!(cache.message().contains(words), "{name}: {}", cache.message());
            assert!(!cache.message().contains("hunter2"), "{name}: {}", cache.message());
        }
        assert_no_leak(&scene.ns, &scene.server, &[&scene.controller]).await;
        assert!(!scene.controller.log().contains("hunter2"));
    });
}

#[test]
fn an_invalid_request_is_refused_by_its_field() {
    scenario(async {
        let scene = scene().await;
        for (name, change, words) in [
            ("loop", json!({"json": "[1, 2].map(x, x)"}), ["spec.fetch.http.json", "loops"]),
            ("name", json!({"result": {"token": "secrets.user"}}), ["spec.fetch.http.result.token", "names secrets"]),
            ("syntax", json!({"result": {"expiresAt": "now +"}}), ["spec.fetch.http.result.expiresAt", "is not CEL"]),
            (
                "header",
                json!({"headers": [{"name": "Host", "value": "a"}]}),
                ["spec.fetch.http.headers[0].name", "sets itself"],
            ),
            ("two", json!({"form": []}), ["spec.fetch.http", "at most one of form, body and json"]),
        ] {
            let manifest = crate::support::manifests::token_cache(name, &scene.server, login(&scene, name, change));
            match scene.ns.try_create::<TokenCache>(manifest).await {
                Ok(_) => {
                    let cache = scene.ns.await_ready(name, false, "InvalidSpec").await;
                    assert!(words.iter().all(|word| cache.message().contains(word)), "{}", cache.message());
                }
                // An API server of 1.25 or newer runs the rules itself.
                Err(error) => assert!(error.to_string().contains(words[1]), "{error}"),
            }
            assert_eq!(scene.server.requests(name), 0);
        }
    });
}
