use proptest::prelude::*;
use serde_json::{Value, json};

use std::time::Duration;

use chrono::TimeDelta;

use super::{moments::refresh_moment, *};
use crate::{
    api::{ExpiresAt, Refresh},
    reconcile::desired_secret::Integrity,
    testing::fixtures::{at, cache, lifetime, observed, start, stored},
    time::floor,
};

fn failing(after: Value) -> Value {
    let mut status = json!({
        "failures": 3, "runs": 5, "observedGeneration": 1, "nextRetryAt": "2026-03-01T12:01:00Z",
        "lastFailure": {"time": "2026-03-01T11:59:00Z", "reason": "ServerError", "message": "m"},
    });
    for (key, value) in after.as_object().expect("an object") {
        status[key] = value.clone();
    }
    status
}

#[test]
fn without_a_secret_an_eager_cache_fetches_and_a_lazy_one_waits_to_be_asked() {
    let lazy = json!({"refresh": {"policy": "Lazy"}});
    for (spec, status, plan) in [
        (json!({}), json!(null), Plan::Fetch(Why::First)),
        (json!({}), json!({"fetchedAt": "2026-03-01T11:00:00Z"}), Plan::Fetch(Why::Cleared)),
        (json!({}), json!({"expiresAt": "2026-03-01T11:00:00Z"}), Plan::Fetch(Why::Expired)),
        (lazy.clone(), json!(null), Plan::Sleep(None)),
        (lazy.clone(), json!({"fetchedAt": "2026-03-01T11:00:00Z"}), Plan::Sleep(None)),
        (lazy.clone(), json!({"refreshRequested": "2026-03-01T11:00:00Z"}), Plan::Fetch(Why::Requested)),
        // A lazy fetch that was asked for and failed goes on while there is no value.
        (lazy, failing(json!({})), Plan::Sleep(Some(at(60.0)))),
        (json!({"suspend": true}), json!(null), Plan::Sleep(None)),
    ] {
        let cache = cache(spec, status);
        assert_eq!(decide(&observed(&cache, None), start()), plan, "{cache:?}");
    }
}

#[test]
fn a_lazy_value_whose_request_failed_while_it_was_valid_is_not_fetched_when_it_is_gone() {
    let lazy = json!({"refresh": {"policy": "Lazy"}});
    let failed = |at: &str, expires_at: &str| {
        failing(json!({
            "lastFailure": {"time": at, "reason": "ServerError", "message": "m"}, "nextRetryAt": null,
            "fetchedAt": "2026-03-01T11:00:00Z", "expiresAt": expires_at,
        }))
    };
    let (valid, expired) = ("2026-03-01T12:01:40Z", "2026-03-01T11:59:00Z");
    for (status, secret, plan) in [
        // It expired.
        (failed("2026-03-01T12:01:00Z", valid), Some(lifetime(0.0, 100.0)), Plan::Sleep(None)),
        // Its Secret was deleted, before it expired and after.
        (failed("2026-03-01T12:01:00Z", valid), None, Plan::Sleep(None)),
        // The value had expired when it was asked for, so that is repeated until there is one.
        (failed("2026-03-01T12:01:41Z", valid), Some(lifetime(0.0, 100.0)), Plan::Fetch(Why::Expired)),
        (failed("2026-03-01T11:59:00Z", expired), None, Plan::Fetch(Why::Expired)),
    ] {
        let cache = cache(lazy.clone(), status);
        let stored = secret.map(|lifetime| stored(&cache, lifetime));
        assert_eq!(decide(&observed(&cache, stored), at(110.0)), plan, "{:?}", cache.status);
    }
}

#[test]
fn the_secret_of_a_deleted_token_cache_of_the_same_name_is_waited_for() {
    let cache = cache(json!({}), json!({"refreshRequested": "x"}));
    let mut seen = observed(&cache, None);
    seen.secret = SecretState::Leftover;
    assert_eq!(decide(&seen, start()), Plan::Sleep(None));
}

