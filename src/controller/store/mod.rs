//! What a controller keeps of the objects that it watches, in little memory.

mod compact;
mod secrets;
mod token_cache;

pub(super) use self::secrets::Secrets;
pub(crate) use self::token_cache::{Kept, Sent};
