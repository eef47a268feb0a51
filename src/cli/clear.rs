//! `tokencache clear`

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::Args;

use super::{
    Cluster,
    consumer::{Consumer, Namespace},
    list::caches,
};
use crate::client::{Cleared, Client, Error};

/// Exit codes that scripts can rely on.
pub(super) const EXIT_CODES: &str =
    "Exit codes:\n  0 no Secret is left; 1 a Secret cannot be deleted; 2 wrong usage; 3 no such TokenCache; 4 timeout";

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Name of the TokenCache
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// All TokenCaches of the namespace
    #[arg(long)]
    all: bool,
    /// With --all: label selector
    #[arg(long, short = 'l', requires = "all")]
    selector: Option<String>,
    /// With --all: all namespaces
    #[arg(long, short = 'A', requires = "all", conflicts_with = "namespace")]
    all_namespaces: bool,
}

/// How long a call may take.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn run(cluster: &Cluster, flags: Flags) -> anyhow::Result<ExitCode> {
    let consumer = Consumer::new(cluster, flags.namespace, LIMIT).await?;
    let selector = flags.selector.as_deref();
    let cleared = match &flags.name {
        Some(name) => consumer.client.clear(name).await.map(|cleared| vec![cleared]),
        None if flags.all_namespaces => everywhere(&consumer, selector).await,
        None => consumer.client.clear_all(selector).await,
    };
    match cleared {
        Ok(cleared) => {
            let mut out = std::io::stdout().lock();
            for Cleared { namespace, name, deleted } in cleared {
                let what = if deleted { "cleared" } else { "had no value" };
                writeln!(out, "{namespace}/{name} {what}")?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Ok(consumer.fail(&error).await),
    }
}

async fn everywhere(consumer: &Consumer, selector: Option<&str>) -> Result<Vec<Cleared>, Error> {
    let mut all = Vec::new();
    for cache in caches(consumer, true, selector).await? {
        let client = Client::new(consumer.kube.clone(), cache.namespace()).with_timeout(LIMIT);
        match client.clear(cache.name()).await {
            Ok(cleared) => all.push(cleared),
            // Deleted since it was listed.
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}
