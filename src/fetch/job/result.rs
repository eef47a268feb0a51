//! What the user's container writes, and what the collector says of it in its termination message.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    api::reason::Reason,
    fetch::{
        Failure,
        json::{self, Member, Members},
        redact::Redactor,
    },
};

/// Before a sealed result.
pub(crate) const SEALED: &str = "sealed:";
/// Before a reason, a colon, and a message.
const FAILED: &str = "failed:";

/// A result that was read.
#[derive(Debug)]
pub(crate) struct JobResult {
    /// `token`.
    pub(in crate::fetch) token: Option<SecretString>,
    /// `values`.
    pub(in crate::fetch) values: Members,
    /// `expires_in` and `expires_at`.
    pub(in crate::fetch) stated: Members,
    /// `state`, as JSON.
    pub(in crate::fetch) state: Option<SecretString>,
}

#[derive(Deserialize)]
struct Raw<'a> {
    token: Option<Member>,
    #[serde(borrow)]
    values: Option<&'a RawValue>,
    expires_in: Option<Member>,
    expires_at: Option<Member>,
    #[serde(borrow)]
    state: Option<&'a RawValue>,
}

/// Reads a result. Messages say where and what is wrong with it, and nothing of what it holds.
pub(crate) fn read(result: &[u8]) -> Result<JobResult, Failure> {
    let wrong = |what: String| Failure::new(Reason::InvalidResponse, format!("the result ($TOKENCACHE_RESULT) {what}"));
    // PowerShell and others write a byte order mark.
    let result = json::without_bom(result);
    if result.trim_ascii().is_empty() {
        return Err(wrong("is missing or empty: the container succeeded but wrote nothing to that file".into()));
    }
    let object = |bytes| serde_json::from_slice::<&RawValue>(bytes).is_ok_and(|raw| raw.get().starts_with('{'));
    let raw: Raw<'_> = serde_json::from_slice(result).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        match error.classify() {
            _ if std::str::from_utf8(result).is_err() => wrong("is not text in UTF-8".into()),
            serde_json::error::Category::Data if object(result) => wrong(format!("has a duplicate key at {place}")),
            serde_json::error::Category::Data => wrong("is JSON, but not an object".into()),
            _ => wrong(format!("is not valid JSON ({place})")),
        }
    })?;
    let token = match raw.token {
        None => None,
        Some(Member::Text(token)) if token.expose_secret().is_empty() => {
            return Err(wrong("has an empty \"token\"".into()));
        }
        Some(Member::Text(token)) => Some(token),
        Some(_) => return Err(wrong("has a \"token\" that is not a string".into())),
    };
    let values = match raw.values.filter(|values| values.get() != "null") {
        None => None,
        Some(values) => Some(
            json::parse(values.get().as_bytes()).ok_or_else(|| wrong("has \"values\" that are no object".into()))?,
        ),
    };
    if let Some((name, _)) =
        values.iter().flatten().find(|(_, member)| matches!(member, Member::Nested { .. } | Member::Null))
    {
        let name = Redactor::default().clean(name);
        return Err(wrong(format!("has values.{name}, which is not a string, number or boolean")));
    }
    let values = values.unwrap_or_default();
    if token.is_none() && values.is_empty() {
        return Err(wrong("has neither \"token\" nor \"values\"".into()));
    }
    let stated = [("expires_in", raw.expires_in), ("expires_at", raw.expires_at)];
    let stated: BTreeMap<_, _> =
        stated.into_iter().filter_map(|(name, member)| Some((name.to_owned(), member?))).collect();
    let state = raw.state.map(RawValue::get).filter(|state| *state != "null").map(SecretString::from);
    Ok(JobResult { token, values, stated, state })
}

/// A failure that the collector found, as its termination message.
pub(crate) fn failed(failure: &Failure) -> String {
    format!("{FAILED}{}:{}", failure.reason, failure.message)
}

