//! A real Prometheus scrapes a controller: the alerts' rules hold water there, and the dashboard's queries find something.

use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokencache::api::TokenCache;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use url::Url;

use crate::support::{Controller, Scene, poll, scenario, server::Behaviour, within};

/// A Prometheus with the chart's alerts. Dropping it kills it.
struct Prometheus {
    address: String,
    http: reqwest::Client,
    _process: Child,
    _folder: TempDir,
}

impl Prometheus {
    async fn start(controller: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [concat!(env!("CARGO_MANIFEST_DIR"), "/charts/tokencache/files/alerts.yaml")],
            "scrape_configs": [{
                "job_name": "tokencache", "honor_labels": true,
                "static_configs": [{"targets": [controller]}],
            }],
        });
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string()).expect("the configuration is written");
        let mut process = Command::new("prometheus")
            .arg("--config.file")
            .arg(&file)
            .arg("--storage.tsdb.path")
            .arg(folder.path().join("data"))
            .args(["--web.listen-address", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus, which hack/prometheus.sh installs");
        let mut lines = BufReader::new(process.stderr.take().expect("its log")).lines();
        let address = within("prometheus listens", async {
            let mut log = String::new();
            while let Some(line) = lines.next_line().await.expect("a line") {
                if let Some((_, address)) = line.split_once(r#"msg="Listening on" address="#) {
                    return address.trim().to_owned();
                }
                log = format!("{log}{line}\n");
            }
            panic!("prometheus ended:\n{log}");
        });
        let address = address.await;
        // Its pipe must not fill up.
        crate::support::in_background(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        Self { address, http, _process: process, _folder: folder }
    }

    /// What its API answers, which has to be a success.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = Url::parse_with_params(&format!("http://{}/api/v1/{path}", self.address), parameters).expect("a URL");
        let answer = self.http.get(url).send().await.expect("an answer").text().await.expect("a text");
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        answer["data"].clone()
    }

    async fn rules(&self) -> Vec<Value> {
        let data = self.ask("rules", &[]).await;
        data["groups"][0]["rules"].as_array().cloned().unwrap_or_default()
    }

    /// Waits until a query finds something.
    async fn finds(&self, query: &str) {
        let ask = || async {
            let data = self.ask("query", &[("query", query)]).await;
            data["result"].as_array().is_some_and(|found| !found.is_empty()).then_some(())
        };
        within(query, poll(ask)).await;
    }
}

/// The queries of the dashboard, as Grafana would send them with all namespaces chosen.
fn dashboard_queries() -> Vec<String> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/tokencache/files/dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("the dashboard")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    targets
        .map(|target| target["expr"].as_str().expect("a query").replace("$__rate_interval", "10s"))
        .map(|query| query.replace("$namespace", ".*"))
        .collect()
}

/// What `/metrics` answers to an `Accept` header: its content type and its text.
async fn scrape(controller: &Controller, accept: Option<&str>) -> (String, String) {
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let mut request = http.get(format!("http://{}/metrics", controller.admin()));
    if let Some(accept) = accept {
        request = request.header("Accept", accept);
    }
    let response = request.send().await.expect("an answer");
    let content_type = response.headers()["content-type"].to_str().expect("text").to_owned();
    (content_type, response.text().await.expect("text"))
}

#[test]
fn whoever_does_not_ask_for_open_metrics_gets_the_text_format_and_prometheus_can_read_it() {
    if std::process::Command::new("promtool").arg("--version").output().is_err() {
        println!("skipped, since there is no promtool: hack/prometheus.sh");
        return;
    }
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("good", json!({})).await;
        let (_, open_metrics) = scrape(&scene.controller, Some("application/openmetrics-text;version=1.0.0")).await;
        assert!(open_metrics.ends_with("# EOF\n"), "{open_metrics}");
        for accept in [None, Some("*/*"), Some("text/plain;version=0.0.4"), Some("application/json")] {
            let (content_type, text) = scrape(&scene.controller, accept).await;
            assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8", "{accept:?}");
            let file = tempfile::NamedTempFile::new().expect("a file");
            std::fs::write(file.path(), &text).expect("the metrics are written");
            let mut promtool = Command::new("promtool");
            promtool.args(["check", "metrics"]).stdin(file.reopen().expect("the file"));
            let checked = within("promtool ends", promtool.output()).await.expect("promtool");
            let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
            // 3: it has read them, and would have named some of them otherwise.
            assert!(matches!(checked.status.code(), Some(0 | 3)), "{accept:?}: {said}\n{text}");
            assert!(!said.contains("error"), "{accept:?}: {said}");
            assert!(text.contains("\n# TYPE tokencache_fetches_total counter\n"), "{text}");
        }
    });
}

#[test]
fn its_alerts_can_be_evaluated_and_every_query_of_the_dashboard_finds_something() {
    if std::process::Command::new("prometheus").arg("--version").output().is_err() {
        // Who runs the tests as root has it: hack/test.sh installs it.
        println!("skipped, since there is no prometheus: hack/prometheus.sh");
        return;
    }
    scenario(async {
        let scene = Scene::new().await;
        scene.server.set("failing", Behaviour::Status(500, Vec::new(), String::new()));
        let prometheus = Prometheus::start(scene.controller.admin()).await;
        scene.ready_cache("good", json!({})).await;
        scene.cache("failing", json!({"retry": {"initialInterval": "1s", "maxInterval": "1s"}})).await;
        let queries = dashboard_queries();
        assert!(queries.len() > 10, "{queries:?}");
        for query in &queries {
            prometheus.finds(query).await;
        }
        // That which is not ready is on its way to be told, and nothing else is.
        let told = || async {
            let rules = prometheus.rules().await;
            let all_good = rules.iter().all(|rule| rule["health"] == "ok");
            let mut active = rules.iter().filter(|rule| rule["state"] != "inactive").map(|rule| rule["name"].clone());
            (rules.len() > 4
                && all_good
                && active.next() == Some(json!("TokenCacheNotReady"))
                && active.next().is_none())
            .then_some(())
        };
        within("the alert of what is not ready is pending, and no other", poll(told)).await;
        let namespace = format!("tokencache_ready{{namespace=\"{}\",name=\"good\"}} == 1", scene.ns.name);
        prometheus.finds(&namespace).await;

        scene.ns.delete::<TokenCache>("good").await;
        let gone = || async { (!scene.controller.metrics().await.0.contains(r#"name="good""#)).then_some(()) };
        within("what is deleted is told of no more", poll(gone)).await;
        prometheus.finds(&format!("absent({namespace})")).await;
    });
}
