//! Status does not say for long that there is a valid value where there is none, also while a fetch is in progress, waits
//! for its place, or is left to another replica.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::reconcile::Context;
use crate::{
    api::{READY, condition},
    k8s::object::ObjectKey,
    reconcile::plan::Observed,
};

/// How long that is. The fetch that is about to begin mostly brings a value sooner, and then nothing else is reported.
pub(super) const TOLERATED: Duration = Duration::from_secs(1);

/// Whether status says that there is a valid value, although none was observed.
fn is_untrue(seen: &Observed<'_>, now: DateTime<Utc>) -> bool {
    let ready = condition(seen.cache.status.as_ref(), READY).is_some_and(|(status, _)| status == "True");
    ready && seen.valid(now).is_none()
}

impl Context {
    /// When status is to be corrected, where it says that there is a valid value and none was observed.
    pub(super) fn untrue(&self, key: &ObjectKey, seen: &Observed<'_>) -> Option<Duration> {
        let untrue = is_untrue(seen, self.runner.clock.now());
        self.runner.notes.with(key, |note| {
            note.untrue = untrue.then(|| note.untrue.unwrap_or_else(Instant::now));
            note.untrue.map(|since| TOLERATED.saturating_sub(since.elapsed()))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        reconcile::status::at_rest,
        testing::fixtures::{at, cache, lifetime, observed, start, stored},
    };

    #[test]
    fn only_a_ready_that_is_true_without_a_valid_value_is_untrue() {
        let mut cache = cache(json!({}), json!(null));
        let value = |cache: &_| Some(stored(cache, lifetime(0.0, 100.0)));
        assert!(!is_untrue(&observed(&cache, None), start()), "nothing was reported yet");
        cache.status = Some(at_rest(&observed(&cache, value(&cache)), start()));
        assert!(!is_untrue(&observed(&cache, value(&cache)), at(99.0)));
        assert!(is_untrue(&observed(&cache, value(&cache)), at(100.0)), "it has expired");
        assert!(is_untrue(&observed(&cache, None), start()), "its Secret was deleted");
        cache.status = Some(at_rest(&observed(&cache, None), start()));
        assert!(!is_untrue(&observed(&cache, None), start()));
    }
}
