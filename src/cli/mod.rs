//! The command line; one file per command.

mod agent;
mod clear;
mod collect;
mod consumer;
mod controller;
mod direct;
mod fetch;
mod guard;
mod list;
mod refresh;
mod runner;
mod screen;
mod signals;
mod status;
mod summary;
mod waiting;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{api, k8s::client::TimeLimits, telemetry::otlp::Traces};

/// Keeps short-lived credentials fresh in Kubernetes Secrets.
#[derive(Debug, Parser)]
#[command(name = "tokencache", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    cluster: Cluster,
    #[command(subcommand)]
    command: Command,
}

const SHORTEST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The cluster, as for kubectl.
#[derive(Debug, Args)]
struct Cluster {
    /// Path of the kubeconfig file. Default: $KUBECONFIG, ~/.kube/config, or the pod's own service account
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig file
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Time limit of each request to the API server. A watch that receives nothing for three times as long is restarted
    #[arg(long, global = true, env = "TOKENCACHE_REQUEST_TIMEOUT", default_value = "30s", value_name = "DURATION")]
    request_timeout: api::Duration,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller
    Controller(Box<controller::Flags>),
    #[command(after_help = fetch::EXIT_CODES)]
    /// Print the cached value; if it is missing or expired, request a new one and wait for it
    Fetch(Box<fetch::Flags>),
    #[command(after_help = refresh::EXIT_CODES)]
    /// Request a new value and wait for it
    Refresh(refresh::Flags),
    #[command(after_help = clear::EXIT_CODES)]
    /// Delete the Secret. An Eager TokenCache is fetched again immediately, a Lazy one on the next request
    Clear(clear::Flags),
    /// List TokenCaches
    #[command(visible_alias = "ls")]
    List(list::Flags),
    /// Show one TokenCache
    Status(status::Flags),
    /// Sidecar: write credentials to files and serve them on localhost
    Agent(Box<agent::Flags>),
    /// Print the CustomResourceDefinition
    Crd,
    /// Print a shell completion script: source <(tokencache completion bash)
    Completion {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Pass the result of a job to the controller; runs in the job's pod
    #[command(hide = true)]
    Collect(collect::Flags),
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Name of the file under which kubectl finds it as a plugin.
const PLUGIN: &str = "kubectl-tokencache";

impl Cli {
    /// Reads the command line; ends the program where it is wrong. Linked as `kubectl-tokencache`, it calls itself
    /// `kubectl tokencache`.
    #[must_use]
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let called = arguments.first().map(PathBuf::from);
        let called = called.as_deref().and_then(|path| path.file_stem()).unwrap_or_default();
        let mut command = Self::command();
        if called == PLUGIN {
            command = command.bin_name("kubectl tokencache");
        }
        let matches = command.try_get_matches_from_mut(arguments);
        let read = matches.and_then(|matches| Self::from_arg_matches(&matches));
        read.unwrap_or_else(|error| error.format(&mut command).exit())
    }
}

/// Runs what the command line says.
///
/// # Errors
/// With a sentence for the person who called.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let has_nothing_to_finish = match &cli.command {
        Command::Controller(_) | Command::Agent(_) | Command::Collect(_) => false,
        Command::Fetch(flags) => !flags.direct,
        _ => true,
    };
    tokio::select! {
        ended = signals::end_first_process(), if has_nothing_to_finish => Ok(ended?),
        code = run_command(cli) => code,
    }
}

