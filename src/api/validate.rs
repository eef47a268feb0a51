//! The rules of the spec, said once: as CEL in the CRD, where an API server of 1.25 or newer enforces them, and run
//! here from that very CRD, for older ones and for objects that were stored before a rule was added.

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::{
    CustomResourceExt as _,
    core::cel::{CompiledSchema, Validator, compile_schema},
};

use super::{Source, TokenCache, names::LABEL_SOURCE};

/// What is wrong with a spec: the field, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Invalid {
    /// Path of the field, from `spec` on.
    pub field: String,
    /// What would be right.
    pub message: String,
}

impl Invalid {
    /// A finding at a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The CustomResourceDefinition, as `crds/tokencache.yaml` holds it.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    let mut crd = TokenCache::crd();
    crd.metadata.labels = Some([("app.kubernetes.io/name".to_owned(), "tokencache".to_owned())].into());
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            adapt(schema);
        }
    }
    crd
}

/// Adapts a derived schema to Kubernetes. An optional field is left out, not null: the API server then drops a null, and
/// `has()` in the rules means what it says. Formats of unsigned integers go: Kubernetes has none, and kubectl warns of
/// them.
fn adapt(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    describe_source_label(schema);
    schema.format.take_if(|format| format.starts_with("uint"));
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(adapt);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        adapt(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        adapt(values);
    }
}

/// Adds the source label to the description of each reference to a key of a Secret: the field's description has replaced
/// that of the type.
fn describe_source_label(schema: &mut JSONSchemaProps) {
    let is_secret_key = schema.properties.as_ref().is_some_and(|properties| properties.keys().eq(["key", "name"]));
    if let Some(description) = schema.description.as_mut().filter(|_| is_secret_key)
        && !description.contains(LABEL_SOURCE)
    {
        *description = format!("{description} The Secret must have the label {LABEL_SOURCE}: \"true\".");
    }
}

static RULES: LazyLock<CompiledSchema> = LazyLock::new(|| compile_schema(&schema()));

fn schema() -> serde_json::Value {
    let schema = crd().spec.versions.into_iter().next().and_then(|version| version.schema);
    serde_json::to_value(schema.and_then(|schema| schema.open_api_v3_schema)).unwrap_or_default()
}

/// Checks a spec against the rules of the CRD.
///
/// # Errors
/// The first rule that it breaks.
pub fn validate(cache: &TokenCache) -> Result<(), Invalid> {
    // The status is the controllers' own; leaving it out keeps this cheap.
    let object = serde_json::json!({
        "apiVersion": "tokencache.dev/v1alpha1",
        "kind": "TokenCache",
        "metadata": { "name": cache.metadata.name },
        "spec": cache.spec,
    });
    let findings = match Validator::new().validate_compiled(&RULES, &object, None) {
        Ok(()) => return url(cache),
        Err(findings) => findings,
    };
    let first = findings.into_vec().into_iter().next();
    Err(first.map_or_else(
        || Invalid::new("spec", "breaks a rule of the CustomResourceDefinition"),
        |finding| Invalid::new(finding.field_path, finding.message),
    ))
}

fn url(cache: &TokenCache) -> Result<(), Invalid> {
    let Some(source) = cache.spec.fetch.source() else { return Ok(()) };
    let (field, url, proxy) = match source {
        Source::OAuth2(oauth2) => ("tokenUrl", oauth2.token_url.as_str(), &oauth2.proxy),
        Source::Http(http) => ("url", http.url.as_str(), &http.proxy),
        Source::GitHubApp(app) => ("apiUrl", app.api_url(), &app.proxy),
        Source::ServiceAccountToken(_) | Source::Job(_) => return Ok(()),
    };
    let at = format!("spec.fetch.{}", source.name());
    is_http_url(&format!("{at}.{field}"), url)?;
    proxy.as_ref().map_or(Ok(()), |proxy| is_http_url(&format!("{at}.proxy.url"), &proxy.url))
}

