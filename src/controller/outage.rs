//! Whether the API server was away and is back: then nobody waits longer for it.

use std::time::Duration;

use tokio::time::Instant;

/// What runs have learned of the API server, all together.
#[derive(Debug, Default)]
pub(super) struct Outage {
    answered: Option<Instant>,
    failed: bool,
}

/// If some requests are answered and some are not, there is an answer more often than this where much goes on, and each
/// object waits on its own.
const SILENCE: Duration = Duration::from_secs(1);

impl Outage {
    /// The API server did not answer, or answered that it cannot.
    pub(super) fn failed(&mut self) {
        self.failed = true;
    }

    /// It did what it was asked. Gives whether it could not for a while before.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        let before = self.answered.replace(now);
        let failed = std::mem::take(&mut self.failed);
        failed && before.is_none_or(|before| now.duration_since(before) >= SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_with_the_first_answer_after_failures_and_silence() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        assert!(!outage.answered(start), "nothing failed");
        assert!(!outage.answered(start + SILENCE * 9), "nothing failed, little goes on");
        outage.failed();
        assert!(!outage.answered(start + SILENCE * 9 + SILENCE / 2), "some fail, some do not");
        outage.failed();
        outage.failed();
        assert!(outage.answered(start + SILENCE * 20));
        assert!(!outage.answered(start + SILENCE * 30), "it was over");
        let mut first = Outage::default();
        first.failed();
        assert!(first.answered(start), "it was away from the first");
    }
}
