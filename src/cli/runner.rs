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
    /// How long a Lease stays valid after its holder died; whole seconds, 1s to 1h
    #[arg(long, env = "TOKENCACHE_LEASE_DURATION", default_value = "15s")]
    lease_duration: api::Duration,
    /// CIDRs that may be connected to even if they are loopback, link-local or cloud metadata addresses; repeatable
    #[arg(long, env = "TOKENCACHE_ALLOW_CIDR", value_delimiter = ',', value_name = "CIDR")]
    allow_cidr: Vec<IpNet>,
    /// CIDRs that must not be connected to; repeatable
    #[arg(long, env = "TOKENCACHE_DENY_CIDR", value_delimiter = ',', value_name = "CIDR")]
    deny_cidr: Vec<IpNet>,
    /// Read only Secrets and ServiceAccounts with the label tokencache.dev/source: "true"
    #[arg(long, env = "TOKENCACHE_REQUIRE_SOURCE_LABEL", default_value_t = true, action = clap::ArgAction::Set)]
    pub(super) require_source_label: bool,
    /// Maximum lifetime of requested service account tokens; at least 10m
    #[arg(long, env = "TOKENCACHE_MAX_TOKEN_LIFETIME", default_value = "24h", value_name = "DURATION")]
    max_token_lifetime: api::Duration,
    /// Allowed values of spec.target.type; repeatable
    #[arg(long, env = "TOKENCACHE_TARGET_TYPES", value_delimiter = ',', value_name = "TYPE", default_values = TARGET_TYPES)]
    target_types: Vec<String>,
    /// Allow the source job. Anyone who can write TokenCaches can then run pods in their namespace
    #[arg(long, env = "TOKENCACHE_ALLOW_JOBS", default_value_t = true, action = clap::ArgAction::Set)]
    allow_jobs: bool,
    /// Pod Security Standards level that pod templates of jobs must meet
    #[arg(long, env = "TOKENCACHE_JOB_POD_SECURITY", default_value = "restricted", value_name = "LEVEL")]
    job_pod_security: PodSecurity,
    /// Service account of jobs that do not name one. Default: "default" of their namespace
    #[arg(long, env = "TOKENCACHE_JOB_SERVICE_ACCOUNT", value_name = "NAME")]
    job_service_account: Option<String>,
    /// tokencache image for the result collector in Job pods
    #[arg(long, env = "TOKENCACHE_COLLECTOR_IMAGE", default_value = COLLECTOR_IMAGE, value_name = "IMAGE")]
    collector_image: String,
    /// Name of this replica in Leases and in status. Default: the host name, which is the name of the pod
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
            None => hostname::get().context("the host has no name; set --identity")?.to_string_lossy().into_owned(),
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
