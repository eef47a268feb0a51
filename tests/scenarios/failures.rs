//! What goes wrong is told by its reason, is tried again with patience, and touches no valid value.

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::support::{
    CacheView as _, Scene,
    manifests::oauth2,
    pass, scenario,
    server::{Behaviour, Expiry},
    within,
};

struct Case {
    name: &'static str,
    behaviour: Behaviour,
    spec: Value,
    reason: &'static str,
    /// What the message must say, so that a person knows what to do.
    says: &'static str,
}

fn status(status: u16, body: &str) -> Behaviour {
    Behaviour::Status(status, vec![("content-type", "application/json".to_owned())], body.to_owned())
}

/// Each with a spec that works while the server does.
fn cases() -> Vec<Case> {
    let case = |name, behaviour, spec, reason, says| Case { name, behaviour, spec, reason, says };
    let revoked = r#"{"error":"invalid_client","error_description":"the client was revoked"}"#;
    vec![
        case("oauth-error", status(401, revoked), json!({}), "Rejected", "invalid_client"),
        case("described", status(401, revoked), json!({}), "Rejected", "the client was revoked"),
        case("forbidden", status(403, "<p>go away</p>"), json!({}), "Rejected", "403"),
        case("error-in-200", status(200, r#"{"error":"bad_code"}"#), json!({}), "Rejected", "bad_code"),
        case("redirect", Behaviour::Redirect("/c/elsewhere/token".into()), json!({}), "Rejected", "302"),
        case("too-many", status(429, ""), json!({}), "RateLimited", "429"),
        case("broken", status(500, "stack trace"), json!({}), "ServerError", "500"),
        case("down", status(503, ""), json!({}), "ServerError", "503"),
        case("closed", Behaviour::Close, json!({}), "Unreachable", "127.0.0.1"),
        case("hangs", Behaviour::Hang, json!({"fetch": {"timeout": "3s"}}), "Timeout", "3s"),
        case("garbage", Behaviour::Garbage, json!({}), "InvalidResponse", "JSON"),
        case("no-token", status(200, r#"{"expires_in":60}"#), json!({}), "InvalidResponse", "access_token"),
        case("huge", Behaviour::Huge, json!({}), "ResponseTooLarge", "larger than"),
        case("no-expiry", Behaviour::Issue(Expiry::Unsaid), json!({}), "NoExpiry", "expiry.ttl"),
        case("expired", Behaviour::Issue(Expiry::In(0)), json!({}), "NearlyExpired", ""),
        case(
            "nearly-expired",
            Behaviour::Issue(Expiry::In(900)),
            json!({"refresh": {"minRemaining": "30m"}}),
            "NearlyExpired",
            "30m",
        ),
    ]
}

#[test]
fn every_failure_is_told_by_its_reason_in_status_and_event_and_makes_no_secret() {
    scenario(async {
        let scene = Scene::new().await;
        let mut cases = cases();
        let nobody = json!({"fetch": {"oauth2": {"tokenUrl": "http://127.0.0.1:1/token"}}});
        cases.push(Case {
            name: "nobody",
            behaviour: Behaviour::Default,
            spec: nobody,
            reason: "Unreachable",
            says: "127.0.0.1:1",
        });
        for case in &cases {
            scene.server.set(case.name, case.behaviour.clone());
            let mut spec = json!({"retry": {"initialInterval": "10m", "maxInterval": "10m"}});
            crate::support::manifests::merge(&mut spec, case.spec.clone());
            scene.cache(case.name, spec).await;
        }
        for Case { name, reason, says, .. } in cases {
            let cache = scene.ns.await_ready(name, false, "FetchFailed").await;
            let status = cache.seen();
            let failure = status.last_failure.clone().expect("a failure");
            assert_eq!(failure.reason, reason, "{name}: {}", failure.message);
            assert!(failure.message.contains(says), "{name}: {}", failure.message);
            assert!(!failure.message.contains("stack trace") && !failure.message.contains("go away"), "{name}");
            assert!(cache.message().contains(reason), "{name}: {}", cache.message());
            assert_eq!((status.runs, status.failures), (1, 1), "{name}");
            assert!(status.next_retry_at.is_some() && cache.stalled().is_none(), "{name}");
            let event = scene.ns.await_event(name, "FetchFailed").await;
            assert!(event.message.as_deref().unwrap_or_default().contains(reason), "{name}: {:?}", event.message);
            assert_eq!(event.type_.as_deref(), Some("Warning"), "{name}");
            assert!(scene.ns.api::<Secret>().get_opt(name).await.expect("an answer").is_none(), "{name}");
            assert!(scene.server.requests(name) <= 1, "{name}: its next attempt is 5 minutes away");
        }
        assert_eq!(scene.server.requests("elsewhere"), 0, "a redirect is not followed");
    });
}

#[test]
fn a_requested_run_that_fails_leaves_a_valid_secret_untouched_and_makes_one_attempt() {
    scenario(async {
        let scene = Scene::new().await;
        let cases = cases();
        for case in &cases {
            scene.cache(case.name, case.spec.clone()).await;
        }
        let mut secrets = Vec::new();
        for case in &cases {
            scene.ns.await_ready(case.name, true, "Fetched").await;
            secrets.push(scene.secret(case.name).await);
            scene.server.set(case.name, case.behaviour.clone());
            scene.ns.request(case.name, "now").await;
        }
        for Case { name, reason, .. } in &cases {
            let answered = |cache: &tokencache::api::TokenCache| cache.seen().handled_request.as_deref() == Some("now");
            let cache = scene.ns.await_cache(name, "the request is answered", answered).await;
            assert!(cache.is(true, "RefreshFailing"), "{name}: {:?}", cache.ready());
            assert_eq!(cache.last_failure(), *reason, "{name}");
            assert!(cache.message().contains(reason), "{name}: {}", cache.message());
            scene.ns.await_event(name, "FetchFailed").await;
        }
        // By then, the first backoffs would have ended three times over.
        pass(Duration::from_secs(4)).await;
        for (case, before) in cases.iter().zip(secrets) {
            assert_eq!(scene.secret(case.name).await, before, "{}", case.name);
            assert_eq!(scene.server.requests(case.name), 2, "{}", case.name);
        }
    });
}

#[test]
fn a_refresh_that_fails_when_due_leaves_the_valid_secret_and_goes_on_trying() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(100)));
        // Due seven seconds after it was fetched, and then long before it expires.
        let spec = json!({"refresh": {"renewBefore": "93s"}, "retry": {"maxInterval": "1s"}});
        scene.cache("a", spec).await;
        let first = scene.ns.await_secret("a", "it is there", |_| true).await;
        scene.server.set("a", status(500, ""));
        let cache = scene.ns.await_cache("a", "three attempts failed", |cache| cache.seen().failures >= 3).await;
        assert!(cache.is(true, "RefreshFailing"), "{:?}", cache.ready());
        assert_eq!(scene.secret("a").await, first);

        scene.server.set("a", Behaviour::Default);
        let cache = scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.seen().failures, 0);
        assert_eq!(cache.last_failure(), "ServerError", "the last failure stays on record");
        assert_eq!(cache.seen().next_retry_at, None);
    });
}

