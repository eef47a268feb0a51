//! `fetch --direct`: what a controller would do for one TokenCache, here, for as long as its value is waited for.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::StreamExt as _;
use kube::Api;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    consumer::Consumer,
    runner::{self, LAST_MOMENT},
    signals::Signals,
};
use crate::{
    api::TokenCache,
    client::{Error, Value},
    controller::preferred_replica::PASSING,
    k8s::watch::watch_one,
    reconcile::{
        observe::Watched,
        run::{RunOutcome, Runner},
    },
    telemetry::metrics::Metrics,
};

/// A Lease that somebody else holds is looked at again after this time at most.
const BUSY: Duration = Duration::from_millis(500);

/// Runs what is asked for while a value is waited for. Whoever has the Lease runs; the others find its value. A signal
/// ends it.
pub(super) async fn beside(
    consumer: &Consumer,
    name: &str,
    flags: runner::Flags,
    mut signals: Signals,
    fetch: impl Future<Output = Result<Arc<Value>, Error>>,
) -> anyhow::Result<Result<Arc<Value>, Error>> {
    let identity = format!("{PASSING}{}", flags.identity()?);
    let runner = flags.runner(consumer.kube.clone(), consumer.clock.clone(), identity, Metrics::default())?;
    let caches = Api::namespaced(consumer.kube.clone(), &consumer.namespace);
    let (stop, stopping) = (CancellationToken::new(), runner.fetcher.stopping().clone());
    let serving = tokio::spawn(serve(runner, caches, name.to_owned(), stop.clone()));
    let (fetched, signalled) = tokio::select! {
        fetched = fetch => (fetched, false),
        signal = signals.next() => (Err(interrupted(format!("interrupted by {}", signal.name()))), true),
    };
    // A run that goes on is cancelled, and one that has ended releases its Lease.
    stopping.cancel();
    stop.cancel();
    match (ended(serving, &mut signals, signalled).await?, fetched) {
        (End::Unfinished, Err(_)) => Ok(Err(interrupted(
            "interrupted before the fetch had ended: its Lease expires by itself, and a refresh token that the server \
             has replaced may be lost"
                .into(),
        ))),
        // What kept it from running says more than that it was waited for in vain.
        (End::Finished(Some(error)), Err(Error::Timeout { .. })) => {
            Ok(Err(Error::Failed { reason: "NotRun".into(), message: error }))
        }
        (_, fetched) => Ok(fetched),
    }
}

fn interrupted(message: String) -> Error {
    Error::Failed { reason: "Cancelled".into(), message }
}

/// How the runs here ended.
enum End {
    /// By themselves; what kept the last attempt from running.
    Finished(Option<String>),
    /// They were cut off.
    Unfinished,
}

/// Waits for the end of what was cancelled: for a rotated refresh token, until it is written. After a signal, for a
/// limited time, and until the next signal.
async fn ended(mut serving: JoinHandle<Option<String>>, signals: &mut Signals, signalled: bool) -> anyhow::Result<End> {
    if !signalled {
        tokio::select! {
            finished = &mut serving => return Ok(End::Finished(finished?)),
            _ = signals.next() => {}
        }
    }
    tokio::select! {
        finished = timeout(LAST_MOMENT, serving) => match finished {
            Ok(finished) => Ok(End::Finished(finished?)),
            Err(_) => Ok(End::Unfinished),
        },
        _ = signals.again() => Ok(End::Unfinished),
    }
}

/// Runs whenever a request stands, until it is stopped. Gives what kept the last attempt from running.
async fn serve(runner: Runner, caches: Api<TokenCache>, name: String, stop: CancellationToken) -> Option<String> {
    let mut changes = pin!(watch_one(caches, &name));
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
        pause = match runner.run(cache, &Watched::default(), &stop).await {
            Ok(RunOutcome::Cancelled) => return hindrance,
            // The watch brings what was reported.
            Ok(RunOutcome::Finished | RunOutcome::NotNeeded) => {
                hindrance = None;
                BUSY
            }
            Ok(outcome) => outcome.retry_in().unwrap_or(BUSY).min(BUSY),
            Err(error) => {
                hindrance = Some(error.to_string());
                BUSY
            }
        };
    }
}