fn is_http_url(field: &str, text: &str) -> Result<(), Invalid> {
    match url::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
        Ok(_) => Err(Invalid::new(field, "must be an http or https URL with a host")),
        Err(error) => {
            Err(Invalid::new(field, format!("is not a URL ({error}): write it like https://id.example.com/token")))
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::cel::estimate_rule_cost;
    use serde_json::{Value, json};

    use super::*;

    fn cache(spec: Value) -> TokenCache {
        serde_json::from_value(json!({
            "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache",
            "metadata": {"name": "a", "namespace": "b"}, "spec": spec,
        }))
        .expect("a spec that the schema allows")
    }

    /// All descriptions of a schema, each in one line.
    fn descriptions(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(map) => {
                if let Some(Value::String(text)) = map.get("description") {
                    found.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
                }
                map.values().for_each(|value| descriptions(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| descriptions(value, found)),
            _ => {}
        }
    }

    #[test]
    fn each_default_in_the_documentation_of_a_field_is_in_the_crd() {
        let mut found = Vec::new();
        descriptions(&schema(), &mut found);
        let mut checked = 0;
        for source in [
            include_str!("spec.rs"),
            include_str!("http.rs"),
            include_str!("job.rs"),
            include_str!("github_app.rs"),
            include_str!("oauth2.rs"),
            include_str!("oauth2/grants.rs"),
            include_str!("service_account_token.rs"),
        ] {
            let mut text = Vec::new();
            for line in source.lines().map(str::trim) {
                if let Some(line) = line.strip_prefix("///") {
                    text.push(line.trim());
                } else if !line.starts_with("#[") {
                    let words = text.join(" ");
                    if let Some(default) =
                        words.find("Default").filter(|_| line.starts_with("pub ") && line.contains(": "))
                    {
                        let default = &words[default..];
                        assert!(found.iter().any(|description| description.contains(default)), "{default}");
                        checked += 1;
                    }
                    text.clear();
                }
            }
        }
        assert!(checked >= 25, "{checked}");
    }

    #[test]
    fn references_to_secrets_name_the_source_label() {
        let schema = schema();
        for field in [
            "/oauth2/properties/clientSecretRef",
            "/oauth2/properties/refreshTokenRef",
            "/oauth2/properties/assertion/properties/privateKeyRef",
            "/oauth2/properties/tls/properties/clientCertRef",
            "/githubApp/properties/privateKeyRef",
            "/serviceAccountToken",
        ] {
            let found = schema.pointer(&format!("/properties/spec/properties/fetch/properties{field}/description"));
            let text = found.and_then(Value::as_str).unwrap_or_else(|| panic!("{field} has no description"));
            assert!(text.contains(LABEL_SOURCE), "{field}: {text}");
        }
    }

    fn oauth2(change: Value) -> Value {
        let mut source = json!({
            "tokenUrl": "https://id.example.com/token", "clientId": "me",
            "clientSecretRef": {"name": "s", "key": "k"},
        });
        for (key, value) in change.as_object().expect("an object") {
            if value.is_null() {
                source.as_object_mut().expect("an object").remove(key);
            } else {
                source[key] = value.clone();
            }
        }
        json!({"fetch": {"oauth2": source}})
    }

    fn http(change: Value) -> Value {
        let mut source = json!({"url": "https://api.example.com/login", "result": {"token": "response.body"}});
        for (key, value) in change.as_object().expect("an object") {
            source[key] = value.clone();
        }
        json!({"fetch": {"http": source}})
    }

    #[test]
    fn each_source_has_a_plain_spec_that_is_valid() {
        let headers = json!([{"name": "Authorization", "valueRef": {"name": "s", "key": "k"}}]);
        for spec in [
            http(json!({})),
            http(json!({"headers": headers, "json": "secrets.a", "secrets": {"a": {"name": "s", "key": "k"}}})),
            json!({"fetch": {"serviceAccountToken": {"serviceAccountName": "a", "expiration": "10m"}}}),
        ] {
            assert_eq!(validate(&cache(spec.clone())), Ok(()), "{spec}");
        }
        assert_eq!(validate(&cache(oauth2(json!({})))), Ok(()));
    }

    #[test]
    fn each_wrong_spec_is_told_by_its_field_and_what_would_be_right() {
        let with = |extra: Value| {
            let mut spec = oauth2(json!({}));
            for (key, value) in extra.as_object().expect("an object") {
                spec[key] = value.clone();
            }
            spec
        };
        for (spec, field, message) in [
            (json!({"fetch": {}}), "spec.fetch", "exactly one source"),
            (
                oauth2(json!({"clientIdRef": {"name": "s", "key": "k"}})),
                "spec.fetch.oauth2",
                "exactly one of clientId and clientIdRef",
            ),
            (oauth2(json!({"clientId": null})), "spec.fetch.oauth2", "exactly one of clientId and clientIdRef"),
            (oauth2(json!({"clientSecretRef": null})), "spec.fetch.oauth2", "clientSecretRef must be set"),
            (oauth2(json!({"extraParams": {"scope": "a"}})), "spec.fetch.oauth2.extraParams", "fields of their own"),
            (oauth2(json!({"tokenUrl": "https://["})), "spec.fetch.oauth2.tokenUrl", "is not a URL"),
            (oauth2(json!({"proxy": {"url": "http://"}})), "spec.fetch.oauth2.proxy.url", "is not a URL"),
            (
                oauth2(json!({"tls": {"caBundle": "x", "caRef": {"kind": "Secret", "name": "a", "key": "b"}}})),
                "spec.fetch.oauth2.tls",
                "cannot both be set",
            ),
            (
                oauth2(json!({"tls": {"serverName": "a"}, "proxy": {"url": "http://p"}})),
                "spec.fetch.oauth2",
                "cannot be combined",
            ),
            (
                json!({"fetch": {"job": {"template": {"spec": {}}}, "serviceAccountToken": {"serviceAccountName": "a"}}}),
                "spec.fetch",
                "exactly one source must be set: oauth2, http, githubApp, serviceAccountToken or job",
            ),
            (
                json!({"fetch": {"serviceAccountToken": {"serviceAccountName": "a", "expiration": "9m59s"}}}),
                "spec.fetch.serviceAccountToken.expiration",
                "at least 10m",
            ),
            (http(json!({"result": {}})), "spec.fetch.http.result", "token or values must be set"),
            (http(json!({"json": "1", "form": []})), "spec.fetch.http", "at most one of form, body and json"),
            (
                http(json!({"json": "1", "body": {"value": "x"}})),
                "spec.fetch.http",
                "at most one of form, body and json",
            ),
            (http(json!({"body": {}})), "spec.fetch.http.body", "exactly one of value, valueRef and expression"),
            (
                http(json!({"form": [{"name": "a", "value": "b"}, {"name": "a", "value": "b", "expression": "c"}]})),
                "spec.fetch.http.form[1]",
                "exactly one of value, valueRef and expression",
            ),
            (http(json!({"query": [{"name": "a"}]})), "spec.fetch.http.query[0]", "exactly one of value"),
            (
                http(json!({"headers": [{"name": "Host", "value": "a"}]})),
                "spec.fetch.http.headers[0].name",
                "the connection sets itself",
            ),
            (
                http(json!({"headers": [{"name": "X", "value": "a"}, {"name": "content-Length", "value": "1"}]})),
                "spec.fetch.http.headers[1].name",
                "the connection sets itself",
            ),
            (http(json!({"url": "https://["})), "spec.fetch.http.url", "is not a URL"),
            (http(json!({"proxy": {"url": "http://"}})), "spec.fetch.http.proxy.url", "is not a URL"),
            (
                http(json!({"tls": {"serverName": "a"}, "proxy": {"url": "http://p"}})),
                "spec.fetch.http",
                "cannot be combined",
            ),
            (with(json!({"expiry": {"never": true, "ttl": "1h"}})), "spec.expiry", "never cannot be combined"),
            (with(json!({"expiry": {"ttl": "0s"}})), "spec.expiry.ttl", "longer than 0s"),
            (
                with(json!({"refresh": {"renewBefore": "1m", "renewBeforePercentage": 10}})),
                "spec.refresh",
                "cannot both be set",
            ),
            (
                with(json!({"retry": {"initialInterval": "1m", "maxInterval": "1s"}})),
                "spec.retry",
                "must not be longer",
            ),
            (
                with(json!({"target": {"type": "kubernetes.io/service-account-token"}})),
                "spec.target.type",
                "use Opaque",
            ),
            (with(json!({"target": {"name": "tokencache-a-state"}})), "spec.target.name", "reserved"),
            (with(json!({"target": {"name": "sh.helm.release.v1.app.v2"}})), "spec.target.name", "reserved"),
            (with(json!({"target": {"labels": {"tokencache.dev/x": "y"}}})), "spec.target.labels", "tokencache's own"),
            (
                with(json!({"target": {"annotations": {"tokencache.dev/x": "y"}}})),
                "spec.target.annotations",
                "tokencache's own",
            ),
        ] {
            let invalid = validate(&cache(spec.clone())).expect_err(&spec.to_string());
            assert_eq!(invalid.field, field, "{invalid}");
            assert!(invalid.message.contains(message), "{invalid}");
        }
    }

    #[test]
    fn a_url_may_have_an_at_sign_but_no_user_name_or_fragment() {
        let schema = schema();
        for pointer in ["oauth2/properties/tokenUrl", "http/properties/url"] {
            let at = format!("/properties/spec/properties/fetch/properties/{pointer}/pattern");
            let pattern = schema.pointer(&at).and_then(Value::as_str).expect("a pattern");
            let pattern = regex::Regex::new(pattern).expect("a regular expression");
            for (url, allowed) in [
                ("https://id.example.com/token", true),
                ("http://[fd00::1]:8080", true),
                ("https://id.example.com?a=b", true),
                ("https://id.example.com/users/me@example.com/token?user=a@b.c", true),
                ("https://ID.example.com.:8443/%40/t%C3%B6ken", true),
                ("https://id.ex\u{e4}mple/", true),
                ("https://user@id.example.com/", false),
                ("https://user:password@id.example.com/token", false),
                (r"https://id.example.com\@evil.example/", false),
                ("https://id.example.com/#token", false),
                ("https://id.example.com/a b", false),
                ("https:///token", false),
                ("ftp://id.example.com/", false),
            ] {
                assert_eq!(pattern.is_match(url), allowed, "{pointer}: {url}");
            }
        }
    }

    #[test]
    fn a_secret_that_is_named_like_its_token_cache_has_no_reserved_name_either() {
        let named = |name: &str, target: Value| {
            let mut cache = cache(http(json!({})));
            cache.metadata.name = Some(name.into());
            cache.spec.target = serde_json::from_value(target).expect("a target");
            validate(&cache).map_err(|invalid| invalid.message)
        };
        for reserved in ["tokencache-a-state", "sh.helm.release.v1.app.v2"] {
            assert!(named(reserved, json!({})).is_err_and(|message| message.contains("set spec.target.name")));
        }
        for (name, target) in [
            ("tokencache-a-state", json!({"name": "a"})),
            ("sh.helm.release.v1.a", json!({"name": "a"})),
            ("sh.helm", json!({})),
            ("tokencache-a", json!({})),
            ("a-state", json!({})),
        ] {
            assert_eq!(named(name, target), Ok(()));
        }
    }

    #[test]
    fn every_rule_of_the_crd_compiles_and_is_within_the_cost_that_an_api_server_allows() {
        fn rules(schema: &Value, found: &mut Vec<(String, Value)>) {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                found.push((rule["rule"].as_str().unwrap_or_default().to_owned(), schema.clone()));
            }
            for child in schema["properties"].as_object().into_iter().flat_map(|map| map.values()) {
                rules(child, found);
            }
            if schema["items"].is_object() {
                rules(&schema["items"], found);
            }
        }
        let mut found = Vec::new();
        rules(&schema(), &mut found);
        assert!(found.len() > 15, "{}", found.len());
        for (rule, schema) in found {
            let compiled = compile_schema(&schema);
            assert!(!compiled.has_errors(), "{:?}", compiled.compilation_errors());
            let warnings = estimate_rule_cost(&rule, &compiled);
            assert!(warnings.is_empty(), "{rule}: {warnings:?}");
        }
    }
}
