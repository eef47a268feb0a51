//! What a consumer gets from the command line, run as a shell would.

use std::os::unix::fs::symlink;

use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokencache::api::TokenCache;
use tokio::process::Command;

use super::client::{failing, lazy};
use crate::support::{
    CacheView as _, Cluster, Ended, Namespace, Proxy, Scene, SecretView as _, binary, ended, scenario,
    server::Behaviour, tokencache, tokencache_command,
};

/// Boxed, since a test that calls it often would else need more stack than it has.
fn run<'a>(ns: &'a Namespace, arguments: &'a [&'a str]) -> BoxFuture<'a, Ended> {
    Box::pin(async { tokencache(&Cluster::get().await.kubeconfig, &ns.name, arguments).await })
}

/// A shell with the kubeconfig and the binary's folder on its path.
fn shell<'a>(ns: &'a Namespace, script: &'a str) -> BoxFuture<'a, Ended> {
    Box::pin(async move {
        let folder = binary().parent().expect("a folder").to_str().expect("a path");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut bash = Command::new("bash");
        bash.args(["-euc", script]).env("PATH", format!("{folder}:{path}")).env("NS", &ns.name);
        bash.env("KUBECONFIG", &Cluster::get().await.kubeconfig).env("TERM", "xterm").env_remove("NO_COLOR");
        ended(bash).await
    })
}

#[test]
fn fetch_prints_the_value_alone_or_as_json_or_for_a_shell() {
    scenario(async {
        let scene = Scene::new().await;
        let mut spec = lazy();
        spec["target"] = json!({"data": {"token": "token", "quoted.text": "\"it's $HOME\\n\""}});
        scene.cache("a", spec).await;
        let plain = run(&scene.ns, &["fetch", "a"]).await;
        let secret = scene.secret("a").await;
        assert_eq!((plain.code, plain.stdout.as_str(), plain.stderr.as_str()), (0, secret.token().as_str(), ""));
        assert_eq!(run(&scene.ns, &["fetch", "a", "--key", "quoted.text"]).await.stdout, "it's $HOME\n");

        let printed: Value =
            serde_json::from_str(&run(&scene.ns, &["fetch", "a", "-o", "json"]).await.stdout).expect("JSON");
        let annotation = |key: &str| secret.annotation(&format!("tokencache.dev/{key}"));
        let expected = json!({
            "data": {"token": secret.token(), "quoted.text": "it's $HOME\n"},
            "expiresAt": annotation("expires_at"), "fetchedAt": annotation("fetched_at"),
        });
        assert_eq!(printed, expected);

        let read = shell(
            &scene.ns,
            r#"variables="$(tokencache fetch a -n "$NS" -o env)"; eval "$variables"; printf '%s|%s' "$TOKENCACHE_TOKEN" "$TOKENCACHE_QUOTED_TEXT""#,
        );
        assert_eq!(read.await.stdout, format!("{}|it's $HOME\n", secret.token()));
        assert_eq!(scene.server.requests("a"), 1);
    });
}

