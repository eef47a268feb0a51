//! What one controller costs.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use tokencache::api::TokenCache;

use crate::{
    crowd::{all_ready, for_all, rate_of},
    floor::{Known, first_run, valid_for},
    process::{Sample, cpu as cpu_of, memory, peak_memory, ready},
    seed::{HOUR, PACE, pass_until, planned, seed, seed_paced},
    support::{Namespace, pass, poll, within},
    table::{Table, list, median, percentile},
    world::{World, client_of, name},
};

/// How long the values live that are refreshed as fast as it goes, and how far from its end each is renewed: it rests for
/// about five seconds, the least that is possible.
const SHORT: (u64, &str) = (100, "94s");
/// How far from its end a value is renewed where lateness is measured.
const RESERVE: i64 = 600;

/// New TokenCaches until all are Ready.
pub async fn new(world: &World, table: &mut Table) {
    let count = world.settings.new;
    let (mut floors, mut times) = (Vec::new(), Vec::new());
    for _ in 0..world.settings.rounds {
        floors.push(new_by_bare_calls(world, count).await);
        times.push(new_by_controller(world, count).await);
    }
    let (floor, time) = (median(floors.clone()), median(times.clone()));
    let what = format!("{count} new TokenCaches until all are Ready");
    let measured = format!("{:.2} times the floor's time: {time:.1} s ({})", time / floor, list(&times));
    let beside = format!("{floor:.1} s ({})", list(&floors));
    table.row(&what, "at most 1.3 times the floor's time", measured, beside, time <= 1.3 * floor);
}

async fn create(world: &World, ns: &Arc<Namespace>, count: usize, then: Option<kube::Client>) {
    let manifests: Arc<Vec<Value>> = Arc::new((0..count).map(|number| world.manifest(number, json!({}))).collect());
    let ns = ns.clone();
    for_all(count, world.settings.concurrency, move |number| {
        let (ns, manifests, then) = (ns.clone(), manifests.clone(), then.clone());
        async move {
            ns.try_create::<TokenCache>(manifests[number].clone()).await.expect("created");
            if let Some(client) = then {
                first_run(&client, &ns.name, &name(number)).await;
            }
        }
    })
    .await;
}

async fn new_by_bare_calls(world: &World, count: usize) -> f64 {
    let ns = world.namespace().await;
    let client = client_of(&ns).await;
    let watch = all_ready(&ns, count).await;
    let begun = Instant::now();
    create(world, &ns, count, Some(client)).await;
    watch.await.expect("all are Ready");
    begun.elapsed().as_secs_f64()
}

async fn new_by_controller(world: &World, count: usize) -> f64 {
    let ns = world.namespace().await;
    let controller = world.controller(&ns).await;
    controller.ready().await;
    let before = Sample::take(&controller).await;
    let watch = all_ready(&ns, count).await;
    let begun = Instant::now();
    create(world, &ns, count, None).await;
    let created = begun.elapsed();
    watch.await.expect("all are Ready");
    let time = begun.elapsed().as_secs_f64();
    let after = Sample::take(&controller).await;
    eprintln!(
        "bench: created after {created:.1?}, Ready after {time:.1} s; the controller used {:.1} s of CPU; {:?}",
        after.cpu_since(&before),
        after.requests_since(&before),
    );
    controller.terminate().await;
    time
}

