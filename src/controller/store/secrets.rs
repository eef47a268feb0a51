//! The metadata of the Secrets as the watch brings it. There are as many as there are TokenCaches, so each is kept as
//! packed text, and read when it is needed.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource as _, runtime::watcher::Event};
use parking_lot::{Mutex, MutexGuard};

use crate::controller::{
    store::compact::Packed,
    watch::{SecretMeta, key, owner_of},
};
use crate::{api::names::RESERVED_PREFIX, k8s::object::ObjectKey, reconcile::desired_secret::target_keys};

/// The Secrets of one watch. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(in crate::controller) struct Secrets(Arc<Mutex<Kept>>);

/// Most bytes of labels, annotations and the like that are kept of a Secret as they are: more than twice what `target` may
/// have of them.
const MAX_METADATA: usize = 40 * 1024;

#[derive(Debug, Default)]
struct Kept {
    known: Snapshot,
    /// What a list has brought so far; it replaces all when it is whole.
    listed: Snapshot,
}

#[derive(Debug, Default)]
struct Snapshot {
    secrets: HashMap<ObjectKey, Packed>,
    /// By namespace and name of a TokenCache: the Secrets that it controls and that have another name. The most are named
    /// like their TokenCache.
    renamed: HashMap<ObjectKey, BTreeSet<String>>,
}

impl Snapshot {
    fn insert(&mut self, secret: &SecretMeta) {
        let at = key(secret);
        self.remove(&at);
        if let Some(owner) = renamed_by(&at, secret.meta()) {
            self.renamed.entry(owner).or_default().insert(at.1.clone());
        }
        let packed = Packed::new(&serde_json::to_string(&*bounded(secret.meta())).unwrap_or_default());
        self.secrets.insert(at, packed);
    }

    fn remove(&mut self, at: &ObjectKey) {
        let Some(owner) = self.secrets.remove(at).and_then(|packed| renamed_by(at, &read(&packed)?)) else { return };
        if let Some(names) = self.renamed.get_mut(&owner) {
            names.remove(&at.1);
            if names.is_empty() {
                self.renamed.remove(&owner);
            }
        }
    }
}

/// The TokenCache that controls a Secret of another name than its own.
fn renamed_by((namespace, name): &ObjectKey, metadata: &ObjectMeta) -> Option<ObjectKey> {
    owner_of(metadata).filter(|owner| owner != name).map(|owner| (namespace.clone(), owner))
}

/// The metadata without what strangers put there, where it is large: anybody can have a Secret watched by its label. The keys
/// under `tokencache.dev/` and those of `target`, as the Secret records them, stay as far as they fit.
fn bounded(metadata: &ObjectMeta) -> Cow<'_, ObjectMeta> {
    let length = |map: &Option<BTreeMap<String, String>>| -> usize {
        map.iter().flatten().map(|(key, value)| key.len() + value.len()).sum()
    };
    let lists = metadata.finalizers.iter().flatten().map(String::len).sum::<usize>()
        + metadata.owner_references.iter().flatten().map(|owner| owner.name.len() + owner.uid.len()).sum::<usize>();
    if length(&metadata.annotations) + length(&metadata.labels) + lists <= MAX_METADATA {
        return Cow::Borrowed(metadata);
    }
    let mut metadata = metadata.clone();
    metadata.finalizers = None;
    metadata.owner_references.iter_mut().for_each(|owners| owners.retain(|owner| owner.controller == Some(true)));
    let of_target = target_keys(&metadata);
    for map in [&mut metadata.annotations, &mut metadata.labels] {
        let mut left = MAX_METADATA;
        map.iter_mut().for_each(|map| {
            map.retain(|key, value| {
                let is_ours = key.starts_with(RESERVED_PREFIX) || of_target.contains(key);
                let rest = left.checked_sub(key.len() + value.len()).filter(|_| is_ours);
                left = rest.unwrap_or(left);
                rest.is_some()
            });
        });
    }
    Cow::Owned(metadata)
}

