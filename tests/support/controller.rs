//! The real binary as a process, to be started, asked, stopped and killed.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
};

use super::{
    DEADLINE, Metrics, Namespace,
    invariants::{AtWork, Recorder},
    poll, within,
};

/// The binary: the optimised one of `hack/test-binary.sh` if there is one, else the one that Cargo built beside the test.
pub fn binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| match std::env::var_os("TOKENCACHE_TEST_BINARY") {
        Some(path) => path.into(),
        None => env!("CARGO_BIN_EXE_tokencache").into(),
    });
    &BINARY
}

const LOOPBACK: [&str; 4] = ["--allow-cidr", "127.0.0.0/8", "--allow-cidr", "::1/128"];

/// What a process has written, line by line, to stdout and stderr.
#[derive(Clone, Default)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    changed: Arc<watch::Sender<()>>,
}

impl Log {
    /// All of it.
    pub fn text(&self) -> String {
        self.lines.lock().join("\n")
    }

    pub(super) fn follow(&self, output: impl AsyncRead + Send + Unpin + 'static) {
        let log = self.clone();
        super::in_background(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                log.lines.lock().push(line);
                log.changed.send_replace(());
            }
        });
    }

    /// Waits for a line that gives something.
    pub(super) async fn find<T>(&self, pick: impl Fn(&str) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            let found = self.lines.lock().iter().find_map(|line| pick(line));
            match found {
                Some(value) => return value,
                None => changed.changed().await.expect("the log holds its sender"),
            }
        }
    }
}

/// A field of a line of the JSON log, beside the message or among the fields.
pub(super) fn field<'a>(line: &'a Value, name: &str) -> Option<&'a str> {
    line["fields"][name].as_str().or_else(|| line[name].as_str())
}

/// Where something is served, by the line that says so.
fn address_of(line: &str, message: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    (field(&line, "message")? == message).then(|| field(&line, "address").map(str::to_owned))?
}

/// The library by which a process sees another time, if it is installed.
pub fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

/// Lets a program see another time, as faketime is told it: `+10m`.
pub(super) fn set_clock(command: &mut Command, offset: &str) {
    let library = faketime().expect("faketime, which hack/faketime.sh installs");
    // What passes is left as it is: it is told by the monotonic clock.
    command.env("LD_PRELOAD", library).env("FAKETIME", offset);
    command.env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// A running controller. Dropping it kills it.
pub struct Controller {
    /// Its `--identity`.
    pub identity: String,
    child: Child,
    log: Log,
    admin: String,
    probes: String,
    http: reqwest::Client,
    recorder: Option<Arc<Recorder>>,
    /// While it is ready and does not stand still.
    at_work: Mutex<Option<AtWork>>,
}

/// How a controller is started.
pub struct Launch<'a> {
    /// Whether it may connect to loopback addresses, where the token servers are.
    pub loopback: bool,
    /// What it logs.
    pub log: &'a str,
    /// Further arguments.
    pub arguments: &'a [&'a str],
    /// Instead of the one of the namespace's service account.
    pub kubeconfig: Option<&'a str>,
    /// How far its clock is off, as faketime is told: `+10m`.
    pub clock: Option<&'a str>,
    /// Its `--min-fetch-interval`.
    pub min_fetch_interval: &'a str,
}

impl Default for Launch<'_> {
    fn default() -> Self {
        Self {
            loopback: true,
            log: "info,tokencache=trace",
            arguments: &[],
            kubeconfig: None,
            clock: None,
            min_fetch_interval: "0s",
        }
    }
}

impl Controller {
    /// Starts a controller of one namespace, and waits until it is ready.
    pub async fn start(namespace: &Namespace, arguments: &[&str]) -> Self {
        Self::launch(namespace, Launch { arguments, ..Launch::default() }).await
    }

    /// Starts a controller, and waits until it is ready.
    pub async fn launch(namespace: &Namespace, launch: Launch<'_>) -> Self {
        let controller = Box::pin(Self::spawn(namespace, launch)).await;
        controller.ready().await;
        controller
    }

    /// Starts a controller, under the namespace's service account, and waits until its metrics are served.
    pub async fn spawn(namespace: &Namespace, launch: Launch<'_>) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let identity = format!("controller-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let kubeconfig = match launch.kubeconfig {
            Some(kubeconfig) => kubeconfig,
            None => namespace.account().await.kubeconfig(),
        };
        let mut command = command(kubeconfig, launch.log);
        command.args(["controller", "--namespace", &namespace.name, "--metrics-max-age", "0s"]);
        // Tests do in seconds what takes days.
        command.args(["--min-fetch-interval", launch.min_fetch_interval]);
        command.args(["--metrics-address", "127.0.0.1:0", "--probe-address", "127.0.0.1:0"]);
        command.args(["--log-format", "json", "--identity", &identity]);
        command.args(launch.loopback.then_some(LOOPBACK).into_iter().flatten()).args(launch.arguments);
        if let Some(offset) = launch.clock {
            set_clock(&mut command, offset);
        }
        let mut child = command.kill_on_drop(true).spawn().expect("the controller is started");
        let log = Log::default();
        log.follow(child.stdout.take().expect("its stdout"));
        log.follow(child.stderr.take().expect("its stderr"));
        namespace.show_log_of(&identity, log.clone());

