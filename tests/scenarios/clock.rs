//! Nodes whose clocks are off.

use chrono::{TimeDelta, Utc};
use serde_json::json;

use crate::support::{
    Launch, Scene, SecretView as _, faketime, scenario,
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
            let launch = Launch { clock: Some(clock), ..Launch::default() };
            let scene = Scene::with(launch, Options::default()).await;
            scene.server.set("counted", Behaviour::Issue(Expiry::In(300)));
            let before = Utc::now();
            // For this one five minutes are left, and ten minutes ahead there would be none.
            scene.ready_cache("counted", json!({"refresh": {"minRemaining": "4m"}})).await;
            let off = scene.secret("counted").await.expires_at() - before - TimeDelta::seconds(300);
            assert!(off.abs() < TimeDelta::seconds(30), "{clock}: {off}");
            let told = scene.controller.metrics().await.sum("tokencache_clock_offset_seconds", &[]);
            assert!((told - correction).abs() <= 2.0, "{clock}: {told}");
            let log = scene.controller.log();
            assert!(log.contains("API server's, whose time is taken instead; set the node's clock"), "{log}");
        }
    });
}
