//! `tokencache-status`: what consumers may change of a status.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokencache::api::TokenCache;

use super::{Actor, Allow, Deny, may_update_status, patch, rule, stage, token_cache};
use crate::support::scenario;

const DENIED: Verdict = Deny("Of the status of a TokenCache, only refreshRequested may be changed.");
use super::Verdict;

/// A value of each field of the status, as a controller writes it.
fn fields() -> BTreeMap<&'static str, Value> {
    let time = json!("2026-01-02T03:04:05Z");
    let condition = json!({
        "type": "Ready", "status": "True", "reason": "Fetched", "message": "fine", "lastTransitionTime": time,
    });
    BTreeMap::from([
        ("conditions", json!([condition])),
        ("expiresAt", time.clone()),
        ("failures", json!(3)),
        ("fetchedAt", time.clone()),
        ("handledRequest", json!("once")),
        ("lastFailure", json!({"reason": "Unreachable", "message": "not there", "time": time})),
        ("lastRunBy", json!("controller")),
        ("nextRetryAt", time.clone()),
        ("observedGeneration", json!(4)),
        ("refreshAt", time.clone()),
        ("refreshRequested", time),
        ("runs", json!(5)),
        ("secretName", json!("a")),
        ("secretResourceVersion", json!("6")),
        ("source", json!("http")),
    ])
}

fn changed(field: &str, value: Value) -> Value {
    json!({"status": Map::from_iter([(field.to_owned(), value)])})
}

#[test]
fn the_fields_are_those_of_the_definition() {
    let definition: Value = serde_saphyr::from_str(include_str!("../../../crds/tokencache.yaml")).expect("YAML");
    let status = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    let known: Vec<&str> = status["properties"].as_object().expect("fields").keys().map(String::as_str).collect();
    assert_eq!(fields().into_keys().collect::<Vec<_>>(), known);
}

#[test]
fn a_consumer_may_request_a_value_and_forge_no_other_field() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        token_cache(&ns, "empty").await;
        token_cache(&ns, "full").await;
        ns.patch_status("full", json!(fields())).await;
        let consumer =
            Actor::named(&ns, "consumer", json!([rule("tokencache.dev", "tokencaches/status", &["patch"])])).await;
        let (empty, full) = ("tokencaches/empty/status", "tokencaches/full/status");
        let now = json!("2026-02-03T04:05:06Z");
        let mut rows = vec![
            ("a first request", patch(empty, changed("refreshRequested", now.clone())), Allow),
            ("a request", patch(full, changed("refreshRequested", now.clone())), Allow),
            ("a request that is withdrawn", patch(full, changed("refreshRequested", Value::Null)), Allow),
            ("nothing", patch(full, json!({"status": {}})), Allow),
            ("no status at all", patch(full, json!({"status": null})), DENIED),
            ("a request and more", patch(full, json!({"status": {"refreshRequested": now, "runs": 6}})), DENIED),
        ];
        for (field, value) in fields() {
            if field == "refreshRequested" {
                continue;
            }
            let other = match &value {
                Value::Number(number) => json!(number.as_i64().expect("an integer") + 1),
                Value::String(text) if text.starts_with("2026") => now.clone(),
                Value::String(text) => json!(format!("{text}x")),
                Value::Object(_) => json!({"message": "forged"}),
                _ => json!([]),
            };
            rows.push((field, patch(empty, changed(field, value)), DENIED));
            rows.push((field, patch(full, changed(field, other)), DENIED));
            // A number without a value gets its default.
            rows.push((field, patch(full, changed(field, Value::Null)), DENIED));
        }
        consumer.try_all(rows).await;
    });
}

#[test]
fn a_client_that_may_update_the_status_may_write_all_of_it() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let cache: TokenCache = token_cache(&ns, "a").await;
        assert!(cache.status.is_none());
        let rules = json!([rule("tokencache.dev", "tokencaches/status", &["patch"]), may_update_status()]);
        let updater = Actor::named(&ns, "updater", rules).await;
        updater.try_all(vec![("all fields", patch("tokencaches/a/status", json!({"status": fields()})), Allow)]).await;
    });
}
