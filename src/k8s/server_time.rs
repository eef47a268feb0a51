//! The cluster's time of day, as the API server's answers tell it by their `Date` (RFC 9110 §6.6.1).
//!
//! What a controller writes as a value's expiry is read by others: replicas on other nodes, agents, people. Were each
//! node's clock trusted, one that is ten minutes off would let values expire, or fetch them without end. The API server
//! is the clock that all of them can see.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::BoxFuture;
use http::{Request, Response, header};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::time::Clock;

/// How far a node's clock may be off before it is corrected. A `Date` has whole seconds only.
const TOLERANCE: TimeDelta = TimeDelta::seconds(5);

/// A clock that is corrected is no longer, once it is off by no more than this. Were it the same limit, the time of a node
/// that is just about that far off would jump back and forth.
const AGREEMENT: TimeDelta = TimeDelta::seconds(2);

/// An answer that took longer tells of a time that is past.
const PROMPT: Duration = Duration::from_secs(2);

/// Of so many answers the middle one counts: of several API servers one may be wrong itself.
const SAMPLES: usize = 5;

/// What the API server's answers have told of the time. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct ClusterTime(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    /// The last offsets, the newest last.
    samples: Mutex<Vec<TimeDelta>>,
    /// In milliseconds. Read at each look at a value, so without a lock.
    offset: AtomicI64,
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
        TimeDelta::milliseconds(self.0.offset.load(Ordering::Relaxed))
    }

    /// Takes account of an answer of this date that came in at `now` by the system's clock, after `took`.
    fn saw(&self, date: DateTime<Utc>, now: DateTime<Utc>, took: Duration) {
        if took > PROMPT {
            return;
        }
        let mut samples = self.0.samples.lock();
        if samples.len() == SAMPLES {
            samples.remove(0);
        }
        // Cut to whole seconds, a date is half a second late in the middle.
        samples.push(date + TimeDelta::milliseconds(500) - now);
        let current = self.offset();
        let offset = correction(&samples, current);
        if offset == current {
            return;
        }
        self.0.offset.store(offset.num_milliseconds(), Ordering::Relaxed);
        if !offset.is_zero() {
            let (seconds, direction) =
                (offset.num_seconds().abs(), if offset > TimeDelta::zero() { "behind" } else { "ahead of" });
            tracing::warn!(
                "the clock of this node is {seconds} s {direction} the API server's, whose time is taken instead; \
                 set the node's clock (NTP)"
            );
        } else {
            tracing::info!("the clock of this node agrees with the API server's");
        }
    }
}

/// What to add to a clock that these answers differ from by so much, and to which `current` is added now. In whole
/// milliseconds, as it is kept.
fn correction(samples: &[TimeDelta], current: TimeDelta) -> TimeDelta {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let middle = TimeDelta::milliseconds(middle.num_milliseconds());
    let is_corrected = !current.is_zero();
    if is_corrected && middle.abs() <= AGREEMENT {
        TimeDelta::zero()
    } else if (middle - current).abs() > TOLERANCE {
        middle
    } else {
        current
    }
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
            assert_eq!(correction(&samples, TimeDelta::zero()), seconds(expected), "{samples:?}");
        }
    }

    #[test]
    fn a_clock_that_is_corrected_stays_so_until_it_agrees_or_is_off_by_much_more() {
        for (current, sample, expected) in [
            (6, 6, 6),
            (6, 4, 6),
            (6, 3, 6),
            (6, 2, 0),
            (6, -2, 0),
            (6, 11, 6),
            (6, 12, 12),
            (600, 0, 0),
            (600, 3, 3),
            (600, -600, -600),
        ] {
            let decided = correction(&[seconds(sample)], seconds(current));
            assert_eq!(decided, seconds(expected), "{current} by {sample}");
        }
    }

    #[test]
    fn at_any_constant_offset_the_time_is_changed_once_at_most() {
        let mut random = 7_u64;
        for tenth in -80..=80 {
            let off = TimeDelta::milliseconds(tenth * 100);
            let (mut samples, mut current, mut changes) = (Vec::new(), TimeDelta::zero(), 0);
            for _ in 0..500 {
                // A date is whole seconds, and an answer is on its way for a while.
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let noise = TimeDelta::milliseconds(i64::try_from((random >> 33) % 1001).unwrap() - 500);
                samples.push(off + noise);
                let from = samples.len().saturating_sub(SAMPLES);
                let offset = correction(&samples[from..], current);
                changes += i32::from(offset != current);
                current = offset;
            }
            assert!(changes <= 1, "{off}: {changes} changes");
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
