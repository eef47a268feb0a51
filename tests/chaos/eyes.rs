//! Watches Secrets and Leases directly at the API server, past all faults, and keeps the book.

use std::{collections::BTreeSet, pin::pin, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::StreamExt as _;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    runtime::{
        watcher,
        watcher::{Config, Event},
    },
};
use parking_lot::Mutex;
use serde_json::Value;

use super::{
    book::{Book, Held, Page},
    jobs,
    world::World,
};
use crate::support::{SecretView as _, in_background, namespace::Object};

/// The book while it is kept.
#[derive(Clone, Default)]
pub struct Eyes(Arc<Mutex<Book>>);

impl Eyes {
    /// Begins to look.
    pub fn open(world: &Arc<World>) -> Self {
        let eyes = Self::default();
        let (book, of) = (eyes.clone(), world.clone());
        let secrets = move |name: &str, secret: Option<&Secret>| {
            if let Some(name) = name.strip_prefix("tokencache-").and_then(|name| name.strip_suffix("-state")) {
                let state = secret.and_then(jobs::state);
                return state
                    .into_iter()
                    .for_each(|state| book.with(name, |page| page.saw_state(of.weather.now(), state)));
            }
            let held = secret.map_or(Held::Nothing, |secret| held(&of, name, secret));
            book.with(name, |page| page.saw(of.weather.now(), held));
        };
        in_background(follow(world.seen::<Secret>(), secrets));
        let (book, of) = (eyes.clone(), world.clone());
        let leases = move |name: &str, lease: Option<&Lease>| {
            let Some(name) = name.strip_prefix("tokencache-") else { return };
            let holder = lease.and_then(|lease| lease.spec.as_ref()?.holder_identity.as_deref());
            let holder = holder.filter(|holder| !holder.is_empty());
            book.with(name, |page| page.saw_holder(of.weather.now(), holder));
        };
        in_background(follow(world.seen::<Lease>(), leases));
        eyes
    }

    fn with(&self, name: &str, act: impl FnOnce(&mut Page)) {
        act(self.0.lock().entry(name.to_owned()).or_default());
    }

    /// What was seen so far.
    pub fn book(&self) -> Book {
        self.0.lock().clone()
    }
}

/// Tells of each object as it becomes, and of each that is gone, however often the watch has to begin anew.
async fn follow<K: Object + Sync>(api: Api<K>, tell: impl Fn(&str, Option<&K>)) {
    let mut events = pin!(watcher(api, Config::default()));
    let (mut known, mut listed) = (BTreeSet::new(), BTreeSet::new());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object)) => {
                known.insert(object.name_any());
                tell(&object.name_any(), Some(&object));
            }
            Ok(Event::Delete(object)) => {
                known.remove(&object.name_any());
                tell(&object.name_any(), None);
            }
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                listed.insert(object.name_any());
                tell(&object.name_any(), Some(&object));
            }
            Ok(Event::InitDone) => {
                known.difference(&listed).for_each(|gone| tell(gone, None));
                known = std::mem::take(&mut listed);
            }
            // The API server is away; the watcher asks again at once.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

/// What the token server says about a Secret's value.
fn held(world: &World, name: &str, secret: &Secret) -> Held {
    let token = secret.token();
    let claims = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<Value> = claims.and_then(|claims| serde_json::from_slice(&claims).ok());
    let known = claims.and_then(|claims| {
        let number = usize::try_from(claims["n"].as_u64()?).ok()?;
        let expires = world.weather.at_unix(claims["exp"].as_f64()?);
        let issued = world.server.issued_as(name, number)?;
        (issued == token).then_some(Held::Value { number, expires })
    });
    known.unwrap_or(Held::Foreign)
}
