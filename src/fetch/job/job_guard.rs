//! A run is not lost: whatever drops it, its result is still stored if it may have one, and its Job ends.
//!
//! A container that has begun may have spent what it was given, such as a refresh token, and its result may hold what
//! the next run needs. So its Job is followed further, or left to the next run, which reads it first.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::batch::v1::Job;
use kube::{Client, ResourceExt as _};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    owned::is_on_node,
    result,
    run_state::Verdict,
    stale_jobs::{delete, ending, pods_of},
    state::{Begun, NotStored, Store},
    watch_run::follow,
};
use crate::{
    fetch::Phase,
    k8s::{ApiError, live, object::OwnerRef},
};

/// What the creation of a Job gave.
pub(super) type Created = Result<Job, ApiError>;

/// Sees to its Job when it is dropped, in a task that the run waits for before it gives up its Lease.
pub(super) struct Ending {
    ends: TaskTracker,
    run: Option<Unfinished>,
}

/// A run whose Job may exist.
pub(super) struct Unfinished {
    pub(super) client: Client,
    pub(super) owner: OwnerRef,
    pub(super) store: Store,
    pub(super) begun: Arc<Begun>,
    /// Until when the run may take.
    pub(super) until: Instant,
    /// Cancelled when the process is about to end.
    pub(super) stopping: CancellationToken,
    /// Whether a Job that failed is kept.
    pub(super) keep_failed: bool,
    pub(super) job: Existing,
}

/// What is known of a Job.
pub(super) enum Existing {
    /// Its creation is under way: it cannot be called back, so it is awaited.
    Creating(JoinHandle<Created>),
    /// It was created.
    Job(Box<Job>),
}

/// How long to try to delete a Job, and to wait for its pod to be ending. The next run deletes the Job and waits, whatever
/// this came to.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);
/// A last look at a run whose time is up.
const LAST_LOOK: Duration = Duration::from_secs(2);

/// What becomes of the Job of a run that was dropped.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It is deleted.
    Delete,
    /// It stays, for the next run or for people.
    Leave,
}

impl Ending {
    pub(super) fn new(ends: TaskTracker, run: Unfinished) -> Self {
        Self { ends, run: Some(run) }
    }

    /// Waits for the creation. Where it failed, or may have, the Job is the next run's to find.
    pub(super) async fn created(&mut self) -> Option<Created> {
        let run = self.run.as_mut()?;
        let created = match &mut run.job {
            Existing::Job(job) => return Some(Ok(Job::clone(job))),
            Existing::Creating(creation) => creation.await.ok(),
        };
        match &created {
            Some(Ok(job)) => run.job = Existing::Job(Box::new(job.clone())),
            _ => self.run = None,
        }
        created
    }

    /// Leaves the Job there.
    pub(super) fn leave(mut self) {
        self.run = None;
    }

    /// Deletes the Job: nothing is to be learned from it any more.
    pub(super) fn delete(mut self) {
        if let Some(run) = self.run.take() {
            self.ends.spawn(async move { run.delete().await });
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Without a runtime the process ends; the Job's deadline and the next run see to it.
        if let (Some(run), Ok(runtime)) = (self.run.take(), tokio::runtime::Handle::try_current()) {
            self.ends.spawn_on(run.end(), &runtime);
        }
    }
}

impl Unfinished {
    async fn end(mut self) {
        if let Existing::Creating(creation) = &mut self.job {
            match creation.await {
                Ok(Ok(job)) => self.job = Existing::Job(Box::new(job)),
                _ => return,
            }
        }
        let stopping = self.stopping.clone();
        let fate = tokio::select! {
            biased;
            () = stopping.cancelled() => Fate::Leave,
            fate = self.fate() => fate,
        };
        match fate {
            Fate::Delete => self.delete().await,
            Fate::Leave => {
                let (OwnerRef { namespace, name, .. }, run) = (&self.owner, self.begun.keys.id());
                tracing::info!(namespace, name, run, "the Job was left for the next run");
            }
        }
    }

    fn job(&self) -> Option<&Job> {
        match &self.job {
            Existing::Job(job) => Some(job),
            Existing::Creating(_) => None,
        }
    }

    /// Follows the Job as long as it may have a result, and stores the state.
    async fn fate(&self) -> Fate {
        let Some(job) = self.job() else { return Fate::Leave };
        let run = self.begun.keys.id();
        let is_late = Instant::now() + LAST_LOOK >= self.until;
        let suspended = match live(&self.client, &self.owner.key()).await {
            Ok(cache) => {
                let same = cache.filter(|cache| cache.metadata.uid.as_deref() == Some(&self.owner.uid));
                match same.filter(|cache| cache.metadata.deletion_timestamp.is_none()) {
                    Some(cache) => cache.spec.suspend,
                    None => return Fate::Delete,
                }
            }
            // What is not known is no reason to end it.
            Err(_) => false,
        };
        if suspended || is_late {
            let pods = pods_of(&self.client, &self.owner, &run, job.metadata.uid.as_deref()).await;
            // Nothing of it has begun.
            if pods.is_ok_and(|pods| !pods.iter().any(is_on_node)) {
                return Fate::Delete;
            }
        }
        let until = self.until.max(Instant::now() + LAST_LOOK);
        let phase = Phase::default();
        let followed = Box::pin(follow(&self.client, &self.owner.namespace, job, &run, &phase));
        match timeout_at(until, followed).await {
            Ok(Verdict::Sealed(sealed)) => self.keep(&run, &sealed, suspended).await,
            Ok(Verdict::Ended(_)) if self.keep_failed => Fate::Leave,
            Ok(Verdict::Unseen(_)) => Fate::Leave,
            Ok(_) | Err(_) => Fate::Delete,
        }
    }

    /// Stores the state of a result. Its value is for the next run, if that comes soon.
    async fn keep(&self, run: &str, sealed: &str, suspended: bool) -> Fate {
        let done = if suspended { Fate::Delete } else { Fate::Leave };
        let Ok(opened) = self.begun.keys.open(sealed) else { return Fate::Delete };
        let Ok(result) = result::read(&opened) else { return Fate::Delete };
        let Some(state) = result.state else { return done };
        match self.store.write(None, run, &state, !suspended).await {
            Ok(()) => done,
            Err(NotStored::Displaced) => Fate::Delete,
            Err(NotStored::Api(error)) => {
                let OwnerRef { namespace, name, .. } = &self.owner;
                tracing::warn!(namespace, name, %error, "the job's state is not stored yet");
                Fate::Leave
            }
        }
    }

    async fn delete(&self) {
        let Some(job) = self.job() else { return };
        if timeout(PATIENCE, self.try_to_delete(job)).await.is_err() {
            let (namespace, job) = (&self.owner.namespace, job.name_any());
            tracing::warn!(namespace, job, "not seen to end; the next run of this TokenCache waits for it");
        }
    }

    async fn try_to_delete(&self, job: &Job) {
        let (client, namespace, name) = (&self.client, &self.owner.namespace, job.name_any());
        while let Err(error) = delete(client, namespace, &name, job.uid()).await {
            tracing::debug!(namespace, job = name, %error, "not deleted");
            sleep(PAUSE).await;
        }
        let run = self.begun.keys.id();
        if let Err(forbidden) = ending(client, namespace, &run, job.metadata.uid.as_deref()).await {
            tracing::warn!(namespace, job = name, %forbidden, "not seen to end");
        }
    }
}
