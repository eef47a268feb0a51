//! What a change of an object that a TokenCache refers to may help.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::{names::FIELD_MANAGER_ROTATION, reason::Reason};

/// What changed an object that TokenCaches refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceChange {
    /// A replica of tokencache wrote a new refresh token back.
    Rotation,
    /// Anything else.
    Other,
}

impl SourceChange {
    /// The newest change, by `metadata.managedFields`.
    #[must_use]
    pub fn newest(metadata: &ObjectMeta) -> Self {
        let entries = || metadata.managed_fields.iter().flatten();
        let ours = |manager: &Option<String>| manager.as_deref() == Some(FIELD_MANAGER_ROTATION);
        let newest =
            |of_ours: bool| entries().filter(|entry| ours(&entry.manager) == of_ours).map(|entry| &entry.time).max();
        // Times are whole seconds: where both wrote in the same one, the other's change counts.
        match newest(true) {
            Some(rotated) if newest(false).is_none_or(|other| rotated > other) => Self::Rotation,
            _ => Self::Other,
        }
    }

    /// Whether a fetch that failed for this reason may succeed after the change.
    ///
    /// A rotation helps only where the refresh token was refused: a replica that was frozen or cut off may write the
    /// token back long after another replica sent its predecessor. A fetch that fails for this reason has not written a
    /// token itself. One that fails for another reason may have, and its own write must not start it again at once.
    #[must_use]
    pub fn may_help(self, reason: &str) -> bool {
        match self {
            Self::Rotation => reason == Reason::ReauthenticationRequired.as_str(),
            Self::Other => Reason::is_of_source(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_as_a_rotation_only_if_it_is_newer_than_all_others() {
        let by = |entries: &[(&str, &str)]| {
            let entries: Vec<_> = entries
                .iter()
                .map(|(manager, at)| serde_json::json!({"manager": manager, "time": format!("2026-01-02T03:04:{at}Z")}))
                .collect();
            let metadata = serde_json::json!({ "managedFields": entries });
            SourceChange::newest(&serde_json::from_value(metadata).expect("metadata"))
        };
        assert_eq!(by(&[("kubectl", "01"), ("tokencache-rotation", "02")]), SourceChange::Rotation);
        assert_eq!(by(&[("tokencache-rotation", "02")]), SourceChange::Rotation);
        assert_eq!(by(&[("kubectl", "02"), ("tokencache-rotation", "02")]), SourceChange::Other);
        assert_eq!(by(&[("kubectl", "03"), ("tokencache-rotation", "02")]), SourceChange::Other);
        // A Secret that one TokenCache writes may be the source of another one.
        assert_eq!(by(&[("tokencache", "03")]), SourceChange::Other);
        assert_eq!(by(&[]), SourceChange::Other);
    }

    #[test]
    fn a_rotation_helps_a_refused_refresh_token_and_nothing_else() {
        for (reason, rotation, other) in [
            ("ReauthenticationRequired", true, true),
            ("Rejected", false, true),
            ("InvalidSpec", false, true),
            ("SourceNotFound", false, true),
            ("ServerError", false, false),
            ("", false, false),
        ] {
            assert_eq!(SourceChange::Rotation.may_help(reason), rotation, "{reason}");
            assert_eq!(SourceChange::Other.may_help(reason), other, "{reason}");
        }
    }
}
