//! Random input for what strangers write: token endpoints, jobs, and whoever may edit objects.
//!
//! Each runs for two seconds, or for as many as TOKENCACHE_FUZZ says. What hangs does not let its test come to its end.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use proptest::{
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use serde_json::{Value, json};

#[path = "../../tests/support/memory.rs"]
mod memory;

/// More than all of these together ever take: bytes.
const MEMORY: u64 = 2 << 30;

/// Checks one input after another, until the time is up.
pub(crate) fn fuzz<S: Strategy>(inputs: S, mut check: impl FnMut(S::Value))
where
    S::Value: Clone,
{
    let seconds = std::env::var("TOKENCACHE_FUZZ").ok().map_or(2, |text| text.parse().expect("a number of seconds"));
    let (start, mut runner, mut cases) = (Instant::now(), TestRunner::default(), 0);
    while start.elapsed() < Duration::from_secs(seconds) || cases < 100 {
        cases += 1;
        let input = inputs.new_tree(&mut runner).expect("an input").current();
        if catch_unwind(AssertUnwindSafe(|| check(input.clone()))).is_err() {
            panic!("input {cases}: {input:?}");
        }
    }
    let memory = memory::memory("self", "VmHWM") << 10;
    assert!(memory < MEMORY, "{memory} bytes after {cases} inputs");
}

/// Text as strangers write it: numbers, times and words that mean something somewhere, and anything else.
pub(crate) fn texts() -> impl Strategy<Value = String> {
    let known = select(vec![
        "",
        " ",
        "0",
        "-1",
        "60",
        "1e400",
        "-0.0",
        "18446744073709551616",
        "never",
        "NaN",
        "inf",
        "true",
        "True",
        "2026-03-01T12:00:00Z",
        "9999-12-31T23:59:60Z",
        "-262144-01-01T00:00:00+23:59",
        "5m",
        "9999999999999999h",
        "-5m",
        "ns/name",
        "../..",
        "https://[::1]:0/",
        "https://user:pw@host/%00",
        "a\u{0}b",
        "\u{202e}",
        "-----BEGIN ",
        "tokencache.dev/x",
        "0123456789abcdef",
        "{{}}",
        "token",
        "$(token)",
    ]);
    prop_oneof![known.prop_map(str::to_owned), "\\PC{0,40}", "[0-9.eE+-]{1,30}", "[A-Za-z0-9_-]{0,80}"]
}

/// Any JSON.
pub(crate) fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        texts().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(texts(), inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

/// JSON text, as it should be, cut off, or with other bytes in it.
pub(crate) fn bodies(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Vec<u8>> {
    let damage = prop_oneof![
        3 => Just(None),
        1 => any::<(Index, Option<u8>)>().prop_map(Some),
    ];
    (value, damage).prop_map(|(value, damage)| {
        let mut bytes = value.to_string().into_bytes();
        if let Some((at, byte)) = damage {
            let at = at.index(bytes.len());
            match byte {
                Some(byte) => bytes[at] = byte,
                None => bytes.truncate(at),
            }
        }
        bytes
    })
}

/// One of these objects, with a few parts of it replaced, removed or added.
pub(crate) fn damaged(originals: Vec<Value>) -> impl Strategy<Value = Value> {
    let path = prop::collection::vec(any::<Index>(), 1..8);
    let change = (path, prop::option::weighted(0.8, values()));
    (select(originals), prop::collection::vec(change, 0..4)).prop_map(|(mut object, changes)| {
        changes.into_iter().for_each(|(path, change)| damage(&mut object, &path, change));
        object
    })
}

fn damage(value: &mut Value, path: &[Index], change: Option<Value>) {
    let Some((step, rest)) = path.split_first() else {
        *value = change.unwrap_or_default();
        return;
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(step.index(map.len())).cloned().unwrap_or_default();
            match change {
                None if rest.is_empty() => drop(map.remove(&key)),
                change => damage(map.entry(key).or_insert(Value::Null), rest, change),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = step.index(list.len());
            damage(&mut list[at], rest, change);
        }
        leaf => *leaf = change.unwrap_or_default(),
    }
}
