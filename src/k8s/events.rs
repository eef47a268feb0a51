//! Events on a TokenCache.

use std::{collections::HashMap, hash::BuildHasher as _, sync::Arc, time::Duration};

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{api::reason::Reason, k8s::call};

/// Publishes events. Cloning shares how many may still be published.
#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
    budgets: Arc<Mutex<Budgets>>,
}

/// Kubernetes' limit on an event's note, in bytes.
const LONGEST_NOTE: usize = 1024;

/// How many events on one object are published, if it was quiet before, and how long it takes for one more: as in
/// Kubernetes' own components. Else a cluster that can hardly keep up would be told of that until it cannot at all.
const BURST: f64 = 25.0;
const ONE_MORE: Duration = Duration::from_secs(300);
/// Above so many objects, those are forgotten that may have all again.
const MANY: usize = 1000;

/// How many events may still be published on each object, by the hash of its UID: there may be very many.
#[derive(Debug, Default)]
struct Budgets {
    left: HashMap<u64, (f64, Instant)>,
    tidied: usize,
}

impl Budgets {
    /// Takes one event from an object's budget, if one is left.
    fn take(&mut self, uid: &str, now: Instant) -> bool {
        let gained = |since: Instant| now.duration_since(since).as_secs_f64() / ONE_MORE.as_secs_f64();
        let key = self.left.hasher().hash_one(uid);
        let (left, since) = self.left.get(&key).copied().unwrap_or((BURST, now));
        let left = (left + gained(since)).min(BURST);
        let (left, may) = if left < 1.0 { (left, false) } else { (left - 1.0, true) };
        self.left.insert(key, (left, now));
        if self.left.len() > MANY.max(2 * self.tidied) {
            self.left.retain(|_, (left, since)| *left + gained(*since) < BURST);
            self.tidied = self.left.len();
        }
        may
    }
}

impl Events {
    /// Publishes under the name of a replica.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance, budgets: Arc::default() }
    }

    /// Publishes, unless there were many on this object lately; a failure is logged only.
    pub async fn publish(&self, object: &impl Resource<DynamicType = ()>, reason: Reason, note: &str) {
        let metadata = object.meta();
        let uid = metadata.uid.as_deref().unwrap_or_default();
        if !self.budgets.lock().take(uid, Instant::now()) {
            let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
            tracing::debug!(namespace, name, %reason, "an event was not published, since there were many on this object");
            return;
        }
        let type_ = match reason {
            Reason::Fetched | Reason::Cleared | Reason::RolloutRestarted => EventType::Normal,
            _ => EventType::Warning,
        };
        let end = note.floor_char_boundary(LONGEST_NOTE);
        let event = Event {
            type_,
            reason: reason.as_str().to_owned(),
            note: note.get(..end).map(str::to_owned),
            action: "Fetch".into(),
            secondary: None,
        };
        // A recorder folds events that are alike but for the note, and keeps the first note; a new one does not.
        let reporter = Reporter { controller: "tokencache".into(), instance: Some(self.instance.clone()) };
        let recorder = Recorder::new(self.client.clone(), reporter);
        if let Err(error) = call(recorder.publish(&event, &object.object_ref(&()))).await {
            tracing::debug!(%error, %reason, "an event was not published");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_a_burst_of_events_and_then_one_now_and_then() {
        let (mut budgets, now) = (Budgets::default(), Instant::now());
        let mut taken = |uid: &str, now| (0..100).filter(|_| budgets.take(uid, now)).count();
        assert_eq!((taken("a", now), taken("a", now), taken("b", now)), (25, 0, 25));
        assert_eq!(taken("a", now + ONE_MORE.mul_f64(2.5)), 2);
        assert_eq!(taken("a", now + ONE_MORE * 1000), 25);
    }

    #[test]
    fn objects_are_forgotten_once_they_were_quiet_for_long() {
        let (mut budgets, now) = (Budgets::default(), Instant::now());
        for object in 0..10 * MANY {
            assert!(budgets.take(&object.to_string(), now));
        }
        for object in 0..10 * MANY {
            assert!(budgets.take(&format!("new {object}"), now + ONE_MORE));
        }
        assert!(budgets.left.len() <= 10 * MANY, "{}", budgets.left.len());
    }
}
