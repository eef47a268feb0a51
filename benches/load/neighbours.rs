//! What one namespace costs another one: how long a request of the one takes to be met, and `/livez` to answer, while the
//! other is at a limit on what they share; beside the same without the other, in the same run.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokencache::api::TokenCache;
use tokio::net::TcpStream;

use crate::{
    support::{CacheView as _, Cluster, Controller, Launch, Namespace, pass, server::Behaviour},
    table::{Table, median, percentile},
    world::{World, name},
};

/// How often the victim asks in each measurement.
const REQUESTS: usize = 5;
/// A request is met, and `/livez` answers, within this time.
const REACH: (f64, f64) = (2.0, 1.0);

/// What the other tenant does.
#[derive(Clone, Copy)]
enum Attack {
    /// Creates objects, each from its number.
    Objects(fn(&World, usize) -> Value),
    /// Opens connections to the port for metrics, and sends nothing.
    Connections(usize),
}

const ATTACKS: [(&str, Attack); 7] = [
    ("80 specs with as many expressions as are allowed", Attack::Objects(expressions)),
    ("names that no server knows", Attack::Objects(names)),
    ("responses of 1 MiB", Attack::Objects(responses)),
    ("lifetimes of 1 s", Attack::Objects(short_lives)),
    ("servers that do not answer", Attack::Objects(hanging)),
    ("specs of 110 KiB, which fill the pages of lists", Attack::Objects(large_specs)),
    ("500 open connections to the port for metrics", Attack::Connections(500)),
];

/// Objects of each attack.
const OBJECTS: usize = 80;

/// Measures each attack, and all at once.
pub async fn measure(world: &World, table: &mut Table) {
    for number in 0..OBJECTS {
        let pad = "x".repeat(1_000_000);
        let body = json!({"access_token": "t", "expires_in": 1, "pad": pad}).to_string();
        world.server(number).set(&format!("large-{number}"), Behaviour::Status(200, Vec::new(), body));
        world.server(number).set(&format!("hanging-{number}"), Behaviour::Hang);
    }
    let baseline = Measured::of(world, &[]).await;
    let beside = baseline.words();
    for (what, attack) in ATTACKS {
        row(table, what, &Measured::of(world, &[attack]).await, &baseline, &beside);
    }
    let all: Vec<_> = ATTACKS.iter().map(|(_, attack)| *attack).collect();
    row(table, "all of these at once", &Measured::of(world, &all).await, &baseline, &beside);
}

fn row(table: &mut Table, what: &str, measured: &Measured, baseline: &Measured, beside: &str) {
    let (longest, probe) = (measured.longest(), measured.probe);
    let times = median(measured.delays.clone()) / median(baseline.delays.clone());
    let words = format!("{}; {times:.1} times the delay without it", measured.words());
    let met = longest <= REACH.0 && probe <= REACH.1;
    table.row(
        &format!("another namespace: {what}"),
        "met within 2 s, /livez within 1 s",
        words,
        beside.to_owned(),
        met,
    );
}

/// Delays of requests, and the longest of `/livez`, in seconds.
struct Measured {
    delays: Vec<f64>,
    probe: f64,
}

impl Measured {
    fn longest(&self) -> f64 {
        percentile(self.delays.clone(), 1.0)
    }

    fn words(&self) -> String {
        let (median, longest, probe) = (median(self.delays.clone()), self.longest(), self.probe);
        format!("met after {median:.2} s, at most {longest:.2} s; /livez at most {probe:.2} s")
    }

