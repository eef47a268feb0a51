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

#[cfg(feature = "controller")]
pub mod admin;
#[cfg(feature = "controller")]
pub mod agent;
pub mod api;
#[cfg(feature = "controller")]
pub mod brake;
#[cfg(feature = "controller")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod cluster_time;
#[cfg(feature = "client")]
pub mod connect;
#[cfg(feature = "controller")]
pub mod controller;
#[cfg(feature = "controller")]
pub mod events;
#[cfg(feature = "controller")]
pub mod fair;
#[cfg(feature = "controller")]
pub mod fetch;
#[cfg(feature = "controller")]
pub mod lock;
#[cfg(feature = "controller")]
pub mod metrics;
#[cfg(feature = "controller")]
pub mod notes;
#[cfg(feature = "controller")]
pub mod observe;
#[cfg(feature = "controller")]
pub mod peers;
#[cfg(feature = "controller")]
pub mod plan;
#[cfg(feature = "controller")]
pub mod reason;
#[cfg(feature = "controller")]
pub mod references;
#[cfg(feature = "controller")]
pub mod report;
#[cfg(feature = "controller")]
pub mod rollout;
#[cfg(feature = "controller")]
pub mod run;
#[cfg(feature = "client")]
pub mod sealed;
#[cfg(feature = "controller")]
pub mod secret;
#[cfg(feature = "client")]
pub mod slim;
#[cfg(feature = "controller")]
pub mod status;
#[cfg(feature = "controller")]
pub mod store;
pub mod text;
pub mod time;
#[cfg(feature = "controller")]
pub mod traces;
#[cfg(feature = "client")]
pub mod watch;

#[cfg(all(test, feature = "controller"))]
mod fuzz;
#[cfg(all(test, feature = "controller"))]
mod fuzz_tests;
#[cfg(all(test, feature = "controller"))]
mod samples;
