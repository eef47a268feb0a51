//! What may stand between the controller and a server.

use std::{net::SocketAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::in_background;

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// An address behind which servers can change.
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
}

impl Relay {
    /// One that leads to this server.
    pub async fn start(target: SocketAddr) -> Self {
        let (listener, address) = listen().await;
        let target = Arc::new(Mutex::new(target));
        let current = target.clone();
        in_background(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let target = *current.lock();
                in_background(async move {
                    if let Ok(mut server) = TcpStream::connect(target).await {
                        // Either side may end as it likes.
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { address, target }
    }

    /// From now on, new connections lead to that server.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.target.lock() = target;
    }
}

/// An HTTP proxy that opens tunnels (RFC 9110 §9.3.6) to who shows its password.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// One for this user and password.
    pub async fn start(user: &str, password: &str) -> Self {
        let (listener, address) = listen().await;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (keep, credentials) = (asked.clone(), STANDARD.encode(format!("{user}:{password}")));
        in_background(async move {
            while let Ok((client, _)) = listener.accept().await {
                in_background(tunnel(client, keep.clone(), credentials.clone()));
            }
        });
        Self { address, asked }
    }

    /// The servers that it has opened tunnels to.
    pub fn tunnels(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

async fn tunnel(mut client: TcpStream, asked: Arc<Mutex<Vec<String>>>, credentials: String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned();
    let shown = head.lines().filter_map(|line| line.split_once(": ")).any(|(name, value)| {
        name.eq_ignore_ascii_case("proxy-authorization") && value.strip_prefix("Basic ") == Some(&credentials)
    });
    if !shown {
        // The client has gone by then, or has not: both are fine.
        let _ = client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
        return;
    }
    let Ok(mut server) = TcpStream::connect(&target).await else { return };
    asked.lock().push(target);
    if client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.is_ok() {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
