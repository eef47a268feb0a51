//! Nodes whose clocks are off.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use http::header;
use serde_json::json;
use tokencache::api::TokenCache;

use crate::support::{
    Action, Agent, Controller, FlakyApi, Launch, Scene, SecretView as _, Trouble, When, faketime,
    manifests::token_cache,
    pass, poll, scenario,
    server::{Behaviour, Expiry, Options},
    tokencache_at, within,
};

#[test]
fn a_controller_whose_clock_is_off_takes_the_api_servers() {
    if faketime().is_none() {
        println!("skipped, since there is no faketime: hack/faketime.sh");
        return;
    }
    scenario(async {
        for (clock, correction) in [("+10m", -600.0), ("-10m", 600.0)] {
            let (ns, server) = Scene::stage(Options::default()).await;
            // Ten minutes ago a cluster that was made for the tests had no certificate yet: not by TLS.
            let api = FlakyApi::start(&ns, 0, Trouble::default()).await;
            let launch = Launch { clock: Some(clock), kubeconfig: Some(api.kubeconfig()), ..Launch::default() };
            let controller = Controller::launch(&ns, launch).await;
            server.set("a", Behaviour::Issue(Expiry::In(300)));
            let before = Utc::now();
            let spec = json!({"refresh": {"minRemaining": "4m"}});
            ns.create::<TokenCache>(token_cache("a", &server, spec)).await;
            ns.await_ready("a", true, "Fetched").await;
            let secret: k8s_openapi::api::core::v1::Secret = ns.get("a").await;
            let off = secret.expires_at() - before - TimeDelta::seconds(300);
            assert!(off.abs() < TimeDelta::seconds(30), "{clock}: {off}");
            let told = controller.metrics().await.sum("tokencache_clock_offset_seconds", &[]);
            assert!((told - correction).abs() <= 2.0, "{clock}: {told}");
            let log = controller.log();
            assert!(log.contains("API server's, whose time is taken instead; set the node's clock"), "{log}");
        }
    });
}

#[test]
fn a_consumer_whose_clock_is_off_gets_the_value_without_another_fetch() {
    if faketime().is_none() {
        println!("skipped, since there is no faketime: hack/faketime.sh");
        return;
    }
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::Issue(Expiry::In(300)));
        scene.ready_cache("a", json!({})).await;
        let token = scene.secret("a").await.token();
        // Not by TLS, as above.
        let api = FlakyApi::start(&scene.ns, 0, Trouble::default()).await;
        for clock in ["+10m", "-10m"] {
            for _ in 0..2 {
                let fetched = tokencache_at(clock, api.kubeconfig(), &scene.ns.name, &["fetch", "a"]).await;
                assert_eq!((fetched.code, &fetched.stdout), (0, &token), "{clock}: {fetched:?}");
            }
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("token");
            let argument = format!("a={}", file.display());
            let arguments = ["--file", &argument];
            let _agent = Agent::start_at(Some(clock), api.kubeconfig(), &scene.ns, &arguments);
            let written = || async { (std::fs::read_to_string(&file).ok()? == token).then_some(()) };
            within("the agent writes the value", poll(written)).await;
        }
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_client_without_the_api_servers_clock_uses_what_a_run_has_brought() {
    if faketime().is_none() {
        println!("skipped, since there is no faketime: hack/faketime.sh");
        return;
    }
    scenario(async {
        let scene = Scene::new().await;
        // As for a clock that is 10 minutes ahead: the answers' dates do not help.
        scene.server.set("a", Behaviour::Issue(Expiry::In(300)));
        scene.ready_cache("a", json!({})).await;
        let api = FlakyApi::start(&scene.ns, 0, Trouble::default()).await;
        api.always(When::any(), Action::edit_headers(|headers| drop(headers.remove(header::DATE))));
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        let argument = format!("a={}", file.display());
        let agent = Agent::start_at(Some("+10m"), api.kubeconfig(), &scene.ns, &["--file", &argument]);
        let written = || async { std::fs::read_to_string(&file).ok().filter(|text| !text.is_empty()) };
        let token = within("the agent writes a value", poll(written)).await;
        assert_eq!(token, scene.secret("a").await.token());
        agent.says("has expired by the clock of this machine, which must be wrong").await;
        pass(Duration::from_secs(5)).await;
        assert_eq!(scene.server.requests("a"), 2, "one fetch, which it could not know to be unnecessary");
    });
}
