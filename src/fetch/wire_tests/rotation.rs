//! A refresh token, its successors, and what becomes of them.

use std::time::Duration;

use tokio_util::task::TaskTracker;

use super::*;

/// A server that takes only the newest token of its family, and gives another one each time.
async fn rotating() -> Server {
    let newest = Arc::new(Mutex::new(0));
    let respond = move |seen: &Seen| {
        let mut newest = newest.lock();
        let sent = seen.form().into_iter().find(|(name, _)| name == "refresh_token").unwrap().1;
        if sent != format!("refresh-{newest}") {
            return answer(400, r#"{"error":"invalid_grant","error_description":"used before"}"#);
        }
        *newest += 1;
        let body = json!({"access_token": "t0ken", "expires_in": 60, "refresh_token": format!("refresh-{newest}")});
        answer(200, body.to_string())
    };
    Server::start(respond).await
}

fn world(token: &str) -> World {
    let world = World::new();
    world.objects.secret("session", &[("token", token), ("other", "stays")]);
    world
}

fn refreshing(url: &str) -> TokenCache {
    let reference = json!({"name": "session", "key": "token"});
    cache(url, json!({"grant": "RefreshToken", "refreshTokenRef": reference}))
}

const STATE: &str = "tokencache-a-state";

fn stored(world: &World) -> String {
    world.objects.data(STATE, "refresh-token")
}

/// A state Secret as another replica has written it.
fn store(objects: &Objects, token: &str) {
    let owner = json!([{"apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": "", "controller": true}]);
    let mut secret = objects.0.lock()[&format!("/api/v1/namespaces/b/secrets/{STATE}")].clone();
    secret["metadata"]["ownerReferences"] = owner;
    secret["metadata"]["resourceVersion"] = json!(token);
    secret["data"]["refresh-token"] = json!(BASE64_STANDARD.encode(token));
    objects.put("secrets", STATE, secret);
}

#[tokio::test]
async fn each_successor_is_stored_and_used_next_and_is_no_part_of_the_result() {
    let server = rotating().await;
    let world = world("refresh-0");
    for turn in 1..=3 {
        let fetched = world.fetch(&refreshing(&server.url())).await.unwrap();
        assert_eq!(fetched.token.unwrap().expose_secret(), "t0ken");
        assert!(!fetched.values.contains_key("refresh_token"));
        assert_eq!(stored(&world), format!("refresh-{turn}"));
        // The same first token, as another tool may write it.
        world.objects.secret("session", &[("token", "refresh-0\n"), ("other", "stays")]);
    }
    let state = world.objects.0.lock()[&format!("/api/v1/namespaces/b/secrets/{STATE}")].clone();
    assert_eq!(state["metadata"]["labels"]["tokencache.dev/state"], "true");
    assert!(!state["metadata"].to_string().contains("refresh-token"), "nothing about the tokens is in its metadata");
}

#[tokio::test]
async fn a_token_of_another_sign_in_is_used_and_replaces_what_was_stored() {
    let world = world("refresh-0");
    let server = rotating().await;
    assert_token(world.fetch(&refreshing(&server.url())).await);
    world.objects.secret("session", &[("token", "refresh-1")]);
    assert_token(world.fetch(&refreshing(&server.url())).await);
    assert_eq!(stored(&world), "refresh-2");
    assert_token(world.fetch(&refreshing(&server.url())).await);
    assert_eq!((stored(&world).as_str(), world.objects.data("session", "token").as_str()), ("refresh-3", "refresh-1"));
}

#[tokio::test]
async fn nothing_is_sent_where_the_new_token_could_not_be_stored() {
    let server = rotating().await;
    for metadata in [
        json!({"name": STATE}),
        json!({"name": STATE, "ownerReferences": [{
            "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": "of another", "controller": true,
        }]}),
    ] {
        let world = world("refresh-0");
        world.objects.put("secrets", STATE, json!({ "metadata": metadata }));
        let words = ["nothing was sent", "Secret b/tokencache-a-state is not controlled by this TokenCache"];
        assert_failed(world.fetch(&refreshing(&server.url())).await, Reason::WriteFailed, &words);
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_server_that_keeps_the_token_or_repeats_it_is_fine() {
    for body in [
        r#"{"access_token":"t0ken","expires_in":60}"#,
        r#"{"access_token":"t0ken","expires_in":60,"refresh_token":"refresh-0"}"#,
        r#"{"access_token":"t0ken","expires_in":60,"refresh_token":""}"#,
    ] {
        let server = Server::start(move |_| answer(200, body)).await;
        let world = world("refresh-0");
        assert_token(world.fetch(&refreshing(&server.url())).await);
        assert_eq!(world.objects.data("session", "token"), "refresh-0");
        assert_eq!(world.objects.names("secrets"), ["client", "session"]);
    }
}

#[tokio::test]
async fn a_void_token_says_that_somebody_must_sign_in_again_and_where_the_new_one_goes() {
    let server = rotating().await;
    let fetched = world("stolen-refresh").fetch(&refreshing(&server.url())).await;
    let words = ["invalid_grant: used before", "sign in again", "key token of Secret b/session", "is created again"];
    let failure = assert_failed(fetched, Reason::ReauthenticationRequired, &words);
    assert!(failure.reason.is_refusal() && !failure.message.contains("stolen-refresh"), "{failure}");

    let world = world("refresh-0");
    assert_token(world.fetch(&refreshing(&server.url())).await);
    store(&world.objects, "stolen-refresh");
    let fetched = world.fetch(&refreshing(&server.url())).await;
    let failure = assert_failed(fetched, Reason::ReauthenticationRequired, &words[..3]);
    assert!(!failure.message.contains("is created again"), "{failure}");
    for kept in ["stolen-refresh", "refresh-0"] {
        assert!(!failure.message.contains(kept), "{failure}");
    }
}

#[tokio::test]
async fn a_void_token_whose_successor_another_replica_stored_meanwhile_is_no_refusal() {
    let world = world("refresh-0");
    let objects = world.objects.clone();
    let respond = move |seen: &Seen| {
        if seen.body.contains("refresh-0") {
            return answer(200, r#"{"access_token":"t0ken","expires_in":60,"refresh_token":"refresh-1"}"#);
        }
        store(&objects, "refresh-2");
        answer(400, r#"{"error":"invalid_grant","error_description":"used before"}"#)
    };
    let server = Server::start(respond).await;
    assert_token(world.fetch(&refreshing(&server.url())).await);
    let fetched = world.fetch(&refreshing(&server.url())).await;
    let words = ["invalid_grant: used before", "Secret b/tokencache-a-state was changed", "next attempt"];
    assert_failed(fetched, Reason::Rejected, &words);
}

#[tokio::test]
async fn a_void_token_that_was_replaced_meanwhile_is_no_refusal() {
    for data in [&[("token", "refresh-1")][..], &[("other", "x")]] {
        let world = world("refresh-0");
        let objects = world.objects.clone();
        let respond = move |_: &Seen| {
            objects.secret("session", data);
            answer(400, r#"{"error":"invalid_grant","error_description":"used before"}"#)
        };
        let server = Server::start(respond).await;
        let fetched = world.fetch(&refreshing(&server.url())).await;
        let words = ["invalid_grant: used before", "key token of Secret b/session was changed", "next attempt"];
        let failure = assert_failed(fetched, Reason::Rejected, &words);
        assert!(!failure.reason.is_refusal());
    }
}

#[tokio::test]
async fn only_a_refusal_of_the_token_itself_is_final() {
    for (status, error, reason) in [
        (401, "invalid_client", Reason::Rejected),
        (400, "invalid_scope", Reason::Rejected),
        (503, "invalid_grant", Reason::ServerError),
        (429, "invalid_grant", Reason::RateLimited),
    ] {
        let server = Server::start(move |_| answer(status, json!({ "error": error }).to_string())).await;
        assert_failed(world("refresh-0").fetch(&refreshing(&server.url())).await, reason, &[error]);
    }
}

#[tokio::test]
async fn a_token_of_a_sign_in_during_the_request_is_used_next() {
    let world = world("refresh-0");
    let objects = world.objects.clone();
    let respond = move |_: &Seen| {
        objects.secret("session", &[("token", "signed-in-again")]);
        answer(200, r#"{"access_token":"t0ken","expires_in":60,"refresh_token":"refresh-1"}"#)
    };
    let server = Server::start(respond).await;
    assert_token(world.fetch(&refreshing(&server.url())).await);
    assert_eq!(
        (stored(&world).as_str(), world.objects.data("session", "token").as_str()),
        ("refresh-1", "signed-in-again")
    );
    assert_token(world.fetch(&refreshing(&server.url())).await);
    let sent = server.seen().last().unwrap().form();
    assert!(sent.contains(&("refresh_token".to_owned(), "signed-in-again".to_owned())), "{sent:?}");
}

#[tokio::test]
async fn only_another_token_that_was_stored_during_the_request_is_kept() {
    // The second is a write to something else of the Secret.
    for (meanwhile, left) in [("newer", "newer"), ("refresh-1", "refresh-2")] {
        let world = world("refresh-0");
        let objects = world.objects.clone();
        let respond = move |seen: &Seen| {
            let new = if seen.body.contains("refresh-0") { "refresh-1" } else { "refresh-2" };
            if new == "refresh-2" {
                store(&objects, meanwhile);
            }
            let body = json!({"access_token": "t0ken", "expires_in": 60, "refresh_token": new});
            answer(200, body.to_string())
        };
        let server = Server::start(respond).await;
        for _ in 0..2 {
            assert_token(world.fetch(&refreshing(&server.url())).await);
        }
        assert_eq!(stored(&world), left);
    }
}

#[tokio::test]
async fn a_fetch_that_is_dropped_after_the_request_was_sent_still_writes_the_successor() {
    let (world, gate) = (world("refresh-0"), Arc::new(std::sync::Barrier::new(2)));
    let passing = gate.clone();
    let respond = move |_: &Seen| {
        tokio::task::block_in_place(|| passing.wait());
        tokio::task::block_in_place(|| passing.wait());
        answer(200, r#"{"access_token":"t0ken","expires_in":60,"refresh_token":"refresh-1"}"#)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.spawn(Server::start(respond)).await.unwrap();
    let (ends, fetcher, cache) = (TaskTracker::new(), world.fetcher(), refreshing(&server.url()));
    let fetching = tokio::spawn({
        let ends = ends.clone();
        async move { fetcher.fetch_leaving(&cache, None, &ends, &crate::fetch::Progress::default()).await.map(|_| ()) }
    });
    let arrive = |gate: Arc<std::sync::Barrier>| tokio::task::spawn_blocking(move || gate.wait());
    arrive(gate.clone()).await.unwrap();
    fetching.abort();
    assert!(fetching.await.unwrap_err().is_cancelled());
    assert_eq!(world.objects.names("secrets"), ["client", "session"]);
    arrive(gate).await.unwrap();
    ends.close();
    tokio::time::timeout(Duration::from_secs(20), ends.wait()).await.expect("it ends");
    assert_eq!(stored(&world), "refresh-1");
    runtime.shutdown_background();
}
