//! tokencache keeps short-lived credentials fresh in Kubernetes Secrets.

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
pub mod run;
#[cfg(test)]
mod samples;
pub mod secret;
pub mod status;
pub mod store;
pub mod time;
