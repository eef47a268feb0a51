//! Values of expressions: made from text and JSON, read as text and JSON, and wiped.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
pub(in crate::fetch) use kube::core::cel::cel::Value;
use kube::core::cel::cel::objects::{Key, Map};
use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};
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
    let json = serde_json::from_slice(text).map_err(|error| NoJson::Invalid(problem(text, &error)))?;
    let mut left = MAX_VALUES;
    from_json(json, &mut left).ok_or(NoJson::TooLarge)
}

/// Strings are moved, not copied.
fn from_json(json: serde_json::Value, left: &mut usize) -> Option<Value> {
    *left = left.checked_sub(1)?;
    Some(match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(bool) => Value::Bool(bool),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::UInt(number),
            (None, None) => Value::Float(number.as_f64()?),
        },
        serde_json::Value::String(text) => Value::String(Arc::new(text)),
        serde_json::Value::Array(list) => {
            Value::List(Arc::new(list.into_iter().map(|item| from_json(item, left)).collect::<Option<_>>()?))
        }
        serde_json::Value::Object(members) => {
            let members = members.into_iter().map(|(name, json)| Some((key(&name), from_json(json, left)?)));
            Value::Map(Map { map: Arc::new(members.collect::<Option<_>>()?) })
        }
    })
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
