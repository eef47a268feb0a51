//! The `tokencache` binary.
fn main() {}
