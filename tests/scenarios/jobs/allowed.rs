//! What a job may use: what its owners opened, and what the administrator allows. TokenCaches are created by an account
//! that may do nothing else.

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Pod, Secret, ServiceAccount},
    rbac::v1::PolicyRule,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::PostParams,
    config::{Config, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_AUDIENCES, LABEL_SOURCE},
};

use super::{RunningPod, Stage, job, result};
use crate::support::{Account, CacheView as _, Controller, Namespace, poll, scenario, within};

/// What an account with exactly these rights has.
pub(super) async fn acting_as(ns: &Namespace, name: &str, rules: Value) -> Client {
    let rules: Vec<PolicyRule> = serde_json::from_value(rules).expect("rules");
    let account = Account::named(ns.client(), &ns.name, name, rules).await;
    let file = Kubeconfig::read_from(account.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
    Client::try_from(config).expect("a client")
}

/// May create TokenCaches, and nothing else.
async fn author(stage: &Stage) -> Api<TokenCache> {
    stage.ns.lift_policies("the author of TokenCaches has no other permission").await;
    let rules = json!([{"apiGroups": ["tokencache.dev"], "resources": ["tokencaches"], "verbs": ["create", "update"]}]);
    stage.ns.lift_policies("the author has permissions on TokenCaches only").await;
    let client = acting_as(&stage.ns, "author", rules).await;
    let secrets = Api::<Secret>::namespaced(client.clone(), &stage.ns.name).list(&Default::default()).await;
    assert!(secrets.is_err(), "the author may not read Secrets");
    Api::namespaced(client, &stage.ns.name)
}

async fn write(author: &Api<TokenCache>, manifest: Value) {
    let cache: TokenCache = serde_json::from_value(manifest).expect("a TokenCache");
    author.create(&PostParams::default(), &cache).await.expect("created");
}

fn with_pod(change: Value) -> Value {
    json!({"fetch": {"job": {"template": {"spec": change}}}})
}

#[test]
fn an_optional_secret_that_does_not_exist_is_not_in_the_pod_and_one_without_the_label_refuses_it() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        let author = author(&stage).await;
        let spec = with_pod(json!({
            "imagePullSecrets": [{"name": "db-credentials"}],
            "volumes": [{"name": "v", "secret": {"secretName": "db-credentials", "optional": true}}],
            "containers": [{
                "name": "fetch", "image": "tokencache.test/none:1",
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                "env": [{"name": "P", "valueFrom": {"secretKeyRef": {"name": "db-credentials", "key": "k", "optional": true}}}],
                "envFrom": [{"secretRef": {"name": "db-credentials", "optional": true}}],
            }],
        }));
        write(&author, job("a", spec)).await;
        let pod = stage.pod("a").await;
        let text = serde_json::to_string(&pod.pod.spec).expect("a spec");
        assert!(!text.contains("db-credentials"), "{text}");
        assert!(text.contains("\"mountPath\":\"/v\""), "{text}");
        pod.succeed(&result("one", Value::Null)).await;
        stage.ns.await_ready("a", true, "Fetched").await;

        let secret = crate::support::manifests::source_secret("db-credentials", "hunter2", false);
        stage.ns.create::<Secret>(secret).await;
        stage.ns.request("a", "now").await;
        let refused = |cache: &TokenCache| cache.last_failure() == "SourceNotAllowed";
        let cache = stage.ns.await_cache("a", "the next run is refused", refused).await;
        assert!(cache.message().contains("kubectl label secret db-credentials"), "{}", cache.message());
        stage.ns.patch::<Secret>("db-credentials", json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}})).await;
        stage.ns.request("a", "again").await;
        let pod = stage.pod("a").await;
        let text = serde_json::to_string(&pod.pod.spec).expect("a spec");
        assert_eq!(text.matches("db-credentials").count(), 4, "{text}");
    });
}

#[test]
fn a_service_account_that_does_not_exist_is_waited_for() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        let author = author(&stage).await;
        let spec = json!({"serviceAccountName": "robot", "automountServiceAccountToken": false});
        write(&author, job("a", with_pod(spec))).await;
        let cache = stage.ns.await_ready("a", false, "SourceNotFound").await;
        assert!(cache.message().contains("robot"), "{}", cache.message());
        let account = json!({"name": "robot", "labels": {LABEL_SOURCE: "true"}});
        stage
            .ns
            .create::<ServiceAccount>(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}))
            .await;
        stage.pod("a").await;
    });
}

#[test]
fn an_image_pull_secret_needs_the_label() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        let author = author(&stage).await;
        let secret = crate::support::manifests::source_secret("registry", "hunter2", false);
        stage.ns.create::<Secret>(secret).await;
        write(&author, job("a", with_pod(json!({"imagePullSecrets": [{"name": "registry"}]})))).await;
        stage.ns.await_ready("a", false, "SourceNotAllowed").await;
        stage.ns.patch::<Secret>("registry", json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}})).await;
        stage.pod("a").await;
    });
}

