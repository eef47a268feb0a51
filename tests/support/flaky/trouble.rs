//! Failures at random.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use http::StatusCode;
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::rule::Action;

/// What becomes of requests. Of a hundred, so many meet each fate; all others go well.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Are refused instead of being carried out.
    pub refused: u64,
    /// Are carried out, and answered as if they were refused.
    pub belied: u64,
    /// Are carried out, and the connection is cut instead of an answer.
    pub cut: u64,
    /// With what they are refused.
    pub status: StatusCode,
    /// Whether reads meet it as well, or only writes.
    pub reads: bool,
    /// Each waits for up to this long first.
    pub delay: Duration,
}

impl Default for Trouble {
    fn default() -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { refused: 0, belied: 0, cut: 0, status, reads: false, delay: Duration::ZERO }
    }
}

/// Draws what happens to each request.
pub(super) struct Lots {
    random: Mutex<StdRng>,
    trouble: Mutex<Trouble>,
    faults: AtomicUsize,
}

impl Lots {
    pub fn new(seed: u64, trouble: Trouble) -> Self {
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        Self { random, trouble: Mutex::new(trouble), faults: AtomicUsize::new(0) }
    }

    pub fn set(&self, trouble: Trouble) {
        *self.trouble.lock() = trouble;
    }

    /// How many requests were drawn to fail.
    pub fn faults(&self) -> usize {
        self.faults.load(Ordering::SeqCst)
    }

    /// What happens to a request, and for how long it waits first.
    pub fn draw(&self, writes: bool) -> (Action, Duration) {
        let trouble = self.trouble.lock().clone();
        let mut random = self.random.lock();
        let delay = trouble.delay.mul_f64((random.next_u64() % 1000) as f64 / 1000.0);
        let mut draw = random.next_u64() % 100;
        let mut falls = |share: u64| {
            let falls = draw < share;
            draw = draw.wrapping_sub(share);
            falls
        };
        let action = match trouble {
            Trouble { reads: false, .. } if !writes => Action::Pass,
            Trouble { refused, status, .. } if falls(refused) => Action::Answer(status, "told to fail"),
            Trouble { belied, status, .. } if falls(belied) => Action::AnswerAfter(status, "told to fail"),
            Trouble { cut, .. } if falls(cut) => Action::CutAfter,
            _ => Action::Pass,
        };
        if !matches!(action, Action::Pass) {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        (action, delay)
    }
}
