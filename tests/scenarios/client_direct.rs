//! `fetch --direct`: a run without a controller, or beside one.

use futures::future::join_all;
use serde_json::json;
use tokencache::api::TokenCache;

use super::client::{failing, lazy};
use crate::support::{
    CacheView as _, Cluster, Ended, Namespace, Scene, SecretView as _, holder,
    manifests::token_cache,
    scenario,
    server::{Behaviour, Gate, Options},
    tokencache, within,
};

async fn direct(ns: &Namespace, more: &[&str]) -> Ended {
    let mut arguments = vec!["fetch", "a", "--direct", "--allow-cidr", "127.0.0.0/8"];
    arguments.extend(more);
    tokencache(&Cluster::get().await.kubeconfig, &ns.name, &arguments).await
}

#[test]
fn without_a_controller_the_command_runs_the_fetch_itself_and_status_says_so() {
    scenario(async {
        let (ns, server) = Scene::stage(Options::default()).await;
        for (name, spec) in [("a", lazy()), ("eager", json!({}))] {
            ns.create::<TokenCache>(token_cache(name, &server, spec)).await;
        }
        let ended = direct(&ns, &["--identity", "laptop"]).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
        assert_eq!(server.issued("a"), [ended.stdout.as_str()]);
        let secret: k8s_openapi::api::core::v1::Secret = ns.get("a").await;
        assert_eq!(secret.token(), ended.stdout);
        let cache: TokenCache = ns.get("a").await;
        assert_eq!(cache.seen().last_run_by.as_deref(), Some("direct-laptop"));
        assert_eq!((cache.seen().runs, cache.seen().refresh_requested), (1, None));
        assert_eq!(holder(&ns.get("tokencache-a").await), "", "the Lease is free again");

        // A value that is valid is given as it is.
        assert_eq!(direct(&ns, &[]).await.stdout, ended.stdout);
        assert_eq!(server.requests("a"), 1);
    });
}

#[test]
fn a_run_that_fails_here_is_told_as_one_of_a_controllers() {
    scenario(async {
        let (ns, server) = Scene::stage(Options::default()).await;
        server.set("a", failing());
        ns.create::<TokenCache>(token_cache("a", &server, lazy())).await;
        let ended = direct(&ns, &[]).await;
        assert_eq!(ended.code, 1, "{ended:?}");
        assert!(ended.stderr.contains("ServerError"), "{}", ended.stderr);
        let cache: TokenCache = ns.get("a").await;
        assert_eq!(cache.last_failure(), "ServerError");
        assert_eq!(holder(&ns.get("tokencache-a").await), "");
    });
}

#[test]
fn beside_a_controller_only_one_of_them_runs() {
    scenario(async {
        let scene = Scene::new().await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
        scene.cache("a", lazy()).await;
        scene.ns.await_ready("a", false, "Cleared").await;
        let calls = join_all((0..4).map(|_| direct(&scene.ns, &["--identity", "laptop"])));
        let (all, ()) = tokio::join!(calls, async {
            within("a run begins", scene.server.await_requests("a", 1)).await;
            gate.open();
        });
        for ended in all {
            assert_eq!((ended.code, ended.stdout), (0, scene.secret("a").await.token()));
        }
        assert_eq!((scene.server.requests("a"), scene.server.in_flight_max("a")), (1, 1));
        let by = scene.ns.get::<TokenCache>("a").await.seen().last_run_by.expect("somebody");
        assert!(by == "direct-laptop" || by == scene.controller.identity, "{by}");
    });
}