    async fn of(world: &World, attacks: &[Attack]) -> Self {
        let (victim, attacker) = (world.namespace().await, world.namespace().await);
        let kubeconfig = Cluster::get().await.kubeconfig.clone();
        let arguments = ["--namespace", &attacker.name];
        let launch = Launch {
            log: "info",
            arguments: &arguments,
            kubeconfig: Some(&kubeconfig),
            min_fetch_interval: "5s",
            ..Launch::default()
        };
        let controller = Arc::new(Controller::launch(&victim, launch).await);
        for number in 0..REQUESTS {
            victim.create::<TokenCache>(world.manifest(number, json!({}))).await;
        }
        for number in 0..REQUESTS {
            victim.await_ready(&name(number), true, "Fetched").await;
        }
        let longest = watch_probes(&controller);
        let mut connections = Vec::new();
        for attack in attacks {
            match attack {
                Attack::Objects(manifest) => {
                    for number in 0..OBJECTS {
                        attacker.create::<TokenCache>(manifest(world, number)).await;
                    }
                }
                Attack::Connections(number) => {
                    for _ in 0..*number {
                        connections.extend(TcpStream::connect(controller.admin()).await);
                    }
                }
            }
        }
        let mut delays = Vec::new();
        for number in 0..REQUESTS {
            delays.push(delay(&victim, &name(number)).await.as_secs_f64());
            pass(Duration::from_secs(1)).await;
        }
        let probe = longest.lock().as_secs_f64();
        match Arc::try_unwrap(controller) {
            Ok(controller) => drop(controller.terminate().await),
            Err(controller) => drop(controller),
        }
        Self { delays, probe }
    }
}

async fn delay(victim: &Namespace, name: &str) -> Duration {
    let asked = Instant::now();
    victim.request(name, "now").await;
    let met = |cache: &TokenCache| cache.seen().handled_request.as_deref() == Some("now");
    victim.await_cache(name, "the request is met", met).await;
    asked.elapsed()
}

fn watch_probes(controller: &Arc<Controller>) -> Arc<Mutex<Duration>> {
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let (seen, controller) = (longest.clone(), Arc::downgrade(controller));
    tokio::spawn(async move {
        while let Some(controller) = controller.upgrade() {
            let asked = Instant::now();
            let _ = controller.ask_probes("/livez").await;
            {
                let mut longest = seen.lock();
                *longest = longest.max(asked.elapsed());
            }
            drop(controller);
            pass(Duration::from_millis(100)).await;
        }
    });
    longest
}

fn http(kind: &str, number: usize, http: Value, target: Value) -> Value {
    json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
        "metadata": {"name": format!("{kind}-{number}")}, "spec": {"fetch": {"http": http}, "target": target},
    })
}

fn expressions(_: &World, number: usize) -> Value {
    let data: serde_json::Map<_, _> =
        (0..16).map(|n| (format!("k{n}"), Value::from(format!("[{number},{n}{}]", ",1".repeat(985))))).collect();
    let source = json!({"url": "http://127.0.0.1:1/", "result": {"token": "response.body"}});
    http("expressions", number, source, json!({ "data": data }))
}

fn names(_: &World, number: usize) -> Value {
    let url = format!("http://no-such-name-{number}.invalid/");
    http("names", number, json!({"url": url, "result": {"token": "response.body"}}), json!({}))
}

fn responses(world: &World, number: usize) -> Value {
    let url = world.server(number).url(&format!("large-{number}"));
    let result = json!({"token": "response.json.access_token", "expiresAt": "string(now + duration('1s'))"});
    http("responses", number, json!({"url": url, "method": "POST", "result": result}), json!({}))
}

fn hanging(world: &World, number: usize) -> Value {
    let url = world.server(number).url(&format!("hanging-{number}"));
    let mut manifest = http("hanging", number, json!({"url": url, "result": {"token": "response.body"}}), json!({}));
    manifest["spec"]["fetch"]["timeout"] = "10m".into();
    manifest
}

fn large_specs(world: &World, number: usize) -> Value {
    let url = world.server(number).url(&format!("spec-{number}"));
    let form: Vec<_> = (0..7).map(|n| json!({"name": format!("p{n}"), "value": "x".repeat(16_000)})).collect();
    let result = json!({"token": "response.json.access_token"});
    http("spec", number, json!({"url": url, "form": form, "result": result}), json!({}))
}

fn short_lives(world: &World, number: usize) -> Value {
    let url = world.server(number).url(&format!("short-{number}"));
    let result = json!({"token": "'t'", "expiresAt": "string(now + duration('1s'))"});
    http("short", number, json!({"url": url, "method": "POST", "result": result}), json!({}))
}
