//! What a process remembers of TokenCaches, kept in step with them as their watch brings them.

use std::collections::HashSet;

use kube::{
    Resource as _, ResourceExt as _,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::Event,
    },
};
use tokio::time::Instant;

use super::{
    reconcile::Peers,
    store::{Kept, Sent},
    watch::key,
};
use crate::{
    api::TokenCache,
    controller::reference_index::References,
    fetch::{Reference, ReferenceKind, references, token_state},
    k8s::object::{ObjectKey, OwnerRef},
    lock::Locks,
    reconcile::state::Notes,
};

/// What is kept in step with the TokenCaches as the watch brings them.
pub(super) struct Books {
    pub(super) known: Store<Kept>,
    pub(super) references: References,
    pub(super) targets: References,
    pub(super) notes: Notes,
    pub(super) peers: Peers,
    pub(super) locks: Locks,
    /// The objects of the list that is being read.
    pub(super) listed: HashSet<ObjectKey>,
}

impl Books {
    /// Follows an event, and gives what is kept of it.
    pub(super) fn keep(&mut self, event: Event<Sent>) -> Event<Kept> {
        match event {
            Event::Apply(sent) => Event::Apply(self.applied(sent, true)),
            Event::InitApply(sent) => {
                let uid = sent.meta().uid.clone();
                let former =
                    self.known.get(&ObjectRef::new(&sent.name_any()).within(&sent.namespace().unwrap_or_default()));
                // Recreated under the same name while the watch was broken.
                if let Some(former) =
                    former.map(|former| owner(&former)).filter(|former| Some(&former.uid) != uid.as_ref())
                {
                    self.locks.forget(&former);
                }
                let kept = self.applied(sent, false);
                self.listed.insert(key(&kept));
                Event::InitApply(kept)
            }
            Event::Delete(sent) => {
                let (kept, _) = Kept::of(sent);
                self.gone(&kept);
                Event::Delete(kept)
            }
            Event::Init => {
                self.listed.clear();
                Event::Init
            }
            Event::InitDone => {
                // No event tells of one that was deleted while the watch was broken.
                let listed = std::mem::take(&mut self.listed);
                self.known.state().iter().filter(|known| !listed.contains(&key(&***known))).for_each(|known| {
                    self.gone(known);
                });
                Event::InitDone
            }
        }
    }

    /// Ends a run that is not wanted any more, and learns by news who else is at work.
    fn applied(&self, sent: Sent, news: bool) -> Kept {
        let (kept, read) = Kept::of(sent);
        let (key, known) = (key(&kept), self.known.get(&ObjectRef::from_obj(&kept)));
        if known.as_ref().is_none_or(|known| known.spec != kept.spec) {
            self.refer(&key, known.as_deref(), read.as_ref().ok());
        }
        let Ok(cache) = read else { return kept };
        if cache.spec.suspend || cache.metadata.deletion_timestamp.is_some() {
            self.notes.cancel(&key);
        }
        // Only a run that has just ended tells of a replica that is at work.
        if news
            && let Some(replica) = cache.status.and_then(|status| status.last_run_by)
            && known.is_some_and(|known| known.runs < kept.runs)
        {
            self.peers.saw(&replica, Instant::now());
        }
        kept
    }

    /// Drops what is remembered of one that was deleted.
    fn gone(&self, kept: &Kept) {
        let key = key(kept);
        self.refer(&key, self.known.get(&ObjectRef::from_obj(kept)).as_deref(), None);
        self.notes.forget(&key);
        self.locks.forget(&owner(kept));
    }

    /// Keeps in mind what a TokenCache refers to, and no more what it referred to.
    fn refer(&self, key: &ObjectKey, old: Option<&Kept>, new: Option<&TokenCache>) {
        let old = old.and_then(|old| old.read().ok());
        let of = |cache: Option<&TokenCache>| {
            let named = cache.map(|cache| references(&cache.spec)).unwrap_or_default();
            named.into_iter().chain(cache.and_then(token_state)).collect::<Vec<_>>()
        };
        self.references.replace(key, &of(old.as_ref()), &of(new));
        // The most are named like their TokenCache, and need no entry.
        let other = |cache: &TokenCache| Some(cache.secret_name()).filter(|name| *name != key.1).map(secret_named);
        let target = |cache: Option<&TokenCache>| cache.and_then(other).into_iter().collect::<Vec<_>>();
        self.targets.replace(key, &target(old.as_ref()), &target(new));
    }
}

/// What the Lease of a TokenCache is taken for.
fn owner(kept: &Kept) -> OwnerRef {
    let (namespace, name) = key(kept);
    OwnerRef { namespace, name, uid: kept.all_metadata().uid.unwrap_or_default() }
}

pub(super) fn secret_named(name: &str) -> Reference {
    Reference { kind: ReferenceKind::Secret, name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use serde_json::json;

    use super::*;
    use crate::{k8s::client::connect, time::Clock};

    fn sent(name: &str, uid: &str) -> Sent {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": "1"},
            "spec": {"fetch": {"oauth2": {
                "tokenUrl": "https://id.example.com", "clientId": "me", "clientSecretRef": {"name": "s", "key": "k"},
            }}},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn nothing_is_kept_of_objects_that_were_deleted_while_the_watch_was_broken() {
        let client = connect(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let locks = Locks::new(client, Clock::system(), "me".into(), std::time::Duration::from_secs(15));
        let (known, mut writer) = reflector::store::<Kept>();
        let mut books = Books {
            known,
            references: References::default(),
            targets: References::default(),
            notes: Notes::default(),
            peers: Peers::new("me"),
            locks: locks.clone(),
            listed: HashSet::new(),
        };
        let mut list = |books: &mut Books, objects: &[(&str, &str)]| {
            let objects = objects.iter().map(|(name, uid)| Event::InitApply(sent(name, uid)));
            for event in [Event::Init].into_iter().chain(objects).chain([Event::InitDone]) {
                writer.apply_watcher_event(&books.keep(event));
            }
        };
        let owner = |name: &str, uid: &str| OwnerRef { namespace: "ns".into(), name: name.into(), uid: uid.into() };
        list(&mut books, &[("a", "1"), ("b", "2"), ("c", "3")]);
        for (name, uid) in [("a", "1"), ("b", "2"), ("c", "3")] {
            books.notes.with(&("ns".to_owned(), name.to_owned()), |note| note.met = true);
            locks.remember_free(&owner(name, uid));
        }
        // "a" was deleted, "b" deleted and created again.
        list(&mut books, &[("b", "4"), ("c", "3")]);
        let is_noted = |name: &str| books.notes.with_known(&("ns".to_owned(), name.to_owned()), |_| ()).is_some();
        assert_eq!((is_noted("a"), is_noted("b"), is_noted("c")), (false, true, true));
        let source = Reference { kind: ReferenceKind::Secret, name: "s".into() };
        let mut referring = books.references.to("ns", &source);
        referring.sort_unstable();
        assert_eq!(referring, ["b", "c"]);
        let remembered = |name: &str, uid: &str| locks.remembers(&owner(name, uid));
        assert_eq!((remembered("a", "1"), remembered("b", "2"), remembered("c", "3")), (false, false, true));
        assert!(books.listed.is_empty());
    }
}
