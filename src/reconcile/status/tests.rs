use serde_json::{Value, json};

use super::*;
use crate::{
    api::TokenCache,
    reconcile::{
        desired_secret::{Integrity, Stored},
        throttle::{Brake, Cause},
    },
    testing::fixtures::{at, cache, lifetime, observed, start, stored},
};

fn ready_of(status: &TokenCacheStatus) -> (&str, &str, &str) {
    let ready = status.conditions.iter().find(|condition| condition.type_ == READY).expect("always there");
    (&ready.status, &ready.reason, &ready.message)
}

fn ended(failure: Option<&Failure>) -> Ended<'_> {
    let next_retry_at = failure.map(|_| at(3.2));
    Ended { by: "me", generation: Some(1), failure, next_retry_at, answered: None, written: None }
}

const FAILED: fn() -> Value = || {
    json!({
        "runs": 4, "failures": 2, "nextRetryAt": "2026-03-01T12:00:30Z",
        "lastFailure": {"time": "2026-03-01T12:00:00Z", "reason": "Rejected", "message": "HTTP 401"},
    })
};

#[test]
fn ready_says_what_the_secret_holds_and_why() {
    let valid = |cache: &TokenCache| Some(stored(cache, lifetime(0.0, 100.0)));
    let due = |cache: &TokenCache| Some(stored(cache, lifetime(-90.0, 10.0)));
    let expired = |cache: &TokenCache| Some(stored(cache, lifetime(-100.0, 0.0)));
    let absent = |_: &TokenCache| None;
    type Case = (Value, Value, fn(&TokenCache) -> Option<Stored>, &'static str, &'static str, &'static str);
    let cases: [Case; 12] = [
        (json!({}), json!(null), valid, "True", "Fetched", "valid until 2026-03-01T12:01:40Z"),
        (
            json!({}),
            FAILED(),
            due,
            "True",
            "RefreshFailing",
            "Last fetch failed (Rejected): HTTP 401. Next attempt at 2026-03-01T12:00:30Z.",
        ),
        // It was asked for, and is not repeated before the value is due.
        (
            json!({"refresh": {"renewBefore": "20s"}}),
            FAILED(),
            valid,
            "True",
            "RefreshFailing",
            "failed (Rejected): HTTP 401. Next attempt at 2026-03-01T12:01:20Z.",
        ),
        (json!({"suspend": true}), json!(null), valid, "True", "Suspended", "spec.suspend"),
        (json!({}), json!(null), expired, "False", "Expired", "expired at 2026-03-01T12:00:00Z"),
        (json!({}), FAILED(), expired, "False", "Expired", "failed (Rejected): HTTP 401."),
        (json!({}), json!(null), absent, "False", "Pending", "Fetching the first value."),
        (json!({}), json!({"runs": 1}), absent, "False", "Pending", "Fetching a new value."),
        (json!({}), FAILED(), absent, "False", "FetchFailed", "failed (Rejected): HTTP 401."),
        (json!({"suspend": true}), FAILED(), absent, "False", "Suspended", "spec.suspend"),
        (
            json!({"refresh": {"policy": "Lazy"}}),
            json!(null),
            absent,
            "False",
            "Cleared",
            "a value is fetched on request",
        ),
        (
            json!({"refresh": {"renewBefore": "1h"}}),
            json!(null),
            valid,
            "True",
            "Fetched",
            "leaves no time for spec.refresh.renewBefore (1h)",
        ),
    ];
    for (spec, status, secret, state, reason, message) in cases {
        let cache = cache(spec, status);
        let status = at_rest(&observed(&cache, secret(&cache)), start());
        let (found_state, found_reason, found_message) = ready_of(&status);
        assert_eq!((found_state, found_reason), (state, reason), "{found_message}");
        assert!(found_message.contains(message), "{found_message}");
        assert!(condition(Some(&status), STALLED).is_none());
    }
}

#[test]
fn a_refusal_is_stalled_and_ready_says_so_while_there_is_no_value() {
    let cache = cache(json!({}), json!({}));
    let failure = Failure::new(Reason::SourceNotFound, "Secret ns/s is missing");
    let refused = after_run(&observed(&cache, None), &ended(Some(&failure)), start());
    assert_eq!(condition(Some(&refused), STALLED), Some(("True", "SourceNotFound")));
    assert_eq!(ready_of(&refused), ("False", "SourceNotFound", "Secret ns/s is missing"));
    assert_eq!(refused.next_retry_at, Some(at(4.0)), "it is checked again");

    let valid = observed(&cache, Some(stored(&cache, lifetime(0.0, 100.0))));
    let refused = after_run(&valid, &ended(Some(&failure)), start());
    assert_eq!((ready_of(&refused).0, ready_of(&refused).1), ("True", "RefreshFailing"));
}

#[test]
fn a_run_is_counted_and_answers_who_asked() {
    let before = json!({"runs": 7, "failures": 2, "refreshRequested": "x", "handledRequest": "old"});
    let cache = cache(json!({}), before);
    let failure = Failure::new(Reason::Rejected, "HTTP 401");
    let failed = after_run(&observed(&cache, None), &Ended { answered: Some("new"), ..ended(Some(&failure)) }, start());
    assert_eq!((failed.runs, failed.failures), (8, 3));
    assert_eq!(failed.refresh_requested, None);
    assert_eq!(failed.handled_request.as_deref(), Some("new"));
    assert_eq!(failed.observed_generation, Some(1));
    // Never before the exact moment.
    assert_eq!(failed.next_retry_at, Some(at(4.0)));

    let secret = stored(&cache, lifetime(0.0, 100.0));
    let fetched = after_run(&observed(&cache, Some(secret)), &Ended { written: Some("9"), ..ended(None) }, start());
    assert_eq!((fetched.runs, fetched.failures, fetched.next_retry_at), (8, 0, None));
    assert_eq!(fetched.handled_request.as_deref(), Some("old"));
    assert_eq!(fetched.secret_resource_version.as_deref(), Some("9"));
    assert_eq!((fetched.fetched_at, fetched.last_run_by.as_deref()), (Some(start()), Some("me")));
}

#[test]
fn a_status_that_was_written_is_not_written_again() {
    let before = json!({"runs": 7, "refreshRequested": "x"});
    for (secret, failure) in [(true, None), (true, Some("m")), (false, Some("m")), (false, None)] {
        let failure = failure.map(|message| Failure::new(Reason::ServerError, message));
        let mut cache = cache(json!({}), before.clone());
        let stored = secret.then(|| stored(&cache, lifetime(0.0, 100.0)));
        cache.status = Some(after_run(&observed(&cache, stored.clone()), &ended(failure.as_ref()), start()));
        // As it comes back from the API server, some time later, at another replica.
        let json = serde_json::to_value(&cache).expect("serializable");
        let cache: TokenCache = serde_json::from_value(json).expect("readable");
        assert_eq!(at_rest(&observed(&cache, stored), at(99.0)), cache.status.clone().expect("set"));
    }
}

#[test]
fn a_lost_status_is_rebuilt_from_the_secret() {
    let cache = cache(json!({}), json!(null));
    let status = at_rest(&observed(&cache, Some(stored(&cache, lifetime(0.0, 100.0)))), at(1.0));
    assert_eq!(status.expires_at.map(|expiry| expiry.to_string()).as_deref(), Some("2026-03-01T12:01:40Z"));
    assert_eq!(status.fetched_at, Some(start()));
    assert_eq!(status.secret_name.as_deref(), Some("a"));
    assert_eq!(ready_of(&status).0, "True");
}

#[test]
fn the_secret_that_is_named_is_the_one_that_was_observed() {
    let before = json!({"secretName": "old", "secretResourceVersion": "5", "runs": 1});
    let named = |name: &str| cache(json!({"target": {"name": name}}), before.clone());
    let (run, edited) = (named("old"), named("new"));
    // The object was edited during the run, and the report is made for it as it is now.
    let value = Some(stored(&run, lifetime(0.0, 100.0)));
    let seen = Observed { cache: &edited, ..observed(&run, value) };
    let failure = Failure::new(Reason::ServerError, "m");
    let failed = after_run(&seen, &ended(Some(&failure)), start());
    assert_eq!((failed.secret_name.as_deref(), failed.secret_resource_version.as_deref()), (Some("old"), Some("5")));
    assert_eq!(ready_of(&failed).0, "True");
    let fetched = after_run(&seen, &Ended { written: Some("6"), ..ended(None) }, start());
    assert_eq!((fetched.secret_name.as_deref(), fetched.secret_resource_version.as_deref()), (Some("old"), Some("6")));

    let rested = at_rest(&observed(&edited, Some(stored(&edited, lifetime(0.0, 100.0)))), start());
    assert_eq!(
        (rested.secret_name.as_deref(), rested.secret_resource_version),
        (Some("new"), None),
        "of another Secret"
    );
    let absent = at_rest(&observed(&edited, None), start());
    assert_eq!((absent.secret_name.as_deref(), ready_of(&absent).0), (Some("new"), "False"));
}

#[test]
fn a_count_of_runs_that_cannot_grow_begins_anew() {
    let cache = cache(json!({}), json!({"runs": i64::MAX}));
    assert_eq!(after_run(&observed(&cache, None), &ended(None), start()).runs, 1);
    assert_eq!((next_run(0), next_run(i64::MAX)), (1, 1));
}

#[test]
fn what_is_waited_for_is_told() {
    let cache = cache(json!({}), json!(null));
    let mut seen = observed(&cache, None);
    let waiting = while_waiting(&seen, "Lease ns/tokencache-a", start());
    assert_eq!((ready_of(&waiting).0, ready_of(&waiting).1), ("False", "Pending"));
    assert!(ready_of(&waiting).2.contains("Lease ns/tokencache-a"), "{}", ready_of(&waiting).2);
    assert_eq!(waiting.observed_generation, None, "it is not dealt with yet");
    seen.secret = SecretState::Leftover;
    let waiting = at_rest(&seen, start());
    assert_eq!((ready_of(&waiting).0, ready_of(&waiting).1), ("False", "Pending"));
    assert!(ready_of(&waiting).2.contains("Secret ns/a of a deleted TokenCache"), "{}", ready_of(&waiting).2);
    assert!(condition(Some(&waiting), STALLED).is_none());
}

#[test]
fn a_deleted_secret_is_known_as_such_until_the_run_that_deals_with_it_has_ended() {
    let status = json!({"runs": 1, "fetchedAt": "2026-03-01T11:59:00Z", "expiresAt": "2026-03-01T12:01:00Z"});
    let cache = cache(json!({}), status);
    let meanwhile = at_expiry(&observed(&cache, None), start());
    assert_eq!((ready_of(&meanwhile).0, ready_of(&meanwhile).1), ("False", "Pending"));
    assert_eq!(meanwhile.fetched_at, Some(at(-60.0)));
    let failure = Failure::new(Reason::ServerError, "m");
    assert_eq!(after_run(&observed(&cache, None), &ended(Some(&failure)), start()).fetched_at, None);
}

#[test]
fn a_request_that_failed_while_a_lazy_value_was_valid_is_over_once_that_is_gone() {
    let lazy = json!({"refresh": {"policy": "Lazy"}});
    let mut asked = cache(lazy.clone(), json!({"runs": 1}));
    let value = Some(stored(&asked, lifetime(-50.0, 50.0)));
    let failure = Failure::new(Reason::ServerError, "m");
    asked.status = Some(after_run(&observed(&asked, value), &ended(Some(&failure)), start()));
    let gone = at_rest(&observed(&asked, None), at(1.0));
    assert_eq!((gone.failures, gone.next_retry_at), (0, None));
    assert_eq!((ready_of(&gone).0, ready_of(&gone).1), ("False", "Cleared"));

    // One that failed without a value is tried again.
    let mut asked = cache(lazy, json!({"runs": 1}));
    asked.status = Some(after_run(&observed(&asked, None), &ended(Some(&failure)), start()));
    let still = at_rest(&observed(&asked, None), at(1.0));
    assert_eq!((still.failures, ready_of(&still).1), (1, "FetchFailed"));
}

#[test]
fn the_transition_time_moves_only_with_the_status() {
    let mut cache = cache(json!({}), json!(null));
    let valid = |cache: &TokenCache| Some(stored(cache, lifetime(0.0, 100.0)));
    let transition = |status: &TokenCacheStatus| status.conditions.first().expect("Ready").last_transition_time.clone();
    cache.status = Some(at_rest(&observed(&cache, valid(&cache)), start()));
    let failure = Failure::new(Reason::ServerError, "m");
    let failing = after_run(&observed(&cache, valid(&cache)), &ended(Some(&failure)), at(50.0));
    assert_eq!(transition(&failing), to_kube(start()));
    cache.status = Some(failing);
    let expired = at_expiry(&observed(&cache, valid(&cache)), at(100.0));
    assert_eq!((ready_of(&expired).0, transition(&expired)), ("False", to_kube(at(100.0))));
}

#[test]
fn that_a_value_expired_stays_known_after_its_secret_was_removed_for_it() {
    let status = json!({"expiresAt": "2026-03-01T12:00:00Z", "fetchedAt": "2026-03-01T11:00:00Z"});
    let removed = cache(json!({"target": {"expiredPolicy": "Delete"}}), status.clone());
    assert_eq!(ready_of(&at_rest(&observed(&removed, None), at(1.0))).1, "Expired");
    // Deleted by hand before it expired.
    assert_eq!(ready_of(&at_rest(&observed(&removed, None), at(-1.0))).1, "Pending");
}

#[test]
fn what_a_run_waits_for_is_part_of_pending_and_other_replicas_leave_it_there() {
    let cache = cache(json!({}), json!(null));
    let message = |status: &TokenCacheStatus| ready_of(status).2.to_owned();
    let plain = "Fetching the first value.";
    let told = during_run(&observed(&cache, None), Some("no node takes the pod"), start());
    assert_eq!(message(&told), "Fetching the first value: no node takes the pod.");
    let known = TokenCache { status: Some(told), ..cache.clone() };
    for (waits_for, expected) in [
        (None, "Fetching the first value: no node takes the pod."),
        (Some("another reason"), "Fetching the first value: another reason."),
        (Some(""), plain),
    ] {
        assert_eq!(message(&during_run(&observed(&known, None), waits_for, start())), expected);
    }
    assert_eq!(message(&during_run(&observed(&cache, None), None, start())), plain);
    // With a value it is of no interest.
    let valid = observed(&known, Some(stored(&known, lifetime(0.0, 100.0))));
    assert!(message(&during_run(&valid, Some("no node takes the pod"), start())).starts_with("Value is valid until"));
}

#[test]
fn what_is_out_of_the_limits_of_the_definition_does_not_stay() {
    let long = "é".repeat(40_000);
    let told = json!({
        "runs": i64::MAX, "failures": -1, "lastRunBy": long, "secretName": long, "source": long,
        "secretResourceVersion": long, "handledRequest": long,
        "lastFailure": {"reason": long, "message": long},
    });
    let cache = cache(json!({}), told);
    let status = at_rest(&observed(&cache, Some(stored(&cache, lifetime(0.0, 100.0)))), start());
    assert_eq!((status.runs, status.failures), (1 << 53, 0));
    let length = |text: Option<&String>| text.map_or(0, |text| text.chars().count());
    assert_eq!(length(status.last_run_by.as_ref()), 253);
    assert_eq!(length(status.handled_request.as_ref()), 40_000);
    let failure = status.last_failure.expect("kept");
    assert_eq!((failure.reason.chars().count(), failure.message.chars().count()), (253, 32 * 1024));
    assert_eq!((status.secret_name.as_deref(), status.source.as_deref()), (Some("a"), Some("oauth2")));
    for (runs, next) in [(-5, 1), (0, 1), (41, 42), ((1 << 53) - 1, 1 << 53), (1 << 53, 1), (i64::MAX, 1)] {
        assert_eq!(next_run(runs), next);
    }
}

#[test]
fn a_failure_that_no_run_has_had_is_set_right() {
    let cache = cache(json!({}), FAILED());
    let seen = observed(&cache, Some(stored(&cache, lifetime(0.0, 100.0))));
    let status = at_rest(&seen.clone().with_own_failure(None), start());
    assert_eq!((status.failures, status.next_retry_at, ready_of(&status).1), (0, None, "Fetched"));
    let status = at_rest(&seen.clone().with_own_failure(Some(at(7.5))), start());
    assert_eq!((status.failures, status.next_retry_at), (1, Some(at(8.0))));
    assert_eq!(at_rest(&seen, start()).failures, 2);
}

#[test]
fn replicas_that_do_not_hold_a_fetch_back_leave_the_note_of_the_one_that_does() {
    let mut brake = Brake::default();
    (0..10).for_each(|_| brake.count(Cause::Repair, at(0.0)));
    let relabelled = |cache: &TokenCache| Stored {
        integrity: Integrity::Relabelled("a".into()),
        ..stored(cache, lifetime(0.0, 100.0))
    };
    for (unblocked, intact, held) in [(false, false, "Another client changed"), (true, true, "An object that the spec")]
    {
        let mut cache = cache(json!({}), FAILED());
        let secret = |cache: &TokenCache| if intact { stored(cache, lifetime(0.0, 100.0)) } else { relabelled(cache) };
        let braked = |cache: &TokenCache| {
            let seen = observed(cache, Some(secret(cache)));
            at_rest(&Observed { brake: Some(&brake), unblocked, ..seen }, at(1.0))
        };
        let other = |cache: &TokenCache| at_rest(&observed(cache, Some(secret(cache))), at(1.0));
        let plain = other(&cache);
        assert!(!ready_of(&plain).2.contains(held), "{plain:?}");
        cache.status = Some(braked(&cache));
        assert!(ready_of(cache.status.as_ref().unwrap()).2.contains(held), "{:?}", cache.status);
        assert_eq!(Some(other(&cache)), cache.status);
        assert_eq!(Some(braked(&cache)), cache.status);
        // The message itself is new.
        let status = cache.status.as_mut().unwrap();
        status.failures = 3;
        status.last_failure.as_mut().unwrap().message = "HTTP 500".into();
        assert!(!ready_of(&other(&cache)).2.contains(held));
    }
    // Nothing is to be done any more.
    let mut cache = cache(json!({}), json!({"runs": 1}));
    let seen = observed(&cache, Some(relabelled(&cache)));
    cache.status = Some(at_rest(&Observed { brake: Some(&brake), ..seen }, at(1.0)));
    assert!(ready_of(cache.status.as_ref().unwrap()).2.contains("Another client changed"));
    let repaired = at_rest(&observed(&cache, Some(stored(&cache, lifetime(0.0, 100.0)))), at(1.0));
    assert!(!ready_of(&repaired).2.contains("Another client changed"), "{repaired:?}");
}
