//! Each way in which a job can fail is told apart, in Kubernetes' words, and soon.

use std::time::{Duration, Instant};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ResourceQuota, Secret},
};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::{
    node::{BUSYBOX, Stage, container, is_fetching, on_node, pod_spec},
    support::{CacheView as _, manifests::merge, poll, within},
};

#[test]
fn a_script_that_fails_is_told_by_its_last_words_and_its_job_stays_for_a_look() {
    on_node(async {
        let stage = Stage::new().await;
        // Both on one stream: of two, the node may read either first.
        stage.script("a", "echo one >&2; echo 'login failed: wrong password' >&2; exit 3", json!({})).await;
        let (reason, message) = stage.failure("a").await;
        assert_eq!(reason, "JobFailed");
        assert!(
            message.starts_with("container fetch ended with exit code 3: login failed: wrong password"),
            "{message}"
        );
        let first = stage.jobs("a").await;
        assert_eq!(first.len(), 1);
        assert!(message.contains(&first[0].name_any()), "{message}");
        stage.ns.request("a", "again").await;
        let other = || async {
            let jobs = stage.jobs("a").await;
            (jobs.len() == 1 && jobs[0].name_any() != first[0].name_any()).then_some(())
        };
        within("the newest that failed stays, and no other", poll(other)).await;

        stage.script("none", "exit 1", json!({"fetch": {"job": {"keepFailed": 0}}})).await;
        stage.failure("none").await;
        let none = || async { stage.jobs("none").await.is_empty().then_some(()) };
        within("with keepFailed 0 no Job stays", poll(none)).await;
    });
}

async fn told(cases: Vec<(&'static str, Value, &'static str, &'static str)>) {
    let stage = Stage::new().await;
    let begin = Instant::now();
    for (name, spec, ..) in &cases {
        stage.script(name, "exit 7", spec.clone()).await;
    }
    for (name, _, reason, words) in &cases {
        let (is, message) = stage.failure(name).await;
        println!("{name} after {:?}: {is}: {message}", begin.elapsed());
        assert!(is == *reason && message.contains(words), "{name}: {is}: {message}");
        // A job's own limit is 5 minutes.
        assert!(begin.elapsed() < Duration::from_secs(150), "{name}: {:?}", begin.elapsed());
    }
}

fn script(text: &str) -> Value {
    container(json!({"command": ["sh", "-ec", text]}))
}

#[test]
fn what_the_container_did_wrong_is_told_apart() {
    on_node(told(vec![
        ("silent", script("exit 4"), "JobFailed", "exit code 4 and no output"),
        ("missing", script("true"), "InvalidResponse", "is missing"),
        ("removed", script("rm $TOKENCACHE_RESULT"), "InvalidResponse", "is missing"),
        ("malformed", script("echo '{\"token\": x}' > $TOKENCACHE_RESULT"), "InvalidResponse", "is not valid JSON"),
        ("members", script("echo '{\"access_token\": \"x\"}' > $TOKENCACHE_RESULT"), "InvalidResponse", "neither"),
        ("expiry", script("echo '{\"token\": \"x\"}' > $TOKENCACHE_RESULT"), "NoExpiry", "spec.expiry.ttl"),
        (
            "large",
            script(
                "echo \"{\\\"token\\\": \\\"$(head -c 6000 /dev/urandom | base64 | tr -d '\\n')\\\"}\" > $TOKENCACHE_RESULT",
            ),
            "ResponseTooLarge",
            "at most 3018 of these",
        ),
        ("command", container(json!({"command": ["/nope"]})), "JobFailed", "could not be started"),
        ("slow", slow(json!({"timeout": "30s"})), "Timeout", "container fetch was running on node"),
        (
            "pod-deadline",
            slow(json!({"job": {"template": {"spec": {"activeDeadlineSeconds": 5}}}})),
            "Timeout",
            "ended the pod at its activeDeadlineSeconds",
        ),
    ]));
}

#[test]
fn what_the_cluster_does_not_give_is_told_apart() {
    on_node(told(vec![
        ("image", container(json!({"image": "tokencache.test/nope:1"})), "JobFailed", "ErrImagePull"),
        (
            "never",
            container(json!({"image": "tokencache.test/nope:1", "imagePullPolicy": "Never"})),
            "JobFailed",
            "ErrImageNeverPull",
        ),
        ("name", container(json!({"image": "NOT AN IMAGE"})), "JobFailed", "InvalidImageName"),
        ("node", unschedulable(), "Timeout", "no node takes the pod (Unschedulable)"),
        (
            "config",
            container(json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "nope", "key": "k"}}}]})),
            "JobFailed",
            "CreateContainerConfigError",
        ),
        ("root", pod_spec(json!({"securityContext": {"runAsUser": null}})), "JobFailed", "runAsNonRoot"),
        ("mount", mount(), "JobFailed", "configmap \"nope\" not found"),
        ("memory", memory(), "JobFailed", "OOMKilled"),
        ("evicted", evicted(), "JobFailed", "evicted"),
        (
            "account",
            pod_spec(json!({"serviceAccountName": "nope"})),
            "SourceNotFound",
            "nope, under which the pod is to run, does not exist",
        ),
    ]));
}

