//! Whether the API server was away and is back: then nobody waits longer for it.

use std::{sync::Arc, time::Duration};

use futures::channel::mpsc::UnboundedSender;
use kube::runtime::reflector::ObjectRef;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{reconcile::at, store::Kept};
use crate::{
    k8s::object::ObjectKey,
    reconcile::{
        run::{RunError, RunOutcome},
        state::Notes,
    },
};

/// Has the objects looked at that wait for the API server, once it is back. Shared by the watches of all namespaces.
#[derive(Clone, Debug, Default)]
pub(super) struct Recovery(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    outage: Outage,
    scopes: Vec<(Option<String>, UnboundedSender<ObjectRef<Kept>>)>,
}

impl Recovery {
    /// Looks at the objects of this namespace, or of all, are called for here.
    pub(super) fn add(&self, namespace: Option<String>, looks: UnboundedSender<ObjectRef<Kept>>) {
        self.0.lock().scopes.push((namespace, looks));
    }

    /// Learns from a run's end whether the API server is away.
    pub(super) fn learn(&self, ran: &Result<RunOutcome, RunError>, notes: &Notes, now: Instant) {
        let mut state = self.0.lock();
        let over = match ran {
            // These may have come to nothing because the API server is away.
            Ok(
                RunOutcome::Cancelled
                | RunOutcome::HeldBy { holder: None, .. }
                | RunOutcome::AwaitsGarbageCollection { .. }
                | RunOutcome::HoldLost
                | RunOutcome::Panicked,
            ) => false,
            Ok(_) => state.outage.answered(now),
            Err(error) => {
                if error.is_retryable() {
                    state.outage.failed();
                }
                false
            }
        };
        if over {
            notes.end_pauses().iter().for_each(|key| state.look(key));
        }
    }
}

impl State {
    fn look(&self, key: &ObjectKey) {
        let concerned = |scope: &Option<String>| scope.as_ref().is_none_or(|namespace| *namespace == key.0);
        for (_, looks) in self.scopes.iter().filter(|(scope, _)| concerned(scope)) {
            // Nobody listens any more only when the controller ends.
            let _ = looks.unbounded_send(at(key));
        }
    }
}

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
    use crate::k8s::ApiError;

    #[test]
    fn once_the_api_server_is_back_all_that_wait_for_it_are_looked_at_in_whichever_namespace() {
        let (recovery, notes, now) = (Recovery::default(), Notes::default(), Instant::now());
        let mut looks: Vec<_> = ["one", "two"]
            .map(|namespace| {
                let (sender, receiver) = futures::channel::mpsc::unbounded();
                recovery.add(Some(namespace.to_owned()), sender);
                receiver
            })
            .into();
        let key = |namespace: &str| (namespace.to_owned(), "a".to_owned());
        let mut looked = || {
            let mut found =
                looks.iter_mut().map(|looks| std::iter::from_fn(|| looks.try_recv().ok()).collect::<Vec<_>>());
            (found.next().unwrap(), found.next().unwrap())
        };
        for namespace in ["one", "two"] {
            notes.with(&key(namespace), |note| note.api_failures = 3);
        }
        notes.with(&("one".to_owned(), "well".to_owned()), |_| {});
        recovery.learn(&Ok(RunOutcome::Finished), &notes, now);
        assert_eq!(looked(), (vec![], vec![]), "it was not away");
        recovery.learn(&Err(RunError::Api(ApiError::Timeout)), &notes, now);
        recovery.learn(&Ok(RunOutcome::HoldLost), &notes, now + SILENCE * 2);
        recovery.learn(&Ok(RunOutcome::Cancelled), &notes, now + SILENCE * 2);
        assert_eq!(looked(), (vec![], vec![]), "it did not answer");
        recovery.learn(&Ok(RunOutcome::Finished), &notes, now + SILENCE * 2);
        assert_eq!(looked(), (vec![at(&key("one"))], vec![at(&key("two"))]));
    }

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
