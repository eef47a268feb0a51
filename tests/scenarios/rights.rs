//! What each right of the chart's rules is for: each is taken away, and something breaks in the way that docs/rights.md
//! says.

use std::collections::BTreeSet;

use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, ServiceAccount},
    rbac::v1::PolicyRule,
};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_AUDIENCES, LABEL_SOURCE},
};

use crate::support::{
    CacheView as _, Controller, DEADLINE, Launch, Scene,
    manifests::oauth2,
    poll,
    rights::chart_rules,
    scenario,
    server::{Behaviour, Expiry, Options},
};

/// What is done to see that a right is missing.
#[derive(Clone, Copy, Debug)]
enum Story {
    /// A TokenCache is created.
    Create,
    /// It is ready, and a new value is asked for.
    Refresh,
    /// It has run before, for another controller.
    Takeover,
    /// It is ready, and deleted with `deletionPolicy: Retain`.
    Retain,
    /// Its value expires with `expiredPolicy: Delete`.
    Expire,
    /// Its authority is in a ConfigMap.
    Authority,
    /// It gets a token of a service account.
    AccountToken,
    /// A Deployment is to be restarted.
    Restart,
    /// It runs a job, which finds no node and so goes on until its timeout.
    Job,
}

/// Where it is seen, and by which words.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// `/readyz` says so, and the controller does not become ready.
    Unready(&'static str),
    /// The controller's log says so.
    Log(&'static str),
    /// The message of the TokenCache's last failure says so.
    Failure(&'static str),
}

use self::{Sign::*, Story::*};

/// Resource (`group/resource`, the core group empty), verb, what is done, what is seen.
const ROWS: &[(&str, &str, Story, Sign)] = &[
    ("tokencache.dev/tokencaches", "list", Create, Unready("cannot list TokenCaches")),
    ("tokencache.dev/tokencaches", "watch", Create, Log("watch on TokenCaches failed")),
    ("tokencache.dev/tokencaches", "get", Takeover, Log("cannot get resource \\\"tokencaches\\\"")),
    ("tokencache.dev/tokencaches", "patch", Retain, Log("cannot patch resource \\\"tokencaches\\\"")),
    ("tokencache.dev/tokencaches/status", "patch", Create, Log("cannot patch resource \\\"tokencaches/status\\\"")),
    ("/secrets", "list", Create, Unready("Secrets cannot be watched")),
    ("/secrets", "watch", Create, Log("watch on Secrets failed")),
    ("/secrets", "get", Create, Log("cannot get resource \\\"secrets\\\"")),
    ("/secrets", "create", Create, Failure("cannot create resource \"secrets\"")),
    ("/secrets", "update", Refresh, Failure("cannot update resource \"secrets\"")),
    ("/secrets", "delete", Expire, Log("cannot delete resource \\\"secrets\\\"")),
    ("/configmaps", "list", Create, Log("watch on ConfigMaps failed")),
    ("/configmaps", "watch", Create, Log("watch on ConfigMaps failed")),
    ("/configmaps", "get", Authority, Failure("lacks get on configmaps")),
    ("coordination.k8s.io/leases", "create", Create, Log("cannot create resource \\\"leases\\\"")),
    ("coordination.k8s.io/leases", "get", Takeover, Log("cannot get resource \\\"leases\\\"")),
    ("coordination.k8s.io/leases", "update", Refresh, Log("cannot update resource \\\"leases\\\"")),
    ("events.k8s.io/events", "create", Create, Log("an event was not published")),
    ("/serviceaccounts", "list", Create, Log("watch on source ServiceAccounts failed")),
    ("/serviceaccounts", "watch", Create, Log("watch on source ServiceAccounts failed")),
    ("/serviceaccounts", "get", AccountToken, Failure("lacks get on serviceaccounts")),
    ("/serviceaccounts/token", "create", AccountToken, Failure("lacks create on serviceaccounts/token")),
    ("apps/deployments", "get", Restart, Log("lacks get on deployments")),
    ("apps/deployments", "patch", Restart, Log("lacks patch on deployments")),
    ("batch/jobs", "list", Job, Failure("lacks list on jobs.batch")),
    ("batch/jobs", "watch", Job, Failure("lacks watch on jobs.batch")),
    ("batch/jobs", "create", Job, Failure("cannot create resource \"jobs\"")),
    ("batch/jobs", "delete", Job, Log("cannot delete resource \\\"jobs\\\"")),
    ("/pods", "list", Job, Failure("lacks list on pods")),
    ("/pods", "watch", Job, Failure("lacks watch on pods")),
    ("/events", "list", Job, Failure("lacks list on events")),
    ("/events", "watch", Job, Failure("lacks watch on events")),
];

/// The kinds of workloads have one rule and one code.
const LIKE_DEPLOYMENTS: [&str; 2] = ["apps/statefulsets", "apps/daemonsets"];

/// Every right that the rules give.
fn rights(rules: &[PolicyRule]) -> BTreeSet<(String, String)> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    rights.insert((format!("{group}/{resource}"), verb.clone()));
                }
            }
        }
    }
    rights
}