/// Reads such a message. Others than the collector could have written it, so it is cleaned, and names few reasons.
pub(super) fn read_failed(message: &str) -> Option<Failure> {
    let (reason, message) = message.strip_prefix(FAILED)?.split_once(':')?;
    let reason = [Reason::InvalidResponse, Reason::ResponseTooLarge, Reason::JobFailed]
        .into_iter()
        .find(|known| known.as_str() == reason)?;
    Some(Failure::new(reason, Redactor::default().clean(message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_a_token_or_values_with_what_belongs_to_it() {
        let result = read(br#" {"token": "hunter2", "expires_in": 60, "state": {"n": [1, 2]}, "more": 1} "#).unwrap();
        assert_eq!(result.token.as_ref().unwrap().expose_secret(), "hunter2");
        assert_eq!(result.state.as_ref().unwrap().expose_secret(), r#"{"n": [1, 2]}"#);
        assert!(matches!(result.stated.get("expires_in"), Some(Member::Number(_))));
        assert!(!format!("{result:?}").contains("hunter2") && !format!("{result:?}").contains("[1"));

        let result = read(br#"{"values": {"user": "me", "port": 5432}, "expires_at": 1767326400, "state": null}"#);
        let result = result.unwrap();
        assert!(result.token.is_none() && result.state.is_none());

        let marked = read(b"\xef\xbb\xbf{\"token\": \"hunter2\"}").unwrap();
        assert_eq!(marked.token.as_ref().unwrap().expose_secret(), "hunter2");
        assert!(read(b"\xef\xbb\xbf").unwrap_err().message.contains("is missing"));
        assert_eq!(result.values.keys().collect::<Vec<_>>(), ["port", "user"]);
    }

    #[test]
    fn what_is_wrong_with_a_result_is_told_without_what_it_holds() {
        for (result, expected) in [
            ("", "is missing"),
            (" \n", "is missing"),
            ("hunter2", "is not valid JSON (line 1, column 1)"),
            (r#"{"token": "hunter2""#, "is not valid JSON (line 1"),
            ("{\"token\":\n hunter2}", "line 2, column 2"),
            (r#"{"token": "hunter2"} hunter2"#, "is not valid JSON"),
            (r#""hunter2""#, "not an object"),
            (r#"["hunter2"]"#, "not an object"),
            (r#"{"token": "hunter2", "token": "hunter2"}"#, "has a duplicate key"),
            (r#"{"access_token": "hunter2"}"#, r#"neither "token" nor "values""#),
            (r#"{"token": null, "values": null}"#, r#"neither "token" nor "values""#),
            (r#"{"values": {}}"#, r#"neither "token" nor "values""#),
            (r#"{"token": ""}"#, "empty \"token\""),
            (r#"{"token": {"hunter2": 1}}"#, "not a string"),
            (r#"{"token": 17}"#, "not a string"),
            (r#"{"values": "hunter2"}"#, "are no object"),
            (r#"{"values": {"a": ["hunter2"]}}"#, "values.a, which is not a string"),
            (r#"{"values": {"a": null}}"#, "values.a, which is not a string"),
        ] {
            let failure = read(result.as_bytes()).expect_err(result);
            assert_eq!(failure.reason, Reason::InvalidResponse);
            assert!(failure.message.contains(expected) && !failure.message.contains("hunter2"), "{result}: {failure}");
            assert_eq!(read_failed(&failed(&failure)), Some(failure));
        }
        assert!(read(b"{\"token\": \"\xff\"}").unwrap_err().message.contains("UTF-8"));
    }

    #[test]
    fn a_message_that_the_collector_did_not_write_is_none() {
        for message in ["", "failed", "failed:x", "failed:Fetched:x", "failed:InvalidSpec:x", "sealed:x"] {
            assert_eq!(read_failed(message), None, "{message}");
        }
        let failure = read_failed(&format!("failed:JobFailed:a\n\u{1b}b{}", "x".repeat(300))).unwrap();
        assert!(failure.message.starts_with("a bxx") && failure.message.chars().count() == 201);
    }
}
