//! A value is there, says what it is, and is renewed in time.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokencache::{
    api::{
        ExpiresAt,
        names::{
            ANNOTATION_DATA_HASH, ANNOTATION_EXPIRES_AT, ANNOTATION_FETCH_HASH, ANNOTATION_FETCHED_AT, LABEL_MANAGED,
        },
    },
    time::parse_rfc3339,
};

use crate::support::{
    CacheView as _, Scene, SecretView as _, long, scenario,
    server::{Behaviour, Expiry, Options},
};

#[test]
fn a_token_cache_is_filled_as_soon_as_it_is_created_and_says_what_it_holds() {
    scenario(async {
        let scene = Scene::new().await;
        let before = Utc::now();
        let cache = scene.ready_cache("a", json!({})).await;
        let after = Utc::now();

        let secret = scene.secret("a").await;
        assert_eq!(scene.server.issued("a"), [secret.token()]);
        assert_eq!(secret.data.as_ref().map(|data| data.len()), Some(1));
        assert_eq!(secret.type_.as_deref(), Some("Opaque"));
        assert_eq!(secret.labels().get(LABEL_MANAGED).map(String::as_str), Some("true"));
        let [owner] = secret.owner_references() else { panic!("{:?}", secret.owner_references()) };
        assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("TokenCache", "a"));
        assert_eq!((owner.controller, Some(&owner.uid)), (Some(true), cache.metadata.uid.as_ref()));

        let second = TimeDelta::seconds(1);
        let lifetime = TimeDelta::hours(1);
        let expires_at = secret.expires_at();
        assert!((before + lifetime - second..=after + lifetime).contains(&expires_at), "{expires_at}");
        let fetched_at = parse_rfc3339(&secret.annotation(ANNOTATION_FETCHED_AT)).expect("a time");
        assert!((before - second..=after).contains(&fetched_at), "{fetched_at}");
        assert_eq!(secret.annotation(ANNOTATION_EXPIRES_AT).len(), "2026-01-02T03:04:05Z".len());
        assert_ne!(secret.annotation(ANNOTATION_FETCH_HASH), "");
        assert_ne!(secret.annotation(ANNOTATION_DATA_HASH), "");

        let status = cache.seen();
        assert_eq!(status.observed_generation, cache.metadata.generation);
        assert_eq!(status.expires_at, Some(ExpiresAt::At(expires_at)));
        assert_eq!(status.fetched_at, Some(fetched_at));
        let left = (expires_at - status.refresh_at.expect("a refresh")).as_seconds_f64() / 3600.0;
        assert!((0.189..=0.201).contains(&left), "a fifth of the lifetime, less up to a twentieth of that: {left}");
        assert_eq!((status.runs, status.failures, status.last_failure), (1, 0, None));
        assert_eq!(status.secret_name.as_deref(), Some("a"));
        assert_eq!(status.source.as_deref(), Some("oauth2"));
        assert_eq!(status.last_run_by.as_deref(), Some(scene.controller.identity.as_str()));
        assert_eq!(cache.stalled(), None);
        scene.ns.await_event("a", "Fetched").await;
    });
}

#[test]
fn kubectl_get_shows_at_a_glance_how_it_stands() {
    scenario(async {
        let scene = Scene::new().await;
        let cache = scene.ready_cache("a", json!({})).await;
        let path = format!("/apis/tokencache.dev/v1alpha1/namespaces/{}/tokencaches", scene.ns.name);
        let request = http::Request::get(path).header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
        let table: Value =
            scene.ns.client().request(request.body(Vec::new()).expect("a request")).await.expect("a table");

        let columns = table["columnDefinitions"].as_array().expect("columns");
        let named = |wide: bool| {
            let chosen = columns.iter().filter(|column| (column["priority"] != 0) == wide);
            chosen.map(|column| column["name"].as_str().unwrap_or_default().to_uppercase()).collect::<Vec<_>>()
        };
        assert_eq!(named(false), ["NAME", "READY", "EXPIRES", "REFRESH", "SOURCE", "REASON", "AGE"]);
        assert_eq!(named(true), ["SECRET", "FAILURES", "MESSAGE"]);

        let cells = table["rows"][0]["cells"].as_array().expect("cells").iter();
        let row: Vec<(String, &Value)> = columns.iter().map(|column| column["name"].to_string()).zip(cells).collect();
        let status = serde_json::to_value(cache.status.clone()).expect("a status");
        for (column, expected) in [
            ("Name", json!("a")),
            ("Ready", json!("True")),
            ("Expires", status["expiresAt"].clone()),
            ("Refresh", status["refreshAt"].clone()),
            ("Source", json!("oauth2")),
            ("Reason", json!("Fetched")),
            ("Secret", json!("a")),
            ("Failures", json!(0)),
            ("Message", json!(cache.message())),
        ] {
            let cell = row.iter().find(|(name, _)| *name == format!("\"{column}\"")).map(|(_, cell)| *cell);
            assert_eq!(cell, Some(&expected), "{column}");
        }
    });
}

