//! What becomes of a rotated refresh token when the process that obtained it is frozen, cut off or stopped. The token
//! server voids a token when it arrives, without detection of reuse.

use std::time::{Duration, Instant};

use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use super::outage::through_door;
use crate::support::{
    CacheView as _, Cluster, Controller, Invariant, Launch, Namespace, Running, Scene, SecretView as _, holder,
    manifests::{oauth2, token_cache},
    opened, pass, poll, refresh_token, scenario,
    server::{Behaviour, Gate, Options, TokenServer},
    state_name, within,
};

/// A namespace and a token server with a refresh token for the TokenCache `a`, which is not there yet.
async fn signed_in() -> (Namespace, TokenServer, Value) {
    let (ns, server) = Scene::stage(Options::default()).await;
    ns.create::<Secret>(opened("session", json!({"token": server.sign_in("a")}))).await;
    let reference = json!({"name": "session", "key": "token"});
    let cache = token_cache("a", &server, oauth2(json!({"grant": "RefreshToken", "refreshTokenRef": reference})));
    (ns, server, cache)
}

/// From now on the server answers when the gate is open. It voids tokens at once.
fn hold_answers(server: &TokenServer) -> Gate {
    let gate = Gate::new();
    server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
    gate
}

/// Waits until the server's newest refresh token is stored.
async fn is_stored(ns: &Namespace, server: &TokenServer) {
    let is_newest = |state: &Secret| Some(state.value("refresh-token")) == server.refresh_token("a");
    ns.await_secret(&state_name("a"), "the newest refresh token is stored", is_newest).await;
}

/// Of two controllers, the one that holds the Lease, and the other.
async fn by_lease(ns: &Namespace, controllers: [Controller; 2]) -> [Controller; 2] {
    let lease: Lease = ns.get("tokencache-a").await;
    let [a, b] = controllers;
    if holder(&lease).starts_with(&format!("{}_", a.identity)) { [a, b] } else { [b, a] }
}

async fn is_refused(ns: &Namespace) {
    let refused = |cache: &TokenCache| cache.stalled() == Some("ReauthenticationRequired");
    ns.await_cache("a", "the old token is refused", refused).await;
}

#[test]
fn a_refresh_token_that_is_stored_late_wakes_the_replica_that_was_refused() {
    scenario(async {
        let (ns, server, cache) = signed_in().await;
        let start = || Controller::start(&ns, &["--lease-duration", "5s"]);
        let controllers = [start().await, start().await];
        let gate = hold_answers(&server);
        ns.create::<TokenCache>(cache).await;
        within("the request is sent", server.await_requests("a", 1)).await;
        let [frozen, other] = by_lease(&ns, controllers).await;
        let void = "the holder of the Lease stands still between the server's answer and its write";
        let exempt = ns.exempt(Invariant::VoidRefreshToken, "a", void);
        frozen.stop();
        gate.open();
        is_refused(&ns).await;
        drop(exempt);
        frozen.cont();
        is_stored(&ns, &server).await;
        let cache = ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.stalled(), None);
        assert_eq!(server.resent("a").len(), 1, "only while it was frozen");
        drop(other);
    });
}

#[test]
fn the_late_answer_to_a_replica_that_is_cut_off_from_the_api_server_is_not_lost() {
    scenario(async {
        let (ns, server, cache) = signed_in().await;
        let (door, kubeconfig) = through_door(&ns).await;
        let arguments = &["--lease-duration", "5s"];
        let launch = Launch { arguments, kubeconfig: kubeconfig.path().to_str(), ..Launch::default() };
        let cut_off = Controller::launch(&ns, launch).await;
        let gate = hold_answers(&server);
        ns.create::<TokenCache>(cache).await;
        within("the request is sent", server.await_requests("a", 1)).await;
        let other = Controller::start(&ns, arguments).await;
        let void = "the holder of the Lease cannot write the answer, nor hold the Lease";
        let exempt = ns.exempt(Invariant::VoidRefreshToken, "a", void);
        door.set_open(false);
        within("the other replica takes the Lease", server.await_requests("a", 2)).await;
        pass(Duration::from_secs(4)).await;
        gate.open();
        is_refused(&ns).await;
        drop(exempt);
        door.set_open(true);
        is_stored(&ns, &server).await;
        ns.await_ready("a", true, "Fetched").await;
        drop((cut_off, other));
    });
}

