//! A run from its beginning to its end: all that is planned happens, then there is peace, then it is counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt as _;
use tokencache::api::TokenCache;
use tokio::{task::JoinSet, time::sleep};

use super::{
    book::{Book, Held},
    canary,
    count::Counts,
    excuse::Excuses,
    exempt::exemptions,
    eyes::Eyes,
    faults::happen,
    jobs,
    kinds::{self, Kinds},
    population::{create, name, touch},
    schedule::{Planned, faults, touches},
    world::{LEASE, World},
};
use crate::support::{CacheView as _, Invariant, invariants, recorded, spans::Span};

/// After this, all is well again.
const PEACE: Duration = Duration::from_secs(30);
/// Of a hundred tokens, so many may have been fetched in vain, while processes die in the middle of runs.
const WASTE: usize = 10;
/// Share of the time in which a Secret may hold an expired value although nothing excuses it: a machine that others use
/// as well does not always give a process its turn in the two seconds that are left when a value is due.
const LATE: f64 = 0.005;
/// The same for one Secret at a stretch, in seconds.
const LATEST: f64 = 3.0;

/// What the environment says, or the default.
pub fn setting<T: FromStr<Err: Debug>>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error:?}")))
}

#[test]
fn tokens_stay_fresh_whatever_happens() {
    recorded(async {
        let seed: u64 = setting("TOKENCACHE_CHAOS_SEED", rand::random());
        let seconds: f64 = setting("TOKENCACHE_CHAOS_SECONDS", 120.0);
        let caches: usize = setting("TOKENCACHE_CHAOS_CACHES", 40);
        println!("TOKENCACHE_CHAOS_SEED={seed} TOKENCACHE_CHAOS_SECONDS={seconds} TOKENCACHE_CHAOS_CACHES={caches}");
        let names: Vec<String> = (0..caches).map(name).chain(kinds::names(caches)).collect();
        let world = World::new(seed, names).await;
        let eyes = Eyes::open(&world);
        canary::sing(&world).await;
        let plain = &world.names[..caches];
        stream::iter(plain).for_each_concurrent(16, |name| create(&world, name)).await;
        Box::pin(world.ns.await_all_ready(plain)).await;
        println!("{:7.1} s: {caches} TokenCaches are Ready", world.weather.now());

        let mut others = Kinds::begin(&world, caches).await;
        // The time to be at peace is part of the run.
        wreak(&world, seed, seconds - PEACE.as_secs_f64(), caches).await;
        println!("{:7.1} s: peace", world.weather.now());
        others.end().await;
        sleep(PEACE).await;
        let not_ready = still_not_ready(&world, &eyes).await;
        let end = world.weather.now();
        let mut book = eyes.book();
        let excuses = Excuses::new(&world.weather, &world.identities());
        let exempt = exemptions(&world, &book, &excuses, end);
        book.retain(|name, _| is_kept_fresh(name));
        let mut counts = Counts::of(&world, &excuses, &book, end);
        counts.not_ready = not_ready;
        counts.kinds = others.judge(&world).await;
        counts.leases = held_too_long(&book, end);
        counts.invariants = violations(&world, exempt);
        world.end().await;
        counts.leases.extend(left_behind(&world).await);
        println!("{:7.1} s: counted\n{counts}", world.weather.now());
        judge(&counts, &world, seed);
    });
}

/// Whether the Secret of this name has to hold a valid value all the time.
fn is_kept_fresh(name: &str) -> bool {
    name.starts_with('t') || jobs::is_job(name)
}

/// The invariants that did not hold, and are not excused.
fn violations(world: &World, exempt: Vec<(Invariant, String, Span)>) -> Vec<String> {
    let recorder = world.ns.recorder().expect("a run is recorded");
    recorder.finish();
    let mut timeline = recorder.timeline();
    timeline.exemptions.extend(exempt);
    invariants::judge(&timeline)
        .iter()
        .map(|violation| {
            let at = world.weather.at_unix(violation.span.from);
            format!("from {at:.1} s: {violation}")
        })
        .collect()
}

/// Lets all happen that is planned, each at its time.
async fn wreak(world: &Arc<World>, seed: u64, seconds: f64, caches: usize) {
    let start = tokio::time::Instant::now();
    let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
    let mut happening = JoinSet::new();
    let touched = world.clone();
    happening.spawn(async move {
        let mut touching = JoinSet::new();
        for Planned { at: when, what: (index, what) } in touches(seed, seconds, caches) {
            tokio::time::sleep_until(start + Duration::from_secs_f64(when)).await;
            let world = touched.clone();
            touching.spawn(async move { touch(&world, index, what).await });
        }
        touching.join_all().await;
    });
    for Planned { at: when, what } in faults(seed, seconds, LEASE) {
        tokio::time::sleep_until(at(when)).await;
        println!("{:7.1} s: {what:?}", world.weather.now());
        let world = world.clone();
        happening.spawn(async move { happen(&world, what).await });
    }
    happening.join_all().await;
    let rest = at(seconds).saturating_duration_since(tokio::time::Instant::now());
    sleep(rest).await;
}

