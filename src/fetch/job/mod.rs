//! The source `job`: a container of the user's as the fetch function, each run one Job.
//!
//! 1. [`template`]: what the spec may hold; [`leftovers`]: nothing of an earlier run goes on.
//! 2. [`seal`]: a key pair for this run; [`state`]: what the last run left; [`manifest`], [`security`]: the Job.
//! 3. [`follow`] watches, [`judge`] says what it means. Whatever ends this, [`ending`] ends the Job.
//! 4. The collector in the pod (`tokencache collect`) has sealed the [`result`] to the key; it is opened here, in
//!    memory alone.

mod ending;
mod follow;
#[cfg(test)]
mod fuzz_tests;
mod judge;
mod leftovers;
mod manifest;
mod result;
mod seal;
mod security;
mod state;
mod template;
mod watch;
mod words;

use k8s_openapi::api::{
    batch::v1::Job as KubeJob,
    core::v1::{Secret, ServiceAccount},
};
use kube::{Api, Client, Resource as _};
use serde_json::Value;
use tokio_util::task::TaskTracker;

#[cfg(test)]
pub(crate) use self::seal::KeyPair;
use self::{ending::Ending, judge::Verdict, result::JobResult};
pub(crate) use self::{
    result::{SEALED, failed, read as read_result},
    seal::{MAX_RESULT, SealError, seal},
};
use super::{Attempt, Failure, Obtained, Reference};
use crate::{
    api::{
        Invalid, TokenCache,
        job::Job,
        names::{FIELD_MANAGER, LABEL_SOURCE},
    },
    lock::Owner,
    observe::{ApiError, limited},
    reason::Reason,
};

/// Where a Job is run.
pub(super) struct Place<'a> {
    pub(super) client: &'a Client,
    /// What must be seen to even when the fetch is dropped.
    pub(super) ends: &'a TaskTracker,
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
    template::secrets(job).into_iter().map(|(name, _)| Reference::secret(&name))
}

/// Runs a Job to its end.
pub(super) async fn fetch(attempt: &mut Attempt<'_>, place: &Place<'_>, job: &Job) -> Result<Obtained, Failure> {
    let Place { client, cache, .. } = *place;
    let owner = crate::run::owner(cache);
    if cache.secret_name() == state::secret_name(&owner) {
        return Err(Failure::new(Reason::InvalidSpec, "spec.target.name: this name is that of the job's state"));
    }
    allowed(attempt, place, &owner, job).await?;
    leftovers::clear(client, &owner, job.keep_failed(), &attempt.phase).await?;
    attempt.phase.set("reading the state of the last run".into());
    let state = state::look(client, &owner).await?;
    let keys = seal::KeyPair::generate().map_err(|error| Failure::new(Reason::JobFailed, error.to_string()))?;
    let id = keys.id();
    let manifest = manifest::manifest(&manifest::Run {
        owner: &owner,
        job,
        id: &id,
        key: &keys.public(),
        deadline: cache.spec.fetch.timeout(),
        image: place.image,
        state_key: state.as_ref().and_then(|state| state.key.as_deref()),
    });

    attempt.phase.set("creating the Job".into());
    let sent = attempt.clock.now();
    let name = manifest::job_name(&owner.name, &id);
    let creation = place.ends.spawn(create(client.clone(), owner.namespace.clone(), manifest));
    let mut ending =
        Ending::new(place.ends.clone(), client.clone(), owner.namespace.clone(), name.clone(), id.clone(), creation);
    let created = match ending.created().await {
        Some(created) => created.map_err(|error| not_created(&error, job))?,
        None => return Err(Failure::new(Reason::JobFailed, "the creation of the Job was cut off")),
    };
    let sealed = match follow::follow(client, &owner.namespace, &created, &id, &attempt.phase).await {
        Verdict::Sealed(sealed) => sealed,
        Verdict::Ended(failure) => {
            if job.keep_failed() > 0 {
                ending.keep();
                // The failure itself is what counts; the next run prunes as well.
                if let Err(error) = leftovers::prune(client, &owner, job.keep_failed(), &name).await {
                    tracing::debug!(namespace = owner.namespace, job = name, %error, "older Jobs were not deleted");
                }
                return Err(with_look(failure, &owner, &name));
            }
            return Err(failure);
        }
        Verdict::Failed(failure) | Verdict::Stuck(failure, _) | Verdict::Deleted(failure) => return Err(failure),
        Verdict::Going(_) => return Err(Failure::new(Reason::JobFailed, "the Job was lost sight of")),
    };
    let unusable = |error: SealError| Failure::new(Reason::InvalidResponse, format!("the sealed result {error}"));
    let JobResult { token, values, stated, state: left } = result::read(&keys.open(&sealed).map_err(unusable)?)?;
    if let Some(left) = left {
        // Before the value: a crash in between costs a run, which begins with the new state. The other way round, a
        // refresh token that was rotated would be lost, and every later run with it. For the same reason not dropped
        // with the fetch.
        let written = place.ends.spawn(state::write(client.clone(), owner, state, id, left)).await;
        written.map_err(|error| Failure::new(Reason::WriteFailed, format!("the state was not written: {error}")))??;
    }
    Ok(Obtained { token, members: stated, values: Some(values), sent, from: format!("Job {name}") })
}

/// Where a failed Job stays, people may want to look at it.
fn with_look(failure: Failure, owner: &Owner, name: &str) -> Failure {
    let message = format!("{} (kubectl describe job {name} -n {})", failure.message, owner.namespace);
    Failure { message, ..failure }
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

/// Creates a Job. Kubernetes 1.25 and newer refuse fields that they do not know, which else would be dropped silently.
async fn create(client: Client, namespace: String, manifest: Value) -> ending::Created {
    let url =
        format!("{}?fieldManager={FIELD_MANAGER}&fieldValidation=Strict", KubeJob::url_path(&(), Some(&namespace)));
    let request = http::Request::post(url).header(http::header::CONTENT_TYPE, "application/json");
    let body = serde_json::to_vec(&manifest).map_err(kube::Error::SerdeError)?;
    let request = request.body(body).map_err(kube::Error::HttpError)?;
    limited(client.request(request)).await
}

/// The API server's own words: they name the template's field, the quota or the policy.
fn not_created(error: &ApiError, job: &Job) -> Failure {
    let words = words::brief(&manifest::in_the_users_words(&error.to_string(), job));
    match error.code() {
        Some(400 | 422) => Failure::new(Reason::InvalidSpec, format!("Kubernetes refuses the Job: {words}")),
        _ if error.is_of_server() => Failure::new(Reason::Unreachable, format!("the Job was not created: {words}")),
        _ => Failure::new(Reason::JobFailed, format!("Kubernetes refuses the Job: {words}")),
    }
}
