//! How much memory fetches take together. What they read is usually small and counts for nothing, since there are only so
//! many at a time. A fetch that reads more takes a place among the few large ones, and one namespace can have only a part of
//! these. It takes that place once, for all it may need: fetches that wait for each other's memory would never end.

use std::sync::{Arc, LazyLock};

use crate::fetch::fair_semaphore::{FairPermit, FairSemaphore};
use parking_lot::Mutex;

/// A fetch that reads more than this, from a server or from objects in the cluster, is large.
pub(super) const SMALL: usize = 64 * 1024;

/// What a large fetch is charged: a response of the largest size, also as decoded, and what is made of it.
const LARGE: usize = 8;
/// What all have together, and one namespace, in the same unit: MiB.
const ALL: usize = 64;
const OF_ONE: usize = 16;

static SHARED: LazyLock<FairSemaphore> = LazyLock::new(|| FairSemaphore::new(ALL, OF_ONE));

/// What one fetch holds of it. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<Option<FairPermit>>>);

/// The same, held by the fetched value.
#[derive(Debug, Default)]
pub struct Held(#[expect(dead_code, reason = "it is given back when it is dropped")] Option<FairPermit>);

/// How many large fetches go on, and how many wait for that.
#[must_use]
pub fn large_fetches() -> (usize, usize) {
    (SHARED.held() / LARGE, SHARED.waiting())
}

impl Memory {
    pub(super) fn is_held(&self) -> bool {
        self.0.lock().is_some()
    }

    pub(super) async fn hold(&self, namespace: &str) {
        let permit = SHARED.acquire(namespace, LARGE).await;
        *self.0.lock() = Some(permit);
    }

    pub(super) fn take(&self) -> Held {
        Held(self.0.lock().take())
    }
}
