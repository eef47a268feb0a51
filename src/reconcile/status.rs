//! What `status` should say: pure, from what was observed, how a run ended, and the time.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    api::{
        LastFailure, READY, RefreshPolicy, RetentionPolicy, STALLED, TokenCacheStatus, condition, next_run,
        reason::Reason,
    },
    fetch::Failure,
    reconcile::{
        desired_secret::{SecretState, Stored},
        plan::{Observed, Why, jitter, keeps, refresh_at},
    },
    time::{ceil, floor, later, rfc3339, to_kube},
};

/// How a run ended, for `status`.
#[derive(Clone, Debug)]
pub struct Ended<'a> {
    /// Who ran.
    pub by: &'a str,
    /// The generation of the spec that it ran.
    pub generation: Option<i64>,
    /// Nothing where a value was written, else why not.
    pub failure: Option<&'a Failure>,
    /// When it is tried again.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// The annotation's value that the run saw.
    pub answered: Option<&'a str>,
    /// `resourceVersion` of the Secret that was written.
    pub written: Option<&'a str>,
}

/// The status after a run. The caller has put into `observed` the Secret as the run left it.
#[must_use]
pub fn after_run(observed: &Observed<'_>, ended: &Ended<'_>, now: DateTime<Utc>) -> TokenCacheStatus {
    let mut status = before(observed);
    status.runs = next_run(status.runs);
    status.last_run_by = Some(ended.by.to_owned());
    // Who asked before the run ended is answered by it.
    status.refresh_requested = None;
    if let Some(answered) = ended.answered {
        status.handled_request = Some(answered.to_owned());
    }
    match ended.failure {
        None => {
            status.failures = 0;
            status.next_retry_at = None;
        }
        Some(failure) => {
            status.failures = status.failures.saturating_add(1);
            status.next_retry_at = ended.next_retry_at.map(ceil);
            status.last_failure = Some(LastFailure {
                time: Some(floor(now)),
                reason: failure.reason.as_str().to_owned(),
                message: failure.message.clone(),
            });
        }
    }
    if let Some(version) = ended.written {
        status.secret_resource_version = Some(version.to_owned());
    }
    // The object may have been edited during the run: that generation is still to be dealt with.
    status.observed_generation = ended.generation;
    derive(observed, status, now)
}

/// The status where no run is called for: what the Secret and the spec say, with the counts as they were.
#[must_use]
pub fn at_rest(observed: &Observed<'_>, now: DateTime<Utc>) -> TokenCacheStatus {
    let mut status = before(observed);
    status.observed_generation = observed.cache.metadata.generation;
    let lazy = observed.cache.spec.refresh.policy == RefreshPolicy::Lazy;
    if lazy && observed.lifetime().is_none() && observed.failed_while_valid() {
        // Nobody has asked since, and this is not known any more once status does not name the expiry.
        status.failures = 0;
        status.next_retry_at = None;
    }
    let mut status = derive(observed, status, now);
    if let Some(ready) = status.conditions.iter_mut().find(|condition| condition.type_ == READY) {
        let with_note = |why: &Why| format!("{} {}", ready.message, held_back_note(why));
        // The note of another replica stays, or the two would overwrite each other without end.
        let before = observed.cache.status.as_ref().and_then(ready_condition).map(|ready| ready.message.as_str());
        let kept =
            || observed.held_back_elsewhere(now).map(|why| with_note(&why)).find(|it| Some(it.as_str()) == before);
        if let Some(message) = observed.held_back(now).map(|why| with_note(&why)).or_else(kept) {
            ready.message = message;
        }
    }
    status
}

/// Why a fetch waits that would be repeated too often.
fn held_back_note(why: &Why) -> String {
    let what = match why {
        Why::Requested => return "New values are requested very often, so the next fetch waits up to 1 minute.".into(),
        Why::Cleared | Why::First => "The Secret was deleted",
        Why::SpecChanged => "Another controller, possibly of another version, wrote the Secret",
        Why::Drifted(how) => &format!("Another client changed the Secret ({how})"),
        Why::Unblocked | Why::Recheck | Why::Expired | Why::Due => "An object that the spec refers to was changed",
    };
    format!("{what} several times within an hour, so the next fetch waits up to 5 minutes.")
}

/// The status at the moment of expiry, while a run is going on: the generation is not dealt with yet.
#[must_use]
pub fn at_expiry(observed: &Observed<'_>, now: DateTime<Utc>) -> TokenCacheStatus {
    let before = before(observed);
    let fetched_at = before.fetched_at;
    let mut status = derive(observed, before, now);
    // By it a deleted Secret is known as such until a run has dealt with it.
    status.fetched_at = status.fetched_at.or(fetched_at);
    status
}

/// The status while a run waits for an object that Kubernetes' garbage collector is about to remove: like that during a
/// run, and `Ready` says what is waited for.
#[must_use]
pub fn while_waiting(observed: &Observed<'_>, for_what: &str, now: DateTime<Utc>) -> TokenCacheStatus {
    let mut status = at_expiry(observed, now);
    let ready = status.conditions.iter_mut().find(|condition| condition.type_ == READY);
    if let Some(ready) = ready.filter(|ready| ready.reason == Reason::Pending.as_str()) {
        ready.message = waiting_note(for_what);
    }
    status
}

