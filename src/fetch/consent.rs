//! What owners of Secrets and ServiceAccounts allow TokenCaches to do with them, by labels and annotations: pure.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Failure, ReferenceKind, redact::Redactor};
use crate::api::{
    names::{ANNOTATION_AUDIENCES, API_SERVER_AUDIENCE, LABEL_SOURCE},
    reason::Reason,
};

/// Checks that an object has the source label.
pub(super) fn check_label(
    kind: ReferenceKind,
    namespace: &str,
    name: &str,
    metadata: &ObjectMeta,
) -> Result<(), Failure> {
    if is_labelled(metadata) {
        return Ok(());
    }
    let command = format!(
        "kubectl label {} {name} -n {namespace} --overwrite {LABEL_SOURCE}=true",
        kind.to_string().to_ascii_lowercase()
    );
    let message =
        format!("{kind} {namespace}/{name} is missing the label {LABEL_SOURCE}=true. To allow its use: {command}");
    Err(Failure::new(Reason::SourceNotAllowed, message))
}

/// Whether an object has the source label.
pub(super) fn is_labelled(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(LABEL_SOURCE)).is_some_and(|value| value == "true")
}

/// Checks that a ServiceAccount's owner allows tokens for all of these audiences; none stands for the API server's own.
pub(super) fn check_audiences<'a>(
    namespace: &str,
    name: &str,
    metadata: &'a ObjectMeta,
    audiences: &'a [String],
) -> Result<(), Failure> {
    let annotation = metadata.annotations.as_ref().and_then(|map| map.get(ANNOTATION_AUDIENCES));
    let mut allowed: BTreeSet<&str> = annotation.map(|text| listed(text).collect()).unwrap_or_default();
    let wanted: Vec<&str> = match audiences {
        [] => vec![API_SERVER_AUDIENCE],
        audiences => audiences.iter().map(String::as_str).collect(),
    };
    let missing: Vec<&str> = wanted.into_iter().filter(|audience| !allowed.contains(audience)).collect();
    let Some(first) = missing.first() else { return Ok(()) };
    let what = match *first {
        API_SERVER_AUDIENCE if audiences.is_empty() => "the API server's own audience".to_owned(),
        other => format!("the audience {}", Redactor::default().clean(other)),
    };
    allowed.extend(&missing);
    let list = allowed.into_iter().collect::<Vec<_>>().join(",");
    // The author of the TokenCache chooses the audiences, and the owner of the account may paste this into a shell.
    let cure = if list.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":/._-~@%+=,".contains(&byte)) {
        format!(
            "its owner allows it with kubectl annotate serviceaccount {name} -n {namespace} --overwrite \
             {ANNOTATION_AUDIENCES}={list}"
        )
    } else {
        format!("its owner allows audiences by the annotation {ANNOTATION_AUDIENCES}, separated by commas")
    };
    let message = format!("ServiceAccount {namespace}/{name} does not allow TokenCaches tokens for {what}: {cure}");
    Err(Failure::new(Reason::SourceNotAllowed, message))
}

fn listed(annotation: &str) -> impl Iterator<Item = &str> {
    annotation.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

    use serde_json::{Value, json};

    use super::*;

    fn account(annotation: Value) -> ObjectMeta {
        serde_json::from_value(
            json!({"annotations": {ANNOTATION_AUDIENCES: annotation}, "labels": {LABEL_SOURCE: "true"}}),
        )
        .unwrap()
    }

    #[test]
    fn an_audience_is_allowed_only_if_the_account_lists_it() {
        for (annotation, wanted, allowed) in [
            (json!("https://vault.example.com"), vec!["https://vault.example.com"], true),
            (json!("a, b\tc\n d"), vec!["a", "b", "c", "d"], true),
            (json!("a,b"), vec!["a", "c"], false),
            (json!("a,b"), vec!["a,b"], false),
            (json!("https://vault.example.com"), vec!["https://vault.example.com/"], false),
            (json!("A"), vec!["a"], false),
            (json!("*"), vec!["a"], false),
            (json!(""), vec!["a"], false),
            (json!(",, ,"), vec![""], false),
            // Without audiences, the token is for the API server.
            (json!("a"), vec![], false),
            (json!("a kube-apiserver"), vec![], true),
            (json!("kube-apiserver"), vec!["a"], false),
            (json!("kube-apiserver"), vec!["https://kubernetes.default.svc"], false),
        ] {
            let metadata = account(annotation.clone());
            let wanted: Vec<String> = wanted.into_iter().map(str::to_owned).collect();
            let checked = check_audiences("b", "robot", &metadata, &wanted);
            assert_eq!(checked.is_ok(), allowed, "{annotation} {wanted:?}");
        }
        let none = ObjectMeta::default();
        let failure = check_audiences("b", "robot", &none, &[]).unwrap_err();
        assert_eq!(failure.reason, Reason::SourceNotAllowed);
        assert_eq!(
            failure.message,
            "ServiceAccount b/robot does not allow TokenCaches tokens for the API server's own audience: its owner allows \
             it with kubectl annotate serviceaccount robot -n b --overwrite tokencache.dev/audiences=kube-apiserver"
        );
    }

    #[test]
    fn the_command_keeps_what_is_allowed_already_and_holds_nothing_that_a_shell_interprets() {
        let metadata = account(json!("https://a.example,b"));
        let message =
            |wanted: &str| check_audiences("b", "robot", &metadata, &[wanted.to_owned()]).unwrap_err().message;
        assert!(message("c").ends_with("tokencache.dev/audiences=b,c,https://a.example"), "{}", message("c"));
        for wanted in ["$(reboot)", "a;b", "a'b", "a b", "a`b`", "a\nb", "é"] {
            let message = message(wanted);
            assert!(!message.contains("kubectl") && !message.contains('\n'), "{message}");
        }
    }
}
