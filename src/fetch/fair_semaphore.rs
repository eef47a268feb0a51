//! Limits on what runs share: one namespace can hold only a part of each, so that no namespace takes it from the others.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Semaphores by name. Each exists for as long as somebody uses it. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Semaphores {
    permits: usize,
    by_name: Arc<Mutex<HashMap<String, Weak<Semaphore>>>>,
}

impl Semaphores {
    /// With so many permits each.
    #[must_use]
    pub fn new(permits: usize) -> Self {
        Self { permits, by_name: Arc::default() }
    }

    /// The semaphore of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Arc<Semaphore> {
        let mut semaphores = self.by_name.lock();
        if let Some(semaphore) = semaphores.get(name).and_then(Weak::upgrade) {
            return semaphore;
        }
        semaphores.retain(|_, semaphore| semaphore.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(self.permits));
        semaphores.insert(name.to_owned(), Arc::downgrade(&semaphore));
        semaphore
    }
}

/// Counts the tasks that wait for something. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct WaitCounter(Arc<AtomicUsize>);

/// One task that waits. Dropping it ends the wait.
#[derive(Debug)]
pub struct Wait(Arc<AtomicUsize>);

impl WaitCounter {
    /// Counts a task until the returned value is dropped.
    #[must_use]
    pub fn start(&self) -> Wait {
        self.0.fetch_add(1, Ordering::Relaxed);
        Wait(self.0.clone())
    }

    /// How many tasks wait now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A semaphore of which each namespace can hold only a part. Cloning shares it.
#[derive(Clone, Debug)]
pub struct FairSemaphore {
    all: Arc<Semaphore>,
    total: usize,
    namespaces: Semaphores,
    waiting: WaitCounter,
}

/// Permits of a [`FairSemaphore`]. Dropping it gives them back.
#[derive(Debug)]
pub struct FairPermit {
    // Nothing closes these semaphores, so both are there.
    _all: Option<OwnedSemaphorePermit>,
    _namespace: (Option<OwnedSemaphorePermit>, Arc<Semaphore>),
}

impl FairSemaphore {
    /// With so many permits, of which one namespace can hold so many at a time.
    #[must_use]
    pub fn new(total: usize, per_namespace: usize) -> Self {
        let namespaces = Semaphores::new(per_namespace.min(total));
        Self { all: Arc::new(Semaphore::new(total)), total, namespaces, waiting: WaitCounter::default() }
    }

    /// Waits for permits: first for those of the namespace, so that what one namespace asks for beyond its part does not
    /// queue before the others. More than the part of a namespace count as all of it.
    pub async fn acquire(&self, namespace: &str, permits: usize) -> FairPermit {
        let wait = self.waiting.start();
        let of_namespace = self.namespaces.get(namespace);
        let permits = u32::try_from(permits.min(self.namespaces.permits)).unwrap_or(u32::MAX);
        let namespace = of_namespace.clone().acquire_many_owned(permits).await.ok();
        let all = self.all.clone().acquire_many_owned(permits).await.ok();
        drop(wait);
        FairPermit { _all: all, _namespace: (namespace, of_namespace) }
    }

    /// How many wait for permits.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.count()
    }

    /// How many permits are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.total.saturating_sub(self.all.available_permits())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn one_namespace_holds_its_part_and_leaves_the_rest_to_others() {
        let shared = FairSemaphore::new(4, 2);
        let take = |namespace: &'static str, permits| {
            let shared = shared.clone();
            Box::pin(async move { shared.acquire(namespace, permits).await })
        };
        let first = take("a", 1).now_or_never().expect("there are four");
        let second = take("a", 1).now_or_never().expect("its second");
        let mut third = take("a", 1);
        assert!((&mut third).now_or_never().is_none(), "a third is beyond its part");
        assert_eq!((shared.waiting(), shared.held()), (1, 2));
        let other = take("b", 2).now_or_never().expect("another namespace does not wait for it");
        assert_eq!(shared.held(), 4);
        drop(other);
        drop(first);
        let third = (&mut third).now_or_never().expect("one was given back");
        drop((second, third));
        assert_eq!((shared.waiting(), shared.held()), (0, 0));
    }

    #[test]
    fn more_than_the_part_of_a_namespace_is_all_of_it() {
        let shared = FairSemaphore::new(4, 2);
        let held = shared.acquire("a", 100).now_or_never().expect("its part is free");
        assert_eq!(shared.held(), 2);
        assert!(shared.acquire("a", 1).now_or_never().is_none());
        drop(held);
        assert_eq!(shared.namespaces.get("a").available_permits(), 2);
    }
}
