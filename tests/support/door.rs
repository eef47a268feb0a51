//! The way to a server, which can be closed: connections break, and new ones are refused.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::in_background;

/// A door that stands open at first.
pub struct Door {
    /// Where it is, open or closed.
    pub address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Door {
    /// A door before this server.
    pub async fn start(server: SocketAddr) -> Self {
        let mut listening = listen(free_port());
        let address = listening.local_addr().expect("an address");
        let (open, mut turns) = watch::channel(true);
        in_background(async move {
            loop {
                let mut connections = JoinSet::new();
                let serve = async {
                    while let Ok((client, _)) = listening.accept().await {
                        connections.spawn(pass(client, server));
                    }
                };
                tokio::select! {
                    () = serve => {}
                    closed = turns.wait_for(|open| !open) => if closed.is_err() { return },
                }
                // With them go the connections.
                drop((listening, connections));
                // The port stays ours; where nobody listens, connections are refused.
                let closed = bind(address).expect("a port");
                if turns.wait_for(|open| *open).await.is_err() {
                    return;
                }
                listening = listen(closed);
            }
        });
        Self { address, open }
    }

    /// Opens or closes it.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

/// A port that the kernel gives to nobody who asks for any: while the door is closed, nobody listens there.
fn free_port() -> TcpSocket {
    let ports = std::iter::repeat_with(|| rand::random_range(10_000..32_768));
    let bound = ports.take(1000).find_map(|port: u16| bind(([127, 0, 0, 1], port).into()).ok());
    bound.expect("a port")
}

/// Also where connections to this address linger.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(socket: TcpSocket) -> TcpListener {
    socket.listen(1024).expect("it listens")
}

async fn pass(mut client: TcpStream, server: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(server).await {
        // Either side may end as it likes.
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
