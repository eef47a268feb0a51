//! Tokens of service accounts, as the API server issues them (TokenRequest, `authentication.k8s.io/v1`).

use chrono::{DateTime, Utc};
use k8s_openapi::{Resource as _, api::authentication::v1::TokenRequest as KubeTokenRequest};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Failure, redact::Redactor};
use crate::{api::Duration, reason::Reason};

/// What is asked for.
pub(super) struct TokenRequest<'a> {
    /// Name of the ServiceAccount.
    pub(super) account: &'a str,
    /// Who is to take the token; the API server itself, where none is named.
    pub(super) audiences: &'a [String],
    /// How long it is to live; an hour, where it is not said. The server may choose another lifetime.
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
    /// [`Sources::service_account_token`](super::sources::Sources::service_account_token).
    pub(super) async fn send(&self, client: &kube::Client, namespace: &str) -> Result<Issued, Failure> {
        let account = format!("{namespace}/{}", self.account);
        let unusable = || {
            let message =
                format!("the Kubernetes API server: no usable answer to the TokenRequest for ServiceAccount {account}");
            Failure::new(Reason::Unreachable, message)
        };
        let url = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{}/token", self.account);
        let request = http::Request::post(url).header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(self.manifest().to_string().into_bytes()).map_err(|_| unusable())?;
        // As text: of an answer that it cannot decode, kube logs every word.
        let text = client.request_text(request).await.map_err(|error| refused(&error, self.account, namespace));
        interpret(&Zeroizing::new(text?)).ok_or_else(unusable)
    }

    fn manifest(&self) -> Value {
        let mut spec = json!({ "audiences": self.audiences });
        if let Some(expiration) = self.expiration {
            spec["expirationSeconds"] = expiration.as_std().as_secs().into();
        }
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

    #[test]
    fn what_is_asked_for_is_said_and_the_rest_is_left_to_the_server() {
        let all = TokenRequest {
            account: "robot",
            audiences: &["a".to_owned(), "b".to_owned()],
            expiration: Some(Duration::from_secs(600)),
        };
        let head = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"});
        let mut wanted = head.clone();
        wanted["spec"] = json!({"audiences": ["a", "b"], "expirationSeconds": 600});
        assert_eq!(all.manifest(), wanted);
        wanted["spec"] = json!({"audiences": []});
        assert_eq!(TokenRequest { account: "robot", audiences: &[], expiration: None }.manifest(), wanted);
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
        assert_eq!(refused(&kube::Error::TlsRequired, "robot", "b").reason, Reason::Unreachable);
    }
}
