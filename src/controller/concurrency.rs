//! How many runs there are at once, and which one is next.
//!
//! Fetches and jobs have separate slots, because jobs take long. The rules are in [`queue`].

mod queue;

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use self::queue::Queue;
pub(super) use self::queue::Request;
use crate::{
    api::{Source, TokenCacheSpec},
    fetch::destination,
};

/// What a run does with its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Requests of the controller.
    Fetch,
    /// A Job.
    Job,
}

/// The slot that a fetch by this spec needs.
#[must_use]
pub(super) fn slot_for(namespace: &str, spec: &TokenCacheSpec) -> (Work, Request) {
    let work = if matches!(spec.fetch.source(), Some(Source::Job(_))) { Work::Job } else { Work::Fetch };
    (work, Request { namespace: namespace.into(), destination: destination(spec).map(Into::into) })
}

/// The slots for runs. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct Concurrency {
    fetches: Pool,
    jobs: Pool,
}

/// A slot that a run holds. Dropping it gives it to the next run.
#[derive(Debug)]
pub(super) struct Slot {
    pool: Pool,
    request: Request,
}

impl Concurrency {
    /// With this number of slots for fetches, and as many for jobs.
    #[must_use]
    pub(super) fn new(slots: usize) -> Self {
        let pool = || Pool(Arc::new(Mutex::new(Queue::new(slots.max(1)))));
        Self { fetches: pool(), jobs: pool() }
    }

    /// Waits for a slot.
    pub(super) async fn slot(&self, work: Work, request: Request) -> Slot {
        self.pool(work).slot(request).await
    }

    /// Whether this run would get a slot at once.
    #[must_use]
    pub(super) fn has_slot(&self, work: Work, request: &Request) -> bool {
        self.pool(work).lock().has_slot(request)
    }

    /// How many runs wait for a slot.
    #[must_use]
    pub(super) fn waiting(&self) -> usize {
        self.pools().map(|pool| pool.lock().waiting()).sum()
    }

    /// How many runs hold a slot.
    #[must_use]
    pub(super) fn running(&self) -> usize {
        self.pools().map(|pool| pool.lock().running()).sum()
    }

    fn pool(&self, work: Work) -> &Pool {
        match work {
            Work::Fetch => &self.fetches,
            Work::Job => &self.jobs,
        }
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        [&self.fetches, &self.jobs].into_iter()
    }
}

/// The queue of one pool. Each waiting run is woken by being sent its slot.
#[derive(Clone, Debug)]
struct Pool(Arc<Mutex<Queue<oneshot::Sender<Slot>>>>);

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Queue<oneshot::Sender<Slot>>> {
        self.0.lock()
    }

    async fn slot(&self, request: Request) -> Slot {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.lock().add(request.clone(), sender);
        let _waiting = Waiting { pool: self, ticket, request };
        self.grant();
        match receiver.await {
            Ok(slot) => slot,
            // The queue drops a sender only when `_waiting` is dropped.
            Err(_) => std::future::pending().await,
        }
    }

    /// Gives the free slots to the runs whose turn it is.
    fn grant(&self) {
        loop {
            // Sent without the lock: a slot that nobody receives is dropped, which takes the lock.
            let next = self.lock().next();
            let Some((request, sender)) = next else { return };
            drop(sender.send(Slot { pool: self.clone(), request }));
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.pool.lock().release(&self.request);
        self.pool.grant();
    }
}

/// A run that waits. Dropping it removes it from the queue.
struct Waiting<'a> {
    pool: &'a Pool,
    ticket: u64,
    request: Request,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.lock().remove(self.ticket, &self.request);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn request(namespace: &str) -> Request {
        Request { namespace: namespace.into(), destination: Some("host:443".into()) }
    }

    #[tokio::test]
    async fn slots_are_given_back_and_nothing_is_lost_by_those_that_stop_waiting() {
        let all = Concurrency::new(1);
        let slot = |namespace| Box::pin(all.slot(Work::Fetch, request(namespace)));
        let held = slot("a").await;
        let (mut second, mut third) = (slot("b"), slot("c"));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        assert_eq!((all.waiting(), all.running()), (2, 1));
        assert!(!all.has_slot(Work::Fetch, &request("d")));
        drop(held);
        assert_eq!((all.waiting(), all.running()), (1, 1), "the slot went to the second, which was not polled since");
        drop(second);
        assert_eq!((all.waiting(), all.running()), (0, 1), "and from there to the third");
        drop(third.await);
        assert_eq!((all.waiting(), all.running()), (0, 0));
        assert!(all.has_slot(Work::Fetch, &request("d")));
    }

    #[tokio::test]
    async fn jobs_take_no_slots_of_fetches() {
        let all = Concurrency::new(1);
        let _job = all.slot(Work::Job, request("a")).await;
        assert!(all.slot(Work::Job, request("a")).now_or_never().is_none());
        assert!(all.slot(Work::Fetch, request("a")).now_or_never().is_some());
    }
}
