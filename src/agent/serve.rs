//! What can be asked over HTTP: `GET /fetch/NAME`, `POST /refresh/NAME`, `GET /healthz`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, RawQuery, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HOST, IF_MATCH, ORIGIN},
    },
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use zeroize::Zeroizing;

use super::health::{Board, explain};
use crate::{
    api,
    client::{Client, Condition, Error, Handle, Stamp, Value},
    time::Clock,
};

/// What answers.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) client: Client,
    pub(super) handles: BTreeMap<String, Handle>,
    pub(super) board: Board,
    pub(super) clock: Clock,
}

/// When the value of an answer expires: RFC 3339, or `never`.
const EXPIRES_AT: HeaderName = HeaderName::from_static("tokencache-expires-at");

/// On a port, this header must say `true`. A program that can be made to fetch any URL cannot be made to set it, so the
/// values are not handed out by a forged server-side request.
const REQUEST: HeaderName = HeaderName::from_static("tokencache-request");

/// The routes. On a port, only requests that name a loopback address are answered, and only with [`REQUEST`].
pub(super) fn router(agent: Arc<Agent>, is_port: bool) -> Router {
    let router = Router::new()
        .route("/fetch/{name}", get(fetch))
        .route("/refresh/{name}", post(refresh))
        .route("/healthz", get(healthz))
        .with_state(agent);
    if is_port { router.layer(middleware::from_fn(only_local)) } else { router }
}

/// A browser on this machine must not be made to ask by a page from elsewhere.
async fn only_local(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if headers.contains_key(ORIGIN) || !is_local(host) {
        return refused(StatusCode::FORBIDDEN, "only programs of this machine are answered, which name it localhost");
    }
    let is_meant = headers.get(REQUEST).is_some_and(|value| value == "true");
    // A probe tells no value.
    if !is_meant && request.uri().path() != "/healthz" {
        return refused(
            StatusCode::FORBIDDEN,
            "the header Tokencache-Request: true is missing; a Unix socket needs none",
        );
    }
    next.run(request).await
}

/// Whether a `Host` (RFC 9110 §7.2) is this machine.
fn is_local(host: &str) -> bool {
    let port = |text: &str| text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    if let Some((address, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return port(rest) && address.parse::<std::net::Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    let (name, rest) = host.split_at(host.find(':').unwrap_or(host.len()));
    let address = name.parse::<std::net::Ipv4Addr>();
    port(rest) && (name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback()))
}

async fn healthz(State(agent): State<Arc<Agent>>) -> Response {
    let (well, text) = agent.board.health(agent.clock.now());
    (if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text).into_response()
}

async fn fetch(State(agent): State<Arc<Agent>>, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    let (handle, wanted) = match agent.wanted(&name, query.as_deref()) {
        Ok(asked) => asked,
        Err((code, message)) => return refused(code, &message),
    };
    let now = agent.clock.now();
    let kept =
        handle.get().filter(|value| value.remaining(now).is_some_and(|left| left >= wanted.min_remaining.as_chrono()));
    let value = match kept {
        Some(value) => Ok(value.into()),
        None => agent.client.fetch_with_remaining(&name, wanted.min_remaining.as_std()).await,
    };
    answer(value, &wanted)
}

async fn refresh(
    State(agent): State<Arc<Agent>>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let wanted = match agent.wanted(&name, query.as_deref()) {
        Ok((_, wanted)) => wanted,
        Err((code, message)) => return refused(code, &message),
    };
    match condition(&headers) {
        Ok(condition) => answer(agent.client.refresh(&name, condition).await, &wanted),
        Err(message) => refused(StatusCode::BAD_REQUEST, message),
    }
}

impl Agent {
    fn wanted(&self, name: &str, query: Option<&str>) -> Result<(&Handle, Wanted), (StatusCode, String)> {
        let Some(handle) = self.handles.get(name) else {
            let message = "the agent does not keep a TokenCache of that name: name it when the agent is started";
            return Err((StatusCode::NOT_FOUND, message.to_owned()));
        };
        let wanted = Wanted::read(query.unwrap_or_default());
        Ok((handle, wanted.map_err(|message| (StatusCode::BAD_REQUEST, message))?))
    }
}

/// What is to be answered with, by the names of `tokencache fetch`'s flags.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    json: bool,
    key: Option<String>,
    min_remaining: api::Duration,
}

impl Wanted {
    fn read(query: &str) -> Result<Self, String> {
        let mut wanted = Self { json: false, key: None, min_remaining: api::Duration::from_secs(0) };
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match (&*name, &*value) {
                ("output", "json") => wanted.json = true,
                ("output", "value") => wanted.json = false,
                ("key", key) => wanted.key = Some(key.to_owned()),
                ("min-remaining", text) => wanted.min_remaining = text.parse().map_err(|error| format!("{error}"))?,
                _ => return Err("there are output=value, output=json, key=KEY and min-remaining=DURATION".into()),
            }
        }
        Ok(wanted)
    }
}

