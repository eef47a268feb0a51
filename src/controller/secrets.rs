//! The metadata of the Secrets as the watch brings it. There are as many as there are TokenCaches, so each is kept as
//! packed text, and read when it is needed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource as _, runtime::watcher::Event};

use super::{
    packed::Packed,
    watch::{SecretMeta, key},
};
use crate::notes::Key;

/// The Secrets of one watch. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    known: HashMap<Key, Packed>,
    /// What a list has brought so far; it replaces all when it is whole.
    listed: HashMap<Key, Packed>,
}

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows an event.
    pub(super) fn apply(&self, event: &Event<SecretMeta>) {
        match event {
            Event::Apply(secret) => drop(self.lock().known.insert(key(secret), packed(secret.meta()))),
            Event::InitApply(secret) => drop(self.lock().listed.insert(key(secret), packed(secret.meta()))),
            Event::Delete(secret) => drop(self.lock().known.remove(&key(secret))),
            Event::Init => self.lock().listed = HashMap::new(),
            Event::InitDone => {
                let mut kept = self.lock();
                kept.known = std::mem::take(&mut kept.listed);
            }
        }
    }

    /// The metadata of a Secret.
    pub(super) fn get(&self, key: &Key) -> Option<ObjectMeta> {
        // What was written by the same library can be read.
        self.lock().known.get(key).and_then(|packed| serde_json::from_str(&packed.text()).ok())
    }
}

fn packed(metadata: &ObjectMeta) -> Packed {
    Packed::new(&serde_json::to_string(metadata).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, version: &str) -> SecretMeta {
        let metadata = serde_json::json!({
            "namespace": "ns", "name": name, "resourceVersion": version, "annotations": {"a": "b"},
        });
        serde_json::from_value(serde_json::json!({ "metadata": metadata })).expect("metadata")
    }

    #[test]
    fn a_list_replaces_what_was_known_only_when_it_is_whole() {
        let secrets = Secrets::default();
        let version = |name: &str| {
            let metadata = secrets.get(&("ns".to_owned(), name.to_owned()))?;
            let version = metadata.resource_version.clone();
            assert_eq!(metadata, *secret(name, version.as_deref()?).meta());
            version
        };
        secrets.apply(&Event::Apply(secret("a", "1")));
        secrets.apply(&Event::Apply(secret("b", "2")));
        secrets.apply(&Event::Delete(secret("b", "3")));
        assert_eq!((version("a").as_deref(), version("b")), (Some("1"), None));
        secrets.apply(&Event::Init);
        secrets.apply(&Event::InitApply(secret("c", "4")));
        assert_eq!((version("a").as_deref(), version("c")), (Some("1"), None));
        secrets.apply(&Event::InitDone);
        assert_eq!((version("a"), version("c").as_deref()), (None, Some("4")));
    }
}
