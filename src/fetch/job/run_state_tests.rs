use serde_json::{Value, json};

use super::*;

/// A pod in which `fetch` and the collector are in these states.
fn pod(fetch: Value, collector: Value, more: Value) -> Value {
    let mut status = json!({
        "phase": "Pending",
        "initContainerStatuses": [
            status("tokencache-prepare", json!({"terminated": {"exitCode": 0}})), status("fetch", fetch),
        ],
        "containerStatuses": [status(COLLECTOR, collector)],
    });
    for (key, value) in more.as_object().unwrap() {
        status[key] = value.clone();
    }
    json!({
        "metadata": {"name": "p"},
        "spec": {"nodeName": "n1", "containers": [], "initContainers": [
            {"name": "tokencache-prepare"},
            {"name": "fetch", "resources": {"limits": {"memory": "64Mi"}}},
            {"name": "proxy", "restartPolicy": "Always"},
        ]},
        "status": status,
    })
}

fn status(name: &str, state: Value) -> Value {
    json!({"name": name, "image": "img:1", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"waiting": {"reason": reason, "message": message}})
}

fn ended(exit_code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": exit_code, "reason": reason, "message": message}})
}

fn idle() -> Value {
    waiting("PodInitializing", "")
}

fn judged(pod: Value, job: Value, events: Value) -> Verdict {
    judge(&Seen {
        job: serde_json::from_value(job).unwrap(),
        pod: serde_json::from_value(pod).unwrap(),
        events: serde_json::from_value(events).unwrap(),
        ..Seen::default()
    })
}

fn told(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Going(doing) => ("going", doing.clone()),
        Verdict::Waiting(what) => ("waiting", what.clone()),
        Verdict::Stuck(failure, _) => ("stuck", failure.to_string()),
        Verdict::Deleted(failure) => ("deleted", failure.to_string()),
        Verdict::Sealed(text) => ("sealed", text.clone()),
        Verdict::Ended(failure) => ("ended", failure.to_string()),
        Verdict::Failed(failure) => ("failed", failure.to_string()),
        Verdict::Unseen(failure) => ("unseen", failure.to_string()),
    }
}

fn event(reason: &str, message: &str) -> Value {
    json!([{"metadata": {}, "involvedObject": {}, "reason": reason, "message": message}])
}

