//! `tokencache controller`

use std::{
    net::{Ipv6Addr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use kube::client::Body;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tower::{ServiceBuilder, util::MapRequestLayer};

use super::{
    Cluster, LogFormat,
    runner::{self, LAST_MOMENT},
    signals::{Ending, Signals},
    start_log,
};
use crate::{
    api,
    controller::{self, Settings, Stop, WatchContacts},
    k8s::{client::connect_through, server_time::ClusterTime},
    reconcile::{run::Runner, state::Notes},
    telemetry::{
        admin::{self, Readiness},
        metrics::Metrics,
        otlp::Traces,
    },
};

/// The flags of the controller. Each also as an environment variable.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Namespace to watch; repeatable. Default: all namespaces
    #[arg(long, short, env = "TOKENCACHE_NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// Maximum concurrent fetches, and as many jobs; at most a quarter of them to one host
    #[arg(long, env = "TOKENCACHE_CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Minimum time between two fetches of one TokenCache, whatever their reason
    #[arg(long, env = "TOKENCACHE_MIN_FETCH_INTERVAL", default_value = "5s", value_name = "DURATION")]
    min_fetch_interval: api::Duration,
    #[command(flatten)]
    ports: Ports,
    /// Base URL of an OTLP collector over HTTP that receives traces of fetches, such as http://collector:4318. Default: none
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true, value_name = "URL")]
    otlp_endpoint: Option<String>,
    #[command(flatten)]
    runner: runner::Flags,
    /// Format of log lines. The environment variable TOKENCACHE_LOG sets the log level
    #[arg(long, env = "TOKENCACHE_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// The ports for probes and metrics.
#[derive(Debug, Args)]
struct Ports {
    /// Address that serves /livez and /readyz; [::] means all IPv4 and IPv6 addresses. Default: [::]:8081
    #[arg(long, env = "TOKENCACHE_PROBE_ADDRESS", value_name = "ADDRESS")]
    probe_address: Option<SocketAddr>,
    /// Address that serves /metrics. Default: [::]:8080
    #[arg(long, env = "TOKENCACHE_METRICS_ADDRESS", value_name = "ADDRESS")]
    metrics_address: Option<SocketAddr>,
    /// How long the response of /metrics is cached
    #[arg(long, env = "TOKENCACHE_METRICS_MAX_AGE", default_value = "5s", value_name = "DURATION")]
    metrics_max_age: api::Duration,
    /// Deprecated name of --metrics-address. Serves all paths; without --probe-address there is no separate port for probes
    #[arg(long, env = "TOKENCACHE_ADMIN_ADDRESS", hide = true)]
    admin_address: Option<SocketAddr>,
}

/// Runs the controller until SIGTERM or Ctrl-C.
pub(super) async fn run(cluster: &Cluster, flags: Flags) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::handle()?;
    let identity = flags.runner.identity()?;
    let traces = flags.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty());
    // Neither the URL nor what is said of it is told: it may hold a password.
    let traces = traces.map(|endpoint| Traces::to(endpoint, identity.clone())).transpose();
    let traces = traces.map_err(|_| anyhow!("--otlp-endpoint is not a URL; example: http://collector:4318"))?;
    start_log(flags.log_format, traces.as_ref())?;
    let config = cluster.config().await?;
    let server = config.cluster_url.clone();
    let metrics = Metrics::default();
    let counted = metrics.clone();
    let time = ClusterTime::default();
    let count = MapRequestLayer::new(move |request: http::Request<Body>| {
        counted.request(&request);
        request
    });
    let (limits, contacts) = (cluster.limits()?, WatchContacts::default());
    let layers = ServiceBuilder::new().layer(count).layer(time.clone()).layer(contacts.clone()).into_inner();
    let client = connect_through(config, limits, &layers)
        .context("the kubeconfig or in-cluster configuration cannot be used")?;

    measure(&metrics, &time, &contacts);
    let require_source_label = flags.runner.require_source_label;
    let runner = flags.runner.runner(client, time.clock(), identity.clone(), metrics.clone())?;
    let runner = Runner { notes: Notes::with_min_interval(flags.min_fetch_interval.as_chrono()), ..runner };
    let settings = Settings {
        namespaces: flags.namespace,
        concurrency: flags.concurrency.into(),
        require_source_label,
        contacts,
        watch_lost: limits.watch_lost(),
    };

    let readiness = admin::starting();
    let stop_admin = CancellationToken::new();
    serve(&flags.ports, &readiness, &metrics, &stop_admin)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %server, identity, "starting");

    let stop = Stop::default();
    let controller = controller::run(runner, settings, &readiness, stop.clone());
    tokio::pin!(controller);
    tokio::select! {
        () = &mut controller => bail!("the controller stopped unexpectedly"),
        _ = signals.next() => {}
    }
    tracing::info!("stopping: no new fetches; running ones finish or are cancelled");
    stop.begin.cancel();
    await_end(controller, &mut signals).await;
    stop_admin.cancel();
    if let Some(traces) = traces {
        traces.end().await;
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Waits until all runs have ended, for a limited time.
async fn await_end(controller: impl Future<Output = ()>, signals: &mut Signals) {
    tokio::select! {
        ended = timeout(LAST_MOMENT, controller) => if ended.is_err() {
            tracing::warn!("some runs did not end in time; their Leases run out by themselves");
        },
        // A person is not kept waiting. The kubelet may repeat SIGTERM.
        () = interrupted_again(signals) => {
            tracing::warn!("interrupted again: runs were cut off; their Leases run out by themselves");
        }
    }
}

/// Gauges of the connection to the API server.
fn measure(metrics: &Metrics, time: &ClusterTime, contacts: &WatchContacts) {
    let seen = time.clone();
    metrics.measure("clock_offset_seconds", "What is added to the node's clock, by the API server's", move || {
        seen.offset().num_seconds()
    });
    let seen = contacts.clone();
    metrics.measure(
        "watch_silence_seconds",
        "Since when nothing has arrived on the watch that is silent for longest",
        move || seen.longest_silence(Instant::now()).as_secs().try_into().unwrap_or(i64::MAX),
    );
}

/// Serves probes and metrics.
fn serve(ports: &Ports, readiness: &Readiness, metrics: &Metrics, stop: &CancellationToken) -> anyhow::Result<()> {
    let listen = |flag: &str, address: SocketAddr| {
        admin::listen(address).with_context(|| format!("cannot listen on --{flag} {address}"))
    };
    let all = |port: u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let former = ports.admin_address.filter(|_| ports.metrics_address.is_none());
    let (flag, address) = match former {
        Some(address) => ("admin-address", address),
        None => ("metrics-address", ports.metrics_address.unwrap_or_else(|| all(8080))),
    };
    let max_age = ports.metrics_max_age.as_std();
    admin::serve_metrics(listen(flag, address)?, readiness, metrics, max_age, stop.clone())?;
    let probes = ports.probe_address.or_else(|| former.is_none().then(|| all(8081)));
    if let Some(address) = probes {
        admin::serve_probes(listen("probe-address", address)?, readiness, metrics, stop.clone())?;
    }
    Ok(())
}

/// Waits for Ctrl-C, after another signal.
async fn interrupted_again(signals: &mut Signals) {
    while signals.again().await != Ending::Interrupt {}
}
