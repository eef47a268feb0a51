//! The floor: a run's requests as bare calls of kube's client, and nothing else. By the project's own pure functions, so
//! that objects are of the same size, and a controller finds them as another would have left them.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use parking_lot::Mutex;
use serde_json::json;
use tokencache::{
    api::{
        ExpiresAt, TokenCache,
        names::{FIELD_MANAGER, LABEL_MANAGED},
        reason::Reason,
    },
    k8s::{events::Events, object::OwnerRef, secret::SealedSecret},
    reconcile::{
        desired_secret::{Lifetime, Verdict, desired, read},
        plan::Observed,
        status::{Ended, after_run},
    },
    time::{Clock, floor, to_kube_micro},
};

use crate::{
    support::Namespace,
    world::{client_of, name},
};

/// As long as the token server's.
const TOKEN: usize = 300;

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

/// A lifetime from now on, in seconds.
pub fn valid_for(seconds: i64) -> Lifetime {
    let now = floor(Clock::system().now());
    Lifetime { fetched_at: now, expires_at: ExpiresAt::At(now + chrono::TimeDelta::seconds(seconds)) }
}

/// Creates or replaces a Secret.
pub async fn put_secret(
    client: &Client,
    cache: &TokenCache,
    found: Option<&ObjectMeta>,
    lifetime: Lifetime,
) -> ObjectMeta {
    let data = BTreeMap::from([("token".to_owned(), vec![b'x'; TOKEN].into())]);
    let owner = OwnerRef::of(cache);
    let secret = desired(cache, &owner, found, data, lifetime);
    let api = Api::<SealedSecret>::namespaced(client.clone(), &owner.namespace);
    let written = match found {
        None => api.create(&params(), &secret).await,
        Some(_) => api.replace(cache.secret_name(), &params(), &secret).await,
    };
    written.expect("a Secret").metadata
}

/// Patches the status as after a run.
pub async fn report(client: &Client, cache: &TokenCache, secret: &ObjectMeta) {
    let version = secret.resource_version.as_deref().unwrap_or_default();
    let seen = Observed {
        cache,
        invalid: None,
        secret_name: cache.secret_name(),
        secret: read(cache, Some(secret), Some((version, Verdict::Written))),
        exact: None,
        exact_retry: None,
        is_forged: false,
        unblocked: false,
        brake: None,
        min_interval: chrono::TimeDelta::zero(),
    };
    let ended = Ended {
        by: "floor",
        generation: cache.metadata.generation,
        failure: None,
        next_retry_at: None,
        answered: None,
        written: Some(version),
    };
    let status = after_run(&seen, &ended, Clock::system().now());
    let (uid, resource_version) = (&cache.metadata.uid, &cache.metadata.resource_version);
    let patch = json!({ "metadata": { "uid": uid, "resourceVersion": resource_version }, "status": status });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let api = Api::<TokenCache>::namespaced(client.clone(), &cache.namespace().unwrap_or_default());
    api.patch_status(&cache.name_any(), &params, &Patch::Merge(patch)).await.expect("a status");
}

/// Creates or replaces a Lease, and gives its `resourceVersion`.
pub async fn put_lease(client: &Client, owner: &OwnerRef, version: Option<&str>, holder: &str) -> String {
    let now = to_kube_micro(Clock::system().now());
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(owner.lease_name()),
            namespace: Some(owner.namespace.clone()),
            resource_version: version.map(Into::into),
            labels: Some([(LABEL_MANAGED.to_owned(), "true".to_owned())].into()),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            acquire_time: (!holder.is_empty()).then(|| now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        }),
    };
    let api = Api::<Lease>::namespaced(client.clone(), &owner.namespace);
    let written = match version {
        None => api.create(&params(), &lease).await,
        Some(_) => api.replace(&owner.lease_name(), &params(), &lease).await,
    };
    written.expect("a Lease").resource_version().expect("a resourceVersion")
}

/// The first run of a TokenCache: 4 writes and an event, and 1 read.
pub async fn first_run(client: &Client, namespace: &str, name: &str) {
    let cache = Api::<TokenCache>::namespaced(client.clone(), namespace).get(name).await.expect("a TokenCache");
    let owner = OwnerRef::of(&cache);
    let lease = put_lease(client, &owner, None, "floor_00000000_0").await;
    let lifetime = valid_for(3600);
    let secret = put_secret(client, &cache, None, lifetime).await;
    report(client, &cache, &secret).await;
    put_lease(client, &owner, Some(&lease), "").await;
    let note = format!("fetched a value that is valid until {} (first value)", lifetime.expires_at);
    Events::new(client.clone(), "floor".into()).publish(&cache, Reason::Fetched, &note).await;
}

/// What the bare calls know of each TokenCache, as a controller knows it from its watches.
pub struct Known {
    client: Client,
    namespace: String,
    versions: Vec<Mutex<(ObjectMeta, String)>>,
}

impl Known {
    /// Lists it.
    pub async fn list(ns: &Namespace, count: usize) -> Arc<Self> {
        let secrets: BTreeMap<String, ObjectMeta> = {
            let all = ns.api::<Secret>().list_metadata(&ListParams::default()).await.expect("a list");
            all.items.into_iter().map(|secret| (secret.name_any(), secret.metadata)).collect()
        };
        let leases: BTreeMap<String, String> = {
            let all = ns.api::<Lease>().list_metadata(&ListParams::default()).await.expect("a list");
            all.items.into_iter().filter_map(|lease| Some((lease.name_any(), lease.resource_version()?))).collect()
        };
        let versions = (0..count).map(|number| {
            let name = name(number);
            Mutex::new((secrets[&name].clone(), leases[&format!("tokencache-{name}")].clone()))
        });
        let (client, namespace) = (client_of(ns).await, ns.name.clone());
        Arc::new(Self { client, namespace, versions: versions.collect() })
    }

    /// A refresh: 4 writes and 1 read.
    pub async fn refresh(&self, number: usize) {
        let (found, version) = self.versions[number].lock().clone();
        let api = Api::<TokenCache>::namespaced(self.client.clone(), &self.namespace);
        let cache = api.get(&name(number)).await.expect("a TokenCache");
        let owner = OwnerRef::of(&cache);
        let held = put_lease(&self.client, &owner, Some(&version), "floor_00000000_0").await;
        let secret = put_secret(&self.client, &cache, Some(&found), valid_for(3600)).await;
        report(&self.client, &cache, &secret).await;
        let free = put_lease(&self.client, &owner, Some(&held), "").await;
        *self.versions[number].lock() = (secret, free);
    }
}
