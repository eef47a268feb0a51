//! What is done about a Secret beside fetches, where the watch may be behind: its live state is read before status says
//! something else of it, and it is removed when its value has expired.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::reconcile::{Context, LOOK_AGAIN};
use crate::{
    api::{TokenCache, TokenCacheStatus},
    k8s::{ApiError, live_secret, object::ObjectKey},
    reconcile::{
        observe::{Watched, note_found, observed},
        plan::Observed,
        state::{Note, version},
        status::ready_condition,
        write_secret::{Removal, remove},
    },
};

impl Context {
    /// Reads the Secret live if the status that is `wanted` says something else of it than the one before. True: the watch
    /// was behind, and the next look goes by what was read.
    pub(super) async fn confirm(
        &self,
        key: &ObjectKey,
        cache: &TokenCache,
        note: &Note,
        watched: &mut Watched,
        wanted: impl Fn(&Observed<'_>) -> TokenCacheStatus,
    ) -> Result<bool, ApiError> {
        let wanted = wanted(&observed(cache, watched.metadata.as_deref(), note));
        if !corrects(cache.status.as_ref(), &wanted) {
            return Ok(false);
        }
        self.read_live(key, cache, watched).await
    }

    async fn read_live(&self, key: &ObjectKey, cache: &TokenCache, watched: &mut Watched) -> Result<bool, ApiError> {
        let found = live_secret(&self.runner.client, &key.0, cache.secret_name()).await?;
        if version(found.as_ref()) == version(watched.metadata.as_deref()) {
            return Ok(false);
        }
        let is_noted = note_found(&self.runner.notes, key, cache, watched.shown.as_deref(), found.as_ref());
        watched.metadata = found.map(Arc::new);
        Ok(is_noted)
    }

    /// Removes the Secret if its value has expired and it is not to stay then. That it cannot be removed keeps nothing
    /// else from being done. Gives when to look again.
    pub(super) async fn remove_expired(
        &self,
        key: &ObjectKey,
        cache: &TokenCache,
        note: &Note,
        watched: &mut Watched,
        now: DateTime<Utc>,
    ) -> Option<Duration> {
        let seen = observed(cache, watched.metadata.as_deref(), note);
        let stored = seen.to_remove(now)?;
        // It goes when others have removed their finalizers from it.
        if watched.metadata.as_ref()?.deletion_timestamp.is_some() {
            return None;
        }
        let notes = &self.runner.notes;
        if let Some(wait) = notes.with(key, |note| note.removal_waits(&stored.uid, Instant::now())) {
            return Some(wait);
        }
        match remove(&self.runner.client, &key.0, cache.secret_name(), stored).await {
            Ok(Removal::Gone) => {
                note_found(notes, key, cache, watched.shown.as_deref(), None);
                watched.metadata = None;
                return None;
            }
            // The watch brings what became of it.
            Ok(Removal::Pending) => {}
            Ok(Removal::Changed) => {
                let read = self.read_live(key, cache, watched).await;
                if let Err(error) = read {
                    tracing::debug!(namespace = key.0, name = key.1, %error, "the Secret was not read");
                }
                return Some(LOOK_AGAIN);
            }
            Err(error) => {
                let secret = cache.secret_name();
                tracing::warn!(namespace = key.0, name = key.1, secret, %error, "the expired Secret was not removed");
            }
        }
        Some(notes.with(key, |note| note.removal_failed(&stored.uid, Instant::now())))
    }
}

/// Whether a status says something else of the value than one that was written before.
fn corrects(old: Option<&TokenCacheStatus>, new: &TokenCacheStatus) -> bool {
    let Some(old) = old.filter(|old| ready_condition(old).is_some()) else { return false };
    let told = |status: &TokenCacheStatus| {
        let ready = ready_condition(status);
        let words = ready.map(|ready| (ready.status.clone(), ready.reason.clone(), ready.message.clone()));
        (words, status.expires_at, status.fetched_at)
    };
    told(old) != told(new)
}