#[test]
fn a_valid_value_is_refreshed_when_it_is_due_asked_for_changed_or_not_what_the_spec_says() {
    let requested = json!({"refreshRequested": "2026-03-01T11:00:00Z"});
    // 100 s of life, of which 20 to 19 are left at the refresh.
    for (spec, status, now, plan) in [
        (json!({}), json!({}), 0.0, None),
        (json!({}), json!({}), 81.0, Some(Why::Due)),
        (json!({}), json!({}), 100.0, Some(Why::Expired)),
        (json!({"refresh": {"renewBefore": "90s"}}), json!({}), 9.0, None),
        (json!({"refresh": {"renewBefore": "90s"}}), json!({}), 10.0, Some(Why::Due)),
        // Longer than the value lives: by percentage, since it would be fetched without a pause.
        (json!({"refresh": {"renewBefore": "99500ms"}}), json!({}), 79.0, None),
        // Almost as long as the value lives: it would be fetched almost without a pause.
        (json!({"refresh": {"renewBefore": "96s"}}), json!({}), 79.0, None),
        (json!({"refresh": {"renewBefore": "96s"}}), json!({}), 81.0, Some(Why::Due)),
        (json!({"refresh": {"renewBeforePercentage": 50}}), json!({}), 49.0, None),
        (json!({"refresh": {"renewBeforePercentage": 50}}), json!({}), 53.0, Some(Why::Due)),
        (json!({"refresh": {"policy": "Lazy"}}), json!({}), 99.0, None),
        (json!({"refresh": {"policy": "Lazy"}}), json!({}), 100.0, None),
        (json!({}), requested.clone(), 0.0, Some(Why::Requested)),
        (json!({"refresh": {"policy": "Lazy"}}), requested.clone(), 0.0, Some(Why::Requested)),
        (json!({"suspend": true}), requested, 200.0, None),
    ] {
        let cache = cache(spec, status);
        let plan_now = decide(&observed(&cache, Some(stored(&cache, lifetime(0.0, 100.0)))), at(now));
        let fetch = match plan_now {
            Plan::Fetch(why) => Some(why),
            _ => None,
        };
        assert_eq!(fetch, plan, "{now} {:?}", cache.spec);
    }
}

#[test]
fn a_spec_that_changed_is_fetched_for_at_once_but_scheduling_alone_is_not() {
    let old = cache(json!({}), json!({"observedGeneration": 1}));
    for (spec, fetches) in [
        (json!({"expiry": {"ttl": "1h"}}), true),
        (json!({"target": {"labels": {"a": "b"}}}), true),
        (json!({"target": {"data": {"t": "token"}}}), true),
        (json!({"refresh": {"renewBefore": "10s"}}), false),
        (json!({"retry": {"maxInterval": "10s"}}), false),
        (json!({"target": {"expiredPolicy": "Delete", "deletionPolicy": "Retain"}}), false),
    ] {
        let cache = cache(spec, failing(json!({"observedGeneration": 0})));
        let plan = decide(&observed(&cache, Some(stored(&old, lifetime(0.0, 100.0)))), at(1.0));
        assert_eq!(plan == Plan::Fetch(Why::SpecChanged), fetches, "{plan:?}");
    }
}

#[test]
fn backoff_holds_what_is_due_but_neither_a_request_nor_a_new_spec_nor_a_changed_source() {
    let due = |status: Value, unblocked: bool| {
        let cache = cache(json!({}), status);
        let mut seen = observed(&cache, None);
        seen.unblocked = unblocked;
        decide(&seen, start())
    };
    assert_eq!(due(failing(json!({})), false), Plan::Sleep(Some(at(60.0))));
    assert_eq!(due(failing(json!({})), true), Plan::Fetch(Why::Unblocked));
    // Deleting the Secret is a request as well; the run that answers it takes fetchedAt away.
    assert_eq!(due(failing(json!({"fetchedAt": "2026-03-01T11:00:00Z"})), false), Plan::Fetch(Why::Cleared));
    assert_eq!(due(failing(json!({"observedGeneration": 0})), false), Plan::Fetch(Why::First));
    assert_eq!(due(failing(json!({"refreshRequested": "x"})), false), Plan::Fetch(Why::Requested));
    assert_eq!(due(failing(json!({"nextRetryAt": "2026-03-01T11:59:59Z"})), false), Plan::Fetch(Why::First));
}

