//! TokenCaches whose job keeps a state, and the kubelet of their pods, in whose role the test is: the container asks the
//! token server for a token, and leaves its number as the state. Each run must be given the state that the last one left.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Secret},
};
use kube::{Api, ResourceExt as _, api::ListParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokencache::{
    api::{TokenCache, names::LABEL_CACHE},
    time::parse_rfc3339,
};
use tokio::{
    task::AbortHandle,
    time::{sleep, timeout},
};
use url::form_urlencoded;

use super::{
    population::{insist, manifest},
    rhythm::Rhythm,
    world::{TIMEOUT, World},
};
use crate::support::{
    in_background,
    kubelet::{RunningPod, nowhere},
    manifests::merge,
    poll,
};

/// What the names begin with.
const JOB: &str = "job-";
/// Limit of one run. A pod that reports its end later than [`SURE`] before that may be deleted first.
const LIMIT: Duration = Duration::from_secs(25);
const SURE: Duration = Duration::from_secs(10);
/// Their values live longer than those of others: a run takes two objects more, and a controller manager, which begins anew
/// whenever the API server was in trouble.
pub const RHYTHM: Rhythm =
    Rhythm { lifetime: Duration::from_secs(30), renew_before: Duration::from_secs(15), more: 5.0 };
/// How often the kubelet looks.
const LOOK: Duration = Duration::from_millis(200);

/// Whether a TokenCache is of this kind.
pub fn is_job(name: &str) -> bool {
    name.starts_with(JOB)
}

/// Their names.
pub fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("{JOB}{index}")).collect()
}

/// What a run left.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    /// It has failed, or goes on.
    Nothing,
    /// This state, if its end came through.
    Perhaps(u64),
    /// This state.
    Surely(u64),
}

/// A run of a job, as its container knows it.
#[derive(Clone, Debug)]
struct Run {
    /// The state that it was given.
    given: Option<u64>,
    left: Left,
}

/// What all runs did, by TokenCache, in the order in which they began.
#[derive(Clone, Default)]
pub struct Kubelet(Arc<Mutex<HashMap<String, Vec<Run>>>>);

/// Creates the TokenCaches, and runs their pods from now on.
pub async fn begin(world: &Arc<World>, names: &[String]) -> Kubelet {
    let kubelet = Kubelet::default();
    in_background(work(world.clone(), kubelet.clone()));
    for name in names {
        let mut manifest = manifest(world, name, json!({}));
        let job = json!({"template": {"spec": {
            "nodeSelector": nowhere(), "containers": [{"name": "fetch", "image": "tokencache.test/none:1"}],
        }}});
        let fetch = json!({"oauth2": null, "job": job, "timeout": format!("{}s", LIMIT.as_secs())});
        merge(&mut manifest["spec"], json!({ "fetch": fetch }));
        world.ns.create::<TokenCache>(manifest).await;
    }
    kubelet
}

/// Begins each pod that there is, and ends each that is to go.
async fn work(world: Arc<World>, kubelet: Kubelet) {
    let api: Api<Pod> = world.seen();
    let of_jobs = ListParams::default().labels(LABEL_CACHE);
    let mut begun: HashMap<String, AbortHandle> = HashMap::new();
    loop {
        sleep(LOOK).await;
        let Ok(Ok(pods)) = timeout(TIMEOUT, api.list(&of_jobs)).await else { continue };
        begun.retain(|uid, _| pods.iter().any(|pod| pod.uid().as_ref() == Some(uid)));
        for pod in pods {
            let (uid, deleted) = (pod.uid().unwrap_or_default(), pod.metadata.deletion_timestamp.is_some());
            let pod = RunningPod { api: api.clone(), pod };
            if deleted {
                begun.get(&uid).inspect(|run| run.abort());
                let _ = timeout(TIMEOUT, pod.remove()).await;
            } else {
                begun
                    .entry(uid)
                    .or_insert_with(|| tokio::spawn(run(world.clone(), kubelet.clone(), pod)).abort_handle());
            }
        }
    }
}

/// What the pod of a run does, and what its kubelet says of it.
async fn run(world: Arc<World>, kubelet: Kubelet, pod: RunningPod) {
    let name = pod.pod.labels()[LABEL_CACHE].clone();
    let job = pod.pod.owner_references().first().map(|owner| owner.name.clone()).unwrap_or_default();
    // The limit of a run counts from its Job, whose pod may come late.
    let created = insist(|| created(&world, &job)).await;
    insist(|| pod.bind().map(|bound| done(bound.err()))).await;
    insist(|| pod.report_start().map(|started| done(started.err()))).await;
    let given = match pod.state_key() {
        None => None,
        // A kubelet waits for the key that it is to mount.
        Some(key) => Some(insist(|| mounted(&world, &name, &key)).await),
    };
    let index = kubelet.begins(&name, given);
    match ask(&world, &name).await {
        None => insist(|| pod.report_failure("no token").map(|failed| done(failed.err()))).await,
        Some((token, number)) => {
            let result = json!({"token": token, "expires_in": RHYTHM.lifetime.as_secs(), "state": number});
            let message = pod.sealed(&result).await;
            kubelet.leaves(&name, index, Left::Perhaps(number));
            let reported = insist(|| {
                pod.report_success(&message).map(|reported| match reported {
                    Ok(pod) => Some(pod.metadata.deletion_timestamp.is_none()),
                    Err(error) => done(Some(error)).map(|()| false),
                })
            });
            let is_early = |created: DateTime<Utc>| (Utc::now() - created).to_std().is_ok_and(|age| age < LIMIT - SURE);
            if reported.await && created.is_some_and(is_early) {
                kubelet.leaves(&name, index, Left::Surely(number));
            }
        }
    }
}

