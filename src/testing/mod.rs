//! What unit tests share.

pub(crate) mod fixtures;
pub(crate) mod random_input;
