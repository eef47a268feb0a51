//! Whole attempts over real sockets, with the servers in this process; only the Kubernetes API is played.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod addresses;
mod answers;
mod connections;
mod github_app;
mod grants;
mod http;
mod rotation;
mod unasked;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ::http::{HeaderMap, Response, header};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::{AddressRules, Failure, Fetched, Fetcher, FetcherConfig, JobSettings, PodSecurity, resolver::Lookup};
use crate::{
    api::{TokenCache, reason::Reason},
    time::Clock,
};

/// What a server saw of a request.
#[derive(Clone, Debug)]
struct Seen {
    method: String,
    target: String,
    headers: HeaderMap,
    body: String,
}

impl Seen {
    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn form(&self) -> Vec<(String, String)> {
        url::form_urlencoded::parse(self.body.as_bytes()).into_owned().collect()
    }
}

/// A server that keeps what it saw and answers as it is told.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    fn router(
        seen: Arc<Mutex<Vec<Seen>>>,
        respond: impl Fn(&Seen) -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> Router {
        Router::new().fallback(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let body = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
            let one =
                Seen { method: parts.method.to_string(), target: parts.uri.to_string(), headers: parts.headers, body };
            seen.lock().push(one.clone());
            respond(&one)
        })
    }

    async fn start(respond: impl Fn(&Seen) -> Response<Body> + Clone + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let router = Self::router(server.seen.clone(), respond);
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn url(&self) -> String {
        format!("http://{}/token?tenant=hidden", self.address)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

fn answer(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).unwrap()
}

/// A good token, and an end to the connection, so that the next fetch makes one of its own.
fn token(_: &Seen) -> Response<Body> {
    let mut response = answer(200, r#"{"access_token":"t0ken","token_type":"Bearer","expires_in":3600}"#);
    response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// The objects of the namespace `b`, by kind and name; tests change them while it runs.
#[derive(Clone, Default)]
struct Objects(Arc<Mutex<BTreeMap<String, Value>>>);

impl Objects {
    fn secret(&self, name: &str, data: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = data.iter().map(|(key, value)| (*key, BASE64_STANDARD.encode(value))).collect();
        let metadata = json!({"name": name, "labels": {"tokencache.dev/source": "true"}});
        self.put("secrets", name, json!({"metadata": metadata, "data": data}));
    }

    fn config_map(&self, name: &str, data: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        self.put("configmaps", name, json!({"metadata": {"name": name}, "data": data}));
    }

    fn put(&self, plural: &str, name: &str, object: Value) {
        self.0.lock().insert(format!("/api/v1/namespaces/b/{plural}/{name}"), object);
    }

    fn data(&self, name: &str, key: &str) -> String {
        let objects = self.0.lock();
        let value = objects[&format!("/api/v1/namespaces/b/secrets/{name}")]["data"][key].as_str().unwrap();
        String::from_utf8(BASE64_STANDARD.decode(value).unwrap()).unwrap()
    }

    fn client(&self) -> kube::Client {
        let objects = self.clone();
        let service = tower::service_fn(move |request: ::http::Request<kube::client::Body>| {
            let objects = objects.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let (status, answer) = objects.answer(&parts, &body);
                let body = kube::client::Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        kube::Client::new(service, "default")
    }

    fn names(&self, plural: &str) -> Vec<String> {
        let objects = self.0.lock();
        let path = format!("/api/v1/namespaces/b/{plural}/");
        objects.keys().filter_map(|key| key.strip_prefix(&path)).map(str::to_owned).collect()
    }

    /// GET, and the creations and updates that tokencache sends.
    fn answer(&self, request: &::http::request::Parts, body: &[u8]) -> (u16, Value) {
        let failure = |code: u16, reason: &str| {
            (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason}))
        };
        let mut objects = self.0.lock();
        let path = request.uri.path();
        if request.method == ::http::Method::GET {
            return objects.get(path).map_or_else(|| failure(404, "NotFound"), |found| (200, found.clone()));
        }
        let mut sent: Value = serde_json::from_slice(body).unwrap();
        let path = match request.method {
            ::http::Method::POST => format!("{path}/{}", sent["metadata"]["name"].as_str().unwrap()),
            _ => path.to_owned(),
        };
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        match (objects.get(&path), &request.method) {
            (None, &::http::Method::POST) => {}
            (Some(found), &::http::Method::PUT) if version(found) == version(&sent) => {}
            (Some(_), _) => return failure(409, "Conflict"),
            (None, _) => return failure(404, "NotFound"),
        }
        if !request.uri.query().unwrap_or_default().contains("dryRun=All") {
            sent["metadata"]["resourceVersion"] = json!(rand::random::<u32>().to_string());
            objects.insert(path, sent.clone());
        }
        (200, sent)
    }
}

const SECRET: &str = "s3cret/+ä";

/// A namespace with the client's secret, a fetcher that may connect to this machine, and names that it can look up.
struct World {
    objects: Objects,
    allow: Vec<&'static str>,
    lookup: Lookup,
}

impl World {
    fn new() -> Self {
        let objects = Objects::default();
        objects.secret("client", &[("secret", SECRET)]);
        Self { objects, allow: vec!["127.0.0.0/8"], lookup: names(&[]) }
    }

    fn fetcher(&self) -> Fetcher {
        let allow = self.allow.iter().map(|net| net.parse().unwrap()).collect();
        let config = FetcherConfig {
            addresses: AddressRules::new(allow, vec![]),
            require_source_label: true,
            jobs: JobSettings {
                allowed: true,
                collector_image: String::new(),
                pod_security: PodSecurity::Restricted,
                service_account: None,
            },
            max_token_lifetime: Duration::from_secs(86400),
            target_types: vec!["Opaque".to_owned()],
            lease_duration: std::time::Duration::from_secs(15),
        };
        Fetcher::with_lookup(self.objects.client(), config, Clock::system(), self.lookup.clone())
    }

    async fn fetch(&self, cache: &TokenCache) -> Result<Fetched, Failure> {
        self.fetcher().fetch(cache).await
    }
}

/// A resolver that knows these names, each with the addresses of its first, second, … look-up; the last one stays.
fn names(known: &[(&str, &[&[&str]])]) -> Lookup {
    let parse = |ips: &&[&str]| ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect::<Vec<_>>();
    let known: BTreeMap<String, Vec<Vec<IpAddr>>> =
        known.iter().map(|(name, answers)| ((*name).to_owned(), answers.iter().rev().map(parse).collect())).collect();
    let known = Arc::new(Mutex::new(known));
    Arc::new(move |name| {
        let mut known = known.lock();
        let found = known
            .get_mut(&name)
            .and_then(|answers| if answers.len() > 1 { answers.pop() } else { answers.last().cloned() });
        Box::pin(async move { found.ok_or_else(|| std::io::Error::other("failed to lookup address information")) })
    })
}

/// A TokenCache whose `oauth2` has these fields, too.
fn cache(url: &str, change: Value) -> TokenCache {
    let mut oauth2 = json!({"tokenUrl": url, "clientId": "me", "clientSecretRef": {"name": "client", "key": "secret"}});
    for (field, value) in change.as_object().unwrap() {
        oauth2[field] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
        "metadata": {"name": "a", "namespace": "b"}, "spec": {"fetch": {"oauth2": oauth2}},
    }))
    .unwrap()
}

/// That a fetch failed so, with all of these words, and with nothing that was to be kept.
#[track_caller]
fn assert_failed(fetched: Result<Fetched, Failure>, reason: Reason, words: &[&str]) -> Failure {
    let failure = fetched.map(|_| ()).expect_err("a failure");
    assert_eq!(failure.reason, reason, "{failure}");
    for word in words {
        assert!(failure.message.contains(word), "{word:?} is not in: {failure}");
    }
    let pair = BASE64_STANDARD.encode("me:s3cret%2F%2B%C3%A4");
    for kept in [SECRET, "s3cret", "hidden", "t0ken", &pair] {
        assert!(!failure.message.contains(kept), "{kept:?} is in: {failure}");
    }
    failure
}

#[track_caller]
fn assert_token(fetched: Result<Fetched, Failure>) {
    let fetched = fetched.expect("a token");
    assert_eq!(fetched.token.expect("a token").expose_secret(), "t0ken");
}
