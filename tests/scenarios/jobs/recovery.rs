//! What a job has learned outlives its controller, its Lease, and a suspension.

use std::time::Duration;

use http::Method;
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use super::{Stage, job, result};
use crate::support::{
    Action, CacheView as _, Controller, FlakyApi, Launch, SecretView as _, Trouble, When, pass, poll, scenario, within,
};

/// A TokenCache `a` whose first run left the state 1.
async fn with_state(stage: &mut Stage) -> Controller {
    let controller = stage.controller().await;
    first_run(stage).await;
    controller
}

async fn first_run(stage: &mut Stage) {
    stage.ns.create::<TokenCache>(job("a", json!({}))).await;
    stage.pod("a").await.succeed(&result("first", json!(1))).await;
    stage.ns.await_ready("a", true, "Fetched").await;
    assert_eq!(stage.state("a").await.as_deref(), Some("1"));
    stage.await_no_job("a").await;
}

/// The second run's value and state are there, and it was the last one.
async fn kept(stage: &Stage) {
    stage.ns.await_secret("a", "the second value", |secret| secret.token() == "second").await;
    assert_eq!(stage.state("a").await.as_deref(), Some("2"));
    let reported = |cache: &TokenCache| cache.seen().runs >= 2 && cache.seen().failures == 0;
    stage.ns.await_cache("a", "it is reported", reported).await;
    stage.await_no_job("a").await;
}

/// Waits until a controller has logged this.
async fn logged(controller: &Controller, words: &str) {
    within(words, poll(|| async { controller.log().contains(words).then_some(()) })).await;
}

#[test]
fn a_job_that_runs_when_its_controller_is_stopped_is_taken_over_by_the_next() {
    scenario(async {
        let mut stage = Stage::new().await;
        let first = with_state(&mut stage).await;
        stage.ns.request("a", "again").await;
        let pod = stage.pod("a").await;
        pod.start().await;
        let (status, took) = first.terminate().await;
        assert!(status.success() && took < Duration::from_secs(15), "{status} {took:?}");
        stage.ns.await_free_lease("a").await;
        let _second = stage.controller().await;
        pod.succeed(&result("second", json!(2))).await;
        kept(&stage).await;
    });
}

#[test]
fn a_result_that_a_killed_controller_left_is_read_by_the_next() {
    scenario(async {
        let mut stage = Stage::new().await;
        let first = with_state(&mut stage).await;
        stage.ns.request("a", "again").await;
        let pod = stage.pod("a").await;
        pod.start().await;
        first.kill().await;
        pod.succeed(&result("second", json!(2))).await;
        let _second = stage.controller().await;
        kept(&stage).await;
    });
}

#[test]
fn a_result_that_comes_while_the_api_server_is_away_is_kept() {
    scenario(async {
        let mut stage = Stage::new().await;
        let api = FlakyApi::start(&stage.ns, 6, Trouble::default()).await;
        let launch =
            Launch { arguments: &["--lease-duration", "3s"], kubeconfig: Some(api.kubeconfig()), ..Launch::default() };
        let controller = Controller::launch(&stage.ns, launch).await;
        first_run(&mut stage).await;
        stage.ns.request("a", "again").await;
        let pod = stage.pod("a").await;
        pod.start().await;
        api.set(Trouble { refused: 100, reads: true, ..Trouble::default() });
        api.drop_watches();
        logged(&controller, "the Lease was lost").await;
        pod.succeed(&result("second", json!(2))).await;
        api.set(Trouble::default());
        kept(&stage).await;
    });
}

/// A controller behind a proxy.
async fn behind(stage: &Stage, api: &FlakyApi) -> Controller {
    let arguments = &["--lease-duration", "3s"];
    Controller::launch(&stage.ns, Launch { arguments, kubeconfig: Some(api.kubeconfig()), ..Launch::default() }).await
}

#[test]
fn a_job_that_is_created_late_does_not_run_beside_the_next() {
    scenario(async {
        let mut stage = Stage::new().await;
        let api = FlakyApi::start(&stage.ns, 7, Trouble::default()).await;
        let _controller = behind(&stage, &api).await;
        let held = api.next(1, When::request(Method::POST, "/jobs"), Action::Hold);
        let created = api.count(When::request(Method::POST, "/jobs"));
        stage.ns.create::<TokenCache>(job("a", json!({}))).await;
        let failed = |cache: &TokenCache| cache.last_failure() == "Unreachable";
        stage.ns.await_cache("a", "the first creation is given up", failed).await;
        let pod = stage.pod("a").await;
        assert_eq!(created.hits(), 2);
        held.remove();
        // It is carried out now, while the other Job is there.
        within("it was carried out", poll(|| async { (api.writing() == 0).then_some(()) })).await;
        pass(Duration::from_secs(2)).await;
        assert_eq!(stage.jobs("a").await.len(), 1);
        pod.succeed(&result("first", json!(1))).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(stage.state("a").await.as_deref(), Some("1"));
        stage.await_no_job("a").await;
    });
}

