//! The chart and the manifests of `config/`: `hack/cluster.sh run --node -- cargo test --test chart -- --test-threads=1`.
//!
//! What is rendered needs helm alone. What is installed needs a node of its own (`TOKENCACHE_CLUSTER` names the local
//! cluster), since it looks after all namespaces; without one, each says so and does nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_futures,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that cannot go on ends"
)]
#![allow(dead_code, unused_imports, reason = "the support can do more than these tests ask of it")]

#[path = "../support/mod.rs"]
mod support;

mod alerts;
mod install;
mod render;
mod tools;
mod ways;
