//! The cluster, the token servers and the settings that all rows share.

use std::{fs::File, str::FromStr, sync::Arc, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokencache::client::connect;

use crate::support::{
    Controller, Launch, Namespace,
    manifests::{CREDENTIALS, source_secret, token_cache},
    server::{Behaviour, Expiry, Options, TokenServer},
};

/// All rows, in their order.
pub const ROWS: [&str; 7] = ["new", "refresh", "idle", "lag", "replicas", "growth", "neighbours"];

/// A destination gets a quarter of a controller's places: with four, all are used.
const SERVERS: u8 = 4;

/// How much is measured; each by an environment variable of the same name.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `ROWS`
    pub rows: Vec<String>,
    /// `NEW`: TokenCaches that are created at once.
    pub new: usize,
    /// `MANY`: TokenCaches that are refreshed, and that are idle.
    pub many: usize,
    /// `WINDOW`: how long each look at what goes on lasts.
    pub window: Duration,
    /// `ROUNDS`: how often floor and controller take turns.
    pub rounds: usize,
    /// `CONCURRENCY`: of the floor and of the controller.
    pub concurrency: usize,
    /// `GROWTH`: numbers of TokenCaches, growing.
    pub growth: Vec<usize>,
}

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        _ => default,
    }
}

fn words(name: &str, default: &str) -> Vec<String> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned());
    text.split_whitespace().map(str::to_owned).collect()
}

impl Settings {
    fn read() -> Self {
        Self {
            rows: words("ROWS", &ROWS.join(" ")),
            new: setting("NEW", 2000),
            many: setting("MANY", 10_000),
            window: Duration::from_secs(setting("WINDOW", 30)),
            rounds: setting("ROUNDS", 3),
            concurrency: setting("CONCURRENCY", 64),
            growth: words("GROWTH", "1000 3000 10000 30000 100000")
                .iter()
                .map(|word| word.parse().unwrap_or_else(|_| panic!("GROWTH: {word} is no number")))
                .collect(),
        }
    }
}

/// What all rows share.
pub struct World {
    /// How much is measured.
    pub settings: Settings,
    servers: Vec<TokenServer>,
    /// They stay until the end, since their deletion would disturb what is measured next.
    namespaces: Mutex<Vec<Arc<Namespace>>>,
}

impl World {
    /// Starts the token servers.
    pub async fn new() -> Self {
        let first = TokenServer::start(Options::default()).expect("a token server");
        let (id, secret) = (first.options().client_id.clone(), first.options().client_secret.clone());
        let mut servers = vec![first];
        servers.extend((2..=SERVERS).map(|last| {
            let (client_id, client_secret) = (id.clone(), secret.clone());
            let listen = ([127, 0, 0, last], 0).into();
            TokenServer::start(Options { listen, client_id, client_secret, ..Options::default() }).expect("a server")
        }));
        Self { settings: Settings::read(), servers, namespaces: Mutex::default() }
    }

    /// The token server of a TokenCache.
    pub fn server(&self, number: usize) -> &TokenServer {
        &self.servers[number % self.servers.len()]
    }

    /// From now on, the tokens of so many TokenCaches live for this many seconds; as long as by default, where it is not said.
    pub fn issue_for(&self, count: usize, seconds: Option<u64>) {
        for number in 0..count {
            let issue = seconds.map_or(Behaviour::Default, |seconds| Behaviour::Issue(Expiry::In(seconds)));
            self.server(number).set(&name(number), issue);
        }
    }

    /// Requests to all token servers.
    pub fn fetches(&self) -> usize {
        self.servers.iter().map(TokenServer::all_requests).sum()
    }

    /// A namespace with the credentials.
    pub async fn namespace(&self) -> Arc<Namespace> {
        let ns = Arc::new(Namespace::new().await);
        let secret = source_secret(CREDENTIALS, &self.servers[0].options().client_secret, true);
        ns.create::<k8s_openapi::api::core::v1::Secret>(secret).await;
        self.namespaces.lock().push(ns.clone());
        ns
    }

    /// The manifest of a TokenCache; `refresh` is `spec.refresh`.
    pub fn manifest(&self, number: usize, refresh: Value) -> Value {
        token_cache(&name(number), self.server(number), json!({ "refresh": refresh }))
    }

    /// A controller of one namespace, which is not waited for.
    pub async fn controller(&self, ns: &Namespace) -> Controller {
        // One namespace gets three quarters of the slots.
        let concurrency = (self.settings.concurrency * 4).div_ceil(3).to_string();
        let arguments = ["--concurrency", &concurrency];
        Controller::spawn(ns, Launch { log: "info", arguments: &arguments, ..Launch::default() }).await
    }
}

/// The name of a TokenCache.
pub fn name(number: usize) -> String {
    format!("cache-{number:06}")
}

/// A client with the rights of the namespace's controllers, so that the API server has the same to check.
pub async fn client_of(ns: &Namespace) -> Client {
    let file = Kubeconfig::read_from(ns.account().await.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
    connect(config).expect("a client")
}