        let addresses = within("the controller names its addresses", async {
            let of = |message| log.find(move |line| address_of(line, message));
            tokio::select! {
                addresses = async { (of("serving metrics").await, of("serving probes").await) } => addresses,
                status = child.wait() => panic!("the controller ended ({status:?}):\n{}", log.text()),
            }
        });
        let (admin, probes) = addresses.await;
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let (recorder, at_work) = (namespace.recorder(), Mutex::default());
        Self { identity, child, log, admin, probes, http, recorder, at_work }
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&self) {
        let ready = poll(|| async { (self.ask("/readyz").await?.0 == 200).then_some(()) });
        if tokio::time::timeout(DEADLINE, ready).await.is_err() {
            let answer = self.ask("/readyz").await;
            panic!("not ready within {DEADLINE:?}, but {answer:?}:\n{}", self.log());
        }
        self.set_at_work(true);
    }

    /// Address of its metrics, where probes are answered as well.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Status and text of a path there.
    pub async fn ask(&self, path: &str) -> Option<(u16, String)> {
        self.ask_at(&self.admin, path).await
    }

    /// Status and text of a path of the port for probes.
    pub async fn ask_probes(&self, path: &str) -> Option<(u16, String)> {
        self.ask_at(&self.probes, path).await
    }

    async fn ask_at(&self, address: &str, path: &str) -> Option<(u16, String)> {
        let response = self.http.get(format!("http://{address}{path}")).send().await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    }

    /// Its metrics as they are now.
    pub async fn metrics(&self) -> Metrics {
        let (status, text) = self.ask("/metrics").await.expect("metrics");
        assert_eq!(status, 200, "{text}");
        Metrics(text)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it is running")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    fn set_at_work(&self, at_work: bool) {
        let recorder = self.recorder.as_ref().filter(|_| at_work);
        *self.at_work.lock() = recorder.map(|recorder| recorder.at_work());
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("the signal is sent");
    }

    /// SIGKILL: it has no chance to tidy up.
    pub async fn kill(mut self) {
        self.set_at_work(false);
        self.child.kill().await.expect("it is killed");
    }

    /// SIGSTOP: it stands still and knows nothing of it.
    pub fn stop(&self) {
        self.set_at_work(false);
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn cont(&self) {
        self.signal(Signal::CONT);
        self.set_at_work(true);
    }

    /// SIGTERM: its exit status, and how long it took.
    pub async fn terminate(mut self) -> (ExitStatus, Duration) {
        let start = std::time::Instant::now();
        self.set_at_work(false);
        self.signal(Signal::TERM);
        let status = within("the controller ends on SIGTERM", self.child.wait()).await;
        (status.expect("an exit status"), start.elapsed())
    }
}

/// Runs the binary with a kubeconfig to its end: its exit status and all it wrote.
pub async fn run_to_exit(kubeconfig: &str, arguments: &[&str]) -> (ExitStatus, String) {
    let output = command(kubeconfig, "info").args(arguments).kill_on_drop(true).output();
    let output = within("the program ends", output).await.expect("the program is started");
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

/// How a command of the binary ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

/// Runs the binary as whoever the kubeconfig says, in a namespace.
pub async fn tokencache(kubeconfig: &str, namespace: &str, arguments: &[&str]) -> Ended {
    ended(tokencache_command(kubeconfig, namespace, arguments)).await
}

/// The same with a clock that is off, as faketime is told: `+10m`.
pub async fn tokencache_at(clock: &str, kubeconfig: &str, namespace: &str, arguments: &[&str]) -> Ended {
    let mut command = tokencache_command(kubeconfig, namespace, arguments);
    set_clock(&mut command, clock);
    ended(command).await
}

/// The same, to be changed before it is run.
pub fn tokencache_command(kubeconfig: &str, namespace: &str, arguments: &[&str]) -> Command {
    let (name, rest) = arguments.split_first().expect("a command");
    let mut command = command(kubeconfig, "info");
    command.arg(name).args(["--namespace", namespace]).args(rest);
    command
}

/// A command of the binary that is in progress, to be ended by signals. Dropping it kills it.
pub struct Running(Child);

impl Running {
    /// Starts it in a namespace. `first` makes it process 1, as in a container.
    pub fn start(kubeconfig: &str, namespace: &str, arguments: &[&str], first: bool) -> Self {
        let mut process = command(kubeconfig, "info");
        let (name, rest) = arguments.split_first().expect("a command");
        if first {
            let mut unshare = Command::new("unshare");
            unshare.args(["--pid", "--fork", "--kill-child"]).arg(binary()).env_clear();
            let variables = process.as_std().get_envs().filter_map(|(name, value)| Some((name, value?)));
            unshare.envs(variables).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            process = unshare;
        }
        process.arg(name).args(["--namespace", namespace]).args(rest);
        Self(process.kill_on_drop(true).spawn().expect("it is started"))
    }

    /// Sends a signal, to the child where it is process 1 of its own.
    pub fn signal(&self, signal: Signal) {
        let pid = self.0.id().expect("it is running");
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let pid = children.trim().parse().ok().or(i32::try_from(pid).ok()).and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), signal).expect("the signal is sent");
    }

    /// Waits for its end: the exit code, or nothing where a signal has killed it, and what it printed to stderr.
    pub async fn ended(self) -> (Option<i32>, String) {
        let output = within("the program ends", self.0.wait_with_output()).await.expect("its output");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Runs a program to its end.
pub async fn ended(mut command: Command) -> Ended {
    let output = within("the program ends", command.kill_on_drop(true).output()).await.expect("it is started");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let code = output.status.code().expect("an exit code");
    Ended { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The binary, in an environment that only the test decides.
pub(super) fn command(kubeconfig: &str, log: &str) -> Command {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars() {
        if name.starts_with("TOKENCACHE_") || name.to_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    command.env("KUBECONFIG", kubeconfig).env("TOKENCACHE_LOG", log).env("RUST_LOG", log);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
