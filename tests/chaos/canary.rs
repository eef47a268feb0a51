//! Tells when the machine has no time for us: by a few writes to the API server, of which no controller knows, and by how
//! long the controllers' threads wait for a processor.

use std::{collections::HashMap, fs, sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{excuse::CANARY, weather::Scope, world::World};
use crate::support::in_background;

/// As many as a run takes.
const WRITES: usize = 4;

/// Looks from now on.
pub async fn sing(world: &Arc<World>) {
    world.ns.create::<Lease>(json!({"metadata": {"name": "canary"}})).await;
    let world = world.clone();
    in_background(async move {
        let leases: Api<Lease> = world.seen();
        let mut pause = tokio::time::interval(Duration::from_secs(1));
        let (mut waited, mut last) = (HashMap::new(), world.weather.now());
        for turn in 0.. {
            pause.tick().await;
            let from = world.weather.now();
            for write in 0..WRITES {
                let change = Patch::Merge(json!({"spec": {"holderIdentity": format!("{turn} {write}")}}));
                // An API server that does not answer is told of elsewhere.
                let _ = leases.patch("canary", &PatchParams::default(), &change).await;
            }
            let now = world.weather.now();
            if now - from > CANARY {
                world.weather.since(from, Scope::Machine);
            }
            let long = CANARY * (now - last);
            let starved = world.pids().into_iter().filter(|pid| {
                let all = waiting(*pid);
                let before = waited.insert(*pid, all).unwrap_or(all);
                all - before > long
            });
            if starved.count() > 0 {
                world.weather.since(last, Scope::Machine);
            }
            last = now;
        }
    });
}

/// The seconds for which threads of a process could have run and had no processor, in all (`proc_pid_schedstat`).
fn waiting(pid: u32) -> f64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let one = |path: std::path::PathBuf| -> Option<f64> {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok()
    };
    threads.flatten().filter_map(|thread| one(thread.path())).sum::<f64>() / 1e9
}
