//! What one namespace can do to the others: each limit on what is shared, while one namespace is at it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::support::{
    CacheView as _, Cluster, Controller, Launch, Namespace, Scene, in_background, scenario,
    server::{Options, TokenServer},
};

/// A controller of two namespaces, one of which does what it can to the other.
struct Neighbours {
    controller: Arc<Controller>,
    server: TokenServer,
    victim: Namespace,
    attacker: Namespace,
}

impl Neighbours {
    async fn new() -> Self {
        let (victim, server) = Scene::stage(Options::default()).await;
        let attacker = Namespace::new().await;
        let kubeconfig = Cluster::get().await.kubeconfig.clone();
        let arguments = ["--namespace", &attacker.name];
        let launch = Launch { kubeconfig: Some(&kubeconfig), arguments: &arguments, ..Launch::default() };
        let controller = Arc::new(Controller::launch(&victim, launch).await);
        Self { controller, server, victim, attacker }
    }

    /// How long a request of the victim takes to be met.
    async fn delay(&self, name: &str, request: &str) -> Duration {
        let asked = Instant::now();
        self.victim.request(name, request).await;
        let met = |cache: &TokenCache| cache.seen().handled_request.as_deref() == Some(request);
        self.victim.await_cache(name, "a value that was fetched by the request", met).await;
        asked.elapsed()
    }

    /// From now on, how long `/livez` takes at most.
    fn watch_probes(&self) -> Arc<Mutex<Duration>> {
        let longest = Arc::new(Mutex::new(Duration::ZERO));
        let (seen, controller) = (longest.clone(), Arc::downgrade(&self.controller));
        in_background(async move {
            while let Some(controller) = controller.upgrade() {
                let asked = Instant::now();
                let _ = controller.ask_probes("/livez").await;
                {
                    let mut longest = seen.lock();
                    *longest = longest.max(asked.elapsed());
                }
                drop(controller);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        longest
    }
}

/// Many expressions that take long to compile, each another one.
fn expensive(object: usize, number: usize) -> Value {
    let text = |n: usize| format!("[{object},{n}{}]", ",1".repeat(985));
    let texts = (0..number).map(|n| (format!("k{n}"), Value::from(text(n))));
    let data: serde_json::Map<_, _> = texts.clone().take(60).collect();
    let values: serde_json::Map<_, _> = texts.clone().skip(60).take(50).collect();
    let named = |from: usize| -> Vec<Value> {
        let some = texts.clone().skip(from).take(50);
        some.map(|(name, text)| json!({"name": name, "expression": text})).collect()
    };
    json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "metadata": {"name": format!("heavy-{object}")},
        "spec": {
            "fetch": {"http": {
                "url": "http://127.0.0.1:1/", "method": "POST", "headers": named(110), "query": named(160),
                "form": named(210), "result": {"token": "response.body", "values": values},
            }},
            "target": {"data": data},
        },
    })
}

#[test]
fn neither_probes_nor_other_namespaces_wait_while_the_expressions_of_one_are_compiled() {
    scenario(async {
        let scene = Neighbours::new().await;
        let token_cache = crate::support::manifests::token_cache("a", &scene.server, json!({}));
        scene.victim.create::<TokenCache>(token_cache).await;
        scene.victim.await_ready("a", true, "Fetched").await;
        let longest = scene.watch_probes();
        // As much as the definition allows, and as much as the controller does.
        for object in 0..20 {
            scene.attacker.create::<TokenCache>(expensive(object, 260)).await;
        }
        for object in 100..105 {
            scene.attacker.create::<TokenCache>(expensive(object, 16)).await;
        }
        for request in ["1", "2", "3"] {
            let delay = scene.delay("a", request).await;
            assert!(delay < Duration::from_secs(10), "{delay:?}");
        }
        scene.attacker.create::<TokenCache>(expensive(50, 40)).await;
        for (name, words) in
            [("heavy-0", "more than the 131072"), ("heavy-50", "bytes of expressions, more than the 32768")]
        {
            let told = scene.attacker.await_ready(name, false, "InvalidSpec").await;
            assert!(told.message().contains(words), "{}", told.message());
        }
        scene.attacker.await_ready("heavy-104", false, "FetchFailed").await;
        let longest = *longest.lock();
        assert!(longest < Duration::from_secs(5), "/livez took {longest:?}");
    });
}
