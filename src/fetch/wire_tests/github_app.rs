//! GitHub's answers, as its documentation has them.

use std::time::Duration;

use super::*;
use crate::fetch::test_keys as keys;

fn app(server: &Server, change: Value) -> TokenCache {
    let mut app = json!({
        "appId": 12, "installationId": 34, "privateKeyRef": {"name": "app", "key": "key"},
        "apiUrl": format!("http://{}/api/v3", server.address),
    });
    for (field, value) in change.as_object().unwrap() {
        app[field] = value.clone();
    }
    let mut cache = cache("http://unused", json!({}));
    cache.spec.fetch = serde_json::from_value(json!({ "githubApp": app })).unwrap();
    cache
}

fn world() -> World {
    let world = World::new();
    world.objects.secret("app", &[("key", keys::RSA_PKCS1), ("other", keys::P256)]);
    world
}

#[tokio::test]
async fn a_token_is_asked_for_as_github_wants_it_and_expires_when_it_says() {
    let body = r#"{"token":"t0ken","expires_at":"2999-01-01T00:00:00Z","permissions":{"contents":"read"}}"#;
    let server = Server::start(move |_| answer(201, body)).await;
    let limits = json!({"repositories": ["a"], "permissions": {"contents": "read"}});
    let fetched = world().fetch(&app(&server, limits.clone())).await.unwrap();
    assert_eq!(fetched.token.unwrap().expose_secret(), "t0ken");
    assert_eq!(fetched.expires_at.to_string(), "2999-01-01T00:00:00Z");
    let seen = &server.seen()[0];
    assert_eq!(seen.target, "/api/v3/app/installations/34/access_tokens");
    assert_eq!(seen.header(header::ACCEPT), "application/vnd.github+json");
    assert_eq!(seen.headers["x-github-api-version"], "2022-11-28");
    assert_eq!(serde_json::from_str::<Value>(&seen.body).unwrap(), limits);
    assert!(seen.header(header::AUTHORIZATION).starts_with("Bearer ey"));
}

#[tokio::test]
async fn each_refusal_is_told_by_what_github_means_and_what_to_do() {
    let limits = json!({"repositories": ["a", "b"], "permissions": {"contents": "write"}});
    for (status, said, words) in [
        (401, "A JSON web token could not be decoded", vec!["could not be decoded", "no key of the App 12"]),
        (
            401,
            "'Expiration time' claim ('exp') is too far in the future",
            vec!["clocks of this machine and of GitHub differ"],
        ),
        (403, "This installation has been suspended", vec!["installation 34 is suspended"]),
        (403, "Resource not accessible by integration", vec!["Check its permissions"]),
        (404, "Not Found", vec!["App 12 has no installation 34"]),
        (
            422,
            "There is at least one repository that does not exist or is not accessible to the parent installation.",
            vec!["access to one of repositories (a, b)"],
        ),
        (
            422,
            "The permissions requested are not granted to this installation.",
            vec!["One of permissions (contents: write)"],
        ),
    ] {
        let server = Server::start(move |_| answer(status, json!({ "message": said }).to_string())).await;
        let fetched = world().fetch(&app(&server, limits.clone())).await;
        assert_failed(fetched, Reason::Rejected, &words);
    }
}

#[tokio::test]
async fn a_rate_limit_is_told_as_one_and_its_end_is_waited_for() {
    let reset = Clock::system().now().timestamp() + 600;
    let used_up = vec![("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", reset.to_string())];
    for (status, headers, said, at_least, at_most) in [
        (403, used_up.clone(), "API rate limit exceeded", 590, 602),
        (429, used_up, "", 590, 602),
        (403, vec![("retry-after", "120".to_owned())], "", 120, 120),
        (403, vec![], "You have exceeded a secondary rate limit", 60, 60),
    ] {
        let respond = move |_: &Seen| {
            let mut response = answer(status, json!({ "message": said }).to_string());
            for (name, value) in &headers {
                response.headers_mut().insert(*name, header::HeaderValue::from_str(value).unwrap());
            }
            response
        };
        let server = Server::start(respond).await;
        let failure = assert_failed(world().fetch(&app(&server, json!({}))).await, Reason::RateLimited, &[]);
        let pause = failure.retry_after.unwrap();
        assert!((Duration::from_secs(at_least)..=Duration::from_secs(at_most)).contains(&pause), "{pause:?}");
    }
}

#[tokio::test]
async fn what_is_no_answer_of_github_is_told_as_such() {
    for (body, words) in [("<html>", "the body is not JSON"), ("[]", "not an object"), ("{}", "without a token")] {
        let server = Server::start(move |_| answer(201, body)).await;
        assert_failed(world().fetch(&app(&server, json!({}))).await, Reason::InvalidResponse, &[words, "apiUrl"]);
    }
}

#[tokio::test]
async fn a_key_that_is_not_the_apps_kind_is_told() {
    let server = Server::start(token).await;
    let change = json!({"privateKeyRef": {"name": "app", "key": "other"}});
    assert_failed(world().fetch(&app(&server, change)).await, Reason::InvalidSpec, &["is no RSA key"]);
    assert!(server.seen().is_empty());
}
