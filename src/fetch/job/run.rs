//! One run: from the key to the Job, and from the Job to its result. Also of a run that an earlier holder of the Lease
//! began and left.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use k8s_openapi::api::batch::v1::Job as KubeJob;
use kube::{Api, Resource as _, ResourceExt as _};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    Place,
    job_guard::{Created, Ending, Existing, Unfinished},
    manifest, message,
    owned::{is_as_made, is_on_node, is_ours},
    result::{self, JobResult},
    run_state::{Seen, Verdict, judge},
    seal::{KeyPair, SealError},
    stale_jobs::{has_failed, pods_of, prune},
    state::{Begun, Kept, NotStored, Store},
    watch_run::follow,
};
use crate::{
    api::{job::Job, names::FIELD_MANAGER, reason::Reason},
    fetch::{Failure, Obtained, Phase, expiry, fetch_hash},
    k8s::{ApiError, call, live, object::OwnerRef},
    time::Clock,
};

/// How often to look for a change of the spec while no node takes the pod.
const RECHECK: Duration = Duration::from_secs(5);

/// What the runs of one TokenCache need.
pub(super) struct Runs<'a> {
    pub(super) place: &'a Place<'a>,
    pub(super) job: &'a Job,
    pub(super) owner: &'a OwnerRef,
    pub(super) store: &'a Store,
    pub(super) phase: &'a Phase,
    pub(super) clock: &'a Clock,
    /// Until when a run may take.
    pub(super) until: Instant,
}

/// A Job that was created, or taken over.
pub(super) struct Running {
    job: Box<KubeJob>,
    begun: Arc<Begun>,
    /// `expires_in` counts from then.
    sent: DateTime<Utc>,
    /// The state's Secret as it was when the run began.
    kept: Kept,
    ending: Ending,
}

