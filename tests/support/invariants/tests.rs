use std::ops::Range;

use super::{
    Invariant, judge,
    timeline::{CacheVersion, Change, Entry, SecretVersion, Timeline},
};
use crate::support::spans::Span;

/// A timeline of 100 s that is written down, with one controller at work.
struct Story(Timeline);

impl Story {
    fn new() -> Self {
        let always = Span::new(0.0, f64::INFINITY);
        Self(Timeline { end: 100.0, controllers: vec![always], ..Timeline::default() })
    }

    fn add(mut self, at: f64, name: &str, change: Change) -> Self {
        let version = self.0.entries.len() as u64 + 1;
        self.0.entries.push(Entry { at, version, name: name.to_owned(), change });
        self
    }

    fn cache(self, at: f64, edit: impl Fn(&mut CacheVersion)) -> Self {
        let before = self.0.entries.iter().rev().find_map(|entry| match &entry.change {
            Change::Cache(version) => version.clone(),
            Change::Secret(_) => None,
        });
        let first =
            || CacheVersion { uid: "u".into(), retry: 1.0, secret_name: Some("a".into()), ..Default::default() };
        let mut version = before.unwrap_or_else(first);
        version.status = format!("{{\"runs\": {}}}", self.0.entries.len()).into();
        edit(&mut version);
        self.add(at, "a", Change::Cache(Some(version)))
    }

    fn ready(self, at: f64, ready: bool) -> Self {
        self.cache(at, |cache| cache.ready = Some(ready))
    }

    /// A controller writes a value into a Secret.
    fn writes(self, at: f64, name: &str, expires: f64) -> Self {
        let (owner, written) = (Some("u".to_owned()), format!("{at}"));
        let secret = SecretVersion { owner, managed: true, expires: Some(expires), written, ..Default::default() };
        self.add(at, name, Change::Secret(Some(secret)))
    }

    /// Another client changes a Secret.
    fn edits(self, at: f64, name: &str, edit: impl Fn(&mut SecretVersion)) -> Self {
        let before = self.0.entries.iter().rev().find_map(|entry| match &entry.change {
            Change::Secret(version) if entry.name == name => version.clone(),
            _ => None,
        });
        let mut version = before.unwrap_or_default();
        edit(&mut version);
        self.add(at, name, Change::Secret(Some(version)))
    }

    fn deletes(self, at: f64, name: &str) -> Self {
        self.add(at, name, Change::Secret(None))
    }

    fn requests(mut self, times: impl IntoIterator<Item = f64>) -> Self {
        self.0.requests.entry("a".to_owned()).or_default().extend(times);
        self
    }

    fn breaks(mut self) -> Vec<Invariant> {
        self.0.settle();
        judge(&self.0).into_iter().map(|violation| violation.invariant).collect()
    }
}

/// Moments in this span, so many seconds apart.
fn every(pause: f64, span: Range<f64>) -> Vec<f64> {
    let count = ((span.end - span.start) / pause) as usize;
    (0..count).map(|index| span.start + pause * index as f64).collect()
}

fn fetched() -> Story {
    Story::new().ready(0.0, false).writes(1.0, "a", 1000.0).ready(1.1, true)
}

#[test]
fn ready_without_a_value_is_found_after_two_seconds() {
    assert_eq!(fetched().breaks(), []);
    let deleted = |until| fetched().deletes(10.0, "a").writes(until, "a", 1000.0);
    assert_eq!(deleted(11.9).breaks(), []);
    assert_eq!(deleted(14.1).breaks(), [Invariant::ReadyWithoutValue]);
    let renamed = fetched().cache(10.0, |cache| cache.secret_name = Some("z".into()));
    assert_eq!(renamed.breaks(), [Invariant::ReadyWithoutValue]);
    let expired = |reported| Story::new().writes(0.0, "a", 8.0).ready(0.1, true).ready(reported, false);
    assert_eq!(expired(8.1).breaks(), []);
    assert_eq!(expired(28.1).breaks(), [Invariant::ReadyWithoutValue]);
    // A report that was received before the Secret's older version is no proof of anything.
    let late = fetched().deletes(10.0, "a").writes(14.0, "a", 1000.0).ready(10.5, true);
    assert_eq!(late.breaks(), []);
}

#[test]
fn nothing_is_judged_without_a_controller_or_where_it_is_exempt() {
    let expired = || Story::new().writes(0.0, "a", 8.0).ready(0.1, true).ready(28.0, false);
    let mut down = expired();
    down.0.controllers = vec![Span::new(0.0, 8.0), Span::new(27.0, 100.0)];
    assert_eq!(down.breaks(), []);
    let mut exempt = expired();
    exempt.0.exemptions.push((Invariant::ReadyWithoutValue, "a".into(), Span::new(7.0, 28.0)));
    assert_eq!(exempt.breaks(), []);
    let mut other = expired();
    other.0.exemptions.push((Invariant::NotReadyWithValue, "a".into(), Span::new(7.0, 28.0)));
    other.0.exemptions.push((Invariant::ReadyWithoutValue, "b".into(), Span::new(7.0, 28.0)));
    assert_eq!(other.breaks(), [Invariant::ReadyWithoutValue]);
    let busy = expired();
    busy.0.pulses.0.lock().extend([(7.0, 0.1), (12.0, 9.0)]);
    assert_eq!(busy.breaks(), []);
}

