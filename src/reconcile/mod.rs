//! One TokenCache, without watches: what is known of it, what follows from that, and the run.

pub mod desired_secret;
pub mod observe;
pub mod plan;
mod report_run;
pub mod rollout;
pub mod run;
pub mod source_change;
pub mod state;
pub mod status;
pub mod throttle;
pub mod write_secret;
pub mod write_status;
