//! TokenCaches with a value, as a controller would have left them.

use std::{ops::Range, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use tokencache::{
    api::{ExpiresAt, TokenCache},
    k8s::object::OwnerRef,
    reconcile::desired_secret::Lifetime,
    time::floor,
};

use crate::{
    crowd::for_all,
    floor::{put_lease, put_secret, report},
    support::{Namespace, pass},
    world::World,
};

/// Many at once, since nothing else goes on.
const AT_ONCE: usize = 64;

/// Creates TokenCaches, their Secrets and status, and Leases that are free. `lifetime` is asked when the value is
/// written.
pub async fn seed(
    world: &World,
    ns: &Arc<Namespace>,
    numbers: Range<usize>,
    refresh: Value,
    lifetime: impl Fn(usize) -> Lifetime + Send + Sync + 'static,
) {
    let (first, count) = (numbers.start, numbers.len());
    let manifests: Vec<Value> = numbers.map(|number| world.manifest(number, refresh.clone())).collect();
    let (ns, given, begun) = (ns.clone(), Arc::new((manifests, lifetime)), std::time::Instant::now());
    for_all(count, AT_ONCE, move |index| {
        let (ns, given) = (ns.clone(), given.clone());
        async move {
            let (manifests, lifetime) = &*given;
            let cache: TokenCache = ns.create(manifests[index].clone()).await;
            let secret = put_secret(ns.client(), &cache, None, lifetime(first + index)).await;
            report(ns.client(), &cache, &secret).await;
            put_lease(ns.client(), &OwnerRef::of(&cache), None, "").await;
        }
    })
    .await;
    eprintln!("bench: {count} TokenCaches with a value after {:.1?}", begun.elapsed());
}

/// How long tokens live, in seconds.
pub const HOUR: i64 = 3600;

/// How many refreshes a second are planned by [`seed_paced`].
pub const PACE: usize = 100;

/// The same, with values that are to be renewed so many seconds before their end, each at its [`planned`] moment. The
/// first of them is given: there is time to start controllers before it, on the slowest machine that this was run on.
pub async fn seed_paced(world: &World, ns: &Arc<Namespace>, count: usize, renew_before: i64) -> DateTime<Utc> {
    let start = floor(Utc::now()) + TimeDelta::seconds(30 + count as i64 / 50);
    seed(world, ns, 0..count, json!({ "renewBefore": format!("{renew_before}s") }), move |number| {
        let expires_at = ExpiresAt::At(planned(start, number) + TimeDelta::seconds(renew_before));
        Lifetime { fetched_at: floor(Utc::now()), expires_at }
    })
    .await;
    start
}

/// When a value is to be renewed, if the first one is at `start`.
pub fn planned(start: DateTime<Utc>, number: usize) -> DateTime<Utc> {
    start + TimeDelta::seconds((number / PACE) as i64)
}

/// Waits for a moment, once all is ready for the first planned one, which must not have come yet.
pub async fn pass_until(start: DateTime<Utc>, moment: DateTime<Utc>) {
    let now = Utc::now();
    assert!(now < start, "the machine is too slow to be ready before the first planned moment");
    pass((moment - now).to_std().unwrap_or_default()).await;
}
