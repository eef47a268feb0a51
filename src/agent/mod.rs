//! `tokencache agent`: values for the programs beside it, as files and over HTTP, kept fresh.
//!
//! [`targets`] says what is kept and where, [`decide`] what is to be done now; both are pure. [`disk`] writes files,
//! [`notify`] tells others of another value, [`listen`] and `serve` answer requests, and [`health`] how it all fares.
//! Where a value comes from is the [`client`](crate::client)'s affair.

pub mod decide;
pub mod disk;
pub mod health;
pub mod listen;
pub mod notify;
mod serve;
mod sync_files;
pub mod targets;

use std::{collections::BTreeMap, io, sync::Arc};

use tokio::{
    sync::{Mutex, watch},
    task::JoinSet,
};

use self::{
    health::Board,
    listen::{Address, Bound, SocketMode},
    notify::Tell,
    sync_files::Keeper,
    targets::{Mode, Targets},
};
use crate::{
    client::{Client, Handle},
    time::Clock,
};

/// What an agent does.
#[derive(Debug)]
pub struct Settings {
    /// What is kept, and where.
    pub targets: Targets,
    /// Permissions of the files.
    pub mode: Mode,
    /// Whether files go when their value is no longer valid.
    pub remove_expired: bool,
    /// Who is told of another value.
    pub tell: Option<Tell>,
    /// Where requests are answered.
    pub listen: Vec<Address>,
    /// Who may use the Unix sockets.
    pub socket_mode: SocketMode,
}

/// An agent at work. Ends when it is dropped.
#[derive(Debug)]
pub struct Running {
    board: Board,
    tasks: JoinSet<()>,
}

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct Unbound {
    address: Address,
    error: io::Error,
}

/// Starts an agent.
///
/// # Errors
/// When an address cannot be listened on.
pub async fn start(client: Client, settings: Settings, clock: Clock) -> Result<Running, Unbound> {
    let board = Board::new(settings.targets.keys());
    let mut tasks = JoinSet::new();
    let bound = bind(&settings).await?;
    let handles: BTreeMap<String, Handle> =
        settings.targets.keys().map(|name| (name.clone(), client.watch(name))).collect();
    let agent = serve::Agent { client, handles: handles.clone(), board: board.clone(), clock: clock.clone() };
    let agent = Arc::new(agent);
    for bound in bound {
        tasks.spawn(serve(bound, agent.clone()));
    }

    let tell = settings.tell.map(Arc::new);
    let turn = Arc::new(Mutex::new(()));
    for (name, targets) in settings.targets {
        let Some(handle) = handles.get(&name).cloned() else { continue };
        let news = watch::Sender::new(0);
        if let Some(tell) = &tell {
            tasks.spawn(sync_files::tell(
                name,
                targets.clone(),
                tell.clone(),
                turn.clone(),
                news.subscribe(),
                board.clone(),
            ));
        }
        let (mode, remove_expired) = (settings.mode, settings.remove_expired);
        let (tells, board, clock) = (tell.is_some(), board.clone(), clock.clone());
        let keeper = Keeper { handle, targets, mode, remove_expired, tells, board, clock, news };
        tasks.spawn(keeper.keep());
    }
    Ok(Running { board, tasks })
}

async fn bind(settings: &Settings) -> Result<Vec<Bound>, Unbound> {
    let mut all = Vec::new();
    for address in &settings.listen {
        let bound = listen::bind(address, settings.socket_mode).await;
        let bound = bound.map_err(|error| Unbound { address: address.clone(), error })?;
        let address = match &bound {
            Bound::Loopback(listener) => listener.local_addr().map_or(address.clone(), Address::Loopback),
            Bound::Socket(..) => address.clone(),
        };
        tracing::info!(%address, "listening");
        all.push(bound);
    }
    Ok(all)
}

async fn serve(bound: Bound, agent: Arc<serve::Agent>) {
    let served = match bound {
        Bound::Loopback(listener) => axum::serve(listener, serve::router(agent, true)).await,
        Bound::Socket(listener, _remove) => axum::serve(listener, serve::router(agent, false)).await,
    };
    if let Err(error) = served {
        tracing::error!(%error, "HTTP server stopped");
    }
}

impl Running {
    /// Waits until all values are in their files.
    pub fn all_written(&self) -> impl Future<Output = ()> + use<> {
        let board = self.board.clone();
        async move { board.all_written().await }
    }

    /// Ends it, and waits until it has: files that are being written are whole, and sockets are removed.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Waits for as long as it runs: one of its tasks ends only by a fault.
    pub async fn ended(&mut self) {
        let _ = self.tasks.join_next().await;
    }
}
