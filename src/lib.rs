//! tokencache keeps short-lived credentials fresh in Kubernetes Secrets.
//!
//! A value travels like this:
//!
//! 1. [`api`]: somebody applies a `TokenCache`, which says how a credential is got.
//! 2. [`controller`]: its watches bring the object, and the metadata of its Secret.
//! 3. [`reconcile::observe`] and [`reconcile::plan`]: what is known becomes a decision, by the time that is handed in.
//! 4. [`reconcile::run`]: takes the Lease ([`lock`]), looks again, fetches, writes, reports, releases.
//! 5. [`fetch`]: a source's settings become a value that expires.
//! 6. [`reconcile::desired_secret`] and [`reconcile::write_secret`]: the Secret that should be, and the write of it.
//! 7. [`reconcile::status`] and [`reconcile::write_status`]: how it went, in `status` and events.

#[cfg(feature = "controller")]
pub mod agent;
pub mod api;
#[cfg(feature = "controller")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "controller")]
pub mod controller;
#[cfg(feature = "controller")]
pub mod fetch;
#[cfg(feature = "client")]
pub mod k8s;
#[cfg(feature = "controller")]
pub mod lock;
#[cfg(feature = "controller")]
pub mod reconcile;
#[cfg(feature = "controller")]
pub mod telemetry;
pub mod text;
pub mod time;

#[cfg(all(test, feature = "controller"))]
mod fuzz_tests;
#[cfg(all(test, feature = "controller"))]
mod testing;
