//! What becomes of a Secret that other hands touch.

use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{ResourceExt as _, api::PostParams};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokencache::api::{
    TokenCache,
    names::{
        ANNOTATION_CHANGED_AT, ANNOTATION_DATA_HASH, ANNOTATION_EXPIRES_AT, ANNOTATION_FETCH_HASH,
        ANNOTATION_FETCHED_AT, LABEL_MANAGED,
    },
};

use crate::support::{CacheView as _, Scene, SecretView as _, scenario, version};

fn spec() -> Value {
    json!({"target": {"labels": {"team": "blue"}, "annotations": {"note": "ours"}}})
}

/// Changes the Secret of a fresh cache, and sees it put right by a new value.
async fn is_put_right(change: Value) {
    let scene = Scene::new().await;
    scene.ready_cache("a", spec()).await;
    let first = scene.secret("a").await;
    scene.ns.patch::<Secret>("a", change.clone()).await;
    let right = |secret: &Secret| {
        let label = |key: &str| secret.labels().get(key).map(String::as_str);
        label(LABEL_MANAGED) == Some("true")
            && label("team") == Some("blue")
            && secret.annotation("note") == "ours"
            && secret.token().starts_with("ey")
            && secret.token() != first.token()
            && secret.data.as_ref().is_some_and(|data| data.len() == 1)
    };
    let secret = scene.ns.await_secret("a", &format!("it is right again after {change}"), right).await;
    assert_eq!(scene.server.issued("a").last(), Some(&secret.token()));
    assert!(secret.expires_at() <= first.expires_at() + chrono::TimeDelta::minutes(5));
    scene.ns.await_event("a", "Drifted").await;
    let cache = scene.ns.await_cache("a", "two runs", |cache| cache.seen().runs == 2).await;
    assert!(cache.is(true, "Fetched"), "{:?}", cache.ready());
    assert_eq!(scene.server.requests("a"), 2);
}

/// The hash of a Secret's data and annotations, as anyone can compute it.
fn data_hash(secret: &Secret) -> String {
    let mut hash = Sha256::new();
    let add = |hash: &mut Sha256, part: &[u8]| {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    };
    for (key, value) in secret.data.iter().flatten() {
        add(&mut hash, key.as_bytes());
        add(&mut hash, &value.0);
    }
    let mut all = hash.clone();
    for key in [ANNOTATION_EXPIRES_AT, ANNOTATION_FETCHED_AT, ANNOTATION_FETCH_HASH, ANNOTATION_CHANGED_AT] {
        add(&mut all, secret.annotation(key).as_bytes());
    }
    let hex = |hash: Sha256| hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}-{}", hex(hash), hex(all))
}

#[test]
fn a_forged_value_with_a_hash_that_fits_is_put_right_by_a_new_value() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", spec()).await;
        let mut secret = scene.secret("a").await;
        assert_eq!(secret.annotation(ANNOTATION_DATA_HASH), data_hash(&secret), "it is computed as tokencache does");
        secret.data = Some([("token".to_owned(), ByteString(b"forged".to_vec()))].into());
        secret.annotations_mut().insert(ANNOTATION_EXPIRES_AT.to_owned(), "never".to_owned());
        let hash = data_hash(&secret);
        secret.annotations_mut().insert(ANNOTATION_DATA_HASH.to_owned(), hash);
        scene.ns.api::<Secret>().replace("a", &PostParams::default(), &secret).await.expect("it is forged");
        let right =
            |secret: &Secret| secret.token().starts_with("ey") && secret.annotation(ANNOTATION_EXPIRES_AT) != "never";
        scene.ns.await_secret("a", "a value that was fetched", right).await;
        scene.ns.await_event("a", "Drifted").await;
        let cache = scene.ns.await_cache("a", "two runs", |cache| cache.seen().runs == 2).await;
        assert!(cache.is(true, "Fetched"), "{:?}", cache.ready());
    });
}

#[test]
fn edited_data_is_put_right_by_a_new_value() {
    scenario(is_put_right(json!({"stringData": {"token": "mine"}})));
}

#[test]
fn added_data_is_put_right_by_a_new_value() {
    scenario(is_put_right(json!({"stringData": {"more": "mine"}})));
}

#[test]
fn an_expiry_that_somebody_pushed_back_is_put_right_by_a_new_value() {
    scenario(is_put_right(json!({"metadata": {"annotations": {ANNOTATION_EXPIRES_AT: "2099-01-01T00:00:00Z"}}})));
}

