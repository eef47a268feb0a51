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
    /// Names of the TokenCaches that are kept
    #[arg(env = "TOKENCACHE_AGENT_NAMES", value_delimiter = ',')]
    names: Vec<String>,
    #[command(flatten)]
    namespace: Namespace,
    /// Folder that gets a folder for each NAME, in it a file for each key of the Secret. Should be on memory
    #[arg(long, env = "TOKENCACHE_AGENT_DIR", value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// A single file with the bytes under KEY, by default `token` or the only key; may be repeated
    #[arg(long, env = "TOKENCACHE_AGENT_FILE", value_delimiter = ',', value_name = "NAME[:KEY]=PATH")]
    file: Vec<FileOf>,
    /// Permissions of the files: 0440 for a group, which in a pod is its fsGroup
    #[arg(long, env = "TOKENCACHE_AGENT_MODE", default_value = "0400")]
    mode: Mode,
    /// Remove the files of a value that is no longer valid. Default: they stay, and /healthz says so
    #[arg(long, env = "TOKENCACHE_AGENT_REMOVE_EXPIRED")]
    remove_expired: bool,
    /// Write the first values, and end: for an init container
    #[arg(long, env = "TOKENCACHE_AGENT_ONCE", conflicts_with_all = ["listen", "signal", "command", "health"])]
    once: bool,
    /// Signal to send on each changed value after the first: HUP, USR1, …
    #[arg(long, env = "TOKENCACHE_AGENT_SIGNAL", requires = "pid_file", conflicts_with = "command")]
    signal: Option<Signal>,
    /// File with the number of the process that gets the signal
    #[arg(long, env = "TOKENCACHE_AGENT_PID_FILE", requires = "signal", value_name = "PATH")]
    pid_file: Option<PathBuf>,
    /// How long a command may take before it is killed
    #[arg(long, env = "TOKENCACHE_AGENT_COMMAND_TIMEOUT", default_value = "1m", value_name = "DURATION")]
    command_timeout: api::Duration,
    /// Where requests are answered: 127.0.0.1:PORT, [::1]:PORT or unix:/PATH; may be repeated
    #[arg(long, env = "TOKENCACHE_AGENT_LISTEN", value_delimiter = ',', value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// Permissions of Unix sockets: 0600 or 0660
    #[arg(long, env = "TOKENCACHE_AGENT_SOCKET_MODE", default_value = "0600")]
    socket_mode: SocketMode,
    /// How long a request waits for a value at most
    #[arg(long, env = "TOKENCACHE_AGENT_TIMEOUT", default_value = "1m", value_name = "DURATION")]
    timeout: api::Duration,
    /// Ask the agent that listens at the first address for /healthz, and end with 0 if all is well: for a probe
    #[arg(long, requires = "listen")]
    health: bool,
    /// How log lines look; what is logged is set by the environment variable TOKENCACHE_LOG
    #[arg(long, env = "TOKENCACHE_AGENT_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Command to run on each changed value after the first, with the name in TOKENCACHE_NAME
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
        () = agent.ended() => bail!("a part of the agent ended by itself"),
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
