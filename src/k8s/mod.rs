//! The API server: how it is called, and objects as they are read and written. Knows nothing of tokens.

pub mod client;
pub mod error;
#[cfg(feature = "controller")]
pub mod events;
pub mod metadata;
pub mod object;
pub mod secret;
pub mod server_time;
pub mod watch;

use std::time::Duration;

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client};

pub use self::error::ApiError;
use self::object::ObjectKey;
use crate::api::TokenCache;

/// One call's limit. kube's client has none, since watches last.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(10);

/// Limits one call in time.
///
/// # Errors
/// Those of the call, and the timeout.
pub fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> impl Future<Output = Result<T, ApiError>> {
    // On the heap, and at once: all that may make a call would else be as large as the largest of them.
    let request = Box::pin(request);
    async {
        match tokio::time::timeout(CALL_LIMIT, request).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ApiError::Timeout),
        }
    }
}

/// Reads an object live, not from a watch.
///
/// # Errors
/// When the API server fails.
pub async fn live(client: &Client, (namespace, name): &ObjectKey) -> Result<Option<TokenCache>, ApiError> {
    call(Api::<TokenCache>::namespaced(client.clone(), namespace).get_opt(name)).await
}

/// Reads a Secret's metadata live.
///
/// # Errors
/// When the API server fails.
pub async fn live_secret(client: &Client, namespace: &str, name: &str) -> Result<Option<ObjectMeta>, ApiError> {
    let api = Api::<Secret>::namespaced(client.clone(), namespace);
    Ok(call(api.get_metadata_opt(name)).await?.map(|secret| secret.metadata))
}
