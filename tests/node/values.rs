//! A job's value reaches the Secret and nothing else, and its state the next run.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod, Secret},
};
use kube::{
    ResourceExt as _,
    api::LogParams,
    runtime::watcher::{self, watcher},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    node::{BUSYBOX, Stage, is_fetching, on_node, pod_spec},
    support::{
        CacheView as _, SecretView as _,
        manifests::source_secret,
        poll,
        server::{Options, TokenServer},
        within,
    },
};

/// Asks the token server by wget, and gives the answer's token and lifetime as the result.
const WGET: &str = r#"
wget -q -O /tmp/answer --header "Content-Type: application/x-www-form-urlencoded" \
  --post-data "grant_type=client_credentials&client_id=$ID&client_secret=$(cat /client/clientSecret)" "$URL"
token=$(sed 's/.*"access_token" *: *"\([^"]*\)".*/\1/' /tmp/answer)
n=$(cat "$TOKENCACHE_STATE" 2>/dev/null || echo 0)
echo "{\"values\": {\"token\": \"$token\", \"run\": $((n + 1))}, \"expires_in\": 3600, \"state\": $((n + 1))}" \
  > "$TOKENCACHE_RESULT"
"#;

fn options() -> Options {
    // As it stands in a form, so that the script need not encode it.
    let client_secret = format!("{:032x}", rand::random::<u128>());
    Options { client_id: "me".into(), client_secret, ..Options::default() }
}

fn with_server(server: &TokenServer, name: &str) -> Value {
    let mut spec = pod_spec(json!({
        "hostNetwork": true,
        "containers": [{
            "name": "fetch", "image": BUSYBOX, "command": ["sh", "-ec", WGET],
            "env": [{"name": "URL", "value": server.url(name)}, {"name": "ID", "value": "me"}],
            "volumeMounts": [{"name": "client", "mountPath": "/client"}, {"name": "tmp", "mountPath": "/tmp"}],
        }],
        "volumes": [{"name": "client", "secret": {"secretName": "client"}}, {"name": "tmp", "emptyDir": {}}],
    }));
    spec["target"] = json!({"data": {"token": "values.token", "run": "values.run"}});
    spec
}

#[test]
fn a_shell_fetches_and_its_state_counts_up_and_a_pod_reads_the_new_value() {
    on_node(async {
        // Its pods use the network of the host.
        let stage = Stage::with(&["--job-pod-security=privileged"]).await;
        let server = TokenServer::start(options()).expect("a token server");
        stage.ns.create::<Secret>(source_secret("client", &server.options().client_secret, true)).await;
        stage.ns.lift_policies("the pod uses the network of its node").await;
        stage.script("a", "", with_server(&server, "a")).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        let first: Secret = stage.ns.get("a").await;
        assert_eq!((first.token(), first.value("run")), (server.issued("a")[0].clone(), "1".to_owned()));

        let reader = json!({
            "metadata": {"name": "reader"},
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "a", "secret": {"secretName": "a"}}],
                "containers": [{
                    "name": "reader", "image": BUSYBOX, "volumeMounts": [{"name": "a", "mountPath": "/a"}],
                    "command": ["sh", "-c", "while true; do sha256sum /a/token; cat /a/run; echo; sleep 1; done"],
                }],
            },
        });
        let mut reader = reader;
        reader["apiVersion"] = "v1".into();
        reader["kind"] = "Pod".into();
        stage.ns.create::<Pod>(reader).await;
        let reads = |wanted: &'static str| {
            let pods = stage.ns.api::<Pod>();
            async move {
                let ask = || async {
                    let log = pods.logs("reader", &LogParams { tail_lines: Some(3), ..LogParams::default() }).await;
                    log.ok().filter(|log| log.lines().any(|line| line == wanted))
                };
                within("the pod reads it", poll(ask)).await
            }
        };
        reads("1").await;
        for run in ["2", "3"] {
            let secret = stage.refreshed("a", run).await;
            assert_eq!(secret.value("run"), run);
            assert_eq!(Some(&secret.token()), server.issued("a").last());
        }
        reads("3").await;
        let cache = stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!((cache.seen().runs, cache.seen().failures, server.requests("a")), (3, 0, 3));
        let finished = || async { stage.jobs("a").await.is_empty().then_some(()) };
        within("finished Jobs are removed", poll(finished)).await;
    });
}

