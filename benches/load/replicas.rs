//! Several replicas: how often they get in each other's way, and how soon one takes over from another.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use futures::future::join_all;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::json;
use tokencache::api::TokenCache;

use crate::{
    process::Sample,
    seed::{PACE, pass_until, seed_paced},
    support::{Controller, pass, server::Behaviour, within},
    table::{Table, list},
    world::{World, name},
};

/// The controllers' default.
const LEASE: f64 = 15.0;
/// How many seconds a value rests before it is renewed.
const REST: usize = 10;
/// How many seconds it lives.
const LIFETIME: u64 = 100;

/// Lost acquisitions with 2 and 3 replicas, and takeover.
pub async fn measure(world: &World, table: &mut Table) {
    for replicas in [2, 3] {
        let ns = world.namespace().await;
        world.issue_for(PACE * REST, Some(LIFETIME));
        let start = seed_paced(world, &ns, PACE * REST, LIFETIME as i64 - REST as i64).await;
        let mut controllers = Vec::new();
        for _ in 0..replicas {
            let controller = world.controller(&ns).await;
            controller.ready().await;
            controllers.push(controller);
        }
        // They have met each other by then.
        pass_until(start, start + TimeDelta::seconds(15)).await;
        let before = join_all(controllers.iter().map(Sample::take)).await;
        pass(world.settings.window).await;
        let after = join_all(controllers.iter().map(Sample::take)).await;
        let since = |count: &dyn Fn(&Sample) -> f64| -> f64 {
            after.iter().map(count).sum::<f64>() - before.iter().map(count).sum::<f64>()
        };
        let runs = since(&Sample::fetches);
        let lost = since(&|sample| sample.acquisitions("busy")) / runs;
        let idle = since(&|sample| sample.acquisitions("acquired")) / runs - 1.0;
        let rate = runs / world.settings.window.as_secs_f64();
        let measured = format!(
            "{:.2} % of {runs} runs ({rate:.0} a second), and {:.2} % found nothing to do",
            lost * 100.0,
            idle.max(0.0) * 100.0
        );
        let what = format!("lost acquisitions, {replicas} replicas");
        table.row(&what, "under 5 % of runs", measured, String::new(), lost < 0.05);
        join_all(controllers.into_iter().map(Controller::terminate)).await;
        world.issue_for(PACE * REST, None);
    }
    takeover(world, table).await;
}

async fn takeover(world: &World, table: &mut Table) {
    let mut times = Vec::new();
    for round in 0..world.settings.rounds {
        let ns = world.namespace().await;
        let mut controllers = vec![world.controller(&ns).await, world.controller(&ns).await];
        for controller in &controllers {
            controller.ready().await;
        }
        let number = 900_000 + round;
        let (server, name) = (world.server(number), name(number));
        server.set(&name, Behaviour::Hang);
        ns.create::<TokenCache>(world.manifest(number, json!({}))).await;
        within("the run begins", server.await_requests(&name, 1)).await;
        let lease: Lease = ns.get(&format!("tokencache-{name}")).await;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).expect("a holder");
        // Until the other has seen the Lease held, and the holder has renewed it.
        pass(Duration::from_secs(7)).await;
        let at = controllers.iter().position(|one| holder.starts_with(&one.identity)).expect("a controller of ours");
        let killed = Instant::now();
        controllers.swap_remove(at).kill().await;
        within("another one's request", server.await_requests(&name, 2)).await;
        times.push(killed.elapsed().as_secs_f64());
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    let measured = format!("{worst:.1} s at worst ({})", list(&times));
    table.row("takeover after SIGKILL", "within 15 s + 2 s", measured, String::new(), worst <= LEASE + 2.0);
}
