//! Values of expressions: made from text and JSON, read as text and JSON, and wiped.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    fmt, mem,
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
pub(in crate::fetch) use kube::core::cel::cel::Value;
use kube::core::cel::cel::objects::{Key, Map};
use serde::{
    Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
    ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer},
};
use zeroize::Zeroize as _;

use crate::fetch::json::{problem, without_bom};

/// JSON with more values than that is not taken: each costs many times its bytes.
const MAX_VALUES: usize = 100_000;

/// A value that is wiped when dropped, as far as nobody else holds it. CEL's own copies are out of reach.
pub(in crate::fetch) struct Wiped(pub(in crate::fetch) Value);

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => _ = Arc::get_mut(text).map(|text| text.zeroize()),
        Value::Bytes(bytes) => _ = Arc::get_mut(bytes).map(|bytes| bytes.zeroize()),
        Value::List(list) => Arc::get_mut(list).into_iter().flatten().for_each(wipe),
        Value::Map(map) => Arc::get_mut(&mut map.map).into_iter().flat_map(HashMap::values_mut).for_each(wipe),
        _ => {}
    }
}

impl Wiped {
    /// Takes a string or bytes out of it.
    pub(in crate::fetch) fn into_bytes(mut self) -> Result<Vec<u8>, Self> {
        match &mut self.0 {
            Value::String(text) => Ok(mem::take(Arc::make_mut(text)).into_bytes()),
            Value::Bytes(bytes) => Ok(mem::take(Arc::make_mut(bytes))),
            _ => Err(self),
        }
    }

    /// Takes a string out of it.
    pub(in crate::fetch) fn into_text(mut self) -> Result<String, Self> {
        match &mut self.0 {
            Value::String(text) => Ok(mem::take(Arc::make_mut(text))),
            _ => Err(self),
        }
    }
}

/// A string.
pub(in crate::fetch) fn text(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

/// A map's key.
pub(super) fn key(text: &str) -> Key {
    Key::String(Arc::new(text.to_owned()))
}

/// A map.
pub(in crate::fetch) fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let map: HashMap<_, _> = entries.into_iter().map(|(name, value)| (key(name), value)).collect();
    Value::Map(Map { map: Arc::new(map) })
}

/// A value as text, where it is a string, a number or a boolean.
pub(in crate::fetch) fn scalar(value: Wiped) -> Result<String, Wiped> {
    match &value.0 {
        Value::Int(number) => Ok(number.to_string()),
        Value::UInt(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Bool(bool) => Ok(bool.to_string()),
        _ => value.into_text(),
    }
}

/// Why a text gives no value.
#[derive(Debug)]
pub(in crate::fetch) enum NoJson {
    /// It is not JSON: what is wrong with it.
    Invalid(String),
    /// It has too many values.
    TooLarge,
}

/// The value that a JSON text has.
pub(in crate::fetch) fn json(text: &[u8]) -> Result<Value, NoJson> {
    let text = without_bom(text);
    let left = Cell::new(Some(MAX_VALUES));
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let read = Counted(&left).deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    read.map_err(|error| match left.get() {
        Some(_) => NoJson::Invalid(problem(text, &error)),
        None => NoJson::TooLarge,
    })
}

/// Makes a value of JSON, and counts while it reads: a value takes many times the bytes of its text. `None` once there
/// are too many. Strings are moved, not copied, where the parser has made them.
#[derive(Clone, Copy)]
struct Counted<'a>(&'a Cell<Option<usize>>);

