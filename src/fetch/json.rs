//! A JSON object that holds a credential: its scalars, in types that are wiped.

use std::{collections::BTreeMap, fmt};

use secrecy::SecretString;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;

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
    /// An object or a list, which is not kept.
    Nested,
}

impl Member {
    /// As a value of the result: strings as they are, numbers and booleans as JSON writes them.
    pub(super) fn into_value(self) -> Option<SecretString> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(number) => Some(number.to_string().into()),
            Self::Bool(bool) => Some(bool.to_string().into()),
            Self::Null | Self::Nested => None,
        }
    }
}

/// The members of an object by name.
pub(super) type Members = BTreeMap<String, Member>;

/// Reads an object. The error says nothing of what it met, since that may be secret.
pub(super) fn parse(body: &[u8]) -> Option<Members> {
    serde_json::from_slice(body).ok()
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

    fn visit_f64<E>(self, number: f64) -> Result<Member, E> {
        Ok(Number::from_f64(number).map_or(Member::Nested, Member::Number))
    }

    fn visit_unit<E>(self) -> Result<Member, E> {
        Ok(Member::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Member, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Member::Nested)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Member, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Member::Nested)
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
    fn what_is_no_object_is_nothing() {
        for body in ["", "x", "[]", "\"a\"", "{", "{}x", "null", "\u{feff}{}"] {
            assert!(parse(body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn a_member_does_not_print() {
        let members = parse(br#"{"access_token":"hunter2"}"#).unwrap();
        assert!(!format!("{members:?}").contains("hunter2"));
    }
}
