//! Tells when the machine has no time for us: a few writes to the API server, again and again, of which no controller
//! knows.

use std::{sync::Arc, time::Duration};

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
        let leases: Api<Lease> = world.ns.api();
        let mut pause = tokio::time::interval(Duration::from_secs(1));
        for turn in 0.. {
            pause.tick().await;
            let from = world.weather.now();
            for write in 0..WRITES {
                let change = Patch::Merge(json!({"spec": {"holderIdentity": format!("{turn} {write}")}}));
                // An API server that does not answer is told of elsewhere.
                let _ = leases.patch("canary", &PatchParams::default(), &change).await;
            }
            if world.weather.now() - from > CANARY {
                world.weather.since(from, Scope::Machine);
            }
        }
    });
}
