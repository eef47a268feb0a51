//! Tokens of service accounts, as the API server issues them (TokenRequest, `authentication.k8s.io/v1`).

use std::time::Duration as StdDuration;

use chrono::{DateTime, Utc};
use k8s_openapi::{Resource as _, api::authentication::v1::TokenRequest as KubeTokenRequest};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Failure, redact::Redactor};
use crate::api::{Duration, reason::Reason};

/// What limits every token, whoever asks for it.
#[derive(Clone, Debug)]
pub(super) struct TokenLimits {
    /// Name and UID of the Secret with the value, if there is one: Kubernetes takes the token for void when that Secret
    /// is deleted.
    pub(super) secret: Option<(String, String)>,
    /// The longest lifetime that is asked for.
    pub(super) max_lifetime: StdDuration,
}

/// The lifetime of a token that is not bound to a Secret: the shortest that Kubernetes issues.
pub(super) const UNBOUND_LIFETIME: StdDuration = StdDuration::from_secs(600);
/// What Kubernetes takes where no lifetime is asked for.
const DEFAULT_LIFETIME: StdDuration = StdDuration::from_secs(3600);

/// What is asked for.
pub(super) struct TokenRequest<'a> {
    /// Name of the ServiceAccount.
    pub(super) account: &'a str,
    /// Who is to take the token; the API server itself, where none is named.
    pub(super) audiences: &'a [String],
    /// How long it is to live; an hour, where it is not said. The limits may make that shorter, and the server may choose
    /// another lifetime.
    pub(super) expiration: Option<Duration>,
}

/// What was issued.
#[derive(Debug)]
pub(super) struct Issued {
    /// A JWT.
    pub(super) token: SecretString,
    /// As the server says.
    pub(super) expires_at: DateTime<Utc>,
}

/// The part of the answer that counts. k8s-openapi's own type prints its token.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    status: Status<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    token: &'a str,
    expiration_timestamp: DateTime<Utc>,
}

impl TokenRequest<'_> {
    /// To be called for accounts only that their owner opened, see
    /// [`Sources::service_account_token`](super::source_objects::Sources::service_account_token).
    pub(super) async fn send(
        &self,
        client: &kube::Client,
        namespace: &str,
        limits: &TokenLimits,
    ) -> Result<Issued, Failure> {
        let account = format!("{namespace}/{}", self.account);
        let unusable = || {
            let message =
                format!("the Kubernetes API server: no usable answer to the TokenRequest for ServiceAccount {account}");
            Failure::new(Reason::Unreachable, message)
        };
        let url = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{}/token", self.account);
        let request = http::Request::post(url).header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(self.manifest(limits).to_string().into_bytes()).map_err(|_| unusable())?;
        // As text: of an answer that it cannot decode, kube logs every word.
        let text = client.request_text(request).await.map_err(|error| refused(&error, self.account, namespace));
        interpret(&Zeroizing::new(text?)).ok_or_else(unusable)
    }

    fn manifest(&self, limits: &TokenLimits) -> Value {
        let mut lifetime = self.expiration.map_or(DEFAULT_LIFETIME, Duration::as_std).min(limits.max_lifetime);
        let mut spec = json!({ "audiences": self.audiences });
        match &limits.secret {
            Some((name, uid)) => {
                spec["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "Secret", "name": name, "uid": uid});
            }
            None => lifetime = lifetime.min(UNBOUND_LIFETIME),
        }
        spec["expirationSeconds"] = lifetime.as_secs().into();
        json!({"apiVersion": KubeTokenRequest::API_VERSION, "kind": KubeTokenRequest::KIND, "spec": spec})
    }
}

fn interpret(text: &str) -> Option<Issued> {
    let Answer { status } = serde_json::from_str(text).ok()?;
    // A JWT has no character that JSON would escape, so it can be borrowed.
    (!status.token.is_empty()).then(|| Issued { token: status.token.into(), expires_at: status.expiration_timestamp })
}

/// What an answer of the API server means.
fn refused(error: &kube::Error, account: &str, namespace: &str) -> Failure {
    let account = format!("ServiceAccount {namespace}/{account}");
    match error {
        kube::Error::Api(status) => match status.code {
            404 | 409 if is_of_secret(status) => Failure::new(
                Reason::Unreachable,
                format!("the Secret that a token of {account} was to be bound to was deleted meanwhile"),
            ),
            404 => Failure::new(
                Reason::SourceNotFound,
                format!("{account} does not exist any more, or the API server issues no tokens"),
            ),
            403 if is_by_rbac(&status.message) => Failure::new(
                Reason::SourceNotAllowed,
                format!(
                    "tokencache may not request a token of {account}: its own role lacks create on \
                     serviceaccounts/token in namespace {namespace}"
                ),
            ),
            // The API server's rules for the request, or an admission webhook or policy, which may answer any of these.
            // The request holds nothing secret, so the server's words may be told.
            400..=499 if !matches!(status.code, 408 | 429) => Failure::new(
                Reason::Rejected,
                format!(
                    "Kubernetes refuses the TokenRequest for {account}: {}",
                    Redactor::default().clean(&status.message)
                ),
            ),
            code => Failure::new(
                Reason::Unreachable,
                format!("the Kubernetes API server: {code} {} at the TokenRequest for {account}", status.reason),
            ),
        },
        _ => Failure::new(
            Reason::Unreachable,
            format!("the Kubernetes API server: no usable answer to the TokenRequest for {account}"),
        ),
    }
}