#[test]
fn an_expiry_that_cannot_be_read_is_put_right_by_a_new_value() {
    scenario(is_put_right(json!({"metadata": {"annotations": {ANNOTATION_EXPIRES_AT: "tomorrow"}}})));
}

#[test]
fn a_removed_annotation_is_put_right_by_a_new_value() {
    scenario(is_put_right(json!({"metadata": {"annotations": {ANNOTATION_FETCHED_AT: null}}})));
}

#[test]
fn a_removed_managed_label_is_put_right_by_a_new_value() {
    scenario(is_put_right(json!({"metadata": {"labels": {LABEL_MANAGED: null}}})));
}

#[test]
fn a_removed_label_of_the_targets_is_put_right_by_a_new_value() {
    scenario(is_put_right(json!({"metadata": {"labels": {"team": null}}})));
}

#[test]
fn a_changed_annotation_of_the_targets_is_put_right_by_a_new_value() {
    scenario(is_put_right(json!({"metadata": {"annotations": {"note": "theirs"}}})));
}

#[test]
fn what_others_add_to_the_metadata_costs_no_fetch_and_stays_after_the_next_refresh() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", spec()).await;
        let first = scene.secret("a").await;
        let theirs = json!({"metadata": {"labels": {"backup": "yes"}, "annotations": {"seen-by": "scanner"}}});
        let touched: Secret = scene.ns.patch("a", theirs).await;
        // The controller has seen the change by the time it is done with what came later.
        scene.ready_cache("later", json!({})).await;
        assert_eq!(scene.server.requests("a"), 1);
        assert_eq!(version(&scene.secret("a").await), version(&touched));

        scene.ns.request("a", "now").await;
        scene.ns.await_cache("a", "a second run", |cache| cache.seen().runs == 2).await;
        let second = scene.secret("a").await;
        assert_ne!(second.token(), first.token());
        assert_eq!(second.labels().get("backup").map(String::as_str), Some("yes"));
        assert_eq!(second.annotation("seen-by"), "scanner");
        assert_eq!(second.labels().get("team").map(String::as_str), Some("blue"));
    });
}

async fn a_foreign_secret_is_left_alone(foreign: Value) {
    let scene = Scene::new().await;
    let before: Secret = scene.ns.create(foreign).await;
    scene.cache("a", json!({})).await;
    let cache = scene.ns.await_ready("a", false, "SecretNotOwned").await;
    assert_eq!(cache.stalled(), Some("SecretNotOwned"));
    assert!(cache.message().contains(&format!("{}/a", scene.ns.name)), "{}", cache.message());
    scene.ns.await_event("a", "SecretNotOwned").await;
    assert_eq!(scene.secret("a").await, before);

    scene.ns.delete::<Secret>("a").await;
    let cache = scene.ns.await_ready("a", true, "Fetched").await;
    assert_eq!(cache.stalled(), None);
    assert_eq!(scene.server.issued("a").last(), Some(&scene.secret("a").await.token()));
}

#[test]
fn a_secret_of_nobody_is_never_touched_and_once_it_is_gone_all_goes_on() {
    let foreign = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"token": "precious"},
    });
    scenario(a_foreign_secret_is_left_alone(foreign));
}

#[test]
fn a_secret_that_only_looks_managed_is_never_touched() {
    let foreign = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "a", "labels": {LABEL_MANAGED: "true"}},
        "stringData": {"token": "precious"},
    });
    scenario(a_foreign_secret_is_left_alone(foreign));
}

#[test]
fn of_two_caches_that_name_the_same_secret_one_has_it_and_the_other_is_refused() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("first", json!({"target": {"name": "shared"}})).await;
        let before = scene.secret("shared").await;
        scene.cache("second", json!({"target": {"name": "shared"}})).await;
        let cache = scene.ns.await_ready("second", false, "SecretNotOwned").await;
        assert!(cache.message().contains("first"), "{}", cache.message());
        assert_eq!(scene.secret("shared").await, before);
        // The second finds room when the first moves away.
        scene.ns.patch_spec("first", json!({"target": {"name": "elsewhere"}})).await;
        scene.ns.await_ready("second", true, "Fetched").await;
        let owner: TokenCache = scene.ns.get("second").await;
        assert_eq!(scene.secret("shared").await.owner_references()[0].uid, owner.metadata.uid.expect("a uid"));
    });
}
