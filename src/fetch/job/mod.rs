//! The source `job`: a container of the user's as the fetch function, each run one Job.
//!
//! 1. [`template`]: what the spec may hold; [`leftovers`]: nothing of an earlier run goes on.
//! 2. [`seal`]: a key pair for this run; [`state`]: what the last run left, and the key; [`manifest`], [`security`]:
//!    the Job.
//! 3. [`follow`] watches what [`owned`] finds to be the run's, [`judge`] says what it means. Whatever ends this,
//!    [`ending`] sees to the Job.
//! 4. The collector in the pod (`tokencache collect`) has sealed the [`result`] to the key; it is opened here, in
//!    memory alone. [`run`] has the whole of it.

mod ending;
mod follow;
#[cfg(test)]
mod fuzz_tests;
mod judge;
mod leftovers;
mod manifest;
mod owned;
mod result;
mod run;
mod seal;
mod security;
mod state;
mod template;
mod watch;
mod words;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{Api, Client, Resource as _};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::run::Runs;
#[cfg(test)]
pub(crate) use self::seal::KeyPair;
pub(crate) use self::{
    result::{SEALED, failed, read as read_result},
    seal::{MAX_RESULT, SealError, seal},
};
use super::{Attempt, Failure, Obtained, Reference, state_secret};
use crate::{
    api::{Invalid, TokenCache, job::Job, names::LABEL_SOURCE},
    lock::Owner,
    observe::{ApiError, limited},
    reason::Reason,
};

/// Where a Job is run.
pub(super) struct Place<'a> {
    pub(super) client: &'a Client,
    /// What must be seen to even when the fetch is dropped.
    pub(super) ends: &'a TaskTracker,
    /// Cancelled when the process is about to end.
    pub(super) stopping: &'a CancellationToken,
    /// The collector's image.
    pub(super) image: &'a str,
    pub(super) cache: &'a TokenCache,
}

/// Checks a spec.
pub(super) fn check(job: &Job) -> Result<(), Invalid> {
    template::check(job)
}

/// The objects whose change may unblock it.
pub(super) fn references(job: &Job) -> impl Iterator<Item = Reference> {
    let account = template::service_account(job).map(Reference::service_account);
    template::secrets(job).into_iter().map(|(name, _)| Reference::secret(&name)).chain(account)
}

/// Runs a Job to its end.
pub(super) async fn fetch(attempt: &mut Attempt<'_>, place: &Place<'_>, job: &Job) -> Result<Obtained, Failure> {
    let Place { client, cache, .. } = *place;
    let owner = crate::run::owner(cache);
    if cache.secret_name() == state_secret::name(&owner) {
        return Err(Failure::new(Reason::InvalidSpec, "spec.target.name: this name is that of the job's state"));
    }
    let store = state::Store::new(client, &owner);
    let phase = attempt.phase.clone();
    let until = Instant::now() + cache.spec.fetch.timeout();
    let runs = Runs { place, job, owner: &owner, store: &store, phase: &phase, clock: attempt.clock, until };
    phase.set("reading the state of the last run".into());
    let mut kept = store.look().await?;
    let mut jobs = leftovers::list(client, &owner).await?;
    // Before anything else: what an earlier run has learned is kept even if nothing is fetched now.
    if let Some(begun) = kept.begun()
        && let Some(found) = owned::job_of(&jobs, &owner, &begun.keys.id())
    {
        let adopted = runs.adopt(found, begun, kept).await?;
        allowed(attempt, place, &owner, job).await?;
        if let Some(obtained) = adopted {
            return Ok(obtained);
        }
        kept = store.look().await?;
        jobs = leftovers::list(client, &owner).await?;
    } else {
        allowed(attempt, place, &owner, job).await?;
    }
    leftovers::clear(client, &owner, job.keep_failed(), &jobs, &phase).await?;
    let unanswered = kept.begun().filter(|begun| {
        let run = begun.keys.id();
        !kept.has_state_of(&run) && owned::job_of(&jobs, &owner, &run).is_none()
    });
    let mut running = runs.start(kept, unanswered).await?;
    if running.is_none() {
        running = runs.start(store.look().await?, None).await?;
    }
    match running {
        Some(running) => runs.finish(running).await,
        None => Err(Failure::new(Reason::JobFailed, "another client has a Job with the name of the run's")),
    }
}

/// Secrets and service accounts of the template, as of every source, must be opened by their owners: else whoever may
/// write a TokenCache could read them all.
async fn allowed(attempt: &mut Attempt<'_>, place: &Place<'_>, owner: &Owner, job: &Job) -> Result<(), Failure> {
    if !attempt.sources.requires_label() {
        return Ok(());
    }
    for (name, optional) in template::secrets(job) {
        let api = Api::<Secret>::namespaced(place.client.clone(), &owner.namespace);
        attempt.phase.set(format!("looking at Secret {name}"));
        let found =
            limited(api.get_metadata_opt(&name)).await.map_err(|error| unreadable::<Secret>(owner, &name, &error))?;
        match found {
            None if optional => {}
            None => {
                let message = format!("Secret {}/{name}, which the pod is to read, does not exist", owner.namespace);
                return Err(Failure::new(Reason::SourceNotFound, message));
            }
            Some(found) => opened("secret", &name, owner, found.meta())?,
        }
    }
    if let Some(name) = template::service_account(job) {
        let api = Api::<ServiceAccount>::namespaced(place.client.clone(), &owner.namespace);
        attempt.phase.set(format!("looking at ServiceAccount {name}"));
        let found = limited(api.get_metadata_opt(name)).await;
        if let Some(found) = found.map_err(|error| unreadable::<ServiceAccount>(owner, name, &error))? {
            opened("serviceaccount", name, owner, found.meta())?;
        }
    }
    Ok(())
}

fn opened(
    kind: &str,
    name: &str,
    owner: &Owner,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Result<(), Failure> {
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_SOURCE));
    if label.is_some_and(|value| value == "true") {
        return Ok(());
    }
    let namespace = &owner.namespace;
    let message = format!(
        "the {kind} {namespace}/{name}, which the pod is to use, is not open to TokenCaches: its owner opens it with \
         kubectl label {kind} {name} -n {namespace} --overwrite {LABEL_SOURCE}=true"
    );
    Err(Failure::new(Reason::SourceNotAllowed, message))
}

fn unreadable<K: kube::Resource<DynamicType = ()>>(owner: &Owner, name: &str, error: &ApiError) -> Failure {
    if error.code() == Some(403) {
        return watch::Forbidden::new::<K>("get", &owner.namespace).into();
    }
    let message = format!("{} {name}, which the pod is to use, cannot be looked at: {error}", K::kind(&()));
    Failure::new(Reason::Unreachable, message)
}

/// Why a controller that was started with `--allow-jobs=false` does nothing.
pub(super) fn switched_off() -> Failure {
    let message = "this controller runs no jobs (--allow-jobs=false): have it started with --allow-jobs=true, or use \
                   another source";
    Failure::new(Reason::SourceNotAllowed, message)
}
