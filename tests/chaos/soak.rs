//! An hour of steady load on one controller: `make soak`. Its memory and its file descriptors must not grow.

use std::time::Duration;

use serde_json::json;
use tokencache::api::TokenCache;
use tokio::time::{Instant, interval, sleep};

use super::{population::name, story::setting};
use crate::support::{
    Controller, Launch, Namespace, Scene,
    manifests::token_cache,
    memory, run,
    server::{Behaviour, Options, TokenServer},
};

/// Rows of the table, and so measurements that are kept.
const ROWS: u32 = 60;
/// What the second half may have more than the first, in MiB: what an allocator keeps of a peak. A kilobyte lost in each
/// run would be more within minutes.
const MORE_MEMORY: f64 = 6.0;
/// The same in file descriptors. Connections to the API server are kept for 90 s after many were needed at once; one lost
/// for each TokenCache that was deleted would be more within minutes.
const MORE_FILES: f64 = 20.0;
/// The time that is not looked at: until all have been fetched for the first time, and each way was gone once.
const WARM_UP: f64 = 0.1;

/// What a process has at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Duration,
    /// Resident memory in MiB.
    memory: f64,
    /// Open file descriptors.
    files: f64,
    /// Requests to the token server so far.
    requests: usize,
}

#[test]
#[ignore = "takes an hour: make soak"]
fn a_controller_does_not_grow() {
    run(async {
        let length = Duration::from_secs(setting("TOKENCACHE_CHAOS_SECONDS", 3600));
        let caches: usize = setting("TOKENCACHE_CHAOS_CACHES", 50);
        let (ns, server) = Scene::stage(Options { lifetime: Duration::from_secs(5), ..Options::default() }).await;
        // One in five fails for ever.
        for index in 0..caches {
            match index % 10 {
                8 => server.set(&name(index), Behaviour::Status(503, Vec::new(), String::new())),
                9 => server.set(&name(index), Behaviour::OAuthError("invalid_client", "no such client".into())),
                _ => {}
            }
            ns.create::<TokenCache>(manifest(&server, index)).await;
        }
        let launch = Launch { log: "info", ..Launch::default() };
        let controller = Controller::launch(&ns, launch).await;
        let start = Instant::now();
        let samples = tokio::select! {
            samples = measure(&controller, &server, start, length) => samples,
            () = come_and_go(&ns, &server) => panic!("the load ended by itself"),
        };
        judge(&samples);
    });
}

fn manifest(server: &TokenServer, index: usize) -> serde_json::Value {
    let spec = json!({
        "refresh": {"renewBefore": "2s"}, "retry": {"initialInterval": "1s", "maxInterval": "5s"},
    });
    token_cache(&name(index), server, spec)
}

/// Every two seconds one TokenCache is created that never was before, and the one of 20 s ago is deleted: one in five
/// of them fails.
async fn come_and_go(ns: &Namespace, server: &TokenServer) {
    let mut pause = interval(Duration::from_secs(2));
    for index in 1_000_000.. {
        pause.tick().await;
        if index % 5 == 0 {
            server.set(&name(index), Behaviour::Garbage);
        }
        ns.create::<TokenCache>(manifest(server, index)).await;
        if let Some(old) = index.checked_sub(10).filter(|old| *old >= 1_000_000) {
            ns.delete::<TokenCache>(&name(old)).await;
        }
    }
}

/// Looks at the controller again and again, and shows it as a table.
async fn measure(controller: &Controller, server: &TokenServer, start: Instant, length: Duration) -> Vec<Sample> {
    println!("{:>10} {:>12} {:>8} {:>10}", "seconds", "memory MiB", "files", "requests");
    let mut samples = Vec::new();
    for _ in 0..ROWS {
        sleep(length / ROWS).await;
        let sample = look(controller.pid(), start.elapsed(), server.all_requests());
        let Sample { at, memory, files, requests } = sample;
        println!("{:>10.0} {memory:>12.1} {files:>8} {requests:>10}", at.as_secs_f64());
        samples.push(sample);
    }
    samples
}

fn look(pid: u32, at: Duration, requests: usize) -> Sample {
    let kibibytes = memory::memory(&pid.to_string(), "VmRSS") as f64;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count();
    Sample { at, memory: kibibytes / 1024.0, files: files as f64, requests }
}

/// Compares the two halves of what was measured after the warm-up, each by its middle value.
fn judge(samples: &[Sample]) {
    let begin = (samples.len() as f64 * WARM_UP) as usize;
    let (first, second) = samples[begin..].split_at((samples.len() - begin) / 2);
    for (what, of, more) in [
        ("MiB of memory", (|sample| sample.memory) as fn(&Sample) -> f64, MORE_MEMORY),
        ("file descriptors", |sample| sample.files, MORE_FILES),
    ] {
        let (before, after) = (middle(first, of), middle(second, of));
        println!("{what}: {before:.1} in the first half, {after:.1} in the second");
        assert!(after <= before + more, "{what} grew from {before:.1} to {after:.1}");
    }
    let requests = |half: &[Sample]| half[half.len() - 1].requests - half[0].requests;
    assert!(requests(second) * 2 > requests(first), "the load was steady");
}

fn middle(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