/// `If-Match` (RFC 9110 §13.1.1) with the `ETag` of the value that failed the caller: where there is another one
/// already, the change was made, and it is given.
fn condition(headers: &HeaderMap) -> Result<Condition, &'static str> {
    let mut all = headers.get_all(IF_MATCH).iter();
    let (Some(tag), None) = (all.next(), all.next()) else {
        return if headers.contains_key(IF_MATCH) { Err(ONE_TAG) } else { Ok(Condition::Always) };
    };
    if tag.as_bytes() == b"*" {
        return Ok(Condition::Always);
    }
    let stamp = tag.to_str().ok().and_then(|text| text.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok());
    stamp.map(Condition::IfStill).ok_or(ONE_TAG)
}

const ONE_TAG: &str = "If-Match takes one ETag, as an answer gave it, with its quotes";

fn tag(stamp: &Stamp) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("\"{stamp}\"")).ok()
}

fn answer(value: Result<Arc<Value>, Error>, wanted: &Wanted) -> Response {
    match value.and_then(|value| body(&value, wanted).map(|body| (value, body))) {
        Ok((value, body)) => {
            let kind = if wanted.json { "application/json" } else { "application/octet-stream" };
            // The body is wiped when it was sent.
            let mut response = Body::from(Bytes::from_owner(body)).into_response();
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.extend(tag(value.stamp()).map(|tag| (ETAG, tag)));
            let expires_at = HeaderValue::from_str(&value.expires_at().whole_seconds().to_string());
            headers.extend(expires_at.ok().map(|expires_at| (EXPIRES_AT, expires_at)));
            response
        }
        Err(error) => refused(status(&error), &explain(&error)),
    }
}

fn body(value: &Value, wanted: &Wanted) -> Result<Zeroizing<Vec<u8>>, Error> {
    let key = wanted.key.as_deref();
    if wanted.json { value.to_json(key) } else { Ok(Zeroizing::new(value.select(key)?.expose().to_vec())) }
}

fn refused(status: StatusCode, message: &str) -> Response {
    (status, [(CACHE_CONTROL, "no-store")], format!("{message}\n")).into_response()
}

/// 502: what the value comes from has failed. 503: the agent cannot ask for it, or nobody fetches it. 504: no answer.
fn status(error: &Error) -> StatusCode {
    match error {
        Error::NoSuchKey { .. } | Error::NotText { .. } => StatusCode::BAD_REQUEST,
        Error::NotFound { .. } => StatusCode::NOT_FOUND,
        Error::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        Error::Suspended { .. } | Error::Forbidden { .. } | Error::NotInstalled | Error::Api(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Error::Failed { .. } | Error::Expired { .. } | Error::NearlyExpired { .. } | Error::NotOwned { .. } => {
            StatusCode::BAD_GATEWAY
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_be_named() {
        for good in ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:8200", "127.3.2.1:1", "[::1]", "[::1]:8200"] {
            assert!(is_local(good), "{good}");
        }
        for wrong in [
            "",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "10.0.0.1:80",
            "[::2]",
            "[::1]x",
            "[::1",
            "localhost:x",
            "localhost:80:80",
            "::1",
        ] {
            assert!(!is_local(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_condition_is_one_tag_of_a_value() {
        let read = |tags: &[&str]| {
            let header = |tag: &&str| (IF_MATCH, HeaderValue::from_str(tag).unwrap());
            let mut headers = HeaderMap::new();
            tags.iter().map(header).for_each(|(name, value)| {
                headers.append(name, value);
            });
            condition(&headers)
        };
        let stamp: Stamp = "2026-03-01T12:00:00Z/ab-cd".parse().unwrap();
        let written = tag(&stamp).unwrap();
        assert_eq!(read(&[written.to_str().unwrap()]), Ok(Condition::IfStill(stamp)));
        assert_eq!(read(&[]), Ok(Condition::Always));
        assert_eq!(read(&["*"]), Ok(Condition::Always));
        for wrong in
            [&["x"][..], &["\"x\""], &["\"2026-03-01T12:00:00Z/a\", \"2026-03-01T12:00:00Z/b\""], &["*", "*"], &[""]]
        {
            assert_eq!(read(wrong), Err(ONE_TAG), "{wrong:?}");
        }
    }

    #[test]
    fn a_query_has_the_names_of_the_flags() {
        let wanted = Wanted::read("output=json&key=tls.crt&min-remaining=1m30s").unwrap();
        let min_remaining = api::Duration::from_secs(90);
        assert_eq!(wanted, Wanted { json: true, key: Some("tls.crt".into()), min_remaining });
        for wrong in ["output=env", "key", "minremaining=1s", "min-remaining=soon", "x=1"] {
            let read = Wanted::read(wrong);
            assert!(read.is_err() || wrong == "key", "{wrong}: {read:?}");
        }
    }
}
