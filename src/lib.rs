//! tokencache keeps short-lived credentials fresh in Kubernetes Secrets.
//!
//! A value travels like this:
//!
//! 1. [`api`]: somebody applies a `TokenCache`, which says how a credential is got.
//! 2. [`controller`]: its watches bring the object, and the metadata of its Secret.
//! 3. [`observe`] and [`plan`]: what is known becomes a decision, by the time that is handed in.
//! 4. [`run`]: takes the Lease ([`lock`]), looks again, fetches, writes, reports, releases.
//! 5. [`fetch`]: a source's settings become a value that expires.
//! 6. [`secret`] and [`store`]: the Secret that should be, and the write of it.
//! 7. [`status`] and [`report`]: how it went, in `status` and events.

pub mod admin;
pub mod api;
pub mod cli;
pub mod controller;
pub mod events;
pub mod fetch;
pub mod limits;
pub mod lock;
pub mod metrics;
pub mod notes;
pub mod observe;
pub mod peers;
pub mod plan;
pub mod reason;
pub mod references;
pub mod report;
pub mod rollout;
pub mod run;
pub mod secret;
pub mod status;
pub mod store;
pub mod time;

#[cfg(test)]
mod samples;
