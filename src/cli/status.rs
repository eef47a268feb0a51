//! `tokencache status`

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use super::{
    Cluster,
    consumer::{Consumer, Namespace},
    list::readiness,
    screen::Style,
    summary::Summary,
};
use crate::client::{Cache, Call, Error};

/// State, expiry, last failure and lock of one TokenCache; never its value.
///
/// Exit codes: 0 printed, whatever the state; 1 cannot be read; 2 wrong usage; 3 no such TokenCache.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Name of the TokenCache
    name: String,
    #[command(flatten)]
    namespace: Namespace,
    /// Output format
    #[arg(long, short, default_value = "text")]
    output: Output,
}

/// Output format.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// Text
    Text,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// How long a call may take.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn run(cluster: &Cluster, flags: Flags) -> anyhow::Result<ExitCode> {
    let consumer = Consumer::new(cluster, flags.namespace, LIMIT).await?;
    let summary = match read(&consumer, &flags.name).await {
        Ok(summary) => summary,
        Err(error) => return Ok(consumer.fail(&error).await),
    };
    let mut out = std::io::stdout().lock();
    match flags.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&summary)?)?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&summary)?)?,
        Output::Text => {
            let style = Style::for_terminal(out.is_terminal());
            out.write_all(text(&summary, style, consumer.clock.now()).as_bytes())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(consumer: &Consumer, name: &str) -> Result<Summary, Error> {
    let call = Call { verb: "get", resource: "tokencaches", name, namespace: &consumer.namespace, role: "status" };
    let api = Api::<Cache>::namespaced(consumer.kube.clone(), &consumer.namespace);
    let cache = match tokio::time::timeout(LIMIT, api.get(name)).await {
        Ok(cache) => cache.map_err(|error| call.refused(error))?,
        Err(_) => {
            let what = "the Kubernetes API server did not answer in time";
            return Err(Error::Timeout { name: name.to_owned(), waited: LIMIT, what });
        }
    };
    // Who may not read the Lease is not told who holds it.
    let leases = Api::<Lease>::namespaced(consumer.kube.clone(), &consumer.namespace);
    let lease_name = format!("tokencache-{name}");
    let lease = tokio::time::timeout(LIMIT, leases.get_opt(&lease_name)).await.ok().and_then(Result::ok).flatten();
    Ok(Summary::new(cache, lease.as_ref()))
}

fn text(summary: &Summary, style: Style, now: DateTime<Utc>) -> String {
    let status = &summary.cache.status;
    let (_, ready) = readiness(summary, style);
    let mut lines = vec![
        ("Name", summary.name.clone()),
        ("Namespace", summary.namespace.clone()),
        ("Ready", format!("{ready} ({}): {}", summary.reason, summary.message)),
        ("Expires", style.expiry(summary.expires_at, now)),
        ("Fetched", style.moment(status.fetched_at, now)),
        ("Next refresh", style.moment(status.refresh_at, now)),
        ("Source", summary.source.clone()),
        ("Secret", summary.secret.clone()),
        ("Runs", summary.runs.to_string()),
        ("Last run by", summary.last_run_by.clone().unwrap_or_else(|| "-".into())),
        ("Failures in a row", summary.failures.to_string()),
    ];
    if let Some(failure) = &summary.last_failure {
        let time = style.moment(failure.time, now);
        lines.push(("Last failure", format!("{time}: {}: {}", failure.reason, failure.message)));
    }
    if status.next_retry_at.is_some() {
        lines.push(("Next attempt", style.moment(status.next_retry_at, now)));
    }
    if let Some(requested) = &status.refresh_requested {
        lines.push(("Requested", format!("{requested}, not answered yet")));
    }
    let lock = summary.lock.as_ref().map_or_else(|| "free".to_owned(), |holder| format!("held by {holder}"));
    lines.push(("Lock", lock));
    lines.into_iter().map(|(name, value)| format!("{:<19}{value}\n", format!("{name}:"))).collect()
}
