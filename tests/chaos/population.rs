//! The TokenCaches, and what others do to them.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokencache::api::{
    TokenCache,
    names::{ANNOTATION_EXPIRES_AT, ANNOTATION_REFRESH_REQUESTED},
};
use tokio::time::{sleep, timeout};

use super::{
    rhythm::rhythm,
    schedule::Touch,
    weather::Scope,
    world::{RETRY, TIMEOUT, World},
};
use crate::support::{
    manifests::{merge, token_cache},
    poll,
};

/// For how long a change waits for the API server, which may be away. One that it does not answer may have been made.
const PATIENCE: Duration = Duration::from_secs(3);

/// Name of a TokenCache.
pub fn name(index: usize) -> String {
    format!("t{index}")
}

/// A TokenCache; `change` is merged over its spec.
pub fn manifest(world: &World, name: &str, change: Value) -> Value {
    let text = |duration: Duration| format!("{}s", duration.as_secs());
    let mut settings = json!({
        "fetch": {"timeout": text(TIMEOUT), "oauth2": {"tokenUrl": world.url(name)}},
        "refresh": {"renewBefore": text(rhythm(name).renew_before)},
        "retry": {"initialInterval": "500ms", "maxInterval": text(RETRY)},
    });
    merge(&mut settings, change);
    token_cache(name, &world.server, settings)
}

/// Creates a TokenCache, however often it takes: the API server may be away.
pub async fn create(world: &World, name: &str) {
    insist(|| async {
        let created = match world.ns.try_create::<TokenCache>(manifest(world, name, json!({}))).await {
            Err(kube::Error::Api(status)) => status.is_already_exists(),
            created => created.is_ok(),
        };
        created.then_some(())
    })
    .await;
}

/// Asks again and again until it is done, and for no answer longer than two seconds.
pub async fn insist<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    poll(|| timeout(Duration::from_secs(2), ask()).map(|asked| asked.ok().flatten())).await
}

/// Changes an object, if it and the API server are there just now.
pub async fn patch<K>(objects: &Api<K>, name: &str, change: Value)
where
    K: Clone + DeserializeOwned + Debug,
{
    let (params, change) = (PatchParams::default(), Patch::Merge(change));
    let _ = timeout(PATIENCE, objects.patch(name, &params, &change)).await;
}

/// Does this to a TokenCache or its Secret.
pub async fn touch(world: &Arc<World>, index: usize, touch: Touch) {
    let name = name(index);
    let secrets: Api<Secret> = world.ns.api();
    let caches: Api<TokenCache> = world.ns.api();
    let touched = world.weather.begin(Scope::Touched(name.clone()));
    let (secret, cache) = (|change| patch(&secrets, &name, change), |change| patch(&caches, &name, change));
    let stamp = format!("{:016x}", rand::random::<u64>());
    match touch {
        Touch::DeleteSecret => {
            let _ = timeout(PATIENCE, secrets.delete(&name, &DeleteParams::default())).await;
        }
        Touch::EditData => secret(json!({"stringData": {"token": stamp}})).await,
        Touch::EditExpiry => {
            secret(json!({"metadata": {"annotations": {ANNOTATION_EXPIRES_AT: "2100-01-01T00:00:00Z"}}})).await;
        }
        Touch::EditLabel => secret(json!({"metadata": {"labels": {"example.com/touched": stamp}}})).await,
        Touch::EditCache => cache(json!({"spec": {"fetch": {"oauth2": {"scopes": [stamp]}}}})).await,
        Touch::Request => {
            cache(json!({"metadata": {"annotations": {ANNOTATION_REFRESH_REQUESTED: stamp}}})).await;
        }
        Touch::Renew(away) => {
            let gone = world.weather.begin(Scope::Gone(name.clone()));
            // Only this very one: of an API server that was frozen, a request that was given up may be carried out later.
            let found = insist(|| async { caches.get_opt(&name).await.ok() }).await;
            if let Some(uid) = found.and_then(|cache| cache.uid()) {
                let preconditions = Preconditions { uid: Some(uid), resource_version: None };
                let params = DeleteParams::default().preconditions(preconditions);
                insist(|| async {
                    let deleted = match caches.delete(&name, &params).await {
                        Err(kube::Error::Api(status)) => matches!(status.code, 404 | 409),
                        deleted => deleted.is_ok(),
                    };
                    deleted.then_some(())
                })
                .await;
                world.weather.for_ever(Scope::Deleted(name.clone()));
            }
            sleep(away).await;
            create(world, &name).await;
            gone.end();
        }
    }
    touched.end();
}
