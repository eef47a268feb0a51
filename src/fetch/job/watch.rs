//! Watches of a run's objects. What breaks is taken up again; what the controller may not watch is told.

use std::fmt;

use futures::{StreamExt as _, stream};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource,
    runtime::watcher::{self, Error, Event},
};

use crate::{
    api::reason::Reason,
    fetch::Failure,
    k8s::{error::watch_message, watch::watch_all},
};

/// A watch without an end of its own.
pub(super) type Watched<K> = stream::BoxStream<'static, Result<Event<K>, Forbidden>>;

/// The controller's own role does not suffice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forbidden {
    verb: &'static str,
    resource: String,
    namespace: String,
}

impl Forbidden {
    pub(super) fn new<K: Resource<DynamicType = ()>>(verb: &'static str, namespace: &str) -> Self {
        let resource = match K::group(&()).as_ref() {
            "" => K::plural(&()).into_owned(),
            group => format!("{}.{group}", K::plural(&())),
        };
        Self { verb, resource, namespace: namespace.to_owned() }
    }
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, resource, namespace } = self;
        write!(
            f,
            "tokencache may not {verb} {resource} in namespace {namespace}: its own role, which for jobs needs what \
             config/rbac.yaml says, lacks {verb} on {resource}"
        )
    }
}

impl From<Forbidden> for Failure {
    fn from(forbidden: Forbidden) -> Self {
        Self::new(Reason::JobFailed, forbidden.to_string())
    }
}

/// Watches objects of a namespace.
pub(super) fn watched<K>(client: &Client, namespace: &str, config: watcher::Config) -> Watched<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + serde::de::DeserializeOwned + fmt::Debug + Send + 'static,
{
    let namespace = namespace.to_owned();
    watch_all(Api::<K>::namespaced(client.clone(), &namespace), config)
        .filter_map(move |event| {
            let news = match event {
                Ok(event) => Some(Ok(event)),
                Err(error) => {
                    tracing::debug!(error = watch_message(&error), "a watch of a job's run broke");
                    forbidden_verb(&error).map(|verb| Err(Forbidden::new::<K>(verb, &namespace)))
                }
            };
            std::future::ready(news)
        })
        .boxed()
}

/// What was forbidden, if that is why a watch broke.
fn forbidden_verb(error: &Error) -> Option<&'static str> {
    let is_forbidden = |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 403);
    match error {
        Error::InitialListFailed(error) if is_forbidden(error) => Some("list"),
        Error::WatchStartFailed(error) | Error::WatchFailed(error) if is_forbidden(error) => Some("watch"),
        Error::WatchError(status) if status.code == 403 => Some("watch"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
    use kube::core::Status;

    use super::*;

    #[test]
    fn only_what_is_forbidden_ends_a_watch_and_is_told_by_verb_and_resource() {
        let api = |code| kube::Error::Api(Status::failure("words", "Why").with_code(code).boxed());
        for (error, verb) in [
            (Error::InitialListFailed(api(403)), Some("list")),
            (Error::WatchStartFailed(api(403)), Some("watch")),
            (Error::WatchError(Status::failure("words", "Why").with_code(403).boxed()), Some("watch")),
            (Error::InitialListFailed(api(500)), None),
            (Error::WatchStartFailed(api(401)), None),
            (Error::WatchError(Status::failure("words", "Expired").with_code(410).boxed()), None),
            (Error::NoResourceVersion, None),
        ] {
            assert_eq!(forbidden_verb(&error), verb, "{error}");
        }
        assert!(Forbidden::new::<Job>("list", "b").to_string().ends_with("lacks list on jobs.batch"));
        assert!(Forbidden::new::<Pod>("watch", "b").to_string().contains("may not watch pods in namespace b"));
    }
}
