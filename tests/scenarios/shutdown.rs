//! How the program starts and ends.
//!
//! That a controller waits for the CustomResourceDefinition is not shown here: it takes a cluster of its own without it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use rustix::process::Signal;
use serde_json::json;
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Cluster, Controller, Namespace, Running, Scene, SecretView as _,
    manifests::token_cache,
    run_to_exit, scenario,
    server::{Behaviour, Gate, Options, TokenServer},
    within,
};

#[test]
fn on_sigterm_a_run_that_goes_on_is_ended_its_lease_is_free_and_the_exit_code_is_0() {
    scenario(async {
        let scene = Scene::new().await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
        scene.cache("a", json!({})).await;
        within("the run begins", scene.server.await_requests("a", 1)).await;
        let Scene { controller, server, ns } = scene;
        let (status, took) = controller.terminate().await;
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(10), "{took:?}");
        let lease: Lease = ns.get("tokencache-a").await;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        assert_eq!(holder, "", "the next controller need not wait");
        within("the connection drops", server.await_empty("a")).await;
        assert_eq!(server.requests("a"), 1, "no new run");

        gate.open();
        let controller = Controller::start(&ns, &[]).await;
        let cache = ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.seen().last_run_by.as_deref(), Some(controller.identity.as_str()));
    });
}

#[test]
fn on_sigterm_a_run_that_ends_soon_is_finished() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("a", Behaviour::After(Duration::from_secs(1), Box::new(Behaviour::Default)));
        scene.cache("a", json!({})).await;
        within("the run begins", scene.server.await_requests("a", 1)).await;
        let Scene { controller, server, ns } = scene;
        let (status, _) = controller.terminate().await;
        assert_eq!(status.code(), Some(0));
        let cache = ns.get::<TokenCache>("a").await;
        assert!(cache.is(true, "Fetched"), "{:?}", cache.ready());
        assert_eq!(server.issued("a"), [ns.get::<k8s_openapi::api::core::v1::Secret>("a").await.token()]);
    });
}

#[test]
fn on_sigterm_an_idle_controller_ends_at_once() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let (status, took) = scene.controller.terminate().await;
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(5), "{took:?}");
    });
}

#[test]
fn a_command_that_waits_as_process_1_of_a_container_is_ended_by_a_signal() {
    scenario(async {
        let ns = Namespace::new().await;
        let (server, kubeconfig) =
            (TokenServer::start(Options::default()).expect("a server"), &Cluster::get().await.kubeconfig);
        ns.create::<TokenCache>(token_cache("a", &server, json!({}))).await;
        for command in ["fetch", "refresh"] {
            ns.patch_status("a", json!({"refreshRequested": null})).await;
            let running = Running::start(kubeconfig, &ns.name, &[command, "a", "--timeout", "10m"], true);
            let asked = |cache: &TokenCache| cache.seen().refresh_requested.is_some();
            ns.await_cache("a", "it waits for a controller", asked).await;
            running.signal(Signal::TERM);
            let (code, stderr) = running.ended().await;
            assert_eq!(code, Some(128 + 15), "{command}: {stderr}");
        }
    });
}

#[test]
fn the_admin_server_tells_that_it_lives_that_it_is_ready_and_what_it_counted() {
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("b", Behaviour::Status(500, Vec::new(), String::new()));
        scene.ready_cache("a", json!({})).await;
        scene.cache("b", json!({"retry": {"initialInterval": "10m", "maxInterval": "10m"}})).await;
        scene.ns.await_ready("b", false, "FetchFailed").await;
        for path in ["/livez", "/readyz"] {
            assert_eq!(scene.controller.ask(path).await.map(|(status, _)| status), Some(200), "{path}");
            assert_eq!(scene.controller.ask_probes(path).await.map(|(status, _)| status), Some(200), "{path}");
        }
        assert_eq!(scene.controller.ask_probes("/metrics").await.map(|(status, _)| status), Some(404));
        assert_eq!(scene.controller.ask("/secrets").await.map(|(status, _)| status), Some(404));
        let metrics = scene.controller.metrics().await;
        let fetches = |result, reason| {
            let labels = [("source", "oauth2"), ("result", result), ("reason", reason)];
            metrics.sum("tokencache_fetches_total", &labels)
        };
        assert_eq!((fetches("success", "Fetched"), fetches("failure", "ServerError")), (1.0, 1.0), "{}", metrics.0);
    });
}

#[test]
fn a_crash_of_a_controller_dumps_nothing() {
    scenario(async {
        let scene = Scene::new().await;
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", scene.controller.pid())).expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    });
}

#[test]
fn without_a_cluster_the_program_ends_and_says_why() {
    scenario(async {
        for kubeconfig in ["/nonexistent/kubeconfig", "/dev/null", concat!(env!("CARGO_MANIFEST_DIR"), "/rustfmt.toml")]
        {
            let arguments = ["controller", "--kubeconfig", kubeconfig, "--metrics-address", "127.0.0.1:0"];
            let (status, text) = run_to_exit(kubeconfig, &arguments).await;
            assert!(status.code().is_some_and(|code| code != 0), "{kubeconfig}: {status:?}");
            assert!(text.contains("kubeconfig"), "{kubeconfig}: {text}");
            assert!(!text.contains("panicked"), "{kubeconfig}: {text}");
        }
    });
}

#[test]
fn wrong_arguments_end_with_usage() {
    scenario(async {
        let kubeconfig = &Cluster::get().await.kubeconfig;
        for wrong in [
            &["controller", "--lease-duration", "soon"][..],
            &["controller", "--lease-duration", "0s"],
            &["controller", "--allow-cidr", "127.0.0.1/99"],
            &["controller", "--metrics-address", "nowhere"],
            &["controller", "--probe-address", "nowhere"],
            &["no-such-command"],
        ] {
            let (status, text) = run_to_exit(kubeconfig, wrong).await;
            assert!(status.code().is_some_and(|code| code != 0), "{wrong:?}: {status:?}");
            assert!(text.contains(wrong[wrong.len() - 1]) && !text.contains("panicked"), "{wrong:?}: {text}");
        }
    });
}

#[test]
fn an_admin_address_that_is_taken_ends_the_program_with_that_address() {
    scenario(async {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its address").to_string();
        let kubeconfig = &Cluster::get().await.kubeconfig;
        let (status, text) = run_to_exit(kubeconfig, &["controller", "--admin-address", &address]).await;
        assert_eq!(status.code().map(|code| code != 0), Some(true), "{text}");
        assert!(text.contains(&address), "{text}");
    });
}
