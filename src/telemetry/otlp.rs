//! Traces of runs by OTLP, the OpenTelemetry Protocol, over HTTP: one span for each run, and one for each of its steps.
//!
//! Spans name the TokenCache, its source, why it was run and how it ended; no message, host or value.

use std::time::Duration;

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::Subscriber;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

/// How long the end of the program waits for the last spans to be sent.
const LAST: Duration = Duration::from_secs(1);

/// Sends spans to a collector.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// To the collector at this base URL (`http://collector:4318`), as this replica. The standard's environment variables,
    /// such as `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_EXPORTER_OTLP_TIMEOUT`, are heeded.
    ///
    /// # Errors
    /// When that is no URL.
    pub fn to(endpoint: &str, replica: String) -> Result<Self, ExporterBuildError> {
        let traces = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let exporter = SpanExporter::builder().with_http().with_endpoint(traces).build()?;
        let resource = Resource::builder().with_service_name("tokencache").with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", replica),
        ]);
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
        Ok(Self(provider.build()))
    }

    /// What takes this program's spans, and nothing of what is logged.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let tracer = self.0.tracer("tokencache");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
        layer.with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("tokencache")))
    }

    /// Sends what is left, for a second at most.
    pub async fn end(self) {
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}
