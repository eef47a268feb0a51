//! What is counted. No label is unbounded: none names a host or a message, and objects are named only by gauges that
//! go with them.

mod format;
mod gauges;

use std::time::Duration;

use kube::client::Body;
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode, encode_registry},
    },
    metrics::{counter::Counter, family::Family, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

pub use format::Format;
pub use gauges::Standing;

use self::{format::PrometheusWriter, gauges::Gauges};
use crate::{api::reason::Reason, k8s::object::ObjectKey};

/// The metrics of a process. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: std::sync::Arc<Registry>,
    fetches: Family<Fetch, Counter>,
    durations: Family<Source, Histogram, fn() -> Histogram>,
    acquisitions: Family<Acquisition, Counter>,
    requests: Family<Request, Counter>,
    refused_connections: Family<At, Counter>,
    gauges: Gauges,
}

/// A port of the controller.
#[derive(Clone, Copy, Debug)]
pub enum Port {
    /// For `/livez` and `/readyz`.
    Probes,
    /// For `/metrics`.
    Metrics,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct At {
    port: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Fetch {
    source: &'static str,
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Acquisition {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    verb: &'static str,
    resource: &'static str,
}

const SECONDS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("tokencache");
        let fetches = Family::default();
        registry.register("fetches", "Fetches that ended", fetches.clone());
        let durations: Family<_, _, fn() -> Histogram> = Family::new_with_constructor(|| Histogram::new(SECONDS));
        registry.register_with_unit("fetch_duration", "How long fetches took", Unit::Seconds, durations.clone());
        let acquisitions = Family::default();
        registry.register("lock_acquisitions", "Attempts to take a Lease", acquisitions.clone());
        let requests = Family::default();
        registry.register("api_requests", "Requests sent to the Kubernetes API server", requests.clone());
        let refused_connections = Family::default();
        let help = "Connections that were closed at once, since there were too many";
        registry.register("refused_connections", help, refused_connections.clone());
        registry.register("build", "The version of this program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let gauges = Gauges::default();
        registry.register_collector(Box::new(gauges.clone()));
        Self { registry: registry.into(), fetches, durations, acquisitions, requests, refused_connections, gauges }
    }
}

impl Metrics {
    /// Counts a fetch that ended.
    pub fn fetched(&self, source: &'static str, result: Result<(), Reason>, took: Duration) {
        let (result, reason) = match result {
            Ok(()) => ("success", Reason::Fetched.as_str()),
            Err(reason) => ("failure", reason.as_str()),
        };
        self.fetches.get_or_create(&Fetch { source, result, reason }).inc();
        self.durations.get_or_create(&Source { source }).observe(took.as_secs_f64());
    }

    /// Counts an attempt to take a Lease: `acquired`, `busy` or `error`.
    pub fn acquisition(&self, outcome: &'static str) {
        self.acquisitions.get_or_create(&Acquisition { outcome }).inc();
    }

    /// Counts a request to the Kubernetes API server.
    pub fn request(&self, request: &http::Request<Body>) {
        let (resource, named) = resource(request.uri().path());
        let watch = request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let verb = match request.method().as_str() {
            "GET" if watch => "watch",
            "GET" if named => "get",
            "GET" => "list",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            _ => "other",
        };
        self.requests.get_or_create(&Request { verb, resource }).inc();
    }

    /// Counts connections to a port that were refused.
    #[must_use]
    pub fn refused_connections(&self, port: Port) -> Counter {
        let port = match port {
            Port::Probes => "probes",
            Port::Metrics => "metrics",
        };
        self.refused_connections.get_or_create_owned(&At { port })
    }

    /// From now on, each scrape asks this for TokenCaches that are looked after.
    pub fn tell_of(&self, objects: impl Fn() -> Vec<(ObjectKey, Standing)> + Send + Sync + 'static) {
        self.gauges.add_objects(Box::new(objects));
    }

    /// From now on, each scrape asks for this value, under `tokencache_` and this name.
    pub fn measure(&self, name: &'static str, help: &'static str, value: impl Fn() -> i64 + Send + Sync + 'static) {
        self.gauges.add_value(name, help, Box::new(value));
    }

    /// All metrics in a text format.
    #[must_use]
    pub fn text(&self, format: Format) -> String {
        // Writing to memory does not fail.
        match format {
            Format::OpenMetrics => {
                let mut text = String::new();
                let _ = encode(&mut text, &self.registry);
                text
            }
            Format::Prometheus => {
                let mut writer = PrometheusWriter::default();
                let _ = encode_registry(&mut writer, &self.registry);
                writer.into_text()
            }
        }
    }
}

/// The resource that a path of the API names, and whether it names one object of it.
fn resource(path: &str) -> (&'static str, bool) {
    const KNOWN: [&str; 9] =
        ["tokencaches", "secrets", "configmaps", "leases", "events", "namespaces", "jobs", "pods", "serviceaccounts"];
    let mut parts = path.split('/').skip_while(|part| !matches!(*part, "api" | "apis"));
    let skip = if parts.next() == Some("apis") { 2 } else { 1 };
    let mut parts = parts.skip(skip).peekable();
    let mut first = parts.next().unwrap_or_default();
    if first == "namespaces" {
        let _namespace = parts.next();
        if let Some(part) = parts.next() {
            first = part;
        }
    }
    let named = parts.next().is_some();
    match (first, parts.next()) {
        ("tokencaches", Some("status")) => ("tokencaches/status", named),
        (first, _) => (KNOWN.into_iter().find(|known| *known == first).unwrap_or("other"), named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixtures;

    #[test]
    fn a_token_cache_is_told_of_while_it_is_there_and_no_longer() {
        let metrics = Metrics::default();
        let known = std::sync::Arc::new(parking_lot::Mutex::new(vec![]));
        let shared = known.clone();
        metrics.tell_of(move || {
            shared.lock().iter().map(|cache| (("ns".into(), "a".into()), Standing::of(cache))).collect()
        });
        metrics.measure("queue_depth", "Runs that wait", || 3);
        let text = || metrics.text(Format::Prometheus);
        assert!(!text().contains("namespace="), "{}", text());

        let status = serde_json::json!({
            "runs": 1, "failures": 2, "expiresAt": "2026-01-02T03:04:05Z", "refreshAt": "2026-01-02T03:00:59Z",
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Fetched", "message": "",
                "lastTransitionTime": "2026-01-02T03:00:00Z",
            }, {
                "type": "Stalled", "status": "True", "reason": "InvalidSpec", "message": "",
                "lastTransitionTime": "2026-01-02T03:00:00Z",
            }],
        });
        known.lock().push(fixtures::cache(serde_json::json!({}), status));
        let told = text();
        let object = r#"{namespace="ns",name="a"}"#;
        for line in [
            format!("tokencache_ready{object} 1"),
            format!("tokencache_failures{object} 2"),
            r#"tokencache_stalled{namespace="ns",name="a",reason="InvalidSpec"} 1"#.to_owned(),
            format!("tokencache_expiration_timestamp_seconds{object} 1767323100"),
            format!("tokencache_refresh_timestamp_seconds{object} 1767322800"),
            r#"tokencache_info{namespace="ns",name="a",source="oauth2",policy="Eager",suspended="false"} 1"#.to_owned(),
            "tokencache_queue_depth 3".to_owned(),
            format!("tokencache_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
        ] {
            assert!(told.lines().any(|found| found == line), "{line} is not in\n{told}");
        }
        known.lock().clear();
        assert!(!text().contains("namespace="), "{}", text());
    }

    #[test]
    fn a_path_names_its_resource() {
        for (path, expected) in [
            ("/api/v1/secrets", ("secrets", false)),
            ("/api/v1/namespaces/a/secrets/b", ("secrets", true)),
            ("/apis/tokencache.dev/v1alpha1/tokencaches", ("tokencaches", false)),
            ("/apis/tokencache.dev/v1alpha1/namespaces/a/tokencaches/b", ("tokencaches", true)),
            ("/apis/tokencache.dev/v1alpha1/namespaces/a/tokencaches/b/status", ("tokencaches/status", true)),
            ("/apis/coordination.k8s.io/v1/namespaces/a/leases/b", ("leases", true)),
            ("/apis/events.k8s.io/v1/namespaces/a/events", ("events", false)),
            ("/k8s/clusters/x/api/v1/namespaces/a/configmaps/b", ("configmaps", true)),
            ("/apis/batch/v1/namespaces/a/jobs", ("jobs", false)),
            ("/api/v1/namespaces/a/pods", ("pods", false)),
            ("/version", ("other", false)),
        ] {
            assert_eq!(resource(path), expected, "{path}");
        }
    }
}