fn waiting_note(for_what: &str) -> String {
    format!(
        "Waiting for Kubernetes' garbage collector to remove {for_what} of a deleted TokenCache of the same name. A value is \
         fetched when it is removed."
    )
}

/// The status as it was, as far as it is about the Secret that was observed.
fn before(observed: &Observed<'_>) -> TokenCacheStatus {
    let mut status = observed.cache.status.clone().unwrap_or_default();
    if status.secret_name.as_deref() != Some(observed.secret_name) {
        status.secret_resource_version = None;
        status.secret_name = Some(observed.secret_name.to_owned());
    }
    if observed.is_forged {
        status.failures = observed.failures();
        status.next_retry_at = observed.exact_retry.map(ceil);
    }
    status
}

/// The status during a run, with what that waits for: nothing to tell where it is empty, and not known to this replica
/// where it is `None`.
#[must_use]
pub fn during_run(observed: &Observed<'_>, waits_for: Option<&str>, now: DateTime<Utc>) -> TokenCacheStatus {
    let pending =
        |status: &TokenCacheStatus| condition(Some(status), READY) == Some(("False", Reason::Pending.as_str()));
    let before = observed.cache.status.as_ref().filter(|status| pending(status));
    let before = before.and_then(|status| status.conditions.iter().find(|condition| condition.type_ == READY));
    let mut status = at_expiry(observed, now);
    if !pending(&status) {
        return status;
    }
    if let Some(ready) = status.conditions.iter_mut().find(|condition| condition.type_ == READY) {
        match (waits_for, before) {
            (Some(""), _) | (None, None) => {}
            (Some(what), _) => ready.message = sentence(&format!("{}: {what}", ready.message.trim_end_matches('.'))),
            (None, Some(before)) => ready.message.clone_from(&before.message),
        }
    }
    status
}

/// Fills in all that follows from the rest. The same on every replica at every time between two changes, so that it is
/// written once.
fn derive(observed: &Observed<'_>, status: TokenCacheStatus, now: DateTime<Utc>) -> TokenCacheStatus {
    let mut status = status.within_limits();
    let spec = &observed.cache.spec;
    // The facts that the sentences are made from must be those of the new status, not of the old.
    let mut cache = observed.cache.clone();
    cache.status = Some(status.clone());
    // What only this process knows must not show, or replicas would overwrite each other.
    let observed = Observed { cache: &cache, unblocked: false, ..observed.clone() };
    match observed.lifetime() {
        Some(lifetime) => {
            status.expires_at = Some(lifetime.expires_at);
            status.fetched_at = Some(lifetime.fetched_at);
            let earliest = later(lifetime.fetched_at, observed.min_interval);
            status.refresh_at = refresh_at(&spec.refresh, lifetime, jitter(&cache)).map(|at| floor(at.max(earliest)));
        }
        None => {
            // That a value expired stays known after its Secret was removed for it.
            let removed = spec.target.expired_policy == RetentionPolicy::Delete;
            status.expires_at = status.expires_at.filter(|expiry| removed && expiry.is_past(now));
            status.fetched_at = None;
            status.refresh_at = None;
            status.secret_resource_version = None;
        }
    }
    if spec.suspend || observed.invalid.is_some() {
        status.refresh_at = None;
    }
    status.source = spec.fetch.source().map(|source| source.name().to_owned());
    let refusal = if spec.suspend { None } else { observed.refusal() };
    let (ready, reason, message) = ready(&observed, &status, refusal.as_ref(), now);
    let generation = status.observed_generation;
    set(&mut status.conditions, READY, Some((ready, reason, message)), generation, now);
    set(&mut status.conditions, STALLED, refusal.map(|(reason, message)| (true, reason, message)), generation, now);
    status
}

