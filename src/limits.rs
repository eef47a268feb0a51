//! How many runs go on at once: in all, and per destination, so that one slow server does not take all places.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::fair::Semaphores;

/// The places for runs. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Limits {
    all: Arc<Semaphore>,
    destinations: Semaphores,
    concurrency: usize,
    /// Held once by each that waits.
    waiting: Arc<()>,
    /// Held once by each clone.
    clones: Arc<()>,
}

/// A place that was taken. Dropping it frees it.
#[derive(Debug)]
pub struct Place {
    _destination: Option<(OwnedSemaphorePermit, Arc<Semaphore>)>,
    _all: OwnedSemaphorePermit,
}

impl Limits {
    /// At most `concurrency` runs, of which a quarter may go to one destination.
    #[must_use]
    pub fn new(concurrency: usize) -> Self {
        let concurrency = concurrency.max(1);
        Self {
            all: Arc::new(Semaphore::new(concurrency)),
            destinations: Semaphores::new(concurrency.div_ceil(4)),
            concurrency,
            waiting: Arc::default(),
            clones: Arc::default(),
        }
    }

    /// Waits for a place; first at the destination, so that who waits there holds no other place.
    ///
    /// # Errors
    /// Never: the semaphores are not closed.
    pub async fn place(&self, destination: Option<String>) -> Result<Place, AcquireError> {
        let _waits = self.waiting.clone();
        let destination = match destination.map(|name| self.destinations.get(&name)) {
            Some(semaphore) => Some((semaphore.clone().acquire_owned().await?, semaphore)),
            None => None,
        };
        Ok(Place { _destination: destination, _all: self.all.clone().acquire_owned().await? })
    }

    /// Whether a run to this destination would have a place at once.
    #[must_use]
    pub fn has_place(&self, destination: Option<&str>) -> bool {
        // What is given back goes to those who wait, if any, so nobody waits where some are left.
        let there = destination.is_none_or(|name| self.destinations.available(name) > 0);
        there && self.all.available_permits() > 0
    }

    /// How many wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        // The other holds are those of the clones of this.
        Arc::strong_count(&self.waiting).saturating_sub(Arc::strong_count(&self.clones))
    }

    /// How many places are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.concurrency.saturating_sub(self.all.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_destination_takes_a_quarter_of_the_places_and_gives_them_back() {
        let limits = Limits::new(8);
        let slow = || limits.place(Some("slow:443".into()));
        assert!(limits.has_place(Some("slow:443")));
        let held = [slow().await, slow().await];
        assert_eq!((limits.clone().waiting(), limits.taken()), (0, 2));
        assert!(!limits.has_place(Some("slow:443")) && limits.has_place(Some("other:443")) && limits.has_place(None));
        let mut third = Box::pin(slow());
        assert!((&mut third).now_or_never().is_none());
        assert_eq!((limits.clone().waiting(), limits.taken()), (1, 2));
        drop(third);
        assert_eq!(limits.waiting(), 0);
        assert!(limits.place(Some("other:443".into())).now_or_never().is_some());
        assert!(limits.place(None).now_or_never().is_some());
        drop(held);
        assert!(limits.has_place(Some("slow:443")) && slow().now_or_never().is_some());
        let all = [(); 8].map(|()| limits.place(None).now_or_never().unwrap().unwrap());
        assert!(!limits.has_place(None) && !limits.has_place(Some("other:443")));
        drop(all);
    }
}
