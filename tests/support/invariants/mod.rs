//! What must be true of every version of every TokenCache and Secret, in all scenarios: recorded while a scenario runs,
//! and judged at its end. [`Invariant`] lists it.
//!
//! Nothing is judged while no controller of the test is at work: before the first is ready, after the last has ended, and
//! while all that there are stand still. A test that breaks an invariant deliberately says so with
//! [`Namespace::exempt`](super::Namespace::exempt), for one object and no longer than needed.

mod life;
mod pulse;
mod rates;
mod ready;
mod recorder;
#[cfg(test)]
mod tests;
mod timeline;

use std::fmt;

pub use self::{
    recorder::{AtWork, Exemption, Recorder},
    timeline::Timeline,
};
use super::spans::Span;

/// What must be true. Times are those of this process; a busy machine is allowed more (see `pulse.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// `Ready` is `True` for at most 2 s without a valid value in the Secret that status names.
    ReadyWithoutValue,
    /// `Ready` is `False` for at most 2 s although the Secret that status names holds a valid value.
    NotReadyWithValue,
    /// A TokenCache has at most one managed Secret, besides the one for its state. While a run replaces one by another,
    /// there may be two for 5 s.
    OneSecret,
    /// In 10 s, status has at most 10 new versions, and 4 more for each run, request, edit, and change of the Secret.
    StatusRate,
    /// In 10 s, at most 4 requests reach the token server, and 2 more for each cause: see `rates.rs`.
    TokenRequests,
    /// A refresh token that the token server has voided is never sent again.
    VoidRefreshToken,
}

/// An invariant that does not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// The TokenCache.
    pub object: String,
    /// When, in Unix seconds.
    pub span: Span,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invariant, object, span, detail } = self;
        let (from, to) = (timeline::clock(span.from), timeline::clock(span.to));
        write!(f, "{invariant:?}: TokenCache {object}, {from} to {to}: {detail}")
    }
}

/// All violations of what was recorded.
pub fn judge(timeline: &Timeline) -> Vec<Violation> {
    let lives = life::lives(timeline);
    let of_states = lives.iter().flat_map(|life| ready::judge(timeline, life));
    let of_rates = lives.iter().flat_map(|life| rates::judge(timeline, life));
    of_states.chain(of_rates).chain(rates::void(timeline)).collect()
}
