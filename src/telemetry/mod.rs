//! What others observe of a process: metrics, traces, and the ports for metrics and probes.

pub mod admin;
pub mod metrics;
pub mod otlp;
