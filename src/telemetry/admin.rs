//! `/livez` and `/readyz` on one port, `/metrics` on another.

mod connections;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
};
use bytes::Bytes;
use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{Mutex, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::telemetry::metrics::{Format, Metrics, Port};

/// What the controller waits for; nothing when it is at work.
pub type Readiness = watch::Sender<Option<String>>;

/// A readiness that waits for the start.
#[must_use]
pub fn starting() -> Readiness {
    watch::Sender::new(Some("starting".into()))
}

/// A text for each [`Format`], and when it was made.
type Pages = [Option<(Bytes, Instant)>; 2];

#[derive(Clone)]
struct Exporter {
    metrics: Metrics,
    /// The lock is held while a text is made.
    pages: Arc<Mutex<Pages>>,
    max_age: Duration,
}

/// Serves `/livez` and `/readyz` until `stop`.
///
/// # Errors
/// When the address is not known.
pub fn serve_probes(
    listener: TcpListener,
    readiness: &Readiness,
    metrics: &Metrics,
    stop: CancellationToken,
) -> std::io::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "serving probes");
    let refused = metrics.refused_connections(Port::Probes);
    tokio::spawn(connections::serve(listener, probes(readiness), refused, stop));
    Ok(())
}

/// Serves `/metrics` until `stop`. A text is sent again until it is older than `max_age`. Probes are answered as well, for
/// pods whose definition is older than the port for probes.
///
/// # Errors
/// When the address is not known.
pub fn serve_metrics(
    listener: TcpListener,
    readiness: &Readiness,
    metrics: &Metrics,
    max_age: Duration,
    stop: CancellationToken,
) -> std::io::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "serving metrics");
    let ready = readiness.subscribe();
    metrics.measure("controller_ready", "Whether this replica is at work", move || ready.borrow().is_none().into());
    let refused = metrics.refused_connections(Port::Metrics);
    let exporter = Exporter { metrics: metrics.clone(), pages: Arc::default(), max_age };
    let router = Router::new().route("/metrics", get(metrics_text)).with_state(exporter).merge(probes(readiness));
    tokio::spawn(connections::serve(listener, router, refused, stop));
    Ok(())
}

fn probes(readiness: &Readiness) -> Router {
    let livez = get(|| async { "ok" });
    Router::new().route("/livez", livez).route("/readyz", get(readyz)).with_state(readiness.subscribe())
}

/// Listens on an address; on `[::]` for IPv4 as well as for IPv6, and for IPv4 alone where the machine has no IPv6.
///
/// # Errors
/// When the address cannot be bound.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let all = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match bind(address) {
        Err(error) if all && no_ipv6(&error) => bind((Ipv4Addr::UNSPECIFIED, address.port()).into()),
        bound => bound,
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() {
        // The system's default may be another one.
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    // A port can be used again while connections of an earlier process are still in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Whether the kernel has no IPv6, or no address of it.
fn no_ipv6(error: &std::io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

async fn metrics_text(State(exporter): State<Exporter>, headers: HeaderMap) -> impl IntoResponse {
    let format = Format::preferred(headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    let text = exporter.text(format).await.ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok::<_, StatusCode>(([(CONTENT_TYPE, format.content_type())], text))
}

impl Exporter {
    /// All metrics, made one at a time: of very many TokenCaches that takes long.
    async fn text(&self, format: Format) -> Option<Bytes> {
        let index = match format {
            Format::OpenMetrics => 0,
            Format::Prometheus => 1,
        };
        let mut pages = self.pages.clone().lock_owned().await;
        if let Some((text, made)) = &pages[index]
            && made.elapsed() < self.max_age
        {
            return Some(text.clone());
        }
        let metrics = self.metrics.clone();
        // Also where nobody waits for it any more, the next text is begun only after this one.
        let made = tokio::task::spawn_blocking(move || {
            let text = Bytes::from(metrics.text(format));
            pages[index] = Some((text.clone(), Instant::now()));
            text
        });
        made.await.ok()
    }
}

async fn readyz(State(readiness): State<watch::Receiver<Option<String>>>) -> (StatusCode, String) {
    match &*readiness.borrow() {
        None => (StatusCode::OK, "ok".into()),
        Some(waiting) => (StatusCode::SERVICE_UNAVAILABLE, waiting.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn all_addresses_are_those_of_ipv4_and_ipv6() {
        let listener = listen("[::]:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).is_ok());
        // Without IPv6 on the machine, IPv4 alone.
        assert!(address.is_ipv4() || TcpStream::connect((Ipv6Addr::LOCALHOST, address.port())).is_ok());
        assert!(listen(address).is_err(), "the port is taken");
    }

    #[tokio::test]
    async fn a_text_is_sent_again_until_it_is_too_old() {
        let metrics = Metrics::default();
        let asked = Arc::new(std::sync::atomic::AtomicI64::new(0));
        let count = asked.clone();
        metrics.measure("asked", "How often", move || count.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
        let exporter = |max_age| Exporter { metrics: metrics.clone(), pages: Arc::default(), max_age };
        let asked = || asked.load(std::sync::atomic::Ordering::SeqCst);
        let kept = exporter(Duration::from_secs(3600));
        let first = kept.text(Format::Prometheus).await;
        let others = futures::future::join_all([(); 20].map(|()| kept.text(Format::Prometheus))).await;
        assert!(first.is_some() && others.iter().all(|text| *text == first));
        assert_eq!(asked(), 1);
        assert_ne!(kept.text(Format::OpenMetrics).await, first, "another format is another text");
        assert_eq!(kept.text(Format::Prometheus).await, first, "which does not displace it");
        let never = exporter(Duration::ZERO);
        assert_ne!(never.text(Format::Prometheus).await, never.text(Format::Prometheus).await);
        assert_eq!(asked(), 4);
    }
}
