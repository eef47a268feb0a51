//! Many consumers at once cost one run.

use futures::future::join_all;
use serde_json::json;
use tokencache::{
    api::TokenCache,
    client::{Client, Condition, Error},
};

use super::client::{client, failing, lazy, reason, token};
use crate::support::server::Behaviour;
use crate::support::{CacheView as _, Scene, scenario, server::Gate, within};

/// Consumers that know nothing of each other, of which each is asked by several tasks.
fn crowd(scene: &Scene, clients: usize, tasks: usize) -> Vec<Client> {
    (0..clients).flat_map(|_| std::iter::repeat_n(client(scene), tasks)).collect()
}

#[test]
fn five_hundred_fetches_of_one_missing_lazy_cache_cost_one_request_and_all_have_the_value() {
    scenario(async {
        let scene = Scene::new().await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
        scene.cache("a", lazy()).await;
        let all = crowd(&scene, 50, 10);
        let fetches = join_all(all.iter().map(|client| client.fetch("a")));
        let (values, ()) = tokio::join!(fetches, async {
            within("the run begins", scene.server.await_requests("a", 1)).await;
            gate.open();
        });
        assert_eq!(scene.server.requests("a"), 1);
        let expected = scene.server.issued("a");
        assert_eq!(values.len(), 500);
        for value in values {
            assert_eq!([token(&value.expect("a value"))].as_slice(), expected);
        }
    });
}

#[test]
fn five_hundred_fetches_from_a_server_that_fails_cost_one_request_a_round_and_all_have_the_reason() {
    scenario(async {
        let scene = Scene::new().await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(failing())));
        // Backoff would add rounds of its own.
        let spec = json!({"refresh": {"policy": "Lazy"}, "retry": {"initialInterval": "1h", "maxInterval": "1h"}});
        scene.cache("a", spec).await;
        let all = crowd(&scene, 50, 10);
        let fetches = join_all(all.iter().map(|client| client.fetch("a")));
        let (results, ()) = tokio::join!(fetches, async {
            within("the run begins", scene.server.await_requests("a", 1)).await;
            gate.open();
        });
        assert_eq!(results.len(), 500);
        for result in results {
            assert_eq!(reason(result), "ServerError");
        }
        // Who asked only after a round had ended got one of his own, with all others who did.
        let cache: TokenCache = scene.ns.get("a").await;
        let rounds = cache.seen().runs;
        assert_eq!(i64::try_from(scene.server.requests("a")).expect("a number"), rounds);
        assert!(rounds <= 5, "{rounds} rounds");
        assert_eq!(scene.server.in_flight_max("a"), 1);
    });
}

#[test]
fn two_hundred_consumers_that_saw_the_same_bad_value_cause_one_run() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let bad = client(&scene).fetch("a").await.expect("a value");
        let all = crowd(&scene, 200, 1);
        let refreshed = join_all(all.iter().map(|client| client.refresh("a", Condition::from(&*bad)))).await;
        assert_eq!(scene.server.requests("a"), 2);
        let good = scene.server.issued("a").pop();
        for value in refreshed {
            assert_eq!(Some(token(&value.expect("a value"))), good);
        }
    });
}

#[test]
fn two_hundred_who_cannot_get_another_value_all_hear_why_and_keep_the_old_one() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let bad = client(&scene).fetch("a").await.expect("a value");
        scene.server.set("a", failing());
        let all = crowd(&scene, 200, 1);
        let refreshed = join_all(all.iter().map(|client| client.refresh("a", Condition::from(&*bad)))).await;
        for result in refreshed {
            assert!(matches!(result, Err(Error::Failed { .. })), "{result:?}");
        }
        assert_eq!(token(&client(&scene).fetch("a").await.expect("a value")), token(&bad));
        assert_eq!(scene.server.in_flight_max("a"), 1);
    });
}
