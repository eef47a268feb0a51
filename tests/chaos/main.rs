//! Three controllers, hundreds of short-lived tokens, and everything that may go wrong, at random: `make chaos`.
//!
//! `TOKENCACHE_CHAOS_SECONDS`, `TOKENCACHE_CHAOS_CACHES` and `TOKENCACHE_CHAOS_SEED` say how long, how many, and which
//! faults at which times. The cluster must be its own: its API server and etcd are killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(clippy::large_futures, reason = "a test makes each of its futures once")]
#![allow(clippy::print_stdout, reason = "what happens and what was counted is what a run is for")]
#![allow(dead_code, unused_imports, reason = "the support can do more than is asked of it here")]

#[path = "../support/mod.rs"]
mod support;

mod book;
mod canary;
mod count;
mod excuse;
mod exempt;
mod eyes;
mod faults;
mod jobs;
mod kinds;
mod plane;
mod population;
mod rhythm;
mod schedule;
mod soak;
mod story;
mod weather;
mod world;
