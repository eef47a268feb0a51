//! Installed on a real node: pods of the project's image serve the demo's manifests; an upgrade under load loses nothing;
//! what is uninstalled leaves TokenCaches and Secrets; installed again, it takes them up without a fetch.

use std::{collections::BTreeMap, net::SocketAddr, pin::pin, time::Duration};

use futures::{StreamExt as _, stream::BoxStream};
use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokencache::api::{ExpiresAt, TokenCache, names::ANNOTATION_EXPIRES_AT};
use tokio::{sync::Mutex, task::JoinHandle};

use crate::{
    support::{
        CacheView as _, Cluster, Namespace, SecretView as _,
        image::load_program,
        in_background,
        manifests::{CREDENTIALS, source_secret, token_cache},
        poll, scenario,
        server::{Behaviour, Expiry, Options, TokenServer},
        version, within,
    },
    tools::{hack, must, repository},
    ways::{IMAGE, Way, namespace, of_pods, pods},
};

const DEFINITION: &str = "tokencaches.tokencache.dev";

/// One installation in the cluster at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

#[test]
fn the_chart_for_all_namespaces() {
    on_node(async |stage| stage.play(&Way::Helm(Vec::new()), async || {}).await);
}

#[test]
fn the_chart_for_some_namespaces_sees_no_other() {
    on_node(async |stage| {
        let other = Namespace::new().await;
        let sees_no_other = async || {
            let roles = must("kubectl", &["get", "clusterroles,clusterrolebindings", "-o", "name"]);
            assert!(!roles.contains("tokencache"), "{roles}");
            other.create::<Secret>(source_secret(CREDENTIALS, &stage.server.options().client_secret, true)).await;
            other.create::<TokenCache>(token_cache("elsewhere", &stage.server, json!({}))).await;
            stage.cache("here", json!({})).await;
            stage.ns.await_ready("here", true, "Fetched").await;
            assert_eq!(stage.server.requests("elsewhere"), 0);
            assert!(other.get::<TokenCache>("elsewhere").await.status.is_none());
        };
        stage.play(&Way::Helm(vec![stage.ns.name.clone()]), sees_no_other).await;
    });
}

#[test]
fn the_manifests_without_helm() {
    on_node(async |stage| stage.play(&Way::kustomize(), async || {}).await);
}

/// A namespace with the token server's credentials, and a server that pods reach.
struct Stage {
    ns: Namespace,
    server: TokenServer,
}

fn on_node(story: impl AsyncFnOnce(&Stage)) {
    let Ok(cluster) = std::env::var("TOKENCACHE_CLUSTER") else {
        eprintln!("skipped, since there is no node: hack/cluster.sh run --node -- cargo test --test chart");
        return;
    };
    scenario(async move {
        let _alone = ALONE.lock().await;
        let client = &Cluster::bare().await.client;
        load_program(&cluster, &format!("{}:{}", IMAGE.0, IMAGE.1)).await;
        namespace(client).await;
        let host = hack("cluster.sh", &["host-ip", "--name", &cluster]);
        let listen = SocketAddr::new(host.trim().parse().expect("an address"), 0);
        let client_secret = format!("{:032x}", rand::random::<u128>());
        let options = Options { listen, client_id: "demo".into(), client_secret, ..Options::default() };
        let stage = Stage { ns: Namespace::new().await, server: TokenServer::start(options).expect("a server") };
        stage.ns.create::<Secret>(source_secret(CREDENTIALS, &stage.server.options().client_secret, true)).await;
        story(&stage).await;
    });
}

impl Stage {
    async fn cache(&self, name: &str, spec: serde_json::Value) {
        self.ns.create::<TokenCache>(token_cache(name, &self.server, spec)).await;
    }

    /// The whole story; `see` looks at what is special about this way, while it is installed.
    async fn play(&self, way: &Way, see: impl AsyncFn()) {
        way.install();
        let first = self.pods_are_ready().await;
        self.serves_the_demo().await;
        let still: Vec<String> = (0..5).map(|n| format!("still{n}")).collect();
        for name in &still {
            self.cache(name, json!({})).await;
        }
        self.ns.await_all_ready(&still).await;
        self.upgrade_under_load(way).await;
        let second = self.pods_are_ready().await;
        let replaced = || async { (pods(self.ns.client()).await.len() == second.len()).then_some(()) };
        of_pods("those that were replaced are gone", poll(replaced)).await;
        assert!(first.iter().all(|name| !second.contains(name)), "{first:?}, then {second:?}");

        let before = (self.objects().await, self.server.all_requests());
        way.uninstall(self.ns.client()).await;
        assert_eq!(self.objects().await, before.0, "what is uninstalled leaves them");
        way.install();
        self.pods_are_ready().await;
        // They are at work, on what was there before.
        self.ns.request("still0", "again").await;
        let answered = |cache: &TokenCache| cache.seen().handled_request.as_deref() == Some("again");
        self.ns.await_cache("still0", "a request is answered", answered).await;
        assert_eq!(self.server.all_requests(), before.1 + 1, "the others are taken up without one fetch");
        let (mut now, mut then) = (self.objects().await, before.0);
        for objects in [&mut now, &mut then] {
            objects.retain(|name, _| !name.ends_with(" still0"));
        }
        assert_eq!(now, then);
        see().await;
        self.end(way).await;
    }

