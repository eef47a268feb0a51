//! Values that are bound to the Secret that holds them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio_util::task::TaskTracker;

use super::Runner;
use crate::{
    api::{TokenCache, reason::Reason},
    fetch::{Failure, Progress, is_bound, render_in_turn},
    k8s::object::OwnerRef,
    reconcile::{
        desired_secret::Lifetime,
        write_secret::{discard, put_at_once},
    },
};

/// The Secret as it was written last in a run.
pub(super) struct LastWrite {
    pub(super) written: ObjectMeta,
    pub(super) lifetime: Lifetime,
    /// The Secret that was replaced by that.
    pub(super) replaced: Option<ObjectMeta>,
}

impl Runner {
    /// Replaces a value that is to be bound to its Secret and is not: where the Secret did not exist when the value was
    /// fetched, or was created anew for another type. `replaced` is the Secret that the value was fetched for.
    pub(super) async fn bind(
        &self,
        cache: &TokenCache,
        owner: &OwnerRef,
        replaced: Option<&ObjectMeta>,
        (first, lifetime): (ObjectMeta, Lifetime),
        ends: &TaskTracker,
    ) -> Result<LastWrite, Failure> {
        let secret = replaced.and_then(|found| found.uid.as_deref());
        if !is_bound(&cache.spec) || first.uid.as_deref() == secret {
            return Ok(LastWrite { written: first, lifetime, replaced: replaced.cloned() });
        }
        let failure = match self.fetch_bound(cache, owner, &first, ends).await {
            Ok((written, lifetime)) => return Ok(LastWrite { written, lifetime, replaced: Some(first) }),
            Err(failure) => failure,
        };
        let OwnerRef { namespace, name, .. } = owner;
        if secret.is_none() {
            tracing::warn!(namespace, name, error = failure.message, "the first token is not bound to its Secret");
            return Ok(LastWrite { written: first, lifetime, replaced: None });
        }
        // It was bound to the Secret that this one has replaced.
        if let Err(error) = discard(&self.client, namespace, cache.secret_name(), &first).await {
            tracing::warn!(namespace, name, %error, "a Secret with a void token was not removed");
        }
        Err(failure)
    }

    async fn fetch_bound(
        &self,
        cache: &TokenCache,
        owner: &OwnerRef,
        written: &ObjectMeta,
        ends: &TaskTracker,
    ) -> Result<(ObjectMeta, Lifetime), Failure> {
        let secret = written.uid.as_deref();
        let fetched = self.fetcher.fetch_leaving(cache, secret, ends, &Progress::default()).await?;
        let lifetime = Lifetime { fetched_at: self.clock.now(), expires_at: fetched.expires_at };
        let data = render_in_turn(&cache.spec.target, &fetched, &owner.name, &owner.namespace).await?;
        let written = put_at_once(&self.client, cache, owner, written, data, lifetime).await.map_err(|error| {
            let message = format!("the Secret {}/{} was not written: {error}", owner.namespace, cache.secret_name());
            Failure::new(Reason::WriteFailed, message)
        })?;
        Ok((written, lifetime))
    }
}
