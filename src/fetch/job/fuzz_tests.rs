//! Containers that write anything.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::{prelude::*, sample::select};
use serde_json::{Value, json};

use super::{
    message::last_line,
    result::{read, read_failed},
    seal::{KeyPair, seal},
};
use crate::testing::random_input::{bodies, fuzz, texts, values};

const SECRET: &str = "hunter2-and-more";

fn results() -> impl Strategy<Value = Value> {
    let member = (select(vec!["token", "values", "expires_in", "expires_at", "state", "more"]), values());
    prop::collection::vec(member, 0..5).prop_map(|members| {
        let mut result = json!({"token": SECRET});
        members.into_iter().for_each(|(name, value)| result[name] = value);
        result
    })
}

#[test]
fn any_result_is_read_or_refused_and_never_told() {
    let keys = KeyPair::generate().unwrap();
    let mut good = 0;
    let inputs = (prop_oneof![bodies(results()).boxed(), any::<Vec<u8>>().boxed()], texts());
    fuzz(inputs, |(result, text)| {
        match read(&result) {
            Ok(_) => good += 1,
            Err(failure) => assert!(!failure.message.contains(SECRET), "{failure}"),
        }
        let sealed = seal(&result, &keys.public(), 1 << 20).unwrap();
        assert_eq!(keys.open(&sealed).unwrap().as_slice(), result);
        // A termination message may be anybody's.
        let _ = (keys.open(&text), read_failed(&text), read_failed(&format!("failed:{text}")), last_line(&text));
        let cut = sealed.chars().take(result.len()).collect::<String>();
        assert!(keys.open(&cut).is_err() || cut == sealed);
    });
    assert!(good > 0);
}
