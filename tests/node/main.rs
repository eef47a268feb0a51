//! Scenarios that need a node: `hack/cluster.sh run --node -- cargo test --test node -- --test-threads=2`.
//!
//! Without a node (`TOKENCACHE_CLUSTER` names the local cluster that has one) each says so and does nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::large_futures, reason = "a test makes each of its futures once")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a test prints is shown where it fails")]
#![allow(dead_code, unused_imports, reason = "the support can do more than these scenarios ask of it")]

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod endings;
mod examples;
mod failures;
mod losses;
mod node;
mod rights;
mod values;