#[test]
fn a_job_that_is_created_late_is_taken_over_by_the_next_run() {
    scenario(async {
        let mut stage = Stage::new().await;
        let api = FlakyApi::start(&stage.ns, 8, Trouble::default()).await;
        let _controller = behind(&stage, &api).await;
        let held = api.next(1, When::request(Method::POST, "/jobs"), Action::Hold);
        let created = api.count(When::request(Method::POST, "/jobs"));
        stage.ns.create::<TokenCache>(job("a", json!({"retry": {"initialInterval": "10s"}}))).await;
        let failed = |cache: &TokenCache| cache.last_failure() == "Unreachable";
        stage.ns.await_cache("a", "the first creation is given up", failed).await;
        held.remove();
        stage.pod("a").await.succeed(&result("first", json!(1))).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!((stage.ns.get::<Secret>("a").await.token(), created.hits()), ("first".to_owned(), 1));
        assert_eq!(stage.state("a").await.as_deref(), Some("1"));
    });
}

#[test]
fn the_first_state_of_all_outlives_a_killed_controller() {
    scenario(async {
        let mut stage = Stage::new().await;
        let first = stage.controller().await;
        stage.ns.create::<TokenCache>(job("a", json!({}))).await;
        let pod = stage.pod("a").await;
        pod.start().await;
        first.kill().await;
        let _second = stage.controller().await;
        pod.succeed(&result("first", json!(1))).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(stage.ns.get::<Secret>("a").await.token(), "first");
        assert_eq!(stage.state("a").await.as_deref(), Some("1"));
    });
}

#[test]
fn a_state_is_kept_though_its_value_is_of_another_spec_by_then() {
    scenario(async {
        let mut stage = Stage::new().await;
        let first = with_state(&mut stage).await;
        stage.ns.request("a", "again").await;
        let pod = stage.pod("a").await;
        pod.start().await;
        first.kill().await;
        stage.ns.patch_spec("a", json!({"target": {"labels": {"team": "blue"}}})).await;
        pod.succeed(&result("second", json!(2))).await;
        let _second = stage.controller().await;
        stage.await_state("a", "2").await;
        let third = stage.pod("a").await;
        assert!(third.state_key().is_some());
        third.succeed(&result("third", json!(3))).await;
        stage.ns.await_secret("a", "the third value", |secret| secret.token() == "third").await;
        stage.await_state("a", "3").await;
    });
}

#[test]
fn a_job_goes_on_when_its_token_cache_is_suspended_and_its_state_is_kept() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = with_state(&mut stage).await;
        stage.ns.request("a", "again").await;
        let pod = stage.pod("a").await;
        pod.start().await;
        stage.ns.patch_spec("a", json!({"suspend": true})).await;
        // Longer than it takes to notice.
        pass(Duration::from_secs(1)).await;
        pod.succeed(&result("second", json!(2))).await;
        stage.await_state("a", "2").await;
        stage.await_no_job("a").await;
        stage.ns.await_ready("a", true, "Suspended").await;
        assert_eq!(stage.ns.get::<Secret>("a").await.token(), "first");
    });
}

#[test]
fn a_run_that_no_node_has_taken_ends_with_its_suspension_or_deletion() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        for name in ["a", "b"] {
            stage.ns.create::<TokenCache>(job(name, json!({}))).await;
            stage.pod(name).await;
        }
        stage.ns.patch_spec("a", json!({"suspend": true})).await;
        stage.ns.delete::<TokenCache>("b").await;
        for name in ["a", "b"] {
            stage.await_no_job(name).await;
        }
        stage.ns.await_ready("a", false, "Suspended").await;
    });
}

#[test]
fn a_job_without_a_state_leaves_no_secret_for_one() {
    scenario(async {
        let mut stage = Stage::new().await;
        let _controller = stage.controller().await;
        stage.ns.create::<TokenCache>(job("a", json!({}))).await;
        stage.pod("a").await.succeed(&result("first", Value::Null)).await;
        stage.ns.await_ready("a", true, "Fetched").await;
        let secret = || async { stage.ns.api::<Secret>().get_opt("tokencache-a-state").await.expect("an answer") };
        within("no Secret", poll(|| async { secret().await.is_none().then_some(()) })).await;
    });
}
