//! `tokencache-authors`: authors need the permissions that their TokenCaches use.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Actor, Allow, Call, Deny, Verdict, create, patch, rule, stage, token_cache};
use crate::support::{Namespace, scenario};

const READ: Verdict = Deny("spec.fetch: you need get on these Secrets; for more than 12, on all: ");
const TARGET: Verdict = Deny("spec.target: you need create on Secrets in this namespace.");
const TOKENS: Verdict = Deny("spec.fetch: you need create on serviceaccounts/token for robot");
const JOBS: Verdict = Deny("spec.fetch.job: you need create on jobs in this namespace.");
const RESTARTS: Verdict =
    Deny("spec.rolloutRestartTargets: you need patch on them; for more than two, on all of their kind.");

/// A permission on single objects.
fn on(group: &str, resource: &str, verb: &str, names: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": [resource], "verbs": [verb], "resourceNames": names})
}

/// An author with all permissions on TokenCaches, and these.
async fn author(ns: &Namespace, name: &str, rules: &[Value]) -> Actor {
    let caches = rule("tokencache.dev", "tokencaches", &["create", "update", "patch", "delete"]);
    Actor::named(ns, name, json!([&[caches], rules].concat())).await
}

/// To create Secrets, and to update that of the TokenCache `new`.
fn writes_target() -> [Value; 2] {
    [rule("", "secrets", &["create"]), on("", "secrets", "update", &["new"])]
}

fn cache(spec: Value) -> Call {
    let mut manifest = json!({
        "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "metadata": {"name": "new"},
        "spec": {"suspend": true},
    });
    crate::support::manifests::merge(&mut manifest["spec"], spec);
    create("tokencaches", manifest)
}

fn fetch(source: &str, settings: Value) -> Value {
    json!({"fetch": {source: settings}})
}

fn http(change: Value) -> Value {
    let mut settings =
        json!({"url": "https://id.example.com/", "method": "POST", "result": {"token": "response.body"}});
    crate::support::manifests::merge(&mut settings, change);
    fetch("http", settings)
}

/// `oauth2` with the client's secret in a Secret that all authors may get.
fn oauth2(change: Value) -> Value {
    let mut settings = json!({
        "tokenUrl": "https://id.example.com/", "clientId": "a", "clientSecretRef": {"name": "open", "key": "k"},
    });
    crate::support::manifests::merge(&mut settings, change);
    fetch("oauth2", settings)
}

/// Each place of the definition that names a Secret, with the Secret `s` there.
fn references() -> Vec<(&'static str, Value)> {
    let s = json!({"name": "s", "key": "k"});
    let open = json!({"name": "open", "key": "k"});
    let ca = json!({"tls": {"caRef": {"kind": "Secret", "name": "s", "key": "k"}}});
    let certificate = json!({"tls": {"clientCertRef": {"name": "s"}}});
    let proxy = json!({"proxy": {"url": "http://proxy.example.com:3128", "credentialsRef": {"name": "s"}}});
    let parameter = json!([{"name": "a", "valueRef": s}]);
    let github = |change: Value| {
        let mut settings = json!({"appId": 1, "installationId": 2, "privateKeyRef": open});
        crate::support::manifests::merge(&mut settings, change);
        fetch("githubApp", settings)
    };
    let exchange = |tokens: Value| {
        let mut settings = json!({"grant": "TokenExchange", "subjectToken": {"secretRef": open}});
        crate::support::manifests::merge(&mut settings, tokens);
        oauth2(settings)
    };
    let bearer = |assertion: Value| {
        let mut settings =
            json!({"privateKeyRef": open, "algorithm": "RS256", "issuer": "i", "subject": "s", "audience": "a"});
        crate::support::manifests::merge(&mut settings, assertion);
        oauth2(json!({"grant": "JwtBearer", "clientSecretRef": null, "clientId": null, "assertion": settings}))
    };
    vec![
        ("oauth2.clientIdRef", oauth2(json!({"clientId": null, "clientIdRef": s}))),
        ("oauth2.clientSecretRef", oauth2(json!({"clientSecretRef": s}))),
        ("oauth2.refreshTokenRef", oauth2(json!({"grant": "RefreshToken", "refreshTokenRef": s}))),
        ("oauth2.assertion.privateKeyRef", bearer(json!({"privateKeyRef": s}))),
        ("oauth2.assertion.certificateRef", bearer(json!({"certificateRef": s}))),
        ("oauth2.subjectToken.secretRef", exchange(json!({"subjectToken": {"secretRef": s}}))),
        ("oauth2.actorToken.secretRef", exchange(json!({"actorToken": {"secretRef": s}}))),
        ("oauth2.tls.caRef", oauth2(ca.clone())),
        ("oauth2.tls.clientCertRef", oauth2(certificate.clone())),
        ("oauth2.proxy.credentialsRef", oauth2(proxy.clone())),
        ("http.body.valueRef", http(json!({"body": {"valueRef": s}}))),
        ("http.form[].valueRef", http(json!({"form": parameter}))),
        ("http.headers[].valueRef", http(json!({"headers": parameter}))),
        ("http.query[].valueRef", http(json!({"query": parameter}))),
        ("http.secrets{}", http(json!({"secrets": {"a": s}}))),
        ("http.tls.caRef", http(ca.clone())),
        ("http.tls.clientCertRef", http(certificate.clone())),
        ("http.proxy.credentialsRef", http(proxy.clone())),
        ("githubApp.privateKeyRef", github(json!({"privateKeyRef": s}))),
        ("githubApp.tls.caRef", github(ca)),
        ("githubApp.tls.clientCertRef", github(certificate)),
        ("githubApp.proxy.credentialsRef", github(proxy)),
    ]
}