#[test]
fn a_failure_that_no_run_has_had_holds_nothing_back() {
    let refused = json!({"reason": "SourceNotAllowed", "message": "forged", "time": "2026-03-01T12:00:00Z"});
    for told in [
        failing(json!({})),
        failing(json!({"lastFailure": refused, "nextRetryAt": null})),
        failing(json!({"nextRetryAt": "2026-03-01T12:50:00Z", "failures": i32::MAX})),
    ] {
        let cache = cache(json!({}), told);
        let seen = observed(&cache, None);
        assert!(seen.is_told_failure());
        assert!(!matches!(decide(&seen, start()), Plan::Fetch(_)), "{:?}", cache.status);
        assert_eq!(decide(&seen.clone().with_own_failure(None), start()), Plan::Fetch(Why::First));
        // The last run here has failed, too.
        assert_eq!(decide(&seen.with_own_failure(Some(at(7.0))), start()), Plan::Sleep(Some(at(7.0))));
    }
    // Whose these are is looked at, and no failure is none.
    for told in [
        failing(json!({"lastFailure": {"reason": "SecretNotOwned", "message": "m"}})),
        failing(json!({"lastFailure": {"reason": "LeaseNotOwned", "message": "m"}})),
        failing(json!({"failures": 0})),
    ] {
        let cache = cache(json!({}), told);
        assert!(!observed(&cache, None).is_told_failure());
    }
    let cache = cache(json!({}), failing(json!({})));
    let own = Observed { exact_retry: Some(at(60.0)), ..observed(&cache, None) };
    assert!(!own.is_told_failure(), "this process has had it");
}

#[test]
fn a_refusal_stands_until_something_changes() {
    let refused = failing(json!({
        "lastFailure": {"reason": "SourceNotFound", "message": "m"}, "nextRetryAt": "2026-03-01T12:05:00Z",
    }));
    let decide_with = |status: &Value, unblocked: bool| {
        let cache = cache(json!({}), status.clone());
        let mut seen = observed(&cache, None);
        seen.unblocked = unblocked;
        decide(&seen, at(9.0))
    };
    assert_eq!(decide_with(&refused, false), Plan::Refuse(Reason::SourceNotFound, "m".into(), Some(at(300.0))));
    assert_eq!(decide_with(&refused, true), Plan::Fetch(Why::Unblocked));
    let mut asked = refused.clone();
    asked["refreshRequested"] = json!("x");
    assert_eq!(decide_with(&asked, false), Plan::Fetch(Why::Requested));
    let mut edited = refused;
    edited["observedGeneration"] = json!(0);
    assert_eq!(decide_with(&edited, false), Plan::Fetch(Why::First));
}

#[test]
fn neither_a_bad_spec_nor_a_foreign_secret_is_overruled_by_a_request() {
    let cache = cache(json!({}), json!({"refreshRequested": "x"}));
    let invalid = Invalid::new("spec.fetch", "exactly one source");
    let mut seen = observed(&cache, None);
    seen.invalid = Some(&invalid);
    assert_eq!(
        decide(&seen, start()),
        Plan::Refuse(Reason::InvalidSpec, "spec.fetch: exactly one source".into(), None)
    );
    seen.invalid = None;
    seen.secret = SecretState::Foreign("belongs to the ConfigMap x".into());
    assert!(
        matches!(decide(&seen, start()), Plan::Refuse(Reason::SecretNotOwned, message, None) if message.contains("ns/a"))
    );
}

#[test]
fn a_secret_changed_by_another_hand_is_put_right_under_both_policies() {
    for policy in ["Eager", "Lazy"] {
        let cache = cache(json!({"refresh": {"policy": policy}}), json!({}));
        let mut secret = stored(&cache, lifetime(0.0, 100.0));
        secret.integrity = Integrity::Unverified;
        assert!(matches!(decide(&observed(&cache, Some(secret.clone())), at(1.0)), Plan::Sleep(_)));
        secret.integrity = Integrity::Drifted("how".into());
        assert_eq!(decide(&observed(&cache, Some(secret)), at(1.0)), Plan::Fetch(Why::Drifted("how".into())));
    }
}

