//! What servers send although nobody asked for it: byte order marks, charsets, content codings, headers that are not
//! HTTP, and members that mean nothing.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

use super::{http::http, *};

const GOOD: &str = r#"{"access_token":"t0ken","expires_in":3600}"#;

/// A server that answers every request with these bytes and closes the connection; its URL, and the heads that it saw.
async fn raw(response: impl AsRef<[u8]>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    let (heads, response) = (Arc::new(Mutex::new(Vec::new())), response.as_ref().to_vec());
    let keep = heads.clone();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (mut connection, mut head) = (BufReader::new(connection), String::new());
            while !head.ends_with("\r\n\r\n") && connection.read_line(&mut head).await.unwrap() > 0 {}
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            connection.read_exact(&mut vec![0; length.unwrap_or(0)]).await.unwrap();
            keep.lock().push(head.to_ascii_lowercase());
            connection.write_all(&response).await.unwrap();
            connection.shutdown().await.unwrap();
        }
    });
    (url, heads)
}

fn response(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// By both sources that take any answer.
async fn both(url: &str) -> [Result<Fetched, Failure>; 2] {
    let world = World::new();
    [world.fetch(&cache(url, json!({}))).await, world.fetch(&http(url, json!({}))).await]
}

#[tokio::test]
async fn a_request_that_may_have_a_body_and_has_none_says_so() {
    for (change, wanted) in [
        (json!({"method": "POST"}), Some("0")),
        (json!({"method": "POST", "body": {"value": ""}}), Some("0")),
        (json!({"method": "PUT"}), Some("0")),
        (json!({"method": "PATCH"}), Some("0")),
        (json!({"form": []}), Some("0")),
        (json!({"method": "POST", "body": {"value": "abc"}}), Some("3")),
        (json!({}), None),
        (json!({"method": "DELETE"}), None),
    ] {
        let (url, heads) = raw(response("200 OK", "", GOOD)).await;
        assert_token(World::new().fetch(&http(&url, change.clone())).await);
        let head = heads.lock().pop().unwrap();
        let lengths: Vec<_> = head.lines().filter_map(|line| line.strip_prefix("content-length: ")).collect();
        assert_eq!(lengths, wanted.into_iter().collect::<Vec<_>>(), "{change}: {head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_is_passed_over() {
    let marked = |text: &str| format!("\u{feff}{text}");
    let (url, _) = raw(response("200 OK", "Content-Type: application/json\r\n", marked(GOOD))).await;
    both(&url).await.into_iter().for_each(assert_token);
    let refused = response("401 Unauthorized", "", marked(r#"{"error":"invalid_client","error_description":"why"}"#));
    let (url, _) = raw(refused).await;
    let fetched = World::new().fetch(&cache(&url, json!({}))).await;
    assert_failed(fetched, Reason::Rejected, &["invalid_client: why", "clientAuth"]);
    let (url, _) = raw(response("200 OK", "", marked("t0ken"))).await;
    let whole = json!({"result": {"token": "response.body", "expiresAt": "now + duration('1h')"}});
    assert_token(World::new().fetch(&http(&url, whole)).await);
}

#[tokio::test]
async fn a_charset_is_honoured_where_the_body_is_not_utf_8() {
    let latin1 = b"{\"access_token\":\"t0ken\",\"expires_in\":3600,\"name\":\"Andr\xe9\"}".to_vec();
    let name = |fetched: Result<Fetched, Failure>| fetched.unwrap().values["name"].expose_secret().to_owned();
    let declared = "Content-Type: application/json;charset=ISO-8859-1\r\n";
    let (url, _) = raw(response("200 OK", declared, &latin1)).await;
    let [oauth2, http_source] = both(&url).await;
    assert_eq!(name(oauth2), "Andr\u{e9}");
    assert_token(http_source);
    // A wrong declaration does not spoil what is UTF-8.
    let text = GOOD.replace('}', ",\"name\":\"Andr\u{e9}\"}");
    let (url, _) = raw(response("200 OK", declared, &text)).await;
    assert_eq!(name(World::new().fetch(&cache(&url, json!({}))).await), "Andr\u{e9}");
    for (headers, body) in [
        ("Content-Type: application/json; charset=\"utf-16le\"\r\n", utf16(GOOD)),
        ("Content-Type: application/json\r\n", utf16(&format!("\u{feff}{GOOD}"))),
    ] {
        let (url, _) = raw(response("200 OK", headers, body)).await;
        both(&url).await.into_iter().for_each(assert_token);
    }
    for headers in ["Content-Type: application/json\r\n", "Content-Type: application/json;charset=x\r\n"] {
        let (url, _) = raw(response("200 OK", headers, &latin1)).await;
        for fetched in both(&url).await {
            assert_failed(fetched, Reason::InvalidResponse, &["the body is not UTF-8", "application/json"]);
        }
    }
}

#[tokio::test]
async fn a_content_coding_is_declined_and_undone_all_the_same() {
    let (url, heads) = raw(response("200 OK", "Content-Encoding: gzip\r\n", gzip(GOOD))).await;
    both(&url).await.into_iter().for_each(assert_token);
    assert!(heads.lock().iter().all(|head| head.contains("accept-encoding: identity\r\n")));
    let refused = response("400 Bad Request", "Content-Encoding: x-gzip\r\n", gzip(r#"{"error":"invalid_scope"}"#));
    let (url, _) = raw(refused).await;
    assert_failed(World::new().fetch(&cache(&url, json!({}))).await, Reason::Rejected, &["invalid_scope"]);
    // Another proxy on the way undid the coding and left the header.
    for headers in ["Content-Encoding: gzip\r\n", "Content-Encoding: identity\r\n"] {
        let (url, _) = raw(response("200 OK", headers, GOOD)).await;
        both(&url).await.into_iter().for_each(assert_token);
    }
    let (url, _) = raw(response("200 OK", "Content-Encoding: br\r\n", b"\x8b\x14\x80")).await;
    for fetched in both(&url).await {
        assert_failed(fetched, Reason::InvalidResponse, &["Content-Encoding br"]);
    }
    let cut = &gzip(GOOD)[..20];
    let (url, _) = raw(response("200 OK", "Content-Encoding: gzip\r\n", cut)).await;
    assert_failed(World::new().fetch(&cache(&url, json!({}))).await, Reason::InvalidResponse, &["gzip"]);
    let (url, _) = raw(response("200 OK", "Content-Encoding: gzip\r\n", gzip(&" ".repeat(2 << 20)))).await;
    assert_failed(World::new().fetch(&cache(&url, json!({}))).await, Reason::ResponseTooLarge, &["1048576 bytes"]);
    // Whoever asks for a coding gets it undone, too.
    let (url, heads) = raw(response("200 OK", "Content-Encoding: gzip\r\n", gzip(GOOD))).await;
    let asking = json!({"headers": [{"name": "Accept-Encoding", "value": "gzip"}]});
    assert_token(World::new().fetch(&http(&url, asking)).await);
    let head = heads.lock().pop().unwrap();
    assert!(head.contains("accept-encoding: gzip\r\n") && !head.contains("identity"), "{head}");
}

#[tokio::test]
async fn what_is_not_http_is_an_invalid_response_and_no_broken_connection() {
    for (response, reason, words) in [
        (response("200 OK", "X Trace: 1\r\n", GOOD), Reason::InvalidResponse, "invalid HTTP header"),
        (response("200 OK", "X-Trace : 1\r\n", GOOD), Reason::InvalidResponse, "invalid HTTP header"),
        (response("200 OK", "Content-Length: many\r\n", GOOD), Reason::InvalidResponse, "HTTP"),
        (b"220 mail.example.com ESMTP\r\n".to_vec(), Reason::InvalidResponse, "port"),
        (b"\x15\x03\x01\x00\x02\x02\x46".to_vec(), Reason::InvalidResponse, "https"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n".to_vec(),
            Reason::InvalidResponse,
            "chunk",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_vec(), Reason::Unreachable, "the connection broke"),
        (b"".to_vec(), Reason::Unreachable, "the connection broke"),
    ] {
        let (url, _) = raw(&response).await;
        for fetched in both(&url).await {
            assert_failed(fetched, reason, &["127.0.0.1:", words]);
        }
    }
    let long = format!("X-Long: {}\r\n", "x".repeat(1 << 20));
    let (url, _) = raw(response("200 OK", &long, GOOD)).await;
    assert_failed(World::new().fetch(&cache(&url, json!({}))).await, Reason::ResponseTooLarge, &["header"]);
}

#[tokio::test]
async fn a_number_that_no_program_can_hold_is_told() {
    let (url, _) = raw(response("200 OK", "", r#"{"access_token":"t0ken","expires_in":1e400}"#)).await;
    for fetched in both(&url).await {
        assert_failed(fetched, Reason::InvalidResponse, &["number out of range at line 1"]);
    }
}

#[tokio::test]
async fn a_token_beside_an_error_that_is_none_is_taken() {
    for error in ["0", "0.0", "{}", "[]", "\"\"", "null", "false"] {
        let body = format!(r#"{{"access_token":"t0ken","expires_in":3600,"error":{error}}}"#);
        let (url, _) = raw(response("200 OK", "", body)).await;
        both(&url).await.into_iter().for_each(assert_token);
    }
    for error in ["1", "true", "[0]", r#"{"code":0}"#, r#""0""#] {
        let body = format!(r#"{{"access_token":"t0ken","expires_in":3600,"error":{error}}}"#);
        let (url, _) = raw(response("200 OK", "", body)).await;
        assert_failed(World::new().fetch(&cache(&url, json!({}))).await, Reason::Rejected, &["with an error"]);
    }
}

#[tokio::test]
async fn an_id_token_alone_is_what_a_jwt_bearer_grant_asked_for_and_is_named_elsewhere() {
    let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":4102444800}"#);
    let token = format!("e30.{claims}.t0ken");
    let (url, _) = raw(response("200 OK", "", json!({"id_token": token, "expires_in": null}).to_string())).await;
    let world = World::new();
    world.objects.secret("key", &[("key", crate::fetch::test_keys::P256)]);
    let mut bearer =
        cache(&url, json!({"grant": "JwtBearer", "assertion": {"privateKeyRef": {"name": "key", "key": "key"}}}));
    bearer.spec.fetch.oauth2.as_mut().unwrap().client_secret_ref = None;
    let fetched = world.fetch(&bearer).await.unwrap();
    assert_eq!(fetched.token.as_ref().unwrap().expose_secret(), token);
    assert_eq!(fetched.values["id_token"].expose_secret(), token);
    assert_eq!(fetched.expires_at.to_string(), "2100-01-01T00:00:00Z");
    let words = ["id_token", "source http", "response.json.id_token"];
    assert_failed(world.fetch(&cache(&url, json!({}))).await, Reason::InvalidResponse, &words);
    // With an access_token, that is the token.
    let both = json!({"id_token": token, "access_token": "t0ken", "expires_in": 60}).to_string();
    let (url, _) = raw(response("200 OK", "", both)).await;
    bearer.spec.fetch.oauth2.as_mut().unwrap().token_url = url;
    assert_token(world.fetch(&bearer).await);
}

#[tokio::test]
async fn a_redirect_is_told_by_what_differs_and_never_by_its_query() {
    for (location, words) in [
        ("http://H/token/?code=hidden", "to the same URL with a slash at the end of its path"),
        ("/token/?tenant=hidden", "to the same URL with a slash at the end of its path"),
        ("https://H/token", "to the same URL with https"),
        ("http://127.0.0.1:9411/token", "to the same URL at port 9411"),
        (
            "https://127.0.0.1:9411/token/",
            "to the same URL with https, at port 9411, with a slash at the end of its path",
        ),
        ("http://H/v2/hidden?a=hidden", "to another path of 127.0.0.1"),
        ("https://H/v2/hidden", "to another path of 127.0.0.1 with https"),
        ("/token?code=hidden", "to the same URL with another query"),
        ("http://H/token", "to the same URL"),
        ("https://other.example/token?code=hidden", "to other.example"),
    ] {
        let server = Server::start(move |seen: &Seen| {
            let location = location.replace("H", seen.header(header::HOST));
            let mut response = answer(301, "");
            response.headers_mut().insert(header::LOCATION, location.parse().unwrap());
            response
        })
        .await;
        let url = format!("http://{}/token", server.address);
        let words = [&*format!("a redirect {words}. Redirects are not followed"), "the URL"];
        for fetched in both(&url).await {
            assert_failed(fetched, Reason::Rejected, &words);
        }
        assert_eq!(server.seen().len(), 2);
    }
}
