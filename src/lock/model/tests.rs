//! The lock is explored as it is, and with faults in it that have to be found.

use std::time::Duration;

use stateright::{Checker as _, HasDiscoveries, Model as _};

use super::{
    Faults, Judge, Lock, THIRD, Trust, WHOLE,
    properties::{A_VALUE, NO_HASTE, NO_STALE_WRITE, NONE_IN_VAIN, ONE_AT_A_TIME, ONE_DURATION},
};
use crate::lock::judge::{Judgement, judge};

const SOUND: Lock = Lock {
    contenders: 2,
    faults: Faults::NONE,
    judge,
    deadline: 2,
    versioned: true,
    versioned_value: true,
    looks_again: true,
    trusts: Trust::Uninterrupted,
    forgets: true,
};

#[test]
fn the_lock_holds_in_every_order_of_events() {
    let none = Faults::NONE;
    for (contenders, faults) in [
        (2, Faults { expiries: 2, ..none }),
        (3, none),
        (2, Faults { crashes: 1, ..none }),
        (2, Faults { pauses: 1, ..none }),
        (2, Faults { losses: 2, ..none }),
        (2, Faults { delays: 1, ..none }),
        (2, Faults { slow: 1, ..none }),
        (2, Faults { outages: 1, ..none }),
        (2, Faults { crashes: 1, losses: 1, ..none }),
    ] {
        Lock { contenders, faults, ..SOUND }.checker().threads(2).spawn_bfs().join().assert_properties();
    }
}

/// Which property a fault of the lock is seen to break.
fn broken(lock: Lock) -> Vec<&'static str> {
    let checker = lock.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    checker.discoveries().into_keys().filter(|name| *name != A_VALUE).collect()
}

#[test]
fn a_judge_that_errs_is_found_out() {
    let impatient: Judge = |lease, owner, me, unchanged| judge(lease, owner, me, unchanged + 2 * THIRD);
    let reckless: Judge = |lease, _, _, _| match lease {
        None => Judgement::Create,
        Some(lease) => Judgement::Take { transitions: lease.transitions },
    };
    let forgetful: Judge = |lease, owner, me, _| judge(lease, owner, me, Duration::ZERO);
    let gullible: Judge = |lease, owner, me, unchanged| match judge(lease, owner, me, unchanged) {
        Judgement::Wait(_) if unchanged > Duration::ZERO => Judgement::Mine,
        judgement => judgement,
    };
    for (name, judge, expected) in [
        ("takes a Lease too early", impatient, ONE_AT_A_TIME),
        ("takes a Lease that is held", reckless, ONE_AT_A_TIME),
        ("takes a Lease for its own", gullible, ONE_AT_A_TIME),
        ("never takes a dead holder's", forgetful, ONE_DURATION),
    ] {
        let faults = Faults { crashes: 1, ..Faults::NONE };
        assert!(broken(Lock { judge, faults, ..SOUND }).contains(&expected), "{name}");
    }
}

#[test]
fn a_protocol_that_leaves_a_step_out_is_found_out() {
    let (pauses, delays) = (Faults { pauses: 1, ..Faults::NONE }, Faults { delays: 1, ..Faults::NONE });
    let expiries = Faults { expiries: 2, ..Faults::NONE };
    let outages = Faults { outages: 1, ..Faults::NONE };
    for (name, lock, expected) in [
        ("writes without a version", Lock { versioned: false, ..SOUND }, ONE_AT_A_TIME),
        ("writes a value without a version", Lock { versioned_value: false, faults: delays, ..SOUND }, NO_STALE_WRITE),
        ("does not look again", Lock { looks_again: false, ..SOUND }, NONE_IN_VAIN),
        (
            "trusts in what others may have changed",
            Lock { trusts: Trust::Blind, faults: expiries, ..SOUND },
            NONE_IN_VAIN,
        ),
        ("counts time without an answer", Lock { forgets: false, faults: outages, ..SOUND }, NO_HASTE),
        ("never gives a hold up", Lock { deadline: WHOLE + 1, faults: pauses, ..SOUND }, ONE_AT_A_TIME),
    ] {
        let found = broken(lock);
        assert!(found.contains(&expected), "{name}: {found:?}");
    }
}
