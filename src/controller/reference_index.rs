//! Which TokenCaches refer to which Secrets and ConfigMaps, so that a change of one wakes those that wait for it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{fetch::Reference, k8s::object::ObjectKey};
use parking_lot::Mutex;

/// The index. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct References(Arc<Mutex<Index>>);

/// By namespace and what is referred to: the names of those that do.
type Index = HashMap<(String, Reference), HashSet<String>>;

impl References {
    /// Replaces what a TokenCache referred to by what it refers to now; nothing when it is new or gone.
    pub fn replace(&self, (namespace, name): &ObjectKey, old: &[Reference], new: &[Reference]) {
        let mut index = self.0.lock();
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
        let index = self.0.lock();
        let names = index.get(&(namespace.to_owned(), reference.clone()));
        names.map(|names| names.iter().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::ReferenceKind;

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
