//! The source `http`.

use super::*;

/// A TokenCache of this source with these fields, and this result by default.
pub(super) fn http(url: &str, change: Value) -> TokenCache {
    let mut source = json!({"url": url, "result": {"token": "response.json.access_token"}});
    for (field, value) in change.as_object().unwrap() {
        source[field] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
        "metadata": {"name": "a", "namespace": "b"}, "spec": {"fetch": {"http": source}},
    }))
    .unwrap()
}

fn secret() -> Value {
    json!({"name": "client", "key": "secret"})
}

/// A server that always gives this.
async fn giving(status: u16, kind: &'static str, body: impl Into<String>) -> Server {
    let body = body.into();
    Server::start(move |_| {
        let mut response = answer(status, body.clone());
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response.headers_mut().append("x-many", header::HeaderValue::from_static("one"));
        response.headers_mut().append("x-many", header::HeaderValue::from_static("two"));
        response
    })
    .await
}

#[tokio::test]
async fn a_request_is_sent_as_it_is_written() {
    let server = Server::start(token).await;
    let world = World::new();
    let encoded = "s3cret%2F%2B%C3%A4";
    for (change, method, target, kind, body) in [
        (json!({}), "GET", "/token?tenant=hidden".to_owned(), "", ""),
        (
            json!({"query": [{"name": "a b", "value": "c&d"}, {"name": "s", "valueRef": secret()}]}),
            "GET",
            format!("/token?tenant=hidden&a+b=c%26d&s={encoded}"),
            "",
            "",
        ),
        (
            json!({"form": [{"name": "id", "value": "me"}, {"name": "s", "expression": "secrets.s"}]}),
            "POST",
            "/token?tenant=hidden".into(),
            "application/x-www-form-urlencoded",
            "id=me&s=s3cret%2F%2B%C3%A4",
        ),
        (json!({"form": []}), "POST", "/token?tenant=hidden".into(), "application/x-www-form-urlencoded", ""),
        (
            json!({"json": "{'b': secrets.s, 'a': [1, true, null]}"}),
            "POST",
            "/token?tenant=hidden".into(),
            "application/json",
            r#"{"a":[1,true,null],"b":"s3cret/+ä"}"#,
        ),
        (
            json!({
                "method": "PUT", "body": {"expression": "'<k>' + secrets.s + '</k>'"},
                "headers": [{"name": "Content-Type", "value": "text/xml"}],
            }),
            "PUT",
            "/token?tenant=hidden".into(),
            "text/xml",
            "<k>s3cret/+ä</k>",
        ),
        (json!({"method": "POST", "body": {"valueRef": secret()}}), "POST", "/token?tenant=hidden".into(), "", SECRET),
        (
            json!({"json": "{}", "headers": [{"name": "content-type", "value": "application/x+json"}]}),
            "POST",
            "/token?tenant=hidden".into(),
            "application/x+json",
            "{}",
        ),
        (json!({"method": "DELETE"}), "DELETE", "/token?tenant=hidden".into(), "", ""),
        (json!({"method": "PATCH", "json": "1"}), "PATCH", "/token?tenant=hidden".into(), "application/json", "1"),
    ] {
        let mut change = change;
        change["secrets"] = json!({"s": secret()});
        assert_token(world.fetch(&http(&server.url(), change.clone())).await);
        let seen = server.seen().pop().unwrap();
        assert_eq!((seen.method.as_str(), seen.target.clone(), seen.body.as_str()), (method, target, body), "{change}");
        assert_eq!(seen.header(header::CONTENT_TYPE), kind, "{change}");
    }
}

#[tokio::test]
async fn headers_come_from_literals_secrets_and_expressions() {
    let server = Server::start(token).await;
    let headers = json!([
        {"name": "X-Plain", "value": "a b"},
        {"name": "X-Api-Key", "valueRef": {"name": "client", "key": "plain"}},
        {"name": "Authorization", "expression": "'Basic ' + base64.encode(bytes('me:' + secrets.s))"},
        {"name": "X-Number", "expression": "size(secrets.s)"},
    ]);
    let world = World::new();
    world.objects.secret("client", &[("secret", SECRET), ("plain", "k3y")]);
    assert_token(world.fetch(&http(&server.url(), json!({"headers": headers, "secrets": {"s": secret()}}))).await);
    let seen = server.seen().pop().unwrap();
    let header = |name: &'static str| seen.headers[name].to_str().unwrap();
    assert_eq!((header("x-plain"), header("x-api-key"), header("x-number")), ("a b", "k3y", "10"));
    assert_eq!(header("authorization"), format!("Basic {}", BASE64_STANDARD.encode(format!("me:{SECRET}"))));
}

