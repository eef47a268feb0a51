//! A watch of one TokenCache, for all who wait for its next run.

use std::{pin::pin, sync::Arc};

use futures::StreamExt as _;
use kube::runtime::watcher;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use super::{Cache, Client, Error};
use crate::k8s::{
    error::{message, watch_message},
    watch::watch_one,
};

/// The TokenCache as the watch has it: nothing before the first list, and then whether it exists, and when that came.
type Seen = Option<(Instant, Result<Option<Arc<Cache>>, Error>)>;

/// Watches until it is dropped.
#[derive(Debug)]
pub(super) struct Follow {
    /// All that it shows was read since.
    pub(super) since: Instant,
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follow {
    pub(super) fn start(client: Client, name: String) -> Self {
        let ((sender, seen), since) = (watch::channel(None), Instant::now());
        let task = tokio::spawn(async move {
            let mut changes = pin!(watch_one(client.api::<Cache>(), &name));
            while let Some(change) = changes.next().await {
                // A watch that breaks off is taken up again; one that is forbidden stays so.
                let news = match change {
                    Ok(cache) => Ok(Ok(cache.map(Arc::new))),
                    Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) => {
                        match client.call("list and watch", "tokencaches", &name, "fetch").refused(error) {
                            Error::Api(error) => Err(message(&error)),
                            refused => Ok(Err(refused)),
                        }
                    }
                    Err(error) => Err(watch_message(&error)),
                };
                match news {
                    Ok(news) => drop(sender.send_replace(Some((Instant::now(), news)))),
                    Err(error) => tracing::debug!(name, error, "the watch of a TokenCache is taken up again"),
                }
            }
        });
        Self { since, seen, task }
    }

    /// Waits until the TokenCache, or that there is none, says something, and tells when that came.
    pub(super) async fn until<T>(&self, pick: impl Fn(Option<&Cache>) -> Option<T>) -> Result<(Instant, T), Error> {
        let mut seen = self.seen.clone();
        loop {
            match &*seen.borrow_and_update() {
                Some((came, Ok(cache))) => {
                    if let Some(picked) = pick(cache.as_deref()) {
                        return Ok((*came, picked));
                    }
                }
                Some((_, Err(error))) => return Err(error.clone()),
                None => {}
            }
            if seen.changed().await.is_err() {
                // The watch never ends by itself; whoever waits does so within a time limit.
                std::future::pending::<()>().await;
            }
        }
    }
}
