//! `tokencache-controller`: what the controller's own account may write, whoever uses its token.

use k8s_openapi::api::{
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{Secret, ServiceAccount},
    rbac::v1::PolicyRule,
};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::{Actor, Allow, Call, Deny, Verdict, create, delete, owner, patch, pod_spec, rule, stage, token_cache};
use crate::support::{Account, Cluster, Namespace, chart_rules, rights::SYSTEM, scenario};

const SECRET: Verdict = Deny("the Secret does not belong to a TokenCache");
const METADATA: Verdict = Deny("label or annotation not allowed: ");
const JOB: Verdict = Deny("the Job does not belong to a TokenCache");
const POD: Verdict = Deny("pod template has privileges on its node");
const LEASE: Verdict = Deny("the Lease does not belong to a TokenCache");
const CACHE: Verdict = Deny("only finalizers of a TokenCache may change");

/// The controller's account, with the chart's permissions and `more`, as an administrator may have added.
pub(super) async fn controller(ns: &Namespace, more: Value) -> Actor {
    let more: Vec<PolicyRule> = serde_json::from_value(more).expect("rules");
    let account = Account::controller(ns.client(), &ns.name, [more, chart_rules()].concat()).await;
    Actor::new(&account, &ns.name).await
}

fn secret(name: &str, owners: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": {"token": "t"},
        "metadata": {"name": name, "ownerReferences": owners, "labels": {"tokencache.dev/managed": "true"}},
    })
}

/// A Secret with one more label or annotation.
fn labelled(kind: &str, key: &str, owners: &Value) -> Value {
    let mut secret = secret("b", owners);
    secret["metadata"][kind][key] = "x".into();
    secret
}

#[test]
fn it_writes_only_secrets_of_token_caches() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let (owners, other) = (owner(&token_cache(&ns, "a").await), owner(&token_cache(&ns, "b").await));
        ns.create::<Secret>(secret("ours", &owners)).await;
        ns.create::<Secret>(secret("theirs", &json!([]))).await;
        let mut opened = secret("opened", &json!([]));
        opened["metadata"]["labels"]["tokencache.dev/source"] = "true".into();
        ns.create::<Secret>(opened).await;
        let change = |change: Value, owners: &Value| {
            let mut change = change;
            change["metadata"]["ownerReferences"] = owners.clone();
            change
        };
        let (mut observer, mut deployment) = (owners.clone(), owners.clone());
        observer[0]["controller"] = false.into();
        deployment[0]["kind"] = "Deployment".into();
        let value = json!({"stringData": {"token": "new"}});
        let labels = json!({"metadata": {"labels": {"x": "y"}}});
        let finalizers = json!({"metadata": {"finalizers": ["example.com/x"]}});
        controller(&ns, json!([rule("", "secrets", &["patch"])]))
            .await
            .try_all(vec![
                ("a first value", create("secrets", secret("c", &owners)), Allow),
                ("a Secret of nobody", create("secrets", secret("c", &json!([]))), SECRET),
                ("a Secret that is only observed", create("secrets", secret("c", &observer)), SECRET),
                ("a Secret of another kind", create("secrets", secret("c", &deployment)), SECRET),
                ("a later value", patch("secrets/ours", value.clone()), Allow),
                ("a value of another's Secret", patch("secrets/theirs", value.clone()), SECRET),
                ("a value of an opened Secret", patch("secrets/opened", value.clone()), SECRET),
                ("another's Secret made ours", patch("secrets/theirs", change(json!({}), &owners)), SECRET),
                ("our Secret made another TokenCache's", patch("secrets/ours", change(json!({}), &other)), SECRET),
                ("our Secret set free", patch("secrets/ours", change(json!({}), &json!(null))), Allow),
                ("our Secret set free with a value", patch("secrets/ours", change(value, &json!(null))), SECRET),
                ("our Secret set free with a label", patch("secrets/ours", change(labels, &json!(null))), SECRET),
                (
                    "our Secret set free with a finalizer",
                    patch("secrets/ours", change(finalizers, &json!(null))),
                    SECRET,
                ),
                ("our Secret removed", delete("secrets/ours"), Allow),
                ("another's Secret removed", delete("secrets/theirs"), SECRET),
            ])
            .await;
    });
}

