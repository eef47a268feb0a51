//! Which TokenCaches refer to which Secrets and ConfigMaps, so that a change of one wakes those that wait for it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{api::names::FIELD_MANAGER_ROTATION, fetch::Reference, notes::Key};

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

/// Whether the newest change of a Secret is a refresh token that tokencache wrote back. It is no news to those that wait
/// for the Secret, on whichever replica: else a run that failed after its own write would be repeated without a pause.
#[must_use]
pub fn is_rotation(metadata: &ObjectMeta) -> bool {
    let entries = || metadata.managed_fields.iter().flatten();
    let ours = |manager: &Option<String>| manager.as_deref() == Some(FIELD_MANAGER_ROTATION);
    let newest =
        |of_ours: bool| entries().filter(|entry| ours(&entry.manager) == of_ours).map(|entry| &entry.time).max();
    // Times are whole seconds: where both wrote in the same one, the other's change counts.
    newest(true).is_some_and(|rotated| newest(false).is_none_or(|other| rotated > other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::ReferenceKind;

    #[test]
    fn only_a_rotation_that_is_newer_than_all_other_changes_is_no_news() {
        let by = |entries: &[(&str, &str)]| {
            let entries: Vec<_> = entries
                .iter()
                .map(|(manager, at)| serde_json::json!({"manager": manager, "time": format!("2026-01-02T03:04:{at}Z")}))
                .collect();
            let metadata = serde_json::json!({ "managedFields": entries });
            is_rotation(&serde_json::from_value(metadata).expect("metadata"))
        };
        assert!(by(&[("kubectl", "01"), ("tokencache-rotation", "02")]));
        assert!(by(&[("tokencache-rotation", "02")]));
        assert!(!by(&[("kubectl", "02"), ("tokencache-rotation", "02")]));
        assert!(!by(&[("kubectl", "03"), ("tokencache-rotation", "02")]));
        assert!(!by(&[("tokencache", "03")]), "a Secret that one TokenCache writes may be another's source");
        assert!(!by(&[]));
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
