//! Why a consumer got no value.

use std::{sync::Arc, time::Duration};

use crate::k8s::error::message;

/// Why there is no value. It never holds one.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no TokenCache of that name.
    #[error("there is no TokenCache {name} in the namespace {namespace}")]
    NotFound {
        /// Where it was looked for.
        namespace: String,
        /// The name that was asked for.
        name: String,
    },
    /// The cluster does not know the kind TokenCache.
    #[error(
        "the TokenCache CRD is not installed; a cluster administrator can install it with: tokencache crd | kubectl create -f -"
    )]
    NotInstalled,
    /// The run that was asked for failed, or none will be made until someone edits something.
    #[error("{reason}: {message}")]
    Failed {
        /// One word, as in `status.lastFailure` and in conditions.
        reason: String,
        /// What was wrong and where.
        message: String,
    },
    /// `spec.suspend` is set, and there is no valid value.
    #[error("the TokenCache {name} is suspended and has no valid value: set spec.suspend to false")]
    Suspended {
        /// The TokenCache.
        name: String,
    },
    /// A run succeeded, but its value had expired, or was deleted, before it could be read.
    #[error("TokenCache {name}: a value was fetched, but it expired or was deleted before it could be read")]
    Expired {
        /// The TokenCache.
        name: String,
    },
    /// A value that was fetched just now has less left than was asked for.
    #[error("TokenCache {name}: the newest value expires in {}s, but {}s were requested", left.as_secs(), wanted.as_secs())]
    NearlyExpired {
        /// The TokenCache.
        name: String,
        /// What the newest value has left.
        left: Duration,
        /// What was asked for.
        wanted: Duration,
    },
    /// No answer came in time.
    #[error("no value of the TokenCache {name} within {waited:?}: {what}")]
    Timeout {
        /// The TokenCache.
        name: String,
        /// How long it was waited for.
        waited: Duration,
        /// For what.
        what: &'static str,
    },
    /// The Kubernetes API server does not allow it.
    #[error(
        "Forbidden: cannot {verb} {resource} {namespace}/{name}. Grant the caller the Role {role} (docs/consuming.md)"
    )]
    Forbidden {
        /// What was tried.
        verb: &'static str,
        /// On which resource.
        resource: &'static str,
        /// Of which name, if of one.
        name: String,
        /// Where.
        namespace: String,
        /// The Role of docs/consuming.md that allows it.
        role: &'static str,
    },
    /// The Secret has no such key.
    #[error("the Secret has no key {key}; it has: {keys}")]
    NoSuchKey {
        /// The key that was asked for.
        key: String,
        /// Those that there are.
        keys: String,
    },
    /// A value is to be shown as text and is none.
    #[error("the value under {key} is not text: ask for the bytes under that key alone")]
    NotText {
        /// The key.
        key: String,
    },
    /// The Secret belongs to something else than the TokenCache.
    #[error("Secret {namespace}/{name} is not owned by the TokenCache and is not modified")]
    NotOwned {
        /// Namespace of the Secret.
        namespace: String,
        /// Name of the Secret.
        name: String,
    },
    /// The Kubernetes API failed.
    #[error("the Kubernetes API failed: {}", message(.0))]
    Api(Arc<kube::Error>),
}

/// A call to the Kubernetes API, for the message when it is refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) verb: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    /// The Role of docs/consuming.md that allows it.
    pub(crate) role: &'static str,
}

impl Call<'_> {
    /// Says in the user's terms why the API server refused.
    pub(crate) fn refused(self, error: kube::Error) -> Error {
        let kube::Error::Api(status) = &error else { return Error::Api(Arc::new(error)) };
        let (namespace, name) = (self.namespace.to_owned(), self.name.to_owned());
        match status.code {
            403 => Error::Forbidden { verb: self.verb, resource: self.resource, name, namespace, role: self.role },
            404 if self.resource.starts_with("tokencaches") => {
                // Of an object that is missing the server tells the name; of a kind that it does not know it cannot.
                let named = status.details.as_ref().is_some_and(|details| !details.name.is_empty());
                if named { Error::NotFound { namespace, name } } else { Error::NotInstalled }
            }
            _ => Error::Api(Arc::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{Status, response::StatusDetails};

    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_users_terms() {
        let refused = |resource, code, name: &str| {
            let details = StatusDetails {
                name: name.to_owned(),
                group: String::new(),
                kind: String::new(),
                uid: String::new(),
                causes: Vec::new(),
                retry_after_seconds: 0,
            };
            let status = Status { code, details: Some(details), message: "m".into(), ..Status::default() };
            let call = Call { verb: "get", resource, name: "a", namespace: "n", role: "fetch" };
            call.refused(kube::Error::Api(Box::new(status)))
        };
        assert!(matches!(refused("tokencaches", 404, "a"), Error::NotFound { .. }));
        assert!(matches!(refused("tokencaches", 404, ""), Error::NotInstalled));
        assert!(matches!(refused("secrets", 404, "a"), Error::Api(_)));
        assert_eq!(refused("secrets", 500, "").to_string(), "the Kubernetes API failed: m (500)");
        let forbidden = refused("secrets", 403, "a").to_string();
        assert_eq!(forbidden, "Forbidden: cannot get secrets n/a. Grant the caller the Role fetch (docs/consuming.md)");
    }
}
