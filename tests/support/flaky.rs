//! An API server whose writes fail at random: a small proxy in front of the real one.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Body, extract::Request, response::Response};
use http::{HeaderName, StatusCode, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::NamedTempFile;

use super::{Namespace, in_background};

/// Of a hundred writes, so many are refused, and as many more are carried out but not answered.
const FAULTS: u64 = 5;

/// Headers that belong to one connection, or that the client sets itself.
const OWN: [HeaderName; 4] = [header::HOST, header::CONNECTION, header::AUTHORIZATION, header::CONTENT_LENGTH];

/// The proxy. It speaks for the namespace's service account, and goes on until the tests end.
pub struct FlakyApi {
    kubeconfig: NamedTempFile,
    state: Arc<State>,
}

struct State {
    client: Client,
    random: Mutex<StdRng>,
    writing: AtomicUsize,
    faults: AtomicUsize,
    /// When a Secret was last patched, dry runs apart: milliseconds of Unix time.
    patched: Mutex<u64>,
}

impl FlakyApi {
    /// Starts it.
    pub async fn start(ns: &Namespace, seed: u64) -> Self {
        let file = Kubeconfig::read_from(ns.account().await.kubeconfig()).expect("a kubeconfig");
        let config =
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
        let state = Arc::new(State {
            client: Client::try_from(config).expect("a client"),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            writing: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
            patched: Mutex::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = state.clone();
        let router = Router::new().fallback(async move |request: Request| {
            let shared = shared.clone();
            // As the API server does: what was sent is carried out, whatever becomes of who sent it.
            tokio::spawn(async move { shared.pass(request).await }).await.expect("an answer")
        });
        in_background(async move { axum::serve(listener, router).await.expect("it serves") });
        let mut kubeconfig = NamedTempFile::new().expect("a file");
        write!(
            kubeconfig,
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}], users: [{{name: u, user: {{}}}}]}}"
        )
        .expect("it is written");
        Self { kubeconfig, state }
    }

    /// Path of a kubeconfig that leads here.
    pub fn kubeconfig(&self) -> &str {
        self.kubeconfig.path().to_str().expect("a path in UTF-8")
    }

    /// How many writes are being carried out.
    pub fn writing(&self) -> usize {
        self.state.writing.load(Ordering::SeqCst)
    }

    /// How many writes have failed.
    pub fn faults(&self) -> usize {
        self.state.faults.load(Ordering::SeqCst)
    }

    /// When a Secret was last patched, in milliseconds of Unix time.
    pub fn patched(&self) -> u64 {
        *self.state.patched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    async fn pass(&self, request: Request) -> Response {
        let writes = request.method() != http::Method::GET;
        if !writes {
            return self.forward(request).await;
        }
        let patches = request.method() == http::Method::PATCH
            && request.uri().path().contains("/secrets/")
            && !request.uri().query().unwrap_or_default().contains("dryRun");
        let draw = self.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64() % 100;
        if draw < 2 * FAULTS {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        if draw < FAULTS {
            return refuse();
        }
        self.writing.fetch_add(1, Ordering::SeqCst);
        let response = self.forward(request).await;
        if patches && response.status().is_success() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
            *self.patched.lock().unwrap_or_else(PoisonError::into_inner) = u64::try_from(now).expect("it fits");
        }
        self.writing.fetch_sub(1, Ordering::SeqCst);
        if draw < 2 * FAULTS { refuse() } else { response }
    }

    async fn forward(&self, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        OWN.iter().for_each(|name| drop(parts.headers.remove(name)));
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        parts.uri = path.parse().expect("a path");
        match self.client.send(http::Request::from_parts(parts, kube::client::Body::from(body))).await {
            Ok(response) => response.map(Body::new),
            Err(_) => refuse(),
        }
    }
}

fn refuse() -> Response {
    let mut response = Response::new(Body::from("told to fail"));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}
