//! One run at a time, whatever becomes of controllers.

use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Secret},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokencache::api::{TokenCache, names::LABEL_MANAGED};

use crate::support::{
    CacheView as _, Controller, Invariant, Scene, SecretView as _, holder, long,
    manifests::token_cache,
    pass, poll, scenario,
    server::{Behaviour, Expiry, Gate, Options},
    version, within,
};

const SHORT_LEASES: [&str; 2] = ["--lease-duration", "3s"];

/// The TokenCache `a` of this UID, as its Lease names it.
fn cache_named_a(uid: &str) -> Value {
    json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": uid, "controller": true,
    })
}

fn lease(owner: Value, holder: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "tokencache-a", "labels": {LABEL_MANAGED: "true"}, "ownerReferences": [owner]},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 3, "leaseTransitions": 4},
    })
}

#[test]
fn after_a_run_nobody_holds_the_lease() {
    scenario(async {
        let scene = Scene::new().await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
        let cache = scene.cache("a", json!({})).await;
        within("the run begins", scene.server.await_requests("a", 1)).await;
        let held: Lease = scene.ns.get("tokencache-a").await;
        assert!(holder(&held).starts_with(&scene.controller.identity), "{held:?}");
        assert_eq!(held.labels().get(LABEL_MANAGED).map(String::as_str), Some("true"));
        assert_eq!(held.owner_references()[0].uid, cache.metadata.uid.expect("a uid"));
        gate.open();
        scene.ns.await_ready("a", true, "Fetched").await;
        scene.ns.await_free_lease("a").await;
    });
}

#[test]
fn a_lease_of_somebody_else_is_never_taken_and_once_it_is_gone_all_goes_on() {
    scenario(async {
        let scene = Scene::new().await;
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}});
        let other: ConfigMap = scene.ns.create(map).await;
        let owner = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": other.metadata.uid, "controller": true,
        });
        let before: Lease = scene.ns.create(lease(owner, "")).await;
        scene.cache("a", json!({})).await;
        let cache = scene.ns.await_ready("a", false, "LeaseNotOwned").await;
        assert_eq!(cache.stalled(), Some("LeaseNotOwned"));
        assert!(cache.message().contains("tokencache-a"), "{}", cache.message());
        scene.ns.await_event("a", "LeaseNotOwned").await;
        assert_eq!(scene.server.requests("a"), 0);
        assert_eq!(scene.ns.get::<Lease>("tokencache-a").await, before);

        scene.ns.delete::<Lease>("tokencache-a").await;
        let cache = scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.stalled(), None);
    });
}

