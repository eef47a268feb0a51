//! What must hold in every world, or in some.

use stateright::Property;

use super::{
    Lock, THIRD, WHOLE,
    world::{Phase, Process, World},
};
use crate::lock::judge::Judgement;

pub(super) fn all() -> Vec<Property<Lock>> {
    vec![
        Property::always(ONE_AT_A_TIME, |_, world: &World| {
            let runs = |process: &&Process| matches!(process.phase, Phase::Holding { .. }) && !process.frozen;
            world.processes.iter().filter(runs).count() <= 1
        }),
        Property::always(NO_HASTE, |_, world: &World| !world.hasty),
        Property::always(NO_STALE_WRITE, |_, world: &World| !world.overwritten),
        Property::always(ONE_DURATION, |lock: &Lock, world: &World| {
            world.processes.iter().filter(|process| process.phase == Phase::Idle).all(|process| {
                let since = process
                    .sighting
                    .filter(|(version, _)| world.lease.as_ref().is_some_and(|lease| lease.version == *version));
                let waited = THIRD * u32::from(since.map_or(0, |(_, since)| since));
                match world.judged(lock.judge, process) {
                    Judgement::Wait(more) => waited + more <= THIRD * u32::from(WHOLE),
                    _ => true,
                }
            })
        }),
        Property::always(NONE_IN_VAIN, |lock: &Lock, world: &World| !lock.is_calm() || world.fetches <= world.needed),
        Property::sometimes(A_VALUE, |_, world: &World| world.secret.valid && world.network.is_empty()),
    ]
}

pub(super) const ONE_AT_A_TIME: &str = "one run at a time";
pub(super) const NO_HASTE: &str = "time in which the Lease cannot be read does not count";
pub(super) const NO_STALE_WRITE: &str = "a stale holder writes nothing";
pub(super) const ONE_DURATION: &str = "a dead holder delays one duration at most";
pub(super) const NONE_IN_VAIN: &str = "no run that is not needed";
pub(super) const A_VALUE: &str = "a value is written";