#[test]
fn neither_objects_nor_events_nor_logs_hold_the_value_or_the_state() {
    on_node(async {
        let stage = Stage::new().await;
        // A value that no other object could hold by chance, and a run that takes long enough to be looked at.
        let script = r#"
            token=$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')
            echo "{\"token\": \"$token\", \"expires_in\": 3600, \"state\": {\"was\": \"state-$token\"}}" > "$TOKENCACHE_RESULT"
            sleep 2"#;
        stage.script("a", script, json!({})).await;
        // Every version of every pod, by a watch: a look now and then could miss the one with the sealed result.
        let versions = Arc::new(Mutex::new(Vec::new()));
        let (seen, pods) = (versions.clone(), watcher(stage.ns.api::<Pod>(), watcher::Config::default()));
        let watching = tokio::spawn(pods.for_each(move |event| {
            if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) | watcher::Event::Delete(pod)) = event
            {
                seen.lock().push(json!(pod).to_string());
            }
            std::future::ready(())
        }));
        let mut looks = Vec::new();
        let mut pause = tokio::time::interval(Duration::from_millis(200));
        for asked in ["1", "2"] {
            while stage.ns.get::<tokencache::api::TokenCache>("a").await.seen().runs < asked.parse().unwrap() {
                pause.tick().await;
                looks.push(everything(&stage).await);
            }
            looks.push(everything(&stage).await);
            looks.append(&mut versions.lock());
            let secret: Secret = stage.ns.get("a").await;
            let token = secret.token();
            assert_eq!(token.len(), 48, "{token}");
            let state: Secret = stage.ns.get("tokencache-a-state").await;
            let state = format!(
                "{:?}",
                state.data.unwrap().values().map(|v| String::from_utf8_lossy(&v.0).into_owned()).collect::<Vec<_>>()
            );
            assert!(state.contains(&token), "the state is kept: {state}");
            for look in &looks {
                let at = look.find(&token).map(|at| &look[at.saturating_sub(300)..at]);
                assert!(at.is_none(), "the value stands after: {at:?}");
            }
            stage.ns.request("a", asked).await;
        }
        watching.abort();
        assert!(looks.iter().any(|look| look.contains("sealed:")), "the sealed result was seen");
        assert!(looks.iter().any(|look| look.contains("TOKENCACHE_RESULT")), "the pod was seen");
    });
}

/// What those may read who may read all but Secrets.
async fn everything(stage: &Stage) -> String {
    let pods = stage.ns.list::<Pod>().await;
    let mut text = json!([pods, stage.ns.list::<Job>().await, stage.ns.list::<Event>().await]).to_string();
    text += &json!(stage.ns.list::<tokencache::api::TokenCache>().await).to_string();
    for pod in &pods {
        for container in ["tokencache-prepare", "fetch", "tokencache-collect"] {
            let parameters = LogParams { container: Some(container.into()), ..LogParams::default() };
            text += &stage.ns.api::<Pod>().logs(&pod.name_any(), &parameters).await.unwrap_or_default();
        }
    }
    text += &stage.controller.log();
    text
}

#[test]
fn an_idle_job_costs_no_request() {
    on_node(async {
        let stage = Stage::new().await;
        stage.script("a", r#"echo '{"token": "x", "expires_in": 3600}' > "$TOKENCACHE_RESULT""#, json!({})).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        let gone = || async { stage.jobs("a").await.is_empty().then_some(()) };
        within("the Job is gone", poll(gone)).await;
        let about = |metrics: &crate::support::Metrics| {
            ["jobs", "pods"]
                .iter()
                .map(|it| metrics.sum("tokencache_api_requests_total", &[("resource", it)]))
                .sum::<f64>()
        };
        let before = about(&stage.controller.metrics().await);
        assert!(before > 0.0);
        crate::support::pass(Duration::from_secs(5)).await;
        assert_eq!(about(&stage.controller.metrics().await), before);
    });
}

#[test]
fn a_container_that_is_fetching_is_seen_as_such() {
    on_node(async {
        let stage = Stage::new().await;
        stage.script("a", "sleep 60", json!({"fetch": {"timeout": "20s"}})).await;
        stage.pod("a", "the container runs", is_fetching).await;
        let (reason, message) = stage.failure("a").await;
        assert_eq!(reason, "Timeout");
        assert!(message.contains("container fetch was running on node"), "{message}");
    });
}

#[test]
fn the_example_works_as_it_stands_but_for_where_its_image_comes_from() {
    on_node(async {
        let stage = Stage::new().await;
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/job.yaml");
        let text = std::fs::read_to_string(file).expect("the example").replace("busybox:1.36", BUSYBOX);
        stage.ns.create::<tokencache::api::TokenCache>(serde_saphyr::from_str(&text).expect("YAML")).await;
        stage.ns.await_ready("job-example", true, "Fetched").await;
        assert_eq!(stage.refreshed("job-example", "again").await.value("run"), "2");
    });
}
