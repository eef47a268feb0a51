//! `fetch --direct`: what a controller would do for one TokenCache, here, for as long as its value is waited for.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio_util::sync::CancellationToken;

use super::{consumer::Consumer, runner};
use crate::{
    api::TokenCache,
    client::{Error, Value},
    metrics::Metrics,
    peers::PASSING,
    run::{Ran, Runner},
};

/// A Lease that somebody else holds is looked at again after this time at most.
const BUSY: Duration = Duration::from_millis(500);

/// Runs what is asked for while a value is waited for. Whoever has the Lease runs; the others find its value.
pub(super) async fn beside(
    consumer: &Consumer,
    name: &str,
    flags: runner::Flags,
    fetch: impl Future<Output = Result<Arc<Value>, Error>>,
) -> anyhow::Result<Result<Arc<Value>, Error>> {
    let identity = format!("{PASSING}{}", flags.identity()?);
    let runner = flags.runner(consumer.kube.clone(), consumer.clock.clone(), identity, Metrics::default())?;
    let caches = Api::namespaced(consumer.kube.clone(), &consumer.namespace);
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(runner, caches, name.to_owned(), stop.clone()));
    let fetched = tokio::select! {
        fetched = fetch => fetched,
        _ = tokio::signal::ctrl_c() => {
            Err(Error::Failed { reason: "Cancelled".into(), message: "interrupted".into() })
        }
    };
    // A run that goes on is cancelled, and one that has ended releases its Lease.
    stop.cancel();
    match (serving.await?, fetched) {
        // What kept it from running says more than that it was waited for in vain.
        (Some(error), Err(Error::Timeout { .. })) => Ok(Err(Error::Failed { reason: "NotRun".into(), message: error })),
        (_, fetched) => Ok(fetched),
    }
}

/// Runs whenever a request stands, until it is stopped. Gives what kept the last attempt from running.
async fn serve(runner: Runner, caches: Api<TokenCache>, name: String, stop: CancellationToken) -> Option<String> {
    let mut changes = pin!(watcher::watch_object(caches, &name).default_backoff());
    let mut hindrance = None;
    let mut wanted: Option<TokenCache> = None;
    let mut pause = Duration::MAX;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return hindrance,
            change = changes.next() => match change {
                Some(Ok(cache)) => wanted = cache,
                Some(Err(error)) => hindrance = Some(error.to_string()),
                None => return hindrance,
            },
            () = tokio::time::sleep(pause) => {}
        }
        let requested = |cache: &&TokenCache| cache.status.as_ref().is_some_and(|s| s.refresh_requested.is_some());
        let Some(cache) = wanted.as_ref().filter(requested) else {
            pause = Duration::MAX;
            continue;
        };
        pause = match runner.run(cache, None, &stop).await {
            Ok(Ran::Busy { retry_in, .. }) => retry_in.min(BUSY),
            Ok(Ran::Cancelled) => return hindrance,
            // The watch brings what was reported.
            Ok(Ran::Done | Ran::NotNeeded) => {
                hindrance = None;
                BUSY
            }
            Err(error) => {
                hindrance = Some(error.to_string());
                BUSY
            }
        };
    }
}
