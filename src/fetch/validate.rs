//! What the CRD's rules cannot check.

use super::{
    cel::{self, Place},
    http_client::renamed,
    redact::Redactor,
    references, render,
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
    let expressions: usize = expressions(spec).iter().map(|(_, text)| text.len()).sum();
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
    let expressions = expressions(spec);
    expressions.len() <= QUICK && cel::are_compiled(namespace, &expressions)
}

/// Evaluating the rules of the CRD takes time by their number, too.
const QUICK: usize = 16;

fn expressions(spec: &TokenCacheSpec) -> Vec<(Place, String)> {
    let http = match spec.fetch.source() {
        Some(Source::Http(http)) => Some(super::http::expressions(http)),
        _ => None,
    };
    let data = spec.target.data().values().map(|text| (Place::Data, text.clone())).collect::<Vec<_>>();
    http.into_iter().flatten().chain(data).collect()
}

/// Names become parts of paths of the API server. The CRD checks those in fields of their own, but not those in a job's
/// template, nor in objects that were stored before it did.
fn check_object_names(spec: &TokenCacheSpec) -> Result<(), Invalid> {
    let source = spec.fetch.source().map_or_else(|| "spec.fetch".to_owned(), |it| format!("spec.fetch.{}", it.name()));
    let sources = references(spec).into_iter().map(|it| (source.clone(), it.kind.to_string(), it.name));
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
    render::check(namespace, &data)?;
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
#[path = "validate_tests.rs"]
mod tests;
