//! The library of those who use the values.
//!
//! ```no_run
//! use std::time::Duration;
//! use tokencache::client::{Client, Condition};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(kube::Config::infer().await?, "shop")?;
//!
//! // The cached value, or, where it is missing or has expired, a new one.
//! let value = client.fetch("orders-api").await?;
//! let token: &[u8] = value.select(None)?.expose();
//! println!("{} bytes, valid until {}", token.len(), value.expires_at());
//!
//! // The server refused it: another one, and only one run for all who saw the same.
//! let value = client.refresh("orders-api", Condition::from(&*value)).await?;
//!
//! // For a service: kept fresh in the background, and read without a lock or a request.
//! let handle = client.watch("orders-api");
//! handle.ready().await;
//! if let Some(value) = handle.get() {
//!     println!("valid until {}", value.expires_at());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A value that is still valid is read from its Secret and needs no controller. All else is asked for by
//! `status.refreshRequested`, which cannot change where the credential goes, and awaited by a watch. The rights that
//! each call needs are in `docs/consuming.md`.

mod bearer;
mod cache_watch;
mod clear;
mod decide;
mod error;
mod handle;
mod request;
mod singleflight;
pub(crate) mod token_cache;
mod value;

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use tokio::time::Instant;

#[cfg(test)]
pub(crate) use self::value::tests::value as sample;
pub use self::{
    bearer::{Bearer, BearerLayer, BoxError, Repeatable, Response},
    clear::Cleared,
    decide::Condition,
    error::Error,
    handle::{Current, Handle},
    value::{InvalidStamp, Stamp, Value},
};
use self::{
    decide::{Brought, Now, Wish},
    handle::Fresh,
    request::Shared,
};
pub(crate) use self::{error::Call, token_cache::Cache};
pub use crate::{
    api::ExpiresAt,
    k8s::{client::connect, secret::SecretBytes},
};
use crate::{
    k8s::{
        client::{TimeLimits, connect_through},
        server_time::ClusterTime,
    },
    time::Clock,
};

/// Reads, refreshes and clears the values of one namespace. Clones share their watches and requests.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

struct Inner {
    kube: kube::Client,
    namespace: String,
    timeout: Duration,
    clock: Clock,
    names: Mutex<Names>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// What is shared by all who are concerned with the same TokenCache at the same time, by its name.
#[derive(Default)]
struct Names {
    shared: HashMap<String, Weak<Shared>>,
    fresh: HashMap<String, Weak<Fresh>>,
    /// Names of the Secrets that bear another name than their TokenCache.
    secrets: HashMap<String, String>,
    /// What the last run that was requested here has brought.
    brought: HashMap<String, Brought>,
}

/// How long a caller waits, unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where less than the whole of a call is awaited, an answer of the API server is awaited for so long.
const ANSWER: Duration = Duration::from_secs(30);

impl Client {
    /// For the TokenCaches of a namespace, by a connection that [`connect`] describes. Whether a value has expired is
    /// decided by the API server's clock, as its answers show it, and not by this machine's, which may be wrong.
    ///
    /// The calls wait a minute at most; see [`with_timeout`](Self::with_timeout).
    ///
    /// # Errors
    /// As [`connect`].
    pub fn connect(config: kube::Config, namespace: impl Into<String>) -> kube::Result<Self> {
        let time = ClusterTime::default();
        let kube = connect_through(config, TimeLimits::default(), &time)?;
        Ok(Self::make(kube, namespace.into(), TIMEOUT, time.clock()))
    }

    /// As [`connect`](Self::connect), by a client of your own. Whether a value has expired is decided by this machine's
    /// clock; one that was fetched at the request of this process, and that this clock takes for expired, is used for its
    /// lifetime all the same. Each call has a time limit, and the watch of a [`Handle`] is restarted after 5 minutes
    /// without news; a shorter limit is that of the client, such as `kube::Config::read_timeout`.
    #[must_use]
    pub fn new(kube: kube::Client, namespace: impl Into<String>) -> Self {
        Self::make(kube, namespace.into(), TIMEOUT, Clock::system())
    }

    fn make(kube: kube::Client, namespace: String, timeout: Duration, clock: Clock) -> Self {
        Self(Arc::new(Inner { kube, namespace, timeout, clock, names: Mutex::default() }))
    }

