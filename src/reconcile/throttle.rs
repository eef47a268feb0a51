//! Limits how often values are fetched for causes that can come back at once: pure, from what this process did and the time.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::{reconcile::plan::backoff, time::later};

/// Causes of fetches that nothing else limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The Secret is not as it should be, or an object that the spec refers to changed after a failure.
    Repair,
    /// A consumer or a person asked for a new value.
    Request,
    /// The spec was edited.
    Edit,
}

/// The fetches for these causes within the last hour, the newest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brake {
    repairs: Vec<DateTime<Utc>>,
    requests: Vec<DateTime<Utc>>,
    edits: Vec<DateTime<Utc>>,
}

/// For how long a fetch counts.
const COUNTED: TimeDelta = TimeDelta::hours(1);
/// More need not be remembered: the wait is the longest by then.
const REMEMBERED: usize = 40;

impl Cause {
    /// How many fetches within an hour are free, the wait after the first that is not, and the longest wait.
    const fn limits(self) -> (usize, Duration, Duration) {
        match self {
            Self::Repair => (1, Duration::from_secs(2), Duration::from_secs(300)),
            Self::Request => (10, Duration::from_secs(1), Duration::from_secs(60)),
            Self::Edit => (30, Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}

impl Brake {
    fn fetches(&self, cause: Cause) -> &[DateTime<Utc>] {
        match cause {
            Cause::Repair => &self.repairs,
            Cause::Request => &self.requests,
            Cause::Edit => &self.edits,
        }
    }

    /// Counts a fetch.
    pub fn count(&mut self, cause: Cause, now: DateTime<Utc>) {
        let fetches = match cause {
            Cause::Repair => &mut self.repairs,
            Cause::Request => &mut self.requests,
            Cause::Edit => &mut self.edits,
        };
        fetches.retain(|at| now.signed_duration_since(*at) < COUNTED);
        fetches.push(now);
        if fetches.len() > REMEMBERED {
            fetches.remove(0);
        }
    }

    /// Before which moment the next fetch for this cause may not begin: `min_interval` after the one before, and later
    /// where there were many. `None` where it need not wait.
    #[must_use]
    pub fn until(&self, cause: Cause, min_interval: TimeDelta, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let fetches = self.fetches(cause);
        let wait = self.backoff(cause, now).unwrap_or_default().max(min_interval);
        let until = later(*fetches.last()?, wait);
        // A fetch that lies in the future was counted before the clock was set back.
        (until > now).then(|| until.min(later(now, wait)))
    }

    /// How long to wait after the last of many fetches.
    fn backoff(&self, cause: Cause, now: DateTime<Utc>) -> Option<TimeDelta> {
        let (free, initial, max) = cause.limits();
        let lately = self.fetches(cause).iter().filter(|at| now.signed_duration_since(**at) < COUNTED).count();
        let paced = i32::try_from((lately + 1).checked_sub(free)?).unwrap_or(i32::MAX);
        (paced > 0).then(|| TimeDelta::from_std(backoff(paced, initial, max, 1.0, None)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::fixtures::at;

    /// How many fetches begin within `seconds` if one is called for all the time.
    fn fetches(cause: Cause, min_interval: f64, seconds: f64) -> usize {
        let min_interval = at(min_interval) - at(0.0);
        let (mut brake, mut now, mut count) = (Brake::default(), at(0.0), 0);
        while now < at(seconds) {
            match brake.until(cause, min_interval, now) {
                Some(until) => now = until,
                None => {
                    brake.count(cause, now);
                    count += 1;
                }
            }
        }
        count
    }

    #[test]
    fn what_is_called_for_all_the_time_is_fetched_ever_more_rarely() {
        assert_eq!(fetches(Cause::Repair, 0.0, 1.0), 1);
        assert_eq!(fetches(Cause::Repair, 0.0, 20.0), 4);
        assert_eq!(fetches(Cause::Repair, 0.0, 86_400.0), 86_400 / 300 + 7);
        assert_eq!(fetches(Cause::Request, 0.0, 1.0), 10);
        assert_eq!(fetches(Cause::Request, 0.0, 60.0), 15);
    }

    #[test]
    fn the_first_is_free_and_each_other_comes_after_the_shortest_interval() {
        for cause in [Cause::Repair, Cause::Request, Cause::Edit] {
            assert_eq!(fetches(cause, 5.0, 1.0), 1, "{cause:?}");
            assert_eq!(fetches(cause, 5.0, 5.1), 2, "{cause:?}");
        }
        assert_eq!(fetches(Cause::Request, 5.0, 45.1), 10);
        assert_eq!(fetches(Cause::Edit, 5.0, 145.1), 30);
    }

    #[test]
    fn a_fetch_is_forgotten_after_an_hour() {
        let mut brake = Brake::default();
        assert_eq!(brake.until(Cause::Repair, TimeDelta::zero(), at(0.0)), None);
        brake.count(Cause::Repair, at(0.0));
        assert_eq!(brake.until(Cause::Repair, TimeDelta::zero(), at(0.5)), Some(at(2.0)));
        assert_eq!(brake.until(Cause::Request, TimeDelta::zero(), at(0.5)), None);
        assert_eq!(brake.until(Cause::Repair, TimeDelta::zero(), at(2.0)), None);
        brake.count(Cause::Repair, at(1800.0));
        assert_eq!(brake.until(Cause::Repair, TimeDelta::zero(), at(1801.0)), Some(at(1804.0)));
        brake.count(Cause::Repair, at(3700.0));
        assert_eq!(brake.until(Cause::Repair, TimeDelta::zero(), at(3701.0)), Some(at(3704.0)));
    }

    proptest! {
        #[test]
        fn every_wait_ends(counted in proptest::collection::vec(-1e5_f64..1e5, 0..99), now in -1e5_f64..1e5) {
            for cause in [Cause::Repair, Cause::Request, Cause::Edit] {
                let mut brake = Brake::default();
                counted.iter().for_each(|moment| brake.count(cause, at(*moment)));
                if let Some(until) = brake.until(cause, TimeDelta::seconds(5), at(now)) {
                    let (_, _, max) = cause.limits();
                    prop_assert!(until > at(now));
                    prop_assert!(until <= at(now) + TimeDelta::from_std(max).expect("it fits").max(TimeDelta::seconds(5)));
                }
            }
        }
    }
}
