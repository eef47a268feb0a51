//! `/livez`, `/readyz` and `/metrics`.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the controller waits for; nothing when it is at work.
pub type Readiness = watch::Sender<Option<String>>;

/// A readiness that waits for the start.
#[must_use]
pub fn starting() -> Readiness {
    watch::Sender::new(Some("starting".into()))
}

#[derive(Clone)]
struct Admin {
    readiness: watch::Receiver<Option<String>>,
    metrics: Metrics,
}

/// Binds the address, and serves until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    readiness: &Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) -> std::io::Result<tokio::task::JoinHandle<()>> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let ready = readiness.subscribe();
    metrics.measure("controller_ready", "Whether this replica is at work", move || ready.borrow().is_none().into());
    let admin = Arc::new(Admin { readiness: readiness.subscribe(), metrics });
    let router = Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(admin);
    tracing::info!(%address, "admin server listening");
    Ok(tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin server ended");
        }
    }))
}

async fn metrics_text(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    // Of very many TokenCaches it takes long, and runs are to go on meanwhile.
    let text = tokio::task::spawn_blocking(move || admin.metrics.text()).await;
    text.map(|text| ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    match &*admin.readiness.borrow() {
        None => (StatusCode::OK, "ok".into()),
        Some(waiting) => (StatusCode::SERVICE_UNAVAILABLE, waiting.clone()),
    }
}
