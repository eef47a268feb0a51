//! What is told of a run, or where none is called for: status, events, metrics and the log, from one value.

use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::time::Instant;
use tracing::{Instrument as _, Span, field, info_span};

use crate::reconcile::run::{RunError, Runner};
use crate::{
    api::{Source, TokenCache, next_run, reason::Reason},
    fetch::{Failure, fetch_hash},
    k8s::{ApiError, object::ObjectKey},
    reconcile::{
        desired_secret::{Integrity, Lifetime, SecretState, Stored},
        observe::{checked, note_outcome, note_reported, observed},
        plan::{Failed, Observed, Why, retry_at},
        status::{Ended, after_run, at_rest, while_waiting},
    },
};

/// The Secret after a value was written.
fn as_written(seen: &Observed<'_>, version: &str, lifetime: Lifetime) -> SecretState {
    let lifetime = Lifetime {
        fetched_at: crate::time::floor(lifetime.fetched_at),
        expires_at: lifetime.expires_at.whole_seconds(),
    };
    SecretState::Owned(Stored {
        uid: String::new(),
        resource_version: version.to_owned(),
        lifetime: Some(lifetime),
        fetch_hash: fetch_hash(&seen.cache.spec),
        changed_at: None,
        integrity: Integrity::Intact,
        mutated: None,
    })
}

/// When to try again after a failure.
fn next_attempt(seen: &Observed<'_>, failure: &Failure, now: DateTime<Utc>) -> DateTime<Utc> {
    let failed = Failed {
        failures: seen.failures().saturating_add(1),
        is_refusal: failure.reason.is_refusal(),
        retry_after: failure.retry_after,
    };
    retry_at(&seen.cache.spec.retry, failed, seen.min_interval, rand::random(), now)
}

impl Runner {
    /// Says how a run ended: in status, events, metrics and the log, from one value.
    pub(super) async fn finish(
        &self,
        key: &ObjectKey,
        seen: &Observed<'_>,
        why: &Why,
        result: Result<(String, Lifetime), Failure>,
        started: Instant,
        lost: bool,
    ) -> Result<(), RunError> {
        let took = started.elapsed();
        let now = self.clock.now();
        let before = seen.cache.status.clone().unwrap_or_default();
        let left = match &result {
            Ok((version, lifetime)) => Observed { secret: as_written(seen, version, *lifetime), ..seen.clone() },
            Err(_) => seen.clone(),
        };
        let failed = result.as_ref().err().map(|failure| (failure.reason, next_attempt(seen, failure, now)));
        let next_retry_at = failed.filter(|(reason, _)| reason.is_repeated()).map(|(_, at)| at);
        note_outcome(&self.notes, key, failed);
        if let Some(cause) = seen.cause(why) {
            self.notes.with(key, |note| note.brake.get_or_insert_default().count(cause, now));
        }
        let ended = Ended {
            by: self.locks.replica(),
            generation: seen.cache.metadata.generation,
            failure: result.as_ref().err(),
            next_retry_at,
            answered: seen.open_request(),
            written: result.as_ref().ok().map(|(version, _)| version.as_str()),
        };
        self.metrics.fetched(
            source_name(seen.cache),
            result.as_ref().map(|_| ()).map_err(|failure| failure.reason),
            took,
        );
        log(key, seen, why, &result, took);
        let wanted = |cache: &TokenCache| {
            // Of two runs that both ended, the one that lost its Lease is the older.
            (!lost || cache.runs() == before.runs).then(|| after_run(&Observed { cache, ..left.clone() }, &ended, now))
        };
        if self.reporter.report(key, seen.cache, wanted).instrument(info_span!("report")).await? {
            let reason = result.as_ref().err().map(|failure| failure.reason);
            let of_source = reason.filter(|reason| Reason::is_of_source(reason.as_str()));
            note_reported(&self.notes, key, next_run(before.runs), of_source.map(|reason| (started, reason)));
        }
        self.announce(seen.cache, why, seen.failures(), &result).await;
        Ok(())
    }