    /// The same by another clock.
    #[cfg(feature = "controller")]
    pub(crate) fn with_clock(&self, clock: Clock) -> Self {
        Self::make(self.0.kube.clone(), self.0.namespace.clone(), self.0.timeout, clock)
    }

    /// The same with another limit on each call, and nothing shared with this one. A source may take as long as its
    /// `fetch.timeout`: 30 s by default, and for a job 5 minutes.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self::make(self.0.kube.clone(), self.0.namespace.clone(), timeout, self.0.clock.clone())
    }

    /// The cached value, or, where it is missing or has expired, a new one.
    ///
    /// # Errors
    /// [`Error::Failed`] as soon as the run has failed, with its reason, and the other kinds of [`Error`].
    pub async fn fetch(&self, name: &str) -> Result<Arc<Value>, Error> {
        Box::pin(self.obtain(name, Wish::valid())).await
    }

    /// As [`fetch`](Self::fetch), but a value with less than this left is replaced by a new one.
    ///
    /// # Errors
    /// As `fetch`, and [`Error::NearlyExpired`] where even a new value has less left.
    pub async fn fetch_with_remaining(&self, name: &str, remaining: Duration) -> Result<Arc<Value>, Error> {
        Box::pin(self.obtain(name, Wish::Valid(TimeDelta::from_std(remaining).unwrap_or(TimeDelta::MAX)))).await
    }

    /// As [`fetch`](Self::fetch), but only the bytes under the key `token`, or under the only key.
    ///
    /// # Errors
    /// As `fetch`, and [`Error::NoSuchKey`].
    pub async fn fetch_value(&self, name: &str) -> Result<SecretBytes, Error> {
        self.fetch(name).await?.select(None).cloned()
    }

    /// Asks for a new value and waits for it. A run that is going on already answers.
    ///
    /// With a condition, many who saw the same bad value cost one run: where the Secret holds another value already,
    /// that is given.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch). The old value stays in the Secret.
    pub async fn refresh(&self, name: &str, condition: Condition) -> Result<Arc<Value>, Error> {
        Box::pin(self.obtain(name, Wish::Refresh(condition))).await
    }

    /// A handle on a value that is kept fresh in the background. All handles of this client on the same name share one
    /// watch, which ends with the last of them. Must be called within a tokio runtime.
    #[must_use]
    pub fn watch(&self, name: &str) -> Handle {
        let mut names = self.names();
        let fresh = names.fresh.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            names.fresh.retain(|_, fresh| fresh.strong_count() > 0);
            let fresh = Arc::new(Fresh::start(self.clone(), name.to_owned()));
            names.fresh.insert(name.to_owned(), Arc::downgrade(&fresh));
            fresh
        });
        drop(names);
        Handle::new(self.clone(), fresh)
    }

    fn names(&self) -> parking_lot::MutexGuard<'_, Names> {
        self.0.names.lock()
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.clock.now()
    }

    /// The time by which a value of this TokenCache is judged.
    fn judging(&self, name: &str) -> Now {
        let brought = self.names().brought.get(name).cloned().map(|brought| (brought, Instant::now()));
        Now { time: self.now(), brought }
    }

    /// Whether a run that was requested here has brought this value, and it lives yet.
    fn is_brought(&self, name: &str, value: &Value) -> bool {
        self.names().brought.get(name).is_some_and(|brought| brought.left(value, Instant::now()).is_some())
    }

    /// Name of the Secret, as far as is known.
    fn secret_name(&self, name: &str) -> String {
        self.names().secrets.get(name).cloned().unwrap_or_else(|| name.to_owned())
    }

    /// Remembers the name of the Secret; whether it was unknown.
    fn learn_secret_name(&self, cache: &Cache) -> bool {
        let known = self.secret_name(cache.name());
        if known == cache.secret_name() {
            return false;
        }
        self.names().secrets.insert(cache.name().to_owned(), cache.secret_name().to_owned());
        true
    }

    fn api<K>(&self) -> kube::Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        kube::Api::namespaced(self.0.kube.clone(), &self.0.namespace)
    }

    fn call<'a>(&'a self, verb: &'static str, resource: &'static str, name: &'a str, role: &'static str) -> Call<'a> {
        Call { verb, resource, name, namespace: &self.0.namespace, role }
    }
}