#[test]
fn a_lease_is_not_taken_for_time_in_which_the_api_server_was_away() {
    scenario(async {
        let (ns, server, cache) = signed_in().await;
        let ((door_a, config_a), (door_b, config_b)) = (through_door(&ns).await, through_door(&ns).await);
        const LEASE: u64 = 20;
        let duration = format!("{LEASE}s");
        let arguments = &["--lease-duration", &*duration];
        let a = Launch { arguments, kubeconfig: config_a.path().to_str(), ..Launch::default() };
        let a = Controller::launch(&ns, a).await;
        let gate = hold_answers(&server);
        ns.create::<TokenCache>(cache).await;
        within("the request is sent", server.await_requests("a", 1)).await;
        let b = Launch { arguments, kubeconfig: config_b.path().to_str(), ..Launch::default() };
        let b = Controller::launch(&ns, b).await;
        let busy = || async { (b.metrics().await.acquisitions("busy") > 0.0).then_some(()) };
        within("the other replica has seen the Lease", poll(busy)).await;
        door_a.set_open(false);
        door_b.set_open(false);
        gate.open();
        pass(Duration::from_secs(LEASE + 2)).await;
        door_b.set_open(true);
        // Whatever the other replica does when the API server is back, it does within its longest pause of 10 s.
        pass(Duration::from_secs(8)).await;
        door_a.set_open(true);
        is_stored(&ns, &server).await;
        ns.await_ready("a", true, "Fetched").await;
        assert_eq!(server.resent("a"), []);
        drop((a, b));
    });
}

#[test]
fn on_sigterm_a_rotation_whose_answer_takes_twelve_seconds_is_finished() {
    scenario(async {
        let (ns, server, cache) = signed_in().await;
        let controller = Controller::start(&ns, &[]).await;
        server.set("a", Behaviour::After(Duration::from_secs(12), Box::new(Behaviour::Default)));
        ns.create::<TokenCache>(cache).await;
        within("the request is sent", server.await_requests("a", 1)).await;
        let (status, took) = controller.terminate().await;
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(20), "the kubelet waits no longer: {took:?}");
        assert_eq!(Some(refresh_token(&ns, "a", "session").await), server.refresh_token("a"));
        assert_eq!(holder(&ns.get("tokencache-a").await), "");
    });
}

/// Runs the fetch of `a` here until its request is sent.
async fn direct(ns: &Namespace, server: &TokenServer, first: bool) -> Running {
    let arguments = ["fetch", "a", "--direct", "--allow-cidr", "127.0.0.0/8"];
    let running = Running::start(&Cluster::get().await.kubeconfig, &ns.name, &arguments, first);
    within("the request is sent", server.await_requests("a", 1)).await;
    running
}

#[test]
fn a_direct_fetch_that_is_ended_by_a_signal_keeps_the_rotated_token_and_frees_its_lease() {
    scenario(async {
        for (signal, first) in [(Signal::TERM, false), (Signal::INT, false), (Signal::TERM, true)] {
            let (ns, server, cache) = signed_in().await;
            ns.create::<TokenCache>(cache).await;
            let gate = hold_answers(&server);
            let running = direct(&ns, &server, first).await;
            running.signal(signal);
            // Twice in a row, as `timeout` of coreutils does.
            running.signal(signal);
            gate.open();
            let (code, stderr) = running.ended().await;
            assert_eq!(code, Some(1), "{signal:?}: {stderr}");
            assert!(stderr.contains("interrupted"), "{signal:?}: {stderr}");
            assert_eq!(Some(refresh_token(&ns, "a", "session").await), server.refresh_token("a"), "{signal:?}");
            assert_eq!(holder(&ns.get("tokencache-a").await), "", "{signal:?}");
        }
    });
}

#[test]
fn a_second_signal_ends_a_direct_fetch_at_once() {
    scenario(async {
        let (ns, server, cache) = signed_in().await;
        ns.create::<TokenCache>(cache).await;
        let _gate = hold_answers(&server);
        let running = direct(&ns, &server, false).await;
        let begun = Instant::now();
        running.signal(Signal::TERM);
        pass(Duration::from_secs(2)).await;
        running.signal(Signal::TERM);
        let (code, stderr) = running.ended().await;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    });
}