#[test]
fn its_secrets_give_no_rights_and_are_no_other_programs() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let owners = owner(&token_cache(&ns, "a").await);
        let mut theirs = secret("ours", &owners);
        theirs["metadata"]["labels"]["argocd.argoproj.io/instance"] = "app".into();
        ns.create::<Secret>(theirs).await;
        ns.create::<ServiceAccount>(
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}),
        )
        .await;
        let typed = |kind: &str, data: Value| {
            let mut secret = secret("b", &owners);
            secret["type"] = kind.into();
            secret["stringData"] = data;
            create("secrets", secret)
        };
        let mut of_account = secret("b", &owners);
        of_account["type"] = "kubernetes.io/service-account-token".into();
        of_account["metadata"]["annotations"]["kubernetes.io/service-account.name"] = "robot".into();
        let key = include_str!("../../keys/p256.pem");
        let certificate = include_str!("../../keys/certificate.pem");
        let mut rows: Vec<(&str, Call, Verdict)> = vec![
            ("Opaque", typed("Opaque", json!({"a": "b"})), Allow),
            ("a login", typed("kubernetes.io/basic-auth", json!({"username": "a"})), Allow),
            (
                "a pull secret",
                typed("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "{\"auths\": {}}"})),
                Allow,
            ),
            ("an old pull secret", typed("kubernetes.io/dockercfg", json!({".dockercfg": "{}"})), Allow),
            ("a key", typed("kubernetes.io/ssh-auth", json!({"ssh-privatekey": "k"})), Allow),
            ("a certificate", typed("kubernetes.io/tls", json!({"tls.crt": certificate, "tls.key": key})), Allow),
            (
                "an account's token",
                create("secrets", of_account),
                Deny("Secret type not allowed: kubernetes.io/service-account-token"),
            ),
            (
                "a release",
                typed("helm.sh/release.v1", json!({"a": "b"})),
                Deny("Secret type not allowed: helm.sh/release.v1"),
            ),
            ("another type", typed("example.com/x", json!({"a": "b"})), Deny("Secret type not allowed: example.com/x")),
            (
                "a release by its name",
                create("secrets", secret("sh.helm.release.v1.app.v2", &owners)),
                Deny("Secret names sh.helm.release.* are not allowed"),
            ),
            ("a label", create("secrets", labelled("labels", "example.com/team", &owners)), Allow),
            ("another client's label stays", patch("secrets/ours", json!({"stringData": {"token": "new"}})), Allow),
            (
                "and is not changed",
                patch("secrets/ours", json!({"metadata": {"labels": {"argocd.argoproj.io/instance": "x"}}})),
                METADATA,
            ),
        ];
        for (kind, key) in [
            ("labels", "argocd.argoproj.io/secret-type"),
            ("labels", "helm.sh/chart"),
            ("annotations", "meta.helm.sh/release-name"),
            ("annotations", "reflector.v1.k8s.emberstack.com/reflection-auto-enabled"),
            ("annotations", "replicator.v1.mittwald.de/replicate-to"),
            ("annotations", "sealedsecrets.bitnami.com/managed"),
        ] {
            rows.push((key, create("secrets", labelled(kind, key, &owners)), METADATA));
        }
        controller(&ns, json!([rule("", "secrets", &["patch"])])).await.try_all(rows).await;
    });
}

fn job(owners: &Value, change: Value) -> Call {
    let mut spec = pod_spec();
    crate::support::manifests::merge(&mut spec, change);
    create(
        "jobs",
        json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "b", "ownerReferences": owners},
            "spec": {"template": {"spec": spec}},
        }),
    )
}

#[test]
fn its_jobs_belong_to_token_caches_and_have_no_privileges_on_a_node() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let owners = owner(&token_cache(&ns, "a").await);
        for (name, owners) in [("ours", owners.clone()), ("theirs", json!([]))] {
            ns.create::<Job>(json!({
                "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "ownerReferences": owners},
                "spec": {"template": {"spec": pod_spec()}},
            }))
            .await;
        }
        let privileged = json!([{"name": "x", "image": "x", "securityContext": {"privileged": true}}]);
        let host = json!([{"name": "x", "hostPath": {"path": "/"}}]);
        let nfs = json!([{"name": "x", "nfs": {"server": "s", "path": "/"}}]);
        let note = json!({"metadata": {"annotations": {"note": "x"}}});
        controller(&ns, json!([rule("batch", "jobs", &["patch"])]))
            .await
            .try_all(vec![
                ("a Job", job(&owners, json!({})), Allow),
                ("a Job with a volume", job(&owners, json!({"volumes": [{"name": "x", "emptyDir": {}}]})), Allow),
                ("a Job of nobody", job(&json!([]), json!({})), JOB),
                ("a Job that changes", patch("jobs/ours", note), JOB),
                ("our Job removed", delete("jobs/ours"), Allow),
                ("another's Job removed", delete("jobs/theirs"), JOB),
                ("the network of the node", job(&owners, json!({"hostNetwork": true})), POD),
                ("its processes", job(&owners, json!({"hostPID": true})), POD),
                ("their memory", job(&owners, json!({"hostIPC": true})), POD),
                ("its files", job(&owners, json!({"volumes": host})), POD),
                ("a node of its choice", job(&owners, json!({"nodeName": "a"})), POD),
                ("a server's files", job(&owners, json!({"volumes": nfs})), POD),
                ("a privileged container", job(&owners, json!({"containers": privileged})), POD),
                ("a privileged init container", job(&owners, json!({"initContainers": privileged})), POD),
            ])
            .await;
    });
}