fn ready(
    observed: &Observed<'_>,
    status: &TokenCacheStatus,
    refusal: Option<&(Reason, String)>,
    now: DateTime<Utc>,
) -> (bool, Reason, String) {
    let spec = &observed.cache.spec;
    let valid = observed.valid(now);
    let failure = status.last_failure.as_ref().filter(|_| status.failures > 0);
    let failed = failure.map(|failure| {
        let again = status.next_retry_at.and_then(|at| observed.next_attempt(at, now));
        let again = again.map(|at| format!(" Next attempt at {}.", rfc3339(at))).unwrap_or_default();
        format!("failed ({}): {}{again}", failure.reason, sentence(&failure.message))
    });
    // After a sentence about the value.
    let last_failed = || failed.as_ref().map(|failed| format!(" Last fetch {failed}")).unwrap_or_default();
    if let Some(lifetime) = valid {
        let until = match lifetime.expires_at.moment() {
            Some(moment) => format!("Value is valid until {}.", rfc3339(moment)),
            None => "Value does not expire.".to_owned(),
        };
        return if spec.suspend {
            (true, Reason::Suspended, format!("{until} {SUSPENDED}"))
        } else if let Some((reason, message)) = refusal {
            (true, Reason::RefreshFailing, format!("{until} Refresh is blocked ({reason}): {}", sentence(message)))
        } else if failed.is_some() {
            (true, Reason::RefreshFailing, format!("{until}{}", last_failed()))
        } else {
            let notes = [renew_before_note(observed), short_note(observed), mutated_note(observed)].concat();
            (true, Reason::Fetched, format!("{until}{notes}"))
        };
    }
    if spec.suspend {
        return (false, Reason::Suspended, SUSPENDED.into());
    }
    if let Some((reason, message)) = refusal {
        return (false, *reason, message.clone());
    }
    if let Some(expired) = status.expires_at.and_then(|expiry| expiry.moment()).filter(|moment| *moment <= now) {
        let (failed, short) = (last_failed(), short_note(observed));
        return (false, Reason::Expired, format!("Value expired at {}.{failed}{short}", rfc3339(expired)));
    }
    if let Some(how) = observed.stored().and_then(Stored::damage) {
        return (false, Reason::Drifted, format!("Another client changed the Secret: {how}.{}", last_failed()));
    }
    if let Some(failed) = failed {
        return (false, Reason::FetchFailed, format!("Fetch {failed}"));
    }
    if spec.refresh.policy == RefreshPolicy::Lazy && observed.secret == SecretState::Absent {
        let message = "No value. The refresh policy is Lazy: a value is fetched on request.";
        return (false, Reason::Cleared, message.into());
    }
    if observed.secret == SecretState::Leftover {
        let namespace = observed.cache.metadata.namespace.as_deref().unwrap_or_default();
        let secret = format!("Secret {namespace}/{}", observed.secret_name);
        return (false, Reason::Pending, waiting_note(&secret));
    }
    let which = if status.runs == 0 { "the first" } else { "a new" };
    (false, Reason::Pending, format!("Fetching {which} value."))
}

const SUSPENDED: &str = "Nothing is fetched while spec.suspend is true.";

/// Ends a message with a full stop, if it does not end a sentence already.
fn sentence(message: &str) -> String {
    let message = message.trim_end();
    let end = if message.ends_with(['.', '!', '?', '…']) { "" } else { "." };
    format!("{message}{end}")
}

/// A sentence for those whose `renewBefore` cannot be kept.
fn renew_before_note(observed: &Observed<'_>) -> String {
    let Some(before) = observed.cache.spec.refresh.renew_before else { return String::new() };
    let Some(lifetime) = observed.lifetime() else { return String::new() };
    let Some(expires_at) = lifetime.expires_at.moment() else { return String::new() };
    let length = expires_at.signed_duration_since(lifetime.fetched_at);
    if keeps(before, length) {
        return String::new();
    }
    format!(
        " The token lifetime ({}s) leaves no time for spec.refresh.renewBefore ({before}); refreshing when {}% is left \
         instead.",
        length.num_seconds(),
        observed.cache.spec.refresh.percentage(),
    )
}

/// A sentence for those whose value lives shorter than the time between two fetches.
fn short_note(observed: &Observed<'_>) -> String {
    let length = observed.lifetime().and_then(|lifetime| Some(lifetime.expires_at.moment()? - lifetime.fetched_at));
    let shortest = observed.min_interval;
    length.filter(|length| *length < shortest).map_or_else(String::new, |length| {
        format!(
            " The token lifetime ({}s) is shorter than the minimum time between two fetches ({}s, --min-fetch-interval).",
            length.num_seconds(),
            shortest.num_seconds(),
        )
    })
}

/// A sentence for those whose labels or annotations are changed whenever the Secret is written.
fn mutated_note(observed: &Observed<'_>) -> String {
    let mutated = observed.stored().and_then(|stored| stored.mutated.as_ref());
    mutated
        .map(|key| format!(" An admission webhook or policy changes {key} to another value than the spec has."))
        .unwrap_or_default()
}

/// Sets or removes a condition; its transition time changes only with its status.
fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    wanted: Option<(bool, Reason, String)>,
    generation: Option<i64>,
    now: DateTime<Utc>,
) {
    let at = conditions.iter().position(|condition| condition.type_ == type_);
    let Some((state, reason, message)) = wanted else {
        conditions.retain(|condition| condition.type_ != type_);
        return;
    };
    let state = if state { "True" } else { "False" };
    let unchanged = at.and_then(|at| conditions.get(at)).filter(|condition| condition.status == state);
    let condition = Condition {
        type_: type_.to_owned(),
        status: state.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: unchanged
            .map_or_else(|| to_kube(now), |condition| condition.last_transition_time.clone()),
    };
    match at.and_then(|at| conditions.get_mut(at)) {
        Some(found) => *found = condition,
        None => conditions.push(condition),
    }
}

/// The condition Ready, if there is one yet.
#[must_use]
pub fn ready_condition(status: &TokenCacheStatus) -> Option<&Condition> {
    status.conditions.iter().find(|condition| condition.type_ == READY)
}

#[cfg(test)]
mod tests;
