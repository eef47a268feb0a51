//! An OAuth 2.0 token endpoint (RFC 6749 §4.4, and §6 with rotation) that counts its callers, and misbehaves when told to.
//!
//! Every TokenCache of a test has a path of its own, `/c/NAME/token`, and with it counters and a behaviour of its own.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use axum_server::{Handle, tls_rustls::RustlsConfig};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tower::make::Shared;

#[path = "endpoint.rs"]
pub mod endpoint;
#[path = "observer.rs"]
pub mod observer;
#[path = "refresh.rs"]
mod refresh;
#[path = "tls.rs"]
mod tls;
#[path = "token.rs"]
mod token;

/// How a server is set up.
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether it speaks TLS, with a certificate of an authority of its own.
    pub tls: bool,
    /// The one client that it knows.
    pub client_id: String,
    /// That client's secret.
    pub client_secret: String,
    /// Lifetime of the tokens, unless a behaviour says otherwise.
    pub lifetime: Duration,
}

impl Default for Options {
    fn default() -> Self {
        // Characters that a form or a Basic credential must encode: a client that forgets to is refused.
        let client_secret = format!("s+{:016x}/%:&=é {:016x}", rand::random::<u64>(), rand::random::<u64>());
        let client_id = format!("client:{:08x}", rand::random::<u32>());
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            client_id,
            client_secret,
            lifetime: Duration::from_secs(3600),
        }
    }
}

/// How the endpoint answers.
#[derive(Clone)]
pub enum Behaviour {
    /// With a token of the server's lifetime.
    Default,
    /// With a token that says its expiry in this way.
    Issue(Expiry),
    /// With this status, these headers and this body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// As RFC 6749 §5.2 says it: `error` and `error_description`.
    OAuthError(&'static str, String),
    /// Never.
    Hang,
    /// By closing the connection.
    Close,
    /// With 200 and something that is no JSON.
    Garbage,
    /// With 100 MB of a JSON string, streamed.
    Huge,
    /// With a redirect to there.
    Redirect(String),
    /// When the gate is open, and then like that.
    Behind(Gate, Box<Behaviour>),
    /// After that long, and then like that.
    After(Duration, Box<Behaviour>),
    /// With the client's own credentials, or its new token, where a careless client would repeat them.
    Echo(Echo),
}

impl Behaviour {
    /// Whether a request is answered with a token in the end.
    fn issues(&self) -> bool {
        match self {
            Self::Default | Self::Issue(_) => true,
            Self::Behind(_, then) | Self::After(_, then) => then.issues(),
            _ => false,
        }
    }
}

/// How an answer says when its token expires.
#[derive(Clone, Copy)]
pub enum Expiry {
    /// `expires_in`, in seconds.
    In(u64),
    /// `expires_in`, as a numeric string.
    InText(u64),
    /// `expires_at`, RFC 3339, this many seconds from now.
    At(u64),
    /// `expires_at`, Unix seconds, this many seconds from now.
    AtUnix(u64),
    /// `expires_at`, Unix milliseconds, this many seconds from now.
    AtUnixMillis(u64),
    /// Only the `exp` of the JWT.
    JwtOnly(u64),
    /// Not at all: an opaque token.
    Unsaid,
}

/// Where a hostile server repeats what it was told.
#[derive(Clone, Copy, Debug)]
pub enum Echo {
    /// The secret and the `Authorization` header in `error_description`.
    Description,
    /// The secret as the OAuth `error`.
    Error,
    /// The secret in the `Location` of a redirect.
    Location,
    /// The secret in a challenge and in the reason of a 500.
    Headers,
    /// The token as `expires_in`, which a JSON parser might quote.
    ExpiresIn,
    /// The token in what breaks off in mid-JSON.
    Truncated,
    /// The token as `token_type`.
    TokenType,
}

/// Lets callers through once it is open.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Opens it, for good.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    async fn pass(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// What has happened at one path.
#[derive(Clone)]
struct Path {
    behaviour: Behaviour,
    arrivals: Vec<Instant>,
    forms: Vec<BTreeMap<String, String>>,
    inside: usize,
    inside_max: usize,
    crowds: Vec<Instant>,
    issued: Vec<String>,
    issued_at: Vec<Instant>,
    revoked: usize,
    refresh: refresh::Tokens,
}

struct State {
    options: Options,
    signing_key: [u8; 32],
    paths: Mutex<HashMap<String, Path>>,
    changed: watch::Sender<()>,
}

/// A running server. Dropping it ends it.
pub struct TokenServer {
    state: Arc<State>,
    address: SocketAddr,
    ca_pem: Option<String>,
    handle: Handle<SocketAddr>,
}

impl TokenServer {
    /// Starts a server, in the current tokio runtime.
    ///
    /// # Errors
    /// When it cannot listen, or make its certificates.
    pub fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let handle = Handle::new();
        let certificates =
            options.tls.then(|| tls::certificates(address.ip())).transpose().map_err(io::Error::other)?;
        let state = Arc::new(State {
            options,
            signing_key: rand::random(),
            paths: Mutex::default(),
            changed: watch::Sender::new(()),
        });
        let service = Shared::new(endpoint::Endpoint(Arc::clone(&state)));
        let ca_pem = if let Some((config, ca_pem)) = certificates {
            let server = axum_server::from_tcp_rustls(listener, RustlsConfig::from_config(config))?;
            tokio::spawn(server.handle(handle.clone()).serve(service));
            Some(ca_pem)
        } else {
            tokio::spawn(axum_server::from_tcp(listener)?.handle(handle.clone()).serve(service));
            None
        };
        Ok(Self { state, address, ca_pem, handle })
    }

