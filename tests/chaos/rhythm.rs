//! How long the values of each kind of TokenCache live.

use std::time::Duration;

use super::jobs;

/// How long values live, and how long before their end they are renewed.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// How long a value lives.
    pub lifetime: Duration,
    /// How long before its end it is renewed.
    pub renew_before: Duration,
    /// How much longer than another run one of these may take, in seconds.
    pub more: f64,
}

/// Nearly all live as short as they can.
pub const SHORT: Rhythm = Rhythm { lifetime: Duration::from_secs(5), renew_before: Duration::from_secs(2), more: 0.0 };

/// That of a TokenCache.
pub fn rhythm(name: &str) -> Rhythm {
    if jobs::is_job(name) { jobs::RHYTHM } else { SHORT }
}