/// Whether it is the Secret, to which the token is to be bound, that does not exist or is another one.
fn is_of_secret(status: &kube::core::Status) -> bool {
    status.details.as_ref().is_some_and(|details| matches!(details.kind.as_str(), "secrets" | "Secret"))
}

/// Whether it is a permission that lacks: admission denies with the same status and other words.
fn is_by_rbac(message: &str) -> bool {
    message.contains("cannot create resource")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

    use kube::core::Status;
    use secrecy::ExposeSecret as _;

    use super::*;

    fn limits(secret: bool, hours: u64) -> TokenLimits {
        TokenLimits {
            secret: secret.then(|| ("s".to_owned(), "uid-1".to_owned())),
            max_lifetime: StdDuration::from_secs(hours * 3600),
        }
    }

    #[test]
    fn what_is_asked_for_is_bound_to_the_secret() {
        let wanted = TokenRequest { account: "robot", audiences: &["a".to_owned(), "b".to_owned()], expiration: None };
        let bound = json!({"apiVersion": "v1", "kind": "Secret", "name": "s", "uid": "uid-1"});
        let spec = json!({"audiences": ["a", "b"], "expirationSeconds": 3600, "boundObjectRef": bound});
        let manifest = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        assert_eq!(wanted.manifest(&limits(true, 24)), manifest);
    }

    #[test]
    fn a_token_lives_no_longer_than_the_limits_allow() {
        for (expiration, secret, hours, seconds) in [
            (Some(600), true, 24, 600),
            (Some(86400), true, 24, 86400),
            (Some(86401), true, 24, 86400),
            (Some(315_360_000), true, 24, 86400),
            (None, true, 24, 3600),
            (Some(7200), true, 1, 3600),
            (None, false, 24, 600),
            (Some(7200), false, 24, 600),
        ] {
            let expiration = expiration.map(Duration::from_secs);
            let wanted = TokenRequest { account: "robot", audiences: &[], expiration };
            let spec = wanted.manifest(&limits(secret, hours))["spec"].clone();
            assert_eq!(spec["expirationSeconds"], seconds, "{expiration:?}");
            assert_eq!(spec.get("boundObjectRef").is_some(), secret);
        }
    }

    #[test]
    fn an_answer_counts_only_with_a_token_and_its_expiry() {
        let good = r#"{"status":{"token":"hunter2","expirationTimestamp":"2026-01-02T03:04:05Z"}}"#;
        let issued = interpret(good).unwrap();
        assert_eq!(issued.token.expose_secret(), "hunter2");
        assert_eq!(crate::time::rfc3339(issued.expires_at), "2026-01-02T03:04:05Z");
        assert!(!format!("{issued:?}").contains("hunter2"));
        for bad in [
            "",
            "{}",
            r#"{"status":{}}"#,
            r#"{"status":{"token":"","expirationTimestamp":"2026-01-02T03:04:05Z"}}"#,
            r#"{"status":{"token":"hunter2"}}"#,
            r#"{"status":{"token":"hunter2","expirationTimestamp":"soon"}}"#,
        ] {
            assert!(interpret(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_refusal_is_told_by_what_would_mend_it() {
        let rbac = r#"serviceaccounts "robot" is forbidden: User "u" cannot create resource "serviceaccounts/token" in API group "" in the namespace "b""#;
        let policy = r#"admission webhook "p" denied the request: no"#;
        for (code, message, reason, words) in [
            (404, "", Reason::SourceNotFound, "ServiceAccount b/robot does not exist"),
            (403, rbac, Reason::SourceNotAllowed, "lacks create on serviceaccounts/token in namespace b"),
            (403, policy, Reason::Rejected, policy),
            (400, policy, Reason::Rejected, policy),
            (422, "too short", Reason::Rejected, "ServiceAccount b/robot: too short"),
            (429, "", Reason::Unreachable, "429 Why at the TokenRequest for ServiceAccount b/robot"),
            (500, "", Reason::Unreachable, "500 Why at the TokenRequest for ServiceAccount b/robot"),
        ] {
            let error = kube::Error::Api(Status::failure(message, "Why").with_code(code).boxed());
            let failure = refused(&error, "robot", "b");
            assert_eq!(failure.reason, reason);
            assert!(failure.message.contains(words), "{failure}");
        }
        for code in [404, 409] {
            let mut status = Status::failure("x", "Why").with_code(code);
            status.details = serde_json::from_value(json!({"kind": "secrets", "name": "s"})).unwrap();
            let failure = refused(&kube::Error::Api(status.boxed()), "robot", "b");
            assert_eq!(failure.reason, Reason::Unreachable);
            assert!(failure.message.contains("was deleted meanwhile"), "{failure}");
        }
        assert_eq!(refused(&kube::Error::TlsRequired, "robot", "b").reason, Reason::Unreachable);
    }
}
