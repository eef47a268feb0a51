//! `tokencache refresh`

use std::{io::Write as _, process::ExitCode};

use chrono::{DateTime, Utc};
use clap::Args;

use super::{
    Cluster,
    consumer::{Consumer, Namespace},
    waiting,
};
use crate::{
    api,
    client::Condition,
    time::{parse_rfc3339, rfc3339},
};

/// Exit codes that scripts can rely on.
pub(super) const EXIT_CODES: &str = "Exit codes:\n  0 the Secret holds a new value; 1 the fetch failed (reason on stderr); 2 wrong usage; 3 no such\n  TokenCache; 4 timeout";

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Name of the TokenCache
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    /// Refresh only if the Secret still holds the value fetched at TIME (`fetchedAt` of `fetch -o json`); lets many
    /// callers share one refresh
    #[arg(long, value_name = "TIME", value_parser = time)]
    if_fetched_at: Option<DateTime<Utc>>,
    /// Maximum time to wait
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    timeout: api::Duration,
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    parse_rfc3339(text).map_err(|_| "write it like 2026-01-02T03:04:05Z".to_owned())
}

pub(super) async fn run(cluster: &Cluster, flags: Flags) -> anyhow::Result<ExitCode> {
    let timeout = flags.timeout.as_std();
    let consumer = Consumer::new(cluster, flags.namespace, timeout).await?;
    let condition = flags.if_fetched_at.map_or(Condition::Always, Condition::IfFetchedAt);
    let what = format!("waiting for a new value of {}", flags.name);
    match waiting::shown(&what, timeout, consumer.client.refresh(&flags.name, condition)).await {
        Ok(value) => {
            let (name, fetched_at) = (flags.name, rfc3339(value.fetched_at()));
            let expires_at = value.expires_at().whole_seconds();
            writeln!(std::io::stdout(), "{name}: fetched at {fetched_at}, expires at {expires_at}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Ok(consumer.fail(&error).await),
    }
}
