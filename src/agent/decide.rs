//! What is to be done about a value, now. Pure.

use crate::client::{Error, Stamp};

/// What is known of one TokenCache's value.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The value that is valid now.
    pub valid: Option<&'a Stamp>,
    /// The last one that was seen to be valid since the agent was started.
    pub last: Option<&'a Stamp>,
    /// Why there is no newer one.
    pub error: Option<&'a Error>,
    /// The one that the files hold, as far as this is known.
    pub written: Option<&'a Stamp>,
    /// Whether files of values that are no longer valid are to go.
    pub remove_expired: bool,
    /// Whether they went already.
    pub removed: bool,
}

/// What to do about the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Write the value that is valid.
    Write,
    /// Remove them.
    Remove,
}

/// Decides about the files.
#[must_use]
pub fn step(known: &Known<'_>) -> Step {
    match known.valid {
        Some(valid) if known.written == Some(valid) => Step::Keep,
        Some(_) => Step::Write,
        None if known.remove_expired && !known.removed && is_known_to_be_gone(known) => Step::Remove,
        None => Step::Keep,
    }
}

/// Files from before the agent's start may hold a value that is valid yet: they stay while nobody knows.
fn is_known_to_be_gone(known: &Known<'_>) -> bool {
    let said = known.error.is_some_and(|error| {
        !matches!(error, Error::Forbidden { .. } | Error::Api(_) | Error::Timeout { .. } | Error::NotInstalled)
    });
    known.last.is_some() || said
}

/// What a file held before it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// There was none.
    Nothing,
    /// The same.
    Same,
    /// Something else.
    Other,
}

/// Whether those who use the value are to be told of it. Nobody is told of the first one: who starts reads it anyway,
/// and may not be ready for a signal yet.
#[must_use]
pub fn is_news(last: Option<&Stamp>, valid: &Stamp, before: Option<Before>) -> bool {
    match before {
        Some(Before::Same) => false,
        Some(Before::Other) => true,
        Some(Before::Nothing) | None => last.is_some_and(|last| last != valid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(text: &str) -> Stamp {
        format!("2026-03-01T12:00:00Z/{text}").parse().unwrap()
    }

    #[test]
    fn files_are_written_once_for_each_value_and_removed_only_where_that_is_wanted_and_sure() {
        let (a, b) = (stamp("a"), stamp("b"));
        let failed = Error::Failed { reason: "ServerError".into(), message: "m".into() };
        let late = Error::Timeout { name: "a".into(), waited: std::time::Duration::ZERO, what: "w" };
        let nothing =
            Known { valid: None, last: None, error: None, written: None, remove_expired: true, removed: false };
        let last = Some(&a);
        for (known, expected) in [
            (nothing, Step::Keep),
            (Known { valid: Some(&a), ..nothing }, Step::Write),
            (Known { valid: Some(&b), written: Some(&a), ..nothing }, Step::Write),
            (Known { valid: Some(&a), written: Some(&a), ..nothing }, Step::Keep),
            (Known { last, written: last, ..nothing }, Step::Remove),
            (Known { last, written: last, remove_expired: false, ..nothing }, Step::Keep),
            (Known { last, removed: true, ..nothing }, Step::Keep),
            (Known { error: Some(&failed), ..nothing }, Step::Remove),
            (Known { error: Some(&late), ..nothing }, Step::Keep),
        ] {
            assert_eq!(step(&known), expected, "{known:?}");
        }
    }

    #[test]
    fn the_first_value_is_no_news_and_neither_is_one_that_the_files_held_already() {
        let (a, b) = (stamp("a"), stamp("b"));
        for (last, before, expected) in [
            (None, None, false),
            (None, Some(Before::Nothing), false),
            (None, Some(Before::Same), false),
            (None, Some(Before::Other), true),
            (Some(&a), None, true),
            (Some(&b), None, false),
            (Some(&a), Some(Before::Nothing), true),
            (Some(&a), Some(Before::Same), false),
            (Some(&a), Some(Before::Other), true),
        ] {
            assert_eq!(is_news(last, &b, before), expected, "{last:?} {before:?}");
        }
    }
}