#[test]
fn each_state_of_a_pod_has_its_own_meaning() {
    let running = || json!({"running": {}});
    let failed = json!({"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"});
    let none = || json!({});
    for (pod, job, events, kind, words) in [
        (pod(idle(), idle(), none()), json!(null), json!([]), "going", "waiting for node n1 to start"),
        (pod(running(), idle(), none()), json!(null), json!([]), "going", "container fetch was running on node n1"),
        (
            pod(ended(0, "Completed", ""), ended(0, "Completed", "sealed:abc"), none()),
            json!(null),
            json!([]),
            "sealed",
            "abc",
        ),
        (
            pod(ended(0, "Completed", ""), ended(1, "Error", "failed:ResponseTooLarge:the result has 9 bytes"), none()),
            json!(null),
            json!([]),
            "ended",
            "ResponseTooLarge: the result has 9 bytes",
        ),
        (
            pod(ended(0, "Completed", ""), ended(0, "Completed", ""), none()),
            json!(null),
            json!([]),
            "ended",
            "JobFailed: the collector of the result ended with exit code 0",
        ),
        (
            pod(ended(3, "Error", "first\nlogin failed\n"), idle(), json!({"phase": "Failed"})),
            json!(null),
            json!([]),
            "ended",
            "JobFailed: container fetch ended with exit code 3: login failed",
        ),
        (
            pod(ended(1, "Error", ""), idle(), none()),
            json!(null),
            json!([]),
            "ended",
            "container fetch ended with exit code 1 and no output",
        ),
        (
            pod(ended(137, "OOMKilled", ""), idle(), none()),
            json!(null),
            json!([]),
            "ended",
            "container fetch ran out of memory, of which it may have 64Mi (OOMKilled)",
        ),
        (
            pod(ended(128, "StartError", "exec: \"nope\": not found"), idle(), none()),
            json!(null),
            json!([]),
            "ended",
            "container fetch could not be started (StartError): exec: \"nope\": not found",
        ),
        (
            pod(waiting("ErrImagePull", "not found"), idle(), none()),
            json!(null),
            json!([]),
            "failed",
            "the image img:1 of container fetch cannot be pulled (ErrImagePull): not found",
        ),
        (
            pod(waiting("ImagePullBackOff", "Back-off"), idle(), none()),
            json!(null),
            json!([]),
            "failed",
            "(ImagePullBackOff): Back-off",
        ),
        (
            pod(waiting("ErrImageNeverPull", ""), idle(), none()),
            json!(null),
            json!([]),
            "failed",
            "(ErrImageNeverPull)",
        ),
        (
            pod(waiting("InvalidImageName", "x"), idle(), none()),
            json!(null),
            json!([]),
            "failed",
            "(InvalidImageName): x",
        ),
        (
            pod(ended(0, "", ""), waiting("ErrImagePull", "x"), none()),
            json!(null),
            json!([]),
            "failed",
            "of container tokencache-collect",
        ),
        (
            pod(
                waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
                idle(),
                none(),
            ),
            json!(null),
            json!([]),
            "failed",
            "container fetch cannot be started (CreateContainerConfigError): container has runAsNonRoot",
        ),
        (
            pod(
                idle(),
                idle(),
                json!({"conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]}),
            ),
            json!(null),
            json!([]),
            "waiting",
            "no node takes the pod (Unschedulable): 0/1 nodes",
        ),
        (
            pod(running(), idle(), json!({"phase": "Failed", "reason": "Evicted", "message": "low on resource"})),
            json!(null),
            json!([]),
            "ended",
            "the pod was evicted from node n1: low on resource",
        ),
        (
            pod(
                running(),
                idle(),
                json!({"phase": "Failed", "reason": "DeadlineExceeded", "message": "active too long"}),
            ),
            json!(null),
            json!([]),
            "ended",
            "Timeout: node n1 ended the pod at its activeDeadlineSeconds: DeadlineExceeded: active too long",
        ),
        (
            pod(running(), idle(), json!({"reason": "NodeLost", "message": "unresponsive"})),
            json!(null),
            json!([]),
            "failed",
            "node n1 was lost: unresponsive",
        ),
        (
            pod(running(), idle(), json!({"phase": "Failed", "reason": "Shutdown", "message": "node is going down"})),
            json!(null),
            json!([]),
            "ended",
            "node n1 ended the pod: Shutdown: node is going down",
        ),
        (
            pod(
                running(),
                idle(),
                json!({"conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "m"}]}),
            ),
            json!(null),
            json!([]),
            "failed",
            "disrupted on node n1: DeletionByTaintManager: m",
        ),
        (
            pod(running(), idle(), none()),
            json!(null),
            event("NodeNotReady", "Node is not ready"),
            "failed",
            "node n1 was lost: Node is not ready",
        ),
        (
            pod(idle(), idle(), json!({"initContainerStatuses": []})),
            json!(null),
            event("FailedMount", "configmap \"x\" not found"),
            "stuck",
            "node n1 cannot start the pod: configmap \"x\"",
        ),
        (pod(running(), idle(), none()), json!(null), event("FailedMount", "x"), "going", "container fetch"),
        (
            pod(running(), idle(), none()),
            json!({"status": {"conditions": [failed.clone()]}}),
            json!([]),
            "failed",
            "Timeout: ",
        ),
        (json!(null), json!({"status": {"conditions": [failed]}}), json!([]), "failed", "Timeout: "),
        (json!(null), json!(null), json!([]), "going", "Job controller"),
        (
            json!(null),
            json!({}),
            event("FailedCreate", "Error creating: pods \"x\" is forbidden: exceeded quota: q"),
            "failed",
            "the pod could not be created: Error creating: pods \"x\" is forbidden: exceeded quota: q",
        ),
        (
            json!(null),
            json!({"status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}}),
            json!([]),
            "stuck",
            "the Job failed: BackoffLimitExceeded",
        ),
    ] {
        let shown = format!("{pod}");
        let verdict = judged(pod, job, events);
        let (is, says) = told(&verdict);
        assert!(is == kind && says.contains(words), "{is}: {says}, not {kind}: {words}\n{shown}");
    }
}

#[test]
fn what_was_deleted_by_another_hand_has_failed_unless_it_had_ended_well() {
    let deleted = |mut pod: Value| {
        pod["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z".into();
        told(&judged(pod, json!(null), json!([])))
    };
    let (kind, words) = deleted(pod(json!({"running": {}}), idle(), json!({})));
    assert_eq!((kind, words.as_str()), ("deleted", "JobFailed: the pod was deleted while it ran on node n1"));
    let done = pod(ended(0, "", ""), ended(0, "", "sealed:abc"), json!({}));
    assert_eq!(deleted(done), ("sealed", "abc".to_owned()));
    // Killed for the deletion, which is the cause.
    let (_, words) = deleted(pod(ended(137, "Error", ""), idle(), json!({})));
    assert!(words.contains("was deleted"), "{words}");

    let gone = Seen { job_gone: true, ..Seen::default() };
    assert!(told(&judge(&gone)).1.contains("the Job was deleted by another hand"));
    let pod = serde_json::from_value(pod(json!({"running": {}}), idle(), json!({}))).unwrap();
    let gone = Seen { pod: Some(pod), pod_gone: true, ..Seen::default() };
    assert_eq!(told(&judge(&gone)).0, "deleted");
}

#[test]
fn a_deletion_is_told_by_what_caused_it() {
    let deleted = |job: Value, events: Value| {
        let mut pod = pod(json!({"running": {}}), idle(), json!({}));
        pod["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z".into();
        told(&judged(pod, job, events))
    };
    let (kind, words) = deleted(json!(null), event("TaintManagerEviction", "Marking for deletion Pod a/b"));
    assert_eq!(
        (kind, words.as_str()),
        ("failed", "JobFailed: node n1 was lost, or is being emptied: Marking for deletion Pod a/b",)
    );
    let late = json!({"type": "Failed", "status": "True", "reason": "DeadlineExceeded"});
    let (kind, words) = deleted(json!({"status": {"conditions": [late]}}), json!([]));
    assert!(kind == "failed" && words.starts_with("Timeout: "), "{kind} {words}");
}

#[test]
fn where_events_may_not_be_seen_that_is_told_instead_of_what_they_would_say() {
    let no_events = Some(Forbidden::new::<Event>("list", "b"));
    let seen = Seen { no_events: no_events.clone(), ..Seen::default() };
    let (kind, words) = told(&judge(&seen));
    assert!(
        kind == "stuck" && words.contains("no pod was created") && words.contains("lacks list on events"),
        "{words}"
    );
    let starting = |fetch| serde_json::from_value(pod(fetch, idle(), json!({}))).unwrap();
    let seen = Seen { pod: Some(starting(idle())), no_events, ..Seen::default() };
    let (kind, words) = told(&judge(&seen));
    assert!(kind == "going" && words.contains("lacks list on events"), "it may be slow only: {words}");
    let seen = Seen { pod: Some(starting(json!({"running": {}}))), ..seen };
    assert_eq!(told(&judge(&seen)).1, "container fetch was running on node n1", "they are not needed any more");
}

#[test]
fn a_sidecar_that_ends_badly_is_no_failure_of_the_run() {
    let mut pod = pod(json!({"running": {}}), idle(), json!({}));
    let statuses = pod["status"]["initContainerStatuses"].as_array_mut().unwrap();
    statuses.insert(0, status("proxy", ended(1, "Error", "x")));
    assert_eq!(told(&judged(pod, json!(null), json!([]))).0, "going");
}

#[test]
fn a_registry_that_wants_credentials_is_told_with_its_last_words_and_where_they_go() {
    let told = |message: &str| {
        told(&judged(pod(waiting("ErrImagePull", message), idle(), json!({})), json!(null), json!([]))).1
    };
    let long = "failed to pull and unpack image \"h:5055/private/tokencache:0.1.0\": failed to resolve reference \
                \"h:5055/private/tokencache:0.1.0\": pulling from host h:5055 failed with status code [manifests \
                0.1.0]: 401 Unauthorized";
    let words = told(long);
    assert!(words.contains("401 Unauthorized; ") && words.contains("template.spec.imagePullSecrets"), "{words}");
    for (message, named) in [
        ("pull access denied, repository does not exist or may require authorization", true),
        ("unauthorized: access to the requested resource is not authorized", true),
        ("no basic auth credentials", true),
        ("h:5055/x:1: not found", false),
        ("dial tcp: i/o timeout", false),
    ] {
        assert_eq!(told(message).contains("imagePullSecrets"), named, "{message}");
    }
}

#[test]
fn a_failure_beside_an_injected_container_names_it() {
    let mut pod = pod(ended(1, "Error", "no network"), idle(), json!({}));
    pod["spec"]["containers"] = json!([{"name": COLLECTOR}, {"name": "istio-proxy"}]);
    let words = told(&judged(pod, json!(null), json!([]))).1;
    assert!(words.contains("no network; the injected container istio-proxy starts only after"), "{words}");
}

#[test]
fn the_message_of_a_container_shows_no_token() {
    let token = "x".repeat(64);
    let verdict = judged(pod(ended(1, "Error", &format!("got {token}")), idle(), json!({})), json!(null), json!([]));
    assert_eq!(told(&verdict).1, "JobFailed: container fetch ended with exit code 1: got ***");
}

mod fuzz_tests {
    use super::*;
    use crate::testing::random_input::{damaged, fuzz};

    #[test]
    fn any_pod_job_and_event_are_judged() {
        let deadline = json!({"type": "Failed", "status": "True", "reason": "DeadlineExceeded"});
        let originals = [
            pod(idle(), idle(), json!({})),
            pod(ended(0, "Completed", ""), ended(0, "Completed", "sealed:abc"), json!({})),
            pod(ended(1, "OOMKilled", "no memory\n"), idle(), json!({"phase": "Failed", "reason": "Evicted"})),
            pod(waiting("ErrImagePull", "no such image"), idle(), json!({})),
        ]
        .map(|pod| {
            let job = json!({"metadata": {"name": "j"}, "status": {"conditions": [deadline]}});
            json!({"pod": pod, "job": job, "events": event("FailedMount", "no such volume")})
        });
        fuzz((damaged(originals.to_vec()), proptest::bits::u8::ANY), |(whole, flags)| {
            judge(&Seen {
                job: serde_json::from_value(whole["job"].clone()).ok(),
                job_gone: flags & 1 > 0,
                pod: serde_json::from_value(whole["pod"].clone()).ok(),
                pod_gone: flags & 2 > 0,
                events: serde_json::from_value(whole["events"].clone()).unwrap_or_default(),
                ..Seen::default()
            });
        });
    }
}