#[test]
fn who_reads_a_ten_second_token_never_reads_an_expired_one() {
    scenario(async {
        let scene = Scene::with_server(Options { lifetime: Duration::from_secs(10), ..Options::default() }).await;
        scene.ready_cache("a", json!({})).await;
        let end = Instant::now() + Duration::from_secs(if long() { 120 } else { 30 });
        let mut pause = tokio::time::interval(Duration::from_millis(200));
        let mut samples = 0;
        while Instant::now() < end {
            pause.tick().await;
            // The moment of asking: what expires while the answer travels, no controller can help.
            let now = Utc::now();
            let secret = scene.secret("a").await;
            assert!(secret.expires_at() > now, "{} is expired at {now}", secret.expires_at());
            samples += 1;
        }
        let issued = scene.server.issued("a").len();
        assert!(samples > 50 && issued >= 3, "{samples} samples of {issued} tokens");
        assert_eq!(scene.ns.await_ready("a", true, "Fetched").await.seen().failures, 0);
    });
}

#[test]
fn an_expiry_is_understood_in_every_form_in_which_servers_say_it() {
    scenario(async {
        let scene = Scene::new().await;
        for (name, expiry) in [
            ("seconds", Expiry::In(7200)),
            ("text", Expiry::InText(7200)),
            ("rfc3339", Expiry::At(7200)),
            ("unix", Expiry::AtUnix(7200)),
            ("millis", Expiry::AtUnixMillis(7200)),
            ("jwt", Expiry::JwtOnly(7200)),
        ] {
            scene.server.set(name, Behaviour::Issue(expiry));
            scene.cache(name, json!({})).await;
        }
        for name in ["seconds", "text", "rfc3339", "unix", "millis", "jwt"] {
            scene.ns.await_ready(name, true, "Fetched").await;
            let left = scene.secret(name).await.expires_at() - Utc::now();
            assert!((7100..=7200).contains(&left.num_seconds()), "{name}: {left}");
        }
    });
}

#[test]
fn what_names_no_expiry_lives_as_long_as_the_owner_says() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("ttl", Behaviour::Issue(Expiry::Unsaid));
        scene.server.set("never", Behaviour::Issue(Expiry::Unsaid));
        scene.ready_cache("ttl", json!({"expiry": {"ttl": "30m"}})).await;
        let left = scene.secret("ttl").await.expires_at() - Utc::now();
        assert!((1700..=1800).contains(&left.num_seconds()), "{left}");

        let cache = scene.ready_cache("never", json!({"expiry": {"never": true}})).await;
        assert_eq!(scene.secret("never").await.annotation(ANNOTATION_EXPIRES_AT), "never");
        assert_eq!((cache.seen().expires_at, cache.seen().refresh_at), (Some(ExpiresAt::Never), None));
    });
}

#[test]
fn no_value_is_kept_longer_than_the_maximum_age() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({"expiry": {"maxAge": "10m"}})).await;
        let left = scene.secret("a").await.expires_at() - Utc::now();
        assert!((500..=600).contains(&left.num_seconds()), "{left}");
    });
}

#[test]
fn credentials_reach_the_server_by_basic_and_by_post() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("basic", json!({"fetch": {"oauth2": {"clientAuth": "Basic"}}})).await;
        let asked = json!({
            "clientAuth": "Post", "scopes": ["read", "write"], "audience": "https://api.example.com/",
            "resource": ["https://a.example.com/x"], "extraParams": {"tenant": "t 1"},
        });
        scene.ready_cache("post", json!({"fetch": {"oauth2": asked}})).await;
        let form = scene.server.forms("post").remove(0);
        for (parameter, value) in [
            ("grant_type", "client_credentials"),
            ("scope", "read write"),
            ("audience", "https://api.example.com/"),
            ("resource", "https://a.example.com/x"),
            ("tenant", "t 1"),
        ] {
            assert_eq!(form.get(parameter).map(String::as_str), Some(value), "{parameter}");
        }
    });
}