/// Collects the paths of fields that name a Secret: those with a name and a key, and those of a name alone.
fn find_references(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let fields = &field["properties"];
        if name.ends_with("Ref") || fields["name"].is_object() && fields["key"].is_object() {
            found.insert(path.clone());
        }
        find_references(field, &path, found);
        find_references(&field["items"], &format!("{path}[]"), found);
        let values = &field["additionalProperties"]["properties"];
        if values["name"].is_object() && values["key"].is_object() {
            found.insert(format!("{path}{{}}"));
        }
    }
}

#[test]
fn the_references_are_those_of_the_definition() {
    let definition: Value = serde_saphyr::from_str(include_str!("../../../crds/tokencache.yaml")).expect("YAML");
    let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut found = BTreeSet::new();
    find_references(&spec["properties"]["fetch"], "", &mut found);
    let known: BTreeSet<String> = references().into_iter().map(|(path, _)| path.to_owned()).collect();
    assert_eq!(known, found);
}

#[test]
fn an_author_may_get_each_secret_that_is_read() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let [creates, updates] = writes_target();
        let rows = |verdict: Verdict| -> Vec<_> {
            references().into_iter().map(|(path, spec)| (path, cache(spec), verdict)).collect()
        };
        let open = on("", "secrets", "get", &["open"]);
        author(&ns, "few", &[creates.clone(), updates.clone(), open]).await.try_all(rows(READ)).await;
        let both = on("", "secrets", "get", &["open", "s"]);
        author(&ns, "both", &[creates.clone(), updates.clone(), both]).await.try_all(rows(Allow)).await;
        author(&ns, "all", &[creates, updates, rule("", "secrets", &["get"])]).await.try_all(rows(Allow)).await;
    });
}

#[test]
fn an_author_of_single_secrets_may_read_twelve() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let [creates, updates] = writes_target();
        let name = |index: usize| format!("s{index}");
        let reads = |names: usize, references: usize| {
            let secrets: serde_json::Map<String, Value> =
                (0..references).map(|at| (format!("v{at}"), json!({"name": name(at % names), "key": "k"}))).collect();
            cache(http(json!({ "secrets": secrets })))
        };
        let thirteen: Vec<String> = (0..13).map(name).collect();
        let thirteen: Vec<&str> = thirteen.iter().map(String::as_str).collect();
        let named = on("", "secrets", "get", &thirteen);
        author(&ns, "single", &[creates.clone(), updates.clone(), named])
            .await
            .try_all(vec![
                ("twelve", reads(12, 12), Allow),
                ("twelve, many times", reads(12, 40), Allow),
                ("thirteen", reads(13, 13), READ),
            ])
            .await;
        let all = rule("", "secrets", &["get"]);
        author(&ns, "all", &[creates.clone(), updates.clone(), all])
            .await
            .try_all(vec![("thirteen", reads(13, 13), Allow), ("fifty", reads(50, 50), Allow)])
            .await;
        // One more than an author of single Secrets has, at each place.
        for missing in 0..12 {
            let names: Vec<&str> = thirteen[..12].iter().copied().filter(|it| **it != name(missing)).collect();
            let named = on("", "secrets", "get", &names);
            author(&ns, &format!("without-{missing}"), &[creates.clone(), updates.clone(), named])
                .await
                .try_all(vec![("twelve", reads(12, 12), READ)])
                .await;
        }
    });
}

