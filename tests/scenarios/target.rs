//! The Secret of the target: its name, what is removed with it, and which of its labels and annotations are the spec's.

use std::pin::pin;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_TARGET_KEYS, LABEL_MANAGED},
};

use crate::support::{
    CacheView as _, Controller, Namespace, Scene, SecretView as _, scenario,
    server::{Behaviour, Gate},
    version, within,
};

/// Runs a story, and fails as soon as Ready of the TokenCache `a` is True while the Secret of `status.secretName` does not
/// exist.
async fn while_ready_is_true_the_secret_exists(ns: &Namespace, story: impl Future<Output = ()>) {
    let violation = async {
        let mut versions = pin!(watcher::watch_object(ns.api::<TokenCache>(), "a").default_backoff());
        while let Some(found) = versions.next().await {
            let Ok(Some(cache)) = found else { continue };
            let name = cache.seen().secret_name.unwrap_or_default();
            let secrets = ns.api::<Secret>();
            if cache.ready().0 && secrets.get_opt(&name).await.expect("an answer").is_none() {
                // A newer version of the TokenCache may explain it.
                let newest: TokenCache = ns.get("a").await;
                assert_ne!(version(&newest), version(&cache), "Ready is True, and Secret {name} does not exist");
            }
        }
    };
    tokio::select! {
        () = violation => panic!("the watch has ended"),
        () = story => {}
    }
}

/// The names of the managed Secrets that the TokenCache `a` owns.
async fn managed(ns: &Namespace) -> Vec<String> {
    let cache: TokenCache = ns.get("a").await;
    let selector = ListParams::default().labels(&format!("{LABEL_MANAGED}=true"));
    let secrets = ns.api::<Secret>().list(&selector).await.expect("a list").items;
    let owned =
        |secret: &Secret| secret.owner_references().iter().any(|owner| Some(&owner.uid) == cache.metadata.uid.as_ref());
    secrets.iter().filter(|secret| owned(secret)).map(|secret| secret.name_any()).collect()
}

fn named(name: &str) -> Value {
    json!({"target": {"name": name}})
}

/// A TokenCache whose Secret is `before`, edited to `during`; the fetch for that waits behind the gate.
async fn renamed(before: &str, during: &str) -> (Scene, Gate) {
    let scene = Scene::new().await;
    scene.ready_cache("a", named(before)).await;
    let gate = Gate::new();
    scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
    scene.ns.patch_spec("a", named(during)).await;
    within("the fetch for the new name begins", scene.server.await_requests("a", 2)).await;
    (scene, gate)
}

#[test]
fn a_fetch_that_fails_after_the_target_was_renamed_leaves_the_valid_secret_in_place() {
    scenario(async {
        let scene = Scene::new().await;
        let mut spec = named("y");
        spec["fetch"] = json!({"timeout": "3s"});
        scene.ready_cache("a", spec).await;
        let before = scene.secret("y").await;
        while_ready_is_true_the_secret_exists(&scene.ns, async {
            scene.server.set("a", Behaviour::Hang);
            scene.ns.request("a", "now").await;
            within("the fetch begins", scene.server.await_requests("a", 2)).await;
            scene.ns.patch_spec("a", named("z")).await;
            let cache = scene.ns.await_cache("a", "the fetch has failed", |cache| cache.seen().runs >= 2).await;
            assert_eq!(cache.seen().secret_name.as_deref(), Some("y"), "the Secret that was observed");
            scene.ns.await_cache("a", "the next fetch has failed", |cache| cache.seen().runs >= 3).await;
            assert_eq!(scene.secret("y").await.metadata.uid, before.metadata.uid);

            scene.server.set("a", Behaviour::Default);
            scene.ns.await_secret("z", "the Secret of the new name", |_| true).await;
            scene.ns.await_gone::<Secret>("y", "the Secret of the former name").await;
        })
        .await;
        let cache = scene.ns.await_ready("a", true, "Fetched").await;
        assert_eq!(cache.seen().secret_name.as_deref(), Some("z"));
        assert_eq!(managed(&scene.ns).await, ["z"]);
    });
}

