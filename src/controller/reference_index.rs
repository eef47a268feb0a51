//! Which TokenCaches refer to which Secrets and ConfigMaps, so that a change of one wakes those that wait for it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{
    api::{names::FIELD_MANAGER_ROTATION, reason::Reason},
    fetch::Reference,
    reconcile::state::Key,
};

/// The index. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct References(Arc<Mutex<Index>>);

/// By namespace and what is referred to: the names of those that do.
type Index = HashMap<(String, Reference), HashSet<String>>;

impl References {
    /// Replaces what a TokenCache referred to by what it refers to now; nothing when it is new or gone.
    pub fn replace(&self, (namespace, name): &Key, old: &[Reference], new: &[Reference]) {
        let mut index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for old in old {
            let at = (namespace.clone(), old.clone());
            if let Some(names) = index.get_mut(&at) {
                names.remove(name);
                if names.is_empty() {
                    index.remove(&at);
                }
            }
        }
        for new in new {
            index.entry((namespace.clone(), new.clone())).or_default().insert(name.clone());
        }
    }

    /// The names of the TokenCaches in a namespace that refer to an object.
    #[must_use]
    pub fn to(&self, namespace: &str, reference: &Reference) -> Vec<String> {
        let index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names = index.get(&(namespace.to_owned(), reference.clone()));
        names.map(|names| names.iter().cloned().collect()).unwrap_or_default()
    }
}

/// What changed an object that TokenCaches refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A replica of tokencache wrote a new refresh token back.
    Rotation,
    /// Anything else.
    Other,
}

impl Change {
    /// The newest change, by `metadata.managedFields`.
    #[must_use]
    pub fn newest(metadata: &ObjectMeta) -> Self {
        let entries = || metadata.managed_fields.iter().flatten();
        let ours = |manager: &Option<String>| manager.as_deref() == Some(FIELD_MANAGER_ROTATION);
        let newest =
            |of_ours: bool| entries().filter(|entry| ours(&entry.manager) == of_ours).map(|entry| &entry.time).max();
        // Times are whole seconds: where both wrote in the same one, the other's change counts.
        match newest(true) {
            Some(rotated) if newest(false).is_none_or(|other| rotated > other) => Self::Rotation,
            _ => Self::Other,
        }
    }

    /// Whether a fetch that failed for this reason may succeed after the change.
    ///
    /// A rotation helps only where the refresh token was refused: a replica that was frozen or cut off may write the
    /// token back long after another replica sent its predecessor. A fetch that fails for this reason has not written a
    /// token itself. One that fails for another reason may have, and its own write must not start it again at once.
    #[must_use]
    pub fn may_help(self, reason: &str) -> bool {
        match self {
            Self::Rotation => reason == Reason::ReauthenticationRequired.as_str(),
            Self::Other => Reason::is_of_source(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::ReferenceKind;

    #[test]
    fn a_change_counts_as_a_rotation_only_if_it_is_newer_than_all_others() {
        let by = |entries: &[(&str, &str)]| {
            let entries: Vec<_> = entries
                .iter()
                .map(|(manager, at)| serde_json::json!({"manager": manager, "time": format!("2026-01-02T03:04:{at}Z")}))
                .collect();
            let metadata = serde_json::json!({ "managedFields": entries });
            Change::newest(&serde_json::from_value(metadata).expect("metadata"))
        };
        assert_eq!(by(&[("kubectl", "01"), ("tokencache-rotation", "02")]), Change::Rotation);
        assert_eq!(by(&[("tokencache-rotation", "02")]), Change::Rotation);
        assert_eq!(by(&[("kubectl", "02"), ("tokencache-rotation", "02")]), Change::Other);
        assert_eq!(by(&[("kubectl", "03"), ("tokencache-rotation", "02")]), Change::Other);
        // A Secret that one TokenCache writes may be the source of another one.
        assert_eq!(by(&[("tokencache", "03")]), Change::Other);
        assert_eq!(by(&[]), Change::Other);
    }

    #[test]
    fn a_rotation_helps_a_refused_refresh_token_and_nothing_else() {
        for (reason, rotation, other) in [
            ("ReauthenticationRequired", true, true),
            ("Rejected", false, true),
            ("InvalidSpec", false, true),
            ("SourceNotFound", false, true),
            ("ServerError", false, false),
            ("", false, false),
        ] {
            assert_eq!(Change::Rotation.may_help(reason), rotation, "{reason}");
            assert_eq!(Change::Other.may_help(reason), other, "{reason}");
        }
    }

    #[test]
    fn a_change_of_references_is_followed() {
        let secret = |name: &str| Reference { kind: ReferenceKind::Secret, name: name.into() };
        let references = References::default();
        let key = ("ns".to_owned(), "a".to_owned());
        references.replace(&key, &[], &[secret("x"), secret("y")]);
        references.replace(&key, &[secret("x"), secret("y")], &[secret("y"), secret("z")]);
        assert!(references.to("ns", &secret("x")).is_empty());
        assert_eq!(references.to("ns", &secret("y")), ["a"]);
        assert!(references.to("other", &secret("y")).is_empty());
        references.replace(&key, &[secret("y"), secret("z")], &[]);
        assert!(references.to("ns", &secret("z")).is_empty());
    }
}
