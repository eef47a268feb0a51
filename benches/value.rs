//! What it costs to read a value: `Handle::get` beside arc_swap's bare load, and `Client::fetch` of a value that is there.
//!
//! ```sh
//! hack/cluster.sh run -- cargo bench --bench value
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark that cannot go on ends")]
#![allow(clippy::print_stdout, reason = "its figures are what it prints")]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use k8s_openapi::{
    api::core::v1::{Namespace, Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Config, CustomResourceExt as _, ResourceExt as _,
    api::{DeleteParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokencache::{api::TokenCache, client::Client};

const ROUNDS: u32 = 15;
const READS: u32 = 200_000;
const FETCHES: usize = 500;

/// The median time of one call.
fn measure<T>(what: &str, mut call: impl FnMut() -> T) {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            (0..READS).for_each(|_| {
                black_box(call());
            });
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("{what:<44} {:>9.1} ns", times[times.len() / 2].as_secs_f64() * 1e9 / f64::from(READS));
}

async fn create<K>(api: Api<K>, manifest: Value) -> K
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &serde_json::from_value(manifest).expect("an object")).await.expect("created")
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Ok(path) = std::env::var("TOKENCACHE_TEST_KUBECONFIG") else {
        println!("skipped: TOKENCACHE_TEST_KUBECONFIG names no cluster; run it by hack/cluster.sh run --");
        return;
    };
    let file = Kubeconfig::read_from(path).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
    let kube = tokencache::client::connect(config).expect("a client");
    let crd = TokenCache::crd();
    let crds: Api<CustomResourceDefinition> = Api::all(kube.clone());
    if crds.get_opt(&crd.name_any()).await.expect("an answer").is_none() {
        crds.create(&PostParams::default(), &crd).await.expect("created");
    }
    let namespaces: Api<Namespace> = Api::all(kube.clone());
    let ns = create(namespaces.clone(), json!({"metadata": {"generateName": "tc-bench-"}})).await.name_any();

    // As a controller leaves them.
    let caches: Api<TokenCache> = Api::namespaced(kube.clone(), &ns);
    let spec = json!({"fetch": {"oauth2": {
        "tokenUrl": "https://id.example.com/token", "clientId": "me", "clientSecretRef": {"name": "s", "key": "k"},
    }}});
    let kind = json!({"apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache"});
    let mut manifest = json!({"metadata": {"name": "a"}, "spec": spec});
    manifest.as_object_mut().expect("an object").extend(kind.as_object().expect("an object").clone());
    let cache = loop {
        // A definition that was created just now is not served yet.
        let object = serde_json::from_value(manifest.clone()).expect("a TokenCache");
        match caches.create(&PostParams::default(), &object).await {
            Ok(cache) => break cache,
            Err(kube::Error::Api(status)) if status.code == 404 => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => panic!("{error}"),
        }
    };
    let owner = json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": cache.uid(), "controller": true,
    });
    let annotations = json!({
        "tokencache.dev/fetched_at": "2026-01-02T03:04:05Z", "tokencache.dev/expires_at": "2099-01-02T03:04:05Z",
    });
    let secret = json!({
        "metadata": {"name": "a", "ownerReferences": [owner], "annotations": annotations},
        "stringData": {"token": "x".repeat(1200)},
    });
    create::<Secret>(Api::namespaced(kube.clone(), &ns), secret).await;

    let client = Client::new(kube, &ns);
    let handle = client.watch("a");
    let value = handle.ready().await;
    let bare = ArcSwap::from(Arc::clone(&value));
    measure("arc_swap's load", || bare.load());
    measure("Handle::get", || handle.get());
    measure("Handle::get, and the token's bytes", || {
        handle.get().map(|value| value.select(None).map(|b| b.expose().len()))
    });

    let mut times = Vec::with_capacity(FETCHES);
    for _ in 0..FETCHES {
        let begun = Instant::now();
        client.fetch("a").await.expect("a value");
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let milliseconds = |at: usize| times[at].as_secs_f64() * 1e3;
    println!(
        "{:<44} {:>9.2} ms median, {:.2} ms at the 99th of 100",
        "Client::fetch of a cached value",
        milliseconds(FETCHES / 2),
        milliseconds(FETCHES * 99 / 100)
    );
    let _ = namespaces.delete(&ns, &DeleteParams::background()).await;
}
