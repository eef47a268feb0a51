//! Failures that status tells and that no run has had. Anyone who may patch the status can write one there, and with it hold
//! back every later fetch.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::reconcile::Context;
use crate::{
    api::TokenCache,
    k8s::object::{ObjectKey, OwnerRef},
    reconcile::{
        observe::observed,
        plan::{Plan, decide},
        state::Note,
    },
};

impl Context {
    /// Finds out whether a failure that this process has not had, and that holds back a fetch, can be another client's: that
    /// would have held the Lease since. While the Lease cannot be read, it is taken for one.
    pub(super) async fn doubt(
        &self,
        key: &ObjectKey,
        cache: &TokenCache,
        metadata: Option<&ObjectMeta>,
        note: &mut Note,
    ) {
        let version = cache.metadata.resource_version.as_deref().unwrap_or_default();
        if !note.may_doubt() || note.doubted.as_deref().is_some_and(|(doubted, _)| doubted == version) {
            return;
        }
        let seen = observed(cache, metadata, note);
        let now = self.runner.clock.now();
        if !seen.is_told_failure() || matches!(decide(&seen, now), Plan::Fetch(_)) {
            return;
        }
        let is_forged = match self.runner.locks.is_as_left(&OwnerRef::of(cache)).await {
            Ok(is_forged) => is_forged,
            Err(error) => {
                tracing::debug!(namespace = key.0, name = key.1, %error, "the Lease cannot be read");
                return;
            }
        };
        if is_forged {
            tracing::warn!(
                namespace = key.0,
                name = key.1,
                "the status tells a failure of a run that did not take place: it is not heeded"
            );
        }
        let doubted = Some(Box::new((version.to_owned(), is_forged)));
        *note = self.runner.notes.with(key, |note| {
            note.doubted = doubted;
            note.clone()
        });
    }
}
