#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::*;

fn spec(target: Value, tls: Value) -> TokenCacheSpec {
    serde_json::from_value(json!({
        "fetch": {"oauth2": {"tokenUrl": "https://id.example.com/token", "clientId": "me", "tls": tls}},
        "target": target,
    }))
    .unwrap()
}

#[test]
fn what_kubernetes_takes_is_right() {
    let pem = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
    for (target, tls) in [
        (json!({}), json!(null)),
        (json!({"data": {"token": "token", "a.b-c_D.1": "'x' + values.a", ".netrc": "token"}}), json!({})),
        (json!({"labels": {"a": "", "app.kubernetes.io/name": "x", "A_b.c-d": "1.a_B-2"}}), json!({})),
        (json!({"annotations": {"a.b/c": "anything at all\n"}}), json!({})),
        (json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "token", "tls.key": "token"}}), json!({})),
        (json!({}), json!({"caBundle": BASE64_STANDARD.encode(pem), "serverName": "id.example.com"})),
    ] {
        assert_eq!(check("ns", &spec(target.clone(), tls)), Ok(()), "{target}");
    }
}

#[test]
fn names_of_objects_that_would_lead_to_another_path_are_refused() {
    let spec = |source: Value, more: Value| -> TokenCacheSpec {
        let mut spec = json!({"fetch": source});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    };
    let oauth2 = |change: Value| {
        let mut source = json!({"tokenUrl": "https://id.example.com/token", "clientId": "me"});
        source.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({ "oauth2": source })
    };
    let job = |pod: Value| json!({"job": {"template": {"spec": pod}}});
    let container = json!([{"name": "a", "image": "i"}]);
    for name in ["rt#", "rt?x=", "rt/", "%72t", "..", "../secrets/rt", "A", ""] {
        let reference = json!({"name": name, "key": "k"});
        let workload = json!({"rolloutRestartTargets": [{"kind": "Deployment", "name": name}]});
        let volumes = json!([{"name": "v", "secret": {"secretName": name}}]);
        for (spec, field) in [
            (spec(oauth2(json!({"refreshTokenRef": reference})), json!({})), "spec.fetch.oauth2"),
            (
                spec(oauth2(json!({"tls": {"caRef": {"kind": "ConfigMap", "name": name, "key": "k"}}})), json!({})),
                "spec.fetch.oauth2",
            ),
            (
                spec(oauth2(json!({"proxy": {"url": "http://p", "credentialsRef": {"name": name}}})), json!({})),
                "spec.fetch.oauth2",
            ),
            (
                spec(json!({"serviceAccountToken": {"serviceAccountName": name}}), json!({})),
                "spec.fetch.serviceAccountToken",
            ),
            (
                spec(job(json!({"containers": container, "serviceAccountName": format!("{name}#")})), json!({})),
                "spec.fetch.job",
            ),
            (spec(job(json!({"containers": container, "volumes": volumes})), json!({})), "spec.fetch.job"),
            (spec(oauth2(json!({})), workload), "spec.rolloutRestartTargets[0].name"),
            (spec(oauth2(json!({})), json!({"target": {"name": name}})), "spec.target.name"),
        ] {
            let invalid = check("ns", &spec).expect_err(name);
            assert_eq!(invalid.field, field, "{name}: {}", invalid.message);
        }
    }
}

#[test]
fn only_the_types_that_are_allowed_pass() {
    let allowed = ["Opaque".to_owned(), "example.com/x".to_owned()];
    for (wanted, passes) in
        [("Opaque", true), ("example.com/x", true), ("opaque", false), ("example.com/xy", false), ("", false)]
    {
        assert_eq!(check_type(wanted, &allowed).is_ok(), passes, "{wanted}");
    }
    let invalid = check_type("a\nb", &allowed).unwrap_err();
    assert!(invalid.to_string().starts_with("spec.target.type: a b is not one of"), "{invalid}");
}

#[test]
fn the_expressions_of_a_spec_are_limited_together() {
    let with = |number: usize, length: usize| {
        let text = format!("'{}'", "x".repeat(length - 2));
        let data: std::collections::BTreeMap<_, _> = (0..number).map(|n| (format!("k{n}"), text.as_str())).collect();
        spec(json!({"data": data}), json!(null))
    };
    assert_eq!(check("ns", &with(16, 2048)), Ok(()));
    let invalid = check("ns", &with(17, 2048)).unwrap_err();
    assert_eq!(invalid.to_string(), "spec: has 34816 bytes of expressions, more than the 32768 that are allowed");
    assert!(!is_quick("ns", &with(17, 20)), "each costs time, if it is compiled or not");
    assert!(is_quick("ns", &with(16, 2048)) && !is_quick("other", &with(16, 2048)));
}

