//! Traces, as a collector gets them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, status::StatusCode},
};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::json;

use crate::support::{
    Launch, Scene, SecretView as _, in_background, scenario,
    server::{Behaviour, Options},
};

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Bytes>>>);

impl Collector {
    /// Starts it, and gives its base URL.
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let take = async |State(collector): State<Self>, body: Bytes| {
            collector.0.lock().push(body);
        };
        let router = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        in_background(async move { axum::serve(listener, router).await.expect("it serves") });
        format!("http://{address}/")
    }

    fn bodies(&self) -> Vec<Bytes> {
        self.0.lock().clone()
    }

    /// All spans, and the attributes of who sent them.
    fn spans(&self) -> (Vec<Span>, BTreeMap<String, String>) {
        let (mut spans, mut resource) = (Vec::new(), BTreeMap::new());
        for body in self.bodies() {
            let request = ExportTraceServiceRequest::decode(body).expect("an export of spans");
            for of_resource in request.resource_spans {
                resource.extend(attributes(&of_resource.resource.expect("a resource").attributes));
                spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        (spans, resource)
    }
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some((attribute.key.clone(), text.clone())),
        _ => None,
    };
    attributes.iter().filter_map(text).collect()
}

#[test]
fn each_run_is_a_trace_with_its_steps_and_tells_no_value() {
    scenario(async {
        let collector = Collector::default();
        let endpoint = collector.start().await;
        let launch = Launch { arguments: &["--otlp-endpoint", &endpoint], ..Launch::default() };
        let scene = Scene::with(launch, Options::default()).await;
        scene.ready_cache("good", json!({})).await;
        scene.server.set("bad", Behaviour::Status(400, Vec::new(), r#"{"error":"invalid_scope"}"#.into()));
        let retry = json!({"initialInterval": "1h", "maxInterval": "1h"});
        scene.cache("bad", json!({"retry": retry})).await;
        scene.ns.await_ready("bad", false, "FetchFailed").await;
        let token = scene.secret("good").await.token();
        // What is left is sent at the end.
        let Scene { controller, server, ns } = scene;
        let identity = controller.identity.clone();
        assert!(controller.terminate().await.0.success());

        let (spans, resource) = collector.spans();
        assert_eq!(resource.get("service.name").map(String::as_str), Some("tokencache"));
        assert_eq!(resource.get("service.instance.id"), Some(&identity));
        let run = |name: &str| {
            let is_run = |span: &&Span| {
                let told = attributes(&span.attributes);
                span.name == "run" && told.get("name").is_some_and(|of| of == name) && told.contains_key("outcome")
            };
            let run = spans.iter().find(is_run).unwrap_or_else(|| panic!("no run of {name}: {spans:?}"));
            let steps: BTreeSet<&str> = spans
                .iter()
                .filter(|span| span.parent_span_id == run.span_id && span.trace_id == run.trace_id)
                .map(|span| span.name.as_str())
                .collect();
            let failed = run.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
            (attributes(&run.attributes), steps, failed)
        };
        let (told, steps, failed) = run("good");
        let expected =
            [("namespace", ns.name.as_str()), ("source", "oauth2"), ("why", "first value"), ("outcome", "success")];
        expected.iter().for_each(|(key, value)| assert_eq!(told.get(*key).map(String::as_str), Some(*value), "{key}"));
        assert!(steps.is_superset(&["acquire", "fetch", "release", "report", "write"].into()), "{steps:?}");
        assert!(!failed);
        let (told, steps, failed) = run("bad");
        assert_eq!((told["outcome"].as_str(), told["reason"].as_str()), ("failure", "Rejected"));
        assert!(failed && !steps.contains("write") && steps.contains("release"), "{steps:?}");

        for body in collector.bodies() {
            let holds = |secret: &str| body.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!holds(&token) && !holds(&server.options().client_secret));
        }
    });
}
