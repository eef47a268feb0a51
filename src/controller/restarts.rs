//! Sees to the restarts of the workloads that read a Secret only when they start.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::reconcile::{Context, LOOK_AGAIN};
use crate::{
    api::{TokenCache, reason::Reason},
    k8s::{ApiError, live_secret, object::ObjectKey},
    reconcile::{
        desired_secret::{Integrity, SecretState, Stored, written_at},
        plan::Observed,
        rollout::{Cause, Left, PATIENCE, restart},
        state::Rollout,
    },
};

impl Context {
    /// Restarts what is to be restarted for the value that is there, and says when to look again.
    pub(super) async fn restarts(&self, key: &ObjectKey, cache: &TokenCache, seen: &Observed<'_>) -> Option<Duration> {
        let targets = &cache.spec.rollout_restart_targets;
        if targets.is_empty() || cache.spec.suspend || seen.invalid.is_some() || self.stop.begin.is_cancelled() {
            return None;
        }
        // A value of another hand's making is none to restart anything for.
        let SecretState::Owned(stored) = &seen.secret else { return None };
        let changed_at = stored.changed_at.filter(|_| stored.integrity == Integrity::Intact)?;
        let value = (changed_at, cache.metadata.generation.unwrap_or_default());
        let mut note = self.runner.notes.with(key, |note| note.rollout.clone());
        if note.done == Some(value) {
            return None;
        }
        let Ok(written_at) = self.written_at(key, cache.secret_name(), stored, changed_at).await else {
            return Some(LOOK_AGAIN);
        };
        let cause = Cause {
            cache: &key.1,
            secret: cache.secret_name(),
            changed_at,
            written_at,
            min_interval: cache.spec.rollout_restart.min_interval(),
            impatient: note.rolling.is_some_and(|since| since.elapsed() > PATIENCE),
        };
        let (mut wake, mut rolling, mut complaints) = (None::<Duration>, false, Vec::new());
        for target in targets {
            let again = match restart(&self.runner.client, cache, target, &cause, self.runner.clock.now()).await {
                Left::Done => continue,
                Left::Restarted => {
                    let words = format!("{:?} {} is restarted: the value has changed", target.kind, target.name);
                    tracing::info!(namespace = key.0, name = key.1, "{words}");
                    self.runner.events.publish(cache, Reason::RolloutRestarted, &words).await;
                    continue;
                }
                Left::Rolling(again) => {
                    rolling = true;
                    again
                }
                Left::Again(again) => again,
                Left::Failed(why, again) => {
                    complaints.push(why);
                    again
                }
            };
            wake = Some(wake.map_or(again, |wake| wake.min(again)));
        }
        let complaint = complaints.join("; ");
        if complaint != note.complaint && !complaint.is_empty() {
            tracing::warn!(namespace = key.0, name = key.1, "not restarted: {complaint}");
            self.runner.events.publish(cache, Reason::RolloutRestartFailed, &complaint).await;
        }
        note = Rollout {
            done: wake.is_none().then_some(value),
            rolling: rolling.then(|| note.rolling.unwrap_or_else(Instant::now)),
            complaint,
        };
        self.runner.notes.with(key, |notes| notes.rollout = note);
        wake
    }

    /// When the Secret was written with the value that it has since `changed_at`.
    async fn written_at(
        &self,
        (namespace, _): &ObjectKey,
        secret: &str,
        stored: &Stored,
        changed_at: DateTime<Utc>,
    ) -> Result<DateTime<Utc>, ApiError> {
        if stored.lifetime.is_none_or(|lifetime| lifetime.fetched_at > changed_at) {
            // It was written again with the same value.
            return Ok(changed_at);
        }
        let metadata = live_secret(&self.runner.client, namespace, secret).await?;
        Ok(metadata.as_ref().and_then(written_at).map_or(changed_at, |written| written.max(changed_at)))
    }
}