fn gaps(arrivals: &[Instant]) -> Vec<Duration> {
    arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[test]
fn failed_fetches_are_repeated_no_faster_than_the_backoff_allows() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", status(500, ""));
        scene.cache("a", json!({"retry": {"initialInterval": "1s", "maxInterval": "4s"}})).await;
        within("six attempts", scene.server.await_requests("a", 6)).await;
        let gaps = gaps(&scene.server.arrivals("a"));
        for (gap, interval) in gaps.iter().zip([1.0, 2.0, 4.0, 4.0, 4.0]) {
            assert!(gap.as_secs_f64() >= interval / 2.0, "{gap:?} is less than half of {interval} s: {gaps:?}");
        }
    });
}

#[test]
fn the_backoff_survives_a_restart() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", status(500, ""));
        scene.cache("a", json!({"retry": {"initialInterval": "10m", "maxInterval": "10m"}})).await;
        scene.ns.await_ready("a", false, "FetchFailed").await;
        let Scene { controller, server, ns } = scene;
        controller.kill().await;
        let controller = crate::support::Controller::start(&ns, &[]).await;
        // A second object shows that the new controller is at work; the first one came earlier in its list.
        let scene = Scene { controller, server, ns };
        scene.ready_cache("b", json!({})).await;
        pass(Duration::from_secs(2)).await;
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn who_is_told_to_wait_waits_as_long_as_the_server_says() {
    scenario(async {
        let scene = Scene::new().await;
        let limited = |wait: String| Behaviour::Status(429, vec![("retry-after", wait)], String::new());
        let spec = json!({"retry": {"initialInterval": "100ms", "maxInterval": "100ms"}});
        scene.server.set("seconds", limited("4".to_owned()));
        let unavailable = Behaviour::Status(503, vec![("retry-after", "4".to_owned())], String::new());
        scene.server.set("unavailable", unavailable);
        let start = Instant::now();
        scene.server.set("date", limited(httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(6))));
        for name in ["seconds", "unavailable", "date"] {
            scene.cache(name, spec.clone()).await;
        }
        for name in ["seconds", "unavailable"] {
            within("two attempts", scene.server.await_requests(name, 2)).await;
            let gap = gaps(&scene.server.arrivals(name)).remove(0);
            assert!(gap >= Duration::from_secs(4), "{name}: {gap:?}");
        }
        within("two attempts", scene.server.await_requests("date", 2)).await;
        let second = scene.server.arrivals("date")[1] - start;
        assert!(second >= Duration::from_secs(5), "{second:?}: a date is cut to whole seconds");
    });
}

#[test]
fn a_request_overrides_the_backoff() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", status(500, ""));
        scene.cache("a", json!({"retry": {"initialInterval": "1h", "maxInterval": "1h"}})).await;
        scene.ns.await_ready("a", false, "FetchFailed").await;
        scene.server.set("a", Behaviour::Default);
        scene.ns.request("a", "please").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.requests("a"), 2);
    });
}

#[test]
fn a_changed_spec_overrides_the_backoff() {
    scenario(async {
        let scene = Scene::new().await;
        let spec = json!({
            "fetch": {"oauth2": {"tokenUrl": scene.server.url("wrong")}},
            "retry": {"initialInterval": "1h", "maxInterval": "1h"},
        });
        scene.server.set("wrong", status(404, ""));
        scene.cache("a", spec).await;
        scene.ns.await_ready("a", false, "FetchFailed").await;
        scene.ns.patch_spec("a", oauth2(json!({"tokenUrl": scene.server.url("right")}))).await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.issued("right").len(), 1);
    });
}