/// When a Job was created, unless it is gone. Nothing where the API server does not answer.
async fn created(world: &World, job: &str) -> Option<Option<DateTime<Utc>>> {
    let job: Option<Job> = world.seen().get_opt(job).await.ok()?;
    let created = job.and_then(|job| serde_json::to_value(job.metadata.creation_timestamp).ok());
    Some(created.and_then(|created| parse_rfc3339(created.as_str()?).ok()))
}

/// Whether a request need not be repeated: it is done, or the object is gone or otherwise already.
fn done(error: Option<kube::Error>) -> Option<()> {
    match error {
        None => Some(()),
        Some(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Some(()),
        Some(_) => None,
    }
}

/// The state in a Secret.
pub fn state(secret: &Secret) -> Option<u64> {
    let state = secret.data.iter().flatten().find(|(key, _)| key.starts_with("state-"))?;
    serde_json::from_slice(&state.1.0).ok()
}

/// The Secret with the state. Nothing where the API server does not answer.
async fn stored(world: &World, name: &str) -> Option<Option<Secret>> {
    world.seen().get_opt(&format!("tokencache-{name}-state")).await.ok()
}

/// The state by this key; nothing while there is none.
async fn mounted(world: &World, name: &str, key: &str) -> Option<u64> {
    serde_json::from_slice(&stored(world, name).await??.data?.get(key)?.0).ok()
}

/// A token of the token server, and its number.
async fn ask(world: &World, name: &str) -> Option<(String, u64)> {
    let options = world.server.options();
    let pairs = [("client_id", &options.client_id), ("client_secret", &options.client_secret)];
    let grant = "grant_type=client_credentials".to_owned();
    let form = form_urlencoded::Serializer::new(grant).extend_pairs(pairs).finish();
    let request = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build().ok()?.post(world.url(name));
    let request = request.header("content-type", "application/x-www-form-urlencoded").body(form);
    let answer = request.send().await.ok()?.bytes().await.ok()?;
    let answer: Value = serde_json::from_slice(&answer).ok()?;
    let token = answer["access_token"].as_str()?;
    let index = world.server.issued(name).iter().position(|issued| issued == token)?;
    Some((token.to_owned(), index as u64 + 1))
}

impl Kubelet {
    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Vec<Run>) -> T) -> T {
        act(self.0.lock().entry(name.to_owned()).or_default())
    }

    fn begins(&self, name: &str, given: Option<u64>) -> usize {
        self.with(name, |runs| {
            runs.push(Run { given, left: Left::Nothing });
            runs.len() - 1
        })
    }

    fn leaves(&self, name: &str, index: usize, left: Left) {
        self.with(name, |runs| runs[index].left = left);
    }

    /// What is wrong with the states, once all is well again.
    pub async fn judge(&self, world: &World, names: &[String]) -> Vec<String> {
        let mut wrong = Vec::new();
        for name in names {
            // A run may just have ended.
            let kept = poll(|| async {
                let stored = stored(world, name).await?.as_ref().and_then(state);
                self.with(name, |runs| last(runs).1.contains(&stored)).then_some(())
            });
            if timeout(LIMIT, kept).await.is_err() {
                let last = self.with(name, |runs| runs.last().cloned());
                let stored = stored(world, name).await.flatten().as_ref().and_then(state);
                wrong.push(format!("{name}: the state at the end is {stored:?}; the last run: {last:?}"));
            }
            wrong.extend(self.with(name, |runs| last(runs).0).into_iter().map(|what| format!("{name}: {what}")));
            if self.with(name, |runs| runs.len()) < 2 {
                wrong.push(format!("{name}: there were no runs"));
            }
        }
        wrong
    }
}

/// Which runs were not given the state that the one before left, and which states may be stored after the last.
fn last(runs: &[Run]) -> (Vec<String>, Vec<Option<u64>>) {
    let (mut wrong, mut possible) = (Vec::new(), vec![None]);
    for (index, run) in runs.iter().enumerate() {
        if !possible.contains(&run.given) {
            wrong.push(format!("run {index} was given the state {:?}, where {possible:?} was left", run.given));
        }
        possible = match run.left {
            Left::Nothing => vec![run.given],
            Left::Perhaps(state) => vec![run.given, Some(state)],
            Left::Surely(state) => vec![Some(state)],
        };
    }
    (wrong, possible)
}

#[test]
fn a_state_that_was_lost_or_comes_back_is_found() {
    let run = |given, left| Run { given, left };
    let good = [run(None, Left::Nothing), run(None, Left::Surely(1)), run(Some(1), Left::Perhaps(2))];
    assert_eq!(last(&good), (Vec::new(), vec![Some(1), Some(2)]));
    for given in [Some(1), Some(2)] {
        let next = [good.to_vec(), vec![run(given, Left::Surely(3))]].concat();
        assert_eq!(last(&next), (Vec::new(), vec![Some(3)]));
    }
    let lost = [good.to_vec(), vec![run(None, Left::Surely(3))]].concat();
    assert_eq!(last(&lost).0.len(), 1);
    let older = [run(None, Left::Surely(1)), run(Some(1), Left::Surely(2)), run(Some(1), Left::Nothing)];
    assert_eq!(last(&older).0, ["run 2 was given the state Some(1), where [Some(2)] was left"]);
}
