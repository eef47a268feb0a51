//! What a run is judged by.

use std::fmt;

use super::{
    book::{Book, Held, Page},
    excuse::{Excuses, is_of},
    rhythm::rhythm,
    weather::{Scope, Weather},
    world::{LEASE, World},
};
use crate::support::spans::Span;

/// The counts. What should be none is told one by one.
#[derive(Default)]
pub struct Counts {
    /// Requests to the token server.
    pub requests: usize,
    /// Tokens that it issued.
    pub issued: usize,
    /// Times at which a second request of one cache came inside, while the first's process was frozen.
    pub met_frozen: usize,
    /// The same for processes that were not.
    pub met: Vec<String>,
    /// Values that were followed by an older one.
    pub older: Vec<String>,
    /// Seconds, over all Secrets, with an expired value that is excused.
    pub excused: f64,
    /// Seconds, over all Secrets, in which nothing would have excused it.
    pub judged: f64,
    /// The same where nothing excuses it, by Secret.
    pub expired: Vec<(String, Span)>,
    /// Tokens that were issued and never seen in a Secret.
    pub wasted: usize,
    /// Runs before the last value was due, although nobody had touched anything.
    pub early: Vec<String>,
    /// Seconds in which the machine was too busy to be judged.
    pub busy: f64,
    /// When a Lease was held for the longest by somebody dead or frozen, and of which TokenCache; until that was deleted at
    /// most, since the Lease of one that is gone stays until the garbage collector comes to it.
    pub longest_held: Option<(String, Span)>,
    /// TokenCaches that are not Ready, or whose Secret has no valid value, after peace.
    pub not_ready: Vec<String>,
    /// Leases that were held too long, that are held though nobody is there, or that belong to nobody.
    pub leases: Vec<String>,
    /// What is wrong with the objects of further kinds (see `kinds.rs` and `jobs.rs`).
    pub kinds: Vec<String>,
    /// The invariants that did not hold (see `exempt.rs`).
    pub invariants: Vec<String>,
}

impl Counts {
    /// From the book, at the end of the run.
    pub fn of(world: &World, excuses: &Excuses, book: &Book, end: f64) -> Self {
        let busy = world.weather.spans(|scope| *scope == Scope::Machine).iter().map(|span| span.length()).sum();
        let mut counts = Self { busy, ..Self::default() };
        for (name, page) in book {
            counts.requests += world.server.requests(name);
            counts.issued += world.server.issued(name).len();
            for (at, newer, older) in page.older() {
                counts.older.push(format!("{name} at {at:.1} s: {newer}, then {older}"));
            }
            let excused = excuses.of(name, page, &world.weather, end);
            counts.judged += Span::new(0.0, end).without(&excused).iter().map(|span| span.length()).sum::<f64>();
            for span in page.expired(end) {
                let left = span.without(&excused);
                counts.excused += span.length() - left.iter().map(|span| span.length()).sum::<f64>();
                counts.expired.extend(left.into_iter().map(|span| (name.clone(), span)));
            }
            let deleted = world.weather.spans(|scope| matches!(scope, Scope::Deleted(who) if who == name));
            for hampered in excuses.hampered_holds(page, end) {
                // Nobody wants the Lease of a TokenCache that is gone; one of the next begins later.
                let whole = page.holds(end).into_iter().map(|(_, hold)| hold).find(|hold| hold.to == hampered.to);
                let gone = deleted.iter().map(|gone| gone.from).filter(|at| whole.is_some_and(|hold| hold.has(*at)));
                let hold = Span::new(hampered.from, gone.fold(hampered.to, f64::min));
                if hold.length() > counts.longest_held() {
                    counts.longest_held = Some((name.clone(), hold));
                }
            }
            counts.meet(world, name, page, end);
            counts.judge_runs(world, name, page);
        }
        counts.expired.sort_by(|a, b| b.1.length().total_cmp(&a.1.length()));
        counts
    }

    /// Seconds with an expired value that nothing excuses.
    pub fn expired_seconds(&self) -> f64 {
        self.expired.iter().map(|(_, span)| span.length()).fold(0.0, |sum, length| sum + length)
    }

    /// Seconds for which a Lease was held by somebody dead or frozen, at the longest.
    pub fn longest_held(&self) -> f64 {
        self.longest_held.as_ref().map_or(0.0, |(_, span)| span.length())
    }

