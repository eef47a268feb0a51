//! A JSON object that holds a credential: its scalars, in types that are wiped.

use std::{collections::BTreeMap, fmt};

use secrecy::SecretString;
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Number, error::Category};

/// A member's value.
#[derive(Debug)]
pub(super) enum Member {
    /// A string.
    Text(SecretString),
    /// A number.
    Number(Number),
    /// True or false.
    Bool(bool),
    /// Null; the same as no member.
    Null,
    /// An object or a list, whose content is not kept.
    Nested {
        /// Whether there is any.
        empty: bool,
    },
}

impl Member {
    /// As a value of the result: strings as they are, numbers and booleans as JSON writes them.
    pub(super) fn into_value(self) -> Option<SecretString> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(number) => Some(number.to_string().into()),
            Self::Bool(bool) => Some(bool.to_string().into()),
            Self::Null | Self::Nested { .. } => None,
        }
    }
}

/// The members of an object by name.
pub(super) type Members = BTreeMap<String, Member>;

/// The text without a byte order mark at its beginning, which a parser of JSON may ignore (RFC 8259 §8.1).
pub(crate) fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)
}

/// Reads an object.
///
/// # Errors
/// What is wrong with the body, see [`problem`].
pub(super) fn read(body: &[u8]) -> Result<Members, String> {
    let body = without_bom(body);
    serde_json::from_slice(body).map_err(|error| problem(body, &error))
}

/// Reads an object; `None` where it is none.
pub(super) fn parse(body: &[u8]) -> Option<Members> {
    read(body).ok()
}

/// Why a text could not be read, to be said after "the body". It quotes nothing of the text, which may be secret: the
/// words of syntax errors are constants, and other errors are not repeated.
pub(super) fn problem(text: &[u8], error: &serde_json::Error) -> String {
    match error.classify() {
        _ if text.trim_ascii().is_empty() => "is empty".to_owned(),
        _ if std::str::from_utf8(text).is_err() => "is not UTF-8".to_owned(),
        Category::Syntax | Category::Eof => format!("is not JSON: {error}"),
        Category::Data | Category::Io => "is JSON, but not an object".to_owned(),
    }
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemberVisitor)
    }
}

struct MemberVisitor;

impl<'de> Visitor<'de> for MemberVisitor {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Member, E> {
        Ok(Member::Text(text.into()))
    }

    fn visit_string<E>(self, text: String) -> Result<Member, E> {
        Ok(Member::Text(text.into()))
    }

    fn visit_bool<E>(self, bool: bool) -> Result<Member, E> {
        Ok(Member::Bool(bool))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Member, E> {
        Ok(Member::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Member, E> {
        Ok(Member::Number(number.into()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Member, E> {
        Number::from_f64(number).map(Member::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_unit<E>(self) -> Result<Member, E> {
        Ok(Member::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Member, A::Error> {
        let mut empty = true;
        while list.next_element::<IgnoredAny>()?.is_some() {
            empty = false;
        }
        Ok(Member::Nested { empty })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member, A::Error> {
        let mut empty = true;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            empty = false;
        }
        Ok(Member::Nested { empty })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn scalars_become_values_and_nothing_else_does() {
        let body = br#"{"s":"a\nb","n":3600,"f":1.5,"b":true,"z":null,"l":[1,{"a":2}],"o":{"p":"q"}}"#;
        let values: BTreeMap<String, String> = parse(body)
            .unwrap()
            .into_iter()
            .filter_map(|(name, member)| Some((name, member.into_value()?.expose_secret().to_owned())))
            .collect();
        let expected = [("b", "true"), ("f", "1.5"), ("n", "3600"), ("s", "a\nb")];
        assert_eq!(values, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn what_is_no_object_is_told_without_any_of_it() {
        for (body, words) in [
            ("", "is empty"),
            ("\u{feff} \n", "is empty"),
            ("hunter2", "is not JSON: expected value at line 1 column 1"),
            ("[]", "is JSON, but not an object"),
            ("\"hunter2\"", "is JSON, but not an object"),
            ("null", "is JSON, but not an object"),
            ("{", "is not JSON: EOF while parsing an object"),
            ("{}hunter2", "is not JSON: trailing characters at line 1 column 3"),
            (r#"{"n": 1e400}"#, "is not JSON: number out of range at line 1"),
            ("{}\u{feff}", "is not JSON: trailing characters"),
        ] {
            let problem = read(body.as_bytes()).map(|_| ()).unwrap_err();
            assert!(problem.contains(words) && !problem.contains("hunter2"), "{body}: {problem}");
        }
        assert_eq!(read(b"{\"a\": \"\xe9\"}").map(|_| ()).unwrap_err(), "is not UTF-8");
    }

    #[test]
    fn a_byte_order_mark_is_ignored_at_the_beginning() {
        assert!(parse("\u{feff}{}".as_bytes()).is_some());
        assert_eq!(without_bom("\u{feff}\u{feff}a".as_bytes()), "\u{feff}a".as_bytes());
        assert_eq!(without_bom(b"\xef\xbb"), b"\xef\xbb");
    }

    #[test]
    fn an_object_or_a_list_tells_whether_it_is_empty() {
        for (json, wanted) in [("{}", true), ("[]", true), ("[null]", false), (r#"{"a":{}}"#, false)] {
            let members = parse(format!(r#"{{"m":{json}}}"#).as_bytes()).unwrap();
            assert!(matches!(members["m"], Member::Nested { empty } if empty == wanted), "{json}");
        }
    }

    #[test]
    fn a_member_does_not_print() {
        let members = parse(br#"{"access_token":"hunter2"}"#).unwrap();
        assert!(!format!("{members:?}").contains("hunter2"));
    }
}
