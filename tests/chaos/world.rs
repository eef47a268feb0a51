//! Everything that a run is made of: controllers in their slots, each with its own way to the API server, and the
//! token server behind its door.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::Mutex;

use super::{
    faults::well,
    schedule::SLOTS,
    weather::{Scope, Weather},
};
use crate::support::{
    Cluster, Controller, Door, FlakyApi, Launch, Namespace, Trouble, faketime,
    manifests::{CREDENTIALS, source_secret},
    namespace::Object,
    server::{Options, TokenServer},
};

/// Limit of one fetch.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause after failures.
pub const RETRY: Duration = Duration::from_secs(2);
/// Duration of the Leases: short, so that many are taken over in a run.
pub const LEASE: Duration = Duration::from_secs(5);

/// All of it.
pub struct World {
    /// The namespace.
    pub ns: Namespace,
    /// All TokenCaches.
    pub names: Vec<String>,
    /// What was wrong, and when.
    pub weather: Weather,
    /// The token server.
    pub server: TokenServer,
    /// The way to it.
    pub door: Door,
    /// The controllers' ways to the API server.
    pub ways: Vec<FlakyApi>,
    /// Held while a part of the control plane is in trouble, so that it is one at a time.
    pub plane: Mutex<()>,
    /// For who looks on.
    onlooker: Client,
    slots: Vec<Mutex<Option<Controller>>>,
    /// Held while the controller of a slot is in trouble, until one is ready again.
    turns: Vec<Mutex<()>>,
    /// How far the clocks of the next controllers in the slots are off.
    clocks: parking_lot::Mutex<[Option<&'static str>; SLOTS]>,
    /// Who was in which slot.
    identities: parking_lot::Mutex<Vec<(String, usize)>>,
    /// The processes of all of them.
    pids: parking_lot::Mutex<Vec<u32>>,
}

impl World {
    /// With all controllers at work.
    pub async fn new(seed: u64, names: Vec<String>) -> Arc<Self> {
        let server = TokenServer::start(Options::default()).expect("a token server");
        names.iter().for_each(|name| server.set(name, well(name)));
        let address = server.base().trim_start_matches("http://").parse().expect("an address");
        let ns = Namespace::new().await;
        ns.recorder().expect("a run is recorded").counts_requests(server.observer());
        ns.create::<Secret>(source_secret(CREDENTIALS, &server.options().client_secret, true)).await;
        let mut ways = Vec::new();
        for slot in 0..SLOTS as u64 {
            ways.push(FlakyApi::start(&ns, seed.wrapping_add(slot), Trouble::default()).await);
        }
        let world = Self {
            onlooker: Cluster::get().await.impatient().await,
            weather: Weather::new(),
            door: Door::start(address).await,
            plane: Mutex::default(),
            slots: (0..SLOTS).map(|_| Mutex::default()).collect(),
            turns: (0..SLOTS).map(|_| Mutex::default()).collect(),
            clocks: parking_lot::Mutex::default(),
            identities: parking_lot::Mutex::default(),
            pids: parking_lot::Mutex::default(),
            ns,
            names,
            server,
            ways,
        };
        for slot in 0..SLOTS {
            world.start(slot).await;
        }
        Arc::new(world)
    }

    /// The objects of one type, for who looks on.
    pub fn seen<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.onlooker.clone(), &self.ns.name)
    }

    /// Where a TokenCache's tokens come from.
    pub fn url(&self, cache: &str) -> String {
        format!("http://{}/c/{cache}/token", self.door.address)
    }

    /// Starts a controller in a slot, and waits until it is ready.
    async fn start(&self, slot: usize) {
        let mut place = self.slots[slot].lock().await;
        let lease = format!("{}s", LEASE.as_secs());
        // A quarter of it may go to one destination, and there is only one.
        let arguments = ["--lease-duration", &lease, "--concurrency", "256"];
        let kubeconfig = Some(self.ways[slot].kubeconfig());
        let clock = self.clocks.lock()[slot];
        let launch = Launch { arguments: &arguments, kubeconfig, clock, log: "info", ..Launch::default() };
        let controller = Controller::spawn(&self.ns, launch).await;
        self.identities.lock().push((controller.identity.clone(), slot));
        self.pids.lock().push(controller.pid());
        controller.ready().await;
        *place = Some(controller);
    }

    /// Who was in which slot.
    pub fn identities(&self) -> Vec<(String, usize)> {
        self.identities.lock().clone()
    }

    /// The processes of all controllers so far.
    pub fn pids(&self) -> Vec<u32> {
        self.pids.lock().clone()
    }

    /// SIGKILL; another one is started after a while.
    pub async fn kill(&self, slot: usize, down: Duration) {
        let _turn = self.turns[slot].lock().await;
        let away = self.weather.begin(Scope::Slot(slot));
        let controller = self.slots[slot].lock().await.take().expect("a controller");
        self.weather.for_ever(Scope::Dead(controller.identity.clone()));
        controller.kill().await;
        tokio::time::sleep(down).await;
        self.start(slot).await;
        away.end();
    }

    /// From now on, the controllers of this slot see another time: the one that is there ends, and one with such a clock
    /// is started.
    pub async fn misset(&self, slot: usize, off: &'static str) {
        if faketime().is_none() {
            println!("    no clock is off, since there is no faketime: hack/faketime.sh");
        } else {
            let mut clocks = self.clocks.lock();
            // Where another one's clock was off, the next controller there has a right one.
            *clocks = std::array::from_fn(|it| (it == slot).then_some(off));
        }
        self.terminate(slot).await;
    }

    /// SIGSTOP, and SIGCONT after a while.
    pub async fn freeze(&self, slot: usize, length: Duration) {
        let _turn = self.turns[slot].lock().await;
        let away = self.weather.begin(Scope::Slot(slot));
        let place = self.slots[slot].lock().await;
        let controller = place.as_ref().expect("a controller");
        let frozen = self.weather.begin(Scope::Frozen(controller.identity.clone()));
        controller.stop();
        tokio::time::sleep(length).await;
        controller.cont();
        frozen.end();
        away.end();
    }

    /// SIGTERM; another one is started once it has ended.
    pub async fn terminate(&self, slot: usize) {
        let _turn = self.turns[slot].lock().await;
        let away = self.weather.begin(Scope::Slot(slot));
        let controller = self.slots[slot].lock().await.take().expect("a controller");
        let identity = controller.identity.clone();
        let (status, _) = controller.terminate().await;
        assert!(status.success(), "{identity} ended on SIGTERM with {status}");
        self.weather.for_ever(Scope::Dead(identity));
        self.start(slot).await;
        away.end();
    }

    /// Ends all controllers in good order.
    pub async fn end(&self) {
        for slot in &self.slots {
            slot.lock().await.take().expect("a controller").terminate().await;
        }
    }
}
