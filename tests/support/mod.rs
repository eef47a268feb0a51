//! What the scenarios need: a cluster, a namespace of their own, controllers as processes, and a token server.

mod agent;
mod cluster;
mod controller;
mod door;
mod flaky;
pub mod github;
pub mod image;
pub mod invariants;
pub mod kubelet;
mod leaks;
pub mod manifests;
pub mod memory;
mod metrics;
pub mod namespace;
mod network;
mod oidc;
pub mod policies;
pub mod rights;
mod rotation;
mod scene;
mod seen;
pub mod spans;

use std::{
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::FutureExt as _;
use parking_lot::Mutex;

use self::invariants::Recorder;
pub use agent::Agent;
pub use cluster::Cluster;
pub use controller::{
    Controller, Ended, Launch, Running, binary, ended, faketime, run_to_exit, tokencache, tokencache_at,
    tokencache_command,
};
pub use door::Door;
pub use flaky::{Action, FlakyApi, Trouble, When};
pub use invariants::Invariant;
pub use leaks::assert_no_leak;
pub use metrics::Metrics;
pub use namespace::{Namespace, version};
pub use network::{Proxy, Relay};
pub use oidc::{OidcProvider, opened};
pub use rights::{Account, chart_rules};
pub use rotation::{refresh_token, state_name};
pub use scene::Scene;
pub use seen::{CacheView, SecretView, holder};

#[path = "../../examples/token-server/server.rs"]
pub mod server;

/// How long a scenario waits for anything. It says nothing about how fast the controller should be: it is what a busy
/// machine with a debug build may need at worst, before a test calls it never.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// One runtime for all scenarios, since they share one client, whose worker lives in a runtime.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(4).thread_stack_size(64 << 20).enable_all().build().expect("a runtime")
});

tokio::task_local! {
    /// What records the namespaces of this scenario.
    static RECORDERS: Mutex<Vec<Arc<Recorder>>>;
}

/// Runs a scenario to its end, and fails if one of the [invariants] did not hold in one of its namespaces.
pub fn scenario(story: impl Future<Output = ()>) {
    recorded(async {
        let ended = AssertUnwindSafe(story).catch_unwind().await;
        let recorders = RECORDERS.with(|recorders| recorders.lock().clone());
        let finished = recorders.iter().inspect(|recorder| recorder.finish());
        let violated: Vec<String> = finished.filter_map(|recorder| recorder.violated()).collect();
        let violated = violated.join("\n");
        if let Err(panic) = ended {
            // The invariants may show why it failed.
            eprintln!("{violated}");
            resume_unwind(panic);
        }
        assert!(violated.is_empty(), "{violated}");
    });
}

/// Runs something to its end, and records its namespaces.
pub fn recorded(story: impl Future<Output = ()>) {
    run(RECORDERS.scope(Mutex::default(), story));
}

/// Runs something to its end, of which nothing is recorded.
pub fn run(story: impl Future<Output = ()>) {
    RUNTIME.block_on(Box::pin(story));
}

/// Does something on a thread of the runtime, whose stack is larger than that of a test's thread.
pub async fn on_worker<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> T {
    RUNTIME.spawn(Box::pin(task)).await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// Spawns what may outlive a scenario.
pub fn in_background(task: impl Future<Output = ()> + Send + 'static) {
    RUNTIME.spawn(task);
}

/// Waits for what has its own way of telling, at most until the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Asks again and again, for what cannot be watched.
pub async fn poll<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let mut pause = tokio::time::interval(Duration::from_millis(100));
    loop {
        pause.tick().await;
        if let Some(value) = ask().await {
            break value;
        }
    }
}

/// Lets time go by where time itself is the condition: to see that nothing happens in it.
pub async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Whether the long variants were asked for.
pub fn long() -> bool {
    std::env::var("TOKENCACHE_LONG").is_ok_and(|value| value == "1")
}
