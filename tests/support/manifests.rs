//! Objects as the scenarios write them.

use serde_json::{Value, json};
use tokencache::api::names::LABEL_SOURCE;

use super::server::TokenServer;

/// Name of the Secret with the client's credentials, in every namespace.
pub const CREDENTIALS: &str = "credentials";
/// Its key for the client's secret.
pub const SECRET_KEY: &str = "clientSecret";

/// A Secret with the client's secret, opened to TokenCaches by its owner or not.
pub fn source_secret(name: &str, client_secret: &str, opened: bool) -> Value {
    let mut secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name},
        "stringData": {SECRET_KEY: client_secret},
    });
    if opened {
        secret["metadata"]["labels"] = json!({LABEL_SOURCE: "true"});
    }
    secret
}

/// A TokenCache that gets its token from the server; `spec` is merged over its spec.
pub fn token_cache(name: &str, server: &TokenServer, spec: Value) -> Value {
    let mut cache = json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
        "metadata": {"name": name},
        "spec": {"fetch": {"oauth2": {
            "tokenUrl": server.url(name),
            "clientId": server.options().client_id,
            "clientSecretRef": {"name": CREDENTIALS, "key": SECRET_KEY},
        }}},
    });
    merge(&mut cache["spec"], spec);
    cache
}

/// Settings of the `oauth2` source, as a change of the spec.
pub fn oauth2(settings: Value) -> Value {
    json!({"fetch": {"oauth2": settings}})
}

/// JSON merge patch (RFC 7396).
pub fn merge(target: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *target = change;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in change {
        match target.as_object_mut() {
            Some(object) if value.is_null() => {
                object.remove(&key);
            }
            _ => merge(&mut target[key], value),
        }
    }
}