#[test]
fn an_expired_secret_is_removed_at_its_moment_where_the_policy_says_so_and_a_fetch_does_not_wait_for_that() {
    let status = failing(json!({"nextRetryAt": "2026-03-01T12:02:00Z"}));
    let [delete, retain] =
        ["Delete", "Retain"].map(|policy| cache(json!({"target": {"expiredPolicy": policy}}), status.clone()));
    let secret = stored(&delete, lifetime(0.0, 100.0));
    let seen = observed(&delete, Some(secret.clone()));
    assert_eq!(seen.to_remove(at(99.9)), None);
    assert_eq!(seen.to_remove(at(100.0)), Some(&secret));
    assert_eq!(observed(&retain, Some(secret.clone())).to_remove(at(100.0)), None);
    assert_eq!(decide(&seen, at(100.0)), Plan::Sleep(Some(at(120.0))));
    assert_eq!(decide(&seen, at(120.0)), Plan::Fetch(Why::Expired));
    let mut asked = delete.clone();
    asked.status.as_mut().expect("set").refresh_requested = Some("x".into());
    assert_eq!(decide(&observed(&asked, Some(secret)), at(100.0)), Plan::Fetch(Why::Requested));
}

/// A Brake after fetches at these moments.
fn braked(cause: Cause, moments: &[f64]) -> Brake {
    let mut brake = Brake::default();
    moments.iter().for_each(|moment| brake.count(cause, at(*moment)));
    brake
}

#[test]
fn what_is_called_for_again_and_again_waits() {
    let changed = |cache: &TokenCache| {
        let mut stored = stored(cache, lifetime(0.0, 100.0));
        stored.integrity = Integrity::Drifted("how".into());
        Some(stored)
    };
    let relabelled = |cache: &TokenCache| {
        let mut stored = stored(cache, lifetime(0.0, 100.0));
        stored.integrity = Integrity::Relabelled("the label a".into());
        Some(stored)
    };
    let other_hash =
        |cache: &TokenCache| Some(Stored { fetch_hash: "x".into(), ..stored(cache, lifetime(0.0, 100.0)) });
    let valid = |cache: &TokenCache| Some(stored(cache, lifetime(0.0, 100.0)));
    let absent = |_: &TokenCache| None;
    let drifted = |how: &str| Why::Drifted(how.into());
    let done = json!({"observedGeneration": 1, "runs": 3});
    let fetched = json!({"observedGeneration": 1, "runs": 3, "fetchedAt": "2026-03-01T12:00:00Z"});
    let asked = json!({"observedGeneration": 1, "refreshRequested": "x"});
    type Case<'a> = (&'a Value, &'a dyn Fn(&TokenCache) -> Option<Stored>, Cause, Why);
    let cases: [Case<'_>; 6] = [
        (&done, &changed, Cause::Repair, drifted("how")),
        (&done, &relabelled, Cause::Repair, drifted("the label a was changed")),
        (&done, &other_hash, Cause::Repair, Why::SpecChanged),
        (&fetched, &absent, Cause::Repair, Why::Cleared),
        (&done, &absent, Cause::Repair, Why::First),
        (&asked, &valid, Cause::Request, Why::Requested),
    ];
    for (status, secret, cause, why) in cases {
        let cache = cache(json!({}), status.clone());
        let mut seen = observed(&cache, secret(&cache));
        assert_eq!(decide(&seen, at(10.5)), Plan::Fetch(why.clone()));
        assert_eq!(seen.held_back(at(10.5)), None);
        let brake = braked(cause, &[10.0; 10]);
        seen.brake = Some(&brake);
        let Plan::Sleep(Some(until)) = decide(&seen, at(10.5)) else { panic!("{why:?}") };
        assert!(until > at(10.5), "{why:?}");
        assert_eq!(seen.held_back(at(10.5)), Some(why.clone()));
        assert_eq!(decide(&seen, until), Plan::Fetch(why));
    }
    // The first is not held up, nor is a new spec, however often it is edited.
    let edited = cache(json!({}), json!({"observedGeneration": 0, "runs": 3}));
    let brake = braked(Cause::Repair, &[10.0; 10]);
    let seen = Observed { brake: Some(&brake), ..observed(&edited, other_hash(&edited)) };
    assert_eq!(decide(&seen, at(10.5)), Plan::Fetch(Why::SpecChanged));
    let new = cache(json!({}), json!(null));
    assert_eq!(decide(&Observed { brake: Some(&brake), ..observed(&new, None) }, at(10.5)), Plan::Fetch(Why::First));
}