#[tokio::test]
async fn the_credential_is_what_the_result_says() {
    let body = r#"{"auth":{"client_token":"t0ken","lease_duration":600},"list":[{"id":7},{"id":"x"}],"big":18446744073709551615}"#;
    let server = giving(200, "application/json", body).await;
    let result = json!({
        "token": "response.json.auth.client_token",
        "expiresAt": "now + duration(string(response.json.auth.lease_duration) + 's')",
        "values": {
            "status": "response.status", "type": "response.headers['content-type']", "many": "response.headers['x-many']",
            "first": "response.json.list[0].id", "second": "response.json.list[1]['id']", "big": "response.json.big",
            "whole": "response.body", "none": "has(response.json.auth.none) ? response.json.auth.none : 'none'",
        },
    });
    let before = chrono::Utc::now();
    let fetched = World::new().fetch(&http(&server.url(), json!({"result": result}))).await.unwrap();
    assert_eq!(fetched.token.as_ref().unwrap().expose_secret(), "t0ken");
    let value = |name: &str| fetched.values[name].expose_secret().to_owned();
    assert_eq!([value("status"), value("type"), value("many")], ["200", "application/json", "one, two"]);
    assert_eq!([value("first"), value("second"), value("big")], ["7", "x", "18446744073709551615"]);
    assert_eq!([value("whole"), value("none")], [body, "none"]);
    let left = fetched.expires_at.moment().unwrap() - before;
    assert!((598..=601).contains(&left.num_seconds()), "{left}");
}

