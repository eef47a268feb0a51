use serde_json::{Value as Json, json};

use super::*;
use crate::{client::value::tests::secret, time::parse_rfc3339};

fn at(time: &str) -> DateTime<Utc> {
    parse_rfc3339(&format!("2026-03-01T{time}Z")).unwrap()
}

/// A Secret with a value that was fetched at the one and expires at the other time.
fn found(from: &str, to: &str) -> Found {
    Found::of("a", Some(secret(&format!("2026-03-01T{from}Z"), &format!("2026-03-01T{to}Z"), json!({}))))
}

/// The same as what a clock says.
fn clock(time: &str) -> Now {
    Now { time: at(time), brought: None }
}

fn stamp(found: &Found) -> Stamp {
    found.value().unwrap().stamp().clone()
}

fn cache(spec: Json, status: Json) -> Cache {
    serde_json::from_value(json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
        "metadata": {"name": "a", "namespace": "ns", "uid": "u", "generation": 3},
        "spec": spec, "status": status,
    }))
    .unwrap()
}

fn stalled(reason: &str, generation: i64) -> Json {
    let condition = json!({
        "type": "Stalled", "status": "True", "reason": reason, "message": "m", "lastTransitionTime": "2026-03-01T12:00:00Z",
    });
    json!({"observedGeneration": generation, "conditions": [condition]})
}

#[test]
fn a_wish_is_met_by_a_value_that_is_valid_and_has_enough_left_and_is_not_the_old_one() {
    let one = found("12:00:00", "13:00:00");
    let other = found("12:00:01", "13:00:00");
    let valid = |minutes| Wish::Valid(TimeDelta::minutes(minutes));
    let still = |found: &Found| Wish::Refresh(Condition::IfStill(stamp(found)));
    let fetched_at = |time| Wish::Refresh(Condition::IfFetchedAt(at(time)));
    for (wish, found, now, expected) in [
        (valid(0), &one, "12:30:00", true),
        (valid(0), &one, "13:00:00", false),
        (valid(30), &one, "12:30:00", true),
        (valid(30), &one, "12:30:01", false),
        (valid(0), &Found::Absent, "12:30:00", false),
        (valid(0), &Found::Foreign, "12:30:00", false),
        (Wish::Refresh(Condition::Always), &one, "12:30:00", false),
        (still(&one), &one, "12:30:00", false),
        (still(&one), &other, "12:30:00", true),
        (still(&one), &other, "13:30:00", false),
        (fetched_at("12:00:00.9"), &one, "12:30:00", false),
        (fetched_at("12:00:00"), &other, "12:30:00", true),
    ] {
        assert_eq!(wish.met(found, &clock(now)).is_some(), expected, "{wish:?} by {found:?} at {now}");
    }
}

#[test]
fn a_run_is_asked_for_unless_somebody_has_or_it_would_be_in_vain() {
    let requested = json!({"refreshRequested": "2026-03-01T12:00:00Z", "runs": 4});
    for (spec, status, found, expected) in [
        (json!({}), json!({}), Found::Absent, "Send"),
        (json!({}), json!({"runs": 4, "failures": 4}), Found::Absent, "Send"),
        (json!({}), requested, Found::Absent, "Join(Asked { uid: Some(\"u\"), runs: 4"),
        (json!({"suspend": true}), json!({}), Found::Absent, "Fail(Suspended"),
        (json!({}), json!({}), Found::Foreign, "Fail(Failed { reason: \"SecretNotOwned\""),
        (
            json!({}),
            stalled("InvalidSpec", 3),
            Found::Absent,
            "Fail(Failed { reason: \"InvalidSpec\", message: \"m\" }",
        ),
        // Said of an older spec, or of what may have changed.
        (json!({}), stalled("InvalidSpec", 2), Found::Absent, "Send"),
        (json!({}), stalled("SourceNotFound", 3), Found::Absent, "Send"),
        // A source that only a later version knows.
        (json!({"fetch": {"carrierPigeon": {}}, "refresh": {"policy": "Sometimes"}}), json!({}), Found::Absent, "Send"),
    ] {
        let decided = format!("{:?}", ask(&cache(spec, status), &found));
        assert!(decided.starts_with(expected), "{decided}, not {expected}");
    }
}

#[test]
fn who_waits_is_answered_by_the_first_run_that_ends_after_the_request() {
    let asked = |uid: &str| Asked { uid: Some(uid.into()), runs: 4, before: None };
    for (spec, status, uid, expected) in [
        (json!({}), json!({"runs": 4}), "u", "NotYet"),
        (json!({}), json!({"runs": 5}), "u", "Ended"),
        (json!({}), json!({"runs": 9}), "u", "Ended"),
        (json!({}), json!({"runs": 5}), "former", "Anew"),
        (json!({"suspend": true}), json!({"runs": 4}), "u", "Fail(Suspended"),
        (json!({"suspend": true}), json!({"runs": 5}), "u", "Ended"),
        (json!({}), stalled("InvalidSpec", 3), "u", "Fail(Failed"),
    ] {
        let decided = format!("{:?}", answer(&cache(spec, status), &asked(uid)));
        assert!(decided.starts_with(expected), "{decided}, not {expected}");
    }
}

#[test]
fn who_waits_is_answered_although_the_count_of_runs_cannot_grow() {
    // Anyone who may patch the status can write it.
    let asked = Asked { uid: Some("u".into()), runs: i64::MAX, before: None };
    for (runs, expected) in [(i64::MAX, "NotYet"), (1, "Ended")] {
        let decided = format!("{:?}", answer(&cache(json!({}), json!({ "runs": runs })), &asked));
        assert!(decided.starts_with(expected), "{decided}, not {expected}");
    }
    let bad = json!({"runs": 1, "failures": 1, "lastFailure": {"reason": "ServerError", "message": "503"}});
    assert!(failed(&cache(json!({}), bad), &asked).is_some());
}