#[test]
fn a_fetch_that_succeeds_after_the_target_was_renamed_leaves_its_secret_until_the_next_is_there() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", named("y")).await;
        let gate = Gate::new();
        scene.server.set("a", Behaviour::Behind(gate.clone(), Box::new(Behaviour::Default)));
        while_ready_is_true_the_secret_exists(&scene.ns, async {
            scene.ns.request("a", "now").await;
            within("the fetch begins", scene.server.await_requests("a", 2)).await;
            scene.ns.patch_spec("a", named("z")).await;
            gate.open();
            scene.ns.await_secret("z", "the Secret of the new name", |_| true).await;
            scene.ns.await_gone::<Secret>("y", "the Secret of the former name").await;
        })
        .await;
        assert_eq!(scene.server.requests("a"), 3, "one for the request, one for the new name");
        assert_eq!(managed(&scene.ns).await, ["z"]);
    });
}

#[test]
fn of_a_target_that_is_renamed_twice_one_secret_is_left() {
    scenario(async {
        let (scene, gate) = renamed("x", "y").await;
        while_ready_is_true_the_secret_exists(&scene.ns, async {
            scene.ns.patch_spec("a", named("z")).await;
            gate.open();
            scene.ns.await_secret("z", "the Secret of the newest name", |_| true).await;
            scene.ns.await_gone::<Secret>("x", "the first Secret").await;
            scene.ns.await_gone::<Secret>("y", "the second Secret").await;
        })
        .await;
        assert_eq!(managed(&scene.ns).await, ["z"]);
    });
}

#[test]
fn a_target_whose_renaming_is_undone_keeps_its_secret() {
    scenario(async {
        let (scene, gate) = renamed("x", "y").await;
        let before = scene.secret("x").await;
        while_ready_is_true_the_secret_exists(&scene.ns, async {
            scene.ns.patch_spec("a", named("x")).await;
            gate.open();
            scene.ns.await_secret("y", "the Secret of the name in between", |_| true).await;
            scene.ns.await_gone::<Secret>("y", "the Secret of the name in between").await;
        })
        .await;
        let cache = scene.ns.await_cache("a", "the spec is observed", |cache| cache.is_observed()).await;
        assert!(cache.is(true, "Fetched"), "{:?}", cache.ready());
        assert_eq!(cache.seen().secret_name.as_deref(), Some("x"));
        assert_eq!(scene.secret("x").await.metadata.uid, before.metadata.uid);
        assert_eq!((scene.server.requests("a"), managed(&scene.ns).await), (2, vec!["x".to_owned()]));
    });
}

/// Creates what a job would have left in the Secret of its state.
async fn state_of(scene: &Scene, cache: &TokenCache) -> Secret {
    let owner = json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": cache.metadata.uid,
        "controller": true,
    });
    let state = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "tokencache-a-state", "labels": {LABEL_MANAGED: "true"}, "ownerReferences": [owner]},
        "stringData": {"state-1": "precious"},
    });
    scene.ns.create(state).await
}

/// Writes a name into `status.secretName`, as anyone who may patch the status can.
async fn forge_secret_name(ns: &Namespace, name: &str) {
    let change = json!({"status": {"secretName": name}});
    let forged = ns.api::<TokenCache>().patch_status("a", &PatchParams::default(), &Patch::Merge(change)).await;
    forged.expect("the status is patched");
}

#[test]
fn a_secret_that_a_forged_status_names_is_not_removed() {
    scenario(async {
        let scene = Scene::new().await;
        let cache = scene.ready_cache("a", json!({})).await;
        let state = state_of(&scene, &cache).await;
        forge_secret_name(&scene.ns, "tokencache-a-state").await;
        let right = |cache: &TokenCache| cache.seen().secret_name.as_deref() == Some("a");
        scene.ns.await_cache("a", "status names the Secret again", right).await;
        scene.ns.request("a", "now").await;
        scene.ns.await_cache("a", "one more run", |cache| cache.seen().runs == 2).await;
        assert_eq!(scene.secret("tokencache-a-state").await.metadata.uid, state.metadata.uid);
    });
}

