//! The controller: waits for the CRD, watches, and tends each TokenCache until it is told to stop.

mod api_outage;
mod books;
mod concurrency;
mod confirm;
mod contact;
mod doubt;
mod finalizer;
mod former;
pub(crate) mod preferred_replica;
mod reconcile;
pub(crate) mod reference_index;
mod restarts;
mod run_queue;
mod store;
mod undecodable;
mod untrue;
mod watch;

use std::time::Duration;

use kube::{Api, Client, api::ListParams};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

#[cfg(test)]
pub(crate) use self::store::{Kept, Sent};
pub use contact::WatchContacts;

use self::concurrency::Concurrency;
use crate::{
    api::TokenCache,
    fetch::{expressions_waiting, large_fetches, lookups},
    k8s::{ApiError, call},
    reconcile::run::Runner,
    telemetry::{admin::Readiness, metrics::Metrics},
};

/// What a controller looks after, and how much of it at once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespaces to look after; all, where none is named.
    pub namespaces: Vec<String>,
    /// Runs at once.
    pub concurrency: usize,
    /// Whether only Secrets with the source label are read, and so watched.
    pub require_source_label: bool,
    /// What has arrived on the watches, as seen by the client.
    pub contacts: WatchContacts,
    /// A controller is not ready if nothing has arrived on one of its main watches for this long.
    pub watch_lost: Duration,
}

/// How a controller is stopped: first no run is begun, then those that go on are cancelled.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// No new runs.
    pub begin: CancellationToken,
    /// The runs that still go on end.
    pub cancel: CancellationToken,
}

/// How long the runs that go on may still take after a stop was asked for. Then they are cancelled, and end once Jobs
/// are ending, rotated refresh tokens are written, and Leases are released; the caller limits that.
const GRACE: Duration = Duration::from_secs(5);

/// How long is waited before looking again for the CRD.
const CRD_POLL: Duration = Duration::from_secs(2);

/// Runs until `stop.begin`, and then until the runs that go on have ended.
pub async fn run(runner: Runner, mut settings: Settings, readiness: &Readiness, stop: Stop) {
    tokio::select! {
        () = wait_for_crd(&runner.client, &settings, readiness) => {}
        () = stop.begin.cancelled() => return,
    }
    settings.namespaces.sort();
    settings.namespaces.dedup();
    let concurrency = Concurrency::new(settings.concurrency);
    measure(&runner.metrics, &concurrency);
    let scopes: Vec<Option<String>> = if settings.namespaces.is_empty() {
        vec![None]
    } else {
        settings.namespaces.iter().cloned().map(Some).collect()
    };
    let peers = reconcile::Peers::new(runner.locks.replica());
    let stopping = runner.fetcher.stopping().clone();
    let recovery = api_outage::Recovery::default();
    let mut watching = JoinSet::new();
    let mut synced = Vec::new();
    for namespace in scopes {
        let (ready, when_ready) = tokio::sync::oneshot::channel();
        synced.push(when_ready);
        let context = watch::Start {
            runner: runner.clone(),
            concurrency: concurrency.clone(),
            peers: peers.clone(),
            recovery: recovery.clone(),
            stop: stop.clone(),
            namespace,
            require_source_label: settings.require_source_label,
            readiness: readiness.clone(),
            contacts: settings.contacts.clone(),
        };
        watching.spawn(context.run(ready));
    }
    let all_synced = async {
        for ready in synced {
            let _ = ready.await;
        }
    };
    tokio::select! {
        () = all_synced => {
            readiness.send_replace(None);
            tracing::info!("the controller is ready");
        }
        () = stop.begin.cancelled() => {}
    }
    tokio::select! {
        () = stop.begin.cancelled() => {}
        () = report_lost_watches(&settings, readiness) => {}
        // A controller that no longer watches must not look alive: the caller ends the process.
        _ = watching.join_next() => return,
    }
    stopping.cancel();
    readiness.send_replace(Some("stopping".into()));
    let ended = async { while watching.join_next().await.is_some() {} };
    tokio::pin!(ended);
    tokio::select! {
        () = &mut ended => {}
        () = sleep(GRACE) => {
            stop.cancel.cancel();
            // Ends with the release of the Leases, each limited in time; the caller has the last word.
            ended.await;
        }
    }
}

/// Takes readiness back while the API server is not heard of on a watch, although it is started again and again: what is
/// created or changed meanwhile is not seen. A restart would not help, so `/livez` does not change. Never ends.
async fn report_lost_watches(settings: &Settings, readiness: &Readiness) {
    let limit = settings.watch_lost;
    let mut reported = false;
    loop {
        sleep(limit / 12).await;
        let lost = settings.contacts.lost(limit, Instant::now());
        if lost.is_some() == reported {
            continue;
        }
        reported = lost.is_some();
        let message = lost.map(|(what, silence)| {
            format!("nothing has arrived from the API server on the watch of {what} for {} s", silence.as_secs())
        });
        match &message {
            Some(message) => tracing::warn!("not ready: {message}"),
            None => tracing::info!("ready again: all watches receive from the API server"),
        }
        readiness.send_replace(message);
    }
}

fn measure(metrics: &Metrics, concurrency: &Concurrency) {
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let of = concurrency.clone();
    metrics.measure("queue_depth", "Runs that are due and wait for a place", move || count(of.waiting()));
    let of = concurrency.clone();
    metrics.measure("runs_in_progress", "Runs that go on", move || count(of.running()));
    let help = "Compilations and evaluations of expressions that wait for their turn";
    metrics.measure("expressions_waiting", help, move || count(expressions_waiting()));
    metrics.measure("dns_lookups_in_progress", "Names that are being looked up", move || count(lookups().0));
    let help = "Names that wait for others of their namespace to be looked up";
    metrics.measure("dns_lookups_waiting", help, move || count(lookups().1));
    let help = "Fetches that read more than 64 KiB";
    metrics.measure("large_fetches_in_progress", help, move || count(large_fetches().0));
    let help = "Fetches that wait for memory to read more than 64 KiB";
    metrics.measure("large_fetches_waiting", help, move || count(large_fetches().1));
}

/// Waits, unready, until TokenCaches can be listed, and says what is missing.
async fn wait_for_crd(client: &Client, settings: &Settings, readiness: &Readiness) {
    let mut said = None;
    loop {
        let api: Api<TokenCache> = match settings.namespaces.first() {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        };
        let waiting = match call(api.list_metadata(&ListParams::default().limit(1))).await {
            Ok(_) => return,
            Err(error) => waiting_for(&error),
        };
        if said.as_ref() != Some(&waiting) {
            tracing::warn!("waiting: {waiting}");
            readiness.send_replace(Some(waiting.clone()));
            said = Some(waiting);
        }
        sleep(CRD_POLL).await;
    }
}

fn waiting_for(error: &ApiError) -> String {
    match error.code() {
        Some(404) => {
            "the TokenCache CRD is not installed; install it with: tokencache crd | kubectl create -f -".into()
        }
        Some(401) => format!("the API server does not accept this controller's credentials: {error}"),
        Some(403) => format!("this controller cannot list TokenCaches; its role lacks that permission: {error}"),
        _ => format!("the API server cannot be reached: {error}"),
    }
}
