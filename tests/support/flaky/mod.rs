//! A proxy before the API server. It refuses, delays, cuts and freezes requests at random ([`Trouble`]) or by rules
//! ([`When`], [`Action`]). Controllers, agents and commands go through it by its kubeconfig.

mod answer;
mod rule;
mod stream;
mod trouble;

use std::{
    future,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::body::{Body, Bytes};
use futures::future::BoxFuture;
use http::{HeaderName, Request, header, request::Parts};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokencache::client::connect;
use tower::make::Shared;

pub use self::{
    rule::{Action, Rule, When},
    trouble::Trouble,
};
use self::{
    rule::{Rules, Target, Verdict},
    stream::{Flow, Streams},
    trouble::Lots,
};
use super::{
    Namespace, in_background,
    server::endpoint::{Answer, BoxError, Endpoint, Respond},
};

/// Headers that belong to one connection, or that the client sets itself.
const OWN: [HeaderName; 4] = [header::HOST, header::CONNECTION, header::AUTHORIZATION, header::CONTENT_LENGTH];

/// The proxy. It goes on until the tests end.
pub struct FlakyApi {
    kubeconfig: NamedTempFile,
    state: Arc<State>,
}

struct State {
    client: Client,
    lots: Lots,
    rules: Arc<Rules>,
    streams: Streams,
    writing: AtomicUsize,
    /// When a Secret for states was last written, dry runs apart: milliseconds of Unix time.
    state_written: Mutex<u64>,
}

impl FlakyApi {
    /// Starts one for the namespace's service account, which the controllers use.
    pub async fn start(ns: &Namespace, seed: u64, trouble: Trouble) -> Self {
        Self::launch(ns.account().await.kubeconfig(), seed, trouble).await
    }

    /// Starts one for the user of this kubeconfig; without trouble, only rules change what happens.
    pub async fn before(kubeconfig: &str) -> Self {
        Self::launch(kubeconfig, 0, Trouble::default()).await
    }

    async fn launch(kubeconfig: &str, seed: u64, trouble: Trouble) -> Self {
        let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
        let mut config =
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
        // Each request is sent once: repeating it is up to the program behind the proxy.
        config.default_retry = false;
        let state = Arc::new(State {
            client: connect(config).expect("a client"),
            lots: Lots::new(seed, trouble),
            rules: Arc::default(),
            streams: Streams::default(),
            writing: AtomicUsize::new(0),
            state_written: Mutex::new(0),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("it does not block");
        let address = listener.local_addr().expect("an address");
        let service = Shared::new(Endpoint(state.clone()));
        let mut server = axum_server::from_tcp(listener).expect("a server");
        // A test may remove the API server's date: hyper's own must not take its place.
        server.http_builder().http1().auto_date_header(false);
        in_background(async move { server.serve(service).await.expect("it serves") });
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

    /// From now on, requests that no rule decides about meet this.
    pub fn set(&self, trouble: Trouble) {
        self.state.lots.set(trouble);
    }

    /// From now on, does this to all selected requests, until the rule is removed. Where several rules match, the newest
    /// one decides.
    pub fn always(&self, when: When, action: Action) -> Rule {
        self.state.rules.add(when, action, None)
    }

    /// Does this to the next so many selected requests.
    pub fn next(&self, count: usize, when: When, action: Action) -> Rule {
        self.state.rules.add(when, action, Some(count))
    }

    /// Counts the selected requests from now on.
    pub fn count(&self, when: When) -> Rule {
        self.always(when, Action::Count)
    }

    /// Freezes the selected watches that are established: they stay open, and nothing comes. Says how many.
    pub fn freeze(&self, when: &When) -> usize {
        self.state.streams.set(when, Flow::Frozen)
    }

    /// Lets frozen watches go on, with all that they have missed. Says how many watches are selected.
    pub fn thaw(&self, when: &When) -> usize {
        self.state.streams.set(when, Flow::Open)
    }

    /// Closes the selected watches that are established. Says how many.
    pub fn close(&self, when: &When) -> usize {
        self.state.streams.set(when, Flow::Closed)
    }

    /// Cuts all watches that are open.
    pub fn drop_watches(&self) {
        self.close(&When::any());
    }

    /// How many writes are being carried out.
    pub fn writing(&self) -> usize {
        self.state.writing.load(Ordering::SeqCst)
    }

    /// How many requests have failed by [`Trouble`].
    pub fn faults(&self) -> usize {
        self.state.lots.faults()
    }

    /// When a Secret for states was last written, in milliseconds of Unix time.
    pub fn state_written(&self) -> u64 {
        *self.state.state_written.lock()
    }
}

impl Respond for State {
    fn respond(self: Arc<Self>, request: Request<Body>) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let target = Target::of(&head);
            let mut body = axum::body::to_bytes(body, usize::MAX).await?;
            let mut json: Value = serde_json::from_slice(&body).unwrap_or_default();
            let verdict = self.rules.judge(&target, &json);
            if matches!(verdict.decision, Some((Action::Swallow, _))) {
                // Ends when the client closes the connection.
                future::pending::<()>().await;
            }
            if !verdict.body_edits.is_empty() {
                verdict.body_edits.iter().for_each(|edit| edit(&mut json));
                body = Bytes::from(json.to_string());
            }
            // As the API server does: what was sent is carried out, even if the client has gone.
            tokio::spawn(async move { self.pass(target, head, body, verdict).await }).await?
        })
    }
}

impl State {
    async fn pass(&self, target: Target, head: Parts, body: Bytes, verdict: Verdict) -> Answer {
        let Verdict { decision, header_edits, .. } = verdict;
        let (action, delay) = match decision {
            Some((action, mut rule)) => {
                // The channel closes when the rule is removed.
                while matches!(action, Action::Hold) && rule.changed().await.is_ok() {}
                (action, Duration::ZERO)
            }
            None => self.lots.draw(target.writes()),
        };
        tokio::time::sleep(if let Action::Delay(delay) = action { delay } else { delay }).await;
        match action {
            Action::Answer(status, message) => return answer::refuse(status, message),
            Action::Expired => return answer::expired(),
            Action::Cut => return Err("told to cut the connection".into()),
            _ => {}
        }
        let _writing = target.writes().then(|| Writing::begin(&self.writing));
        let writes_state = target.writes() && target.path.ends_with("-state") && !target.query.contains("dryRun");
        let mut response = self.forward(head, body).await?;
        if writes_state && response.status().is_success() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
            *self.state_written.lock() = u64::try_from(now).expect("it fits");
        }
        header_edits.iter().for_each(|edit| edit(response.headers_mut()));
        let flow = if matches!(action, Action::Freeze) { Flow::Frozen } else { Flow::Open };
        match action {
            Action::AnswerAfter(status, message) => return answer::refuse(status, message),
            Action::CutAfter => return Err("told to cut the connection".into()),
            Action::DelayAnswer(delay) => tokio::time::sleep(delay).await,
            _ => {}
        }
        Ok(if target.watch { response.map(|body| self.streams.add(target, body, flow)) } else { response })
    }

    async fn forward(&self, mut head: Parts, body: Bytes) -> Answer {
        OWN.iter().for_each(|name| drop(head.headers.remove(name)));
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        head.uri = path.parse()?;
        let response = self.client.send(Request::from_parts(head, kube::client::Body::from(body))).await?;
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
