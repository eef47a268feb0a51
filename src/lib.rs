//! tokencache keeps short-lived credentials fresh in Kubernetes Secrets.

pub mod admin;
pub mod api;
pub mod events;
pub mod fetch;
pub mod lock;
pub mod metrics;
pub mod notes;
pub mod peers;
pub mod plan;
pub mod reason;
pub mod secret;
pub mod status;
pub mod time;
pub mod controller;
pub mod limits;
pub mod observe;
pub mod references;
pub mod report;
pub mod run;
pub mod store;
pub mod cli;