/// The chart's rules, less one right.
fn without(resource: &str, verb: &str) -> Vec<PolicyRule> {
    let left = rights(&chart_rules()).into_iter().filter(|(of, can)| (of.as_str(), can.as_str()) != (resource, verb));
    left.map(|(resource, verb)| {
        let (group, resource) = resource.split_once('/').expect("a group");
        PolicyRule {
            api_groups: Some(vec![group.to_owned()]),
            resources: Some(vec![resource.to_owned()]),
            verbs: vec![verb],
            ..PolicyRule::default()
        }
    })
    .collect()
}

#[test]
fn the_rows_are_the_rights_of_the_chart_and_the_documentation_has_each() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rights.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let mut known = BTreeSet::new();
    for (resource, verb, _, sign) in ROWS {
        known.insert(((*resource).to_owned(), (*verb).to_owned()));
        let right = format!("| `{}` | `{verb}` |", resource.trim_start_matches('/'));
        let row = page.lines().find(|line| line.starts_with(&right)).unwrap_or_else(|| panic!("{right} is missing"));
        let (Unready(words) | Log(words) | Failure(words)) = sign;
        assert!(row.contains(&words.replace('\\', "")), "{row} does not say: {words}");
    }
    for resource in LIKE_DEPLOYMENTS {
        known.extend(["get", "patch"].map(|verb| (resource.to_owned(), verb.to_owned())));
    }
    assert_eq!(known, rights(&chart_rules()));
}

#[test]
fn without_any_one_right_it_is_seen_which() {
    scenario(async {
        // Most of each is waiting.
        let seen = stream::iter(ROWS).map(|row| Box::pin(complaint(row))).buffer_unordered(6);
        let missing: Vec<String> = seen.filter_map(std::future::ready).collect().await;
        assert!(missing.is_empty(), "{}", missing.join("\n"));
    });
}