#[test]
fn a_cache_that_is_made_anew_waits_for_the_lease_of_the_former_to_be_removed() {
    scenario(async {
        let scene = Scene::new().await;
        // Released, as a run leaves it. The garbage collector cannot remove it yet.
        let mut left = lease(cache_named_a("00000000-0000-4000-8000-000000000000"), "");
        left["metadata"]["finalizers"] = json!(["example.com/kept"]);
        scene.ns.create::<Lease>(left).await;
        scene.cache("a", json!({})).await;
        let found = || async { (scene.controller.metrics().await.acquisitions("busy") > 0.0).then_some(()) };
        within("the Lease is found to be another's", poll(found)).await;
        let cache = scene.ns.await_ready("a", false, "Pending").await;
        assert!(cache.message().contains(&format!("Lease {}/tokencache-a", scene.ns.name)), "{}", cache.message());
        assert_eq!(cache.stalled(), None);
        scene.ns.delete::<Lease>("tokencache-a").await;
        scene.ns.patch::<Lease>("tokencache-a", json!({"metadata": {"finalizers": null}})).await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_cache_that_is_made_anew_waits_for_the_secret_of_the_former_to_be_removed() {
    scenario(async {
        let scene = Scene::new().await;
        let left = json!({
            "apiVersion": "v1", "kind": "Secret", "stringData": {"token": "of the former"},
            "metadata": {
                "name": "a", "labels": {LABEL_MANAGED: "true"}, "finalizers": ["example.com/kept"],
                "ownerReferences": [cache_named_a("00000000-0000-4000-8000-000000000000")],
            },
        });
        scene.ns.create::<Secret>(left).await;
        scene.cache("a", json!({})).await;
        let cache = scene.ns.await_ready("a", false, "Pending").await;
        assert!(cache.message().contains(&format!("Secret {}/a", scene.ns.name)), "{}", cache.message());
        assert_eq!(cache.stalled(), None, "nobody need do anything");
        assert_eq!(scene.server.requests("a"), 0);
        scene.ns.delete::<Secret>("a").await;
        scene.ns.patch::<Secret>("a", json!({"metadata": {"finalizers": null}})).await;
        scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_dead_holder_is_outwaited_for_one_duration_and_no_less() {
    scenario(async {
        let scene = Scene::with_arguments(&SHORT_LEASES).await;
        let cache = scene.cache("a", json!({"suspend": true})).await;
        scene.ns.await_ready("a", false, "Suspended").await;
        let owner = cache_named_a(&cache.metadata.uid.expect("a uid"));
        scene.ns.create::<Lease>(lease(owner, "somebody-dead_0_1")).await;
        let start = Instant::now();
        scene.ns.patch_spec("a", json!({"suspend": false})).await;
        scene.ns.await_ready("a", true, "Fetched").await;
        let waited = scene.server.arrivals("a")[0] - start;
        assert!(waited >= Duration::from_secs(3), "{waited:?} is less than the Lease's duration");
        let lease = scene.ns.await_free_lease("a").await;
        assert_eq!(lease.spec.and_then(|spec| spec.lease_transitions), Some(5), "the take-over is counted");
    });
}

#[test]
fn the_run_of_a_controller_that_was_killed_is_done_by_another() {
    scenario(async {
        let scene = Scene::with_arguments(&SHORT_LEASES).await;
        scene.server.set("a", Behaviour::Hang);
        scene.cache("a", json!({})).await;
        within("the run begins", scene.server.await_requests("a", 1)).await;
        let Scene { controller, server, ns } = scene;
        let killed = controller.identity.clone();
        controller.kill().await;
        within("the connection drops", server.await_empty("a")).await;
        server.set("a", Behaviour::Default);
        assert!(holder(&ns.get("tokencache-a").await).starts_with(&killed));
        let controller = Controller::start(&ns, &SHORT_LEASES).await;
        let cache = ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.seen().last_run_by.as_deref(), Some(controller.identity.as_str()));
        assert_eq!((server.requests("a"), server.in_flight_max("a")), (2, 1));
    });
}

#[test]
fn a_controller_that_slept_through_its_lease_writes_nothing() {
    scenario(async {
        let scene = Scene::with_arguments(&SHORT_LEASES).await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
        scene.cache("a", json!({})).await;
        within("the run begins", scene.server.await_requests("a", 1)).await;
        scene.controller.stop();
        scene.server.set("a", Behaviour::Issue(Expiry::In(7200)));
        let second = Controller::start(&scene.ns, &SHORT_LEASES).await;
        scene.ns.await_ready("a", true, "Fetched").await;
        let secret = scene.secret("a").await;
        second.terminate().await;

        // It wakes up to an answer that has come while it slept.
        gate.open();
        within("it is answered", scene.server.await_empty("a")).await;
        assert_eq!(scene.server.issued("a").len(), 2);
        scene.controller.cont();
        scene.ready_cache("later", json!({})).await;
        pass(Duration::from_secs(2)).await;
        assert_eq!(version(&scene.secret("a").await), version(&secret));
        assert_eq!(scene.secret("a").await.token(), scene.server.issued("a")[0], "the second controller's came first");
    });
}

#[test]
fn a_hold_that_was_given_up_keeps_nobody_out_and_what_its_run_left_is_looked_at() {
    scenario(async {
        let scene = Scene::with_arguments(&SHORT_LEASES).await;
        scene.ready_cache("a", json!({})).await;
        scene.ns.await_free_lease("a").await;
        scene.server.set("a", Behaviour::Hang);
        // No other run of its own lets go of the Lease, since one that was asked for is not repeated.
        scene.ns.request("a", "1").await;
        within("the run begins", scene.server.await_requests("a", 2)).await;
        scene.controller.stop();
        pass(Duration::from_millis(2500)).await;
        scene.controller.cont();
        let cache = scene.ns.await_ready("a", true, "RefreshFailing").await;
        assert!(cache.message().contains("LockLost"), "{}", cache.message());
        scene.ns.await_free_lease("a").await;

        let before = scene.controller.metrics().await;
        scene.server.set("a", Behaviour::Default);
        scene.ns.request("a", "2").await;
        scene.ns.await_ready("a", true, "Fetched").await;
        let after = scene.controller.metrics().await;
        assert_eq!(after.requests("get", "tokencaches") - before.requests("get", "tokencaches"), 1.0);
    });
}

#[test]
fn two_controllers_share_the_work_and_never_do_it_twice() {
    scenario(async {
        let scene = Scene::new().await;
        let second = Controller::start(&scene.ns, &[]).await;
        let names: Vec<String> = (0..40).map(|n| format!("a{n}")).collect();
        join_all(names.iter().map(|name| scene.cache(name, json!({})))).await;
        for name in &names {
            scene.ns.await_ready(name, true, "Fetched").await;
            assert_eq!(scene.server.requests(name), 1, "{name}");
        }
        assert_eq!(second.ask("/livez").await.map(|(status, _)| status), Some(200));
    });
}

#[test]
fn controllers_that_each_let_others_go_first_that_are_gone_do_not_wait_for_ever() {
    scenario(async {
        let scene = Scene::new().await;
        let _second = Controller::start(&scene.ns, &[]).await;
        // Both see that these were at work lately.
        scene.cache("ghosts", json!({"suspend": true})).await;
        scene.ns.await_ready("ghosts", false, "Suspended").await;
        for ghost in 1..=8 {
            let change = json!({"status": {"runs": ghost, "lastRunBy": format!("ghost-{ghost}")}});
            let patch = kube::api::Patch::Merge(change);
            scene.ns.api::<TokenCache>().patch_status("ghosts", &Default::default(), &patch).await.expect("patched");
        }
        let names: Vec<String> = (0..10).map(|n| format!("a{n}")).collect();
        join_all(names.iter().map(|name| scene.cache(name, json!({})))).await;
        for name in &names {
            scene.ns.await_ready(name, true, "Fetched").await;
            assert_eq!(scene.server.requests(name), 1, "{name}");
        }
    });
}

#[test]
fn however_often_controllers_are_killed_one_run_of_a_cache_goes_on_at_once() {
    scenario(async {
        let (ns, server) = Scene::stage(Options::default()).await;
        let names: Vec<String> = (0..30).map(|n| format!("a{n}")).collect();
        for name in &names {
            // Long enough that two runs at once would meet at the server.
            let slowly = Behaviour::After(Duration::from_millis(300), Box::new(Behaviour::Issue(Expiry::In(4))));
            server.set(name, slowly);
        }
        join_all(names.iter().map(|name| ns.create::<TokenCache>(token_cache(name, &server, json!({}))))).await;
        let mut controllers = vec![Controller::start(&ns, &SHORT_LEASES).await];
        controllers.push(Controller::start(&ns, &SHORT_LEASES).await);

        let killed = "one of two controllers is always dead or just beginning, while the other waits for its Leases";
        let exempt = [Invariant::ReadyWithoutValue, Invariant::NotReadyWithValue]
            .map(|invariant| ns.exempt_each(invariant, &names, killed));
        let end = Instant::now() + Duration::from_secs(if long() { 60 } else { 20 });
        let mut kills = 0;
        while Instant::now() < end || kills < 3 {
            pass(Duration::from_millis(rand::random_range(1500..4000))).await;
            let victim = rand::random_range(0..2);
            controllers.swap_remove(victim).kill().await;
            controllers.push(Controller::start(&ns, &SHORT_LEASES).await);
            kills += 1;
        }
        for name in &names {
            let before = server.requests(name);
            within("it still goes on", server.await_requests(name, before + 1)).await;
        }
        drop(exempt);
        let most: Vec<usize> = names.iter().map(|name| server.in_flight_max(name)).collect();
        let requests: usize = names.iter().map(|name| server.requests(name)).sum();
        println!("{kills} kills, {requests} requests");
        assert!(most.iter().all(|most| *most == 1), "{most:?} of {requests} requests at {kills} kills");
        assert!(requests >= 2 * names.len(), "{requests} requests at {kills} kills");
        for name in &names {
            assert!(server.issued(name).contains(&ns.get::<Secret>(name).await.token()), "{name}");
        }
    });
}
