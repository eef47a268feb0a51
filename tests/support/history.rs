//! All versions of a TokenCache, as a watch brings them.

use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{WatchEvent, WatchParams};
use tokencache::api::TokenCache;

use super::{Namespace, in_background, version};

/// The versions of a TokenCache since it was begun.
pub struct History {
    versions: Arc<Mutex<Vec<TokenCache>>>,
}

impl History {
    /// Begins with the version that there is now.
    pub async fn of(ns: &Namespace, name: &str) -> Self {
        let api = ns.api::<TokenCache>();
        let first = ns.get::<TokenCache>(name).await;
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let events = api.watch(&params, &version(&first)).await.expect("a watch");
        let versions = Arc::new(Mutex::new(vec![first]));
        let kept = versions.clone();
        in_background(async move {
            let mut events = events.boxed();
            while let Ok(Some(event)) = events.try_next().await {
                if let WatchEvent::Added(cache) | WatchEvent::Modified(cache) = event {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
                }
            }
        });
        Self { versions }
    }

    /// How many there are by now.
    pub fn len(&self) -> usize {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All of them.
    pub fn versions(&self) -> Vec<TokenCache> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
