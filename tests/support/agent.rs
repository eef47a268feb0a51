//! The agent as a process, to be asked, stopped and killed.

use std::{
    process::ExitStatus,
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Child;

use super::{
    Namespace,
    controller::{Log, command, field, set_clock},
    poll, within,
};

/// A running agent. Dropping it kills it.
pub struct Agent {
    child: Child,
    log: Log,
    http: reqwest::Client,
    base: String,
}

/// An answer of an agent.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its ETag, or nothing.
    pub etag: String,
    /// When the value expires, or nothing.
    pub expires_at: String,
    /// Its body.
    pub text: String,
}

impl Agent {
    /// Starts an agent as whoever the kubeconfig says. It logs all that it can.
    pub fn start(kubeconfig: &str, namespace: &Namespace, arguments: &[&str]) -> Self {
        Self::start_at(None, kubeconfig, namespace, arguments)
    }

    /// The same with a clock that is off, as faketime is told: `+10m`.
    pub fn start_at(clock: Option<&str>, kubeconfig: &str, namespace: &Namespace, arguments: &[&str]) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let mut command = command(kubeconfig, "trace");
        command.args(["agent", "--namespace", &namespace.name, "--log-format", "json"]).args(arguments);
        if let Some(clock) = clock {
            set_clock(&mut command, clock);
        }
        let mut child = command.kill_on_drop(true).spawn().expect("the agent is started");
        let log = Log::default();
        log.follow(child.stdout.take().expect("its stdout"));
        log.follow(child.stderr.take().expect("its stderr"));
        namespace.show_log_of(&format!("agent-{}", STARTED.fetch_add(1, Ordering::Relaxed)), log.clone());
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        Self { child, log, http, base: String::new() }
    }

    /// Waits until it listens, and asks it there from now on.
    pub async fn listens(&mut self) {
        let address = within("the agent listens", self.log.find(listening)).await;
        let client = reqwest::Client::builder().no_proxy();
        let (client, base) = match address.strip_prefix("unix:") {
            Some(path) => (client.unix_socket(path), "http://localhost".to_owned()),
            None => (client, format!("http://{address}")),
        };
        (self.http, self.base) = (client.build().expect("an HTTP client"), base);
    }

    /// The same agent, asked at another of its addresses.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Asks by GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.base)).header("Tokencache-Request", "true")).await
    }

    /// Asks by GET without the header that a port requires.
    pub async fn get_plainly(&self, path: &str) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    /// Asks by GET with a header.
    pub async fn get_with(&self, path: &str, header: (&str, &str)) -> Answer {
        self.send(
            self.http
                .get(format!("{}{path}", self.base))
                .header("Tokencache-Request", "true")
                .header(header.0, header.1),
        )
        .await
    }

    /// Asks by POST, on the condition that the value is the one with this tag.
    pub async fn post(&self, path: &str, etag: Option<&str>) -> Answer {
        let request = self.http.post(format!("{}{path}", self.base)).header("Tokencache-Request", "true");
        self.send(etag.into_iter().fold(request, |request, etag| request.header("If-Match", etag))).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = within("the agent answers", request.send()).await.expect("an answer");
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (status, etag) = (response.status().as_u16(), header("ETag"));
        let expires_at = header("Tokencache-Expires-At");
        Answer { status, etag, expires_at, text: response.text().await.expect("text") }
    }

    /// Waits until `/healthz` has this status and text.
    pub async fn await_health(&self, status: u16, part: &str) -> String {
        let what = format!("/healthz says {status} with {part}");
        let ask = || async {
            let answer = self.get("/healthz").await;
            (answer.status == status && answer.text.contains(part)).then_some(answer.text)
        };
        within(&what, poll(ask)).await
    }

    /// Waits for a line of the log that has this part.
    pub async fn says(&self, part: &str) {
        within(&format!("the agent says {part}"), self.log.find(|line| line.contains(part).then_some(()))).await;
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self) -> ExitStatus {
        within("the agent ends", self.child.wait()).await.expect("an exit status")
    }

    /// SIGTERM, and its exit status.
    pub async fn terminate(self) -> ExitStatus {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).expect("it is running");
        kill_process(pid, Signal::TERM).expect("the signal is sent");
        self.ended().await
    }

    /// SIGKILL: it has no chance to tidy up.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it is killed");
    }
}

fn listening(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    (field(&line, "message")? == "listening").then(|| field(&line, "address").map(str::to_owned))?
}
