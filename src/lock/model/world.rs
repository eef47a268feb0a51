//! What there is in the model: the server's objects, the contenders, and what is under way between them.

use super::{Judge, OWNER, THIRD, WHOLE};
use crate::lock::judge::{Identity, Judgement, Seen};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    pub(super) crashes: u8,
    pub(super) pauses: u8,
    /// Answers that never come.
    pub(super) losses: u8,
    /// Requests that are given up by their sender and arrive all the same.
    pub(super) delays: u8,
    /// Thirds of a duration that go by while a request is under way, or a renewal overdue.
    pub(super) slow: u8,
    /// How often the server may be away.
    pub(super) outages: u8,
    /// Not a fault: how often the value may expire.
    pub(super) expiries: u8,
}

impl Faults {
    pub(super) const NONE: Self =
        Self { crashes: 0, pauses: 0, losses: 0, delays: 0, slow: 0, outages: 0, expiries: 0 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) process: u8,
    /// Counts its restarts, as the nonce does.
    pub(super) life: u8,
    pub(super) attempt: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) lease: Option<Lease>,
    pub(super) secret: Stored,
    pub(super) processes: Vec<Process>,
    pub(super) network: Vec<Request>,
    pub(super) left: Faults,
    pub(super) fetches: u8,
    pub(super) needed: u8,
    /// An older run wrote over a newer one's value.
    pub(super) overwritten: bool,
    /// The server is away: nothing reaches it.
    pub(super) away: bool,
    /// How long it has been back.
    pub(super) back: u8,
    /// A Lease was taken from its holder before the server had been back for a duration.
    pub(super) hasty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) version: u8,
    pub(super) holder: Option<Id>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    pub(super) version: u8,
    pub(super) valid: bool,
    /// Which run wrote it, counted in the order in which they took the Lease.
    pub(super) by: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) id: Id,
    pub(super) frozen: bool,
    /// The version of the Lease that it saw last, and for how long.
    pub(super) sighting: Option<(u8, u8)>,
    /// The version of the Lease that its last release made, while that is the newest.
    pub(super) released: Option<u8>,
    /// The version of the Secret that its last run wrote.
    pub(super) wrote: Option<u8>,
    /// It has tried to look at the Lease while the server was away.
    pub(super) missed: bool,
    pub(super) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Idle,
    /// Waits for the answer to its write.
    Taking,
    Holding {
        version: u8,
        /// How long ago the request was sent that renewed it last.
        renewed: u8,
        run: u8,
        doing: Doing,
    },
    Releasing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    Looking,
    /// Goes by what its last run wrote, since nobody has held the Lease since.
    Trusting {
        wrote: u8,
    },
    Fetching {
        found: u8,
    },
    Writing,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Request {
    pub(super) from: Id,
    pub(super) write: Write,
    /// How long ago it was sent.
    pub(super) age: u8,
    pub(super) progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Write {
    Take { seen: Option<u8> },
    Renew { seen: u8 },
    Free { seen: u8 },
    Value { found: u8, run: u8 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Progress {
    /// On its way, with somebody who waits for the answer.
    Sent,
    /// On its way; nobody waits any more.
    Orphan,
    /// The server has taken it, with the object's new version and the number of the run.
    Done { version: u8, run: u8 },
    /// The server has refused it.
    Refused,
}

fn seen_as(lease: &Lease) -> Seen {
    Seen {
        resource_version: lease.version.to_string(),
        owner: Some(OWNER.into()),
        same_name: true,
        holder: lease.holder.map(|id| identity(id).to_string()),
        duration: THIRD * u32::from(WHOLE),
        transitions: 0,
    }
}

fn identity(Id { process, life, attempt }: Id) -> Identity {
    Identity::new(&process.to_string(), &life.to_string(), attempt.into())
}

impl World {
    pub(super) fn judged(&self, by: Judge, process: &Process) -> Judgement {
        let seen = self.lease.as_ref().map(seen_as);
        let known = self.lease.as_ref().zip(process.sighting).filter(|(lease, (version, _))| lease.version == *version);
        let unchanged = known.map_or(0, |(_, (_, since))| since);
        by(seen.as_ref(), OWNER, &identity(process.id), THIRD * u32::from(unchanged))
    }

    /// Whether nothing happens unless time goes by.
    pub(super) fn is_idle(&self) -> bool {
        let awake = |id: Id| !self.processes[usize::from(id.process)].frozen;
        let waits = |request: &Request| request.progress != Progress::Orphan && awake(request.from);
        let overdue = |process: &Process| {
            matches!(process.phase, Phase::Holding { renewed, .. } if renewed > 0) && !process.frozen
        };
        !self.network.iter().any(waits) && !self.processes.iter().any(overdue)
    }

    /// Whether all that want the Lease know that the server is away. It is away for longer than they pause.
    pub(super) fn is_missed_by_all(&self) -> bool {
        self.processes.iter().all(|process| process.missed || process.phase != Phase::Idle)
    }

    pub(super) fn look(&mut self, at: usize) {
        let version = self.lease.as_ref().map(|lease| lease.version);
        let process = &mut self.processes[at];
        if process.sighting.map(|(version, _)| version) != version {
            process.sighting = version.map(|version| (version, 0));
        }
    }

    /// The version of the Lease, if it names this attempt.
    pub(super) fn held_by(&self, id: Id) -> Option<u8> {
        self.lease.as_ref().filter(|lease| lease.holder == Some(id)).map(|lease| lease.version)
    }

    pub(super) fn send(&mut self, from: Id, write: Write) {
        self.network.push(Request { from, write, age: 0, progress: Progress::Sent });
    }

    pub(super) fn awaits(&self, of: Id, kind: impl Fn(&Write) -> bool) -> Option<usize> {
        let awaited = |request: &Request| request.from == of && request.progress != Progress::Orphan;
        self.network.iter().position(|request| awaited(request) && kind(&request.write))
    }

    /// It has lost its hold: it ends what it was doing, and lets go of the Lease, which may be its own still.
    pub(super) fn give_up(&mut self, at: usize) {
        let Phase::Holding { version, .. } = self.processes[at].phase else { return };
        self.drop_all(at);
        // What it has sent may be written still.
        self.processes[at].wrote = None;
        self.free(at, version);
    }

    /// It ends what it was doing; what it has sent goes on without it.
    pub(super) fn drop_all(&mut self, at: usize) {
        let process = &mut self.processes[at];
        process.phase = Phase::Idle;
        let id = process.id;
        self.network.retain_mut(|request| {
            if request.from == id && request.progress == Progress::Sent {
                request.progress = Progress::Orphan;
            }
            request.from != id || request.progress == Progress::Orphan
        });
    }

    pub(super) fn release(&mut self, at: usize) {
        let Phase::Holding { version, .. } = self.processes[at].phase else { return };
        self.free(at, version);
    }

    pub(super) fn free(&mut self, at: usize, seen: u8) {
        let process = &mut self.processes[at];
        process.phase = Phase::Releasing;
        let id = process.id;
        self.send(id, Write::Free { seen });
    }
}

impl World {
    /// Versions that are still known to anybody, to be numbered anew: only whether they are equal counts.
    fn lease_versions(&mut self) -> Vec<&mut u8> {
        let mut versions: Vec<&mut u8> = self.lease.iter_mut().map(|lease| &mut lease.version).collect();
        for process in &mut self.processes {
            versions.extend(process.sighting.as_mut().map(|(version, _)| version));
            versions.extend(process.released.as_mut());
            if let Phase::Holding { version, .. } = &mut process.phase {
                versions.push(version);
            }
        }
        for request in &mut self.network {
            match (&mut request.write, &mut request.progress) {
                (Write::Value { .. }, _) => continue,
                (_, Progress::Done { version, .. }) => versions.push(version),
                _ => {}
            }
            match &mut request.write {
                Write::Take { seen } => versions.extend(seen.as_mut()),
                Write::Renew { seen } | Write::Free { seen } => versions.push(seen),
                Write::Value { .. } => {}
            }
        }
        versions
    }

    fn secret_versions(&mut self) -> Vec<&mut u8> {
        let mut versions = vec![&mut self.secret.version];
        for process in &mut self.processes {
            versions.extend(process.wrote.as_mut());
            if let Phase::Holding {
                doing: Doing::Fetching { found: known } | Doing::Trusting { wrote: known }, ..
            } = &mut process.phase
            {
                versions.push(known);
            }
        }
        for request in &mut self.network {
            if let Write::Value { found, .. } = &mut request.write {
                versions.push(found);
                if let Progress::Done { version, .. } = &mut request.progress {
                    versions.push(version);
                }
            }
        }
        versions
    }

    fn runs(&mut self) -> Vec<&mut u8> {
        let mut runs = vec![&mut self.secret.by];
        for process in &mut self.processes {
            if let Phase::Holding { run, .. } = &mut process.phase {
                runs.push(run);
            }
        }
        for request in &mut self.network {
            match (&mut request.write, &mut request.progress) {
                (Write::Value { run, .. }, _) | (Write::Take { .. }, Progress::Done { run, .. }) => runs.push(run),
                _ => {}
            }
        }
        runs
    }

    fn attempts(&mut self, process: u8) -> Vec<&mut u8> {
        let of_requests = self.network.iter_mut().map(|request| &mut request.from);
        let of_processes = self.processes.iter_mut().map(|process| &mut process.id);
        let holder = self.lease.iter_mut().filter_map(|lease| lease.holder.as_mut());
        let all = of_requests.chain(of_processes).chain(holder);
        all.filter(|id| id.process == process).map(|id| &mut id.attempt).collect()
    }

    pub(super) fn fresh_lease_version(&mut self) -> u8 {
        fresh(self.lease_versions())
    }

    pub(super) fn fresh_secret_version(&mut self) -> u8 {
        fresh(self.secret_versions())
    }

    pub(super) fn fresh_run(&mut self) -> u8 {
        fresh(self.runs())
    }

    /// Forgets what nobody can know any more, and gives equal worlds equal numbers, so that there is an end of them.
    pub(super) fn settled(mut self) -> Self {
        let lease = self.lease.as_ref().map(|lease| lease.version);
        for process in &mut self.processes {
            let looks = process.phase == Phase::Idle;
            process.sighting = process.sighting.filter(|(version, _)| looks && Some(*version) == lease);
            process.released = process.released.filter(|version| Some(*version) == lease);
        }
        for request in &mut self.network {
            if request.progress == Progress::Orphan || matches!(request.write, Write::Value { .. } | Write::Free { .. })
            {
                request.age = 0;
            }
        }
        number(self.lease_versions());
        number(self.secret_versions());
        number(self.runs());
        for process in 0..self.processes.len() {
            number(self.attempts(process as u8));
        }
        self.network.sort();
        self
    }
}

fn fresh(known: Vec<&mut u8>) -> u8 {
    known.into_iter().map(|version| *version + 1).max().unwrap_or_default()
}

fn number(known: Vec<&mut u8>) {
    let mut sorted: Vec<u8> = known.iter().map(|version| **version).collect();
    sorted.sort_unstable();
    sorted.dedup();
    for version in known {
        *version = sorted.binary_search(version).unwrap_or_default() as u8;
    }
}
