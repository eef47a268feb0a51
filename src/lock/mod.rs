//! The lock of a TokenCache: a `coordination.k8s.io/v1` Lease, held only while a run is going on.
//!
//! Every write is a create, or a PUT that carries `resourceVersion`: a patch without it would steal the Lease.

mod hold;
mod judge;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    api::coordination::v1::{Lease as FullLease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Resource, api::PostParams};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

pub use hold::Hold;
pub use judge::{Identity, Judgement, Seen, judge};

use crate::{
    api::names::{FIELD_MANAGER, LABEL_MANAGED},
    k8s::object::{self, OwnerRef},
    k8s::{error::message, metadata},
    time::{Clock, to_kube_micro},
};

/// A Lease as it is written, and read: without `managedFields`.
#[derive(Clone, Debug, Resource, Serialize, Deserialize)]
#[resource(inherit = FullLease)]
struct Lease {
    #[serde(deserialize_with = "metadata::metadata")]
    metadata: ObjectMeta,
    spec: Option<LeaseSpec>,
}

/// How an attempt to take a Lease ended, if not by an error.
#[derive(Debug)]
pub enum Acquired {
    /// It is held, and renewed until it is released.
    Hold(Hold),
    /// Somebody else holds it; it may be free, or free to be taken, after this time at the latest.
    Busy {
        /// After this time.
        retry_in: Duration,
        /// Who holds it; nobody where others were faster again and again.
        holder: Option<String>,
    },
    /// It belongs to a deleted TokenCache of the same name, and is about to be removed by Kubernetes' garbage collector;
    /// to be looked at after this time.
    Leftover(Duration),
}

/// Who has held a Lease last, as far as is known, so that neither a read nor a write is in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastHolder {
    /// Nobody yet: there should be none.
    Nobody,
    /// This replica.
    Me,
    /// Another one: whatever is remembered of the Lease is not so any more.
    Another,
}

/// Why a Lease was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A Lease of that name belongs to another object.
    #[error("the Lease {namespace}/{name} does not belong to this TokenCache: delete it, or rename the TokenCache")]
    NotOwned {
        /// Namespace of the Lease.
        namespace: String,
        /// Name of the Lease.
        name: String,
    },
    /// The API server refused, or did not answer.
    #[error("{}", message(.0))]
    Api(#[from] kube::Error),
    /// It did not answer in time.
    #[error("the API server did not answer a request for the Lease {0} in time")]
    Timeout(String),
}

/// Takes Leases, and remembers how it last saw each.
#[derive(Clone, Debug)]
pub struct Locks(Arc<Inner>);

struct Inner {
    /// With kube's own retry off: it repeats requests whatever their method.
    client: Client,
    clock: Clock,
    replica: String,
    nonce: String,
    attempts: AtomicU64,
    duration: Duration,
    sightings: Mutex<HashMap<OwnerRef, Sighting>>,
    /// Those of which this process has an attempt, and whether the object is gone meanwhile.
    active: Mutex<HashMap<OwnerRef, bool>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Locks")
            .field("replica", &self.replica)
            .field("duration", &self.duration)
            .finish_non_exhaustive()
    }
}

/// A Lease, and since when this very `resourceVersion` has been seen.
#[derive(Clone, Debug)]
struct Sighting {
    seen: Seen,
    since: Instant,
    /// Whether it is as this process released it, after a hold that was not lost.
    released: bool,
}

/// The one attempt of this process at a Lease: what `judge` relies on when it finds the Lease held by an earlier one.
#[derive(Debug)]
struct Active {
    locks: Locks,
    owner: OwnerRef,
}

impl Active {
    fn begin(locks: &Locks, owner: &OwnerRef) -> Option<Self> {
        let mut active = locks.active();
        let Entry::Vacant(entry) = active.entry(owner.clone()) else { return None };
        entry.insert(false);
        Some(Self { locks: locks.clone(), owner: owner.clone() })
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        if self.locks.active().remove(&self.owner) == Some(true) {
            // Its end was remembered as that of any other.
            self.locks.sightings().remove(&self.owner);
        }
    }
}

/// Attempts at one acquisition before it is left to a later one; each is lost to somebody who was faster.
const TRIES: usize = 4;

