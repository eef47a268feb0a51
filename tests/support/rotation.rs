//! Which refresh token a TokenCache uses.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use sha2::{Digest as _, Sha256};

use super::{Namespace, SecretView as _};

/// The name of the Secret with what a TokenCache has learned.
pub fn state_name(cache: &str) -> String {
    format!("tokencache-{cache}-state")
}

/// The token that a TokenCache sends next: the one that was rotated last, or that of the key `token` of the Secret with
/// this name if somebody has signed in since.
pub async fn refresh_token(ns: &Namespace, cache: &str, secret: &str) -> String {
    let first = ns.get::<Secret>(secret).await.token();
    let state = ns.api::<Secret>().get_opt(&state_name(cache)).await.expect("an answer");
    let hash = BASE64_STANDARD.encode(Sha256::digest(&first));
    state.filter(|state| state.value("refresh-token-seed") == hash).map_or(first, |state| state.value("refresh-token"))
}
