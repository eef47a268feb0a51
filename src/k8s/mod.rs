//! The API server: how it is called, and objects as they are read and written. Knows nothing of tokens.

pub mod client;
#[cfg(feature = "controller")]
pub mod events;
pub mod metadata;
pub mod secret;
pub mod server_time;
pub mod watch;
