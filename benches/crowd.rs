//! 64 callers at once of a fetch that takes 50 ms: how long until the last is served, by a value or by the reason.
//!
//! ```sh
//! hack/cluster.sh run -- cargo bench --bench crowd
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that cannot go on ends")]
#![allow(clippy::large_futures, reason = "a benchmark makes each of its futures once")]
#![allow(clippy::print_stdout, reason = "its figures are what it prints")]
#![allow(dead_code, unused_imports, reason = "the scenarios need more of it")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use support::{Launch, Scene, run, server::Behaviour, server::Options};
use tokencache::client::Client;

const CALLERS: usize = 64;
const ROUNDS: usize = 9;
const FETCH: Duration = Duration::from_millis(50);

async fn crowd(scene: &Scene, what: &str, clients: usize, fails: bool) {
    let answer = if fails { Behaviour::Status(500, Vec::new(), String::new()) } else { Behaviour::Default };
    let mut times = Vec::new();
    let mut runs = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("{}-{clients}-{round}", if fails { "bad" } else { "good" });
        scene.server.set(&name, Behaviour::After(FETCH, Box::new(answer.clone())));
        let spec = json!({"refresh": {"policy": "Lazy"}, "retry": {"initialInterval": "1h", "maxInterval": "1h"}});
        scene.cache(&name, spec).await;
        scene.ns.await_ready(&name, false, "Cleared").await;
        let all: Vec<Client> = (0..clients).map(|_| Client::new(scene.ns.client().clone(), &scene.ns.name)).collect();
        let begun = Instant::now();
        let calls = (0..CALLERS).map(|n| {
            let (client, name) = (all[n % clients].clone(), name.clone());
            tokio::spawn(async move {
                let fetched = client.fetch(&name).await;
                (fetched.is_ok(), begun.elapsed())
            })
        });
        let served: Vec<(bool, Duration)> =
            join_all(calls).await.into_iter().map(|call| call.expect("a call")).collect();
        assert!(served.iter().all(|(good, _)| *good != fails), "round {round}");
        times.push(served.iter().map(|(_, time)| *time).max().expect("callers"));
        runs.push(scene.server.requests(&name));
    }
    times.sort_unstable();
    let (median, worst) = (times[ROUNDS / 2].as_millis(), times[ROUNDS - 1].as_millis());
    let most = runs.into_iter().max().unwrap_or_default();
    println!("{what:<58} {median:>5} ms median of {ROUNDS}, {worst:>5} ms worst, at most {most} runs");
}

fn main() {
    if std::env::var("TOKENCACHE_TEST_KUBECONFIG").is_err() {
        println!("skipped: TOKENCACHE_TEST_KUBECONFIG names no cluster; run it by hack/cluster.sh run --");
        return;
    }
    run(async {
        let scene = Scene::with(Launch { log: "warn,tokencache=info", ..Launch::default() }, Options::default()).await;
        for (what, clients, fails) in [
            ("64 callers in one process, success", 1, false),
            ("64 callers in one process, failure", 1, true),
            ("64 callers that know nothing of each other, success", CALLERS, false),
            ("64 callers that know nothing of each other, failure", CALLERS, true),
        ] {
            crowd(&scene, what, clients, fails).await;
        }
    });
}