#[test]
fn not_ready_with_a_value_is_found_also_where_it_flaps() {
    assert_eq!(fetched().ready(20.0, false).breaks(), [Invariant::NotReadyWithValue]);
    let flaps = |count: usize| {
        let times = every(0.05, 20.0..20.0 + 0.05 * count as f64).into_iter().enumerate();
        times.fold(fetched(), |story, (index, at)| story.ready(at, index % 2 == 1))
    };
    assert_eq!(flaps(10).breaks(), []);
    assert_eq!(flaps(200).breaks(), [Invariant::NotReadyWithValue, Invariant::StatusRate]);
}

#[test]
fn a_value_that_another_client_changed_is_no_valid_value() {
    let refused = |story: Story| story.ready(20.0, false).breaks();
    assert_eq!(refused(fetched().edits(19.0, "a", |secret| secret.data = 1)), []);
    assert_eq!(refused(fetched().edits(19.0, "a", |secret| secret.expires = Some(2000.0))), []);
    let relabelled = fetched().edits(19.0, "a", |secret| secret.managed = true);
    assert_eq!(refused(relabelled), [Invariant::NotReadyWithValue]);
    let repaired = fetched().edits(15.0, "a", |secret| secret.data = 1).writes(16.0, "a", 1000.0);
    assert_eq!(refused(repaired), [Invariant::NotReadyWithValue]);
}

#[test]
fn a_second_secret_is_found_unless_it_is_the_state() {
    assert_eq!(fetched().writes(20.0, "b", 1000.0).breaks(), [Invariant::OneSecret]);
    assert_eq!(fetched().writes(20.0, "b", 1000.0).deletes(22.0, "b").breaks(), []);
    assert_eq!(fetched().writes(20.0, "tokencache-a-state", 1000.0).breaks(), []);
}

#[test]
fn requests_without_a_cause_are_found() {
    // Another client, or a webhook, changes each value: a loop.
    let times = every(0.1, 20.0..30.0);
    let loops =
        times.iter().fold(fetched(), |story, at| story.writes(*at, "a", 1000.0).cache(*at, |cache| cache.runs += 1));
    assert_eq!(loops.requests(times).breaks(), [Invariant::TokenRequests]);

    let times = every(3.0, 2.0..90.0);
    let short = times.iter().fold(fetched(), |story, at| {
        let refresh = at + 3.0;
        story.writes(*at, "a", at + 4.0).cache(*at, |cache| cache.refresh_at = Some(refresh))
    });
    assert_eq!(short.requests(times).ready(90.5, false).breaks(), []);

    let failing = Story::new().cache(1.0, |cache| (cache.ready, cache.failures) = (Some(false), 1));
    assert_eq!(failing.requests(every(0.6, 1.0..90.0)).breaks(), []);

    let asked = |count: usize| {
        (0..count).fold(fetched(), |story, index| story.cache(20.0, |cache| cache.requests.0 = Some(index.to_string())))
    };
    let sources = |count: usize, name: &str| {
        let named = fetched().cache(15.0, |cache| cache.sources = ["credentials".to_owned()].into());
        (0..count).fold(named, |story, index| story.edits(20.0, name, |secret| secret.data = index as u64))
    };
    assert_eq!(sources(10, "credentials").requests(every(0.2, 20.0..22.1)).breaks(), []);
    assert_eq!(sources(10, "others").requests(every(0.2, 20.0..22.1)).breaks(), [Invariant::TokenRequests]);

    assert_eq!(asked(10).requests(every(0.2, 20.0..22.1)).breaks(), []);
    assert_eq!(asked(1).requests(every(0.2, 20.0..22.1)).breaks(), [Invariant::TokenRequests]);
}

#[test]
fn an_unasked_request_of_a_lazy_object_is_found() {
    let lazy = || {
        let asked = Story::new().cache(0.0, |cache| cache.lazy = true);
        asked.cache(1.0, |cache| cache.requests.0 = Some("1".into())).writes(2.0, "a", 30.0)
    };
    assert_eq!(lazy().requests([1.5]).breaks(), []);
    assert_eq!(lazy().requests([1.5, 30.0]).breaks(), [Invariant::TokenRequests]);
    let failed = lazy().cache(40.0, |cache| cache.failures = 1);
    assert_eq!(failed.requests([1.5, 41.0]).breaks(), []);
}