    /// Takes all away, the definition too.
    async fn end(&self, way: &Way) {
        way.uninstall(self.ns.client()).await;
        let definitions = Api::<CustomResourceDefinition>::all(self.ns.client().clone());
        definitions.delete(DEFINITION, &DeleteParams::default()).await.expect("it stayed, and is deleted now");
        let gone = || async { definitions.get_opt(DEFINITION).await.expect("an answer").is_none().then_some(()) };
        within("the definition is gone", poll(gone)).await;
    }

    /// Two, of the project's image, ready; their names.
    async fn pods_are_ready(&self) -> Vec<String> {
        let ready = || async {
            let mut pods = pods(self.ns.client()).await;
            // Those that are replaced are waited for by themselves.
            pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
            let is_ready = |pod: &Pod| {
                let status = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
                status.is_some_and(|containers| containers.iter().all(|container| container.ready))
            };
            (pods.len() == 2 && pods.iter().all(is_ready)).then_some(pods)
        };
        let pods = of_pods("two pods are ready", poll(ready)).await;
        for pod in &pods {
            let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
            assert_eq!(image, Some(format!("{}:{}", IMAGE.0, IMAGE.1)));
        }
        pods.iter().map(|pod| pod.name_any()).collect()
    }

    /// examples/oauth2.yaml, with this server's address and secret, as the demo does it.
    async fn serves_the_demo(&self) {
        let text = std::fs::read_to_string(repository("examples/oauth2.yaml")).expect("the example");
        let text = text
            .replace("https://id.example.com/token", &self.server.url("demo"))
            .replace("replace-me", &self.server.options().client_secret);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("the example is written");
        let path = file.path().to_str().expect("a path");
        must("kubectl", &["create", "--namespace", &self.ns.name, "-f", path]);
        self.ns.await_ready("orders-api", true, "Fetched").await;
        let secret: Secret = self.ns.get("orders-api").await;
        assert_eq!(Some(&secret.token()), self.server.issued("demo").last());
    }

    /// Values that live for 20 s and are renewed every 10: none of them is ever missing, expired or fetched twice at once.
    async fn upgrade_under_load(&self, way: &Way) {
        let busy: Vec<String> = (0..15).map(|n| format!("busy{n}")).collect();
        for name in &busy {
            self.server.set(name, Behaviour::Issue(Expiry::In(20)));
            self.cache(name, json!({"refresh": {"renewBeforePercentage": 50}})).await;
        }
        self.ns.await_all_ready(&busy).await;
        let watched = Watched::start(&self.ns, busy.clone());
        way.upgrade();
        self.pods_are_ready().await;
        // A round after the upgrade, by the new pods.
        let fetched: BTreeMap<&String, usize> = busy.iter().map(|name| (name, self.server.requests(name))).collect();
        for name in &busy {
            within("a fetch after the upgrade", self.server.await_requests(name, fetched[name] + 1)).await;
        }
        let (looks, gaps) = watched.end().await;
        assert!(looks > 10 && gaps.is_empty(), "{looks} looks: {gaps:?}");
        for name in &busy {
            assert_eq!(self.server.in_flight_max(name), 1, "{name}");
            let cache: TokenCache = self.ns.get(name).await;
            assert_eq!((cache.seen().failures, cache.seen().last_failure), (0, None), "{name}");
            self.ns.delete::<TokenCache>(name).await;
        }
        for name in &busy {
            self.ns.await_gone::<Secret>(name, "it goes with its owner").await;
        }
    }

    /// All TokenCaches and their Secrets, by uid and version.
    async fn objects(&self) -> BTreeMap<String, String> {
        let mut objects = BTreeMap::new();
        for cache in self.ns.list::<TokenCache>().await {
            let state = format!("{:?} {}", cache.uid(), version(&cache));
            objects.insert(format!("TokenCache {}", cache.name_any()), state);
        }
        for secret in self.ns.list::<Secret>().await {
            if secret.annotations().contains_key(ANNOTATION_EXPIRES_AT) {
                let state = format!("{:?} {}", secret.uid(), version(&secret));
                objects.insert(format!("Secret {}", secret.name_any()), state);
            }
        }
        assert!(objects.len() >= 12, "{objects:?}");
        objects
    }
}

/// Looks again and again whether each of some Secrets holds a value that has not expired.
struct Watched {
    stop: tokio::sync::oneshot::Sender<()>,
    looking: tokio::sync::oneshot::Receiver<(usize, Vec<String>)>,
}

impl Watched {
    fn start(ns: &Namespace, names: Vec<String>) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let (told, looking) = tokio::sync::oneshot::channel();
        let secrets = ns.api::<Secret>();
        in_background(async move {
            let (mut looks, mut gaps) = (0, Vec::new());
            let mut pause = tokio::time::interval(Duration::from_millis(250));
            while stopped.try_recv().is_err() {
                pause.tick().await;
                // What was valid when the question was asked.
                let now = chrono::Utc::now();
                let Ok(found) = secrets.list(&ListParams::default()).await else { continue };
                looks += 1;
                for name in &names {
                    let secret = found.items.iter().find(|secret| &secret.name_any() == name);
                    let expiry = secret.and_then(|secret| secret.annotations().get(ANNOTATION_EXPIRES_AT));
                    let expiry = expiry.and_then(|text| text.parse::<ExpiresAt>().ok());
                    if expiry.is_none_or(|expiry| expiry.is_past(now)) {
                        gaps.push(format!("{name} at {now}: {expiry:?}"));
                    }
                }
            }
            let _ = told.send((looks, gaps));
        });
        Self { stop, looking }
    }

    /// How often was looked, and what was wrong.
    async fn end(self) -> (usize, Vec<String>) {
        let _ = self.stop.send(());
        self.looking.await.expect("what was seen")
    }
}
