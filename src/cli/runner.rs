//! What runs a fetch: the flags that the controller and `fetch --direct` share.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use ipnet::IpNet;
use kube::Client;

use crate::{
    api::{self, MAX_NAME},
    fetch::{AddressRules, Fetcher, FetcherConfig, JobSettings, PodSecurity},
    k8s::events::Events,
    lock::Locks,
    reconcile::{run::Runner, state::Notes, write_status::Reporter},
    telemetry::metrics::Metrics,
    time::Clock,
};

/// How fetches are run. Each also as an environment variable.
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct Flags {
    /// How long a Lease outlives the process that died while it held it; whole seconds, 1s to 1h
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
    pub(super) require_source_label: bool,
    /// Longest lifetime that is asked for a token of a service account; at least 10m
    #[arg(long, env = "TOKENCACHE_MAX_TOKEN_LIFETIME", default_value = "24h", value_name = "DURATION")]
    max_token_lifetime: api::Duration,
    /// Types that target.type may have; may be repeated
    #[arg(long, env = "TOKENCACHE_TARGET_TYPES", value_delimiter = ',', value_name = "TYPE", default_values = TARGET_TYPES)]
    target_types: Vec<String>,
    /// Whether the source job may be used: who may write TokenCaches can then run pods in their namespaces
    #[arg(long, env = "TOKENCACHE_ALLOW_JOBS", default_value_t = true, action = clap::ArgAction::Set)]
    allow_jobs: bool,
    /// Level of the Pod Security Standards that the pod templates of jobs must keep to
    #[arg(long, env = "TOKENCACHE_JOB_POD_SECURITY", default_value = "restricted", value_name = "LEVEL")]
    job_pod_security: PodSecurity,
    /// Service account of jobs that name none. Default: that of their namespace, "default"
    #[arg(long, env = "TOKENCACHE_JOB_SERVICE_ACCOUNT", value_name = "NAME")]
    job_service_account: Option<String>,
    /// Image with this very program, for the pods of jobs
    #[arg(long, env = "TOKENCACHE_COLLECTOR_IMAGE", default_value = COLLECTOR_IMAGE, value_name = "IMAGE")]
    collector_image: String,
    /// Name of who runs, in Leases and in status. Default: the host's name, which in a pod is the pod's
    #[arg(long, env = "TOKENCACHE_IDENTITY")]
    identity: Option<String>,
}

/// How long after a signal all has ended, whatever the API server and token servers do: in the chart, the kubelet kills
/// the process after 20 s. Until then the answer to a refresh token that was sent is awaited, and its successor written.
pub(super) const LAST_MOMENT: Duration = Duration::from_secs(18);

/// Types of Secrets that hold credentials and by which nothing in Kubernetes gives permissions or runs anything.
const TARGET_TYPES: [&str; 6] = [
    "Opaque",
    "kubernetes.io/basic-auth",
    "kubernetes.io/ssh-auth",
    "kubernetes.io/tls",
    "kubernetes.io/dockerconfigjson",
    "kubernetes.io/dockercfg",
];

/// The image of this version.
const COLLECTOR_IMAGE: &str = concat!("tokencache:", env!("CARGO_PKG_VERSION"));

impl Flags {
    /// Who runs.
    pub(super) fn identity(&self) -> anyhow::Result<String> {
        let identity = match self.identity.as_ref().filter(|identity| !identity.is_empty()) {
            Some(identity) => identity.clone(),
            None => hostname::get().context("the host has no name: set --identity")?.to_string_lossy().into_owned(),
        };
        ensure!(
            identity.len() <= MAX_NAME,
            "the identity is longer than {MAX_NAME} bytes: set --identity to a shorter one"
        );
        Ok(identity)
    }

    /// What runs fetches. `client` has kube's own retry off, and `clock` follows its answers.
    pub(super) fn runner(
        self,
        client: Client,
        clock: Clock,
        identity: String,
        metrics: Metrics,
    ) -> anyhow::Result<Runner> {
        let lease_duration = self.lease_duration.as_std();
        if !(1..=3600).contains(&lease_duration.as_secs()) || lease_duration.subsec_nanos() > 0 {
            bail!("--lease-duration {}: write whole seconds, from 1s to 1h", self.lease_duration);
        }
        if self.max_token_lifetime < api::Duration::from_secs(600) {
            bail!(
                "--max-token-lifetime {}: write at least 10m, the shortest lifetime that Kubernetes issues",
                self.max_token_lifetime
            );
        }
        let events = Events::new(client.clone(), identity.clone());
        let fetcher = FetcherConfig {
            addresses: AddressRules::new(self.allow_cidr, self.deny_cidr),
            require_source_label: self.require_source_label,
            jobs: JobSettings {
                allowed: self.allow_jobs,
                collector_image: self.collector_image,
                pod_security: self.job_pod_security,
                service_account: self.job_service_account.filter(|name| !name.is_empty()),
            },
            max_token_lifetime: self.max_token_lifetime.as_std(),
            target_types: self.target_types,
            lease_duration,
        };
        Ok(Runner {
            client: client.clone(),
            clock: clock.clone(),
            locks: Locks::new(client.clone(), clock.clone(), identity, lease_duration),
            fetcher: Fetcher::new(client.clone(), fetcher, clock),
            reporter: Reporter { client, events: events.clone() },
            events,
            metrics,
            notes: Notes::default(),
        })
    }
}