#[test]
fn the_value_is_retained_whatever_the_status_says() {
    scenario(async {
        let scene = Scene::new().await;
        let cache = scene.ready_cache("a", json!({"target": {"deletionPolicy": "Retain"}})).await;
        state_of(&scene, &cache).await;
        let before = scene.secret("a").await;
        scene.controller.stop();
        forge_secret_name(&scene.ns, "tokencache-a-state").await;
        scene.ns.delete::<TokenCache>("a").await;
        scene.controller.cont();
        scene.ns.await_gone::<TokenCache>("a", "the TokenCache").await;
        scene.ns.await_gone::<Secret>("tokencache-a-state", "the state goes with its TokenCache").await;
        let after = scene.secret("a").await;
        assert_eq!((after.metadata.uid.as_ref(), after.owner_references().len()), (before.metadata.uid.as_ref(), 0));
    });
}

#[test]
fn the_value_is_retained_under_its_former_name_while_the_new_one_has_none() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ready_cache("a", json!({"target": {"name": "y", "deletionPolicy": "Retain"}})).await;
        scene.server.set("a", Behaviour::Hang);
        scene.ns.patch_spec("a", named("z")).await;
        within("the fetch for the new name begins", scene.server.await_requests("a", 2)).await;
        scene.ns.delete::<TokenCache>("a").await;
        scene.ns.await_gone::<TokenCache>("a", "the TokenCache").await;
        assert!(scene.secret("y").await.owner_references().is_empty());
    });
}

/// A target with a label and an annotation, on whose Secret another client has put one of each as well.
async fn labelled() -> Scene {
    let scene = Scene::new().await;
    let target = json!({"labels": {"team": "blue"}, "annotations": {"replicator.example/replicate-to": "*"}});
    scene.ready_cache("a", json!({"target": target})).await;
    let theirs = json!({"metadata": {"labels": {"backup": "yes"}, "annotations": {"seen-by": "scanner"}}});
    scene.ns.patch::<Secret>("a", theirs).await;
    scene
}

/// The target's label and annotation are removed from the Secret with the spec's, and only those.
async fn removed_keys_go(scene: &Scene) {
    scene.ns.patch_spec("a", json!({"target": null})).await;
    let secret =
        scene.ns.await_secret("a", "the label is removed", |secret| !secret.labels().contains_key("team")).await;
    assert!(!secret.annotations().contains_key("replicator.example/replicate-to"), "{:?}", secret.annotations());
    assert_eq!(secret.labels().get("backup").map(String::as_str), Some("yes"));
    assert_eq!(secret.annotation("seen-by"), "scanner");
    let cache = scene.ns.await_cache("a", "the spec is observed", |cache| cache.is_observed()).await;
    assert_eq!((cache.seen().runs, scene.server.requests("a")), (2, 2));
}

#[test]
fn labels_and_annotations_that_were_taken_out_of_the_target_are_removed() {
    scenario(async { removed_keys_go(&labelled().await).await });
}

#[test]
fn so_are_those_of_a_secret_that_does_not_record_which_were_the_specs() {
    scenario(async {
        let scene = labelled().await;
        let record = json!({"metadata": {"annotations": {ANNOTATION_TARGET_KEYS: null}}});
        scene.ns.patch::<Secret>("a", record).await;
        removed_keys_go(&scene).await;
    });
}

#[test]
fn a_type_that_the_controller_does_not_write_is_refused_before_anything_is_fetched() {
    scenario(async {
        let scene = Scene::new().await;
        scene.ns.lift_policies("the Secret gets a type that they deny").await;
        let release =
            json!({"target": {"type": "helm.sh/release.v1", "labels": {"owner": "helm", "status": "deployed"}}});
        scene.cache("a", release).await;
        let cache = scene.ns.await_ready("a", false, "InvalidSpec").await;
        for words in ["spec.target.type: helm.sh/release.v1", "Opaque, kubernetes.io/basic-auth", "--target-types"] {
            assert!(cache.message().contains(words), "{}", cache.message());
        }
        assert_eq!(cache.stalled(), Some("InvalidSpec"));
        assert_eq!(scene.server.requests("a"), 0);
        assert!(scene.ns.api::<Secret>().get_opt("a").await.expect("an answer").is_none());

        let Scene { controller, server: _server, ns } = scene;
        controller.terminate().await;
        ns.lift_policies("the controller may write a type that they deny").await;
        let _controller = Controller::start(&ns, &["--target-types", "Opaque,helm.sh/release.v1"]).await;
        ns.request("a", "now").await;
        ns.await_ready("a", true, "Fetched").await;
        assert_eq!(ns.get::<Secret>("a").await.type_.as_deref(), Some("helm.sh/release.v1"));
    });
}