impl Counted<'_> {
    fn count<E: de::Error>(self) -> Result<(), E> {
        self.0.set(self.0.get().and_then(|left| left.checked_sub(1)));
        self.0.get().map(drop).ok_or_else(|| E::custom("too many values"))
    }

    fn one<E: de::Error>(self, value: Value) -> Result<Value, E> {
        self.count().map(|()| value)
    }
}

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.one(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, bool: bool) -> Result<Value, E> {
        self.one(Value::Bool(bool))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        self.one(Value::Int(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        self.one(i64::try_from(number).map_or(Value::UInt(number), Value::Int))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        self.one(Value::Float(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        self.one(self::text(text))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Value, E> {
        self.one(Value::String(Arc::new(text)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.count()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::List(Arc::new(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        self.count()?;
        let mut map = HashMap::new();
        while let Some(name) = members.next_key::<String>()? {
            map.insert(Key::String(Arc::new(name)), members.next_value_seed(self)?);
        }
        Ok(Value::Map(Map { map: Arc::new(map) }))
    }
}

/// The members of a map that JSON made, by name.
pub(super) fn members(map: &Map) -> BTreeMap<String, &Value> {
    map.map.iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// A value as JSON writes it; members in order, so that equal values give equal texts.
struct AsJson<'a>(&'a Value);

impl Serialize for AsJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(bool) => serializer.serialize_bool(*bool),
            Value::Int(number) => serializer.serialize_i64(*number),
            Value::UInt(number) => serializer.serialize_u64(*number),
            Value::Float(number) => serializer.serialize_f64(*number),
            Value::String(text) => serializer.serialize_str(text),
            Value::Bytes(bytes) => serializer.serialize_str(&BASE64_STANDARD.encode(&**bytes)),
            Value::Timestamp(moment) => serializer.serialize_str(&crate::time::rfc3339(moment.to_utc())),
            Value::List(list) => {
                let mut items = serializer.serialize_seq(Some(list.len()))?;
                list.iter().try_for_each(|item| items.serialize_element(&AsJson(item)))?;
                items.end()
            }
            Value::Map(map) => {
                let members = members(map);
                let mut entries = serializer.serialize_map(Some(members.len()))?;
                members.iter().try_for_each(|(name, value)| entries.serialize_entry(name, &AsJson(value)))?;
                entries.end()
            }
            _ => Err(serde::ser::Error::custom("not JSON")),
        }
    }
}

/// JSON text; `None` for a value that JSON has no form for.
pub(in crate::fetch) fn json_text(value: &Value) -> Option<String> {
    serde_json::to_string(&AsJson(value)).ok()
}

/// About how many bytes of memory a value takes.
pub(super) fn size(value: &Value) -> usize {
    const ONE: usize = 64;
    ONE + match value {
        Value::String(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::List(list) => list.iter().map(size).sum(),
        Value::Map(map) => map.map.iter().map(|(key, value)| ONE + key_size(key) + size(value)).sum(),
        _ => 0,
    }
}

fn key_size(key: &Key) -> usize {
    match key {
        Key::String(text) => text.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_counted_while_they_are_read() {
        let objects = |number: usize| format!("[{}0]", "{\"\":0},".repeat(number));
        assert!(json(objects(MAX_VALUES / 2 - 1).as_bytes()).is_ok());
        assert!(matches!(json(objects(MAX_VALUES / 2).as_bytes()), Err(NoJson::TooLarge)));
        // It is not even read to its end.
        let cut_off = format!("[{}", "0,".repeat(MAX_VALUES));
        assert!(matches!(json(cut_off.as_bytes()), Err(NoJson::TooLarge)));
        assert!(matches!(json(b"[0"), Err(NoJson::Invalid(_))));
        assert!(matches!(json(b"0 0"), Err(NoJson::Invalid(_))));
    }

    proptest! {
        #[test]
        fn json_is_read_as_it_is_written(number: i64, natural: u64, part: i32, text: String, flag: bool) {
            // The parser rounds what is not exact.
            let float = f64::from(part) + 0.5;
            let written = serde_json::json!({
                "a": [number, natural, float, text, flag, null], "b": {"c": {}, "d": []}, text.clone(): 1,
            });
            let value = json(written.to_string().as_bytes()).expect("JSON");
            let again: serde_json::Value = serde_json::from_str(&json_text(&value).expect("JSON")).expect("JSON");
            prop_assert_eq!(again, written);
        }
    }
}
