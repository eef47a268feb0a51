//! Judges how often something happens.
//!
//! Requests to the token server in 10 s: 4, and 2 for each cause (one is repeated where a controller could not finish it).
//! Causes are: an edit of the spec, a request, another client's change of the Secret (at most 3 of them: after that, a
//! brake holds), a change of a Secret that the spec names, a planned refresh that came due, a controller that began or
//! ended. While runs fail or there is no valid value, as many as the shortest pause allows come on top. A `Lazy` TokenCache
//! has none but for requests, edits, changes of the Secret, and repetitions while there is no valid value.

use serde_json::{Map, Value};

use super::{
    Invariant, Violation,
    life::{Cause, Life, Step},
    timeline::Timeline,
};
use crate::support::spans::Span;

const WINDOW: f64 = 10.0;
/// A cause may be seen this long after its effect.
const SEEN_LATE: f64 = 1.0;
/// An effect may come this long after its cause: with the longest of the usual pauses.
const DONE_LATE: f64 = 5.0;
/// A run that somebody did not end is repeated when the Lease has run out.
const TAKEN_OVER: f64 = 20.0;
/// So often another client's changes of a Secret are answered within a window before a brake holds.
const DRIFTS: usize = 3;

pub fn judge(timeline: &Timeline, life: &Life) -> Vec<Violation> {
    [reports(timeline, life), requests(timeline, life), unasked(timeline, life)].into_iter().flatten().collect()
}

/// Refresh tokens that were sent though they were void.
pub fn void(timeline: &Timeline) -> Vec<Violation> {
    let sent = timeline.void.iter().flat_map(|(name, times)| times.iter().map(move |at| (name, *at)));
    let exempt = |name: &String, at: f64| {
        let mut of =
            timeline.exemptions.iter().filter(|(it, who, _)| *it == Invariant::VoidRefreshToken && who == name);
        of.any(|(_, _, span)| span.has(at))
    };
    let wrong = sent.filter(|(name, at)| !exempt(name, *at));
    wrong
        .map(|(name, at)| Violation {
            invariant: Invariant::VoidRefreshToken,
            object: name.clone(),
            span: Span::new(at, at),
            detail: "a void refresh token was sent".to_owned(),
        })
        .collect()
}

fn reports(timeline: &Timeline, life: &Life) -> Option<Violation> {
    let kinds = [Cause::Edit, Cause::Request, Cause::Run, Cause::Written, Cause::Foreign];
    let invariant = Invariant::StatusRate;
    let found =
        busiest(timeline, life, invariant, &life.reports, |window| 10 + 4 * life.causes(around(window), &kinds));
    found.map(|mut violation| {
        violation.detail.push_str(&said(life, violation.span));
        violation
    })
}

/// So many versions are told.
const TOLD: usize = 12;

/// What was new in each version of the status.
fn said(life: &Life, span: Span) -> String {
    let parsed = |step: &Step| serde_json::from_str::<Map<String, Value>>(&step.cache.status).unwrap_or_default();
    let changes = life.steps.windows(2).filter(|pair| pair[0].cache.status != pair[1].cache.status);
    let told = changes.filter(|pair| span.has(pair[1].span.from)).take(TOLD).map(|pair| {
        let (old, mut new) = (parsed(&pair[0]), parsed(&pair[1]));
        new.retain(|key, value| old.get(key) != Some(value));
        format!("\n  after {:.2} s {}", pair[1].span.from - span.from, Value::Object(new))
    });
    told.collect()
}

fn around(window: Span) -> Span {
    Span::new(window.from - DONE_LATE, window.to + SEEN_LATE)
}

fn requests(timeline: &Timeline, life: &Life) -> Option<Violation> {
    let arrivals = arrivals(timeline, life);
    busiest(timeline, life, Invariant::TokenRequests, &arrivals, |window| {
        let near = around(window);
        let drifts = life.causes(near, &[Cause::Foreign]).min(DRIFTS);
        let causes = life.causes(near, &[Cause::Edit, Cause::Request, Cause::Source]) + drifts;
        let taken_over = Span::new(window.from - TAKEN_OVER, window.to + SEEN_LATE);
        let turnover = timeline.turnover.iter().filter(|at| taken_over.has(**at)).count();
        4 + 2 * (causes + turnover + due(life, near)) + repetitions(life, near)
    })
}

/// How many planned refreshes came due in a span.
fn due(life: &Life, span: Span) -> usize {
    let mut times: Vec<f64> = life.steps.iter().filter_map(|step| step.cache.refresh_at).collect();
    times.dedup();
    times.into_iter().filter(|at| span.has(*at)).count()
}

/// How many repetitions the shortest pause allows while runs fail or there is no valid value.
fn repetitions(life: &Life, span: Span) -> usize {
    let failing = life
        .steps
        .iter()
        .filter(|step| step.span.meets(span))
        .filter(|step| step.cache.failures > 0 || step.value.is_none_or(|expires| expires <= step.span.to));
    let pause = failing.map(|step| step.cache.retry / 2.0).fold(f64::INFINITY, f64::min);
    (span.length() / pause.max(0.05)) as usize
}

fn arrivals(timeline: &Timeline, life: &Life) -> Vec<f64> {
    let lived = Span::new(life.span().from - SEEN_LATE, life.span().to);
    timeline.requests.get(&life.name).into_iter().flatten().copied().filter(|at| lived.has(*at)).collect()
}

/// Requests for a `Lazy` TokenCache that nobody asked for.
fn unasked(timeline: &Timeline, life: &Life) -> Option<Violation> {
    let always = life.steps.iter().all(|step| step.cache.lazy);
    let exempt = !timeline.judged(Invariant::TokenRequests, &life.name).iter().any(|span| span.meets(life.span()));
    let ever = Span::new(0.0, f64::INFINITY);
    let asked = life.causes(ever, &[Cause::Edit, Cause::Request, Cause::Foreign, Cause::Source]);
    let failed = life.steps.windows(2).filter(|pair| {
        let valid = pair[1].value.is_some_and(|expires| expires > pair[1].span.from);
        pair[1].cache.failures > pair[0].cache.failures && !valid
    });
    let ended = timeline.turnover.iter().filter(|at| life.span().has(**at)).count();
    let arrivals = arrivals(timeline, life).len();
    let allowed = asked + failed.count() + ended;
    (always && !exempt && arrivals > allowed).then(|| Violation {
        invariant: Invariant::TokenRequests,
        object: life.name.clone(),
        span: life.span(),
        detail: format!("{arrivals} requests for a Lazy TokenCache, of which {allowed} were asked for"),
    })
}

/// The first window of which more is seen than allowed.
fn busiest(
    timeline: &Timeline,
    life: &Life,
    invariant: Invariant,
    times: &[f64],
    allowed: impl Fn(Span) -> usize,
) -> Option<Violation> {
    let judged = timeline.judged(invariant, &life.name);
    let times: Vec<f64> = times.iter().copied().filter(|at| judged.iter().any(|span| span.has(*at))).collect();
    times.iter().find_map(|start| {
        let window = Span::new(*start, start + WINDOW);
        let count = times.iter().filter(|at| window.has(**at)).count();
        let allowed = if count > 4 { allowed(window) } else { count };
        (count > allowed).then(|| Violation {
            invariant,
            object: life.name.clone(),
            span: window,
            detail: format!("{count} in 10 s, where {allowed} are allowed"),
        })
    })
}
