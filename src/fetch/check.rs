//! What the CRD's rules cannot check.

use super::{
    cel::{self, Place},
    expression,
    http_client::renamed,
    redact::Redactor,
    references,
    tls::decode_bundle,
};
use crate::api::{Invalid, MAX_SPEC, Source, Target, TokenCacheSpec, oauth2::Tls, object_name::is_object_name};

/// Most bytes of `target.annotations`, keys and values. The controller keeps the metadata of all its Secrets.
const MAX_ANNOTATIONS: usize = 16 * 1024;

/// Most bytes of a job's template, as JSON.
const MAX_TEMPLATE: usize = 64 * 1024;

/// Most bytes of expressions in one spec. Compiling takes time by their length.
const MAX_EXPRESSIONS: usize = 32 * 1024;

/// Checks what the CRD's rules cannot: expressions, names of keys, labels and annotations, certificates. Compiles the
/// expressions, which may take a while.
///
/// # Errors
/// The first finding, with the field's path.
pub fn check(namespace: &str, spec: &TokenCacheSpec) -> Result<(), Invalid> {
    check_object_names(spec)?;
    let size = |value: serde_json::Result<String>| value.map_or(0, |text| text.len());
    if let Some(Source::Job(job)) = spec.fetch.source() {
        limit("spec.fetch.job.template", size(serde_json::to_string(&job.template)), MAX_TEMPLATE)?;
    }
    let annotations = &spec.target.annotations;
    let annotated = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    limit("spec.target.annotations", annotated, MAX_ANNOTATIONS)?;
    limit("spec", size(serde_json::to_string(spec)), MAX_SPEC)?;
    let expressions = with_expressions(spec, |all| all.map(|(_, text)| text.len()).sum::<usize>());
    if expressions > MAX_EXPRESSIONS {
        let message =
            format!("has {expressions} bytes of expressions, more than the {MAX_EXPRESSIONS} that are allowed");
        return Err(Invalid::new("spec", message));
    }
    match spec.fetch.source() {
        Some(Source::OAuth2(oauth2)) => {
            check_tls("spec.fetch.oauth2.tls", &oauth2.token_url, oauth2.tls.as_ref())?;
            super::oauth2::check(oauth2)?;
        }
        Some(Source::GitHubApp(app)) => check_tls("spec.fetch.githubApp.tls", app.api_url(), app.tls.as_ref())?,
        Some(Source::Job(job)) => super::job::check(job)?,
        Some(Source::Http(http)) => {
            check_tls("spec.fetch.http.tls", &http.url, http.tls.as_ref())?;
            super::http::check(namespace, http)?;
            if http.result.token.is_none() && spec.target.data.is_empty() {
                let message =
                    "must be set, since spec.fetch.http.result has no token: say what of `values` the Secret holds";
                return Err(Invalid::new("spec.target.data", message));
            }
        }
        Some(Source::ServiceAccountToken(_)) | None => {}
    }
    check_target(namespace, &spec.target)
}

/// Whether checking a spec takes little time: it has few expressions, which are compiled already.
#[must_use]
pub fn is_quick(namespace: &str, spec: &TokenCacheSpec) -> bool {
    with_expressions(spec, |all| all.take(QUICK + 1).count()) <= QUICK
        && with_expressions(spec, |all| cel::are_compiled(namespace, all))
}

/// Evaluating the rules of the CRD takes time by their number, too.
const QUICK: usize = 16;

fn with_expressions<T>(spec: &TokenCacheSpec, use_all: impl FnOnce(&mut dyn Iterator<Item = (Place, &str)>) -> T) -> T {
    let data = spec.target.data();
    let http = match spec.fetch.source() {
        Some(Source::Http(http)) => Some(super::http::expressions(http)),
        _ => None,
    };
    let data = data.values().map(|text| (Place::Data, text.as_str()));
    use_all(&mut http.into_iter().flatten().chain(data))
}

/// Names become parts of paths of the API server. The CRD checks those in fields of their own, but not those in a job's
/// template, nor in objects that were stored before it did.
fn check_object_names(spec: &TokenCacheSpec) -> Result<(), Invalid> {
    let sources = references(spec).into_iter().map(|reference| {
        let field =
            spec.fetch.source().map_or_else(|| "spec.fetch".to_owned(), |it| format!("spec.fetch.{}", it.name()));
        (field, reference.kind.to_string(), reference.name)
    });
    let workloads = spec.rollout_restart_targets.iter().enumerate().map(|(index, workload)| {
        (format!("spec.rolloutRestartTargets[{index}].name"), format!("{:?}", workload.kind), workload.name.clone())
    });
    let target = spec.target.name.clone().map(|name| ("spec.target.name".to_owned(), "Secret".to_owned(), name));
    match sources.chain(workloads).chain(target).find(|(_, _, name)| !is_object_name(name)) {
        None => Ok(()),
        Some((field, kind, name)) => Err(Invalid::new(
            field,
            format!(
                "{name:?} is no name of a {kind}: it must be at most 253 lower-case letters, digits, '-' and '.', with a \
                 letter or digit first and last"
            ),
        )),
    }
}

