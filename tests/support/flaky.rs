//! An API server in trouble: a small proxy in front of the real one, which refuses, cuts, belies and delays at random.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::body::Body;
use futures::{StreamExt as _, future::BoxFuture, stream};
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tempfile::NamedTempFile;
use tokencache::client::connect;
use tokio::sync::watch;
use tower::make::Shared;

use super::{
    Namespace, in_background,
    server::endpoint::{Answer, BoxError, Endpoint, Respond},
};

/// Headers that belong to one connection, or that the client sets itself.
const OWN: [HeaderName; 4] = [header::HOST, header::CONNECTION, header::AUTHORIZATION, header::CONTENT_LENGTH];

/// What becomes of requests. Of a hundred, so many meet each fate; all others go well.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Are refused instead of being carried out.
    pub refused: u64,
    /// Are carried out, and answered as if they were refused.
    pub belied: u64,
    /// Are carried out, and the connection is cut instead of an answer.
    pub cut: u64,
    /// With what they are refused.
    pub status: StatusCode,
    /// Whether reads meet it as well, or only writes.
    pub reads: bool,
    /// Each waits for up to this long first.
    pub delay: Duration,
}

impl Default for Trouble {
    fn default() -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { refused: 0, belied: 0, cut: 0, status, reads: false, delay: Duration::ZERO }
    }
}

/// The proxy. It speaks for the namespace's service account, and goes on until the tests end.
pub struct FlakyApi {
    kubeconfig: NamedTempFile,
    state: Arc<State>,
}

struct State {
    client: Client,
    random: Mutex<StdRng>,
    trouble: Mutex<Trouble>,
    /// Changes when all watches are dropped.
    watches: watch::Sender<()>,
    writing: AtomicUsize,
    faults: AtomicUsize,
    /// When a Secret was last patched, dry runs apart: milliseconds of Unix time.
    patched: Mutex<u64>,
}

enum Fate {
    Good,
    Refused,
    Belied,
    Cut,
}

impl FlakyApi {
    /// Starts it.
    pub async fn start(ns: &Namespace, seed: u64, trouble: Trouble) -> Self {
        let file = Kubeconfig::read_from(ns.account().await.kubeconfig()).expect("a kubeconfig");
        let config =
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
        let state = Arc::new(State {
            client: connect(config).expect("a client"),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            trouble: Mutex::new(trouble),
            watches: watch::Sender::new(()),
            writing: AtomicUsize::new(0),
            faults: AtomicUsize::new(0),
            patched: Mutex::new(0),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("it does not block");
        let address = listener.local_addr().expect("an address");
        let service = Shared::new(Endpoint(state.clone()));
        let server = axum_server::from_tcp(listener).expect("a server").serve(service);
        in_background(async move { server.await.expect("it serves") });
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

    /// From now on, requests meet this.
    pub fn set(&self, trouble: Trouble) {
        *self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Cuts all watches that are open.
    pub fn drop_watches(&self) {
        self.state.watches.send_replace(());
    }

    /// How many writes are being carried out.
    pub fn writing(&self) -> usize {
        self.state.writing.load(Ordering::SeqCst)
    }

    /// How many requests have failed.
    pub fn faults(&self) -> usize {
        self.state.faults.load(Ordering::SeqCst)
    }

    /// When a Secret was last patched, in milliseconds of Unix time.
    pub fn patched(&self) -> u64 {
        *self.state.patched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Respond for State {
    fn respond(self: Arc<Self>, request: Request<Body>) -> BoxFuture<'static, Answer> {
        // As the API server does: what was sent is carried out, whatever becomes of who sent it.
        Box::pin(async move { tokio::spawn(async move { self.pass(request).await }).await? })
    }
}

impl State {
    /// What becomes of a request, how it is refused, and for how long it waits first.
    fn draw(&self, writes: bool) -> (Fate, StatusCode, Duration) {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let delay = trouble.delay.mul_f64((random.next_u64() % 1000) as f64 / 1000.0);
        let mut draw = random.next_u64() % 100;
        let mut falls = |share: u64| {
            let falls = draw < share;
            draw = draw.wrapping_sub(share);
            falls
        };
        let fate = match trouble {
            Trouble { reads: false, .. } if !writes => Fate::Good,
            Trouble { refused, .. } if falls(refused) => Fate::Refused,
            Trouble { belied, .. } if falls(belied) => Fate::Belied,
            Trouble { cut, .. } if falls(cut) => Fate::Cut,
            _ => Fate::Good,
        };
        if !matches!(fate, Fate::Good) {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        (fate, trouble.status, delay)
    }

    async fn pass(&self, request: Request<Body>) -> Answer {
        let query = request.uri().query().unwrap_or_default();
        let watches = query.split('&').any(|item| matches!(item, "watch=true" | "watch=1"));
        let writes = request.method() != Method::GET;
        let patches = request.method() == Method::PATCH
            && request.uri().path().contains("/secrets/")
            && !query.contains("dryRun");
        let (fate, status, delay) = self.draw(writes);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if matches!(fate, Fate::Refused) {
            return refuse(status);
        }
        let _writing = writes.then(|| Writing::begin(&self.writing));
        let dropped = self.watches.subscribe();
        let response = self.forward(request).await?;
        if patches && response.status().is_success() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
            *self.patched.lock().unwrap_or_else(PoisonError::into_inner) = u64::try_from(now).expect("it fits");
        }
        match fate {
            Fate::Belied => refuse(status),
            Fate::Cut => Err("told to cut the connection".into()),
            _ if watches => Ok(response.map(|body| until_dropped(body, dropped))),
            _ => Ok(response),
        }
    }

    async fn forward(&self, request: Request<Body>) -> Answer {
        let (mut parts, body) = request.into_parts();
        OWN.iter().for_each(|name| drop(parts.headers.remove(name)));
        let body = axum::body::to_bytes(body, usize::MAX).await?;
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        parts.uri = path.parse()?;
        let response = self.client.send(Request::from_parts(parts, kube::client::Body::from(body))).await?;
        Ok(response.map(Body::new))
    }
}

/// Counts a write for as long as it is carried out.
struct Writing<'a>(&'a AtomicUsize);

impl<'a> Writing<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A watch that breaks off when all are dropped.
fn until_dropped(body: Body, mut dropped: watch::Receiver<()>) -> Body {
    let end = async move { dropped.changed().await };
    let body = body.into_data_stream().map(|chunk| chunk.map_err(BoxError::from)).take_until(end);
    Body::from_stream(body.chain(stream::iter([Err(BoxError::from("the watch is dropped"))])))
}

/// As the API server words it. Its own limit of requests (429) is told in plain text.
fn refuse(status: StatusCode) -> Answer {
    let reason = match status {
        StatusCode::CONFLICT => "Conflict",
        StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
        StatusCode::GATEWAY_TIMEOUT => "Timeout",
        _ => "ServiceUnavailable",
    };
    let response = Response::builder().status(status);
    if status == StatusCode::TOO_MANY_REQUESTS {
        let body = Body::from("Too many requests, please try again later.\n");
        return Ok(response.header(header::RETRY_AFTER, "1").body(body)?);
    }
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "told to fail",
        "reason": reason, "code": status.as_u16(),
    });
    Ok(response.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string()))?)
}
