//! What was wrong, where, and when. The time of everything else is told by its clock.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::support::spans::Span;
use parking_lot::Mutex;

/// Where something was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// At the token server.
    Server,
    /// At the API server or etcd.
    Plane,
    /// Between the controller of this slot and the API server.
    Way(usize),
    /// On the watches of the controller of this slot, nothing arrives.
    Watches(usize),
    /// In this slot no controller works: it is dead, frozen, or not ready yet.
    Slot(usize),
    /// At the machine, which others use as well: not even we get our requests answered in time.
    Machine,
    /// This process is dead.
    Dead(String),
    /// This process stands still.
    Frozen(String),
    /// A TokenCache or its Secret was touched by us.
    Touched(String),
    /// There is no TokenCache of this name, or soon will be none.
    Gone(String),
    /// The TokenCache of this name had been deleted; what was of it then is nobody's any more.
    Deleted(String),
}

/// All that was wrong so far.
#[derive(Clone)]
pub struct Weather {
    start: Instant,
    start_unix: f64,
    spans: Arc<Mutex<Vec<(Scope, Span)>>>,
}

/// Something that is wrong until it is told to end.
#[must_use]
pub struct Spell(Weather, usize);

impl Weather {
    /// The time begins.
    pub fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        Self { start: Instant::now(), start_unix: since.as_secs_f64(), spans: Arc::default() }
    }

    /// Seconds since the beginning.
    pub fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// The seconds since the beginning at which it was then.
    pub fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.start).as_secs_f64()
    }

    /// The same for Unix seconds.
    pub fn at_unix(&self, seconds: f64) -> f64 {
        seconds - self.start_unix
    }

    /// The Unix seconds of so many seconds after the beginning.
    pub fn unix(&self, seconds: f64) -> f64 {
        seconds + self.start_unix
    }

    /// From now on something is wrong.
    pub fn begin(&self, scope: Scope) -> Spell {
        let mut spans = self.spans.lock();
        spans.push((scope, Span::new(self.now(), f64::INFINITY)));
        Spell(self.clone(), spans.len() - 1)
    }

    /// Since then until now something was wrong.
    pub fn since(&self, from: f64, scope: Scope) {
        let span = Span::new(from, self.now());
        self.spans.lock().push((scope, span));
    }

    /// From now on something is wrong, for ever.
    pub fn for_ever(&self, scope: Scope) {
        let _ends_never = self.begin(scope);
    }

    /// When it was wrong where the choice says.
    pub fn spans(&self, choice: impl Fn(&Scope) -> bool) -> Vec<Span> {
        let spans = self.spans.lock();
        spans.iter().filter(|(scope, _)| choice(scope)).map(|(_, span)| *span).collect()
    }
}

impl Spell {
    /// From now on it is well.
    pub fn end(self) {
        let Self(weather, index) = self;
        let now = weather.now();
        weather.spans.lock()[index].1.to = now;
    }
}