/// All refresh, as fast as it goes: rate, requests and CPU.
pub async fn refresh(world: &World, table: &mut Table) {
    let (count, window, at_once) = (world.settings.many, world.settings.window, world.settings.concurrency);
    let ns = world.namespace().await;
    // Due when it is looked at.
    seed(world, &ns, 0..count, json!({ "renewBefore": SHORT.1 }), |_| valid_for(SHORT.0 as i64)).await;
    world.issue_for(count, Some(SHORT.0));
    let (mut floors, mut floor_cpus, mut rates, mut cpus) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut writes, mut reads, mut resident) = (Vec::new(), Vec::new(), 0.0);
    for round in 0..world.settings.rounds {
        let known = Known::list(&ns, count).await;
        let (used, begun) = (cpu_of(std::process::id()), Instant::now());
        let floor = rate_of(count, at_once, window, move |number| {
            let known = known.clone();
            async move { known.refresh(number).await }
        })
        .await;
        floor_cpus.push((cpu_of(std::process::id()) - used) / (floor * begun.elapsed().as_secs_f64()) * 1e3);
        floors.push(floor);
        let controller = world.controller(&ns).await;
        controller.ready().await;
        // A controller that has just started must look at what it does not know yet: once for each TokenCache.
        let all = || async { (Sample::take(&controller).await.fetches() >= count as f64).then_some(()) };
        poll(|| async {
            pass(Duration::from_secs(1)).await;
            all().await
        })
        .await;
        let before = Sample::take(&controller).await;
        pass(window).await;
        let after = Sample::take(&controller).await;
        let fetches = after.fetches() - before.fetches();
        assert_eq!(after.all_fetches() - before.all_fetches(), fetches, "some fetches failed:\n{}", controller.log());
        rates.push(fetches / after.seconds_since(&before));
        cpus.push(after.cpu_since(&before) / fetches * 1e3);
        writes.push((after.writes() - before.writes()) / fetches);
        reads.push((after.reads() - before.reads()) / fetches);
        resident = memory(&controller);
        if round == 0 {
            let requests: Vec<String> = after
                .requests_since(&before)
                .into_iter()
                .map(|(labels, number)| format!("{labels} {:.3}", number / fetches))
                .collect();
            eprintln!("bench: requests of each refresh:\n{}", requests.join("\n"));
        }
        controller.terminate().await;
    }
    world.issue_for(count, None);
    let (floor, rate, cpu) = (median(floors.clone()), median(rates.clone()), median(cpus.clone()));
    let (writes, reads) = (median(writes), median(reads));
    let what = format!("{count} TokenCaches, all refreshing");
    let measured = format!("{:.2} of the floor's: {rate:.0} refreshes a second ({})", rate / floor, list(&rates));
    let beside = format!("{floor:.0} a second ({})", list(&floors));
    table.row(&what, "at least 0.8 of the floor's refreshes a second", measured, beside, rate >= 0.8 * floor);
    // The runs at the edges of the window are in one count and not in the other.
    let within = writes < 4.02 && reads < 1.02;
    let measured = format!("{writes:.2} writes, {reads:.2} reads");
    table.row("API requests of a refresh", "4 writes and 1 read", measured, "4 writes, 1 read".into(), within);
    let measured = format!("{cpu:.2} ms ({})", list(&cpus));
    let beside = format!("{:.2} ms ({})", median(floor_cpus.clone()), list(&floor_cpus));
    table.row("controller's CPU time of a refresh", "under 1 ms", measured, beside, cpu < 1.0);
    table.note(&format!("memory while all {count} refresh"), format!("{resident:.0} MiB"));
}

/// A start with values that are all valid, and the memory that they take.
pub async fn idle(world: &World, table: &mut Table) {
    let count = world.settings.many;
    let ns = world.namespace().await;
    seed(world, &ns, 0..count, json!({}), |_| valid_for(24 * HOUR)).await;
    let (mut starts, mut sizes, mut cpu, mut peak) = (Vec::new(), Vec::new(), 0.0, 0.0_f64);
    let (mut idle_writes, fetched) = (0.0, world.fetches());
    for _ in 0..world.settings.rounds {
        let begun = Instant::now();
        let controller = world.controller(&ns).await;
        starts.push(ready(&controller, begun).await.as_secs_f64());
        // Time for whatever it might want to do about any of them.
        pass(Duration::from_secs(10)).await;
        sizes.push(memory(&controller));
        peak = peak.max(peak_memory(&controller));
        let sample = Sample::take(&controller).await;
        cpu = cpu_of(controller.pid());
        idle_writes += sample.writes();
        controller.terminate().await;
    }
    let fetches = world.fetches() - fetched;
    let (start, size) = (median(starts.clone()), median(sizes.clone()));
    let measured = format!("{start:.1} s ({}), {fetches} fetches, {idle_writes} writes", list(&starts));
    let met = start < 5.0 && fetches == 0 && idle_writes == 0.0;
    let what = format!("start with {count} valid TokenCaches");
    table.row(&what, "Ready in under 5 s, no fetch, no write", measured, String::new(), met);
    let measured = format!("{size:.1} MiB ({})", list(&sizes));
    table.row(&format!("memory, {count} idle TokenCaches"), "under 60 MiB", measured, String::new(), size < 60.0);
    table.note("its highest during the start, and CPU time until 10 s after it", format!("{peak:.1} MiB, {cpu:.1} s"));
}

/// How late refreshes come.
pub async fn lag(world: &World, table: &mut Table) {
    let count = world.settings.window.as_secs() as usize * PACE;
    let ns = world.namespace().await;
    let start = seed_paced(world, &ns, count, RESERVE).await;
    let controller = world.controller(&ns).await;
    controller.ready().await;
    pass_until(start, planned(start, count) + TimeDelta::seconds(5)).await;
    let (now, wall) = (Instant::now(), Utc::now());
    let mut lags = Vec::new();
    for number in 0..count {
        let arrivals = world.server(number).arrivals(&name(number));
        // Who has not come by now counts with the time until now.
        let ago =
            arrivals.last().filter(|at| **at + Duration::from_secs(120) > now).map_or(Duration::ZERO, |at| now - *at);
        let at = wall - TimeDelta::from_std(ago).expect("a time");
        lags.push((at - planned(start, number)).as_seconds_f64());
    }
    let (p50, p99, worst) = (percentile(lags.clone(), 0.5), percentile(lags.clone(), 0.99), percentile(lags, 1.0));
    let measured = format!("p99 {p99:.3} s; p50 {p50:.3} s, worst {worst:.3} s; the token server's view");
    let what = format!("lag of a refresh behind its planned moment, {PACE} a second");
    table.row(&what, "p99 under 1 s", measured, String::new(), p99 < 1.0);
    controller.terminate().await;
}
