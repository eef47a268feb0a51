//! tokencache keeps short-lived credentials fresh in Kubernetes Secrets.

pub mod api;
pub mod fetch;
pub mod reason;
pub mod time;
