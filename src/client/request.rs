//! The way to a value: read the Secret; if it does not do, ask for a run, wait for its end, and read it again.

use std::sync::{Arc, Weak};

use chrono::TimeDelta;
use kube::api::{ListParams, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::{
    Cache, Client, Error, Value,
    cache_watch::Follow,
    decide::{Answer, Ask, Asked, Brought, Outcome, Wish, answer, ask, asked, conclude, failed, still_absent},
    singleflight::Turn,
    value::Found,
};
use crate::{api::names::FIELD_MANAGER, k8s::secret::SealedSecret, time::rfc3339};

type AskTurn = Turn<Result<Asking, Error>>;

/// What those share who want the same TokenCache's value at the same time.
#[derive(Default)]
pub(super) struct Shared {
    read: Turn<Result<Found, Error>>,
    asks: Mutex<Vec<(Wish, Weak<AskTurn>)>>,
    follow: Mutex<Weak<Follow>>,
}

/// What came of asking for a run.
#[derive(Clone, Debug)]
enum Asking {
    /// There is no need any more.
    Given(Arc<Value>),
    /// A request stands.
    Asked(Asked),
}

/// How often a run that ended without an answer is followed by another request.
const ROUNDS: usize = 3;

/// What the caller waits for, should time run out.
const READING: &str = "the Kubernetes API server did not answer in time";
const WAITING: &str = "no fetch has completed; is a controller watching this namespace? (or use fetch --direct)";

impl Client {
    pub(super) async fn obtain(&self, name: &str, wish: Wish) -> Result<Arc<Value>, Error> {
        let mut phase = READING;
        // Long, and awaited in the middle of the callers' own.
        let way = Box::pin(self.way(name, &wish, &mut phase));
        match tokio::time::timeout(self.0.timeout, way).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { name: name.to_owned(), waited: self.0.timeout, what: phase }),
        }
    }

    async fn way(&self, name: &str, wish: &Wish, phase: &mut &'static str) -> Result<Arc<Value>, Error> {
        let (shared, mut since) = (self.shared(name), Instant::now());
        let mut read = None;
        if wish.is_conditional() {
            let found = self.read_shared(&shared, since, name).await?;
            if let Some(value) = wish.met(&found, &self.judging(name)) {
                return Ok(value);
            }
            read = Some(found);
        }
        let follow = shared.follow(self, name);
        let mut round = 0;
        loop {
            round += 1;
            let turn = shared.turn(wish);
            let watch = Some(&*follow).filter(|follow| follow.since >= since);
            let request = self.ask(name, wish, read.take(), watch);
            let asked_at = Instant::now();
            let asked = match turn.share(asked_at, watch.map(|watch| watch.since), request).await? {
                Asking::Given(value) => return Ok(value),
                Asking::Asked(asked) => asked,
            };
            *phase = WAITING;
            let (came, news) = follow.until(|cache| Self::news(cache, &asked)).await?;
            since = came;
            let Some(cache) = news? else { continue };
            if let Some(error) = failed(&cache, &asked) {
                return Err(error);
            }
            *phase = READING;
            let found = self.read_shared(&shared, came, name).await?;
            if let Some(brought) = Brought::of(&found, &asked, asked_at, self.now()) {
                self.remember(name, &found, brought);
            }
            match conclude(wish, &cache, &asked, &found, round < ROUNDS, &self.judging(name)) {
                Outcome::Give(value) => return Ok(value),
                Outcome::Fail(error) => return Err(error),
                Outcome::Again => {}
            }
        }
    }

    /// Remembers a value that is used although it has expired by the clock, and reports that clock.
    fn remember(&self, name: &str, found: &Found, brought: Brought) {
        if let Some(value) = found.value() {
            let (fetched_at, expires_at) = (rfc3339(value.fetched_at()), value.expires_at());
            tracing::warn!(
                name,
                fetched_at,
                %expires_at,
                "this value was fetched just now, and has expired by the clock of this machine, which must be wrong; it is \
                 used for as long as it lives; set the clock (NTP)"
            );
        }
        self.names().brought.insert(name.to_owned(), brought);
    }

    /// What the TokenCache, as the watch has it, says to one who has asked: that a run has ended, or, by nothing, that it
    /// is another one now or gone, and to be looked at live.
    fn news(cache: Option<&Cache>, asked: &Asked) -> Option<Result<Option<Cache>, Error>> {
        let Some(cache) = cache else { return Some(Ok(None)) };
        match answer(cache, asked) {
            Answer::NotYet => None,
            Answer::Ended => Some(Ok(Some(cache.clone()))),
            Answer::Anew => Some(Ok(None)),
            Answer::Fail(error) => Some(Err(error)),
        }
    }

    /// Asks for a run, unless the value is there meanwhile or somebody has asked already.
    ///
    /// `read` is the Secret as it was read before; `watch` shows the TokenCache as it was since.
    async fn ask(
        &self,
        name: &str,
        wish: &Wish,
        mut read: Option<Found>,
        watch: Option<&Follow>,
    ) -> Result<Asking, Error> {
        let mut refused = None;
        loop {
            let cache = self.newer(name, refused.as_ref(), watch).await?;
            let renamed = self.learn_secret_name(&cache);
            // The Secret is read after the TokenCache: where nobody has written to that since, no run has ended since.
            // One that was not there before needs no other look, where status knows of none that came.
            let known = read.take().filter(|found| !renamed && still_absent(&cache, found));
            let found = match known {
                Some(found) => found,
                None => self.read(name).await?,
            };
            if let Some(value) = wish.met(&found, &self.judging(name)) {
                return Ok(Asking::Given(value));
            }
            match ask(&cache, &found) {
                Ask::Fail(error) => return Err(error),
                Ask::Join(asked) => return Ok(Asking::Asked(asked)),
                Ask::Send => {}
            }
            if let Some(cache) = self.request(&cache, wish.is_conditional()).await? {
                return Ok(Asking::Asked(asked(&cache, &found)));
            }
            refused = Some(cache);
        }
    }

    /// The TokenCache as it is by now, and not as it was when a request at it was refused.
    async fn newer(&self, name: &str, refused: Option<&Cache>, watch: Option<&Follow>) -> Result<Cache, Error> {
        if let Some(watch) = watch {
            let version = refused.and_then(|cache| cache.metadata.resource_version.as_ref());
            let is_old = |cache: &Cache| version.is_some() && cache.metadata.resource_version.as_ref() == version;
            let pick = |cache: Option<&Cache>| if cache.is_some_and(is_old) { None } else { Some(cache.cloned()) };
            let (_, cache) = watch.until(pick).await?;
            return cache.ok_or_else(|| self.not_found(name));
        }
        self.cache(name).await
    }

    /// Sets `status.refreshRequested`; nothing where the TokenCache has changed and that matters.
    async fn request(&self, cache: &Cache, conditional: bool) -> Result<Option<Cache>, Error> {
        let name = cache.name();
        let mut metadata = json!({ "uid": cache.metadata.uid });
        if conditional && let Some(version) = &cache.metadata.resource_version {
            metadata["resourceVersion"] = json!(version);
        }
        let patch = json!({ "metadata": metadata, "status": { "refreshRequested": rfc3339(self.now()) } });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        match self.api::<Cache>().patch_status(name, &params, &Patch::Merge(patch)).await {
            Ok(cache) => Ok(Some(cache)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(self.call("patch", "tokencaches/status", name, "fetch").refused(error)),
        }
    }

    /// Reads a TokenCache live: by a list of one, since who may watch it may list it.
    pub(super) async fn cache(&self, name: &str) -> Result<Cache, Error> {
        let only = ListParams::default().fields(&format!("metadata.name={name}"));
        let listed = self.api::<Cache>().list(&only).await;
        let listed = listed.map_err(|error| self.call("list", "tokencaches", name, "fetch").refused(error))?;
        listed.items.into_iter().next().ok_or_else(|| self.not_found(name))
    }

    fn not_found(&self, name: &str) -> Error {
        Error::NotFound { namespace: self.0.namespace.clone(), name: name.to_owned() }
    }

    async fn read(&self, name: &str) -> Result<Found, Error> {
        let secret_name = self.secret_name(name);
        let secret = self.api::<SealedSecret>().get_opt(&secret_name).await;
        let secret = secret.map_err(|error| self.call("get", "secrets", &secret_name, "read").refused(error))?;
        Ok(Found::of(name, secret))
    }

    /// The Secret as it was since then.
    async fn read_shared(&self, shared: &Shared, since: Instant, name: &str) -> Result<Found, Error> {
        shared.read.share(since, None, self.read(name)).await
    }

    fn shared(&self, name: &str) -> Arc<Shared> {
        let mut names = self.names();
        if let Some(shared) = names.shared.get(name).and_then(Weak::upgrade) {
            return shared;
        }
        names.shared.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(Shared::default());
        names.shared.insert(name.to_owned(), Arc::downgrade(&shared));
        shared
    }

    /// Whether a value that nobody else renews is to be renewed by who uses it.
    pub(super) async fn is_left_to_consumers(&self, name: &str) -> bool {
        self.answered(name, self.cache(name)).await.is_ok_and(|cache| cache.is_lazy() && !cache.spec.suspend)
    }
}

impl Shared {
    /// The turn of those with the same wish.
    fn turn(&self, wish: &Wish) -> Arc<AskTurn> {
        let mut asks = self.asks.lock();
        asks.retain(|(_, turn)| turn.strong_count() > 0);
        if let Some(turn) = asks.iter().find(|(of, _)| of == wish).and_then(|(_, turn)| turn.upgrade()) {
            return turn;
        }
        let turn = Arc::default();
        asks.push((wish.clone(), Arc::downgrade(&turn)));
        turn
    }

    fn follow(&self, client: &Client, name: &str) -> Arc<Follow> {
        let mut follow = self.follow.lock();
        follow.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Follow::start(client.clone(), name.to_owned()));
            *follow = Arc::downgrade(&started);
            started
        })
    }
}

impl Wish {
    /// Any value that is valid.
    pub(super) fn valid() -> Self {
        Self::Valid(TimeDelta::zero())
    }
}
