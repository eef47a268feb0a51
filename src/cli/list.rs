//! `tokencache list`

use std::{
    collections::HashMap,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::ListParams};

use super::{
    Cluster,
    consumer::{Consumer, Namespace},
    screen::{Style, Table},
    summary::Summary,
};
use crate::{
    api::names::LABEL_MANAGED,
    client::{Cache, Call, Error},
};

/// State, expiry, last failure and lock of TokenCaches; never a value.
#[derive(Debug, Args)]
pub(super) struct Flags {
    #[command(flatten)]
    namespace: Namespace,
    /// List all namespaces
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Label selector
    #[arg(long, short = 'l')]
    selector: Option<String>,
    /// Output format
    #[arg(long, short, default_value = "table")]
    output: Output,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Table
    Table,
    /// Table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// Names only
    Name,
}

/// How long a call may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The TokenCaches of the namespace or of all.
pub(super) async fn caches(consumer: &Consumer, everywhere: bool, selector: Option<&str>) -> Result<Vec<Cache>, Error> {
    let api: Api<Cache> = if everywhere {
        Api::all(consumer.kube.clone())
    } else {
        Api::namespaced(consumer.kube.clone(), &consumer.namespace)
    };
    let params = ListParams { label_selector: selector.map(str::to_owned), ..ListParams::default() };
    let namespace = if everywhere { "(all)" } else { &consumer.namespace };
    let call = Call { verb: "list", resource: "tokencaches", name: "", namespace, role: "list" };
    match tokio::time::timeout(LIMIT, api.list(&params)).await {
        Ok(listed) => listed.map(|list| list.items).map_err(|error| call.refused(error)),
        Err(_) => Err(Error::Timeout {
            name: String::new(),
            waited: LIMIT,
            what: "the Kubernetes API server did not answer in time",
        }),
    }
}

/// The Leases of these TokenCaches by namespace and name; none where they may not be read, since they are not needed.
async fn leases(consumer: &Consumer, everywhere: bool) -> HashMap<(String, String), Lease> {
    let api: Api<Lease> = if everywhere {
        Api::all(consumer.kube.clone())
    } else {
        Api::namespaced(consumer.kube.clone(), &consumer.namespace)
    };
    let params = ListParams::default().labels(&format!("{LABEL_MANAGED}=true"));
    let listed = tokio::time::timeout(LIMIT, api.list(&params)).await;
    let leases = listed.ok().and_then(Result::ok).map(|list| list.items).unwrap_or_default();
    let key = |lease: &Lease| {
        (lease.metadata.namespace.clone().unwrap_or_default(), lease.metadata.name.clone().unwrap_or_default())
    };
    leases.into_iter().map(|lease| (key(&lease), lease)).collect()
}

pub(super) async fn run(cluster: &Cluster, flags: Flags) -> anyhow::Result<ExitCode> {
    let consumer = Consumer::new(cluster, flags.namespace, LIMIT).await?;
    let caches = match caches(&consumer, flags.all_namespaces, flags.selector.as_deref()).await {
        Ok(caches) => caches,
        Err(error) => return Ok(consumer.fail(&error).await),
    };
    let leases = leases(&consumer, flags.all_namespaces).await;
    let summaries: Vec<Summary> = caches
        .into_iter()
        .map(|cache| {
            let key = (cache.namespace().to_owned(), format!("tokencache-{}", cache.name()));
            Summary::new(cache, leases.get(&key))
        })
        .collect();
    let mut out = std::io::stdout().lock();
    match flags.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&summaries)?)?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&summaries)?)?,
        Output::Name => {
            for summary in summaries {
                writeln!(out, "tokencache.tokencache.dev/{}", summary.name)?;
            }
        }
        Output::Table | Output::Wide => {
            if summaries.is_empty() {
                let place = if flags.all_namespaces { "any namespace" } else { &consumer.namespace };
                writeln!(std::io::stderr(), "no TokenCaches in {place}")?;
                return Ok(ExitCode::SUCCESS);
            }
            let style = Style::for_terminal(out.is_terminal());
            out.write_all(
                table(&summaries, flags.all_namespaces, flags.output == Output::Wide, style, consumer.clock.now())
                    .as_bytes(),
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(summaries: &[Summary], namespaces: bool, wide: bool, style: Style, now: DateTime<Utc>) -> String {
    let mut head = vec!["NAME", "READY", "REASON", "EXPIRES", "FAILURES", "LAST FAILURE", "LOCK"];
    if namespaces {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["SOURCE", "SECRET", "RUNS", "LAST RUN BY"]);
    }
    let mut table = Table::new(&head);
    for summary in summaries {
        let plain = |text: String| (text.clone(), text);
        let dash = |text: Option<String>| plain(text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into()));
        let (ready, shown) = readiness(summary, style);
        // One that ended well since is history.
        let failure = summary.last_failure.as_ref().filter(|_| summary.failures > 0);
        let mut row = vec![
            plain(summary.name.clone()),
            (ready, shown),
            plain(summary.reason.clone()),
            plain(style.expiry(summary.expires_at, now)),
            plain(summary.failures.to_string()),
            dash(failure.map(|failure| failure.reason.clone())),
            dash(summary.lock.clone()),
        ];
        if namespaces {
            row.insert(0, plain(summary.namespace.clone()));
        }
        if wide {
            row.extend([
                dash(Some(summary.source.clone())),
                plain(summary.secret.clone()),
                plain(summary.runs.to_string()),
                dash(summary.last_run_by.clone()),
            ]);
        }
        table.row(row);
    }
    table.text()
}

/// Whether it is ready, in plain text and as it is shown: not so well where the newest attempt failed.
pub(super) fn readiness(summary: &Summary, style: Style) -> (String, String) {
    let text = if summary.ready { "True" } else { "False" };
    let shown = match (summary.ready, summary.failures) {
        (true, 0) => style.good(text),
        (true, _) => style.doubtful(text),
        (false, _) => style.bad(text),
    };
    (text.to_owned(), shown)
}
