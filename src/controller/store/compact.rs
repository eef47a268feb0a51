//! Text of objects, kept in little memory: what most of them have in common is stored once.

use std::sync::LazyLock;

use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use serde_json::Value;

/// JSON as the API server sends it, without what it repeats of a typical TokenCache and its Secret.
#[derive(Clone, Debug)]
pub(in crate::controller) struct Packed(Box<[u8]>);

/// Text that others are like. Another text would only be packed less.
static TYPICAL: LazyLock<String> = LazyLock::new(|| {
    let objects: Vec<Value> = serde_json::from_str(include_str!("typical.json")).unwrap_or_default();
    objects.iter().map(Value::to_string).collect()
});

impl Packed {
    /// Packs a text.
    pub(in crate::controller) fn new(text: &str) -> Self {
        Self(compress_prepend_size_with_dict(text.as_bytes(), TYPICAL.as_bytes()).into())
    }

    /// The text.
    pub(in crate::controller) fn text(&self) -> String {
        let text = decompress_size_prepended_with_dict(&self.0, TYPICAL.as_bytes()).ok();
        // What was packed here can be unpacked.
        text.and_then(|text| String::from_utf8(text).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_objects_have_in_common_takes_little_memory() {
        let cache = json!({
            "metadata": {
                "generation": 3, "name": "stock", "namespace": "shop", "resourceVersion": "7",
                "uid": "11111111-2222-3333-4444-555555555555",
            },
            "spec": {"fetch": {"serviceAccountToken": {"audiences": ["vault"], "serviceAccountName": "stock"}}},
            "status": {
                "conditions": [{
                    "lastTransitionTime": "2027-01-02T03:04:05Z", "observedGeneration": 3, "reason": "Fetched",
                    "message": "Value is valid until 2027-01-02T04:05:06Z.", "status": "True", "type": "Ready",
                }],
                "expiresAt": "2027-01-02T04:05:06Z", "failures": 0, "fetchedAt": "2027-01-02T03:04:05Z",
                "lastRunBy": "other-0", "observedGeneration": 3, "refreshAt": "2027-01-02T03:54:00Z", "runs": 4,
                "secretName": "stock", "secretResourceVersion": "6", "source": "serviceAccountToken",
            },
        });
        let secret = json!({
            "annotations": {
                "tokencache.dev/data_hash": "00112233445566778899aabbccddeeff-ffeeddccbbaa99887766554433221100",
                "tokencache.dev/expires_at": "2027-01-02T04:05:06Z",
                "tokencache.dev/fetch_hash": "0123456789abcdef0123456789abcdef",
                "tokencache.dev/fetched_at": "2027-01-02T03:04:05Z",
            },
            "labels": {"tokencache.dev/managed": "true"}, "name": "stock", "namespace": "shop",
            "ownerReferences": [{
                "apiVersion": "tokencache.dev/v1alpha1", "controller": true, "kind": "TokenCache", "name": "stock",
                "uid": "11111111-2222-3333-4444-555555555555",
            }],
            "resourceVersion": "6", "uid": "66666666-7777-8888-9999-000000000000",
        });
        for text in [cache, secret].map(|object| object.to_string()) {
            let packed = Packed::new(&text);
            assert!(packed.0.len() * 2 < text.len(), "{} of {} bytes: {text}", packed.0.len(), text.len());
        }
    }

    proptest! {
        #[test]
        fn a_text_is_unpacked_as_it_was(text in ".{0,2000}", from in 0_usize..900) {
            let text = text + &TYPICAL[from..];
            prop_assert_eq!(Packed::new(&text).text(), text);
        }
    }
}