#[test]
fn the_token_of_an_account_is_mounted_only_if_its_owner_allows_the_audience() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        let author = author(&stage).await;
        let account = json!({"name": "robot", "labels": {LABEL_SOURCE: "true"}});
        stage
            .ns
            .create::<ServiceAccount>(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}))
            .await;
        write(&author, job("a", with_pod(json!({"serviceAccountName": "robot"})))).await;
        let cache = stage.ns.await_ready("a", false, "SourceNotAllowed").await;
        let message = cache.message();
        assert!(message.contains("automountServiceAccountToken: false"), "{message}");
        let annotation = json!({"metadata": {"annotations": {ANNOTATION_AUDIENCES: "kube-apiserver"}}});
        stage.ns.patch::<ServiceAccount>("robot", annotation).await;
        stage.pod("a").await;
    });
}

#[test]
fn the_account_default_needs_the_label_if_a_volume_acts_for_it() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        let author = author(&stage).await;
        let volumes = json!([{"name": "v", "csi": {"driver": "secrets-store.csi.k8s.io", "readOnly": true}}]);
        write(&author, job("a", with_pod(json!({"volumes": volumes})))).await;
        let cache = stage.ns.await_ready("a", false, "SourceNotAllowed").await;
        assert!(cache.message().contains("kubectl label serviceaccount default"), "{}", cache.message());
        stage.ns.patch::<ServiceAccount>("default", json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}})).await;
        stage.pod("a").await;
    });
}

#[test]
fn jobs_that_name_no_account_run_under_the_one_that_the_administrator_chose() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = Controller::start(&stage.ns, &["--job-service-account", "nobody"]).await;
        let author = author(&stage).await;
        write(&author, job("a", json!({}))).await;
        stage.ns.await_ready("a", false, "SourceNotFound").await;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}});
        stage.ns.create::<ServiceAccount>(account).await;
        stage.ns.request("a", "now").await;
        let pod = stage.pod("a").await.pod;
        let spec = pod.spec.as_ref().expect("a spec");
        assert_eq!(spec.service_account_name.as_deref(), Some("nobody"));
        assert_eq!(spec.automount_service_account_token, Some(false));
    });
}

#[test]
fn a_template_below_the_pod_security_level_is_refused_until_the_controller_allows_it() {
    scenario(async {
        let mut stage = Stage::new().await;
        let author = author(&stage).await;
        let controller = stage.controller().await;
        let node = json!({
            "hostNetwork": true, "tolerations": [{"operator": "Exists"}],
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        });
        write(&author, job("node", with_pod(node))).await;
        write(&author, job("root", with_pod(json!({"securityContext": {"runAsNonRoot": false}})))).await;
        for (name, words) in [
            ("node", ["spec.fetch.job.template.spec.hostNetwork", "level restricted", "--job-pod-security=privileged"]),
            ("root", ["template.spec.securityContext.runAsNonRoot", "level restricted", "--job-pod-security=baseline"]),
        ] {
            let cache = stage.ns.await_ready(name, false, "InvalidSpec").await;
            for word in words {
                assert!(cache.message().contains(word), "{}", cache.message());
            }
            assert!(stage.jobs(name).await.is_empty());
        }
        controller.terminate().await;
        let controller = Controller::start(&stage.ns, &["--job-pod-security=baseline"]).await;
        stage.ns.request("node", "now").await;
        stage.ns.request("root", "now").await;
        stage.pod("root").await;
        assert!(stage.jobs("node").await.is_empty());
        controller.terminate().await;
        let _controller = Controller::start(&stage.ns, &["--job-pod-security=privileged"]).await;
        stage.ns.request("node", "again").await;
        stage.pod("node").await;
    });
}

/// A pod of whoever may create pods and watch Jobs: with the Job as its owner, so that the label is not what tells.
#[test]
fn a_pod_whose_collector_is_not_that_of_the_job_gives_no_result() {
    scenario(async {
        let stage = Stage::new().await;
        let _controller = stage.controller().await;
        let rules = json!([
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]},
        ]);
        let client = acting_as(&stage.ns, "podmaker", rules).await;
        // Keeps the Job controller from creating the pod, and nobody else.
        super::owners::no_pods_of_jobs(&stage.ns).await;
        write(
            &author(&stage).await,
            job("a", json!({"fetch": {"timeout": "40s"}, "retry": {"initialInterval": "5m"}})),
        )
        .await;
        let jobs = Api::<Job>::namespaced(client.clone(), &stage.ns.name);
        let made = within("a Job", poll(|| async { jobs.list(&Default::default()).await.ok()?.items.pop() })).await;
        let mut forged = super::owners::forged(&made);
        forged["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "batch/v1", "kind": "Job", "name": made.name_any(), "uid": made.uid(), "controller": true,
        }]);
        // Else the Job controller would give it up.
        forged["metadata"]["labels"] =
            json!(made.spec.as_ref().expect("a spec").template.metadata.as_ref().expect("labels").labels);
        forged["spec"]["containers"][0]["image"] = "attacker.test/any:1".into();
        let pod: Pod = serde_json::from_value(forged).expect("a pod");
        let pods = Api::<Pod>::namespaced(client, &stage.ns.name);
        let pod = pods.create(&PostParams::default(), &pod).await.expect("created");
        RunningPod { api: stage.ns.api(), pod }.succeed(&result("forged", json!("forged"))).await;
        let ran = |cache: &TokenCache| cache.seen().runs > 0;
        let cache = stage.ns.await_cache("a", "the run has ended", ran).await;
        assert!(cache.message().contains("are not those of the Job"), "{}", cache.message());
        assert!(stage.ns.api::<Secret>().get_opt("a").await.expect("an answer").is_none(), "no value was taken");
        assert_eq!(stage.state("a").await, None);
    });
}
