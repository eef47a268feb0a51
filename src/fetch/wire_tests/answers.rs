//! What is asked, and what each kind of answer means.

use std::time::Duration;

use futures::stream;
use tokio::net::TcpListener;

use super::*;
use crate::fetch::{Reference, ReferenceKind, destination, references};

#[tokio::test]
async fn with_basic_the_credentials_are_encoded_into_the_header_and_nowhere_else() {
    let server = Server::start(token).await;
    let world = World::new();
    let change = json!({
        "clientId": "me:ä", "scopes": ["read", "write"], "audience": "https://api", "resource": ["urn:a", "urn:b"],
        "extraParams": {"tenant": "x&y"},
    });
    assert_token(world.fetch(&cache(&server.url(), change)).await);
    let seen = &server.seen()[0];
    assert_eq!(seen.target, "/token?tenant=hidden");
    let pair = BASE64_STANDARD.encode("me%3A%C3%A4:s3cret%2F%2B%C3%A4");
    assert_eq!(seen.header(header::AUTHORIZATION), format!("Basic {pair}"));
    assert_eq!(seen.header(header::ACCEPT), "application/json");
    assert_eq!(seen.header(header::CONTENT_TYPE), "application/x-www-form-urlencoded");
    assert_eq!(seen.header(header::USER_AGENT), concat!("tokencache/", env!("CARGO_PKG_VERSION")));
    let expected = [
        ("grant_type", "client_credentials"),
        ("scope", "read write"),
        ("audience", "https://api"),
        ("resource", "urn:a"),
        ("resource", "urn:b"),
        ("tenant", "x&y"),
    ];
    assert_eq!(seen.form(), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn with_post_the_credentials_are_in_the_form_and_nowhere_else() {
    let server = Server::start(token).await;
    let world = World::new();
    world.objects.secret("id", &[("id", "it")]);
    let mut cache = cache(&server.url(), json!({"clientAuth": "Post", "clientIdRef": {"name": "id", "key": "id"}}));
    cache.spec.fetch.oauth2.as_mut().unwrap().client_id = None;
    assert_token(world.fetch(&cache).await);
    let seen = &server.seen()[0];
    assert_eq!(seen.header(header::AUTHORIZATION), "");
    let expected = [("grant_type", "client_credentials"), ("client_id", "it"), ("client_secret", SECRET)];
    assert_eq!(seen.form(), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn a_token_comes_with_the_scalars_of_the_answer_and_an_expiry_from_before_the_request() {
    let body =
        r#"{"access_token":"t0ken","token_type":"DPoP","expires_in":"3600","scope":"a b","ok":true,"x":{"y":1}}"#;
    let received = Arc::new(Mutex::new(None));
    let keep = received.clone();
    let respond = move |_: &Seen| {
        *keep.lock() = Some(Clock::system().now());
        answer(200, body)
    };
    let server = Server::start(respond).await;
    let before = Clock::system().now();
    let fetched = World::new().fetch(&cache(&server.url(), json!({}))).await.unwrap();
    let received = received.lock().expect("a request");
    let sent = fetched.expires_at.moment().expect("it expires") - chrono::TimeDelta::hours(1);
    assert!(before <= sent && sent <= received, "{before} {sent} {received}");
    let values: Vec<_> = fetched.values.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
    let expected =
        [("access_token", "t0ken"), ("expires_in", "3600"), ("ok", "true"), ("scope", "a b"), ("token_type", "DPoP")];
    assert_eq!(values, expected);
    assert!(!format!("{fetched:?}").contains("t0ken"));
}

#[tokio::test]
async fn an_answer_without_a_token_is_told_by_its_status_and_by_its_oauth_error_alone() {
    let html = "<html>s3cret t0ken</html>";
    for (status, body, reason, words) in [
        (
            400,
            r#"{"error":"invalid_scope","error_description":"no\nsuch\u001b[1m scope"}"#,
            Reason::Rejected,
            vec!["400 Bad Request: invalid_scope: no such [1m scope"],
        ),
        (400, html, Reason::Rejected, vec!["answered 400 Bad Request"]),
        (401, r#"{"error":"invalid_client"}"#, Reason::Rejected, vec!["401 Unauthorized: invalid_client"]),
        (403, "{}", Reason::Rejected, vec!["403"]),
        (404, "", Reason::Rejected, vec!["404 Not Found"]),
        (429, r#"{"error":"slow_down"}"#, Reason::RateLimited, vec!["429", "slow_down"]),
        (500, html, Reason::ServerError, vec!["500"]),
        (503, r#"{"error":"temporarily_unavailable"}"#, Reason::ServerError, vec!["503", "temporarily_unavailable"]),
        (
            200,
            r#"{"error":"invalid_grant","access_token":"t0ken"}"#,
            Reason::Rejected,
            vec!["with an error: invalid_grant"],
        ),
        (
            200,
            r#"{"error":{"message":"s3cret"}}"#,
            Reason::Rejected,
            vec!["with an error: an error that is not a string"],
        ),
        (200, html, Reason::InvalidResponse, vec!["the body is not JSON: expected value", "Check that tokenUrl"]),
        (200, "", Reason::InvalidResponse, vec!["the body is empty (no content type)"]),
        (200, "[]", Reason::InvalidResponse, vec!["the body is JSON, but not an object"]),
        (204, "", Reason::InvalidResponse, vec!["204"]),
        (200, "{}", Reason::InvalidResponse, vec!["without access_token"]),
        (200, r#"{"access_token":5,"expires_in":60}"#, Reason::InvalidResponse, vec!["access_token is not a string"]),
        (200, r#"{"access_token":"","expires_in":60}"#, Reason::InvalidResponse, vec!["access_token is empty"]),
        (200, r#"{"access_token":"t0ken"}"#, Reason::NoExpiry, vec!["spec.expiry.ttl"]),
        (
            200,
            r#"{"access_token":"t0ken","expires_in":0}"#,
            Reason::NearlyExpired,
            vec!["expires_in of the result is 0", "expiry.never: true"],
        ),
        (
            200,
            r#"{"access_token":"t0ken","expires_in":-1}"#,
            Reason::NoExpiry,
            vec!["expires_in is -1", "spec.expiry.ttl"],
        ),
        (200, r#"{"access_token":"t0ken","expires_in":-2}"#, Reason::InvalidResponse, vec!["expires_in"]),
    ] {
        let server = Server::start(move |_| answer(status, body)).await;
        let fetched = World::new().fetch(&cache(&server.url(), json!({}))).await;
        let failure = assert_failed(fetched, reason, &words);
        assert!(failure.message.starts_with(&server.address.to_string()), "{failure}");
    }
}

#[tokio::test]
async fn an_error_that_echoes_the_credentials_is_told_without_them() {
    let echo = |seen: &Seen| {
        let sent = format!("{} {} {SECRET}", seen.header(header::AUTHORIZATION), seen.body);
        answer(401, json!({"error": SECRET, "error_description": sent}).to_string())
    };
    let server = Server::start(echo).await;
    for auth in ["Basic", "Post"] {
        let fetched = World::new().fetch(&cache(&server.url(), json!({"clientAuth": auth}))).await;
        assert_failed(fetched, Reason::Rejected, &["***"]);
    }
}

#[tokio::test]
async fn a_pause_that_the_server_asks_for_comes_with_any_failure() {
    for (status, body) in [(429, "{}"), (503, ""), (400, "{}"), (200, r#"{"error":"slow_down"}"#)] {
        let respond = move |_: &Seen| {
            let mut response = answer(status, body);
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("120"));
            response
        };
        let server = Server::start(respond).await;
        let failure = World::new().fetch(&cache(&server.url(), json!({}))).await.unwrap_err();
        assert_eq!(failure.retry_after, Some(Duration::from_secs(120)), "{failure}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_told_without_its_query() {
    let elsewhere = Server::start(token).await;
    let target = format!("http://{}/?code=s3cret", elsewhere.address);
    for status in [301, 302, 303, 307, 308] {
        let target = target.clone();
        let respond = move |_: &Seen| {
            let mut response = answer(status, "");
            response.headers_mut().insert(header::LOCATION, target.parse().unwrap());
            response
        };
        let server = Server::start(respond).await;
        let fetched = World::new().fetch(&cache(&server.url(), json!({}))).await;
        assert_failed(
            fetched,
            Reason::Rejected,
            &[&status.to_string(), "a redirect to another path of 127.0.0.1 at port ", "not followed"],
        );
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn an_answer_above_the_limit_is_left_unread() {
    // It has no end: to read it all would take forever.
    let endless =
        |_: &Seen| answer(200, Body::from_stream(stream::repeat_with(|| Ok::<_, Infallible>(vec![b' '; 65536]))));
    let server = Server::start(endless).await;
    let fetched = World::new().fetch(&cache(&server.url(), json!({}))).await;
    assert_failed(fetched, Reason::ResponseTooLarge, &["larger than 1048576 bytes"]);

    // It announces much and sends nothing.
    let silent = |_: &Seen| {
        let mut response = answer(200, Body::from_stream(stream::pending::<Result<Vec<u8>, Infallible>>()));
        response.headers_mut().insert(header::CONTENT_LENGTH, "1048577".parse().unwrap());
        response
    };
    let server = Server::start(silent).await;
    let fetched = World::new().fetch(&cache(&server.url(), json!({}))).await;
    assert_failed(fetched, Reason::ResponseTooLarge, &[]);

    // The status of a failure says more than the size of its page.
    let large = |_: &Seen| answer(502, "x".repeat(2 << 20));
    let server = Server::start(large).await;
    assert_failed(World::new().fetch(&cache(&server.url(), json!({}))).await, Reason::ServerError, &["502"]);

    let padded = format!(r#"{{"access_token":"t0ken","expires_in":60,"x":"{}"}}"#, "x".repeat(1_000_000));
    let server = Server::start(move |_| answer(200, padded.clone())).await;
    assert_token(World::new().fetch(&cache(&server.url(), json!({}))).await);
}

#[tokio::test]
async fn a_blank_at_the_end_of_the_secret_is_sent_and_hinted_at_when_it_was_refused() {
    for (status, body, hinted) in [
        (401, "", true),
        (400, r#"{"error":"invalid_client"}"#, true),
        (200, r#"{"error":"invalid_client"}"#, true),
        (400, r#"{"error":"invalid_scope"}"#, false),
        (500, "", false),
    ] {
        let server = Server::start(move |_| answer(status, body)).await;
        let world = World::new();
        world.objects.secret("client", &[("secret", "s3cret ")]);
        let failure = world.fetch(&cache(&server.url(), json!({"clientAuth": "Post"}))).await.unwrap_err();
        assert_eq!(
            failure.message.contains("Key secret of Secret client begins or ends with a blank"),
            hinted,
            "{failure}"
        );
        assert!(server.seen()[0].form().contains(&("client_secret".to_owned(), "s3cret ".to_owned())));
    }
    let server = Server::start(|_| answer(401, "")).await;
    let failure = World::new().fetch(&cache(&server.url(), json!({}))).await.unwrap_err();
    assert!(!failure.message.contains("blank"), "{failure}");
}

#[tokio::test]
async fn nothing_is_sent_when_a_source_is_missing_closed_or_useless() {
    let server = Server::start(token).await;
    let world = World::new();
    world.objects.secret("empty", &[("k", "")]);
    world.objects.put("secrets", "closed", json!({"metadata": {"name": "closed"}, "data": {"k": "eA=="}}));
    for (name, key, reason, words) in [
        ("missing", "k", Reason::SourceNotFound, "Secret b/missing does not exist"),
        ("client", "k", Reason::SourceNotFound, "Secret b/client has no key k: its keys are secret"),
        ("closed", "k", Reason::SourceNotAllowed, "kubectl label secret closed -n b"),
        ("empty", "k", Reason::InvalidSpec, "Secret b/empty, key k: the value is empty"),
    ] {
        let change = json!({"clientSecretRef": {"name": name, "key": key}});
        let failure = world.fetch(&cache(&server.url(), change)).await.unwrap_err();
        assert_eq!(failure.reason, reason);
        assert!(failure.message.contains(words), "{failure}");
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn an_attempt_ends_with_its_time_and_says_what_it_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut cache = cache(&format!("http://{}", listener.local_addr().unwrap()), json!({}));
    cache.spec.fetch.timeout = Some("50ms".parse().unwrap());
    let address = listener.local_addr().unwrap().to_string();
    assert_failed(
        World::new().fetch(&cache).await,
        Reason::Timeout,
        &["50ms", "spec.fetch.timeout", "waiting for", &address],
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_or_hangs_up_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let cache = cache(&format!("http://{address}/?tenant=hidden"), json!({}));
    let hang_up = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            drop(connection);
        }
    });
    assert_failed(World::new().fetch(&cache).await, Reason::Unreachable, &[&address]);
    hang_up.abort();
    assert!(hang_up.await.unwrap_err().is_cancelled(), "the listener is closed");
    assert_failed(World::new().fetch(&cache).await, Reason::Unreachable, &[&address, "no connection", "refused"]);
}

#[test]
fn a_spec_tells_where_it_goes_and_what_it_reads() {
    let change = json!({
        "clientIdRef": {"name": "client", "key": "id"},
        "tls": {"caRef": {"kind": "ConfigMap", "name": "ca", "key": "k"}, "clientCertRef": {"name": "cert"}},
    });
    let mut spec = cache("https://id.example.com/token", change).spec;
    assert_eq!(destination(&spec).as_deref(), Some("id.example.com:443"));
    let secret = |name: &str| Reference { kind: ReferenceKind::Secret, name: name.to_owned() };
    let ca = Reference { kind: ReferenceKind::ConfigMap, name: "ca".to_owned() };
    assert_eq!(references(&spec), [secret("cert"), secret("client"), ca.clone()]);
    let oauth2 = spec.fetch.oauth2.as_mut().unwrap();
    oauth2.proxy =
        serde_json::from_value(json!({"url": "http://[fd00::1]:3128", "credentialsRef": {"name": "p"}})).unwrap();
    assert_eq!(destination(&spec).as_deref(), Some("[fd00::1]:3128"));
    assert_eq!(references(&spec), [secret("cert"), secret("client"), secret("p"), ca]);
}

#[tokio::test]
async fn a_large_response_is_charged_until_the_value_is_dropped() {
    let pad = "x".repeat(70_000);
    let large =
        move |_: &Seen| answer(200, json!({"access_token": "t0ken", "expires_in": 3600, "pad": pad}).to_string());
    let server = Server::start(large).await;
    // Others are beside them, so there are as many at least.
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(World::new().fetch(&cache(&server.url(), json!({}))).await.expect("a token"));
        assert!(crate::fetch::large_fetches().0 >= held.len());
    }
    // These are all that one namespace can have.
    let third = World::new();
    let third_cache = cache(&server.url(), json!({}));
    let third = third.fetch(&third_cache);
    tokio::pin!(third);
    let waits = async {
        while crate::fetch::large_fetches().1 == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut third => panic!("there is no memory for it"),
        () = waits => {}
    }
    held.clear();
    assert_token(third.await);
}
