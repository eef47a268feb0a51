//! `tokencache-locks`, `tokencache-values` and `tokencache-runs`: what other clients may do to objects that the controller
//! relies on.

use k8s_openapi::api::{
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{Pod, Secret},
};
use kube::{ResourceExt as _, api::ListParams};
use serde_json::{Value, json};

use super::{
    Actor, Allow, Call, Deny, Verdict, create, delete, may_update_status, owner, patch, pod_spec, rule, stage,
    token_cache,
};
use crate::support::{Account, Namespace, chart_rules, poll, scenario, within};

const LOCK: Verdict = Deny("Leases named tokencache-* are the locks of TokenCaches");
const VALUE: Verdict = Deny("Only tokencache may write the Secret of a TokenCache.");
const RUN: Verdict = Deny("belong to tokencache.");

fn lease(name: &str, owners: &Value) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "ownerReferences": owners}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 15},
    })
}

#[test]
fn locks_are_written_by_controllers_only() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let owners = owner(&token_cache(&ns, "a").await);
        ns.create::<Lease>(lease("tokencache-a", &owners)).await;
        ns.create::<Lease>(lease("renamed", &owners)).await;
        ns.create::<Lease>(lease("operator-leader", &json!([]))).await;
        let held = |seconds: i32| json!({"spec": {"holderIdentity": "me", "leaseDurationSeconds": seconds}});
        let rows = |verdict: Verdict| -> Vec<(&str, Call, Verdict)> {
            vec![
                ("a lock that is held for an hour", patch("leases/tokencache-a", held(3600)), verdict),
                (
                    "a lock without its owner",
                    patch("leases/tokencache-a", json!({"metadata": {"ownerReferences": null}})),
                    verdict,
                ),
                ("a lock by its owner only", patch("leases/renamed", held(15)), verdict),
                ("a lock of a TokenCache to come", create("leases", lease("tokencache-b", &json!([]))), verdict),
                ("a Lease that a TokenCache owns", create("leases", lease("mine", &owners)), verdict),
                (
                    "another lock made a TokenCache's",
                    patch("leases/operator-leader", json!({"metadata": {"ownerReferences": owners}})),
                    verdict,
                ),
                ("leader election begins", create("leases", lease("other-leader", &json!([]))), Allow),
                ("leader election goes on", patch("leases/operator-leader", held(15)), Allow),
                ("a lock that is deleted", delete("leases/tokencache-a"), Allow),
            ]
        };
        let leases = rule("coordination.k8s.io", "leases", &["create", "update", "patch", "delete"]);
        Actor::named(&ns, "leaser", json!([leases])).await.try_all(rows(LOCK)).await;
        Actor::named(&ns, "direct", json!([leases, may_update_status()])).await.try_all(rows(Allow)).await;
    });
}

fn secret(name: &str, owners: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": {"token": "t"},
        "metadata": {
            "name": name, "ownerReferences": owners, "labels": {"tokencache.dev/managed": "true", "team": "red"},
            "annotations": {"tokencache.dev/expires_at": "never", "note": "x"},
        },
    })
}

#[test]
fn values_are_written_by_controllers_only() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let owners = owner(&token_cache(&ns, "a").await);
        ns.create::<Secret>(secret("a", &owners)).await;
        ns.create::<Secret>(secret("theirs", &json!([]))).await;
        let mut observer = owners.clone();
        observer[0]["controller"] = false.into();
        let metadata = |change: Value| patch("secrets/a", json!({ "metadata": change }));
        let rows = |verdict: Verdict| -> Vec<(&str, Call, Verdict)> {
            vec![
                ("another value", patch("secrets/a", json!({"stringData": {"token": "forged"}})), verdict),
                ("another key", patch("secrets/a", json!({"stringData": {"more": "x"}})), verdict),
                ("no value", patch("secrets/a", json!({"data": null})), verdict),
                ("a value that cannot change", patch("secrets/a", json!({"immutable": true})), verdict),
                ("another expiry", metadata(json!({"annotations": {"tokencache.dev/expires_at": "x"}})), verdict),
                ("no expiry", metadata(json!({"annotations": {"tokencache.dev/expires_at": null}})), verdict),
                (
                    "a new annotation of ours",
                    metadata(json!({"annotations": {"tokencache.dev/data_hash": ""}})),
                    verdict,
                ),
                ("another label of ours", metadata(json!({"labels": {"tokencache.dev/managed": "false"}})), verdict),
                ("no label of ours", metadata(json!({"labels": {"tokencache.dev/managed": null}})), verdict),
                ("a new label of ours", metadata(json!({"labels": {"tokencache.dev/state": ""}})), verdict),
                ("no owner", metadata(json!({"ownerReferences": null})), verdict),
                ("a Secret that is born as a value", create("secrets", secret("b", &owners)), verdict),
                (
                    "a Secret that becomes a value",
                    patch("secrets/theirs", json!({"metadata": {"ownerReferences": owners}})),
                    verdict,
                ),
                ("a label", metadata(json!({"labels": {"team": "blue", "new": ""}})), Allow),
                ("an annotation", metadata(json!({"annotations": {"note": null, "new": ""}})), Allow),
                ("the label of sources", metadata(json!({"labels": {"tokencache.dev/source": "true"}})), Allow),
                ("a finalizer", metadata(json!({"finalizers": ["example.com/x"]})), Allow),
                (
                    "another value of another Secret",
                    patch("secrets/theirs", json!({"stringData": {"token": "x"}})),
                    Allow,
                ),
                ("another Secret", create("secrets", secret("c", &json!([]))), Allow),
                ("a Secret that a TokenCache does not control", create("secrets", secret("d", &observer)), Allow),
                ("a value that is cleared", delete("secrets/a"), Allow),
            ]
        };
        let secrets = rule("", "secrets", &["create", "update", "patch", "delete"]);
        Actor::named(&ns, "writer", json!([secrets])).await.try_all(rows(VALUE)).await;
        Actor::named(&ns, "direct", json!([secrets, may_update_status()])).await.try_all(rows(Allow)).await;
    });
}

