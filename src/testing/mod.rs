//! What unit tests share.

pub(crate) mod fixtures;
mod layers;
pub(crate) mod random_input;