#[tokio::test]
async fn an_expiry_is_taken_in_each_form_and_else_as_a_response_names_it() {
    for (body, expires_at, wanted) in [
        (r#"{"t":"2050-01-02T03:04:05+01:00"}"#, Some("response.json.t"), "2050-01-02T02:04:05Z"),
        (r#"{"t":"2050-01-02T03:04:05Z"}"#, Some("timestamp(response.json.t)"), "2050-01-02T03:04:05Z"),
        (r#"{"t":2524705445}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"t":2524705445000}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"t":2524705445.0}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"t":2524705445000000}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"t":2524705445000000000}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"t":"2050-01-02T03:04:05+0000"}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"t":"2050-01-02 03:04:05"}"#, Some("response.json.t.replace(' ', 'T') + 'Z'"), "2050-01-02T03:04:05Z"),
        (r#"{"t":"2524705445"}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"t":null,"expires_at":2524705445}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"t":2524705445,"expires_in":60}"#, Some("response.json.t"), "2050-01-02T03:04:05Z"),
        (r#"{"expires_at":"2050-01-02T03:04:05Z"}"#, None, "2050-01-02T03:04:05Z"),
    ] {
        let server = giving(200, "application/json", body).await;
        let mut result = json!({"token": "'t0ken'"});
        if let Some(expires_at) = expires_at {
            result["expiresAt"] = json!(expires_at);
        }
        let fetched = World::new().fetch(&http(&server.url(), json!({"result": result}))).await.unwrap();
        assert_eq!(fetched.expires_at.to_string(), wanted, "{body}");
    }
}

#[tokio::test]
async fn values_alone_are_a_result_too() {
    let server = giving(200, "text/plain", "t0ken").await;
    let mut cache = http(&server.url(), json!({"result": {"values": {"key": "response.body"}}}));
    cache.spec.expiry.never = true;
    let fetched = World::new().fetch(&cache).await.unwrap();
    assert!(fetched.token.is_none());
    assert_eq!(fetched.values["key"].expose_secret(), "t0ken");
}

#[tokio::test]
async fn a_response_that_does_not_fit_is_told_by_the_field_and_what_was_there() {
    let good = r#"{"access_token":"t0ken","expires_in":3600,"n":5,"l":["t0ken"],"e":"","o":{"a":"t0ken"}}"#;
    let token = |expression: &str| json!({"token": expression});
    let expires = |expression: &str| json!({"token": "'x'", "expiresAt": expression});
    let values = |expression: &str| json!({"values": {"v": expression}});
    for (body, result, words) in [
        (
            good,
            token("response.json.access_tokn"),
            vec![
                "spec.fetch.http.result.token: response.json has no key access_tokn: it has access_token, e, expires_in, l, n, o",
            ],
        ),
        (good, token("'Bearer ' + response.json.o.b"), vec!["response.json.o has no key b: it has a"]),
        (
            good,
            token("response.json.access_token.x"),
            vec!["response.json.access_token is a string, which has no key x"],
        ),
        (good, token("response.json.l[3]"), vec!["response.json.l[3] is beyond the end: response.json.l has 1 items"]),
        (good, token("response.jsn"), vec!["response has no key jsn: it has body, headers, json, status"]),
        (
            good,
            token("response.headers['x-token']"),
            vec!["response.headers has no key x-token: it has", "content-type"],
        ),
        (good, token("response.json.n"), vec!["result.token: gives an int, not a string"]),
        (good, token("response.json.o"), vec!["result.token: gives a map, not a string"]),
        (good, token("response.json.e"), vec!["result.token: gives an empty string"]),
        (good, token("'a' + response.json.n"), vec!["does not fit its operands: response.json.n is an int"]),
        (
            good,
            token("response.json.l.join(response.json.n)"),
            vec!["join does not work", "is a list of 1", "is an int"],
        ),
        (good, expires("response.json.access_token"), vec!["result.expiresAt: gives a string that is not a time"]),
        (good, expires("response.json.l"), vec!["result.expiresAt: gives a list, not a time"]),
        (good, expires("-5"), vec!["result.expiresAt: gives an int that is not a Unix time"]),
        (good, values("response.json.l"), vec!["result.values[v]: gives a list, not a string, number or boolean"]),
        (
            "<html>t0ken</html>",
            token("response.json.a"),
            vec!["response.json is null", "the body is not JSON: expected value", "(text/html)", "answered 200 OK"],
        ),
        ("", token("'x' + response.json.a"), vec!["response.json is null, which has no key a: the body is empty"]),
        (r#"["t0ken"]"#, token("response.json.a"), vec!["response.json is a list of 1, which has no key a"]),
        ("{}", token("response.json.a"), vec!["response.json has no key a: it has nothing"]),
        ("null", token("response.json.a"), vec!["response.json is null, which has no key a: the body is null"]),
    ] {
        let server = giving(200, "text/html", body).await;
        let fetched = World::new().fetch(&http(&server.url(), json!({"result": result.clone()}))).await;
        assert_failed(fetched, Reason::InvalidResponse, &words);
    }
    let server = giving(200, "application/json", r#"{"access_token":"t0ken"}"#).await;
    assert_failed(World::new().fetch(&http(&server.url(), json!({}))).await, Reason::NoExpiry, &["spec.expiry.ttl"]);
}

#[tokio::test]
async fn a_status_that_is_no_success_is_told_as_for_oauth2_without_the_body() {
    for (status, change, reason, words) in [
        (400, json!({}), Reason::Rejected, vec!["answered 400 Bad Request"]),
        (401, json!({}), Reason::Rejected, vec!["answered 401 Unauthorized. Check the credentials"]),
        (302, json!({}), Reason::Rejected, vec!["Redirects are not followed"]),
        (429, json!({}), Reason::RateLimited, vec!["answered 429"]),
        (503, json!({}), Reason::ServerError, vec!["answered 503"]),
        (
            200,
            json!({"successStatus": [201]}),
            Reason::Rejected,
            vec!["200 OK, which spec.fetch.http.successStatus does not list"],
        ),
        (503, json!({"successStatus": [200]}), Reason::ServerError, vec!["answered 503"]),
    ] {
        let server = giving(status, "application/json", r#"{"error":"t0ken","access_token":"t0ken"}"#).await;
        assert_failed(World::new().fetch(&http(&server.url(), change)).await, reason, &words);
    }
    let body = r#"{"access_token":"t0ken","expires_in":3600}"#;
    for (status, success) in [(204 + 2, json!(null)), (404, json!([200, 404])), (302, json!([302]))] {
        let server = giving(status, "application/json", body).await;
        assert_token(World::new().fetch(&http(&server.url(), json!({"successStatus": success}))).await);
    }
}

#[tokio::test]
async fn a_response_that_is_too_large_is_refused_by_bytes_and_by_values() {
    for (body, words) in [
        (format!("{{\"access_token\":\"{}\"}}", "t0ken".repeat(1 << 18)), "larger than 1048576 bytes"),
        (format!("[{}1]", "1,".repeat(200_000)), "JSON of too many values"),
    ] {
        let server = giving(200, "application/json", body).await;
        assert_failed(World::new().fetch(&http(&server.url(), json!({}))).await, Reason::ResponseTooLarge, &[words]);
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let server = giving(200, "application/json", deep).await;
    assert_failed(
        World::new().fetch(&http(&server.url(), json!({}))).await,
        Reason::InvalidResponse,
        &["not JSON: recursion limit"],
    );
}

#[tokio::test]
async fn what_cannot_be_sent_is_told_before_anything_is_sent() {
    let server = Server::start(token).await;
    let world = World::new();
    let odd = [("newline", "s3cret\n"), ("lines", "s3cret\ns3cret\r\n"), ("bell", "s3cret\u{7}x"), ("empty", "")];
    world.objects.secret("odd", &odd);
    world.objects.put("secrets", "closed", json!({"metadata": {"name": "closed"}, "data": {"k": "czNjcmV0"}}));
    let header = |key: &str| json!({"headers": [{"name": "X-Key", "valueRef": {"name": "odd", "key": key}}]});
    let reading = |expression: &str| json!({"json": expression, "secrets": {"s": secret()}});
    let field = "spec.fetch.http.headers[X-Key]: the value of key";
    for (change, reason, words) in [
        (header("newline"), Reason::InvalidSpec, vec![field, "newline in Secret odd ends with a newline", "printf"]),
        (header("lines"), Reason::InvalidSpec, vec![field, "lines in Secret odd holds a line break"]),
        (header("bell"), Reason::InvalidSpec, vec![field, "control character"]),
        (header("empty"), Reason::InvalidSpec, vec!["Secret b/odd, key empty: the value is empty"]),
        (header("none"), Reason::SourceNotFound, vec!["Secret b/odd has no key none", "bell, empty, lines, newline"]),
        (
            json!({"body": {"valueRef": {"name": "gone", "key": "k"}}}),
            Reason::SourceNotFound,
            vec!["Secret b/gone does not exist"],
        ),
        (
            json!({"json": "secrets.s", "secrets": {"s": {"name": "closed", "key": "k"}}}),
            Reason::SourceNotAllowed,
            vec!["kubectl label secret closed -n b --overwrite tokencache.dev/source=true"],
        ),
        (reading("secrets.x"), Reason::InvalidSpec, vec!["spec.fetch.http.json: secrets has no key x: it has s"]),
        (reading("secrets.s + 1"), Reason::InvalidSpec, vec!["does not fit its operands: secrets.s is a string"]),
        (reading("duration('1s')"), Reason::InvalidSpec, vec!["json: gives a duration, which JSON has no form for"]),
        (
            json!({"body": {"expression": "[1]"}}),
            Reason::InvalidSpec,
            vec!["spec.fetch.http.body: gives a list, not a string"],
        ),
    ] {
        let failure = assert_failed(world.fetch(&http(&server.url(), change)).await, reason, &words);
        assert!(!failure.message.contains('\n'));
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_line_break_in_a_secret_is_sent_and_hinted_at_when_it_was_refused() {
    let world = World::new();
    world.objects.secret("client", &[("secret", "s3cret\n")]);
    let hint = "Key secret of Secret client ends with a line break";
    for (change, status, words) in [
        (json!({"json": "secrets.s", "secrets": {"s": secret()}}), 401, vec![hint, "secrets.s.trim()"]),
        (json!({"body": {"valueRef": secret()}, "method": "POST"}), 400, vec![hint, "printf %s"]),
        (json!({"form": [{"name": "a", "valueRef": secret()}]}), 403, vec![hint]),
        (json!({"form": [{"name": "a", "valueRef": secret()}]}), 302, vec![]),
        (json!({}), 401, vec![]),
    ] {
        let server = giving(status, "text/plain", "t0ken").await;
        let failure = assert_failed(world.fetch(&http(&server.url(), change)).await, Reason::Rejected, &words);
        assert_eq!(failure.message.contains(hint), !words.is_empty(), "{failure}");
    }
}
