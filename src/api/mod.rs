//! The `TokenCache` object: its types, its rules, and the names of labels and annotations. No I/O.

mod conditions;
mod duration;
mod expires_at;
pub mod github_app;
pub mod http;
pub mod job;
pub mod names;
pub mod oauth2;
pub mod object_name;
#[cfg(feature = "controller")]
pub mod reason;
pub mod service_account_token;
mod spec;
mod status;
#[cfg(feature = "controller")]
mod validate;

pub use conditions::{READY, STALLED, condition};
pub use duration::{Duration, InvalidDuration};
pub use expires_at::ExpiresAt;
pub use spec::{
    Expiry, Fetch, MAX_SPEC, Refresh, RefreshPolicy, RetentionPolicy, Retry, RolloutRestart, RolloutRestartTarget,
    Source, Target, TokenCache, TokenCacheSpec, WorkloadKind,
};
#[cfg(feature = "controller")]
pub(crate) use status::MAX_NAME;
pub use status::{LastFailure, TokenCacheStatus, next_run};
#[cfg(feature = "controller")]
pub use validate::{Invalid, crd, validate};

/// Removes the description of a type, so that an optional field of the type keeps the field's own in the CRD.
fn without_description(schema: &mut schemars::Schema) {
    schema.remove("description");
}