#[test]
fn a_spec_and_its_template_are_limited_in_size() {
    let sized = |fetch: Value| serde_json::from_value::<TokenCacheSpec>(json!({ "fetch": fetch })).unwrap();
    let job = |length: usize| {
        let container = json!({"name": "a", "image": "b", "args": ["x".repeat(length)]});
        sized(json!({"job": {"template": {"spec": {"containers": [container]}}}}))
    };
    assert_eq!(check("ns", &job(60 * 1024)), Ok(()));
    let invalid = check("ns", &job(65 * 1024)).unwrap_err();
    assert_eq!(invalid.field, "spec.fetch.job.template", "{invalid}");
    let http = |length: usize| {
        let form = json!([{"name": "a", "value": "x".repeat(length)}]);
        sized(json!({"http": {"url": "https://a.example", "form": form, "result": {"token": "response.body"}}}))
    };
    assert_eq!(check("ns", &http(120 * 1024)), Ok(()));
    let invalid = check("ns", &http(130 * 1024)).unwrap_err();
    assert!(invalid.field == "spec" && invalid.message.contains("more than the 131072"), "{invalid}");
}

#[test]
fn what_the_pages_show_is_right() {
    let pages = [
        (include_str!("../../docs/sources/http.md"), 5),
        (include_str!("../../docs/sources/service-account-token.md"), 1),
    ];
    for (page, number) in pages {
        let blocks: Vec<_> = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(blocks.len(), number);
        for block in blocks {
            let mut cache: Value = serde_saphyr::from_str(block).expect(block);
            cache["metadata"] = json!({"name": "a"});
            cache["apiVersion"] = "tokencache.dev/v1alpha1".into();
            cache["kind"] = "TokenCache".into();
            let cache: crate::api::TokenCache = serde_json::from_value(cache).expect(block);
            assert_eq!(crate::api::validate(&cache), Ok(()), "{block}");
            assert_eq!(check("ns", &cache.spec), Ok(()), "{block}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_request_is_told_by_its_field() {
    let header = |value: &str| json!({"headers": [{"name": "X-A", "value": value}]});
    for (change, field, words) in [
        (json!({}), "", ""),
        (header("a\nb"), "spec.fetch.http.headers[X-A]", "the value holds a line break"),
        (header("a\n"), "spec.fetch.http.headers[X-A]", "the value ends with a newline"),
        (json!({"json": "secret.a"}), "spec.fetch.http.json", "names secret; there are secrets"),
        (json!({"json": "{"}), "spec.fetch.http.json", "is not CEL"),
        (
            json!({"form": [{"name": "a", "expression": "token"}]}),
            "spec.fetch.http.form[a]",
            "names token; there are secrets",
        ),
        (json!({"query": [{"name": "a", "expression": "("}]}), "spec.fetch.http.query[a]", "is not CEL"),
        (json!({"body": {"expression": "now"}}), "spec.fetch.http.body", "names now; there are secrets"),
        (json!({"result": {"token": "token"}}), "spec.fetch.http.result.token", "names token; there are response, now"),
        (
            json!({"result": {"token": "'a'", "expiresAt": "secrets.a"}}),
            "spec.fetch.http.result.expiresAt",
            "names secrets",
        ),
        (
            json!({"result": {"values": {"v": "response.json.map(x, x)"}}}),
            "spec.fetch.http.result.values[v]",
            "uses a macro that loops",
        ),
        (json!({"result": {"values": {"v": "response.body"}}}), "spec.target.data", "must be set"),
        (json!({"tls": {"caBundle": "%"}}), "spec.fetch.http.tls.caBundle", "is not base64"),
    ] {
        let mut http = json!({"url": "https://api.example.com", "result": {"token": "response.body"}});
        for (key, value) in change.as_object().unwrap() {
            http[key] = value.clone();
        }
        let spec = serde_json::from_value(json!({"fetch": {"http": http}})).unwrap();
        match check("ns", &spec) {
            Ok(()) => assert_eq!(field, "", "{change}"),
            Err(invalid) => {
                assert_eq!(invalid.field, field, "{invalid}");
                assert!(invalid.message.contains(words), "{invalid}");
            }
        }
    }
}

#[test]
fn what_kubernetes_would_refuse_is_told_by_its_field() {
    let long = "a".repeat(254);
    for (target, tls, field) in [
        (json!({"data": {"a b": "token"}}), json!(null), "spec.target.data[a b]"),
        (json!({"data": {"": "token"}}), json!(null), "spec.target.data[]"),
        (json!({"data": {"..a": "token"}}), json!(null), "spec.target.data[..a]"),
        (json!({"data": {"a/b": "token"}}), json!(null), "spec.target.data[a/b]"),
        (json!({"data": {long.as_str(): "token"}}), json!(null), "spec.target.data[a"),
        (json!({"data": {"a": "token +"}}), json!(null), "spec.target.data[a]"),
        (json!({"data": {"a": "secret"}}), json!(null), "spec.target.data[a]"),
        (json!({"type": "kubernetes.io/tls"}), json!(null), "spec.target.data"),
        (json!({"type": "kubernetes.io/dockerconfigjson"}), json!(null), "spec.target.data"),
        (json!({"labels": {"a": "not a value"}}), json!(null), "spec.target.labels[a]"),
        (json!({"labels": {"a": "-x"}}), json!(null), "spec.target.labels[a]"),
        (json!({"labels": {"-a": "x"}}), json!(null), "spec.target.labels[-a]"),
        (json!({"labels": {"A.B/c": "x"}}), json!(null), "spec.target.labels[A.B/c]"),
        (json!({"labels": {"/c": "x"}}), json!(null), "spec.target.labels[/c]"),
        (json!({"labels": {"a/": "x"}}), json!(null), "spec.target.labels[a/]"),
        (json!({"labels": {"a/b/c": "x"}}), json!(null), "spec.target.labels[a/b/c]"),
        (json!({"labels": {"a": "x".repeat(64)}}), json!(null), "spec.target.labels[a]"),
        (json!({"annotations": {"a b": "x"}}), json!(null), "spec.target.annotations[a b]"),
        (json!({"annotations": {"a": "x".repeat(256 * 1024)}}), json!(null), "spec.target.annotations"),
        (json!({}), json!({"caBundle": "%"}), "spec.fetch.oauth2.tls.caBundle"),
        (json!({}), json!({"caBundle": "aGVsbG8="}), "spec.fetch.oauth2.tls.caBundle"),
        (json!({}), json!({"serverName": "127.1"}), "spec.fetch.oauth2.tls.serverName"),
    ] {
        let invalid = check("ns", &spec(target.clone(), tls)).expect_err(&target.to_string());
        assert!(invalid.field.starts_with(field), "{invalid}");
    }
}

/// The manifests of a text: documents in YAML, and blocks of it in Markdown.
fn manifests(text: &str, markdown: bool) -> Vec<Value> {
    let blocks: Vec<&str> = if markdown {
        let blocks = text.split("```yaml\n").skip(1);
        blocks.filter_map(|block| block.split("```").next()).filter(|block| block.starts_with("apiVersion")).collect()
    } else {
        vec![text]
    };
    let documents = blocks.iter().flat_map(|block| block.split("\n---\n"));
    documents.filter_map(|text| serde_saphyr::from_str::<Option<Value>>(text).expect(text)).collect()
}

#[test]
fn every_token_cache_in_the_examples_and_the_documentation_is_right() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut checked = 0;
    for folder in ["examples", "docs", "docs/sources"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let file = entry.unwrap().path();
            let markdown = match file.extension().and_then(|extension| extension.to_str()) {
                Some("md") => true,
                Some("yaml") => false,
                _ => continue,
            };
            let text = std::fs::read_to_string(&file).unwrap();
            for manifest in manifests(&text, markdown).into_iter().filter(|found| found["kind"] == "TokenCache") {
                let name = format!("{}: {}", file.display(), manifest["metadata"]["name"]);
                let cache: crate::api::TokenCache = serde_json::from_value(manifest.clone()).expect(&name);
                // A field that is unknown, and so ignored, would be missing here.
                assert_eq!(serde_json::to_value(&cache.spec).unwrap(), manifest["spec"], "{name}");
                assert_eq!(crate::api::validate(&cache), Ok(()), "{name}");
                assert_eq!(check("ns", &cache.spec), Ok(()), "{name}");
                checked += 1;
            }
        }
    }
    assert!(checked >= 14, "{checked}");
}