impl Locks {
    /// Takes Leases of `duration` under the name of `replica`.
    #[must_use]
    pub fn new(client: Client, clock: Clock, replica: String, duration: Duration) -> Self {
        let nonce = format!("{:08x}", rand::random::<u32>());
        let (attempts, sightings, active) = (AtomicU64::new(0), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { client, clock, replica, nonce, attempts, duration, sightings, active }))
    }

    /// Who this is, in `status.lastRunBy`.
    #[must_use]
    pub fn replica(&self) -> &str {
        &self.0.replica
    }

    /// Drops what is remembered of an object that is gone.
    pub fn forget(&self, owner: &OwnerRef) {
        self.active().entry(owner.clone()).and_modify(|gone| *gone = true);
        self.sightings().remove(owner);
    }

    fn active(&self) -> parking_lot::MutexGuard<'_, HashMap<OwnerRef, bool>> {
        self.0.active.lock()
    }

    fn sightings(&self) -> parking_lot::MutexGuard<'_, HashMap<OwnerRef, Sighting>> {
        self.0.sightings.lock()
    }

    fn api(&self, owner: &OwnerRef) -> Api<Lease> {
        Api::namespaced(self.0.client.clone(), &owner.namespace)
    }

    /// Takes the Lease, unless somebody else holds it. Does not wait for it.
    ///
    /// # Errors
    /// When the Lease belongs to somebody else, or the API server fails.
    pub async fn acquire(&self, owner: &OwnerRef, last: LastHolder) -> Result<Acquired, LockError> {
        let me = Identity::new(&self.0.replica, &self.0.nonce, self.0.attempts.fetch_add(1, Ordering::Relaxed));
        let Some(active) = Active::begin(self, owner) else {
            return Ok(Acquired::Busy { retry_in: self.0.duration / 10, holder: Some(me.to_string()) });
        };
        let remembered = self.sightings().get(owner).cloned();
        // A Lease that was free when last seen is tried as it was. One that was held must be looked at, and so must one
        // that belongs to another object: nothing is written to it that would tell that it is gone.
        let is_free = |seen: &Seen| seen.holder.is_none() && seen.owner.as_ref() == Some(&owner.uid);
        let mut sighting = match remembered {
            Some(sighting) if is_free(&sighting.seen) && last != LastHolder::Another => Some(sighting),
            None if last == LastHolder::Nobody => None,
            _ => self.look(owner).await?,
        };
        for _ in 0..TRIES {
            let unchanged_for = sighting.as_ref().map(|sighting| sighting.since.elapsed()).unwrap_or_default();
            let seen = sighting.as_ref().map(|sighting| &sighting.seen);
            let write = match judge(seen, &owner.uid, &me, unchanged_for) {
                Judgement::Create => self.write(owner, None, &me, 0),
                Judgement::Take { transitions } => {
                    self.write(owner, seen.map(|seen| seen.resource_version.as_str()), &me, transitions)
                }
                Judgement::Mine => {
                    // When the request was sent that took it is not known any more; a renewal tells.
                    let transitions = seen.map(|seen| seen.transitions).unwrap_or_default();
                    self.write(owner, seen.map(|seen| seen.resource_version.as_str()), &me, transitions)
                }
                Judgement::Wait(retry_in) if seen.is_some_and(|seen| seen.owner.as_ref() != Some(&owner.uid)) => {
                    return Ok(Acquired::Leftover(retry_in));
                }
                Judgement::Wait(retry_in) => {
                    let holder = seen.and_then(|seen| seen.holder.clone());
                    return Ok(Acquired::Busy { retry_in, holder });
                }
                Judgement::NotOwned => {
                    let (namespace, name) = (owner.namespace.clone(), owner.lease_name());
                    return Err(LockError::NotOwned { namespace, name });
                }
            };
            let uninterrupted = sighting.as_ref().is_none_or(|sighting| sighting.released);
            let sent = Instant::now();
            match write.await {
                Ok(seen) => return Ok(Acquired::Hold(Hold::start(active, me, seen, sent, uninterrupted))),
                Err(error) if error.is_final() => return Err(error),
                // A namespace that is gone, where looking at the Lease would not tell.
                Err(LockError::Api(kube::Error::Api(status))) if seen.is_none() && status.code == 404 => {
                    return Err(LockError::Api(kube::Error::Api(status)));
                }
                // Somebody was faster, or nobody knows whether the write happened: it may be mine.
                Err(_) => sighting = self.look(owner).await?,
            }
        }
        let holder = sighting.and_then(|sighting| sighting.seen.holder);
        Ok(Acquired::Busy { retry_in: self.0.duration / 10, holder })
    }

    /// Reads the Lease, and keeps since when it has been seen as it is.
    ///
    /// Only time in which it could be read counts: while the API server is away, its holder cannot renew it either. So
    /// after a read that failed, the time begins again.
    async fn look(&self, owner: &OwnerRef) -> Result<Option<Sighting>, LockError> {
        let lease = self.limited(owner, self.api(owner).get_opt(&owner.lease_name())).await;
        let seen = lease.inspect_err(|_| self.forget(owner))?.map(seen);
        let mut sightings = self.sightings();
        let Some(seen) = seen else {
            sightings.remove(owner);
            return Ok(None);
        };
        let known = sightings.get(owner).filter(|sighting| sighting.seen.resource_version == seen.resource_version);
        let (since, released) = known.map_or_else(|| (Instant::now(), false), |known| (known.since, known.released));
        let sighting = Sighting { seen, since, released };
        sightings.insert(owner.clone(), sighting.clone());
        Ok(Some(sighting))
    }

    /// Creates the Lease, or replaces it if it still has the `resourceVersion`.
    async fn write(
        &self,
        owner: &OwnerRef,
        resource_version: Option<&str>,
        me: &Identity,
        transitions: i32,
    ) -> Result<Seen, LockError> {
        let now = to_kube_micro(self.0.clock.now());
        let spec = LeaseSpec {
            holder_identity: Some(me.to_string()),
            lease_duration_seconds: Some(i32::try_from(self.0.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        self.put(owner, resource_version, spec).await
    }

    async fn put(&self, owner: &OwnerRef, resource_version: Option<&str>, spec: LeaseSpec) -> Result<Seen, LockError> {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(owner.lease_name()),
                namespace: Some(owner.namespace.clone()),
                resource_version: resource_version.map(Into::into),
                labels: Some([(LABEL_MANAGED.to_owned(), "true".to_owned())].into()),
                owner_references: Some(vec![owner.reference()]),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        let (api, params) =
            (self.api(owner), PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() });
        let lease = match resource_version {
            None => self.limited(owner, api.create(&params, &lease)).await?,
            Some(_) => self.limited(owner, api.replace(&owner.lease_name(), &params, &lease)).await?,
        };
        Ok(seen(lease))
    }

    /// Renews, without a change of the transitions.
    async fn renew(&self, owner: &OwnerRef, me: &Identity, held: &Seen) -> Result<Seen, LockError> {
        self.write(owner, Some(&held.resource_version), me, held.transitions).await
    }

    /// Empties the holder, and remembers the Lease as free, and whether it was `kept` until then.
    async fn empty(&self, owner: &OwnerRef, held: &Seen, kept: bool) -> Result<(), LockError> {
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(i32::try_from(self.0.duration.as_secs()).unwrap_or(i32::MAX)),
            renew_time: Some(to_kube_micro(self.0.clock.now())),
            lease_transitions: Some(held.transitions),
            ..LeaseSpec::default()
        };
        let seen = self.put(owner, Some(&held.resource_version), spec).await?;
        self.sightings().insert(owner.clone(), Sighting { seen, since: Instant::now(), released: kept });
        Ok(())
    }

    /// Whether the Lease belongs to another object, which only reading it can tell.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn is_foreign(&self, owner: &OwnerRef) -> Result<bool, LockError> {
        let sighting = self.look(owner).await?;
        let me = Identity::new(&self.0.replica, &self.0.nonce, u64::MAX);
        let seen = sighting.as_ref().map(|sighting| &sighting.seen);
        Ok(judge(seen, &owner.uid, &me, Duration::ZERO) == Judgement::NotOwned)
    }

    /// Whether nobody has held the Lease since this process released it, which only reading it can tell.
    ///
    /// # Errors
    /// When the API server fails.
    pub async fn is_as_left(&self, owner: &OwnerRef) -> Result<bool, LockError> {
        let left = self.sightings().get(owner).filter(|sighting| sighting.released).cloned();
        let Some(left) = left else { return Ok(false) };
        let found = self.limited(owner, self.api(owner).get_opt(&owner.lease_name())).await?;
        Ok(found.is_some_and(|lease| lease.metadata.resource_version.as_ref() == Some(&left.seen.resource_version)))
    }

    /// A time limit below the renewal interval, so that one lost answer does not cost the hold.
    fn limited<T>(
        &self,
        owner: &OwnerRef,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> impl Future<Output = Result<T, LockError>> {
        // On the heap, and at once, so that who waits for it takes little.
        let call = Box::pin(call);
        async {
            match timeout(self.0.duration / 4, call).await {
                Ok(result) => Ok(result?),
                Err(_) => Err(LockError::Timeout(format!("{}/{}", owner.namespace, owner.lease_name()))),
            }
        }
    }
}

impl LockError {
    /// Whether the write certainly did not happen, and for a reason that looking at the Lease does not mend.
    fn is_final(&self) -> bool {
        match self {
            Self::NotOwned { .. } => true,
            Self::Timeout(_) => false,
            Self::Api(kube::Error::Api(status)) => matches!(status.code, 400..=403 | 405..=408 | 410..=428 | 430..=499),
            Self::Api(_) => false,
        }
    }
}

fn seen(lease: Lease) -> Seen {
    let spec = lease.spec.unwrap_or_default();
    let of_token_cache = object::controlling_token_cache(&lease.metadata);
    let same_name =
        of_token_cache.is_some_and(|owner| lease.metadata.name == Some(format!("tokencache-{}", owner.name)));
    let owner = object::controller(&lease.metadata).map(|owner| owner.uid.clone());
    Seen {
        resource_version: lease.metadata.resource_version.unwrap_or_default(),
        owner,
        same_name,
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(spec.lease_duration_seconds.and_then(|secs| secs.try_into().ok()).unwrap_or(0)),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}
