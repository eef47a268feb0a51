//! The cluster's time of day, as the API server's answers tell it by their `Date` (RFC 9110 §6.6.1).
//!
//! What a controller writes as a value's expiry is read by others: replicas on other nodes, agents, people. Were each
//! node's clock trusted, one that is ten minutes off would let values expire, or fetch them without end. The API server
//! is the clock that all of them can see.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use http::{Request, Response, header};
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::time::Clock;

/// How far a node's clock may be off before it is corrected. A `Date` tells whole seconds.
const TOLERANCE: TimeDelta = TimeDelta::seconds(5);

/// An answer that took longer tells of a time that is past.
const PROMPT: Duration = Duration::from_secs(2);

/// Of so many answers the middle one counts: of several API servers one may be wrong itself.
const SAMPLES: usize = 5;

/// What the API server's answers have told of the time. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct ClusterTime(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The last offsets, the newest last.
    samples: Vec<TimeDelta>,
    offset: TimeDelta,
}

impl ClusterTime {
    /// The system's clock, corrected where it is more than 5 s off.
    #[must_use]
    pub fn clock(&self) -> Clock {
        let time = self.clone();
        Clock::corrected(move || time.offset())
    }

    /// What is added to the system's clock: zero, unless it is off.
    #[must_use]
    pub fn offset(&self) -> TimeDelta {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).offset
    }

    /// Takes account of an answer of this date that came in at `now` by the system's clock, after `took`.
    fn saw(&self, date: DateTime<Utc>, now: DateTime<Utc>, took: Duration) {
        if took > PROMPT {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.samples.len() == SAMPLES {
            known.samples.remove(0);
        }
        // Cut to whole seconds, a date is half a second late in the middle.
        known.samples.push(date + TimeDelta::milliseconds(500) - now);
        let offset = correction(&known.samples);
        let changed = (offset - known.offset).abs() > TOLERANCE;
        if changed || offset.is_zero() {
            known.offset = offset;
        }
        if changed && !offset.is_zero() {
            let (seconds, direction) =
                (offset.num_seconds().abs(), if offset > TimeDelta::zero() { "behind" } else { "ahead of" });
            tracing::warn!(
                "the clock of this node is {seconds} s {direction} the API server's, whose time is taken instead; \
                 set the node's clock (NTP)"
            );
        } else if changed {
            tracing::info!("the clock of this node agrees with the API server's");
        }
    }
}

/// What to add to a clock of which the answers said this.
fn correction(samples: &[TimeDelta]) -> TimeDelta {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    if middle.abs() > TOLERANCE { middle } else { TimeDelta::zero() }
}

/// Reads the date of each answer that passes.
impl<S> Layer<S> for ClusterTime {
    type Service = Watching<S>;

    fn layer(&self, inner: S) -> Watching<S> {
        Watching { inner, time: self.clone() }
    }
}

/// A service whose answers' dates are read.
#[derive(Clone, Debug)]
pub struct Watching<S> {
    inner: S,
    time: ClusterTime,
}

impl<S, Q, A> Service<Request<Q>> for Watching<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let (time, sent) = (self.time.clone(), Instant::now());
        let answered = self.inner.call(request);
        Box::pin(async move {
            let answer = answered.await?;
            let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
            if let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) {
                time.saw(date.into(), Clock::system().now(), sent.elapsed());
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> TimeDelta {
        TimeDelta::seconds(seconds)
    }

    #[test]
    fn a_clock_that_is_off_is_corrected_and_one_that_is_nearly_right_is_left_alone() {
        for (samples, expected) in [
            (vec![], 0),
            (vec![0], 0),
            (vec![5], 0),
            (vec![-5, -5, -5], 0),
            (vec![600], 600),
            (vec![-600], -600),
            (vec![600, 600, 601], 600),
            // One of three API servers is wrong.
            (vec![0, 0, 600, 0, 0], 0),
            (vec![600, 600, 0, 600, 600], 600),
            // The clock was set.
            (vec![600, 600, 0, 0, 0], 0),
        ] {
            let samples: Vec<TimeDelta> = samples.into_iter().map(seconds).collect();
            assert_eq!(correction(&samples), seconds(expected), "{samples:?}");
        }
    }

    #[test]
    fn only_prompt_answers_tell_the_time_and_small_changes_do_not_move_it() {
        let (time, now) = (ClusterTime::default(), Clock::system().now());
        let saw = |off: i64, took: u64| time.saw(now + seconds(off), now, Duration::from_secs(took));
        saw(600, 3);
        assert_eq!(time.offset(), TimeDelta::zero(), "it was under way while this process stood still");
        saw(600, 0);
        let first = time.offset();
        assert_eq!(first.num_seconds(), 600);
        (0..5).for_each(|_| saw(602, 0));
        assert_eq!(time.offset(), first, "time does not jitter");
        let corrected = time.clock().now() - Clock::system().now();
        assert_eq!((corrected - first).num_seconds(), 0);
        (0..3).for_each(|_| saw(1, 0));
        assert_eq!(time.offset(), TimeDelta::zero());
    }
}
