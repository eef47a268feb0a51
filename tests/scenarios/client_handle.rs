//! A value that is kept fresh in the background, and the layer that puts it on requests.

use futures::future::join_all;
use http::StatusCode;
use serde_json::json;
use tokencache::client::{BearerLayer, Error};
use tower::{Layer as _, Service as _};

use super::client::{client, failing, lazy, token};
use crate::support::{
    Scene, SecretView as _, scenario,
    server::{Behaviour, Expiry},
    within,
};

#[test]
fn a_handle_follows_the_secret_and_tells_of_each_change() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(4)));
        scene.cache("a", json!({})).await;
        let client = client(&scene);
        let mut handle = client.watch("a");
        let mut seen = vec![token(&within("a first value", handle.ready()).await)];
        while seen.len() < 4 {
            within("another value", handle.changed()).await;
            // Never an expired one, and never none: it is renewed in time.
            let value = token(&within("a valid value", handle.ready()).await);
            if seen.last() != Some(&value) {
                seen.push(value);
            }
        }
        let issued = scene.server.issued("a");
        let at = issued.iter().position(|token| *token == seen[0]).expect("it was issued");
        assert_eq!(seen, issued[at..at + 4]);
    });
}

#[test]
fn a_handle_on_a_lazy_cache_asks_for_its_values_and_renews_them_before_they_expire() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(30)));
        scene.cache("a", lazy()).await;
        let client = client(&scene);
        let mut handle = client.watch("a");
        let first = within("a first value", handle.ready()).await;
        within("another value", async {
            while handle.get().is_some_and(|v| v.stamp() == first.stamp()) {
                handle.changed().await
            }
        })
        .await;
        let second = handle.get().expect("a value at any time");
        assert_ne!(first.stamp(), second.stamp());
        // The first one had not expired when it was replaced.
        assert!(second.fetched_at() < first.expires_at().moment().expect("a moment"));
    });
}

#[test]
fn a_handle_never_gives_a_value_that_has_expired() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(3)));
        scene.cache("a", lazy()).await;
        let client = client(&scene);
        client.fetch("a").await.expect("a value");
        scene.server.set("a", failing());
        let mut handle = client.watch("a");
        let value = within("the value", handle.ready()).await;
        scene.ns.await_ready("a", false, "Expired").await;
        assert!(handle.get().is_none());
        within("an error", async {
            while !matches!(handle.error().as_deref(), Some(Error::Failed { .. })) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        scene.server.set("a", Behaviour::Default);
        within("a new value", handle.changed()).await;
        assert_ne!(token(&within("a valid one", handle.ready()).await), token(&value));
    });
}

#[test]
fn a_secret_that_is_cleared_is_gone_from_the_handle_until_the_next_value() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let client = client(&scene);
        let (mut handle, other) = (client.watch("a"), client.watch("a"));
        let first = token(&within("a first value", handle.ready()).await);
        assert_eq!(token(&within("the same", other.ready()).await), first);
        client.clear("a").await.expect("cleared");
        let second = within("another value", async {
            loop {
                handle.changed().await;
                let value = token(&handle.ready().await);
                if value != first {
                    break value;
                }
            }
        })
        .await;
        assert_eq!(second, scene.secret("a").await.token());
    });
}

#[test]
fn a_hundred_requests_with_a_revoked_token_cost_one_run_and_are_all_answered() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let url: reqwest::Url = format!("{}/api/whoami", scene.server.base()).parse().expect("a URL");
        let plain = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        // As many processes: ten clients, of which each serves ten requests.
        let services: Vec<_> = (0..10)
            .flat_map(|_| {
                let layer = BearerLayer::new(client(&scene).watch("a"));
                std::iter::repeat_n(layer.layer(plain.clone()), 10)
            })
            .collect();
        let call = async |mut service: tokencache::client::Bearer<reqwest::Client>| {
            let request = reqwest::Request::new(reqwest::Method::GET, url.clone());
            service.call(request).await.expect("an answer").status()
        };
        assert_eq!(join_all(services.iter().cloned().map(call)).await, [StatusCode::OK; 100]);
        assert_eq!(scene.server.requests("a"), 1);
        scene.server.revoke("a");
        assert_eq!(join_all(services.iter().cloned().map(call)).await, [StatusCode::OK; 100]);
        assert_eq!(scene.server.requests("a"), 2);

        // Where there is no other token, the caller sees the answer that the first one got.
        scene.server.set("a", failing());
        scene.server.revoke("a");
        assert_eq!(call(services[0].clone()).await, StatusCode::UNAUTHORIZED);
    });
}
