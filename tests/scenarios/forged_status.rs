//! What somebody who may patch the status, and nothing else, cannot do by it.

use std::time::Duration;

use chrono::{SecondsFormat, TimeDelta, Utc};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Controller, DEADLINE, Invariant, Namespace, Scene, pass, poll,
    rights::Account,
    scenario,
    server::{Behaviour, Expiry},
    within,
};

/// The API as an account sees it that has exactly the rights of a consumer that may ask for new values.
async fn consumer(ns: &Namespace) -> Api<TokenCache> {
    let rule = json!({"apiGroups": ["tokencache.dev"], "resources": ["tokencaches/status"], "verbs": ["get", "patch"]});
    let rules = vec![serde_json::from_value(rule).expect("a rule")];
    let account = Account::named(ns.client(), &ns.name, "consumer", rules).await;
    let kubeconfig = Kubeconfig::read_from(account.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
    Api::namespaced(Client::try_from(config).expect("a client"), &ns.name)
}

async fn forge(caches: &Api<TokenCache>, name: &str, status: Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    caches.patch_status(name, &PatchParams::default(), &patch).await.expect("the status is patched");
}

fn failure(reason: &str, next_retry_at: Option<TimeDelta>) -> Value {
    let time = |at: TimeDelta| (Utc::now() + at).to_rfc3339_opts(SecondsFormat::Secs, true);
    json!({
        "failures": 1, "nextRetryAt": next_retry_at.map(time),
        "lastFailure": {"reason": reason, "message": "forged", "time": time(TimeDelta::zero())},
    })
}

/// The name of a TokenCache, and what is written into its status.
type Forgery = (&'static str, fn() -> Value);

#[test]
fn a_failure_that_no_run_has_had_holds_back_no_refresh() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ns.lift_policies("a consumer forges the status").await;
        let caches = consumer(&scene.ns).await;
        let forgeries: [Forgery; 3] = [
            ("refused", || failure("SourceNotAllowed", None)),
            ("later", || failure("ServerError", Some(TimeDelta::minutes(50)))),
            ("often", || {
                let mut status = failure("Timeout", Some(TimeDelta::minutes(4)));
                status["failures"] = json!(i32::MAX);
                status
            }),
        ];
        for (name, forged) in forgeries {
            scene.server.set(name, Behaviour::Issue(Expiry::In(10)));
            scene.ready_cache(name, json!({})).await;
            let exempt =
                scene.ns.exempt(Invariant::StatusRate, name, "the status is forged and set right all the time");
            let forging = async {
                loop {
                    forge(&caches, name, forged()).await;
                    pass(Duration::from_millis(700)).await;
                }
            };
            tokio::select! {
                () = forging => {}
                fetched = tokio::time::timeout(DEADLINE, scene.server.await_requests(name, 3)) => {
                    fetched.unwrap_or_else(|_| panic!("{name}: the value is not refreshed"));
                }
            }
            let right = |cache: &TokenCache| cache.seen().failures == 0 && cache.is(true, "Fetched");
            scene.ns.await_cache(name, "its status is set right", right).await;
            drop(exempt);
        }
    });
}

#[test]
fn numbers_of_runs_and_failures_that_somebody_wrote_are_set_right() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ns.lift_policies("a consumer forges the status").await;
        let caches = consumer(&scene.ns).await;
        scene.ready_cache("a", json!({})).await;
        for (turn, forged) in
            [json!({"runs": i64::MAX}), json!({"runs": -5, "failures": i32::MIN})].into_iter().enumerate()
        {
            let patch = Patch::Merge(json!({ "status": forged }));
            // The API server refuses it, where the definition has the limits.
            let _ = caches.patch_status("a", &PatchParams::default(), &patch).await;
            let asked = turn.to_string();
            scene.ns.request("a", &asked).await;
            let answered = |cache: &TokenCache| {
                let seen = cache.seen();
                seen.handled_request.as_deref() == Some(&asked)
                    && (1..=1 << 53).contains(&seen.runs)
                    && seen.failures == 0
            };
            scene.ns.await_cache("a", "the request is answered", answered).await;
        }
        let fetched = poll(|| async { (scene.server.requests("a") == 3).then_some(()) });
        within("each request has brought a value", fetched).await;
    });
}

#[test]
fn a_failure_of_another_replica_counts() {
    scenario(async {
        let scene = Scene::new().await;
        let _other = Controller::start(&scene.ns, &[]).await;
        scene.server.set("a", Behaviour::Status(500, Vec::new(), String::new()));
        scene.cache("a", json!({"retry": {"initialInterval": "2m", "maxInterval": "2m"}})).await;
        let failed = |runs: i64| move |cache: &TokenCache| cache.seen().runs == runs && cache.seen().failures > 0;
        scene.ns.await_cache("a", "the first run has failed", failed(1)).await;
        // Whichever replica answers them: each learns of a failure of the other, or has had both.
        for runs in 2..=4 {
            scene.ns.request("a", &runs.to_string()).await;
            scene.ns.await_cache("a", "the request is answered", failed(runs)).await;
        }
        // Another change of the status, at which both look at the object.
        scene.ns.patch_status("a", json!({"lastRunBy": "another"})).await;
        pass(Duration::from_secs(4)).await;
        assert_eq!(scene.server.requests("a"), 4, "none is repeated before its backoff is over");
    });
}