    /// Where it listens: scheme, address and port.
    pub fn base(&self) -> String {
        format!("{}://{}", if self.ca_pem.is_some() { "https" } else { "http" }, self.address)
    }

    /// The token endpoint of one cache.
    pub fn url(&self, cache: &str) -> String {
        format!("{}/c/{cache}/token", self.base())
    }

    /// Certificate of the authority that a client has to trust, in PEM, if the server speaks TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// How it was set up.
    pub fn options(&self) -> &Options {
        &self.state.options
    }

    /// From now on, answers this cache like that. Requests that are inside already are answered as before.
    pub fn set(&self, cache: &str, behaviour: Behaviour) {
        self.state.with(cache, |path| path.behaviour = behaviour);
    }

    /// How many requests have arrived.
    pub fn requests(&self, cache: &str) -> usize {
        self.state.with(cache, |path| path.arrivals.len())
    }

    /// When they arrived.
    pub fn arrivals(&self, cache: &str) -> Vec<Instant> {
        self.state.with(cache, |path| path.arrivals.clone())
    }

    /// The forms that were sent, without the client's secret.
    pub fn forms(&self, cache: &str) -> Vec<BTreeMap<String, String>> {
        self.state.with(cache, |path| path.forms.clone())
    }

    /// The most requests that were ever inside at once. A request whose client's connection drops is out.
    pub fn in_flight_max(&self, cache: &str) -> usize {
        self.state.with(cache, |path| path.inside_max)
    }

    /// When requests arrived while another one was inside.
    pub fn crowds(&self, cache: &str) -> Vec<Instant> {
        self.state.with(cache, |path| path.crowds.clone())
    }

    /// When the tokens were issued to one cache.
    pub fn issued_at(&self, cache: &str) -> Vec<Instant> {
        self.state.with(cache, |path| path.issued_at.clone())
    }

    /// The tokens issued to one cache.
    pub fn issued(&self, cache: &str) -> Vec<String> {
        self.state.with(cache, |path| path.issued.clone())
    }

    /// The token issued to one cache as the so-many-th, counted from 1.
    pub fn issued_as(&self, cache: &str, number: usize) -> Option<String> {
        self.state.with(cache, |path| path.issued.get(number.checked_sub(1)?).cloned())
    }

    /// From now on, the resource refuses what was issued to this cache so far.
    pub fn revoke(&self, cache: &str) {
        self.state.with(cache, |path| path.revoked = path.issued.len());
    }

    /// A new refresh token for one cache; the one before is void. Each request that is answered with a token replaces it,
    /// and voids it when the request arrives, before the answer is sent. A void one is refused, with no other effect.
    pub fn sign_in(&self, cache: &str) -> String {
        self.state.with(cache, |path| path.refresh.sign_in())
    }

    /// The refresh token of one cache that is not void.
    pub fn refresh_token(&self, cache: &str) -> Option<String> {
        self.state.with(cache, |path| path.refresh.valid().cloned())
    }

    /// The refresh tokens of one cache that were sent again after the server had voided them: when they were voided, and
    /// when they were sent again. Only the first time counts: whether a token is still refused may be checked.
    pub fn resent(&self, cache: &str) -> Vec<(Instant, Instant)> {
        self.state.with(cache, |path| path.refresh.resent().to_vec())
    }

    /// The tokens issued to anybody.
    pub fn all_issued(&self) -> Vec<String> {
        self.state.lock().values().flat_map(|path| path.issued.clone()).collect()
    }

    /// Requests to any path.
    pub fn all_requests(&self) -> usize {
        self.state.lock().values().map(|path| path.arrivals.len()).sum()
    }

    /// Waits until that many requests have arrived.
    pub async fn await_requests(&self, cache: &str, count: usize) {
        self.await_path(cache, |path| path.arrivals.len() >= count).await;
    }

    /// Waits until nobody is inside.
    pub async fn await_empty(&self, cache: &str) {
        self.await_path(cache, |path| path.inside == 0).await;
    }

    async fn await_path(&self, cache: &str, condition: impl Fn(&Path) -> bool) {
        let mut changed = self.state.changed.subscribe();
        while !self.state.with(cache, |path| condition(path)) && changed.changed().await.is_ok() {}
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

/// Counts a request as inside for as long as it lives; hyper drops it when the client's connection drops.
struct Inside(Arc<State>, String);

impl Inside {
    fn enter(state: &Arc<State>, cache: &str) -> (Self, Behaviour) {
        let behaviour = state.with(cache, |path| {
            path.arrivals.push(Instant::now());
            path.inside += 1;
            path.inside_max = path.inside_max.max(path.inside);
            if path.inside > 1 {
                path.crowds.push(Instant::now());
            }
            path.behaviour.clone()
        });
        state.changed.send_replace(());
        (Self(Arc::clone(state), cache.to_owned()), behaviour)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.with(&self.1, |path| path.inside -= 1);
        self.0.changed.send_replace(());
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Path>> {
        self.paths.lock()
    }

    fn with<T>(&self, cache: &str, act: impl FnOnce(&mut Path) -> T) -> T {
        act(self.lock().entry(cache.to_owned()).or_insert_with(|| Path {
            behaviour: Behaviour::Default,
            arrivals: Vec::new(),
            forms: Vec::new(),
            inside: 0,
            inside_max: 0,
            crowds: Vec::new(),
            issued: Vec::new(),
            issued_at: Vec::new(),
            revoked: 0,
            refresh: refresh::Tokens::default(),
        }))
    }
}
