//! `/livez`, `/readyz` and `/metrics`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
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
use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::metrics::{Format, Metrics};

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
    let listener = listen(address)?;
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

/// Listens on an address; on `[::]` for IPv4 as well as for IPv6, and for IPv4 alone where the machine has no IPv6.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
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

async fn metrics_text(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> impl IntoResponse {
    let format = Format::preferred(headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()));
    // Of very many TokenCaches it takes long, and runs are to go on meanwhile.
    let text = tokio::task::spawn_blocking(move || admin.metrics.text(format)).await;
    text.map(|text| ([(CONTENT_TYPE, format.content_type())], text)).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn readyz(State(admin): State<Arc<Admin>>) -> (StatusCode, String) {
    match &*admin.readiness.borrow() {
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
}
