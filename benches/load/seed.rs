//! TokenCaches with a value, as a controller would have left them.

use std::{ops::Range, sync::Arc};

use serde_json::Value;
use tokencache::{api::TokenCache, run::owner, secret::Lifetime};

use crate::{
    crowd::for_all,
    floor::{put_lease, put_secret, report},
    support::Namespace,
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
            put_lease(ns.client(), &owner(&cache), None, "").await;
        }
    })
    .await;
    eprintln!("bench: {count} TokenCaches with a value after {:.1?}", begun.elapsed());
}