#[test]
fn a_terminal_acts_on_nothing_that_others_wrote_into_a_status_or_a_lease() {
    scenario(async {
        // There is no controller that could correct it.
        let ns = Namespace::new().await;
        ns.lift_policies("another client writes the status and the Lease").await;
        let source = json!({"oauth2": {
            "tokenUrl": "http://localhost/token", "clientId": "a", "clientSecretRef": {"name": "a", "key": "a"},
        }});
        let object = json!({"apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "metadata": {"name": "a"},
            "spec": {"fetch": source}});
        ns.create::<TokenCache>(object).await;
        let forged = "\u{1b}[2J\u{1b}]0;forged\u{7}\u{9b}1m";
        let condition = json!({
            "type": "Ready", "status": "False", "reason": "Failed", "message": forged,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        ns.patch_status(
            "a",
            json!({
                "conditions": [condition], "lastRunBy": forged, "failures": 1, "source": forged,
                "lastFailure": {"reason": forged, "message": forged},
            }),
        )
        .await;
        let lease = json!({
            "metadata": {"name": "tokencache-a", "labels": {"tokencache.dev/managed": "true"}},
            "spec": {"holderIdentity": forged},
        });
        ns.create::<Lease>(lease).await;
        for arguments in [
            &["status", "a"][..],
            &["status", "a", "-o", "json"],
            &["status", "a", "-o", "yaml"],
            &["list", "-o", "wide"],
            &["list", "-o", "json"],
            &["fetch", "a", "--timeout", "1s"],
            &["refresh", "a", "--timeout", "1s"],
        ] {
            let ended = run(&ns, arguments).await;
            let shown = format!("{}{}", ended.stdout, ended.stderr);
            assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{arguments:?}: {shown:?}");
            assert!(arguments[0] != "status" || shown.contains("forged"), "{shown}");
        }
    });
}

#[test]
fn the_exit_code_says_what_became_of_it() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("good", json!({})).await;
        scene.server.set("bad", failing());
        scene.cache("bad", lazy()).await;
        scene.server.set("slow", Behaviour::Hang);
        scene.cache("slow", lazy()).await;
        let elsewhere = Namespace::new().await;
        for (arguments, code, said) in [
            (vec!["fetch", "good"], 0, ""),
            (vec!["fetch", "bad"], 1, "ServerError: "),
            (vec!["refresh", "bad"], 1, "ServerError: "),
            (vec!["fetch", "good", "--key", "other"], 2, "no key other; it has: token"),
            (vec!["fetch", "good", "--min-remaining", "soon"], 2, "1h30m"),
            (vec!["refresh", "good", "--if-fetched-at", "yesterday"], 2, "2026-01-02T03:04:05Z"),
            (vec!["clear"], 2, "required"),
            (vec!["clear", "good", "--all"], 2, "cannot be used with"),
            (vec!["fetch", "nobody"], 3, "there is no TokenCache nobody in the namespace "),
            (vec!["clear", "nobody"], 3, "there is no TokenCache nobody"),
            (vec!["status", "nobody"], 3, "there is no TokenCache nobody"),
            (vec!["fetch", "slow", "--timeout", "1s"], 4, "within 1s"),
            (vec!["fetch", "good", "--min-remaining", "2h"], 1, "the newest value expires in"),
        ] {
            let ended = run(&scene.ns, &arguments).await;
            assert_eq!(ended.code, code, "{arguments:?}: {ended:?}");
            assert!(ended.stderr.contains(said), "{arguments:?}: {}", ended.stderr);
            assert_eq!(ended.stdout.is_empty(), code != 0, "{arguments:?}: {ended:?}");
        }
        // Named after its namespace: a scenario beside this one may have one called good, too.
        let here_only = format!("only-{}", scene.ns.name);
        scene.cache(&here_only, lazy()).await;
        let ended = run(&elsewhere, &["fetch", &here_only]).await;
        assert_eq!(ended.code, 3);
        let hint = format!("found in namespace {}; select it with -n", scene.ns.name);
        assert!(ended.stderr.contains(&hint), "{}", ended.stderr);
    });
}

#[test]
fn no_cluster_is_said_as_such() {
    scenario(async {
        let nowhere = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [], "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
        });
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, nowhere.to_string()).expect("a kubeconfig");
        let ended = tokencache(file.path().to_str().expect("a path"), "default", &["fetch", "a"]).await;
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains("the Kubernetes API failed") && ended.stderr.contains("refused"), "{ended:?}");

        let ended = tokencache("/nowhere/kubeconfig", "default", &["fetch", "a"]).await;
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains("set --kubeconfig or KUBECONFIG"), "{ended:?}");
        assert_eq!(ended.stderr.matches("No such file").count(), 1, "{ended:?}");
    });
}

#[test]
fn refresh_and_clear_do_what_they_say() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", lazy()).await;
        let first = run(&scene.ns, &["fetch", "a"]).await.stdout;
        let fetched_at = scene.secret("a").await.annotation("tokencache.dev/fetched_at");
        let ended = run(&scene.ns, &["refresh", "a"]).await;
        assert!(ended.code == 0 && ended.stdout.starts_with("a: fetched at "), "{ended:?}");
        let second = run(&scene.ns, &["fetch", "a"]).await.stdout;
        assert_ne!(first, second);
        let since = scene.secret("a").await.annotation("tokencache.dev/fetched_at");
        if since != fetched_at {
            assert_eq!(run(&scene.ns, &["refresh", "a", "--if-fetched-at", &fetched_at]).await.code, 0);
            assert_eq!(scene.server.requests("a"), 2, "it is another value already");
        }
        let ended = run(&scene.ns, &["clear", "a"]).await;
        assert_eq!(ended.stdout, format!("{}/a cleared\n", scene.ns.name));
        scene.ns.await_ready("a", false, "Cleared").await;
        let ended = run(&scene.ns, &["clear", "--all"]).await;
        assert_eq!(ended.stdout, format!("{}/a had no value\n", scene.ns.name));
    });
}