/// What the TokenCaches say that are not Ready, and which are not there.
async fn not_ready(world: &World) -> Vec<String> {
    let found: Vec<TokenCache> = world.ns.list().await;
    let there: BTreeSet<String> = found.iter().map(|cache| cache.name_any()).collect();
    let gone = world.names.iter().filter(|name| !there.contains(*name)).map(|name| format!("{name} is not there"));
    // The others are judged by themselves.
    let not = found.iter().filter(|cache| is_kept_fresh(&cache.name_any()) && !cache.ready().0);
    not.map(|cache| format!("{} says {}: {}", cache.name_any(), cache.ready().1, cache.message())).chain(gone).collect()
}

/// Those that are not Ready, or whose Secret has no valid value, and do not become so within the time that a renewal
/// may take that is just under way.
async fn still_not_ready(world: &World, eyes: &Eyes) -> Vec<String> {
    let mut missing: Option<BTreeMap<String, String>> = None;
    for _ in 0..10 {
        let mut now = without_value(world, &eyes.book());
        // What the object says tells more.
        now.append(&mut not_ready(world).await);
        let now: BTreeMap<String, String> =
            now.into_iter().map(|said| (said.split(' ').next().unwrap_or_default().to_owned(), said)).collect();
        let before = missing.get_or_insert_with(|| now.clone());
        before.retain(|name, _| now.contains_key(name));
        if before.is_empty() {
            break;
        }
        sleep(Duration::from_millis(500)).await;
    }
    missing.unwrap_or_default().into_values().collect()
}

/// The TokenCaches without a Secret that holds a valid value.
fn without_value(world: &World, book: &Book) -> Vec<String> {
    let now = world.weather.now();
    let held = |name: &String| book.get(name).and_then(|page| page.held.last()).map(|(_, held)| *held);
    let valid = |name: &String| matches!(held(name), Some(Held::Value { expires, .. }) if expires > now);
    let kept = world.names.iter().filter(|name| is_kept_fresh(name) && !valid(name));
    kept.map(|name| format!("{name} holds {:?}", held(name))).collect()
}

/// The Leases that one attempt has held since long ago: a run takes as long as a fetch at most.
fn held_too_long(book: &Book, now: f64) -> Vec<String> {
    let last = |page: &super::book::Page| page.holders.last().cloned();
    let held = book.iter().filter_map(|(name, page)| {
        let (since, holder) = last(page)?;
        (now - since > 2.0 * LEASE.as_secs_f64()).then_some((name, holder?, since))
    });
    held.map(|(name, holder, since)| format!("{name} is held by {holder} since {since:.1} s")).collect()
}

/// The Leases that are held when no controller is there any more, and those without a TokenCache.
async fn left_behind(world: &World) -> Vec<String> {
    let caches: Vec<TokenCache> = world.ns.list().await;
    let owners: BTreeMap<Option<String>, String> =
        caches.iter().map(|cache| (cache.metadata.uid.clone(), cache.name_any())).collect();
    let leases: Vec<Lease> = world.ns.list().await;
    let left = leases.iter().filter(|lease| lease.name_any() != "canary").filter_map(|lease| {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let owner = lease.owner_references().first().map(|owner| owner.uid.clone());
        let owned = owners.contains_key(&owner);
        (!holder.is_empty() || !owned).then(|| format!("{}: holder {holder:?}, owned {owned}", lease.name_any()))
    });
    left.collect()
}

/// Ends the test if a count is not as it should be, with the last words of the controllers about what is concerned.
fn judge(counts: &Counts, world: &World, seed: u64) {
    let mut wrong = Vec::new();
    let mut want = |holds: bool, what: &str| {
        if !holds {
            wrong.push(what.to_owned());
        }
    };
    want(counts.met.is_empty(), "one request of a cache inside at once");
    want(counts.older.is_empty(), "no Secret overwritten by an older value");
    want(
        counts.expired_seconds() <= counts.judged * LATE,
        "hardly a second with an expired value that nothing excuses",
    );
    want(counts.longest_expired() < LATEST, "no Secret with an expired value for long that nothing excuses");
    want(counts.wasted * 100 <= counts.issued * WASTE, "few tokens in vain");
    want(counts.early.len() * 100 <= counts.issued, "few runs before their time");
    want(counts.not_ready.is_empty(), "all Ready 30 s after peace");
    want(counts.leases.is_empty(), "no Lease left behind");
    want(counts.kinds.is_empty(), "the objects of further kinds as they should be");
    want(counts.invariants.is_empty(), "all invariants hold");
    // One duration after somebody first looked, who looks at the latest when the value is due.
    want(counts.longest_held() < 40.0, "no dead holder keeps a Lease for long");
    if !wrong.is_empty() {
        let folder = write_logs(world, seed);
        panic!("seed {seed}: not so: {}; the controllers' logs are in {folder}", wrong.join("; "));
    }
}

/// Writes the controllers' logs to a folder, whose path it tells.
fn write_logs(world: &World, seed: u64) -> String {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}"));
    std::fs::create_dir_all(&folder).expect("a folder");
    for (name, text) in world.ns.logs() {
        std::fs::write(folder.join(name.replace(' ', "-")), text).expect("a log is written");
    }
    folder.display().to_string()
}
