//! The hash by which a value shows from which spec it was fetched.

use sha2::{Digest as _, Sha256};

use crate::api::{RetentionPolicy, TokenCacheSpec};

/// Hash of the parts of the spec that decide the value and the Secret. Scheduling (`refresh`, `retry`, `suspend`, the
/// timeout) and what happens to an old Secret are not in it.
#[must_use]
pub fn fetch_hash(spec: &TokenCacheSpec) -> String {
    let mut fetch = spec.fetch.clone();
    fetch.timeout = None;
    if let Some(job) = &mut fetch.job {
        job.keep_failed = None;
    }
    let mut target = spec.target.clone();
    target.expired_policy = RetentionPolicy::default();
    target.deletion_policy = None;
    // Serialized in the order of the fields, maps by key, without what is unset: the same spec always hashes alike,
    // and a field that a later version adds changes nothing for those who do not set it.
    let parts = serde_json::to_vec(&(fetch, &spec.expiry, target)).unwrap_or_default();
    hex(&Sha256::digest(&parts))
}

/// The first 16 bytes, which is plenty against chance.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.first_chunk().map(|first| format!("{:032x}", u128::from_be_bytes(*first))).unwrap_or_default()
}