#[test]
fn list_and_status_tell_all_but_the_value() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("good", json!({})).await;
        scene.server.set("bad", failing());
        scene.cache("bad", json!({})).await;
        scene.ns.await_ready("bad", false, "FetchFailed").await;
        let secret = scene.secret("good").await;
        let expires_at = secret.annotation("tokencache.dev/expires_at");

        let list = run(&scene.ns, &["list"]).await.stdout;
        let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..5], ["NAME", "READY", "REASON", "EXPIRES", "FAILURES"]);
        assert_eq!(lines[1][..4], ["bad", "False", "FetchFailed", "-"]);
        assert_eq!(lines[2][..5], ["good", "True", "Fetched", &expires_at, "0"]);
        let wide = run(&scene.ns, &["list", "-o", "wide"]).await.stdout;
        assert!(wide.contains(&scene.controller.identity), "{wide}");
        let everywhere = shell(&scene.ns, "tokencache list -A").await.stdout;
        assert!(everywhere.contains(&scene.ns.name), "{everywhere}");
        let json: Value = serde_json::from_str(&run(&scene.ns, &["list", "-o", "json"]).await.stdout).expect("JSON");
        assert_eq!((&json[0]["lastFailure"]["reason"], &json[1]["ready"]), (&json!("ServerError"), &json!(true)));
        let names = run(&scene.ns, &["list", "-o", "name"]).await.stdout;
        assert_eq!(names, "tokencache.tokencache.dev/bad\ntokencache.tokencache.dev/good\n");

        let status = run(&scene.ns, &["status", "bad"]).await.stdout;
        for expected in ["Ready:             False (FetchFailed)", "Last failure:", "ServerError", "Lock:"] {
            assert!(status.contains(expected), "{status}");
        }
        let all = [list, wide, everywhere, status, run(&scene.ns, &["status", "good", "-o", "yaml"]).await.stdout];
        let part = secret.token()[..40].to_owned();
        assert!(all.iter().all(|text| !text.contains(&part)));
        assert!(all.iter().all(|text| !text.contains('\u{1b}')), "no colours in a pipe");
    });
}

#[test]
fn a_terminal_has_colours_and_countdowns() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("good", json!({})).await;
        scene.server.set("slow", Behaviour::Hang);
        scene.cache("slow", lazy()).await;
        // script(1) runs the command on a terminal of its own.
        let on_terminal = |command: &str| format!("script -qec '{command} -n {}' /dev/null || true", scene.ns.name);
        let list = shell(&scene.ns, &on_terminal("tokencache list")).await.stdout;
        assert!(list.contains("\u{1b}[32mTrue\u{1b}[0m") && list.contains("in 59m"), "{list:?}");
        let plain = shell(&scene.ns, &format!("export NO_COLOR=1; {}", on_terminal("tokencache list"))).await.stdout;
        assert!(!plain.contains('\u{1b}') && plain.contains("in 59m"), "{plain:?}");
        let waited = shell(&scene.ns, &on_terminal("tokencache fetch slow --timeout 3s")).await.stdout;
        assert!(waited.contains("waiting for a value of slow (2s left)"), "{waited:?}");
        let value = shell(&scene.ns, &on_terminal("tokencache fetch good")).await.stdout;
        assert!(value.ends_with('\n'), "a person gets a line");
    });
}

#[test]
fn kubectl_finds_it_as_a_plugin_and_it_takes_kubectls_flags() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({})).await;
        let root = env!("CARGO_MANIFEST_DIR");
        let plugins = tempfile::tempdir().expect("a folder");
        symlink(binary(), plugins.path().join("kubectl-tokencache")).expect("a link");
        let kubectl = |arguments: &str| {
            let script = format!(
                "tools=$({root}/hack/cluster.sh tools 2>/dev/null); export PATH=\"$tools:{}:$PATH\"; {arguments}",
                plugins.path().display()
            );
            let ns = &scene.ns;
            async move { shell(ns, &script).await }
        };
        let value = kubectl(r#"kubectl tokencache fetch a -n "$NS""#).await;
        assert_eq!((value.code, value.stdout), (0, scene.secret("a").await.token()), "{}", value.stderr);
        let folder = tempfile::tempdir().expect("a folder");
        let in_context = kubectl(&format!(
            r#"cp "$KUBECONFIG" {0}/kc; export KUBECONFIG={0}/kc
            kubectl config set-context other --cluster="$(kubectl config view -o jsonpath='{{.clusters[0].name}}')" \
                --user="$(kubectl config view -o jsonpath='{{.users[0].name}}')" --namespace="$NS" >/dev/null
            unset KUBECONFIG
            kubectl tokencache status a --kubeconfig {0}/kc --context other -o json"#,
            folder.path().display()
        ))
        .await;
        let seen: Value = serde_json::from_str(&in_context.stdout).unwrap_or_else(|_| panic!("{in_context:?}"));
        assert_eq!(seen["namespace"], scene.ns.name);
        let usage = kubectl("kubectl tokencache fetch --wrong || true").await.stderr;
        assert!(usage.contains("Usage: kubectl tokencache fetch"), "{usage}");
    });
}

