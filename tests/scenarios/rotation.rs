//! Refresh tokens that are rotated, with a server that voids the whole family when an old one is used again.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Cluster, Controller, FlakyApi, Launch, Namespace, OidcProvider, Trouble, opened, pass, poll,
    refresh_token, scenario, within,
};

const ROTATIONS: u64 = 50;
const CLIENT: &str = "rotating";

/// The server's newest refresh token when nothing is under way any more.
async fn settled(provider: &OidcProvider, api: &FlakyApi) -> String {
    // What was in a socket of the one that was killed gets its turn.
    pass(Duration::from_millis(200)).await;
    let idle = poll(|| async {
        let family = provider.family(CLIENT).await;
        (family.inside == 0 && api.writing() == 0).then_some(family.newest)
    });
    within("nothing is under way", idle).await
}

#[test]
fn a_family_of_refresh_tokens_survives_fifty_rotations_with_kills_and_failing_writes() {
    scenario(async {
        let told = std::env::var("TOKENCACHE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = told.unwrap_or_else(rand::random);
        println!("TOKENCACHE_TEST_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let provider = Box::pin(OidcProvider::start(&Cluster::get().await.client)).await;
        let ns = Namespace::new().await;
        let api =
            FlakyApi::start(&ns, random.next_u64(), Trouble { refused: 5, belied: 5, ..Trouble::default() }).await;
        let launch = || {
            let arguments = &["--lease-duration", "1s"];
            let launch = Launch { arguments, kubeconfig: Some(api.kubeconfig()), ..Launch::default() };
            Box::pin(Controller::launch(&ns, launch))
        };
        let session = async || refresh_token(&ns, "a", "session").await;
        ns.create::<Secret>(opened("session", json!({"token": provider.sign_in(CLIENT).await}))).await;
        let mut controller = launch().await;
        let settings = json!({
            "clientId": CLIENT, "clientAuth": "None", "grant": "RefreshToken",
            "refreshTokenRef": {"name": "session", "key": "token"},
        });
        let mut cache = provider.cache("a", settings);
        cache["spec"]["retry"] = json!({"initialInterval": "100ms", "maxInterval": "100ms"});
        ns.create::<TokenCache>(cache).await;
        // Well or not: on a busy machine it may lose a Lease of one second. The report that counts the run may be refused.
        Box::pin(ns.await_cache("a", "it has run", |cache| cache.seen().runs > 0 || cache.ready().0)).await;

        let (mut signed_in, mut kills, mut lost, mut windows, mut request) = (1, 0, 0, Vec::new(), 0);
        while provider.family(CLIENT).await.issued - signed_in < ROTATIONS {
            request += 1;
            ns.request("a", &request.to_string()).await;
            // A kill costs the Lease's duration, so there are not more of them.
            if request % 7 == 0 {
                pass(Duration::from_millis(random.next_u64() % 150)).await;
                controller.kill().await;
                kills += 1;
                if Box::pin(settled(&provider, &api)).await != session().await {
                    // The kill fell between the server's answer and the write: somebody must sign in again.
                    lost += 1;
                    signed_in += 1;
                    let token = provider.sign_in(CLIENT).await;
                    ns.patch::<Secret>("session", json!({"stringData": {"token": token}})).await;
                }
                controller = launch().await;
            }
            let wanted = request.to_string();
            let answered = |cache: &TokenCache| {
                assert_eq!(cache.stalled(), None, "seed {seed}: {}", cache.message());
                cache.seen().handled_request.as_deref() == Some(&wanted)
            };
            Box::pin(ns.await_cache("a", "the request is answered", answered)).await;
            windows.extend(api.state_written().checked_sub(provider.family(CLIENT).await.at));
        }
        // A write that fails costs a run its value, and one attempt answers a request: so it may take another one.
        let mut last = 0;
        while {
            last += 1;
            let wanted = format!("last-{last}");
            ns.request("a", &wanted).await;
            let answered = |cache: &TokenCache| cache.seen().handled_request.as_deref() == Some(&wanted);
            !Box::pin(ns.await_cache("a", "the request is answered", answered)).await.is(true, "Fetched")
        } {
            assert!(last < 20, "seed {seed}: no run goes well any more");
        }
        let family = provider.family(CLIENT).await;
        assert_eq!(family.refused, 0, "seed {seed}: no request was refused: the family was never used wrongly");
        assert_eq!(Box::pin(settled(&provider, &api)).await, session().await, "seed {seed}");
        windows.sort_unstable();
        let rotations = family.issued - signed_in;
        println!(
            "{rotations} rotations, {request} requests, {} failed writes, {kills} kills, {lost} of them between the \
             server's answer and the write; that took {} ms in the middle, {} ms at most",
            api.faults(),
            windows[windows.len() / 2],
            windows[windows.len() - 1],
        );
        drop(controller);
    });
}