#[test]
fn the_end_of_a_run_gives_its_value_or_its_reason() {
    let (old, new) = (found("12:00:00", "13:00:00"), found("12:30:00", "13:30:00"));
    let good = json!({"runs": 5, "failures": 0});
    let bad = json!({"runs": 5, "failures": 1, "lastFailure": {"reason": "ServerError", "message": "503"}});
    let valid = Wish::Valid(TimeDelta::zero());
    let long = Wish::Valid(TimeDelta::hours(2));
    let always = Wish::Refresh(Condition::Always);
    let still = Wish::Refresh(Condition::IfStill(stamp(&old)));
    let fetched_at = Wish::Refresh(Condition::IfFetchedAt(at("12:00:00")));
    let same_second = found("12:00:00", "13:30:00");
    for (wish, status, before, after, again, expected) in [
        (&valid, &good, None, &new, true, "Give"),
        (&valid, &bad, None, &Found::Absent, true, "Fail(Failed { reason: \"ServerError\", message: \"503\" }"),
        // The run that failed was the one after that which brought the value.
        (&valid, &bad, None, &new, true, "Give"),
        (&valid, &good, None, &Found::Absent, true, "Again"),
        (&valid, &good, None, &Found::Absent, false, "Fail(Expired"),
        (&long, &good, Some(&old), &new, true, "Fail(NearlyExpired"),
        (&long, &bad, Some(&old), &old, true, "Fail(Failed"),
        (&always, &good, Some(&old), &new, true, "Give"),
        // Joined a run that had written its value already.
        (&always, &good, Some(&old), &old, true, "Give"),
        (&always, &bad, Some(&old), &old, true, "Fail(Failed"),
        (&always, &bad, Some(&old), &new, true, "Give"),
        (&still, &good, Some(&old), &new, true, "Give"),
        (&still, &good, Some(&old), &old, true, "Again"),
        (&still, &good, Some(&old), &old, false, "Give"),
        (&still, &bad, Some(&old), &old, true, "Fail(Failed"),
        (&fetched_at, &good, Some(&old), &same_second, true, "Give"),
        (&fetched_at, &good, Some(&old), &old, true, "Again"),
    ] {
        let asked = Asked { uid: Some("u".into()), runs: 4, before: before.map(stamp) };
        let cache = cache(json!({}), status.clone());
        let outcome = format!("{:?}", conclude(wish, &cache, &asked, after, again, &clock("12:45:00")));
        assert!(outcome.starts_with(expected), "{outcome}, not {expected}: {wish:?} {status}");
    }
}

#[test]
fn what_a_run_has_brought_is_valid_for_its_lifetime_however_wrong_the_clock_is() {
    let (old, new) = (found("12:00:00", "13:00:00"), found("12:30:00", "13:30:00"));
    let asked = Asked { uid: Some("u".into()), runs: 4, before: Some(stamp(&old)) };
    let (asked_at, hour) = (Instant::now(), std::time::Duration::from_secs(3600));
    let ahead = at("23:00:00");
    assert!(Brought::of(&old, &asked, asked_at, ahead).is_none(), "it was there before");
    assert!(Brought::of(&Found::Absent, &asked, asked_at, ahead).is_none());
    assert!(Brought::of(&new, &asked, asked_at, at("13:29:59")).is_none(), "the clock decides while it can");
    let brought = Brought::of(&new, &asked, asked_at, ahead).unwrap();
    let status = json!({"runs": 5, "failures": 0});
    for (after, valid) in [(hour / 2, true), (hour - hour / 3600, true), (hour, false), (hour * 2, false)] {
        let now = Now { time: ahead, brought: Some((brought.clone(), asked_at + after)) };
        let wish = Wish::valid();
        assert_eq!(wish.met(&new, &now).is_some(), valid, "after {after:?}");
        let outcome = format!("{:?}", conclude(&wish, &cache(json!({}), status.clone()), &asked, &new, false, &now));
        assert!(outcome.starts_with(if valid { "Give" } else { "Fail(Expired" }), "after {after:?}: {outcome}");
        assert!(wish.met(&old, &now).is_none(), "another value is judged by the clock");
        let end = now.end(new.value().unwrap()).unwrap();
        assert_eq!(end > now.time, valid, "after {after:?}");
    }
}

#[test]
fn only_the_failure_of_the_one_run_since_is_told_without_a_look_at_the_secret() {
    let asked = Asked { uid: Some("u".into()), runs: 4, before: None };
    let bad =
        |runs: i64| json!({"runs": runs, "failures": 1, "lastFailure": {"reason": "ServerError", "message": "503"}});
    for (status, expected) in [(json!({"runs": 5, "failures": 0}), false), (bad(5), true), (bad(6), false)] {
        assert_eq!(failed(&cache(json!({}), status.clone()), &asked).is_some(), expected, "{status}");
    }
}

#[test]
fn a_secret_that_was_not_there_is_not_there_where_status_knows_of_none() {
    let own = found("12:00:00", "13:00:00");
    for (status, found, expected) in [
        (json!({}), &Found::Absent, true),
        (json!({"secretResourceVersion": "7"}), &Found::Absent, false),
        (json!({}), &Found::Foreign, false),
        (json!({"secretResourceVersion": "7"}), &own, false),
    ] {
        assert_eq!(still_absent(&cache(json!({}), status.clone()), found), expected, "{status} {found:?}");
    }
}