#[test]
fn a_value_that_hardly_lives_is_not_fetched_without_a_pause() {
    let cache = cache(json!({}), json!({}));
    let seen = observed(&cache, Some(stored(&cache, lifetime(0.0, 0.2))));
    assert_eq!(decide(&seen, at(0.3)), Plan::Sleep(Some(at(1.0))));
    assert_eq!(decide(&seen, at(1.0)), Plan::Fetch(Why::Expired));
}

#[test]
fn whatever_calls_for_a_fetch_waits_for_the_shortest_interval_but_the_first_of_its_kind() {
    let five = TimeDelta::seconds(5);
    // A value that hardly lives.
    let short = cache(json!({}), json!({}));
    let seen = Observed { min_interval: five, ..observed(&short, Some(stored(&short, lifetime(0.0, 2.0)))) };
    assert_eq!(decide(&seen, at(1.9)), Plan::Sleep(Some(at(5.0))));
    assert_eq!(decide(&seen, at(5.0)), Plan::Fetch(Why::Expired));
    // A request, and an edit of the spec.
    let valid = |cache: &TokenCache| Some(stored(cache, lifetime(0.0, 1000.0)));
    let other = |cache: &TokenCache| Some(Stored { fetch_hash: "x".into(), ..stored(cache, lifetime(0.0, 1000.0)) });
    let asked = cache(json!({}), json!({"observedGeneration": 1, "runs": 3, "refreshRequested": "x"}));
    let edited = cache(json!({}), json!({"observedGeneration": 0, "runs": 3}));
    let failed = cache(json!({}), failing(json!({"observedGeneration": 0, "nextRetryAt": null})));
    for (cache, secret, cause, why) in [
        (&asked, valid(&asked), Cause::Request, Why::Requested),
        (&edited, other(&edited), Cause::Edit, Why::SpecChanged),
        (&failed, None, Cause::Edit, Why::First),
    ] {
        let mut seen = Observed { min_interval: five, ..observed(cache, secret) };
        assert_eq!(decide(&seen, at(0.5)), Plan::Fetch(why.clone()), "a person's single one is met at once");
        let brake = braked(cause, &[0.0]);
        seen.brake = Some(&brake);
        assert_eq!(decide(&seen, at(0.5)), Plan::Sleep(Some(at(5.0))), "{why:?}");
        assert_eq!(seen.held_back(at(0.5)), None, "a wait of seconds is not told");
        assert_eq!(decide(&seen, at(5.0)), Plan::Fetch(why.clone()));
        seen.min_interval = TimeDelta::seconds(60);
        assert_eq!(seen.held_back(at(0.5)), Some(why));
    }
}

#[test]
fn retries_that_are_quicker_than_the_shortest_interval_are_few() {
    let retry: crate::api::Retry =
        serde_json::from_value(json!({"initialInterval": "100ms", "maxInterval": "100ms"})).unwrap();
    let wait = |failures: i32, refused: bool| {
        let failed = Failed { failures, is_refusal: refused, retry_after: None };
        (retry_at(&retry, failed, TimeDelta::seconds(5), 1.0, start()) - start()).num_milliseconds()
    };
    assert_eq!([1, 2, 3, 4].map(|failures| wait(failures, false)), [100, 100, 5000, 5000]);
    assert_eq!([1, 2, 3, 4].map(|failures| wait(failures, true)), [100, 100, 5000, 5000]);
}

