//! A Job is not left behind: whatever ends a run, be it that its future is dropped, ends its Job.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use kube::Client;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::leftovers::{delete, ending};
use crate::observe::ApiError;

/// What the creation of a Job gave.
pub(super) type Created = Result<Job, ApiError>;

/// Deletes its Job when it is dropped, by a task of the run's, which the run waits for before it gives up its Lease.
pub(super) struct Ending {
    ends: TaskTracker,
    job: Option<Doomed>,
}

/// A Job that is to go.
struct Doomed {
    client: Client,
    namespace: String,
    name: String,
    run: String,
    /// A creation that is under way: it cannot be called back, so it is awaited.
    creation: Option<JoinHandle<Created>>,
}

/// How long is tried to delete a Job, and waited for its pod to be ending: a controller that is stopped has 5 s for
/// it and the release of its Leases. Who runs next deletes the Job and waits, whatever this came to.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);

impl Ending {
    /// Watches over a Job that is being created by this task.
    pub(super) fn new(
        ends: TaskTracker,
        client: Client,
        namespace: String,
        name: String,
        run: String,
        creation: JoinHandle<Created>,
    ) -> Self {
        Self { ends, job: Some(Doomed { client, namespace, name, run, creation: Some(creation) }) }
    }

    /// Waits for the creation.
    pub(super) async fn created(&mut self) -> Option<Created> {
        let job = self.job.as_mut()?;
        let created = job.creation.as_mut()?.await.ok();
        job.creation = None;
        created
    }

    /// Leaves the Job there: it has ended.
    pub(super) fn keep(mut self) {
        self.job = None;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Without a runtime the process ends; the Job's deadline and the next run see to it.
        if let (Some(job), Ok(runtime)) = (self.job.take(), tokio::runtime::Handle::try_current()) {
            self.ends.spawn_on(job.end(), &runtime);
        }
    }
}

impl Doomed {
    async fn end(mut self) {
        if let Some(creation) = self.creation.take() {
            // Whether a creation that failed did happen is not always known: the deletion tells.
            let _ = creation.await;
        }
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        if timeout(PATIENCE, self.try_to_end()).await.is_err() {
            tracing::warn!(namespace, job = name, "not seen to end; the next run of this TokenCache waits for it");
        }
    }

    async fn try_to_end(self) {
        while let Err(error) = delete(&self.client, &self.namespace, &self.name, None).await {
            tracing::debug!(namespace = self.namespace, job = self.name, %error, "not deleted");
            sleep(PAUSE).await;
        }
        if let Err(forbidden) = ending(&self.client, &self.namespace, &self.run).await {
            tracing::warn!(namespace = self.namespace, job = self.name, %forbidden, "not seen to end");
        }
    }
}
