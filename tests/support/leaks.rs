//! The search for secrets in places where they must not be.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Secret},
};
use serde_json::json;
use tokencache::api::TokenCache;
use url::form_urlencoded::byte_serialize;

use super::{Controller, Namespace, server::TokenServer};

/// Fails if a secret or token of the server stands in a log, a metric, an event, or any object but in a Secret's data.
pub async fn assert_no_leak(namespace: &Namespace, server: &TokenServer, controllers: &[&Controller]) {
    let needles = needles(server);
    for (place, text) in haystacks(namespace, controllers).await {
        for (what, needle) in &needles {
            if let Some(at) = text.find(needle.as_str()) {
                let line = text[..at].rfind('\n').map_or(0, |line| line + 1);
                let end = text[at..].find('\n').map_or(text.len(), |end| at + end);
                panic!("{what} stands in the {place}: {}", &text[line..end]);
            }
        }
    }
}

fn needles(server: &TokenServer) -> Vec<(&'static str, String)> {
    let (id, secret) = (&server.options().client_id, &server.options().client_secret);
    let encode = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
    let mut needles = vec![
        ("the client's secret", secret.clone()),
        ("the client's secret, form-encoded", encode(secret)),
        // A part that no encoding of text changes.
        ("a part of the client's secret", secret.split(' ').next_back().unwrap_or_default().to_owned()),
        ("the client's secret in base64", STANDARD.encode(secret)),
        ("the client's secret in base64", URL_SAFE_NO_PAD.encode(secret)),
        ("the Basic credential", STANDARD_NO_PAD.encode(format!("{}:{}", encode(id), encode(secret)))),
        ("the Basic credential", STANDARD_NO_PAD.encode(format!("{id}:{secret}"))),
    ];
    for token in server.all_issued() {
        // The header of all tokens is the same; the two other parts are each token's own.
        let parts = token.split('.').skip(1).map(|part| ("a part of a token", part.chars().take(40).collect()));
        needles.extend(parts.filter(|(_, part): &(_, String)| part.len() == 40));
        needles.push(("a token in base64", STANDARD_NO_PAD.encode(&token)));
        needles.push(("a token", token));
    }
    needles
}

async fn haystacks(namespace: &Namespace, controllers: &[&Controller]) -> Vec<(String, String)> {
    let mut haystacks = namespace.logs();
    for controller in controllers {
        haystacks.push((format!("metrics of {}", controller.identity), controller.metrics().await.0));
    }
    let mut objects = vec![
        ("events", json!(namespace.list::<Event>().await)),
        ("TokenCaches", json!(namespace.list::<TokenCache>().await)),
        ("Leases", json!(namespace.list::<Lease>().await)),
        ("ConfigMaps", json!(namespace.list::<ConfigMap>().await)),
    ];
    for secret in namespace.list::<Secret>().await {
        objects.push(("metadata of a Secret", json!(secret.metadata)));
    }
    // YAML, as people see them, without the escapes of JSON.
    let yaml = |value| serde_saphyr::to_string(&value).expect("YAML");
    haystacks.extend(objects.into_iter().map(|(what, value)| (what.to_owned(), yaml(value))));
    haystacks
}
