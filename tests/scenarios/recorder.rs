//! What the recorder of a scenario sees of the API server's objects. The judgement itself is tested by tables.

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokencache::api::TokenCache;

use crate::support::{
    Controller, Invariant, Scene,
    invariants::judge,
    manifests::token_cache,
    pass, scenario,
    server::{Behaviour, Options},
    within,
};

#[test]
fn a_forged_status_is_found() {
    scenario(async {
        let (ns, server) = Scene::stage(Options::default()).await;
        let recorder = ns.recorder().expect("a scenario is recorded");
        let exempt = ns.exempt(Invariant::ReadyWithoutValue, "a", "the test forges the status, without a controller");
        let at_work = recorder.at_work();
        ns.create::<TokenCache>(token_cache("a", &server, json!({}))).await;
        let ready = json!({
            "type": "Ready", "status": "True", "reason": "Fetched", "message": "it is forged",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let status = Patch::Merge(json!({"status": {"runs": 1, "secretName": "a", "conditions": [ready]}}));
        ns.api::<TokenCache>().patch_status("a", &PatchParams::default(), &status).await.expect("it is patched");
        pass(Duration::from_secs(12)).await;
        drop(at_work);
        let mut timeline = recorder.timeline();
        assert_eq!(judge(&timeline).len(), 0, "it is exempt");
        timeline.exemptions.clear();
        let found: Vec<Invariant> = judge(&timeline).into_iter().map(|violation| violation.invariant).collect();
        assert_eq!(found, [Invariant::ReadyWithoutValue]);
        drop(exempt);
    });
}

#[test]
fn requests_secrets_and_the_time_at_work_are_recorded() {
    scenario(async {
        let scene = Scene::new().await;
        let recorder = scene.ns.recorder().expect("a scenario is recorded");
        scene.ready_cache("a", json!({})).await;
        // A controller counts as at work from some time after its start.
        pass(Duration::from_secs(4)).await;
        scene.server.set("a", Behaviour::Hang);
        scene.ns.request("a", "1").await;
        within("it is asked for", scene.server.await_requests("a", 2)).await;
        scene.controller.terminate().await;
        assert_eq!(recorder.timeline().requests["a"].len(), 2);
        let second = Controller::start(&scene.ns, &[]).await;
        let timeline = recorder.timeline();
        assert_eq!((timeline.controllers.len(), timeline.turnover.len()), (2, 4));
        assert!(timeline.controllers[0].to < timeline.controllers[1].from, "{:?}", timeline.controllers);
        assert!(
            timeline.entries.iter().any(|entry| entry.name == "a" && entry.at >= timeline.controllers[0].from - 1.0)
        );
        drop(second);
    });
}
