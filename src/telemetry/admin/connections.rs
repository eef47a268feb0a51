//! Connections from strangers: limited in number, in all and from one address, and in time.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Connections at a time, and of these from one address: who floods a port from one pod does not lock the others out.
const MOST: usize = 256;
const MOST_OF_ONE: usize = 16;

/// How long a client may take for the headers of its request, and for all of it.
const HEADERS: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(30);

/// The open connections of one port.
#[derive(Clone, Debug, Default)]
struct Open(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them. Dropping it makes room for another.
#[derive(Debug)]
struct Slot(Open, IpAddr);

impl Open {
    fn admit(&self, address: IpAddr) -> Option<Slot> {
        // An IPv4 client of a socket for both is seen as ::ffff:a.b.c.d.
        let address = address.to_canonical();
        let mut open = self.0.lock();
        let of_this = open.get(&address).copied().unwrap_or_default();
        if of_this >= MOST_OF_ONE || open.values().sum::<usize>() >= MOST {
            return None;
        }
        open.insert(address, of_this + 1);
        Some(Slot(self.clone(), address))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.0.0.lock();
        if let Some(of_this) = open.get_mut(&self.1) {
            *of_this -= 1;
            if *of_this == 0 {
                open.remove(&self.1);
            }
        }
    }
}

/// Serves until `stop`: one request for each connection. `refused` counts the connections that are closed at once, since
/// there are too many.
pub(super) async fn serve(listener: TcpListener, router: Router, refused: Counter, stop: CancellationToken) {
    let open = Open::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted.map(|(stream, address)| (stream, open.admit(address.ip()))) {
            Ok((stream, Some(slot))) => drop(tokio::spawn(answer(stream, router.clone(), slot))),
            Ok((_, None)) => {
                refused.inc();
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Without file descriptors it would fail again at once.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router, _slot: Slot) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(WHOLE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended early"),
        Err(_) => tracing::debug!("a client took too long"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Ipv4Addr, TcpStream},
    };

    use axum::routing::get;

    use super::*;

    #[test]
    fn connections_are_limited_in_all_and_from_one_address() {
        let open = Open::default();
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let of_one: Vec<_> = (0..MOST_OF_ONE).map(|_| open.admit(address(0)).expect("there is room")).collect();
        let mapped = "::ffff:10.0.0.0".parse().expect("an address");
        assert!(open.admit(address(0)).is_none() && open.admit(mapped).is_none());
        let others: Vec<_> = (1..=255).map_while(|n| open.admit(address(n))).collect();
        assert_eq!(of_one.len() + others.len(), MOST);
        drop(of_one);
        assert!(open.admit(address(0)).is_some());
        drop(others);
        assert!(open.0.lock().is_empty(), "nothing is kept of connections that ended");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn idle_connections_of_one_client_are_refused_and_end() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (refused, stop) = (Counter::default(), CancellationToken::new());
        let router = Router::new().route("/livez", get(|| async { "ok" }));
        tokio::spawn(serve(listener, router, refused.clone(), stop.clone()));
        let tried = tokio::task::spawn_blocking(move || {
            let connect = || TcpStream::connect(address).expect("a connection");
            let idle: Vec<_> = (0..MOST_OF_ONE).map(|_| connect()).collect();
            let mut text = String::new();
            // The system accepts it; then it is closed.
            let mut one_more = connect();
            let _ = one_more.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
            let _ = one_more.read_to_string(&mut text);
            assert_eq!(text, "", "there is no room");
            // They have sent nothing, so they are closed, and there is room again.
            for mut stream in idle {
                stream.set_read_timeout(Some(WHOLE)).expect("a limit");
                let read = stream.read(&mut [0; 1024]);
                assert!(matches!(read, Ok(0)), "{read:?}");
            }
            let mut after = connect();
            after.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").expect("it is open");
            after.read_to_string(&mut text).expect("an answer, and the end of the connection");
            text
        });
        let text = tried.await.expect("no assertion failed");
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("ok"), "{text}");
        assert_eq!(refused.get(), 1);
        stop.cancel();
    }
}