impl Runs<'_> {
    fn ending(&self, begun: &Arc<Begun>, job: Existing) -> Ending {
        let run = Unfinished {
            client: self.place.client.clone(),
            owner: self.owner.clone(),
            store: self.store.clone(),
            begun: begun.clone(),
            until: self.until,
            stopping: self.place.stopping.clone(),
            keep_failed: self.job.keep_failed() > 0,
            job,
        };
        Ending::new(self.place.ends.clone(), run)
    }

    /// Stores a key and creates the Job. Where the creation of an earlier Job was not answered, and so may come late, its
    /// key is used again: the name is the same then, and Kubernetes creates only one of the two. `None`: another client
    /// has a Job of that name.
    pub(super) async fn start(&self, kept: Kept, unanswered: Option<Begun>) -> Result<Option<Running>, Failure> {
        let Place { client, ends, .. } = *self.place;
        let (is_again, now) = (unanswered.is_some(), self.clock.now());
        let current = fetch_hash(&self.place.cache.spec);
        let begun = Arc::new(match unanswered {
            Some(begun) if begun.fetch_hash == current => begun,
            // Which of the two specs the Job will be made from is not known.
            Some(begun) => Begun { fetch_hash: String::new(), ..begun },
            None => {
                let keys = KeyPair::generate().map_err(|error| Failure::new(Reason::JobFailed, error.to_string()))?;
                Begun { keys, fetch_hash: current, sent: now }
            }
        });
        let id = begun.keys.id();
        self.phase.set("storing the key of the run".into());
        let kept = self.store.begin(kept, &begun).await?;
        let manifest = manifest::manifest(&manifest::Run {
            owner: self.owner,
            job: self.job,
            id: &id,
            key: &begun.keys.public(),
            deadline: self.place.cache.spec.fetch.timeout(),
            image: &self.place.settings.collector_image,
            state_key: kept.state_key(),
        });
        self.phase.set("creating the Job".into());
        let name = manifest::job_name(&self.owner.name, &id);
        let creation = ends.spawn(create(client.clone(), self.owner.namespace.clone(), manifest));
        let mut ending = self.ending(&begun, Existing::Creating(creation));
        let error = match ending.created().await {
            Some(Ok(job)) => return Ok(Some(Running { job: job.into(), begun, sent: now, kept, ending })),
            Some(Err(error)) => error,
            None => return Err(Failure::new(Reason::JobFailed, "the creation of the Job was cut off")),
        };
        if is_already_there(&error) {
            let jobs = Api::<KubeJob>::namespaced(client.clone(), &self.owner.namespace);
            let found = call(jobs.get(&name)).await.map_err(|error| not_created(&error, self.job))?;
            if is_ours(&found, self.owner) {
                return Ok(Some(self.take_over(found, begun, kept)));
            }
            if is_again {
                return Ok(None);
            }
        }
        if !error.is_retryable() {
            self.store.forget(kept, &id).await;
        }
        Err(not_created(&error, self.job))
    }

    fn take_over(&self, job: KubeJob, begun: Arc<Begun>, kept: Kept) -> Running {
        let job = Box::new(job);
        let ending = self.ending(&begun, Existing::Job(job.clone()));
        Running { job, sent: begun.sent, begun, kept, ending }
    }

    fn is_current(&self, begun: &Begun) -> bool {
        begun.fetch_hash == fetch_hash(&self.place.cache.spec)
    }

    /// Follows a Job to its end, stores the state that it left, and gives its value.
    pub(super) async fn finish(&self, running: Running) -> Result<Obtained, Failure> {
        let (name, begun, sent) = (running.job.name_any(), running.begun.clone(), running.sent);
        let is_late = sent == begun.sent && !self.is_current(&begun);
        let result = Box::pin(self.result(running)).await?;
        if is_late {
            let message = format!("Job {name} was created late, and may be of an earlier spec: its value is not used");
            return Err(Failure::new(Reason::JobFailed, message));
        }
        Ok(obtained(result, sent, &name))
    }

    async fn result(&self, running: Running) -> Result<JobResult, Failure> {
        let Running { job, begun, sent, kept, ending } = running;
        let Place { client, .. } = *self.place;
        let (id, name) = (begun.keys.id(), job.name_any());
        let followed = Box::pin(follow(client, &self.owner.namespace, &job, &id, self.phase));
        let verdict = tokio::select! {
            verdict = followed => verdict,
            () = self.outdated(&job, &begun) => {
                let message = "the spec was changed while no node had taken the pod";
                Verdict::Failed(Failure::new(Reason::JobFailed, message))
            }
        };
        match verdict {
            Verdict::Sealed(sealed) => self.take(Running { job, begun, sent, kept, ending }, &sealed).await,
            Verdict::Ended(failure) => {
                self.store.forget(kept, &id).await;
                let keep = self.job.keep_failed();
                if keep == 0 {
                    ending.delete();
                    return Err(failure);
                }
                ending.leave();
                // The failure itself is what counts; the next run prunes as well.
                if let Err(error) = prune(client, self.owner, keep, &name).await {
                    tracing::debug!(namespace = self.owner.namespace, job = name, %error, "older Jobs were not deleted");
                }
                Err(with_look(failure, self.owner, &name))
            }
            Verdict::Failed(failure) | Verdict::Stuck(failure, _) | Verdict::Deleted(failure) => {
                self.store.forget(kept, &id).await;
                ending.delete();
                Err(failure)
            }
            Verdict::Unseen(failure) => {
                ending.leave();
                Err(failure)
            }
            Verdict::Going(_) | Verdict::Waiting(_) => Err(Failure::new(Reason::JobFailed, "lost track of the Job")),
        }
    }

    /// Waits until the spec is another one than the Job's, and no node has taken the pod: the next pod may find one.
    async fn outdated(&self, job: &KubeJob, begun: &Begun) {
        loop {
            sleep(RECHECK).await;
            if self.phase.waits() && self.is_outdated(job, begun).await {
                return;
            }
        }
    }

    async fn is_outdated(&self, job: &KubeJob, begun: &Begun) -> bool {
        let Place { client, .. } = *self.place;
        match live(client, &self.owner.key()).await {
            Ok(Some(cache)) if fetch_hash(&cache.spec) != begun.fetch_hash => {
                let uid = job.metadata.uid.as_deref();
                let pods = pods_of(client, self.owner, &begun.keys.id(), uid).await;
                pods.is_ok_and(|pods| !pods.iter().any(is_on_node))
            }
            _ => false,
        }
    }

    /// Opens a result and stores its state.
    async fn take(&self, running: Running, sealed: &str) -> Result<JobResult, Failure> {
        let Running { begun, kept, ending, .. } = running;
        let id = begun.keys.id();
        let unusable = |error: SealError| Failure::new(Reason::InvalidResponse, format!("the sealed result {error}"));
        let read = begun.keys.open(sealed).map_err(unusable).and_then(|opened| result::read(&opened));
        let mut result = match read {
            Ok(result) => result,
            Err(failure) => {
                self.store.forget(kept, &id).await;
                ending.delete();
                return Err(failure);
            }
        };
        match result.state.take() {
            None => self.store.forget(kept, &id).await,
            Some(state) => {
                // Before the value: a crash in between costs a run, which begins with the new state. The other way round,
                // a refresh token that was rotated would be lost, and every later run with it. For the same reason not
                // dropped with the fetch.
                let store = self.store.clone();
                let write = async move { store.write(Some(kept), &id, &state, false).await };
                match self.place.ends.spawn(write).await {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => {
                        // What may still be stored, the next run reads again from the pod.
                        match why {
                            NotStored::Displaced => ending.delete(),
                            NotStored::Api(_) => ending.leave(),
                        }
                        return Err(self.store.not_stored(&why));
                    }
                    Err(error) => {
                        ending.leave();
                        let message = format!("the job's state was not stored: {error}");
                        return Err(Failure::new(Reason::WriteFailed, message));
                    }
                }
            }
        }
        ending.delete();
        Ok(result)
    }

    /// Takes over the newest run, whose Job an earlier holder of the Lease left: its state is stored in any case, and its
    /// value used if the spec is still the same and it has not expired.
    pub(super) async fn adopt(&self, job: &KubeJob, begun: Begun, kept: Kept) -> Result<Option<Obtained>, Failure> {
        let name = job.name_any();
        let (namespace, job_name) = (&self.owner.namespace, &name);
        tracing::info!(namespace, name = self.owner.name, job = job_name, "reading the Job of an earlier run");
        self.phase.set(format!("reading Job {name} of an earlier run"));
        let (id, sent) = (begun.keys.id(), begun.sent);
        let is_current = self.is_current(&begun);
        let running = self.take_over(job.clone(), Arc::new(begun), kept);
        let result = if has_failed(job) || job.metadata.deletion_timestamp.is_some() {
            // Nothing more comes of it than is there already.
            let pods = pods_of(self.place.client, self.owner, &id, job.metadata.uid.as_deref()).await;
            let mut pods = pods?.into_iter().filter(|pod| is_as_made(pod, job));
            let sealed = pods.find_map(|pod| match judge(&Seen { pod: Some(pod), ..Seen::default() }) {
                Verdict::Sealed(sealed) => Some(sealed),
                _ => None,
            });
            let Some(sealed) = sealed else {
                running.ending.leave();
                return Ok(None);
            };
            self.take(running, &sealed).await?
        } else {
            Box::pin(self.result(running)).await?
        };
        let obtained = obtained(result, sent, &name);
        Ok(Some(obtained).filter(|obtained| is_current && self.is_valid(obtained)))
    }

    fn is_valid(&self, obtained: &Obtained) -> bool {
        let stated = expiry::Stated {
            expires_in: obtained.members.get("expires_in"),
            expires_at: obtained.members.get("expires_at"),
            token: obtained.token.as_ref().map(|token| token.expose_secret()),
        };
        let spec = &self.place.cache.spec;
        expiry::decide(&stated, &spec.expiry, spec.refresh.min_remaining, obtained.sent, self.clock.now()).is_ok()
    }
}

