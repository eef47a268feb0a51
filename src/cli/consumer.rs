//! What the commands of consumers share: the namespace, the client, and how an error ends the program.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use kube::{
    Api,
    api::{ListParams, PartialObjectMeta},
};

use super::{Cluster, screen::Style};
use crate::{
    api::TokenCache,
    client::{Client, Error},
    k8s::{client::connect_through, server_time::ClusterTime},
    text::visible,
    time::Clock,
};

/// The namespace of the TokenCache.
#[derive(Debug, Args)]
pub(super) struct Namespace {
    /// Namespace. Default: that of the kubeconfig context, or of the pod
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
}

/// A cluster and the namespace that is worked in.
pub(super) struct Consumer {
    pub(super) kube: kube::Client,
    pub(super) namespace: String,
    pub(super) client: Client,
    /// The cluster's time, for runs: their values are for all.
    pub(super) clock: Clock,
}

impl Consumer {
    pub(super) async fn new(cluster: &Cluster, namespace: Namespace, timeout: Duration) -> anyhow::Result<Self> {
        let config = cluster.config().await?;
        let namespace = namespace.namespace.unwrap_or_else(|| config.default_namespace.clone());
        let time = ClusterTime::default();
        let (kube, clock) = (connect_through(config, cluster.limits()?, &time)?, time.clock());
        let client = Client::new(kube.clone(), namespace.clone()).with_timeout(timeout).with_clock(clock.clone());
        Ok(Self { kube, namespace, client, clock })
    }

    /// Says on standard error why there is no value, and gives the exit code for it.
    pub(super) async fn fail(&self, error: &Error) -> ExitCode {
        say(&error.to_string());
        if let Error::NotFound { name, .. } = error
            && let Some(others) = self.elsewhere(name).await
        {
            hint(&format!("found in namespace {others}; select it with -n"));
        }
        ExitCode::from(code(error))
    }

    /// The namespaces that have a TokenCache of that name, if the caller may know.
    async fn elsewhere(&self, name: &str) -> Option<String> {
        let everywhere = Api::<PartialObjectMeta<TokenCache>>::all(self.kube.clone());
        let params = ListParams::default().fields(&format!("metadata.name={name}"));
        let found = tokio::time::timeout(Duration::from_secs(5), everywhere.list(&params)).await.ok()?.ok()?;
        let namespaces: Vec<String> = found.items.into_iter().filter_map(|cache| cache.metadata.namespace).collect();
        (!namespaces.is_empty()).then(|| namespaces.join(", "))
    }
}

/// The exit code of an error: 1 no value, 2 wrong usage, 3 no such TokenCache, 4 timeout.
fn code(error: &Error) -> u8 {
    match error {
        Error::NoSuchKey { .. } | Error::NotText { .. } => 2,
        Error::NotFound { .. } => 3,
        Error::Timeout { .. } => 4,
        _ => 1,
    }
}

/// Says on standard error what is wrong. The message may contain what others wrote into a status.
pub(super) fn say(message: &str) {
    let style = Style::for_terminal(std::io::stderr().is_terminal());
    // There is nobody to tell that nobody can be told.
    let _ = writeln!(std::io::stderr(), "{} {}", style.bad("tokencache:"), visible(message));
}

fn hint(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Ends with wrong usage.
pub(super) fn misused(message: &str) -> ExitCode {
    say(message);
    ExitCode::from(2)
}