#[test]
fn a_refusal_is_checked_again_unless_the_spec_alone_causes_it() {
    let refused = |spec: Value, reason: &str, after: Value| {
        let mut status =
            failing(json!({"lastFailure": {"reason": reason, "message": "m", "time": "2026-03-01T12:00:00Z"}}));
        status["nextRetryAt"] = json!(null);
        for (key, value) in after.as_object().expect("an object") {
            status[key] = value.clone();
        }
        cache(spec, status)
    };
    let next = json!({"nextRetryAt": "2026-03-01T12:03:00Z"});
    let never = json!({"nextRetryAt": "2099-01-01T00:00:00Z"});
    let lazy = json!({"refresh": {"policy": "Lazy"}});
    for reason in ["SourceNotFound", "SourceNotAllowed", "AddressNotAllowed", "InvalidSpec"] {
        for (spec, after, wait) in [
            (json!({}), next.clone(), Some(180.0)),
            // As an earlier version of this program left it.
            (json!({}), json!({}), Some(300.0)),
            (json!({"retry": {"maxInterval": "20s"}}), json!({}), Some(20.0)),
            (json!({}), never.clone(), Some(0.0)),
            // There is no value, so a lazy one goes on as well.
            (lazy.clone(), next.clone(), Some(180.0)),
        ] {
            let cache = refused(spec, reason, after.clone());
            let until = wait.map(at);
            let seen = observed(&cache, None);
            let expected = match until {
                Some(until) if until > at(0.0) => {
                    Plan::Refuse(Reason::refusal(reason).expect("one"), "m".into(), Some(until))
                }
                _ => Plan::Fetch(Why::Recheck),
            };
            assert_eq!(decide(&seen, at(0.0)), expected, "{reason} {after}");
            assert_eq!(decide(&seen, at(300.0)), Plan::Fetch(Why::Recheck), "{reason}");
        }
        // A value that is valid is left alone, if nobody asks.
        let mut lazy = refused(json!({}), reason, next.clone());
        lazy.spec.refresh.policy = RefreshPolicy::Lazy;
        let seen = observed(&lazy, Some(stored(&lazy, lifetime(0.0, 1e4))));
        assert!(matches!(decide(&seen, at(9e3)), Plan::Refuse(_, _, None)));
    }
    let owned = refused(json!({}), "LeaseNotOwned", json!({}));
    assert!(matches!(decide(&observed(&owned, None), at(9e9)), Plan::Refuse(Reason::LeaseNotOwned, _, None)));
}

#[test]
fn a_refused_refresh_token_is_sent_again_only_after_a_change_or_a_request() {
    let reason = Reason::ReauthenticationRequired;
    let failure = json!({"reason": reason.as_str(), "message": "m", "time": "2026-03-01T12:00:00Z"});
    for next in [json!(null), json!("2026-03-01T12:03:00Z")] {
        let mut cache = cache(json!({}), failing(json!({"lastFailure": failure, "nextRetryAt": next})));
        let seen = observed(&cache, None);
        assert_eq!(decide(&seen, at(9e9)), Plan::Refuse(reason, "m".into(), None));
        assert_eq!(decide(&Observed { unblocked: true, ..seen }, at(1.0)), Plan::Fetch(Why::Unblocked));
        cache.status.as_mut().expect("one").refresh_requested = Some("now".to_owned());
        assert_eq!(decide(&observed(&cache, None), at(1.0)), Plan::Fetch(Why::Requested));
    }
}

#[test]
fn a_retry_is_not_believed_to_be_further_away_than_any_wait() {
    let plan = |next: &str, now: f64| {
        let cache = cache(json!({}), failing(json!({"nextRetryAt": next})));
        decide(&observed(&cache, None), at(now))
    };
    assert_eq!(plan("2026-03-01T13:00:00Z", 0.0), Plan::Sleep(Some(at(3600.0))));
    assert_eq!(plan("2099-01-01T00:00:00Z", 0.0), Plan::Fetch(Why::First));
}

