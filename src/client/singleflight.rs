//! One request for all who want to know the same.

use tokio::{sync::Mutex, time::Instant};

/// Shares the result of a request among those who came before it was begun: nobody is told what was so before he asked.
#[derive(Debug)]
pub(super) struct Turn<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Turn<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Turn<T> {
    /// The result of a request that was begun since then, be it this one or another's. This one goes by what was known
    /// at `known`, if that is given, as if it were begun then.
    pub(super) async fn share(&self, since: Instant, known: Option<Instant>, request: impl Future<Output = T>) -> T {
        let mut last = self.0.lock().await;
        if let Some((begun, result)) = &*last
            && *begun >= since
        {
            return result.clone();
        }
        let begun = known.unwrap_or_else(Instant::now);
        let result = request.await;
        *last = Some((begun, result.clone()));
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use futures::{future::join_all, poll};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn many_at_once_cost_two_requests_and_nobody_is_told_what_was_before_he_asked() {
        let (turn, begun, gate) = (Turn::default(), AtomicU32::new(0), Semaphore::new(0));
        let ask = || {
            turn.share(Instant::now(), None, async {
                let number = begun.fetch_add(1, SeqCst) + 1;
                let _open = gate.acquire().await.unwrap();
                number
            })
        };
        let mut first = Box::pin(ask());
        assert!(poll!(&mut first).is_pending());
        let mut others: Vec<_> = (0..63).map(|_| Box::pin(ask())).collect();
        for other in &mut others {
            assert!(poll!(other).is_pending());
        }
        gate.add_permits(1);
        assert_eq!(first.await, 1);
        // What the first was told was so before these asked.
        assert_eq!(join_all(others).await, [2; 63]);
        assert_eq!(begun.load(SeqCst), 2);
        // What is asked of an earlier time may have been told already.
        let before = Instant::now();
        assert_eq!(turn.share(before, None, async { 3 }).await, 3);
        assert_eq!(turn.share(before, None, async { 4 }).await, 3);
        // What goes by old knowledge is not for who came later.
        assert_eq!(turn.share(Instant::now(), Some(before), async { 5 }).await, 5);
        assert_eq!(turn.share(Instant::now(), None, async { 6 }).await, 6);
    }
}