async fn run_command(cli: Cli) -> anyhow::Result<ExitCode> {
    if matches!(cli.command, Command::Controller(_) | Command::Agent(_) | Command::Collect(_) | Command::Fetch(_)) {
        guard::guard_memory()?;
    }
    match cli.command {
        Command::Controller(flags) => controller::run(&cli.cluster, *flags).await,
        Command::Collect(flags) => collect::run(&flags),
        Command::Fetch(flags) => fetch::run(&cli.cluster, *flags).await,
        Command::Refresh(flags) => refresh::run(&cli.cluster, flags).await,
        Command::Clear(flags) => clear::run(&cli.cluster, flags).await,
        Command::List(flags) => list::run(&cli.cluster, flags).await,
        Command::Status(flags) => status::run(&cli.cluster, flags).await,
        Command::Agent(flags) => agent::run(&cli.cluster, *flags).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tokencache", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Crd => {
            let text = crd_yaml()?;
            std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The CustomResourceDefinition as a file.
///
/// # Errors
/// When it cannot be serialized, which would be a fault of the program.
pub fn crd_yaml() -> anyhow::Result<String> {
    let text = serde_saphyr::to_string(&crate::api::crd())?;
    Ok(format!("# Generated by: tokencache crd\n{text}"))
}

impl Cluster {
    fn limits(&self) -> anyhow::Result<TimeLimits> {
        let limit = self.request_timeout.as_std();
        if limit < SHORTEST_REQUEST_TIMEOUT {
            bail!("--request-timeout {} is too short; use at least 1s", self.request_timeout);
        }
        Ok(TimeLimits::of_request(limit))
    }

    /// The configuration of a client without kube's own retry, which repeats requests whatever their method.
    async fn config(&self) -> anyhow::Result<Config> {
        let hint = "no cluster to talk to: set --kubeconfig or KUBECONFIG, or run in a pod with a service account";
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("the kubeconfig {} cannot be read", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await.context("the kubeconfig cannot be used")?
            }
            // Their texts repeat their causes.
            None if self.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| anyhow!("{hint} ({error})"))?
            }
            None => Config::infer().await.map_err(|error| anyhow!("{hint} ({error})"))?,
        };
        config.default_retry = false;
        Ok(config)
    }
}

/// Logs to standard error, filtered by `TOKENCACHE_LOG` as by the usual `RUST_LOG`; by default `info`.
///
/// The libraries that see requests and answers are held at `info`: below it some of them print headers and bodies, and
/// with these, credentials.
fn start_log(format: LogFormat, traces: Option<&Traces>) -> anyhow::Result<()> {
    const HELD: [&str; 9] =
        ["h2", "hyper", "hyper_util", "rustls", "reqwest", "tower", "kube_client", "axum", "opentelemetry"];
    let wanted = std::env::var("TOKENCACHE_LOG").unwrap_or_default();
    let of_held = |directive: &&str| HELD.iter().any(|library| directive.trim().starts_with(library));
    let wanted = wanted.split(',').filter(|directive| !of_held(directive)).collect::<Vec<_>>().join(",");
    let mut filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(&wanted)
        .with_context(|| format!("TOKENCACHE_LOG={wanted:?} is not a log filter; examples: debug, tokencache=trace"))?;
    if filter.max_level_hint().is_none_or(|level| level > LevelFilter::INFO) {
        for library in HELD {
            filter = filter.add_directive(format!("{library}=info").parse()?);
        }
    } else {
        // Its spans name the object, which our lines do as well, and are entered whenever anything moves.
        filter = filter.add_directive("kube_runtime=warn".parse()?);
    }
    // It prints an answer that it cannot parse.
    filter = filter.add_directive("kube_client=error".parse()?);
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = match format {
        LogFormat::Json => log.json().boxed(),
        LogFormat::Text => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
    };
    // A line says all that its span says.
    let log = log.with_filter(filter.and(filter_fn(|metadata| metadata.is_event())));
    let registry = tracing_subscriber::registry().with(log);
    match traces {
        Some(traces) => registry.with(traces.layer()).init(),
        // A layer that is `None` would still have each span made, for nobody.
        None => registry.init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_crd_in_the_repository_and_its_copy_in_the_chart_are_the_ones_that_are_generated() -> anyhow::Result<()> {
        let generated = crd_yaml()?;
        for path in ["crds/tokencache.yaml", "charts/tokencache/files/crd.yaml"] {
            let file = std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path))?;
            assert_eq!(file, generated, "{path} is stale: make crd");
        }
        Ok(())
    }

    #[test]
    fn the_crd_has_only_formats_that_kubernetes_knows() -> anyhow::Result<()> {
        let crd = crd_yaml()?;
        let formats: Vec<_> = crd.lines().filter_map(|line| line.trim().strip_prefix("format: ")).collect();
        assert!(!formats.is_empty());
        for format in formats {
            assert!(["int32", "int64", "date-time"].contains(&format), "{format}");
        }
        Ok(())
    }
}