fn pod(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": pod_spec()})
}

fn job(name: &str, labels: &Value, of_pods: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "labels": labels},
        "spec": {"template": {"metadata": {"labels": of_pods}, "spec": pod_spec()}},
    })
}

/// A run's Job, by the controller's own account, and the pod that Kubernetes makes for it.
async fn run(ns: &Namespace, owners: &Value, labels: &Value) -> String {
    let account = Account::controller(ns.client(), &ns.name, chart_rules()).await;
    let mut manifest = job("run", labels, labels);
    manifest["metadata"]["ownerReferences"] = owners.clone();
    let created = Actor::new(&account, &ns.name).await.send(&create("jobs", manifest), false).await;
    created.expect("the controller creates its Job");
    let pods = ListParams::default().labels("tokencache.dev/run=r");
    let found = poll(|| async { ns.api::<Pod>().list(&pods).await.expect("a list").items.pop() });
    within("the Job controller creates the pod", found).await.name_any()
}

#[test]
fn jobs_and_pods_of_runs_are_made_by_the_controller_only() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let owners = owner(&token_cache(&ns, "a").await);
        let (run_label, cache_label) = (json!({"tokencache.dev/run": "r"}), json!({"tokencache.dev/cache": "a"}));
        let ours = format!("pods/{}", run(&ns, &owners, &run_label).await);
        ns.create::<Pod>(pod("theirs", &json!({}))).await;
        let mut suspended = job("suspended", &json!({}), &json!({}));
        suspended["spec"]["suspend"] = true.into();
        ns.create::<Job>(suspended).await;
        let labels = |labels: &Value| json!({"metadata": {"labels": labels}});
        let note = json!({"metadata": {"annotations": {"note": "x"}}});
        let jobs = |verdict: Verdict| -> Vec<(&str, Call, Verdict)> {
            vec![
                ("a Job with our label", create("jobs", job("b", &run_label, &json!({}))), verdict),
                ("a Job whose pods have our label", create("jobs", job("b", &json!({}), &run_label)), verdict),
                ("a Job whose pods have our other label", create("jobs", job("b", &json!({}), &cache_label)), verdict),
                ("a Job that gets our label", patch("jobs/suspended", labels(&cache_label)), verdict),
                (
                    "a suspended Job whose template gets it",
                    patch("jobs/suspended", json!({"spec": {"template": labels(&run_label)}})),
                    verdict,
                ),
                ("another Job", create("jobs", job("b", &json!({"team": "red"}), &json!({"team": "red"}))), Allow),
                ("another change of another Job", patch("jobs/suspended", note.clone()), Allow),
                ("another change of our Job", patch("jobs/run", note.clone()), Allow),
            ]
        };
        let pods = || -> Vec<(&str, Call, Verdict)> {
            vec![
                ("a pod with our label", create("pods", pod("b", &run_label)), RUN),
                ("a pod with our other label", create("pods", pod("b", &cache_label)), RUN),
                ("a pod that gets our label", patch("pods/theirs", labels(&run_label)), RUN),
                ("our pod in another run", patch(&ours, labels(&json!({"tokencache.dev/run": "s"}))), RUN),
                ("our pod of another TokenCache", patch(&ours, labels(&cache_label)), RUN),
                ("another pod", create("pods", pod("b", &json!({"team": "red"}))), Allow),
                ("another change of our pod", patch(&ours, note.clone()), Allow),
            ]
        };
        let verbs = ["create", "update", "patch"];
        let rules = json!([rule("", "pods", &verbs), rule("batch", "jobs", &verbs)]);
        let maker = Actor::named(&ns, "maker", rules.clone()).await;
        maker.try_all(jobs(RUN)).await;
        maker.try_all(pods()).await;
        let direct = Actor::named(&ns, "direct", json!([rules[0], rules[1], may_update_status()])).await;
        direct.try_all(jobs(Allow)).await;
        // Kubernetes makes the pods of its Jobs.
        direct.try_all(pods()).await;
    });
}
