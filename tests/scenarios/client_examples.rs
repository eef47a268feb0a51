//! The examples for consumers do what they are for.

use serde_json::json;
use tokio::process::Command;

use super::client::{client, lazy};
use crate::support::{Cluster, Scene, binary, ended, scenario};

#[allow(dead_code, reason = "the example's main is its own")]
#[path = "../../examples/service.rs"]
mod service;

#[test]
fn the_script_calls_the_api_and_takes_another_token_where_its_own_is_refused() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", lazy()).await;
        let url = format!("{}/api/whoami", scene.server.base());
        let call = async || {
            let path = std::env::var("PATH").unwrap_or_default();
            let folder = binary().parent().expect("a folder").display();
            let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/call-api.sh"));
            script.args(["a", &url]).env("PATH", format!("{folder}:{path}")).env("no_proxy", "*");
            script.env("KUBECONFIG", &Cluster::get().await.kubeconfig);
            script.env("TOKENCACHE_NAMESPACE_OF_CALL", &scene.ns.name);
            ended(script).await
        };
        let first = call().await;
        assert!(first.code == 0 && first.stdout.contains("sub"), "{first:?}");
        assert_eq!(scene.server.requests("a"), 1);
        scene.server.revoke("a");
        let second = call().await;
        assert_eq!(second.code, 0, "{second:?}");
        assert_eq!(scene.server.requests("a"), 2);
        assert!(second.stderr.contains("a: fetched at "), "{second:?}");
    });
}

#[test]
fn the_service_calls_the_api_and_survives_a_revoked_token() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let url: reqwest::Url = format!("{}/api/whoami", scene.server.base()).parse().expect("a URL");
        let handle = client(&scene).watch("a");
        assert_eq!(service::serve(handle.clone(), url.clone(), 2).await.expect("answers"), [200, 200]);
        scene.server.revoke("a");
        assert_eq!(service::serve(handle, url, 2).await.expect("answers"), [200, 200]);
        assert_eq!(scene.server.requests("a"), 2);
    });
}