fn job() -> Value {
    fetch("job", json!({"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}))
}

fn restarts(workloads: &[(&str, &str)]) -> Value {
    let targets: Vec<Value> = workloads.iter().map(|(kind, name)| json!({"kind": kind, "name": name})).collect();
    let mut spec = http(json!({}));
    spec["rolloutRestartTargets"] = json!(targets);
    spec
}

/// The three ways to a token of the ServiceAccount `robot`.
fn tokens() -> [(&'static str, Value); 3] {
    let robot = json!({"serviceAccount": {"name": "robot", "audiences": ["a"]}});
    let open = json!({"secretRef": {"name": "open", "key": "k"}});
    let exchange = |subject: &Value, actor: &Value| {
        oauth2(json!({"grant": "TokenExchange", "subjectToken": subject, "actorToken": actor}))
    };
    [
        ("a token", fetch("serviceAccountToken", json!({"serviceAccountName": "robot", "audiences": ["a"]}))),
        ("a subject token", exchange(&robot, &Value::Null)),
        ("an actor token", exchange(&open, &robot)),
    ]
}

#[test]
fn an_author_has_the_rights_that_the_token_cache_uses() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        let [creates, updates] = writes_target();
        let web = |kind| restarts(&[(kind, "web")]);
        let kinds = [("Deployment", "deployments"), ("StatefulSet", "statefulsets"), ("DaemonSet", "daemonsets")];
        let elsewhere = || {
            let mut spec = http(json!({}));
            spec["target"] = json!({"name": "other"});
            cache(spec)
        };
        author(&ns, "nothing", &[]).await.try_all(vec![("a value", cache(http(json!({}))), TARGET)]).await;
        author(&ns, "creates", std::slice::from_ref(&creates))
            .await
            .try_all(vec![("a value", cache(http(json!({}))), Deny("spec.target: you need update on Secret new"))])
            .await;
        let open = on("", "secrets", "get", &["open"]);
        let base = [creates, updates, open];
        let mut rows = vec![
            ("a value", cache(http(json!({}))), Allow),
            ("another target", elsewhere(), Deny("spec.target: you need update on Secret other")),
            ("a job", cache(job()), JOBS),
        ];
        rows.extend(tokens().map(|(what, spec)| (what, cache(spec), TOKENS)));
        rows.extend(kinds.map(|(kind, _)| (kind, cache(web(kind)), RESTARTS)));
        author(&ns, "base", &base).await.try_all(rows).await;

        let jobs = rule("batch", "jobs", &["create"]);
        author(&ns, "jobs", &[&base[..], &[jobs]].concat()).await.try_all(vec![("a job", cache(job()), Allow)]).await;
        let robot = on("", "serviceaccounts/token", "create", &["robot"]);
        let rows = tokens().map(|(what, spec)| (what, cache(spec), Allow));
        author(&ns, "tokens", &[&base[..], &[robot]].concat()).await.try_all(rows.into()).await;
        let other = on("", "secrets", "update", &["other"]);
        author(&ns, "other", &[&base[..], &[other]].concat())
            .await
            .try_all(vec![("another target", elsewhere(), Allow)])
            .await;

        let all = [("Deployment", "web"), ("StatefulSet", "web"), ("DaemonSet", "web")];
        let named: Vec<Value> = kinds.iter().map(|(_, resource)| on("apps", resource, "patch", &["web"])).collect();
        let mut rows: Vec<_> = kinds.iter().map(|(kind, _)| (*kind, cache(web(kind)), Allow)).collect();
        rows.push(("two", cache(restarts(&all[..2])), Allow));
        rows.push(("two, of which one is another's", cache(restarts(&[all[0], ("Deployment", "api")])), RESTARTS));
        rows.push(("three", cache(restarts(&all)), RESTARTS));
        author(&ns, "web", &[&base[..], &named].concat()).await.try_all(rows).await;
        let every: Vec<Value> = kinds.iter().map(|(_, resource)| rule("apps", resource, &["patch"])).collect();
        let rows = vec![("three", cache(restarts(&all)), Allow)];
        author(&ns, "every", &[&base[..], &every].concat()).await.try_all(rows).await;
        let rows = vec![("three", cache(restarts(&all)), RESTARTS)];
        author(&ns, "two-kinds", &[&base[..], &every[..2]].concat()).await.try_all(rows).await;
    });
}

#[test]
fn what_uses_no_right_needs_none() {
    scenario(async {
        let Some(ns) = stage().await else { return };
        token_cache(&ns, "old").await;
        let spec = |change: Value| patch("tokencaches/old", json!({ "spec": change }));
        let metadata = |change: Value| patch("tokencaches/old", json!({ "metadata": change }));
        author(&ns, "nothing", &[])
            .await
            .try_all(vec![
                ("a label", metadata(json!({"labels": {"a": "b"}})), Allow),
                ("a request", metadata(json!({"annotations": {"tokencache.dev/refresh_requested": "now"}})), Allow),
                ("a finalizer", metadata(json!({"finalizers": ["example.com/x"]})), Allow),
                ("a pause", spec(json!({"suspend": false})), Allow),
                ("a schedule", spec(json!({"refresh": {"policy": "Lazy"}, "retry": {"maxInterval": "1h"}})), Allow),
                ("a lifetime", spec(json!({"expiry": {"maxAge": "1h"}})), Allow),
                ("another URL", spec(json!({"fetch": {"http": {"url": "https://other.example.com/"}}})), TARGET),
                ("another target", spec(json!({"target": {"name": "other"}})), TARGET),
                (
                    "another restart",
                    spec(json!({"rolloutRestartTargets": [{"kind": "Deployment", "name": "web"}]})),
                    TARGET,
                ),
                ("another type", spec(json!({"target": {"type": "example.com/x"}})), TARGET),
            ])
            .await;
    });
}
