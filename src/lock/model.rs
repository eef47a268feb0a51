//! A model of the lock, explored exhaustively: every order in which contenders, a server and the network may act, with
//! crashes, pauses, answers that are lost and writes that arrive late. Whose turn it is decides the very `judge` that
//! runs in production.
//!
//! Time goes in thirds of a Lease's duration: a hold is to be renewed after one, given up after two, and may be taken
//! after three. Clocks of machines do not occur: `Seen` holds no time, and each contender counts from when itself saw
//! a version first, which is as far off from the others' as the order of events allows.

mod properties;
mod tests;
mod world;

use std::time::Duration;

use stateright::{Model, Property};

use self::world::{Doing, Faults, Id, Lease, Phase, Process, Progress, Request, Stored, World, Write};
use super::judge::{Identity, Judgement, Seen};

const OWNER: &str = "uid";
const THIRD: Duration = Duration::from_secs(5);
/// A Lease's duration, in thirds. Longer times are not told apart.
const WHOLE: u8 = 3;

type Judge = fn(Option<&Seen>, &str, &Identity, Duration) -> Judgement;

/// What is explored.
#[derive(Clone)]
struct Lock {
    contenders: usize,
    /// How often each kind of fault may happen.
    faults: Faults,
    judge: Judge,
    /// After how many thirds a hold is given up.
    deadline: u8,
    /// Whether writes of the Lease carry the version that was seen.
    versioned: bool,
    /// Whether writes of the Secret do.
    versioned_value: bool,
    /// Whether a holder looks for a valid value before it fetches one.
    looks_again: bool,
    /// When a holder trusts in what it wrote itself instead.
    trusts: Trust,
    /// Whether the time for which a version has been seen begins again after a read that failed.
    forgets: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Where it has taken the Lease by the very version that its own release made.
    Uninterrupted,
    /// Whoever held the Lease since.
    Blind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// A third of a duration goes by.
    Tick,
    /// Looks at the Lease, judges it, and acts on it.
    Try(usize),
    LookAgain(usize),
    FetchEnds(usize),
    Renew(usize),
    /// A request reaches the server.
    Arrive(usize),
    /// An answer reaches who waits for it.
    Answer(usize),
    /// An answer gets lost.
    Lose(usize),
    /// Who waits for an answer waits no longer.
    GiveUp(usize),
    Crash(usize),
    Freeze(usize),
    Thaw(usize),
    Expire,
    /// The server is away from now on.
    Leave,
    /// Tries to look at the Lease while the server is away.
    Miss(usize),
    /// The server is back.
    Return,
}

impl Lock {
    fn is_late(&self, process: &Process) -> bool {
        matches!(process.phase, Phase::Holding { renewed, .. } if renewed >= self.deadline)
    }

    /// Whether no run is ever cut short, to be done again.
    fn is_calm(&self) -> bool {
        Faults { expiries: 0, ..self.faults } == Faults::NONE
    }

    fn tick(&self, world: &mut World) {
        let older = |age: &mut u8| *age = (*age + 1).min(WHOLE);
        world.network.iter_mut().for_each(|request| older(&mut request.age));
        if !world.away {
            older(&mut world.back);
        }
        for at in 0..world.processes.len() {
            let process = &mut world.processes[at];
            if let Some((_, since)) = &mut process.sighting {
                older(since);
            }
            if let Phase::Holding { renewed, .. } = &mut process.phase {
                older(renewed);
            }
            if !process.frozen && self.is_late(&world.processes[at]) {
                world.give_up(at);
            }
        }
    }

    /// As `Locks::acquire` does.
    fn attempt(&self, world: &mut World, at: usize) -> bool {
        world.look(at);
        let process = &mut world.processes[at];
        process.id.attempt += 1;
        let process = world.processes[at].clone();
        let seen = world.lease.as_ref().map(|lease| lease.version);
        match world.judged(self.judge, &process) {
            Judgement::Create | Judgement::Take { .. } | Judgement::Mine => {
                world.processes[at].phase = Phase::Taking;
                world.send(process.id, Write::Take { seen });
                true
            }
            Judgement::Wait(_) | Judgement::NotOwned => {
                world.processes[at].id.attempt -= 1;
                world.processes[at].sighting != process.sighting || seen.is_some()
            }
        }
    }

