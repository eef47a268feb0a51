//! When a Secret may hold an expired value. All of the list:
//!
//! 1. The token server misbehaves, and until a fetch that was caught in it has ended, its backoff is over and one more
//!    fetch is done.
//! 2. The API server or etcd is dead or frozen, or answers `/readyz` by no `ok` yet, and a while more, in which
//!    connections and watches are made anew.
//! 3. The Lease of this very TokenCache is held by a process that was dead, frozen, or in a storm on its way to the
//!    API server while it held it: until the Lease is free or taken over, and one run more.
//! 4. No controller is at work: each is dead, frozen, not ready yet, or in a storm; and until one is well again, and a
//!    run more.
//! 5. The TokenCache is being deleted or made anew, until the garbage collector has removed the old Secret, and a run more.
//!
//! 6. The machine is busy with something else: a few writes of our own to the API server, past all faults and controllers,
//!    take longer than [`CANARY`], or the threads of a controller wait for a processor for such a share of the time; and
//!    a run more.
//!
//! Where a run takes longer, so do its excuses (`rhythm.rs`).
//!
//! Nothing else is excused: neither that controllers die as such, nor what others do to Secrets, nor watches that break.

use super::{
    book::Page,
    rhythm::rhythm,
    schedule::SLOTS,
    weather::{Scope, Weather},
    world::{RETRY, TIMEOUT},
};
use crate::support::spans::{Span, common};

/// One run with its look at the Lease, on a busy machine.
const RUN: f64 = 2.0;
/// How many seconds the canary's few writes may take: a run has 2 s for as many. Also how many of each second the threads
/// of a controller may wait for a processor, all together.
pub const CANARY: f64 = 0.5;
/// Until a controller has its connections and watches again: the longest that the pause between its attempts grows
/// while the API server is away.
pub const CATCH_UP: f64 = 10.0;

/// What excuses more than one TokenCache.
pub struct Excuses {
    /// The token server misbehaves.
    server: Vec<Span>,
    /// The API server or etcd is in trouble, or the machine is busy.
    everywhere: Vec<Span>,
    /// No controller is at work.
    nobody: Vec<Span>,
    /// No controller is at work that learns of anything by its watches.
    blind: Vec<Span>,
    /// Who could not do anything, and when.
    hampered: Vec<(String, Span)>,
}

impl Excuses {
    /// From all that was wrong.
    pub fn new(weather: &Weather, identities: &[(String, usize)]) -> Self {
        let fetch = TIMEOUT.as_secs_f64() + RETRY.as_secs_f64() + RUN;
        let server = weather.spans(|scope| *scope == Scope::Server).into_iter().map(|span| span.and(fetch));
        let plane = weather.spans(|scope| *scope == Scope::Plane).into_iter().map(|span| span.and(CATCH_UP));
        let busy = weather.spans(|scope| *scope == Scope::Machine).into_iter().map(|span| span.and(RUN));
        let away = |slot: usize, watches: bool| {
            weather.spans(|scope| match scope {
                Scope::Slot(it) | Scope::Way(it) => *it == slot,
                Scope::Watches(it) => watches && *it == slot,
                _ => false,
            })
        };
        let all_away = |watches| {
            let each: Vec<Vec<Span>> = (0..SLOTS).map(|slot| away(slot, watches)).collect();
            common(&each).into_iter().map(|span| span.and(RUN)).collect()
        };
        let mut hampered = Vec::new();
        for (identity, slot) in identities {
            let spans = weather.spans(|scope| match scope {
                Scope::Dead(who) | Scope::Frozen(who) => who == identity,
                Scope::Way(it) => it == slot,
                _ => false,
            });
            hampered.extend(spans.into_iter().map(|span| (identity.clone(), span)));
        }
        let (server, everywhere) = (server.collect(), plane.chain(busy).collect());
        Self { server, everywhere, nobody: all_away(false), blind: all_away(true), hampered }
    }

    /// When nobody reports what happens.
    pub fn nobody_reports(&self) -> Vec<Span> {
        [self.everywhere.as_slice(), &self.blind].concat()
    }

    /// When the Lease of a TokenCache was held by somebody who could not finish what it had begun, and a run more.
    pub fn interrupted(&self, page: &Page, end: f64) -> Vec<Span> {
        self.hampered_holds(page, end).into_iter().map(|span| span.and(RUN)).collect()
    }

    /// What excuses this TokenCache.
    pub fn of(&self, name: &str, page: &Page, weather: &Weather, end: f64) -> Vec<Span> {
        let mut excuses = [self.server.as_slice(), &self.everywhere, &self.nobody].concat();
        let gone = weather.spans(|scope| matches!(scope, Scope::Gone(who) if who == name));
        excuses.extend(gone.into_iter().map(|span| {
            let changed = page.held.iter().map(|(at, _)| *at).find(|at| *at > span.from).unwrap_or(end);
            Span::new(span.from, span.to.max(changed)).and(RUN)
        }));
        excuses.extend(self.interrupted(page, end));
        let more = rhythm(name).more;
        excuses.into_iter().map(|span| span.and(more)).collect()
    }

    /// When its Lease was held by somebody who could not do anything with it, from when that was so.
    pub fn hampered_holds(&self, page: &Page, end: f64) -> Vec<Span> {
        let mut found = Vec::new();
        for (holder, hold) in page.holds(end) {
            let hampered = self.hampered.iter().filter(|(who, span)| is_of(holder, who) && span.meets(hold));
            found.extend(hampered.map(|(_, span)| Span::new(hold.from.max(span.from), hold.to)));
        }
        found
    }
}

/// Whether a holder of a Lease is an attempt of this process.
pub fn is_of(holder: &str, identity: &str) -> bool {
    holder.strip_prefix(identity).is_some_and(|rest| rest.starts_with('_'))
}
