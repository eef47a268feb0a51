//! The life of each TokenCache, from its creation to its deletion: what was true in which span.

use std::collections::BTreeMap;

use super::timeline::{CacheVersion, Change, Entry, SecretVersion, Timeline};
use crate::support::spans::Span;

/// Something that may be the reason for a run, or for a new status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The spec was edited, or the annotations.
    Edit,
    /// A value was asked for.
    Request,
    /// A run ended.
    Run,
    /// A controller wrote a value.
    Written,
    /// Another client changed or deleted the Secret.
    Foreign,
    /// Another Secret was changed, whose name is in the spec.
    Source,
}

/// A span in which nothing changed.
#[derive(Clone, Debug)]
pub struct Step {
    pub span: Span,
    /// The `resourceVersion` that it begins with.
    pub version: u64,
    pub cache: CacheVersion,
    /// When the value expires that the Secret named by status holds, if it is the TokenCache's own.
    pub value: Option<f64>,
    /// Whether another client has changed that value.
    pub tampered: bool,
    /// The managed Secrets of the TokenCache, besides that for its state.
    pub secrets: Vec<String>,
}

/// The life of one TokenCache.
#[derive(Clone, Debug)]
pub struct Life {
    pub name: String,
    pub uid: String,
    pub steps: Vec<Step>,
    pub causes: Vec<(f64, Cause)>,
    /// When status had a new version.
    pub reports: Vec<f64>,
}

impl Life {
    /// From its creation to its end.
    pub fn span(&self) -> Span {
        let (first, last) = (self.steps.first(), self.steps.last());
        first.zip(last).map_or(Span::new(0.0, 0.0), |(first, last)| Span::new(first.span.from, last.span.to))
    }

    /// How many causes of these kinds there are in a span.
    pub fn causes(&self, span: Span, kinds: &[Cause]) -> usize {
        self.causes.iter().filter(|(at, cause)| span.has(*at) && kinds.contains(cause)).count()
    }

    fn new(name: &str, cache: &CacheVersion) -> Self {
        let (name, uid) = (name.to_owned(), cache.uid.clone());
        Self { name, uid, steps: Vec::new(), causes: Vec::new(), reports: Vec::new() }
    }

    fn version(&mut self, at: f64, before: &CacheVersion, after: &CacheVersion) {
        let mut add = |is: bool, cause: Cause| self.causes.extend(is.then_some((at, cause)));
        add(before.generation != after.generation, Cause::Edit);
        add(before.requests.0 != after.requests.0, Cause::Request);
        add(after.requests.1.is_some() && before.requests.1 != after.requests.1, Cause::Request);
        add(before.runs != after.runs, Cause::Run);
        if before.status != after.status {
            self.reports.push(at);
        }
    }

    /// Notes why the change of a Secret may be the reason for a run. Gives whether the Secret is, or was, the TokenCache's.
    fn secret(
        &mut self,
        entry: &Entry,
        cache: &CacheVersion,
        before: Option<&SecretVersion>,
        after: Option<&SecretVersion>,
    ) -> bool {
        if entry.name == format!("tokencache-{}-state", self.name) {
            return false;
        }
        let own = |secret: &SecretVersion| secret.owner.as_deref() == Some(&self.uid);
        let named = cache.secret_name.as_deref() == Some(&entry.name);
        let concerns = named || [before, after].into_iter().flatten().any(own);
        let cause = if after.is_some_and(|after| own(after) && before.is_none_or(|it| it.written != after.written)) {
            Cause::Written
        } else if named || before.is_some_and(own) {
            Cause::Foreign
        } else if cache.sources.contains(&entry.name) {
            Cause::Source
        } else {
            return concerns;
        };
        self.causes.push((entry.at, cause));
        concerns
    }

    fn step(&mut self, entry: &Entry, cache: &CacheVersion, secrets: &BTreeMap<&str, &SecretVersion>) {
        let own = |secret: &SecretVersion| secret.owner.as_deref() == Some(&self.uid);
        let named = cache.secret_name.as_deref().and_then(|name| secrets.get(name)).filter(|secret| own(secret));
        let state = format!("tokencache-{}-state", self.name);
        let managed = secrets.iter().filter(|(name, secret)| secret.managed && own(secret) && **name != state);
        let step = Step {
            span: Span::new(entry.at, f64::INFINITY),
            version: entry.version,
            cache: cache.clone(),
            value: named.and_then(|secret| secret.expires),
            tampered: named.is_some_and(|secret| secret.tampered),
            secrets: managed.map(|(name, _)| (*name).to_owned()).collect(),
        };
        self.end(entry.at);
        self.steps.push(step);
    }

    fn end(&mut self, at: f64) {
        if let Some(last) = self.steps.last_mut() {
            last.span.to = at;
        }
    }
}

/// The lives of all TokenCaches; one that was made anew has another.
pub fn lives(timeline: &Timeline) -> Vec<Life> {
    let mut secrets: BTreeMap<&str, &SecretVersion> = BTreeMap::new();
    let mut living: BTreeMap<&str, (Life, &CacheVersion)> = BTreeMap::new();
    let mut ended = Vec::new();
    for entry in &timeline.entries {
        match &entry.change {
            Change::Cache(version) => {
                let gone = version.as_ref().is_none_or(|version| {
                    living.get(entry.name.as_str()).is_some_and(|(life, _)| life.uid != version.uid)
                });
                if gone && let Some((mut life, _)) = living.remove(entry.name.as_str()) {
                    life.end(entry.at);
                    ended.push(life);
                }
                if let Some(version) = version {
                    let (life, before) =
                        living.entry(&entry.name).or_insert_with(|| (Life::new(&entry.name, version), version));
                    life.version(entry.at, before, version);
                    *before = version;
                    life.step(entry, version, &secrets);
                }
            }
            Change::Secret(version) => {
                let before = match version {
                    Some(version) => secrets.insert(&entry.name, version),
                    None => secrets.remove(entry.name.as_str()),
                };
                for (life, cache) in living.values_mut() {
                    if life.secret(entry, cache, before, version.as_ref()) {
                        let cache = *cache;
                        life.step(entry, cache, &secrets);
                    }
                }
            }
        }
    }
    ended.extend(living.into_values().map(|(mut life, _)| {
        life.end(timeline.end);
        life
    }));
    ended
}
