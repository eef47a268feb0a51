//! Reads a Lease from a simulated Kubernetes API.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::json;

use super::*;

const DURATION: Duration = Duration::from_secs(15);

/// A server with a Lease that another replica holds and does not renew. While it is away, it answers 503.
fn locks(away: Arc<AtomicBool>) -> Locks {
    let lease = || {
        let owner = json!({
            "apiVersion": "tokencache.dev/v1alpha1", "kind": "TokenCache", "name": "a", "uid": "uid", "controller": true,
        });
        json!({
            "metadata": {"name": "tokencache-a", "resourceVersion": "7", "ownerReferences": [owner]},
            "spec": {"holderIdentity": "other_0_1", "leaseDurationSeconds": DURATION.as_secs()},
        })
    };
    let service = tower::service_fn(move |request: Request<Body>| {
        assert_eq!(*request.method(), Method::GET);
        let (status, body) = if away.load(SeqCst) {
            (503, json!({"kind": "Status", "code": 503, "message": "away", "reason": ""}))
        } else {
            (200, lease())
        };
        let response = Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
        async move { Ok::<_, Infallible>(response.unwrap()) }
    });
    Locks::new(Client::new(service, "b"), Clock::system(), "me".into(), DURATION)
}

impl Locks {
    /// Whether anything is remembered of this Lease.
    pub(crate) fn remembers(&self, owner: &OwnerRef) -> bool {
        self.sightings().contains_key(owner)
    }

    /// As after a release.
    pub(crate) fn remember_free(&self, owner: &OwnerRef) {
        let (duration, resource_version) = (self.0.duration, "1".to_owned());
        let owner_uid = Some(owner.uid.clone());
        let seen = Seen { resource_version, owner: owner_uid, same_name: true, holder: None, duration, transitions: 0 };
        let sighting = Sighting { seen, since: Instant::now(), released: true };
        self.sightings().insert(owner.clone(), sighting);
    }
}

fn owner() -> OwnerRef {
    OwnerRef { namespace: "b".into(), name: "a".into(), uid: "uid".into() }
}

/// Since when the Lease has been seen as it is, after another attempt to take it.
async fn seen_since(locks: &Locks) -> Instant {
    let acquired = locks.acquire(&owner(), LastHolder::Another).await.unwrap();
    assert!(matches!(acquired, Acquired::Busy { .. }), "{acquired:?}");
    locks.sightings()[&owner()].since
}

#[tokio::test]
async fn only_time_in_which_a_lease_could_be_read_counts() {
    let away = Arc::new(AtomicBool::new(false));
    let locks = locks(away.clone());
    let since = seen_since(&locks).await;
    assert_eq!(seen_since(&locks).await, since);
    away.store(true, SeqCst);
    assert!(locks.acquire(&owner(), LastHolder::Another).await.is_err());
    away.store(false, SeqCst);
    let back = Instant::now();
    assert!(seen_since(&locks).await >= back, "its holder could not renew it while the server was away");
}

#[tokio::test]
async fn nothing_is_remembered_of_an_object_that_is_deleted_during_its_run() {
    let (locks, owner) = (locks(Arc::default()), owner());
    let active = Active::begin(&locks, &owner).unwrap();
    assert!(Active::begin(&locks, &owner).is_none());
    locks.forget(&owner);
    // The release of the Lease, after the deletion was seen.
    locks.remember_free(&owner);
    drop(active);
    assert!(!locks.remembers(&owner));
    // The next run, of an object that is there.
    let active = Active::begin(&locks, &owner).unwrap();
    locks.remember_free(&owner);
    drop(active);
    assert!(locks.remembers(&owner));
}