fn obtained(result: JobResult, sent: DateTime<Utc>, job: &str) -> Obtained {
    let JobResult { token, values, stated, state: _ } = result;
    Obtained { token, members: stated, values: Some(values), sent, from: format!("Job {job}") }
}

/// Where a failed Job stays, people may want to look at it.
fn with_look(failure: Failure, owner: &OwnerRef, name: &str) -> Failure {
    let message = format!("{} (kubectl describe job {name} -n {})", failure.message, owner.namespace);
    Failure { message, ..failure }
}

/// Creates a Job. Kubernetes 1.25 and newer refuse fields that they do not know, which else would be dropped silently;
/// 1.25 to 1.27 do not know one of ours.
async fn create(client: kube::Client, namespace: String, mut manifest: Value) -> Created {
    let created = try_to_create(&client, &namespace, &manifest).await;
    let Err(ApiError::Kube(kube::Error::Api(status))) = &created else { return created };
    if status.code != 400 || !status.message.contains(manifest::REPLACEMENT) {
        return created;
    }
    if let Some(spec) = manifest.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove(manifest::REPLACEMENT);
    }
    try_to_create(&client, &namespace, &manifest).await
}

async fn try_to_create(client: &kube::Client, namespace: &str, manifest: &Value) -> Created {
    let url =
        format!("{}?fieldManager={FIELD_MANAGER}&fieldValidation=Strict", KubeJob::url_path(&(), Some(namespace)));
    let request = http::Request::post(url).header(http::header::CONTENT_TYPE, "application/json");
    let body = serde_json::to_vec(manifest).map_err(kube::Error::SerdeError)?;
    let request = request.body(body).map_err(kube::Error::HttpError)?;
    call(client.request(request)).await
}