fn read(packed: &Packed) -> Option<ObjectMeta> {
    // What was written by the same library can be read.
    serde_json::from_str(&packed.text()).ok()
}

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock()
    }

    /// Follows an event.
    pub(in crate::controller) fn apply(&self, event: &Event<SecretMeta>) {
        match event {
            Event::Apply(secret) => self.lock().known.insert(secret),
            Event::InitApply(secret) => self.lock().listed.insert(secret),
            Event::Delete(secret) => self.lock().known.remove(&key(secret)),
            Event::Init => self.lock().listed = Snapshot::default(),
            Event::InitDone => {
                let mut kept = self.lock();
                kept.known = std::mem::take(&mut kept.listed);
            }
        }
    }

    /// The metadata of a Secret.
    pub(in crate::controller) fn get(&self, key: &ObjectKey) -> Option<ObjectMeta> {
        self.lock().known.secrets.get(key).and_then(read)
    }

    /// The Secrets that may belong to the TokenCache of this namespace and name, without one of them.
    pub(in crate::controller) fn of(&self, (namespace, name): &ObjectKey, except: &str) -> Vec<ObjectMeta> {
        let kept = self.lock();
        let renamed = kept.known.renamed.get(&(namespace.clone(), name.clone()));
        let names = renamed.into_iter().flatten().chain([name]).filter(|name| *name != except);
        names.filter_map(|name| read(kept.known.secrets.get(&(namespace.clone(), name.clone()))?)).collect()
    }
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

    #[test]
    fn large_metadata_of_strangers_is_not_kept() {
        let mut large = secret("a", "1");
        let record = serde_json::json!({"annotations": ["note"], "labels": ["team"]}).to_string();
        let pairs = |pairs: &[(&str, &str)]| -> Option<BTreeMap<String, String>> {
            Some(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        let foreign = "x".repeat(MAX_METADATA);
        let metadata = large.meta_mut();
        metadata.annotations =
            pairs(&[("note", "ours"), ("foreign", &foreign), ("tokencache.dev/target_keys", &record)]);
        metadata.labels = pairs(&[("team", "blue"), ("foreign", "x"), ("tokencache.dev/managed", "true")]);
        metadata.finalizers = Some(vec!["f".to_owned(); 1000]);
        let kept = bounded(large.meta());
        assert_eq!(kept.annotations, pairs(&[("note", "ours"), ("tokencache.dev/target_keys", &record)]));
        assert_eq!(kept.labels, pairs(&[("team", "blue"), ("tokencache.dev/managed", "true")]));
        assert_eq!((kept.resource_version.as_deref(), &kept.finalizers), (Some("1"), &None));
        // Neither may what pretends to be ours be large.
        let pretended: Vec<_> = (0..100).map(|n| (format!("tokencache.dev/{n}"), "x".repeat(1024))).collect();
        large.meta_mut().annotations = Some(pretended.into_iter().collect());
        let kept = serde_json::to_string(&*bounded(large.meta())).expect("JSON");
        assert!(kept.len() < MAX_METADATA + 4096, "{}", kept.len());
        assert!(matches!(bounded(secret("b", "2").meta()), Cow::Borrowed(_)));
    }

    #[test]
    fn the_secrets_of_a_token_cache_are_known_under_all_names() {
        let secrets = Secrets::default();
        let owned = |name: &str, owner: &str| -> SecretMeta {
            let owner = serde_json::json!({
                "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": owner, "uid": "u", "controller": true,
            });
            let metadata = serde_json::json!({"namespace": "ns", "name": name, "ownerReferences": [owner]});
            serde_json::from_value(serde_json::json!({ "metadata": metadata })).expect("metadata")
        };
        let of = |owner: &str| -> Vec<String> {
            let found = secrets.of(&("ns".to_owned(), owner.to_owned()), "other");
            found.into_iter().filter_map(|metadata| metadata.name).collect()
        };
        for secret in [owned("a", "a"), owned("x", "a"), owned("y", "a"), owned("b", "b")] {
            secrets.apply(&Event::Apply(secret));
        }
        assert_eq!((of("a"), of("b"), of("c")), (vec!["x".into(), "y".into(), "a".into()], vec!["b".into()], vec![]));
        secrets.apply(&Event::Delete(owned("x", "a")));
        secrets.apply(&Event::Apply(owned("y", "b")));
        assert_eq!((of("a"), of("b")), (vec!["a".to_owned()], vec!["y".into(), "b".into()]));
        secrets.apply(&Event::Init);
        secrets.apply(&Event::InitApply(owned("z", "a")));
        secrets.apply(&Event::InitDone);
        assert_eq!((of("a"), of("b")), (vec!["z".to_owned()], vec![]));
        assert_eq!(secrets.lock().known.renamed.len(), 1, "nothing is kept of those that are gone");
    }
}
