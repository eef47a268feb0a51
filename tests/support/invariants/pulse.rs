//! How busy the machine is: four times a second a request is sent to the API server, and timed.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::timeline::now;
use crate::support::{in_background, spans::Span};

const PAUSE: Duration = Duration::from_millis(250);
/// What a controller does until others see it (a timer, requests that wait for their turn, the event of a watch) takes as
/// long as so many pulses at most.
const STEPS: f64 = 6.0;

/// When a pulse was due, and how many seconds later it was answered.
#[derive(Clone, Debug, Default)]
pub struct Pulses(pub Arc<Mutex<Vec<(f64, f64)>>>);

impl Pulses {
    /// Those of this process, which begin with the first call.
    pub fn of_process(client: &Client) -> Self {
        static PULSES: LazyLock<Pulses> = LazyLock::new(Pulses::default);
        static BEGUN: std::sync::Once = std::sync::Once::new();
        BEGUN.call_once(|| in_background(beat(client.clone(), PULSES.clone())));
        PULSES.clone()
    }

    /// How much more time anything may take in this span, in seconds.
    pub fn allowance(&self, span: Span) -> f64 {
        let pulses = self.0.lock();
        let near = pulses.iter().rev().skip_while(|(due, _)| *due > span.to + 1.0);
        let near = near.take_while(|(due, late)| due + late > span.from - 1.0);
        near.map(|(_, late)| late * STEPS).fold(0.0, f64::max)
    }
}

async fn beat(client: Client, pulses: Pulses) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let map = serde_json::from_value(json!({"metadata": {"generateName": "pulse-"}})).expect("a ConfigMap");
    let params = PostParams { dry_run: true, ..PostParams::default() };
    loop {
        let (due, start) = (now() + PAUSE.as_secs_f64(), Instant::now());
        tokio::time::sleep(PAUSE).await;
        // An API server that refuses it is as busy as one that does not.
        let _ = maps.create(&params, &map).await;
        let late = start.elapsed().saturating_sub(PAUSE).as_secs_f64();
        pulses.0.lock().push((due, late));
    }
}
