//! Which faults come when: from a seed alone, so that a run can be repeated.

use std::{collections::HashMap, time::Duration};

use http::StatusCode;
use rand::{
    Rng as _, RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};

/// How many controllers there are.
pub const SLOTS: usize = 3;

/// Something that goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A controller is killed, and another one started in its place after a while.
    Kill { slot: usize, down: Duration },
    /// A controller stands still.
    Freeze { slot: usize, length: Duration },
    /// A controller is told to end, and another one started in its place.
    Terminate { slot: usize },
    /// A controller is told to end, and the clocks of those that are started in its place are off, of no others.
    Clock { slot: usize, off: &'static str },
    /// The token server misbehaves.
    Server { illness: Illness, length: Duration },
    /// A part of the control plane is killed, and started again after a while.
    Restart { part: &'static str, down: Duration },
    /// A part of the control plane stands still.
    FreezePlane { part: &'static str, length: Duration },
    /// Requests of a controller to the API server, or of all, fail at random.
    Storm { slots: Vec<usize>, storm: Storm, length: Duration },
    /// All watches of a controller break.
    DropWatches { slot: usize },
    /// Nothing arrives on the watches of a controller any more, for a while.
    SilentWatches { slot: usize, length: Duration },
}

/// How the token server misbehaves.
#[derive(Clone, Copy, Debug)]
pub enum Illness {
    /// It answers after this time.
    Slow(Duration),
    /// It answers with this status.
    Failing(u16),
    /// It closes the connection.
    Closing,
    /// It never answers.
    Hanging,
    /// Nobody listens.
    Gone,
}

/// How requests to the API server fail.
#[derive(Clone, Copy, Debug)]
pub enum Storm {
    /// With this status; with a server error, some of them after they were carried out.
    Status(StatusCode),
    /// By a cut connection, after they were carried out.
    Cuts,
    /// They come late.
    Late(Duration),
}

/// What others do to objects; small, and all the time.
#[derive(Clone, Copy, Debug)]
pub enum Touch {
    /// The Secret is deleted.
    DeleteSecret,
    /// The Secret's data is changed.
    EditData,
    /// The Secret's annotation is changed, so that it says that its value lives long.
    EditExpiry,
    /// A label is put on the Secret.
    EditLabel,
    /// The spec of the TokenCache is changed.
    EditCache,
    /// The TokenCache is deleted, and made anew after a while.
    Renew(Duration),
    /// A new value is asked for.
    Request,
}

/// What happens, and when.
#[derive(Clone, Debug)]
pub struct Planned<T> {
    /// Seconds after the beginning.
    pub at: f64,
    /// What happens.
    pub what: T,
}

/// The faults of a run of that many seconds. Each kind comes before any comes again; what is in trouble already is not
/// disturbed in the same way once more.
pub fn faults(seed: u64, seconds: f64, lease: Duration) -> Vec<Planned<Fault>> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut planned, mut busy, mut at) = (Vec::new(), HashMap::<&'static str, f64>::new(), 2.0);
    loop {
        let mut kinds: Vec<usize> = (0..KINDS).collect();
        kinds.shuffle(&mut random);
        for kind in kinds {
            let (fault, resource, length) = fault(kind, &mut random, lease);
            let from = busy.get(resource).copied().unwrap_or_default().max(at);
            if from + length <= seconds {
                busy.insert(resource, from + length + 1.0);
                planned.push(Planned { at: from, what: fault });
                at += random.random_range(1.5..4.5);
            } else if at > seconds - SHORTEST {
                planned.sort_by(|a: &Planned<Fault>, b| a.at.total_cmp(&b.at));
                return planned;
            } else {
                at += 0.1;
            }
        }
    }
}

/// No fault is much shorter, in seconds; at the end of a run there is no room for more.
const SHORTEST: f64 = 3.0;

/// The kinds that [`fault`] knows.
const KINDS: usize = 21;
const PROCESSES: [&str; SLOTS] = ["process 0", "process 1", "process 2"];
const WAYS: &str = "ways";

/// A fault of this kind, what it disturbs, and for how many seconds.
fn fault(kind: usize, random: &mut StdRng, lease: Duration) -> (Fault, &'static str, f64) {
    let slot = (random.next_u64() % SLOTS as u64) as usize;
    let code = *[409, 429, 500, 504].choose(random).expect("one of them");
    let mut seconds = |least: f64, most: f64| Duration::from_secs_f64(random.random_range(least..most));
    let process = PROCESSES[slot];
    let status = |code| Storm::Status(StatusCode::from_u16(code).expect("a status"));
    let server = |illness, length: Duration| (Fault::Server { illness, length }, "server", length.as_secs_f64());
    let plane = |fault, length: Duration| (fault, "plane", length.as_secs_f64() + 8.0);
    let (one, all) = (vec![slot], (0..SLOTS).collect::<Vec<_>>());
    let storm = |slots, storm, length: Duration| (Fault::Storm { slots, storm, length }, WAYS, length.as_secs_f64());
    match kind {
        0 | 1 => (Fault::Kill { slot, down: seconds(0.0, 3.0) }, process, 6.0),
        2 | 3 => {
            let length = lease + seconds(3.0, 8.0);
            (Fault::Freeze { slot, length }, process, length.as_secs_f64())
        }
        4 => (Fault::Terminate { slot }, process, 12.0),
        5 => (Fault::Clock { slot, off: "+10m" }, process, 12.0),
        6 => (Fault::Clock { slot, off: "-10m" }, process, 12.0),
        7 => server(Illness::Slow(seconds(0.5, 1.5)), seconds(3.0, 8.0)),
        8 => server(Illness::Failing(503), seconds(2.0, 6.0)),
        9 => server(Illness::Closing, seconds(2.0, 6.0)),
        10 => server(Illness::Hanging, seconds(2.0, 6.0)),
        11 => server(Illness::Gone, seconds(2.0, 8.0)),
        12 => {
            let down = seconds(0.0, 3.0);
            plane(Fault::Restart { part: super::plane::API_SERVER, down }, down)
        }
        13 => {
            let down = seconds(0.0, 3.0);
            plane(Fault::Restart { part: super::plane::ETCD, down }, down)
        }
        14 => {
            let length = seconds(2.0, lease.as_secs_f64() + 4.0);
            plane(Fault::FreezePlane { part: super::plane::API_SERVER, length }, length)
        }
        15 => storm(one, status(code), seconds(3.0, 8.0)),
        16 => storm(all, status(code), seconds(3.0, 8.0)),
        17 => storm(all, Storm::Cuts, seconds(3.0, 8.0)),
        18 => storm(one, Storm::Late(seconds(0.5, 2.0)), seconds(3.0, 8.0)),
        19 => (Fault::DropWatches { slot }, WAYS, 0.0),
        _ => {
            let length = seconds(3.0, 10.0);
            (Fault::SilentWatches { slot, length }, WAYS, length.as_secs_f64())
        }
    }
}

/// What others do to objects in a run of that many seconds, and to which of so many.
pub fn touches(seed: u64, seconds: f64, caches: usize) -> Vec<Planned<(usize, Touch)>> {
    let mut random = StdRng::seed_from_u64(seed ^ 1);
    // About once in 40 s for each object.
    let rate = caches as f64 / 40.0;
    let (mut planned, mut at) = (Vec::new(), 1.0);
    while at < seconds {
        let touch = match random.next_u64() % 10 {
            0..3 => Touch::DeleteSecret,
            3 => Touch::EditData,
            4 => Touch::EditExpiry,
            5 => Touch::EditLabel,
            6 | 7 => Touch::EditCache,
            8 => Touch::Renew(Duration::from_secs_f64(random.random_range(0.0..4.0))),
            _ => Touch::Request,
        };
        planned.push(Planned { at, what: ((random.next_u64() % caches as u64) as usize, touch) });
        at += random.random_range(0.0..2.0) / rate;
    }
    planned
}

#[test]
fn a_seed_gives_the_same_faults_again_and_every_kind_comes() {
    let lease = Duration::from_secs(5);
    let text = |seed| format!("{:?}", faults(seed, 120.0, lease));
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
    for kind in [
        "Kill",
        "Hanging",
        "Slow",
        "Gone",
        "Closing",
        "Failing",
        "etcd",
        "kube-apiserver",
        "Cuts",
        "Late",
        "Freeze {",
        "Terminate",
        "Clock",
        "Server",
        "Restart",
        "FreezePlane",
        "Storm",
        "DropWatches",
        "SilentWatches",
    ] {
        assert!(text(7).contains(kind), "{kind} in {}", text(7));
    }
    assert!(faults(7, 120.0, lease).is_sorted_by(|a, b| a.at <= b.at));
}
