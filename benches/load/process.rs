//! What a process uses, as Linux tells it, and the machine.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::support::{Controller, Metrics, memory, poll};

/// Ticks of a second in `/proc/PID/stat`, the same on all of Linux's common platforms.
const TICKS: f64 = 100.0;

/// User and system time of a process, in seconds.
pub fn cpu(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    // The name, in parentheses, may hold spaces.
    let (_, rest) = text.rsplit_once(')').expect("a name");
    let ticks: f64 = rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().expect("ticks")).sum();
    ticks / TICKS
}

/// Resident memory of a process, in MiB.
pub fn memory(controller: &Controller) -> f64 {
    memory::memory(&controller.pid().to_string(), "VmRSS") as f64 / 1024.0
}

/// The most resident memory that it ever had, in MiB.
pub fn peak_memory(controller: &Controller) -> f64 {
    memory::memory(&controller.pid().to_string(), "VmHWM") as f64 / 1024.0
}

/// Waits until a controller that was started at `begun` is ready: how long it took.
pub async fn ready(controller: &Controller, begun: Instant) -> Duration {
    poll(|| async { (controller.ask("/readyz").await?.0 == 200).then_some(()) }).await;
    begun.elapsed()
}

/// What a controller has done and used so far.
pub struct Sample {
    at: Instant,
    cpu: f64,
    metrics: Metrics,
}

impl Sample {
    /// Now.
    pub async fn take(controller: &Controller) -> Self {
        let metrics = controller.metrics().await;
        Self { at: Instant::now(), cpu: cpu(controller.pid()), metrics }
    }

    /// Fetches that went well.
    pub fn fetches(&self) -> f64 {
        self.metrics.sum("tokencache_fetches_total", &[("result", "success")])
    }

    /// All fetches.
    pub fn all_fetches(&self) -> f64 {
        self.metrics.sum("tokencache_fetches_total", &[])
    }

    /// Writes to the API server.
    pub fn writes(&self) -> f64 {
        self.metrics.writes()
    }

    /// Reads from the API server, but for watches.
    pub fn reads(&self) -> f64 {
        self.metrics.reads()
    }

    /// Acquisitions of Leases that ended like this.
    pub fn acquisitions(&self, outcome: &str) -> f64 {
        self.metrics.acquisitions(outcome)
    }

    /// Requests by verb and resource since an earlier sample, most first.
    pub fn requests_since(&self, before: &Self) -> Vec<(String, f64)> {
        let series = |metrics: &Metrics| -> Vec<(String, f64)> {
            let lines = metrics.0.lines().filter_map(|line| line.strip_prefix("tokencache_api_requests_total"));
            let split = lines.filter_map(|line| line.rsplit_once(' '));
            split.map(|(labels, value)| (labels.to_owned(), value.parse().unwrap_or_default())).collect()
        };
        let old = series(&before.metrics);
        let of_old = |labels: &str| old.iter().find(|(found, _)| found == labels).map_or(0.0, |(_, value)| *value);
        let mut new: Vec<_> = series(&self.metrics)
            .into_iter()
            .map(|(labels, value)| {
                let since = value - of_old(&labels);
                (labels, since)
            })
            .collect();
        new.retain(|(_, count)| *count > 0.0);
        new.sort_by(|a, b| b.1.total_cmp(&a.1));
        new
    }

    /// Seconds since an earlier sample.
    pub fn seconds_since(&self, before: &Self) -> f64 {
        self.at.duration_since(before.at).as_secs_f64()
    }

    /// CPU seconds since an earlier sample.
    pub fn cpu_since(&self, before: &Self) -> f64 {
        self.cpu - before.cpu
    }
}

/// Cores, model and kernel of this machine.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(|c: char| c.is_whitespace() || c == ':');
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!("{cores} cores of {model}, Linux {}, load {load} at the end", kernel.trim())
}