/// Waits for a node that never comes.
fn unschedulable() -> Value {
    let mut spec = pod_spec(json!({"nodeSelector": {"no": "such"}}));
    spec["fetch"]["timeout"] = "20s".into();
    spec
}

/// Takes longer than it may.
fn slow(limit: Value) -> Value {
    let mut spec = script("sleep 600");
    merge(&mut spec["fetch"], limit);
    spec
}

/// The controller ends a run in time by itself, so that Kubernetes' own deadline is met only where another hand has
/// drawn it nearer.
#[test]
fn a_job_that_kubernetes_ends_at_its_deadline_is_told_as_a_timeout() {
    on_node(async {
        let stage = Stage::new().await;
        stage.script("a", "sleep 600", json!({})).await;
        stage.pod("a", "the container runs", is_fetching).await;
        let job = stage.jobs("a").await.remove(0).name_any();
        stage.ns.patch::<Job>(&job, json!({"spec": {"activeDeadlineSeconds": 1}})).await;
        let (reason, message) = stage.failure("a").await;
        assert!(reason == "Timeout" && message.contains("DeadlineExceeded"), "{reason}: {message}");
    });
}

/// Mounts what does not exist.
fn mount() -> Value {
    let mut spec = container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    merge(&mut spec, pod_spec(json!({"volumes": [{"name": "v", "configMap": {"name": "nope"}}]})));
    spec
}

/// Takes more memory than it may have.
fn memory() -> Value {
    container(json!({
        "command": ["sh", "-ec", "tail /dev/zero"], "resources": {"limits": {"memory": "32Mi"}},
    }))
}

/// Writes more to a volume than it may hold.
fn evicted() -> Value {
    let mut spec = container(json!({
        "command": ["sh", "-ec", "head -c 20000000 /dev/zero > /v/x; sleep 200"],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    }));
    merge(&mut spec, pod_spec(json!({"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]})));
    spec
}

#[test]
fn a_quota_and_a_template_that_kubernetes_refuses_are_told_in_its_words() {
    on_node(async {
        let stage = Stage::new().await;
        let broken = container(json!({"volumeMounts": [{"name": "nope", "mountPath": "/x"}]}));
        stage.script("broken", "", broken).await;
        let (reason, message) = stage.failure("broken").await;
        assert_eq!(reason, "InvalidSpec");
        assert!(message.contains("spec.fetch.job.template.spec.containers[0].volumeMounts[0]"), "{message}");
        stage.ns.await_cache("broken", "it is stalled", |cache| cache.stalled() == Some("InvalidSpec")).await;

        let quota = json!({
            "apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}},
        });
        stage.ns.create::<ResourceQuota>(quota).await;
        let counted = |quota: Option<&ResourceQuota>| {
            quota.is_some_and(|it| it.status.as_ref().is_some_and(|s| s.used.is_some()))
        };
        stage.ns.await_object("none", "the quota counts", counted).await;
        stage.script("quota", "exit 0", json!({})).await;
        let (reason, message) = stage.failure("quota").await;
        assert_eq!(reason, "JobFailed");
        assert!(message.contains("exceeded quota: none"), "{message}");
    });
}

#[test]
fn a_secret_is_read_only_when_its_owner_opened_it_and_then_at_once() {
    on_node(async {
        let stage = Stage::new().await;
        let secret = |opened| crate::support::manifests::source_secret("s", "hunter2", opened);
        stage.ns.create::<Secret>(secret(false)).await;
        let spec = pod_spec(json!({
            "containers": [{
                "name": "fetch", "image": BUSYBOX, "volumeMounts": [{"name": "s", "mountPath": "/s"}],
                "command": ["sh", "-ec", r#"echo "{\"token\": \"$(cat /s/clientSecret)\", \"expires_in\": 60}" > $TOKENCACHE_RESULT"#],
            }],
            "volumes": [{"name": "s", "secret": {"secretName": "s"}}],
        }));
        stage.script("a", "", spec).await;
        stage.ns.await_cache("a", "it is stalled", |cache| cache.stalled() == Some("SourceNotAllowed")).await;
        assert!(stage.pods("a").await.is_empty());
        let label = json!({"metadata": {"labels": {"tokencache.dev/source": "true"}}});
        stage.ns.patch::<Secret>("s", label).await;
        stage.ns.await_ready("a", true, "Fetched").await;
    });
}

#[test]
fn an_optional_secret_that_is_created_during_the_run_is_not_read() {
    on_node(async {
        let stage = Stage::new().await;
        // The kubelet mounts an optional Secret into a running pod some seconds after it was created.
        let script = r#"
            for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
                test ! -e /s/clientSecret || { echo "it was read" >&2; exit 1; }
                sleep 1
            done
            echo '{"token": "x", "expires_in": 60}' > $TOKENCACHE_RESULT
        "#;
        let mut spec = container(json!({
            "command": ["sh", "-ec", script], "volumeMounts": [{"name": "s", "mountPath": "/s"}],
        }));
        merge(
            &mut spec,
            pod_spec(json!({"volumes": [{"name": "s", "secret": {"secretName": "s", "optional": true}}]})),
        );
        stage.script("a", "", spec).await;
        stage.pod("a", "the container runs", is_fetching).await;
        stage.ns.create::<Secret>(crate::support::manifests::source_secret("s", "hunter2", false)).await;
        let cache = stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.seen().failures, 0);
    });
}
