//! Events on a TokenCache.

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::{observe::limited, reason::Reason};

/// Publishes events.
#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
}

/// Kubernetes' limit on an event's note, in bytes.
const LONGEST_NOTE: usize = 1024;

impl Events {
    /// Publishes under the name of a replica.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance }
    }

    /// Publishes; a failure is logged only.
    pub async fn publish(&self, object: &impl Resource<DynamicType = ()>, reason: Reason, note: &str) {
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
        if let Err(error) = limited(recorder.publish(&event, &object.object_ref(&()))).await {
            tracing::debug!(%error, %reason, "an event was not published");
        }
    }
}
