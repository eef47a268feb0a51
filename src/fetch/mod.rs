//! A source's settings to a [`Fetched`] value; one file per source.
//!
//! A new source is a file with `fetch`, `endpoint` and `references`, and an arm in each `match` on [`Source`] here.

mod address_rules;
mod body;
mod cel;
mod certificate;
mod consent;
mod expiry;
pub(crate) mod fair_semaphore;
mod github_app;
mod hosts;
mod http;
mod http_client;
pub(crate) mod job;
mod json;
mod lookup;
mod memory;
mod oauth2;
mod pem;
mod redact;
mod redirect;
mod render;
mod resolver;
mod service_account_token;
mod signing;
mod source_objects;
pub(crate) mod spec_hash;
mod state_secret;
#[cfg(test)]
mod test_keys;
mod tls;
mod token_request;
mod transport_error;
mod validate;
#[cfg(test)]
mod wire_tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

pub use self::{
    address_rules::AddressRules,
    cel::{apart, waiting as expressions_waiting},
    job::{JobSettings, PodSecurity},
    lookup::lookups,
    memory::{Held, large_fetches},
    render::render_in_turn,
    spec_hash::fetch_hash,
    validate::{check, is_quick},
};
use self::{hosts::Server, http_client::Clients, memory::Memory, source_objects::Sources, token_request::TokenLimits};
use crate::{
    api::{
        ExpiresAt, Refresh, Source, TokenCache, TokenCacheSpec,
        oauth2::{CaKind, Proxy, Tls},
        reason::Reason,
    },
    k8s::object::OwnerRef,
    time::Clock,
};

/// A credential as its source gave it. Does not print, and is wiped when dropped.
#[derive(Debug)]
pub struct Fetched {
    /// The token, where the source gives a single one.
    pub token: Option<SecretString>,
    /// Named values, where it gives several.
    pub values: BTreeMap<String, SecretString>,
    /// When it expires.
    pub expires_at: ExpiresAt,
    /// What it takes of the memory that all fetches share, until it is dropped.
    pub held: Held,
}

/// Why a fetch gave no value. The message says what was wrong and where; it never holds a secret, a token or a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Failure {
    /// The reason, which also decides whether trying again makes sense.
    pub reason: Reason,
    /// What was wrong and where.
    pub message: String,
    /// How long the server asked to be left alone (RFC 9110 §10.2.3).
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure after which the server named no wait.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), retry_after: None }
    }
}

/// How values are fetched, whatever the TokenCache.
#[derive(Clone, Debug)]
pub struct FetcherConfig {
    /// Which addresses may be connected to.
    pub addresses: AddressRules,
    /// Whether a Secret must bear the label tokencache.dev/source: "true" to be read.
    pub require_source_label: bool,
    /// How the source `job` is used.
    pub jobs: JobSettings,
    /// The longest lifetime that is asked for a token of a service account.
    pub max_token_lifetime: Duration,
    /// The types that the Secret with the value may have.
    pub target_types: Vec<String>,
    /// How long a Lease lasts that is not renewed.
    pub lease_duration: Duration,
}

/// Fetches values. Clones share their connections.
#[derive(Clone)]
pub struct Fetcher(Arc<Inner>);

struct Inner {
    client: kube::Client,
    clients: Clients,
    require_source_label: bool,
    jobs: JobSettings,
    max_token_lifetime: Duration,
    target_types: Vec<String>,
    late: Duration,
    clock: Clock,
    stopping: CancellationToken,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetcher")
    }
}

/// What a source has at hand in one attempt.
struct Attempt<'a> {
    sources: Sources,
    client: &'a kube::Client,
    owner: OwnerRef,
    clients: &'a Clients,
    clock: &'a Clock,
    phase: Phase,
    /// How long the answer to a request that cannot be taken back is awaited after the fetch was given up.
    late: Duration,
    /// What must be seen to even when the fetch is dropped.
    ends: &'a TaskTracker,
}

/// What a source got.
struct Obtained {
    token: Option<SecretString>,
    members: json::Members,
    /// The named values, where they are not all the members.
    values: Option<json::Members>,
    /// Just before the request.
    sent: DateTime<Utc>,
    /// Who gave it, for messages.
    from: String,
}

/// What a fetch waits for, where that may take long and people can do something about it. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<watch::Sender<String>>);

impl Progress {
    /// What it waits for; empty where there is nothing to tell.
    #[must_use]
    pub fn waits_for(&self) -> String {
        self.0.borrow().clone()
    }

    /// Notified of each change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<String> {
        self.0.subscribe()
    }

    fn set(&self, what: &str) {
        self.0.send_if_modified(|known| {
            let changed = known != what;
            if changed {
                what.clone_into(known);
            }
            changed
        });
    }
}

/// What an attempt is doing, for the message when its time is up.
#[derive(Clone, Default)]
struct Phase {
    doing: Arc<Mutex<String>>,
    progress: Progress,
    namespace: Arc<str>,
    /// What it may take of the memory that all share.
    memory: Memory,
}

