//! Clearing: the Secret is deleted.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams, PartialObjectMeta, Preconditions};

use super::{ANSWER, Cache, Client, Error, value::is_own};
use crate::k8s::secret::SealedSecret;

/// What became of one TokenCache's Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// Namespace of the TokenCache.
    pub namespace: String,
    /// Name of the TokenCache.
    pub name: String,
    /// Whether there was a Secret to delete.
    pub deleted: bool,
}

impl Client {
    /// Deletes the Secret of a TokenCache. An `Eager` one is fetched anew at once, a `Lazy` one at the next request.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotOwned`], [`Error::Forbidden`], [`Error::Api`].
    pub async fn clear(&self, name: &str) -> Result<Cleared, Error> {
        let get = async {
            let found = self.api::<Cache>().get(name).await;
            found.map_err(|error| self.call("get", "tokencaches", name, "clear").refused(error))
        };
        let cache = self.limited(name, get).await?;
        self.limited(name, self.clear_secret(&cache)).await
    }

    /// Deletes the Secrets of all TokenCaches of the namespace, or of those with these labels (a selector as kubectl
    /// takes it). Stops at the first that cannot be deleted.
    ///
    /// # Errors
    /// As [`clear`](Self::clear).
    pub async fn clear_all(&self, selector: Option<&str>) -> Result<Vec<Cleared>, Error> {
        let params = ListParams { label_selector: selector.map(str::to_owned), ..ListParams::default() };
        let list = async {
            let listed = self.api::<Cache>().list(&params).await;
            listed.map_err(|error| self.call("list", "tokencaches", "", "clear-all").refused(error))
        };
        let mut all = Vec::new();
        for cache in self.limited("", list).await?.items {
            all.push(self.limited(cache.name(), self.clear_secret(&cache)).await?);
        }
        Ok(all)
    }

    async fn clear_secret(&self, cache: &Cache) -> Result<Cleared, Error> {
        let (name, secret) = (cache.name(), cache.secret_name());
        let call = |verb| self.call(verb, "secrets", secret, "clear");
        let api = self.api::<SealedSecret>();
        let cleared = |deleted| Cleared { namespace: self.0.namespace.clone(), name: name.to_owned(), deleted };
        // Another value may have come since; that one is to go as well. But a Secret of somebody else's may not.
        let found: Option<PartialObjectMeta<SealedSecret>> =
            api.get_metadata_opt(secret).await.map_err(|error| call("get").refused(error))?;
        let Some(found) = found else { return Ok(cleared(false)) };
        if !is_own(name, &found.metadata) {
            return Err(Error::NotOwned { namespace: self.0.namespace.clone(), name: secret.to_owned() });
        }
        let preconditions = Preconditions { uid: found.metadata.uid.clone(), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(secret, &params).await {
            Ok(_) => Ok(cleared(true)),
            // Gone by now, or gone and made anew.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(cleared(true)),
            Err(error) => Err(call("delete").refused(error)),
        }
    }

    async fn limited<T>(&self, name: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        within(self.0.timeout, name, call).await
    }

    /// Limits a single call of those that together may take longer.
    pub(super) async fn answered<T>(
        &self,
        name: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        within(ANSWER, name, call).await
    }
}

async fn within<T>(limit: Duration, name: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let what = "the Kubernetes API server did not answer in time";
    let ended = tokio::time::timeout(limit, call).await;
    ended.unwrap_or_else(|_| Err(Error::Timeout { name: name.to_owned(), waited: limit, what }))
}
