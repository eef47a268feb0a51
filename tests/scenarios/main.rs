//! Scenarios on a real API server: `hack/cluster.sh run -- cargo test --test scenarios -- --test-threads=8`.
//!
//! A test's name is the sentence that it proves. With `TOKENCACHE_LONG=1`, those that watch for a time watch longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::large_futures, reason = "a test makes each of its futures once")]
#![allow(clippy::print_stdout, reason = "what a test prints is shown where it fails")]
#![allow(dead_code, reason = "the token server can do more than the scenarios ask of it")]

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod agent_told;
mod brake;
mod client;
mod client_cli;
mod client_crowd;
mod client_direct;
mod client_examples;
mod client_handle;
mod client_roles;
mod clock;
mod cost;
mod drift;
mod expiry;
mod failures;
mod forged_status;
mod fresh;
mod github_app;
mod http;
mod jobs;
mod lifecycle;
mod limits;
mod lock;
mod oauth2;
mod outage;
mod policies;
mod prometheus;
mod proxy;
mod recipes;
mod recorder;
mod recreated;
mod references;
mod refusals;
mod requests;
mod restarts;
mod rights;
mod rotation;
mod rotation_ends;
mod rotation_state;
mod secrecy;
mod service_account_token;
mod shutdown;
mod stale_watch;
mod target;
mod tls;
mod traces;
mod watches;