impl Phase {
    fn set(&self, phase: String) {
        self.progress.set("");
        *self.doing.lock() = phase;
    }

    /// The same, where it may take long.
    fn wait(&self, what: String) {
        self.progress.set(&what);
        *self.doing.lock() = what;
    }

    /// Waits until there is memory for more than a fetch usually takes.
    async fn need_memory(&self, what: &str) {
        if self.memory.is_held() {
            return;
        }
        let before = self.get();
        self.set(format!("waiting for memory for {what}, which other fetches use"));
        self.memory.hold(&self.namespace).await;
        self.set(before);
    }

    fn waits(&self) -> bool {
        !self.progress.0.borrow().is_empty()
    }

    fn get(&self) -> String {
        self.doing.lock().clone()
    }
}

impl Fetcher {
    /// A fetcher that reads referenced objects by this client.
    #[must_use]
    pub fn new(client: kube::Client, config: FetcherConfig, clock: Clock) -> Self {
        Self::with_lookup(client, config, clock, lookup::system_lookup())
    }

    fn with_lookup(client: kube::Client, config: FetcherConfig, clock: Clock, lookup: resolver::Lookup) -> Self {
        let FetcherConfig { addresses, require_source_label, jobs, max_token_lifetime, target_types, lease_duration } =
            config;
        Self(Arc::new(Inner {
            client,
            clients: Clients::new(addresses, lookup),
            require_source_label,
            jobs,
            max_token_lifetime,
            target_types,
            late: oauth2::late(lease_duration),
            clock,
            stopping: CancellationToken::new(),
        }))
    }

    /// To be cancelled when the process is about to end: from then on, a job whose fetch is dropped is left to the next
    /// run, which takes it over.
    #[must_use]
    pub fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    /// One attempt, within `spec.fetch.timeout`.
    ///
    /// # Errors
    /// Why there is no value.
    pub async fn fetch(&self, cache: &TokenCache) -> Result<Fetched, Failure> {
        let ends = TaskTracker::new();
        let fetched = self.fetch_leaving(cache, None, &ends, &Progress::default()).await;
        ends.close();
        ends.wait().await;
        fetched
    }

    /// The same, for who may drop it before it is done: what must be seen to even then, such as the end of a Job, goes
    /// on in `ends`, and is limited in time. A token of a service account is bound to `secret`, the Secret with this UID
    /// that is to hold it; without one, it has a short lifetime.
    ///
    /// # Errors
    /// Why there is no value.
    pub async fn fetch_leaving(
        &self,
        cache: &TokenCache,
        secret: Option<&str>,
        ends: &TaskTracker,
        progress: &Progress,
    ) -> Result<Fetched, Failure> {
        let limit = cache.spec.fetch.timeout();
        let namespace = cache.metadata.namespace.as_deref().unwrap_or_default().into();
        let phase = Phase { progress: progress.clone(), namespace, ..Phase::default() };
        tokio::time::timeout(limit, Box::pin(self.attempt(cache, secret, phase.clone(), ends))).await.unwrap_or_else(
            |_| {
                let message = format!("Timed out after {limit:?} (spec.fetch.timeout) while {}", phase.get());
                Err(Failure::new(Reason::Timeout, message))
            },
        )
    }

    async fn attempt(
        &self,
        cache: &TokenCache,
        secret: Option<&str>,
        phase: Phase,
        ends: &TaskTracker,
    ) -> Result<Fetched, Failure> {
        let Inner { client, clients, require_source_label, jobs, late, clock, stopping, .. } = &*self.0;
        validate::check_type(cache.spec.target.secret_type(), &self.0.target_types)
            .map_err(|invalid| Failure::new(Reason::InvalidSpec, invalid.to_string()))?;
        let owner = crate::k8s::object::OwnerRef::of(cache);
        let (server, proxy) = peers(&cache.spec);
        let goes_to = [server, proxy].map(|url| url.as_ref().and_then(Server::of));
        let tokens = TokenLimits {
            secret: secret.map(|uid| (cache.secret_name().to_owned(), uid.to_owned())),
            max_lifetime: self.0.max_token_lifetime,
        };
        let sources = Sources::new(source_objects::Settings {
            client: client.clone(),
            namespace: owner.namespace.clone(),
            require_label: *require_source_label,
            tokens,
            phase: phase.clone(),
            goes_to,
        });
        let mut attempt = Attempt { sources, client, owner, clients, clock, phase, late: *late, ends };
        let Obtained { token, members, values, sent, from } = match cache.spec.fetch.source() {
            Some(Source::OAuth2(oauth2)) => oauth2::fetch(&mut attempt, oauth2).await?,
            Some(Source::Http(http)) => http::fetch(&mut attempt, http).await?,
            Some(Source::ServiceAccountToken(source)) => service_account_token::fetch(&mut attempt, source).await?,
            Some(Source::Job(_)) if !jobs.allowed => return Err(job::switched_off()),
            Some(Source::GitHubApp(app)) => github_app::fetch(&mut attempt, app).await?,
            Some(Source::Job(job)) => {
                let place = job::Place { client, ends, stopping, settings: jobs, cache };
                Box::pin(job::fetch(&mut attempt, &place, job)).await?
            }
            None => return Err(Failure::new(Reason::InvalidSpec, "spec.fetch: exactly one source must be set")),
        };
        let stated = expiry::Stated {
            expires_in: members.get("expires_in"),
            expires_at: members.get("expires_at"),
            token: token.as_ref().map(|token| token.expose_secret()),
        };
        let Refresh { min_remaining, .. } = cache.spec.refresh;
        let expires_at = expiry::decide(&stated, &cache.spec.expiry, min_remaining, sent, clock.now())
            .map_err(|failure| Failure { message: format!("{from}: {}", failure.message), ..failure })?;
        let values = values.unwrap_or(members);
        let values = values.into_iter().filter_map(|(name, member)| Some((name, member.into_value()?))).collect();
        Ok(Fetched { token, values, expires_at, held: attempt.phase.memory.take() })
    }
}