/// Whether a Job of that name exists, where other conflicts are a quota's.
fn is_already_there(error: &ApiError) -> bool {
    matches!(error, ApiError::Kube(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists")
}

/// The API server's own words: they name the template's field, the quota or the policy.
fn not_created(error: &ApiError, job: &Job) -> Failure {
    let words = message::brief(&manifest::in_the_users_words(&error.to_string(), job));
    if is_of_the_template(error) {
        return Failure::new(Reason::InvalidSpec, format!("Kubernetes refuses the Job: {words}"));
    }
    let may_pass = error.is_retryable() || error.code() == Some(409);
    let (reason, what) = if may_pass {
        (Reason::Unreachable, "the Job was not created")
    } else {
        (Reason::JobFailed, "Kubernetes refuses the Job")
    };
    Failure::new(reason, format!("{what}: {words}"))
}

/// Whether it is the template that is wrong, and not a policy's or a webhook's refusal, which may be lifted: those are
/// answered with any code, but name no field of the Job.
fn is_of_the_template(error: &ApiError) -> bool {
    let ApiError::Kube(kube::Error::Api(status)) = error else { return false };
    if status.message.starts_with("admission webhook ") {
        return false;
    }
    let causes = status.details.iter().flat_map(|details| &details.causes);
    match status.code {
        422 => causes.into_iter().any(|cause| cause.field.starts_with("spec") || cause.field.starts_with("metadata")),
        // It could not even be read.
        400 => ["strict decoding error", "cannot be handled as a Job"].iter().any(|it| status.message.contains(it)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;

    fn refused(code: u16, reason: &str, message: &str, fields: &[&str]) -> ApiError {
        let causes: Vec<_> = fields.iter().map(|field| json!({"message": "m", "field": field})).collect();
        let status: Status = serde_json::from_value(json!({
            "status": "Failure", "code": code, "reason": reason, "message": message, "details": {"causes": causes},
        }))
        .unwrap();
        ApiError::Kube(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn only_what_kubernetes_says_of_the_template_itself_is_the_specs_fault() {
        let policy = "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no";
        let webhook = "admission webhook \"validate.kyverno.svc-fail\" denied the request: no";
        let field = "Job.batch \"x\" is invalid: spec.template.spec.containers[0].image: Required value";
        for (error, reason) in [
            (refused(422, "Invalid", field, &["spec.template.spec.containers[0].image"]), Reason::InvalidSpec),
            (refused(422, "Invalid", "Job.batch \"x\" is invalid", &["metadata.labels"]), Reason::InvalidSpec),
            (
                refused(400, "BadRequest", "strict decoding error: unknown field \"spec.template.spec.x\"", &[]),
                Reason::InvalidSpec,
            ),
            (
                refused(400, "BadRequest", "Job in version \"v1\" cannot be handled as a Job: json: cannot", &[]),
                Reason::InvalidSpec,
            ),
            (refused(422, "Invalid", policy, &[""]), Reason::JobFailed),
            (refused(403, "Forbidden", policy, &[]), Reason::JobFailed),
            (refused(400, "BadRequest", webhook, &[]), Reason::JobFailed),
            (refused(422, "Invalid", webhook, &["spec.template"]), Reason::JobFailed),
            (refused(403, "Forbidden", "exceeded quota: q", &[]), Reason::JobFailed),
            (refused(409, "Conflict", "the quota was changed", &[]), Reason::Unreachable),
            (refused(500, "InternalError", "failed calling webhook", &[]), Reason::Unreachable),
            (ApiError::Timeout, Reason::Unreachable),
        ] {
            let failure = not_created(&error, &Job::default());
            assert_eq!(failure.reason, reason, "{failure}");
        }
        assert!(is_already_there(&refused(409, "AlreadyExists", "", &[])));
        assert!(!is_already_there(&refused(409, "Conflict", "", &[])));
    }
}
