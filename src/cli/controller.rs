//! `tokencache controller`

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use ipnet::IpNet;
use kube::client::{Body, ClientBuilder};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::util::MapRequestLayer;

use super::{Cluster, LogFormat, start_log};
use crate::{
    admin, api,
    controller::{self, Settings, Stop},
    events::Events,
    fetch::{AddressRules, Fetcher, FetcherConfig},
    lock::Locks,
    metrics::Metrics,
    notes::Notes,
    report::Reporter,
    run::Runner,
    time::Clock,
};

/// The flags of the controller. Each also as an environment variable.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// A namespace to look after; may be repeated. Default: all
    #[arg(long, short, env = "TOKENCACHE_NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// Runs at once; a quarter of them may go to one destination
    #[arg(long, env = "TOKENCACHE_CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// How long a Lease outlives the controller that died while it held it; whole seconds, 1s to 1h
    #[arg(long, env = "TOKENCACHE_LEASE_DURATION", default_value = "15s")]
    lease_duration: api::Duration,
    /// Addresses that may be connected to although they are loopback, link-local or a cloud's metadata; may be repeated
    #[arg(long, env = "TOKENCACHE_ALLOW_CIDR", value_delimiter = ',', value_name = "CIDR")]
    allow_cidr: Vec<IpNet>,
    /// Addresses that may not be connected to; may be repeated
    #[arg(long, env = "TOKENCACHE_DENY_CIDR", value_delimiter = ',', value_name = "CIDR")]
    deny_cidr: Vec<IpNet>,
    /// Whether only Secrets with the label tokencache.dev/source: "true" are read
    #[arg(long, env = "TOKENCACHE_REQUIRE_SOURCE_LABEL", default_value_t = true, action = clap::ArgAction::Set)]
    require_source_label: bool,
    /// Where /livez, /readyz and /metrics are served
    #[arg(long, env = "TOKENCACHE_ADMIN_ADDRESS", default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    admin_address: SocketAddr,
    /// Whether the source job may be used: who may write TokenCaches can then run pods in their namespaces
    #[arg(long, env = "TOKENCACHE_ALLOW_JOBS", default_value_t = true, action = clap::ArgAction::Set)]
    allow_jobs: bool,
    /// Image with this very program, for the pods of jobs
    #[arg(long, env = "TOKENCACHE_COLLECTOR_IMAGE", default_value = COLLECTOR_IMAGE, value_name = "IMAGE")]
    collector_image: String,
    /// Name of this replica, in Leases and in status. Default: the host's name, which in a pod is the pod's
    #[arg(long, env = "TOKENCACHE_IDENTITY")]
    identity: Option<String>,
    /// How log lines look; what is logged is set by the environment variable TOKENCACHE_LOG
    #[arg(long, env = "TOKENCACHE_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// The image of this version.
const COLLECTOR_IMAGE: &str = concat!("tokencache:", env!("CARGO_PKG_VERSION"));

/// All has ended by then, whatever the API server does.
const LAST_MOMENT: Duration = Duration::from_secs(9);

/// Runs the controller until SIGTERM or Ctrl-C.
pub(super) async fn run(cluster: &Cluster, flags: Flags) -> anyhow::Result<ExitCode> {
    start_log(flags.log_format)?;
    let lease_duration = flags.lease_duration.as_std();
    if !(1..=3600).contains(&lease_duration.as_secs()) || lease_duration.subsec_nanos() > 0 {
        bail!("--lease-duration {}: write whole seconds, from 1s to 1h", flags.lease_duration);
    }
    let config = cluster.config().await?;
    let server = config.cluster_url.clone();
    let metrics = Metrics::default();
    let counted = metrics.clone();
    let count = MapRequestLayer::new(move |request: http::Request<Body>| {
        counted.request(&request);
        request
    });
    let client =
        ClientBuilder::try_from(config).context("the cluster's settings cannot be used")?.with_layer(&count).build();

    let identity = match flags.identity.filter(|identity| !identity.is_empty()) {
        Some(identity) => identity,
        None => hostname::get().context("the host has no name: set --identity")?.to_string_lossy().into_owned(),
    };
    let clock = Clock::system();
    let events = Events::new(client.clone(), identity.clone());
    let fetcher = FetcherConfig {
        addresses: AddressRules::new(flags.allow_cidr, flags.deny_cidr),
        require_source_label: flags.require_source_label,
        allow_jobs: flags.allow_jobs,
        collector_image: flags.collector_image,
    };
    let runner = Runner {
        client: client.clone(),
        clock: clock.clone(),
        locks: Locks::new(client.clone(), clock.clone(), identity.clone(), lease_duration),
        fetcher: Fetcher::new(client.clone(), fetcher, clock),
        reporter: Reporter { client: client.clone(), events: events.clone() },
        events,
        metrics: metrics.clone(),
        notes: Notes::default(),
    };
    let settings = Settings {
        namespaces: flags.namespace,
        concurrency: flags.concurrency.into(),
        require_source_label: flags.require_source_label,
    };

    let readiness = admin::starting();
    let stop_admin = CancellationToken::new();
    admin::serve(flags.admin_address, &readiness, metrics, stop_admin.clone())
        .await
        .with_context(|| format!("--admin-address {} cannot be listened on", flags.admin_address))?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %server, identity, "starting");

    let stop = Stop::default();
    let controller = controller::run(runner, settings, &readiness, stop.clone());
    tokio::pin!(controller);
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        () = &mut controller => bail!("the controller ended by itself"),
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping: no new runs; those that go on end or are cancelled");
    stop.begin.cancel();
    if timeout(LAST_MOMENT, controller).await.is_err() {
        tracing::warn!("some runs did not end in time; their Leases run out by themselves");
    }
    stop_admin.cancel();
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
