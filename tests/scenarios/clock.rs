//! Nodes whose clocks are off.

use chrono::{TimeDelta, Utc};
use serde_json::json;
use tokencache::api::TokenCache;

use crate::support::{
    Controller, FlakyApi, Launch, Scene, SecretView as _, Trouble, faketime,
    manifests::token_cache,
    scenario,
    server::{Behaviour, Expiry, Options},
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