#[test]
fn its_tokens_live_for_a_day_at_most_and_are_bound_to_a_secret() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        ns.create::<ServiceAccount>(
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}),
        )
        .await;
        let uid = ns.create::<Secret>(secret("ours", &json!([]))).await.metadata.uid;
        let token = |seconds: Option<u32>, bound: bool| {
            let secret = bound.then(|| json!({"apiVersion": "v1", "kind": "Secret", "name": "ours", "uid": uid}));
            let spec = json!({"audiences": ["a"], "expirationSeconds": seconds, "boundObjectRef": secret});
            let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
            create("serviceaccounts/robot/token", body)
        };
        let (long, unbound) =
            (Deny("token lives longer than 24h"), Deny("token lives longer than 10m and is bound to no Secret"));
        controller(&ns, json!([]))
            .await
            .try_all(vec![
                ("for as long as the server likes", token(None, true), Allow),
                ("for a day", token(Some(86400), true), Allow),
                ("for longer", token(Some(86401), true), long),
                ("before there is a Secret", token(Some(600), false), Allow),
                ("bound to nothing", token(Some(601), false), unbound),
                ("bound to nothing, for as long as the server likes", token(None, false), unbound),
            ])
            .await;
    });
}

#[test]
fn it_writes_only_leases_and_finalizers_of_token_caches() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let cache = token_cache(&ns, "a").await;
        let owners = owner(&cache);
        let lease = |name: &str, owners: &Value| {
            let metadata = json!({"name": name, "ownerReferences": owners});
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}})
        };
        ns.create::<Lease>(lease("tokencache-a", &owners)).await;
        ns.create::<Lease>(lease("other-leader", &json!([]))).await;
        let held = json!({"spec": {"holderIdentity": "x"}});
        let metadata = |change: Value| patch("tokencaches/a", json!({ "metadata": change }));
        let mut another = json!(cache);
        another["metadata"] = json!({"name": "b"});
        let more = [
            rule("coordination.k8s.io", "leases", &["patch", "delete"]),
            rule("tokencache.dev", "tokencaches", &["create", "delete"]),
        ];
        controller(&ns, json!(more))
            .await
            .try_all(vec![
                ("a lock", create("leases", lease("tokencache-b", &owners)), Allow),
                ("a lock that is held", patch("leases/tokencache-a", held.clone()), Allow),
                ("a Lease of nobody", create("leases", lease("tokencache-b", &json!([]))), LEASE),
                ("a Lease of another name", create("leases", lease("b", &owners)), LEASE),
                ("leader election of others", patch("leases/other-leader", held), LEASE),
                ("a lock removed", delete("leases/tokencache-a"), LEASE),
                ("a finalizer", metadata(json!({"finalizers": ["tokencache.dev/retain"]})), Allow),
                ("a status", patch("tokencaches/a/status", json!({"status": {"runs": 3}})), Allow),
                ("a spec", patch("tokencaches/a", json!({"spec": {"suspend": false}})), CACHE),
                ("a label", metadata(json!({"labels": {"a": "b"}})), CACHE),
                ("an annotation", metadata(json!({"annotations": {"a": "b"}})), CACHE),
                ("an owner", metadata(json!({"ownerReferences": owners})), CACHE),
                ("a TokenCache", create("tokencaches", another), CACHE),
                ("a TokenCache removed", delete("tokencaches/a"), CACHE),
            ])
            .await;
    });
}

#[test]
fn it_writes_nothing_but_leases_to_namespaces_of_the_cluster_and_to_its_own() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let owners = owner(&token_cache(&ns, "a").await);
        // The account's name with all permissions, so that a Role is put into none of these namespaces.
        let file = Kubeconfig::read_from(&Cluster::get().await.kubeconfig).expect("a kubeconfig");
        let mut config =
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
        config.auth_info.impersonate = Some(format!("system:serviceaccount:{SYSTEM}:tokencache"));
        config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
        let denied = Deny("writes to this namespace are not allowed");
        for namespace in ["kube-system", "kube-public", "kube-node-lease", SYSTEM] {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {},
                "metadata": {"name": "tokencache-policies", "ownerReferences": owners},
            });
            let token =
                json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"]}});
            Actor::with(config.clone(), namespace)
                .try_all(vec![
                    ("a Secret", create("secrets", secret("policies", &owners)), denied),
                    ("a Job", job(&owners, json!({})), denied),
                    ("a token", create("serviceaccounts/default/token", token), denied),
                    // With it, the status of a TokenCache says why its Secret is not written.
                    ("a Lease", create("leases", lease), Allow),
                ])
                .await;
        }
        Actor::with(config, &ns.name)
            .try_all(vec![("elsewhere", create("secrets", secret("policies", &owners)), Allow)])
            .await;
    });
}