#[test]
fn a_shell_can_complete_its_commands() {
    scenario(async {
        let ns = Namespace::new().await;
        let script = r#"
            source <(tokencache completion bash)
            COMP_WORDS=(tokencache ref) COMP_CWORD=1
            _tokencache tokencache ref tokencache
            printf '%s\n' "${COMPREPLY[@]}""#;
        assert_eq!(shell(&ns, script).await.stdout, "refresh\n");
    });
}

#[test]
fn a_request_of_the_command_is_one_that_the_status_shows_until_it_is_answered() {
    scenario(async {
        let scene = Scene::new().await;
        scene.cache("a", lazy()).await;
        scene.ns.await_ready("a", false, "Cleared").await;
        scene.controller.stop();
        let ended = run(&scene.ns, &["fetch", "a", "--timeout", "5s"]).await;
        assert_eq!(ended.code, 4, "{ended:?}");
        assert!(ended.stderr.contains("is a controller watching"), "{}", ended.stderr);
        let cache: TokenCache = scene.ns.get("a").await;
        assert!(cache.seen().refresh_requested.is_some());
        let status = run(&scene.ns, &["status", "a"]).await.stdout;
        assert!(status.contains("not answered yet"), "{status}");
    });
}

#[test]
fn the_proxy_of_the_kubeconfig_is_asked_with_its_password() {
    scenario(async {
        let scene = Scene::new().await;
        let proxy = Proxy::start("user", "pass word").await;
        let whole = std::fs::read_to_string(&Cluster::get().await.kubeconfig).expect("a kubeconfig");
        let through = async |url: String| {
            let mut config: Value = serde_saphyr::from_str(&whole).expect("YAML");
            config["clusters"][0]["cluster"]["proxy-url"] = json!(url);
            let file = NamedTempFile::new().expect("a file");
            std::fs::write(&file, config.to_string()).expect("written");
            tokencache(file.path().to_str().expect("a path"), &scene.ns.name, &["list"]).await
        };
        let listed = through(format!("http://user:pass%20word@{}", proxy.address)).await;
        assert_eq!(listed.code, 0, "{listed:?}");
        assert_eq!(proxy.tunnels().len(), 1);

        for url in [format!("http://user:wrong@{}", proxy.address), "socks5://user:wrong@127.0.0.1:9".to_owned()] {
            let refused = through(url).await;
            assert_eq!(refused.code, 1, "{refused:?}");
            assert!(refused.stderr.contains("proxy") && !refused.stderr.contains("wrong"), "{refused:?}");
        }
        assert_eq!(proxy.tunnels().len(), 1);
    });
}

#[test]
fn the_proxy_of_the_environment_is_passed_by_where_no_proxy_names_the_api_server() {
    scenario(async {
        let scene = Scene::new().await;
        let proxy = Proxy::start("user", "secret").await;
        let url = format!("http://user:secret@{}", proxy.address);
        let kubeconfig = &Cluster::get().await.kubeconfig;
        let file = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
        let server = file.clusters[0].cluster.as_ref().and_then(|cluster| cluster.server.as_deref());
        let server: http::Uri = server.and_then(|server| server.parse().ok()).expect("its address");
        let (host, port) = (server.host().expect("a host"), server.port_u16().expect("a port"));
        for (no_proxy, tunnels) in [
            (String::new(), 1),
            ("192.0.2.0/24,example.com".to_owned(), 2),
            (format!("{host}:1"), 3),
            ("*".to_owned(), 3),
            (format!("example.com, {host}"), 3),
            (format!("{host}:{port}"), 3),
        ] {
            let mut list = tokencache_command(kubeconfig, &scene.ns.name, &["list"]);
            list.env("HTTPS_PROXY", &url).env("NO_PROXY", &no_proxy);
            let listed = ended(list).await;
            assert_eq!(listed.code, 0, "NO_PROXY={no_proxy}: {listed:?}");
            assert_eq!(proxy.tunnels().len(), tunnels, "NO_PROXY={no_proxy}");
        }
    });
}
