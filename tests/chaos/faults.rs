//! How each fault is carried out, and how its end is known.

use std::{sync::Arc, time::Duration};

use super::{
    plane,
    rhythm::rhythm,
    schedule::{Fault, Illness, Storm},
    weather::Scope,
    world::World,
};
use crate::support::{
    Trouble, When,
    server::{Behaviour, Expiry},
};

/// Lets a fault happen, and waits for its end.
pub async fn happen(world: &Arc<World>, fault: Fault) {
    match fault {
        Fault::Kill { slot, down } => world.kill(slot, down).await,
        Fault::Freeze { slot, length } => world.freeze(slot, length).await,
        Fault::Terminate { slot } => world.terminate(slot).await,
        Fault::Clock { slot, off } => world.misset(slot, off).await,
        Fault::Server { illness, length } => sicken(world, illness, length).await,
        Fault::Restart { part, down } => without_plane(world, plane::restart(part, down)).await,
        Fault::FreezePlane { part, length } => without_plane(world, plane::freeze(part, length)).await,
        Fault::Storm { slots, storm, length } => {
            let spells: Vec<_> = slots.iter().map(|slot| world.weather.begin(Scope::Way(*slot))).collect();
            slots.iter().for_each(|slot| world.ways[*slot].set(trouble(storm)));
            tokio::time::sleep(length).await;
            slots.iter().for_each(|slot| world.ways[*slot].set(Trouble::default()));
            spells.into_iter().for_each(super::weather::Spell::end);
        }
        Fault::DropWatches { slot } => world.ways[slot].drop_watches(),
        Fault::SilentWatches { slot, length } => {
            // Those that begin meanwhile are not silent.
            let watches = When::any().watches();
            let silent = world.weather.begin(Scope::Watches(slot));
            world.ways[slot].freeze(&watches);
            tokio::time::sleep(length).await;
            world.ways[slot].thaw(&watches);
            silent.end();
        }
    }
}

/// Troubles the control plane, one trouble at a time, until it has recovered.
async fn without_plane(world: &World, trouble: impl Future<Output = ()>) {
    let _turn = world.plane.lock().await;
    let away = world.weather.begin(Scope::Plane);
    trouble.await;
    plane::recovered(world.ns.client()).await;
    away.end();
}

fn trouble(storm: Storm) -> Trouble {
    match storm {
        Storm::Status(status) => {
            // Only writes are answered with a conflict.
            let reads = status != http::StatusCode::CONFLICT;
            // A client error means that the request was not carried out.
            let belied = if status.is_server_error() { 15 } else { 0 };
            Trouble { refused: 30 - belied, belied, status, reads, ..Trouble::default() }
        }
        Storm::Cuts => Trouble { cut: 30, reads: true, ..Trouble::default() },
        Storm::Late(delay) => Trouble { delay, ..Trouble::default() },
    }
}

/// How the token server answers when it is well: not at once, so that faults fall into the midst of requests.
pub fn well(cache: &str) -> Behaviour {
    slow(Duration::from_millis(300), cache)
}

fn slow(delay: Duration, cache: &str) -> Behaviour {
    Behaviour::After(delay, Box::new(Behaviour::Issue(Expiry::In(rhythm(cache).lifetime.as_secs()))))
}

async fn sicken(world: &World, illness: Illness, length: Duration) {
    let ill = world.weather.begin(Scope::Server);
    let set = |behaviour: &dyn Fn(&str) -> Behaviour| {
        world.names.iter().for_each(|name| world.server.set(name, behaviour(name)));
    };
    match illness {
        Illness::Slow(delay) => set(&|name| slow(delay, name)),
        Illness::Failing(status) => set(&|_| Behaviour::Status(status, Vec::new(), String::new())),
        Illness::Closing => set(&|_| Behaviour::Close),
        Illness::Hanging => set(&|_| Behaviour::Hang),
        Illness::Gone => world.door.set_open(false),
    }
    tokio::time::sleep(length).await;
    set(&well);
    world.door.set_open(true);
    ill.end();
}
