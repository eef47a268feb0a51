//! What refuses a job, and when it goes on.

use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use serde_json::json;
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_HOSTS, LABEL_SOURCE},
};

use super::{Stage, job};
use crate::support::{Action, CacheView as _, Controller, FlakyApi, Launch, Trouble, When, scenario};

#[test]
fn a_job_goes_on_when_its_service_account_is_labelled_as_a_source() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
        stage.ns.create::<ServiceAccount>(account).await;
        let spec = json!({"serviceAccountName": "robot", "automountServiceAccountToken": false});
        let spec = json!({"fetch": {"job": {"template": {"spec": spec}}}});
        stage.ns.create::<TokenCache>(job("a", spec)).await;
        stage.ns.await_cache("a", "it is stalled", |cache| cache.stalled() == Some("SourceNotAllowed")).await;
        stage.ns.patch::<ServiceAccount>("robot", json!({"metadata": {"labels": {LABEL_SOURCE: "true"}}})).await;
        stage.pod("a").await;
    });
}

#[test]
fn a_job_that_a_policy_refuses_is_tried_again_whatever_the_code() {
    scenario(async {
        let mut stage = Stage::new().await;
        let api = FlakyApi::start(&stage.ns, 9, Trouble::default()).await;
        let _controller =
            Controller::launch(&stage.ns, Launch { kubeconfig: Some(api.kubeconfig()), ..Launch::default() }).await;
        let words = "jobs.batch is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no team";
        api.next(1, When::request(Method::POST, "/jobs"), Action::Answer(StatusCode::UNPROCESSABLE_ENTITY, words));
        stage.ns.create::<TokenCache>(job("a", json!({}))).await;
        let failed = |cache: &TokenCache| cache.seen().failures > 0;
        let cache = stage.ns.await_cache("a", "it is refused", failed).await;
        assert_eq!((cache.last_failure().as_str(), cache.stalled()), ("JobFailed", None), "{}", cache.message());
        assert!(cache.message().contains("denied request: no team"), "{}", cache.message());
        stage.pod("a").await;
    });
}

#[test]
fn a_job_gets_no_secret_whose_owner_limits_where_it_is_sent() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "stringData": {"key": "value"},
            "metadata": {
                "name": "limited", "labels": {LABEL_SOURCE: "true"}, "annotations": {ANNOTATION_HOSTS: "id.example.com"},
            },
        });
        stage.ns.create::<Secret>(secret).await;
        let volumes = json!([{"name": "limited", "secret": {"secretName": "limited"}}]);
        let spec = json!({"fetch": {"job": {"template": {"spec": {"volumes": volumes}}}}});
        stage.ns.create::<TokenCache>(job("a", spec)).await;
        let stalled = |cache: &TokenCache| cache.stalled() == Some("SourceNotAllowed");
        let cache = stage.ns.await_cache("a", "it is stalled", stalled).await;
        assert!(cache.message().contains("cannot be used in a job"), "{}", cache.message());
        stage.ns.patch::<Secret>("limited", json!({"metadata": {"annotations": {ANNOTATION_HOSTS: null}}})).await;
        stage.pod("a").await;
    });
}
