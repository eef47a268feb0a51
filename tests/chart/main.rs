//! The chart and the manifests of `config/`: `hack/cluster.sh run --node -- cargo test --test chart -- --test-threads=2`.
//!
//! What is rendered needs helm alone. What is installed needs a node of its own (`TOKENCACHE_CLUSTER` names the local
//! cluster), since it looks after all namespaces; without one, each says so and does nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::large_futures, reason = "a test makes each of its futures once")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a test prints is shown where it fails")]
#![allow(dead_code, unused_imports, reason = "the support can do more than these tests ask of it")]
#![recursion_limit = "256"]

#[path = "../support/mod.rs"]
mod support;

mod alerts;
mod install;
mod render;
mod tools;
mod ways;
