//! The memory of a process, as Linux reports it.

/// What `/proc/PID/status` has under this name, such as `VmRSS` (resident now) or `VmHWM` (the most so far), in KiB. The
/// process `self` is this one.
pub fn memory(process: &str, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("the name");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}
