//! Judges what is true at each moment: `Ready` and the value, and how many Secrets there are.

use super::{
    Invariant, Violation,
    life::{Life, Step},
    timeline::{Timeline, clock},
};
use crate::support::spans::{Span, common};

/// For how long `Ready` may say something else than what is, in seconds. Half a second more, since a report takes a
/// request.
const LATE: f64 = 2.5;
/// For how long there may be two Secrets.
const REPLACED: f64 = 5.0;
/// Spans are added up over this time, so that a state that comes and goes counts as well.
const WINDOW: f64 = 10.0;

pub fn judge(timeline: &Timeline, life: &Life) -> Vec<Violation> {
    let found = [
        find(timeline, life, Invariant::ReadyWithoutValue, LATE, ready_without_value),
        find(timeline, life, Invariant::NotReadyWithValue, LATE, not_ready_with_value),
        find(timeline, life, Invariant::OneSecret, REPLACED, two_secrets),
    ];
    found.into_iter().flatten().collect()
}

fn ready_without_value(step: &Step) -> Option<Span> {
    let from = step.value.map_or(step.span.from, |expires| step.span.from.max(expires));
    (step.cache.ready == Some(true)).then_some(Span::new(from, step.span.to))
}

fn not_ready_with_value(step: &Step) -> Option<Span> {
    let to = step.span.to.min(step.value?);
    // What another client made of a value is no valid value.
    (step.cache.ready == Some(false) && !step.tampered).then_some(Span::new(step.span.from, to))
}

fn two_secrets(step: &Step) -> Option<Span> {
    (step.secrets.len() > 1).then_some(step.span)
}

/// The first window in which the state lasts for longer than the limit.
fn find(
    timeline: &Timeline,
    life: &Life,
    invariant: Invariant,
    limit: f64,
    wrong: fn(&Step) -> Option<Span>,
) -> Option<Violation> {
    let judged = timeline.judged(invariant, &life.name);
    let steps = life.steps.iter().filter(|step| !step.cache.deleting);
    let found: Vec<(&Step, Span)> = steps
        .filter_map(|step| Some((step, wrong(step)?)))
        .flat_map(|(step, span)| common(&[vec![span], judged.clone()]).into_iter().map(move |span| (step, span)))
        .collect();
    let starts = found.iter().map(|(_, span)| span.from).chain(found.iter().map(|(_, span)| span.to - WINDOW));
    starts.into_iter().find_map(|start| {
        let window = Span::new(start, start + WINDOW);
        let inside: Vec<&(&Step, Span)> = found.iter().filter(|(_, span)| span.meets(window)).collect();
        let ((first, from), (last, to)) = (inside.first()?, inside.last()?);
        let length: f64 = inside.iter().map(|(_, span)| span.to.min(window.to) - span.from.max(window.from)).sum();
        let limit = limit + timeline.pulses.allowance(window);
        (length > limit).then(|| Violation {
            invariant,
            object: life.name.clone(),
            span: Span::new(from.from, to.to),
            detail: format!(
                "for {length:.1} s of 10 s, where {limit:.1} s are allowed; resourceVersions {} to {}; {}",
                first.version,
                last.version,
                describe(first),
            ),
        })
    })
}

fn describe(step: &Step) -> String {
    let value = match step.value {
        None => "no value".to_owned(),
        Some(expires) if expires.is_infinite() => "a value that does not expire".to_owned(),
        Some(expires) => format!("a value that expires at {}", clock(expires)),
    };
    let (ready, reason) = (step.cache.ready, &step.cache.reason);
    let name = step.cache.secret_name.as_deref().unwrap_or_default();
    format!(
        "Ready {ready:?} {reason}, generation {}, Secret {name:?} with {value}; managed Secrets: {:?}",
        step.cache.generation, step.secrets
    )
}
