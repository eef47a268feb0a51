//! The Secrets of former values of `target.name`: they are removed once the Secret of the name that the spec has now holds a
//! value, and status names it.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::reconcile::Context;
use crate::{
    api::TokenCache,
    fetch::fetch_hash,
    k8s::{ApiError, object::ObjectKey},
    reconcile::{desired_secret::holds_value, plan::Observed, write_secret::remove_former},
};

/// How long to wait after a removal that the API server refused.
const REFUSED: Duration = Duration::from_secs(300);

impl Context {
    /// The names of the Secrets with values of this TokenCache, other than `current`. They are found by their owner: status
    /// may be lost, or written by anyone who may patch it.
    pub(super) fn former_secrets(&self, key: &ObjectKey, cache: &ObjectMeta, current: &str) -> Vec<String> {
        let former = self.secrets.of(key, current).into_iter();
        let former = former.filter(|secret| secret.deletion_timestamp.is_none() && holds_value(cache, secret));
        former.filter_map(|secret| secret.name).collect()
    }

    /// Removes the Secrets of former names where they are not needed any more. Gives when to look again.
    pub(super) async fn remove_former_secrets(
        &self,
        key: &ObjectKey,
        cache: &TokenCache,
        seen: &Observed<'_>,
    ) -> Result<Option<Duration>, ApiError> {
        if !is_in_place(seen) {
            return Ok(None);
        }
        let mut wake = None;
        for former in self.former_secrets(key, &cache.metadata, cache.secret_name()) {
            match remove_former(&self.runner.client, key, cache, &former).await {
                Ok(()) => {}
                Err(error) if error.is_retryable() => return Err(error),
                Err(error) => {
                    let (namespace, name) = key;
                    tracing::warn!(
                        namespace, name, former, %error, "the Secret of the former target.name was not removed"
                    );
                    wake = Some(REFUSED);
                }
            }
        }
        Ok(wake)
    }
}

/// Whether the Secret of the name that the spec has holds a value for that spec, and status names it.
fn is_in_place(seen: &Observed<'_>) -> bool {
    let reported = seen.cache.status.as_ref().and_then(|status| status.secret_name.as_deref());
    let current = seen
        .stored()
        .is_some_and(|stored| stored.lifetime.is_some() && stored.fetch_hash == fetch_hash(&seen.cache.spec));
    current && reported == Some(seen.cache.secret_name()) && seen.invalid.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::fixtures::{cache, lifetime, observed, stored};

    #[test]
    fn former_secrets_are_kept_until_the_new_one_holds_a_value_and_status_names_it() {
        let spec = json!({"target": {"name": "new"}});
        let reported = cache(spec.clone(), json!({"secretName": "new"}));
        let value = stored(&reported, lifetime(0.0, 100.0));
        assert!(is_in_place(&observed(&reported, Some(value.clone()))));
        assert!(!is_in_place(&observed(&reported, None)), "whatever a status says that somebody forged");
        let other = cache(json!({"target": {"name": "other"}}), json!(null));
        let of_another_spec = stored(&other, lifetime(0.0, 100.0));
        assert!(!is_in_place(&observed(&reported, Some(of_another_spec))));
        for status in [json!(null), json!({"secretName": "old"})] {
            let unreported = cache(spec.clone(), status);
            assert!(!is_in_place(&observed(&unreported, Some(value.clone()))));
        }
    }
}
