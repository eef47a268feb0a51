//! What is looked up at each scrape, so that nothing of what is gone stays: the state of each TokenCache as its status
//! tells it, and how busy this process is.

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, MetricEncoder},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};

use crate::{
    api::{READY, RefreshPolicy, STALLED, Source, TokenCache, condition, reason::Reason},
    k8s::object::ObjectKey,
};

/// What is told of one TokenCache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    source: &'static str,
    policy: &'static str,
    suspended: bool,
    ready: bool,
    stalled: Option<&'static str>,
    failures: i32,
    expires_at: Option<DateTime<Utc>>,
    refresh_at: Option<DateTime<Utc>>,
}

/// As many as there are TokenCaches, and no more.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Object {
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Described {
    namespace: String,
    name: String,
    source: &'static str,
    policy: &'static str,
    suspended: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Stalled {
    namespace: String,
    name: String,
    reason: &'static str,
}

impl Standing {
    /// By its status, which every replica sees alike.
    #[must_use]
    pub fn of(cache: &TokenCache) -> Self {
        let status = cache.status.as_ref();
        Self {
            source: cache.spec.fetch.source().map_or("none", Source::name),
            policy: match cache.spec.refresh.policy {
                RefreshPolicy::Eager => "Eager",
                RefreshPolicy::Lazy => "Lazy",
            },
            suspended: cache.spec.suspend,
            ready: condition(status, READY).is_some_and(|(ready, _)| ready == "True"),
            // Of the known reasons only: anyone who can patch the status can write another text there.
            stalled: condition(status, STALLED)
                .filter(|(stalled, _)| *stalled == "True")
                .and_then(|(_, reason)| Reason::refusal(reason))
                .map(Reason::as_str),
            failures: status.map_or(0, |status| status.failures),
            expires_at: status.and_then(|status| status.expires_at).and_then(|expiry| expiry.moment()),
            refresh_at: status.and_then(|status| status.refresh_at),
        }
    }
}

type Objects = Box<dyn Fn() -> Vec<(ObjectKey, Standing)> + Send + Sync>;
type Value = Box<dyn Fn() -> i64 + Send + Sync>;
/// Name, help and value.
type Gauge = (&'static str, &'static str, Value);

/// Where to look at each scrape. Cloning shares it.
#[derive(Clone, Default)]
pub(super) struct Gauges {
    objects: Arc<Mutex<Vec<Objects>>>,
    values: Arc<Mutex<Vec<Gauge>>>,
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauges").finish_non_exhaustive()
    }
}

impl Gauges {
    pub(super) fn add_objects(&self, objects: Objects) {
        self.objects.lock().push(objects);
    }

    pub(super) fn add_value(&self, name: &'static str, help: &'static str, value: Value) {
        self.values.lock().push((name, help, value));
    }

    fn standings(&self) -> Vec<(Object, Standing)> {
        let objects = self.objects.lock();
        let all = objects.iter().flat_map(|objects| objects());
        all.map(|((namespace, name), standing)| (Object { namespace, name }, standing)).collect()
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let all = self.standings();
        let gauge = MetricType::Gauge;

        let mut info = encoder.encode_descriptor("info", "How a TokenCache is set up", None, gauge)?;
        for (of, one) in &all {
            let labels = Described {
                namespace: of.namespace.clone(),
                name: of.name.clone(),
                source: one.source,
                policy: one.policy,
                suspended: if one.suspended { "true" } else { "false" },
            };
            ConstGauge::new(1_i64).encode(info.encode_family(&labels)?)?;
        }
        let ready = encoder.encode_descriptor("ready", "Whether the Secret holds a valid value", None, gauge)?;
        each(ready, &all, |one| Some(one.ready.into()))?;
        let help = "TokenCaches that need a change by the user, with the reason, such as a spec beyond a limit";
        let mut stalled = encoder.encode_descriptor("stalled", help, None, gauge)?;
        for (of, one) in &all {
            if let Some(reason) = one.stalled {
                let labels = Stalled { namespace: of.namespace.clone(), name: of.name.clone(), reason };
                ConstGauge::new(1_i64).encode(stalled.encode_family(&labels)?)?;
            }
        }
        let failures = encoder.encode_descriptor("failures", "Failed runs in a row", None, gauge)?;
        each(failures, &all, |one| Some(one.failures.into()))?;
        let seconds = Some(&Unit::Seconds);
        // Whole minutes: whoever can write a spec could write more of a response into it, for all who read the metrics.
        let help = "When the value expires, in Unix time and whole minutes; absent where it does not";
        let expiration = encoder.encode_descriptor("expiration_timestamp", help, seconds, gauge)?;
        each(expiration, &all, |one| one.expires_at.map(|at| minutes(at.timestamp().saturating_add(59))))?;
        let help = "When the next refresh is planned, in Unix time and whole minutes; absent where none is";
        let refresh = encoder.encode_descriptor("refresh_timestamp", help, seconds, gauge)?;
        each(refresh, &all, |one| one.refresh_at.map(|at| minutes(at.timestamp())))?;

        for (name, help, value) in self.values.lock().iter() {
            ConstGauge::new(value()).encode(encoder.encode_descriptor(name, help, None, gauge)?)?;
        }
        Ok(())
    }
}

/// Unix time without its seconds.
fn minutes(timestamp: i64) -> i64 {
    timestamp.div_euclid(60).saturating_mul(60)
}

fn each(
    mut family: MetricEncoder<'_>,
    all: &[(Object, Standing)],
    value: impl Fn(&Standing) -> Option<i64>,
) -> fmt::Result {
    for (of, one) in all {
        if let Some(value) = value(one) {
            ConstGauge::new(value).encode(family.encode_family(of)?)?;
        }
    }
    Ok(())
}
