//! Writes `status`, and says by events what became new by it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    api::{READY, STALLED, TokenCache, TokenCacheStatus, condition, names::FIELD_MANAGER, reason::Reason},
    k8s::{ApiError, call, events::Events, live, object::ObjectKey},
};

/// Writes status and events.
#[derive(Clone)]
pub struct Reporter {
    /// For the API.
    pub client: Client,
    /// For what became new.
    pub events: Events,
}

/// The answer to a write, in which nothing is looked for.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = TokenCache)]
struct Unread {
    #[serde(skip)]
    metadata: ObjectMeta,
}

/// A conflict is looked at again this often, since consumers write to the status as well.
const TRIES: usize = 5;

impl Reporter {
    /// Writes the status that `wanted` makes of the TokenCache as it is. Nothing is sent where nothing changes.
    ///
    /// Only the TokenCache as it was seen is written to. After a conflict it is read again, and `wanted` may say by
    /// `None` that there is nothing to report any more.
    ///
    /// # Errors
    /// When the API server fails.
    pub fn report(
        &self,
        key: &ObjectKey,
        seen: &TokenCache,
        wanted: impl Fn(&TokenCache) -> Option<TokenCacheStatus>,
    ) -> impl Future<Output = Result<bool, ApiError>> {
        // On the heap: it is large, and all looks and runs hold one.
        Box::pin(async move {
            let mut fresh: Option<TokenCache> = None;
            for _ in 0..TRIES {
                let cache = fresh.as_ref().unwrap_or(seen);
                let Some(status) = wanted(cache) else { return Ok(false) };
                match self.write(key, cache, &status).await {
                    Ok(written) => return Ok(written),
                    Err(error) if error.code() == Some(409) => {}
                    Err(error) if error.code() == Some(404) => return Ok(false),
                    Err(error) => return Err(error),
                }
                fresh = live(&self.client, key).await?.filter(|cache| cache.metadata.uid == seen.metadata.uid);
                if fresh.is_none() {
                    return Ok(false);
                }
            }
            tracing::debug!(
                namespace = key.0,
                name = key.1,
                "the status was left to a later look after many conflicts"
            );
            Ok(false)
        })
    }

    async fn write(
        &self,
        (namespace, name): &ObjectKey,
        cache: &TokenCache,
        status: &TokenCacheStatus,
    ) -> Result<bool, ApiError> {
        let old = cache.status.clone().unwrap_or_default();
        let Some(change) = change(&old, status) else { return Ok(false) };
        let patch = json!({
            "metadata": { "uid": cache.metadata.uid, "resourceVersion": cache.metadata.resource_version },
            "status": change,
        });
        let api = Api::<Unread>::namespaced(self.client.clone(), namespace);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        call(api.patch_status(name, &params, &Patch::Merge(patch))).await?;
        for (reason, note) in news(&old, status) {
            self.events.publish(cache, reason, &note).await;
        }
        Ok(true)
    }
}

/// The merge patch from one status to another: what changed, with null for what is gone.
fn change(old: &TokenCacheStatus, new: &TokenCacheStatus) -> Option<Value> {
    if old == new {
        return None;
    }
    let object = |status| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (object(old), object(new));
    let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed: Map<String, Value> = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(value))
        .map(|(k, v)| (k.clone(), v.clone()))
        .chain(gone)
        .collect();
    (!changed.is_empty()).then_some(Value::Object(changed))
}

/// What an event is to be published about: expiry, a Secret that was cleared, a refusal.
fn news(old: &TokenCacheStatus, new: &TokenCacheStatus) -> Vec<(Reason, String)> {
    let message = |type_: &str| {
        let condition = new.conditions.iter().find(|condition| condition.type_ == type_);
        condition.map(|condition| condition.message.clone()).unwrap_or_default()
    };
    let (was, is) = (condition(Some(old), READY), condition(Some(new), READY));
    let mut news = Vec::new();
    let became = |reason: Reason| {
        is.is_some_and(|(_, is)| is == reason.as_str()) && was.is_some_and(|(_, was)| was != reason.as_str())
    };
    if became(Reason::Expired) {
        news.push((Reason::Expired, message(READY)));
    }
    if became(Reason::Cleared) {
        news.push((Reason::Cleared, "the Secret was deleted".into()));
    }
    let stalled = condition(Some(new), STALLED).and_then(|(_, reason)| Reason::refusal(reason));
    if let Some(reason) = stalled
        && condition(Some(old), STALLED) != condition(Some(new), STALLED)
    {
        news.push((reason, message(STALLED)));
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_sent_and_what_is_gone_is_sent_as_null() {
        let old = TokenCacheStatus { runs: 1, failures: 2, handled_request: Some("a".into()), ..Default::default() };
        let new = TokenCacheStatus { runs: 2, failures: 2, ..Default::default() };
        assert_eq!(change(&old, &new), Some(json!({ "runs": 2, "handledRequest": null })));
        assert_eq!(change(&new, &new), None);
    }
}