#[test]
fn a_value_that_never_expires_is_not_refreshed() {
    let cache = cache(json!({}), json!({}));
    let forever = Lifetime { fetched_at: start(), expires_at: ExpiresAt::Never };
    assert_eq!(decide(&observed(&cache, Some(stored(&cache, forever))), at(1e9)), Plan::Sleep(None));
}

#[test]
fn a_server_that_asks_for_a_pause_gets_it_but_not_for_ever() {
    let secs = Duration::from_secs;
    for (failures, random, wish, wait) in [
        (1, 1.0, None, secs(1)),
        (1, 0.0, None, Duration::from_millis(500)),
        (4, 1.0, None, secs(8)),
        (99, 1.0, None, secs(300)),
        (i32::MAX, 0.0, None, secs(150)),
        (1, 1.0, Some(secs(30)), secs(30)),
        (9, 1.0, Some(secs(1)), secs(256)),
        (1, 1.0, Some(secs(86_400)), secs(3600)),
    ] {
        assert_eq!(backoff(failures, secs(1), secs(300), random, wish), wait, "{failures}");
    }
}

proptest! {
    #[test]
    fn a_refresh_is_planned_within_the_lifetime_and_in_whole_seconds_where_it_is_long(
        from in 0_u32..1000, length in 0_u32..100_000, jitter in 0.0..=1.0_f64,
        percentage in proptest::option::of(1..=99), before in proptest::option::of(1_u64..100_000),
    ) {
        let refresh = Refresh {
            renew_before_percentage: percentage,
            renew_before: before.map(crate::api::Duration::from_secs),
            ..Refresh::default()
        };
        let lifetime = lifetime(f64::from(from), f64::from(from + length));
        let planned = refresh_at(&refresh, lifetime, jitter).expect("eager, and it expires");
        prop_assert!(planned >= lifetime.fetched_at);
        prop_assert!(ExpiresAt::At(planned) <= lifetime.expires_at);
        prop_assert!(length < 10 || planned == floor(planned));
        // Never without a pause: at least a hundredth of the lifetime goes by, but for what whole seconds cost.
        let pause = planned.signed_duration_since(lifetime.fetched_at);
        prop_assert!(pause >= TimeDelta::seconds(i64::from(length) / 100 - 1));
        prop_assert!(percentage.is_some() || pause >= TimeDelta::seconds(i64::from(length) / 20 - 1));
    }

    #[test]
    fn a_short_life_is_refreshed_before_others_see_it_end_and_not_too_early(
        millis in 0_i64..1000, length in 2000_i64..9999, jitter in 0.0..=1.0_f64,
    ) {
        let fetched_at = start() + TimeDelta::milliseconds(millis);
        let end = fetched_at + TimeDelta::milliseconds(length);
        let exact = Lifetime { fetched_at, expires_at: ExpiresAt::At(end) };
        let seen = Lifetime { fetched_at: floor(fetched_at), expires_at: ExpiresAt::At(floor(end)) };
        let moment = refresh_moment(&Refresh::default(), seen, Some(exact), jitter).expect("eager");
        prop_assert!(moment <= floor(end));
        prop_assert!(moment >= fetched_at + TimeDelta::milliseconds(length / 2));
    }

    #[test]
    fn waking_when_told_to_finds_something_to_do(
        length in 1_u32..10_000, failures in 0..5_i32, retry in 0_u32..20_000, now in 0_u32..20_000, lazy: bool,
    ) {
        let status = json!({
            "failures": failures, "observedGeneration": 1,
            "nextRetryAt": crate::time::rfc3339(at(f64::from(retry))),
        });
        let policy = if lazy { "Lazy" } else { "Eager" };
        let cache = cache(json!({"refresh": {"policy": policy}, "retry": {"maxInterval": "6h"}}), status);
        let seen = observed(&cache, Some(stored(&cache, lifetime(0.0, f64::from(length)))));
        // No loop: who is told to sleep until a moment has something to do at it.
        if let Plan::Sleep(Some(until)) = decide(&seen, at(f64::from(now))) {
            prop_assert!(until > at(f64::from(now)));
            prop_assert!(matches!(decide(&seen, until), Plan::Fetch(_)));
        }
    }
}