/// Checks that the controller was started to write Secrets of this type.
pub(super) fn check_type(wanted: &str, allowed: &[String]) -> Result<(), Invalid> {
    if allowed.iter().any(|allowed| allowed == wanted) {
        return Ok(());
    }
    let message = format!(
        "{} is not one of the types that this controller writes ({}): use one of these, or have the controller started \
         with it in --target-types",
        Redactor::default().clean(wanted),
        allowed.join(", ")
    );
    Err(Invalid::new("spec.target.type", message))
}

fn limit(field: &str, size: usize, most: usize) -> Result<(), Invalid> {
    let message = || format!("has {size} bytes, more than the {most} that are allowed");
    if size > most { Err(Invalid::new(field, message())) } else { Ok(()) }
}

fn check_tls(field: &str, url: &str, tls: Option<&Tls>) -> Result<(), Invalid> {
    let Some(tls) = tls else { return Ok(()) };
    if let Some(bundle) = &tls.ca_bundle {
        decode_bundle(bundle).map_err(|why| Invalid::new(format!("{field}.caBundle"), why))?;
    }
    match (&tls.server_name, url::Url::parse(url)) {
        (Some(name), Ok(url)) if renamed(&url, name).is_err() => {
            Err(Invalid::new(format!("{field}.serverName"), "must be a DNS name, not an address"))
        }
        _ => Ok(()),
    }
}

fn check_target(namespace: &str, target: &Target) -> Result<(), Invalid> {
    for key in target.data.keys() {
        let field = format!("spec.target.data[{key}]");
        if !is_data_key(key) {
            return Err(Invalid::new(
                field,
                "the key must be at most 253 letters, digits, '-', '_' and '.', and not begin with '..'",
            ));
        }
    }
    let data = target.data();
    expression::check(namespace, &data)?;
    if let Some(key) = required_keys(target.secret_type()).iter().find(|key| !data.contains_key(**key)) {
        let message = format!("must have the key {key}, which a Secret of type {} needs", target.secret_type());
        return Err(Invalid::new("spec.target.data", message));
    }
    for (key, value) in &target.labels {
        if let Some(why) = wrong_key(key).or_else(|| wrong_label_value(value)) {
            return Err(Invalid::new(format!("spec.target.labels[{key}]"), why));
        }
    }
    for key in target.annotations.keys() {
        if let Some(why) = wrong_key(key) {
            return Err(Invalid::new(format!("spec.target.annotations[{key}]"), why));
        }
    }
    Ok(())
}

/// As the API server checks keys of a Secret's data.
fn is_data_key(key: &str) -> bool {
    (1..=253).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && key != "."
        && !key.starts_with("..")
}

/// Keys without which the API server refuses a Secret of that type.
fn required_keys(secret_type: &str) -> &'static [&'static str] {
    match secret_type {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    }
}

/// A label's or annotation's key: an optional DNS subdomain and `/`, then a name.
fn wrong_key(key: &str) -> Option<&'static str> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if name.is_empty() || !is_name(name) {
        return Some(
            "the key's name must be 1 to 63 letters, digits, '-', '_' and '.', a letter or digit first and last",
        );
    }
    prefix
        .filter(|prefix| !is_object_name(prefix))
        .map(|_| "the key's prefix before '/' must be a DNS name in lower case")
}

fn wrong_label_value(value: &str) -> Option<&'static str> {
    let right = value.is_empty() || is_name(value);
    (!right)
        .then_some("the value must be at most 63 letters, digits, '-', '_' and '.', a letter or digit first and last")
}

fn is_name(text: &str) -> bool {
    text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
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
            let data: std::collections::BTreeMap<_, _> =
                (0..number).map(|n| (format!("k{n}"), text.as_str())).collect();
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
            (
                json!({"result": {"token": "token"}}),
                "spec.fetch.http.result.token",
                "names token; there are response, now",
            ),
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
            blocks
                .filter_map(|block| block.split("```").next())
                .filter(|block| block.starts_with("apiVersion"))
                .collect()
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
}