    fn arrive(&self, world: &mut World, request: usize) {
        let Request { from, write, progress, .. } = world.network[request];
        let is = |seen: Option<u8>, now: Option<u8>| !self.versioned || seen == now;
        let lease = world.lease.as_ref().map(|lease| lease.version);
        let (accepted, holder) = match write {
            Write::Take { seen } => (is(seen, lease), Some(from)),
            Write::Renew { seen } => (is(Some(seen), lease), Some(from)),
            Write::Free { seen } => (is(Some(seen), lease), None),
            Write::Value { found, run } => {
                let accepted = !self.versioned_value || found == world.secret.version;
                if accepted {
                    world.overwritten |= run < world.secret.by;
                    let version = world.fresh_secret_version();
                    world.secret = Stored { version, valid: true, by: run };
                }
                (accepted, None)
            }
        };
        let mut run = 0;
        let mut version = world.secret.version;
        if accepted && !matches!(write, Write::Value { .. }) {
            let holder_before = world.lease.as_ref().and_then(|lease| lease.holder);
            let is_other = |before: Id| (before.process, before.life) != (from.process, from.life);
            world.hasty |= holder.is_some() && holder_before.is_some_and(is_other) && world.back < WHOLE;
            version = world.fresh_lease_version();
            run = if matches!(write, Write::Take { .. }) { world.fresh_run() } else { 0 };
            world.lease = Some(Lease { version, holder });
        }
        if progress == Progress::Orphan {
            world.network.remove(request);
        } else {
            world.network[request].progress =
                if accepted { Progress::Done { version, run } } else { Progress::Refused };
        }
    }

    /// The process learns how its request ended; `None`: it does not know.
    fn learn(&self, world: &mut World, at: usize, write: Write, answer: Option<(u8, u8)>, age: u8) {
        let id = world.processes[at].id;
        match (write, answer) {
            (Write::Take { seen }, Some((version, run))) => {
                let process = &mut world.processes[at];
                process.sighting = Some((version, 0));
                let uninterrupted = seen.is_some() && (seen == process.released || self.trusts == Trust::Blind);
                let trusted = process.wrote.filter(|_| uninterrupted);
                let doing = trusted.map_or(Doing::Looking, |wrote| Doing::Trusting { wrote });
                process.phase = Phase::Holding { version, renewed: age, run, doing };
                if self.is_late(&world.processes[at]) {
                    world.give_up(at);
                }
            }
            // It may be mine, or somebody was faster: judged again, under the same identity.
            (Write::Take { .. }, None) => {
                world.processes[at].phase = Phase::Idle;
                world.look(at);
                let process = world.processes[at].clone();
                if world.judged(self.judge, &process) == Judgement::Mine {
                    let seen = world.lease.as_ref().map(|lease| lease.version);
                    world.processes[at].phase = Phase::Taking;
                    world.send(id, Write::Take { seen });
                }
            }
            (Write::Renew { .. }, answer) => {
                let mine = world.held_by(id);
                match (&mut world.processes[at].phase, answer, mine) {
                    (Phase::Holding { version, renewed, .. }, Some((new, _)), _) => {
                        (*version, *renewed) = (new, age);
                        if self.is_late(&world.processes[at]) {
                            world.give_up(at);
                        }
                    }
                    (Phase::Holding { version, .. }, None, Some(found)) => *version = found,
                    (Phase::Holding { .. }, None, None) => world.drop_all(at),
                    _ => {}
                }
            }
            (Write::Value { .. }, answer) => {
                world.processes[at].wrote = answer.map(|(version, _)| version);
                world.release(at);
            }
            (Write::Free { .. }, answer) => match (answer, world.held_by(id)) {
                // Refused, or not known: it may still be mine, by a renewal that came after.
                (None, Some(version)) => world.free(at, version),
                (answer, _) => {
                    world.processes[at].released = answer.map(|(version, _)| version);
                    world.processes[at].phase = Phase::Idle;
                }
            },
        }
    }
}