/// What was seen instead, if not what the row says.
async fn complaint((resource, verb, story, sign): &(&str, &str, Story, Sign)) -> Option<String> {
    let (ns, server) = Scene::stage(Options::default()).await;
    ns.grant(without(resource, verb)).await;
    // The pods of jobs name a node, so that no scheduler has a word to say.
    let arguments = ["--lease-duration", "2s", "--job-pod-security", "privileged"];
    let controller = Controller::spawn(&ns, Launch { arguments: &arguments, ..Launch::default() }).await;
    let scene = Scene { controller, server, ns };
    let seen = async {
        tokio::select! {
            () = is_seen(&scene, *sign) => {}
            () = play(&scene, *story) => {}
        }
    };
    if tokio::time::timeout(DEADLINE, seen).await.is_ok() {
        return None;
    }
    let status = scene.ns.get::<TokenCache>("a").await.status;
    let log = scene.controller.log();
    let log = log.lines().filter(|line| !line.contains(r#""level":"TRACE""#)).collect::<Vec<_>>().join("\n");
    let unready = scene.controller.ask("/readyz").await;
    Some(format!("without {verb} on {resource}: {sign:?} was not seen; {unready:?}\n{status:?}\n{log}"))
}

async fn is_seen(scene: &Scene, sign: Sign) {
    let look = async || match sign {
        Unready(words) => {
            let answer = scene.controller.ask("/readyz").await;
            answer.is_some_and(|(status, text)| status == 503 && text.contains(words))
        }
        Log(words) => scene.controller.log().contains(words),
        Failure(words) => {
            let found = scene.ns.api::<TokenCache>().get_opt("a").await.expect("an answer");
            let failure = found.and_then(|cache| cache.seen().last_failure);
            failure.is_some_and(|failure| failure.message.contains(words))
        }
    };
    poll(|| async { look().await.then_some(()) }).await;
}

/// Does what the right is needed for, and never ends.
async fn play(scene: &Scene, story: Story) {
    let ns = &scene.ns;
    let create = async |spec: Value| {
        scene.cache("a", spec).await;
    };
    match story {
        Create => create(json!({})).await,
        Refresh => {
            create(json!({})).await;
            ns.await_cache("a", "its first value", |cache| cache.seen().runs == 1).await;
            ns.request("a", "again").await;
        }
        Takeover => {
            create(json!({"suspend": true})).await;
            let ran = Patch::Merge(json!({"status": {"runs": 1}}));
            ns.api::<TokenCache>().patch_status("a", &PatchParams::default(), &ran).await.expect("its status");
            ns.patch_spec("a", json!({"suspend": false})).await;
        }
        Retain => {
            create(json!({"target": {"deletionPolicy": "Retain"}})).await;
            ns.await_cache("a", "its first value", |cache| cache.seen().runs == 1).await;
            ns.delete::<TokenCache>("a").await;
        }
        Expire => {
            scene.server.set("a", Behaviour::Issue(Expiry::In(2)));
            create(json!({"refresh": {"policy": "Lazy"}, "target": {"expiredPolicy": "Delete"}})).await;
            ns.request("a", "once").await;
        }
        Authority => {
            ns.create::<ConfigMap>(json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": ""},
            }))
            .await;
            create(oauth2(json!({"tls": {"caRef": {"kind": "ConfigMap", "name": "ca", "key": "ca.crt"}}}))).await;
        }
        AccountToken => {
            ns.create::<ServiceAccount>(json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {
                    "name": "robot", "labels": {LABEL_SOURCE: "true"}, "annotations": {ANNOTATION_AUDIENCES: "a"},
                },
            }))
            .await;
            let source = json!({"serviceAccountName": "robot", "audiences": ["a"]});
            create(json!({"fetch": {"oauth2": null, "serviceAccountToken": source}})).await;
        }
        Restart => {
            let labels = json!({"app": "web"});
            ns.create::<Deployment>(json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "containers": [{"name": "c", "image": "i"}],
                        "volumes": [{"name": "v", "secret": {"secretName": "a"}}],
                    },
                }},
            }))
            .await;
            create(json!({"rolloutRestartTargets": [{"kind": "Deployment", "name": "web"}]})).await;
            // The first value is no change.
            ns.await_cache("a", "its first value", |cache| cache.seen().runs == 1).await;
            ns.request("a", "again").await;
        }
        Job => {
            ns.lift_policies("the pod chooses its node").await;
            let template = json!({"spec": {
                // So that no scheduler has a word to say.
                "nodeName": "none",
                "containers": [{"name": "fetch", "image": "tokencache.test/none:1"}],
            }});
            create(json!({"fetch": {"timeout": "3s", "oauth2": null, "job": {"template": template}}})).await;
        }
    }
    std::future::pending::<()>().await;
}
