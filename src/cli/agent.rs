//! `tokencache agent`

use std::{path::PathBuf, process::ExitCode};

use super::{
    Cluster, LogFormat,
    consumer::{Consumer, Namespace, misused},
    signals::Signals,
    start_log,
};
use crate::{
    agent::{
        self, Settings, disk,
        listen::{self, Address, SocketMode},
        notify::{Signal, Tell},
        targets::{FileOf, Mode, Targets, targets},
    },
    api,
};
use anyhow::{Context as _, bail};
use clap::Args;

/// Each flag also as an environment variable; those that may be repeated are separated by commas there.
#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Names of the TokenCaches
    #[arg(env = "TOKENCACHE_AGENT_NAMES", value_delimiter = ',')]
    names: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// Directory for the values: NAME/KEY files. Use a memory-backed volume
    #[arg(long, env = "TOKENCACHE_AGENT_DIR", value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Single file for the value of KEY (default: `token`, or the only key); repeatable
    #[arg(long, env = "TOKENCACHE_AGENT_FILE", value_delimiter = ',', value_name = "NAME[:KEY]=PATH")]
    file: Vec<FileOf>,
    /// Mode of the files: 0440 allows the group to read, which in a pod is its fsGroup
    #[arg(long, env = "TOKENCACHE_AGENT_MODE", default_value = "0400")]
    mode: Mode,
    /// Remove the files of an expired value. Default: keep them, and report it at /healthz
    #[arg(long, env = "TOKENCACHE_AGENT_REMOVE_EXPIRED")]
    remove_expired: bool,
    /// Write the first values and exit; for an init container
    #[arg(long, env = "TOKENCACHE_AGENT_ONCE", conflicts_with_all = ["listen", "signal", "command", "health"])]
    once: bool,
    /// Signal to send when a value has changed: HUP, USR1, …
    #[arg(long, env = "TOKENCACHE_AGENT_SIGNAL", requires = "pid_file", conflicts_with = "command")]
    signal: Option<Signal>,
    /// File containing the PID to signal
    #[arg(long, env = "TOKENCACHE_AGENT_PID_FILE", requires = "signal", value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// Time limit of the command
    #[arg(long, env = "TOKENCACHE_AGENT_COMMAND_TIMEOUT", default_value = "1m", value_name = "DURATION")]
    command_timeout: api::Duration,
    /// Address that serves the values: 127.0.0.1:PORT, [::1]:PORT or unix:/PATH; repeatable
    #[arg(long, env = "TOKENCACHE_AGENT_LISTEN", value_delimiter = ',', value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// Mode of Unix sockets: 0600 or 0660
    #[arg(long, env = "TOKENCACHE_AGENT_SOCKET_MODE", default_value = "0600")]
    socket_mode: SocketMode,
    /// Maximum time that a request waits for a value
    #[arg(long, env = "TOKENCACHE_AGENT_TIMEOUT", default_value = "1m", value_name = "DURATION")]
    timeout: api::Duration,
    /// Query /healthz of the agent at the first address and exit with 0 if it is healthy; for a probe
    #[arg(long, requires = "listen")]
    health: bool,
    /// Format of log lines. The environment variable TOKENCACHE_LOG sets the log level
    #[arg(long, env = "TOKENCACHE_AGENT_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Command to run when a value has changed, with the name in TOKENCACHE_NAME
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs the agent until SIGTERM or Ctrl-C.
pub(super) async fn run(cluster: &Cluster, flags: Flags) -> anyhow::Result<ExitCode> {
    if flags.health {
        return health(flags.listen).await;
    }
    let targets = match targets(&flags.names, flags.dir.as_deref(), &flags.file) {
        Ok(targets) => targets,
        Err(error) => return Ok(misused(&error.to_string())),
    };
    let has_files = targets.values().any(|targets| !targets.is_empty());
    if !has_files && (flags.once || (flags.listen.is_empty() && flags.command.is_empty() && flags.signal.is_none())) {
        return Ok(misused("nothing is to be done with the values: set --dir, --file or --listen"));
    }
    let mut signals = Signals::handle()?;
    start_log(flags.log_format, None)?;
    warn_of_disks(&targets);

    let consumer = Consumer::new(cluster, flags.namespace, flags.timeout.as_std()).await?;
    let mut command = flags.command.into_iter();
    let tell = match (flags.signal.zip(flags.pid_file), command.next()) {
        (Some((signal, pid_file)), _) => Some(Tell::Signal { signal, pid_file }),
        (None, Some(program)) => {
            Some(Tell::Command { program, arguments: command.collect(), limit: flags.command_timeout.as_std() })
        }
        (None, None) => None,
    };
    let names: Vec<&str> = targets.keys().map(String::as_str).collect();
    let namespace = &consumer.namespace;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), namespace, names = names.join(","), "starting");
    let settings = Settings {
        targets,
        mode: flags.mode,
        remove_expired: flags.remove_expired,
        tell,
        listen: flags.listen,
        socket_mode: flags.socket_mode,
    };
    let mut agent = agent::start(consumer.client, settings, consumer.clock).await?;
    let code = tokio::select! {
        () = agent.all_written(), if flags.once => ExitCode::SUCCESS,
        () = agent.ended() => bail!("a part of the agent stopped unexpectedly"),
        // What was to be written is not.
        _ = signals.next() => if flags.once { ExitCode::FAILURE } else { ExitCode::SUCCESS },
    };
    tracing::info!("stopping");
    agent.stop().await;
    Ok(code)
}

fn warn_of_disks(targets: &Targets) {
    for path in targets.values().flatten().map(|target| target.path()) {
        if disk::is_on_memory(path) == Some(false) {
            let path = path.display();
            tracing::warn!(%path, "not on memory: values reach the disk; in a pod, use an emptyDir with medium: Memory");
        }
    }
}

async fn health(listen: Vec<Address>) -> anyhow::Result<ExitCode> {
    let address = listen.first().context("--health needs --listen")?;
    let (status, text) =
        listen::ask(address, "/healthz").await.with_context(|| format!("{address} does not answer"))?;
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
    Ok(if status == http::StatusCode::OK { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