/// Whether the value is bound to the Secret that holds it, and void without it.
#[must_use]
pub fn is_bound(spec: &TokenCacheSpec) -> bool {
    matches!(spec.fetch.source(), Some(Source::ServiceAccountToken(_)))
}

/// Host and port that a fetch talks to, for the limit per destination: the proxy's, if there is one. `None` for
/// sources that talk to no server of their own, and for URLs that cannot be read.
#[must_use]
pub fn destination(spec: &TokenCacheSpec) -> Option<String> {
    let (server, proxy) = peers(spec);
    proxy.or(server).as_ref().map(http_client::host_and_port)
}

/// The URLs of the server that a fetch talks to, and of the proxy.
fn peers(spec: &TokenCacheSpec) -> (Option<Url>, Option<Url>) {
    let (url, proxy) = match spec.fetch.source() {
        Some(Source::OAuth2(oauth2)) => oauth2::endpoint(oauth2),
        Some(Source::GitHubApp(app)) => github_app::endpoint(app),
        Some(Source::Http(http)) => http::endpoint(http),
        Some(Source::ServiceAccountToken(_) | Source::Job(_)) | None => return (None, None),
    };
    (Url::parse(url).ok(), proxy.and_then(|proxy| Url::parse(proxy).ok()))
}

/// Kind of an object that a spec refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReferenceKind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
    /// A ServiceAccount.
    ServiceAccount,
}

impl ReferenceKind {
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ConfigMap => "configmaps",
            Self::ServiceAccount => "serviceaccounts",
        }
    }
}

impl fmt::Display for ReferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::ServiceAccount => "ServiceAccount",
        })
    }
}

/// An object in the TokenCache's namespace that its spec refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Its kind.
    pub kind: ReferenceKind,
    /// Its name.
    pub name: String,
}

impl Reference {
    fn secret(name: &str) -> Self {
        Self { kind: ReferenceKind::Secret, name: name.to_owned() }
    }

    fn service_account(name: &str) -> Self {
        Self { kind: ReferenceKind::ServiceAccount, name: name.to_owned() }
    }

    /// What `tls` and `proxy` refer to, which all HTTP sources take.
    fn of_connection<'a>(tls: Option<&'a Tls>, proxy: Option<&'a Proxy>) -> impl Iterator<Item = Self> + use<'a> {
        let ca = tls.and_then(|tls| tls.ca_ref.as_ref()).map(|ca| Self {
            kind: match ca.kind {
                CaKind::Secret => ReferenceKind::Secret,
                CaKind::ConfigMap => ReferenceKind::ConfigMap,
            },
            name: ca.name.clone(),
        });
        let certificate = tls.and_then(|tls| tls.client_cert_ref.as_ref());
        let credentials = proxy.and_then(|proxy| proxy.credentials_ref.as_ref());
        ca.into_iter().chain([certificate, credentials].into_iter().flatten().map(|secret| Self::secret(&secret.name)))
    }
}

/// The Secret in which a TokenCache stores rotated refresh tokens, if it has any: another replica may write to it late.
#[must_use]
pub fn token_state(cache: &TokenCache) -> Option<Reference> {
    let refreshes =
        matches!(cache.spec.fetch.source(), Some(Source::OAuth2(oauth2)) if oauth2.refresh_token_ref.is_some());
    refreshes.then(|| Reference::secret(&state_secret::name(&crate::k8s::object::OwnerRef::of(cache))))
}

/// The objects that a spec refers to, for watches: sorted, each once.
#[must_use]
pub fn references(spec: &TokenCacheSpec) -> Vec<Reference> {
    let found: BTreeSet<Reference> = match spec.fetch.source() {
        Some(Source::OAuth2(oauth2)) => oauth2::references(oauth2).collect(),
        Some(Source::Http(http)) => http::references(http).collect(),
        Some(Source::ServiceAccountToken(source)) => service_account_token::references(source).collect(),
        Some(Source::GitHubApp(app)) => github_app::references(app).collect(),
        Some(Source::Job(job)) => job::references(job).collect(),
        None => BTreeSet::new(),
    };
    found.into_iter().collect()
}
