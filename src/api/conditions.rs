//! The conditions of a TokenCache.

use super::TokenCacheStatus;

/// Whether the Secret holds a valid value.
pub const READY: &str = "Ready";
/// Whether the controller cannot make progress without a change by the user. Absent otherwise.
pub const STALLED: &str = "Stalled";

/// A condition's status and reason.
#[must_use]
pub fn condition<'a>(status: Option<&'a TokenCacheStatus>, type_: &str) -> Option<(&'a str, &'a str)> {
    let condition = status?.conditions.iter().find(|condition| condition.type_ == type_)?;
    Some((&condition.status, &condition.reason))
}
