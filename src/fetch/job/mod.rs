//! The source `job`: a container of the user's as the fetch function, each run one Job.
//!
//! 1. [`template`]: what the spec may hold; [`leftovers`]: nothing of an earlier run goes on.
//! 2. [`seal`]: a key pair for this run; [`state`]: what the last run left, and the key; [`manifest`], [`security`]:
//!    the Job. [`pod_security`]: what the administrator allows its pod.
//! 3. [`follow`] watches what [`owned`] finds to be the run's, [`judge`] says what it means. Whatever ends this,
//!    [`ending`] sees to the Job.
//! 4. The collector in the pod (`tokencache collect`) has sealed the [`result`] to the key; it is opened here, in
//!    memory alone. [`run`] has the whole of it.

#[cfg(test)]
mod fuzz_tests;
mod job_guard;
mod manifest;
mod message;
mod owned;
mod pod_security;
mod result;
mod run;
mod run_state;
mod seal;
mod security;
mod stale_jobs;
mod state;
mod template;
mod watch;
mod watch_run;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::{Api, Client, Resource as _};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::pod_security::PodSecurity;
use self::run::Runs;
#[cfg(test)]
pub(crate) use self::seal::KeyPair;
pub(crate) use self::{
    result::{SEALED, failed, read as read_result},
    seal::{MAX_RESULT, SealError, seal},
};
use super::{Attempt, Failure, Obtained, Reference, ReferenceKind, consent, source_objects, state_secret};
use crate::{
    api::{Invalid, TokenCache, job::Job, names::ANNOTATION_HOSTS, reason::Reason},
    k8s::{ApiError, call, object::OwnerRef},
};

/// What an administrator says of jobs.
#[derive(Clone, Debug)]
pub struct JobSettings {
    /// Whether the source `job` may be used.
    pub allowed: bool,
    /// The image with this very program, for the pods of jobs.
    pub collector_image: String,
    /// The level of the Pod Security Standards that the templates must keep to.
    pub pod_security: PodSecurity,
    /// The service account of jobs that name none.
    pub service_account: Option<String>,
}

/// Where a Job is run.
pub(super) struct Place<'a> {
    pub(super) client: &'a Client,
    /// What must be seen to even when the fetch is dropped.
    pub(super) ends: &'a TaskTracker,
    /// Cancelled when the process is about to end.
    pub(super) stopping: &'a CancellationToken,
    pub(super) settings: &'a JobSettings,
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
    let owner = crate::k8s::object::OwnerRef::of(cache);
    if cache.secret_name() == state_secret::name(&owner) {
        return Err(Failure::new(Reason::InvalidSpec, "spec.target.name: this name is that of the job's state"));
    }
    let store = state::Store::new(client, &owner);
    let phase = attempt.phase.clone();
    let until = Instant::now() + cache.spec.fetch.timeout();
    let runs = Runs { place, job, owner: &owner, store: &store, phase: &phase, clock: attempt.clock, until };
    phase.set("reading the state of the last run".into());
    let mut kept = store.look().await?;
    let mut jobs = stale_jobs::list(client, &owner).await?;
    // Before anything else: what an earlier run has learned is kept even if nothing is fetched now.
    let mut adopted = None;
    if let Some(begun) = kept.begun()
        && let Some(found) = owned::job_of(&jobs, &owner, &begun.keys.id())
    {
        adopted = runs.adopt(found, begun, kept).await?;
        kept = store.look().await?;
        jobs = stale_jobs::list(client, &owner).await?;
    }
    let absent = allowed(attempt, place, &owner, job).await?;
    if let Some(obtained) = adopted {
        return Ok(obtained);
    }
    let usable = template::under(template::without(job, &absent), place.settings.service_account.as_deref());
    let runs = Runs { job: &usable, ..runs };
    stale_jobs::clear(client, &owner, job.keep_failed(), &jobs, &phase).await?;
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
/// write a TokenCache could read them all. Gives the Secrets that do not exist and that the pod may do without.
async fn allowed(
    attempt: &mut Attempt<'_>,
    place: &Place<'_>,
    owner: &OwnerRef,
    job: &Job,
) -> Result<BTreeSet<String>, Failure> {
    pod_security::check(&job.template.0, place.settings.pod_security)
        .map_err(|invalid| Failure::new(Reason::InvalidSpec, invalid.to_string()))?;
    let mut absent = BTreeSet::new();
    let requires_label = attempt.sources.requires_label();
    let OwnerRef { namespace, .. } = owner;
    for (name, optional) in template::secrets(job) {
        let api = Api::<Secret>::namespaced(place.client.clone(), namespace);
        attempt.phase.set(format!("looking at Secret {name}"));
        let found =
            call(api.get_metadata_opt(&name)).await.map_err(|error| unreadable::<Secret>(owner, &name, &error))?;
        match found {
            Some(found) => {
                if requires_label {
                    consent::check_label(ReferenceKind::Secret, namespace, &name, found.meta())?;
                }
                unlimited(&name, owner, found.meta())?;
            }
            None if !requires_label => {}
            None if optional => {
                absent.insert(name);
            }
            None => {
                let message = format!("Secret {namespace}/{name}, which the pod is to read, does not exist");
                return Err(Failure::new(Reason::SourceNotFound, message));
            }
        }
    }
    if !requires_label {
        return Ok(absent);
    }
    let chosen = place.settings.service_account.as_deref();
    if let Some(name) = template::named_account(job).or(chosen).or_else(|| template::service_account(job)) {
        let api = Api::<ServiceAccount>::namespaced(place.client.clone(), namespace);
        attempt.phase.set(format!("looking at ServiceAccount {name}"));
        let found = call(api.get_metadata_opt(name)).await;
        let Some(found) = found.map_err(|error| unreadable::<ServiceAccount>(owner, name, &error))? else {
            let message = format!("ServiceAccount {namespace}/{name}, under which the pod is to run, does not exist");
            return Err(Failure::new(Reason::SourceNotFound, message));
        };
        // The administrator has chosen the other one, which is good for nothing by itself.
        if template::service_account(job).is_some() {
            consent::check_label(ReferenceKind::ServiceAccount, namespace, name, found.meta())?;
            for audiences in template::token_audiences(job) {
                consent::check_audiences(namespace, name, found.meta(), &audiences).map_err(or_without_token)?;
            }
        }
    }
    Ok(absent)
}

/// Says how a job does without a token.
fn or_without_token(failure: Failure) -> Failure {
    let message = format!(
        "{}; a pod that needs no token of the API server has spec.fetch.job.template.spec.automountServiceAccountToken: \
         false",
        failure.message
    );
    Failure { message, ..failure }
}

/// Whether a Secret's owner leaves it open where its contents are sent, which cannot be known of a pod.
fn unlimited(
    name: &str,
    owner: &OwnerRef,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Result<(), Failure> {
    if source_objects::hosts(metadata).is_none() {
        return Ok(());
    }
    let message = format!(
        "Secret {}/{name} cannot be used in a job: its annotation {ANNOTATION_HOSTS} limits the hosts to which its contents \
         may be sent, and where a pod sends them cannot be limited",
        owner.namespace
    );
    Err(Failure::new(Reason::SourceNotAllowed, message))
}

fn unreadable<K: kube::Resource<DynamicType = ()>>(owner: &OwnerRef, name: &str, error: &ApiError) -> Failure {
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