impl Model for Lock {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let processes = (0..self.contenders).map(|process| Process {
            id: Id { process: process as u8, life: 0, attempt: 0 },
            frozen: false,
            sighting: None,
            released: None,
            wrote: None,
            missed: false,
            phase: Phase::Idle,
        });
        vec![World {
            lease: None,
            secret: Stored { version: 0, valid: false, by: 0 },
            processes: processes.collect(),
            network: Vec::new(),
            left: self.faults,
            fetches: 0,
            needed: 1,
            overwritten: false,
            away: false,
            back: WHOLE,
            hasty: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.is_idle() || world.away || world.left.slow > 0 {
            actions.push(Action::Tick);
        }
        // Whatever is under way when the server leaves is another fault.
        if world.left.outages > 0 && world.network.is_empty() {
            actions.push(Action::Leave);
        }
        if world.away && world.is_missed_by_all() {
            actions.push(Action::Return);
        }
        if world.secret.valid && world.left.expiries > 0 {
            actions.push(Action::Expire);
        }
        for (at, process) in world.processes.iter().enumerate() {
            if world.left.crashes > 0 && process.phase != Phase::Idle {
                actions.push(Action::Crash(at));
            }
            if process.frozen {
                actions.push(Action::Thaw(at));
                continue;
            }
            if world.left.pauses > 0 && process.phase != Phase::Idle {
                actions.push(Action::Freeze(at));
            }
            match process.phase {
                Phase::Idle if world.away => actions.push(Action::Miss(at)),
                Phase::Idle => actions.push(Action::Try(at)),
                Phase::Holding { doing: Doing::Looking | Doing::Trusting { .. }, .. } if !world.away => {
                    actions.push(Action::LookAgain(at));
                }
                Phase::Holding { doing: Doing::Fetching { .. }, .. } => actions.push(Action::FetchEnds(at)),
                _ => {}
            }
            if let Phase::Holding { renewed, .. } = process.phase
                && renewed > 0
                && !world.away
                && world.awaits(process.id, |write| matches!(write, Write::Renew { .. })).is_none()
            {
                actions.push(Action::Renew(at));
            }
        }
        for (at, request) in world.network.iter().enumerate() {
            let frozen = world.processes[usize::from(request.from.process)].frozen;
            match request.progress {
                Progress::Sent | Progress::Orphan if world.away => {}
                Progress::Sent => {
                    actions.push(Action::Arrive(at));
                    if !frozen && world.left.delays > 0 {
                        actions.push(Action::GiveUp(at));
                    }
                }
                Progress::Orphan => actions.push(Action::Arrive(at)),
                Progress::Done { .. } | Progress::Refused => {
                    if !frozen {
                        actions.push(Action::Answer(at));
                    }
                    if world.left.losses > 0 {
                        actions.push(Action::Lose(at));
                    }
                }
            }
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        let of = |world: &World, request: usize| usize::from(world.network[request].from.process);
        match action {
            Action::Tick => {
                world.left.slow -= u8::from(!world.is_idle() && !world.away);
                self.tick(&mut world);
            }
            Action::Expire => {
                world.left.expiries -= 1;
                world.needed += 1;
                world.secret.valid = false;
            }
            Action::Try(at) => {
                self.attempt(&mut world, at).then_some(())?;
            }
            Action::LookAgain(at) => {
                let (valid, newest) = (world.secret.valid, world.secret.version);
                let (valid, found) = match world.processes[at].phase {
                    // A watch may be behind: by what it wrote, the value has expired long ago.
                    Phase::Holding { doing: Doing::Trusting { wrote }, .. } => (valid && wrote == newest, wrote),
                    _ => (valid, newest),
                };
                if valid && self.looks_again {
                    world.release(at);
                } else if let Phase::Holding { doing, .. } = &mut world.processes[at].phase {
                    *doing = Doing::Fetching { found };
                    world.fetches += u8::from(self.is_calm());
                }
            }
            Action::FetchEnds(at) => {
                let process = &mut world.processes[at];
                let id = process.id;
                if let Phase::Holding { doing, run, .. } = &mut process.phase
                    && let Doing::Fetching { found } = *doing
                {
                    let write = Write::Value { found, run: *run };
                    *doing = Doing::Writing;
                    world.send(id, write);
                }
            }
            Action::Renew(at) => {
                let Phase::Holding { version, .. } = world.processes[at].phase else { return None };
                world.send(world.processes[at].id, Write::Renew { seen: version });
            }
            Action::Arrive(request) => self.arrive(&mut world, request),
            Action::Answer(request) => {
                let at = of(&world, request);
                let Request { write, age, progress, .. } = world.network.remove(request);
                let answer = match progress {
                    Progress::Done { version, run } => Some((version, run)),
                    _ => None,
                };
                self.learn(&mut world, at, write, answer, age);
            }
            Action::Lose(request) => {
                world.left.losses -= 1;
                let at = of(&world, request);
                let Request { write, age, .. } = world.network.remove(request);
                // Who is frozen finds out when it wakes, which is the same: it knows nothing.
                self.learn(&mut world, at, write, None, age);
            }
            Action::GiveUp(request) => {
                world.left.delays -= 1;
                let at = of(&world, request);
                world.network[request].progress = Progress::Orphan;
                let Request { write, age, .. } = world.network[request];
                self.learn(&mut world, at, write, None, age);
            }
            Action::Leave => {
                world.left.outages -= 1;
                world.away = true;
            }
            Action::Miss(at) => {
                let process = &mut world.processes[at];
                process.missed = true;
                process.sighting = process.sighting.filter(|_| !self.forgets);
            }
            Action::Return => {
                (world.away, world.back) = (false, 0);
                world.processes.iter_mut().for_each(|process| process.missed = false);
            }
            Action::Crash(at) => {
                world.left.crashes -= 1;
                world.drop_all(at);
                let process = &mut world.processes[at];
                process.id = Id { life: process.id.life + 1, attempt: 0, ..process.id };
                (process.frozen, process.sighting, process.released, process.wrote) = (false, None, None, None);
            }
            Action::Freeze(at) => {
                world.left.pauses -= 1;
                world.processes[at].frozen = true;
            }
            Action::Thaw(at) => {
                world.processes[at].frozen = false;
                // The clock tells it before anything else does.
                if self.is_late(&world.processes[at]) {
                    world.give_up(at);
                }
            }
        }
        Some(world.settled())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
