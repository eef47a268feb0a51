//! Keeps credentials in this process's memory from others on the machine.

use anyhow::Context as _;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// From now on, a crash writes no core dump, and other processes of the same user can neither attach to this one nor read
/// its memory or files by `/proc`.
///
/// # Errors
/// When the system refuses it.
pub(super) fn guard_memory() -> anyhow::Result<()> {
    // The agent's commands inherit it, and may raise it again.
    let limit = Rlimit { current: Some(0), ..getrlimit(Resource::Core) };
    setrlimit(Resource::Core, limit).context("core dumps cannot be switched off")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("this process cannot be made undumpable")
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn nothing_is_dumped_and_nobody_attaches() {
        guard_memory().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
    }
}