    /// The longest of the stretches of them.
    pub fn longest_expired(&self) -> f64 {
        self.expired.first().map_or(0.0, |(_, span)| span.length())
    }

    /// Two at once are the fault of one that was frozen if such a process held the Lease before, froze meanwhile, and
    /// had not had the time to notice.
    fn meet(&mut self, world: &World, name: &str, page: &Page, end: f64) {
        for at in world.server.crowds(name).into_iter().map(|moment| world.weather.at(moment)) {
            let asleep = |holder: &str, hold: Span| {
                let frozen = world.weather.spans(|scope| matches!(scope, Scope::Frozen(who) if is_of(holder, who)));
                frozen.into_iter().any(|span| span.meets(hold) && span.and(1.0).has(at))
            };
            if page.holds(end).into_iter().any(|(holder, hold)| hold.from < at && asleep(holder, hold)) {
                self.met_frozen += 1;
            } else {
                self.met.push(format!("{name} at {at:.1} s"));
            }
        }
    }

    /// A run was needed if the last value that was written was due, or somebody had touched something.
    fn judge_runs(&mut self, world: &World, name: &str, page: &Page) {
        let weather: &Weather = &world.weather;
        let issued: Vec<f64> = world.server.issued_at(name).into_iter().map(|at| weather.at(at)).collect();
        let written = |number: usize| {
            page.held.iter().any(|(_, held)| matches!(held, Held::Value { number: seen, .. } if *seen == number))
        };
        let touched = weather.spans(|scope| matches!(scope, Scope::Touched(who) | Scope::Gone(who) if who == name));
        // Expiries are whole seconds, and so is the time that a controller with a wrong clock goes by.
        let rest = (rhythm(name).lifetime - rhythm(name).renew_before).as_secs_f64() - 2.0;
        let mut last: Option<(usize, f64)> = None;
        for (number, at) in issued.into_iter().enumerate().map(|(index, at)| (index + 1, at)) {
            if let Some((before, then)) = last
                && at - then < rest
                // A controller that was in trouble may come to it late.
                && !touched.iter().any(|span| span.and(LEASE.as_secs_f64()).meets(Span::new(then - 1.0, at)))
            {
                self.early.push(format!("{name} at {at:.1} s: {number}, {:.1} s after {before}", at - then));
            }
            if written(number) {
                last = Some((number, at));
            } else {
                self.wasted += 1;
            }
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |what: &str, count: String| writeln!(f, "  {what:<66} {count:>10}");
        row("requests to the token server", self.requests.to_string())?;
        row("tokens issued", self.issued.to_string())?;
        row("second requests inside, the first's process being frozen", self.met_frozen.to_string())?;
        row("second requests inside, for no such reason", self.met.len().to_string())?;
        row("Secrets overwritten by an older value", self.older.len().to_string())?;
        row("seconds with an expired value, excused (see excuse.rs)", format!("{:.1}", self.excused))?;
        row("seconds in which the machine was too busy to judge by", format!("{:.1}", self.busy))?;
        row("seconds, over all Secrets, in which nothing is excused", format!("{:.0}", self.judged))?;
        row("seconds with an expired value in these", format!("{:.1}", self.expired_seconds()))?;
        row("tokens issued that reached no Secret", self.wasted.to_string())?;
        row("runs before their time", self.early.len().to_string())?;
        row("longest hold of a Lease by who was dead, frozen or cut off, in s", format!("{:.1}", self.longest_held()))?;
        row("objects not Ready 30 s after peace", self.not_ready.len().to_string())?;
        row("Leases left behind", self.leases.len().to_string())?;
        row("faults of objects of further kinds", self.kinds.len().to_string())?;
        row("violations of invariants", self.invariants.len().to_string())?;
        let said = |(name, span): &(String, Span)| format!("{name} from {:.1} to {:.1} s", span.from, span.to);
        let expired: Vec<String> = self.expired.iter().map(said).collect();
        let longest: Vec<String> = self.longest_held.iter().map(said).collect();
        for (what, list) in [
            ("two inside", &self.met),
            ("older", &self.older),
            ("expired", &expired),
            ("early", &self.early),
            ("longest hold", &longest),
            ("not Ready", &self.not_ready),
            ("Lease", &self.leases),
            ("further kinds", &self.kinds),
            ("invariant", &self.invariants),
        ] {
            for item in list.iter().take(15) {
                writeln!(f, "    {what}: {item}")?;
            }
        }
        Ok(())
    }
}