    /// A refresh as planned, after one that went well, is no event: it would be a write for nothing new.
    async fn announce(
        &self,
        cache: &TokenCache,
        why: &Why,
        failures: i32,
        result: &Result<(String, Lifetime), Failure>,
    ) {
        match why {
            Why::Cleared => self.events.publish(cache, Reason::Cleared, "the Secret was deleted").await,
            Why::Drifted(_) => self.events.publish(cache, Reason::Drifted, &why.to_string()).await,
            _ => {}
        }
        match result {
            Ok((_, lifetime)) if *why != Why::Due || failures > 0 => {
                let note =
                    format!("fetched a value that is valid until {} ({why})", lifetime.expires_at.whole_seconds());
                self.events.publish(cache, Reason::Fetched, &note).await;
            }
            Ok(_) => {}
            // A refusal is published with the condition Stalled.
            Err(failure) if failure.reason.is_refusal() => {}
            Err(failure) => self.events.publish(cache, Reason::FetchFailed, &failure.to_string()).await,
        }
    }

    /// Reports a run that was refused before anything was fetched.
    pub(super) async fn report_refusal(
        &self,
        key: &ObjectKey,
        cache: &TokenCache,
        metadata: Option<&ObjectMeta>,
        failure: &Failure,
    ) -> Result<(), RunError> {
        let source = cache.spec.fetch.source().map_or("none", Source::name);
        trace_failure(&Span::current(), "refused", failure.reason);
        tracing::warn!(
            namespace = key.0,
            name = key.1,
            source,
            outcome = "refused",
            reason = %failure.reason,
            error = failure.message,
            "refused"
        );
        let now = self.clock.now();
        let note = checked(&self.notes, key, cache).await;
        let runs = cache.runs();
        let generation = cache.metadata.generation;
        let wanted = |cache: &TokenCache| {
            let seen = observed(cache, metadata, &note);
            let ended = Ended {
                by: self.locks.replica(),
                generation,
                failure: Some(failure),
                next_retry_at: None,
                answered: seen.open_request(),
                written: None,
            };
            (cache.runs() == runs).then(|| after_run(&seen, &ended, now))
        };
        if self.reporter.report(key, cache, wanted).await? {
            note_reported(&self.notes, key, next_run(runs), None);
        }
        Ok(())
    }

    /// Reports that a run waits for an object of a deleted TokenCache of the same name to be removed.
    pub(super) async fn report_waiting(
        &self,
        key: &ObjectKey,
        cache: &TokenCache,
        metadata: Option<&ObjectMeta>,
        for_what: &str,
    ) -> Result<(), ApiError> {
        let (now, note) = (self.clock.now(), checked(&self.notes, key, cache).await);
        let runs = cache.runs();
        let wanted = |cache: &TokenCache| {
            (cache.runs() == runs).then(|| while_waiting(&observed(cache, metadata, &note), for_what, now))
        };
        self.reporter.report(key, cache, wanted).await.map(|_| ())
    }

    /// Brings status in line where no run is called for.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn rest(&self, key: &ObjectKey, seen: &Observed<'_>) -> Result<(), ApiError> {
        let now = self.clock.now();
        let version = &seen.cache.metadata.resource_version;
        // After a conflict the watch brings the newer object, which is then looked at anew.
        let wanted = |cache: &TokenCache| {
            (cache.metadata.resource_version == *version).then(|| at_rest(&Observed { cache, ..seen.clone() }, now))
        };
        self.reporter.report(key, seen.cache, wanted).await.map(|_| ())
    }
}

/// One line for each run. `before` is the lifetime of the value that a failure leaves in place.
fn trace_failure(span: &Span, outcome: &str, reason: Reason) {
    span.record("outcome", outcome).record("reason", reason.as_str()).record("otel.status_code", "ERROR");
}

fn source_name(cache: &TokenCache) -> &'static str {
    cache.spec.fetch.source().map_or("none", |source| source.name())
}

fn log(
    (namespace, name): &ObjectKey,
    seen: &Observed<'_>,
    why: &Why,
    result: &Result<(String, Lifetime), Failure>,
    took: Duration,
) {
    let source = source_name(seen.cache);
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    let until = |lifetime: Lifetime| lifetime.expires_at.whole_seconds().to_string();
    let span = Span::current();
    span.record("why", field::display(why));
    match result {
        Ok((_, lifetime)) => {
            span.record("outcome", "success");
            let expires_at = until(*lifetime);
            tracing::info!(namespace, name, source, %why, outcome = "success", took_ms, expires_at, "fetched");
        }
        Err(Failure { reason, message, .. }) => {
            let expires_at = seen.lifetime().map(until);
            trace_failure(&span, "failure", *reason);
            tracing::warn!(
                namespace, name, source, %why, outcome = "failure", took_ms, expires_at, %reason, error = message,
                "fetch failed"
            );
        }
    }
}
