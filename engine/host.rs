//! What the host offers: processors and memory.

/// Processors that this process may use.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Whether this build has the CUDA executor and the first GPU can be used.
pub fn has_gpu() -> bool {
    #[cfg(feature = "cuda")]
    return crate::exec::cuda::device(0).is_ok();
    #[cfg(not(feature = "cuda"))]
    false
}

/// Memory that a plan may use, in bytes: what the system could give without swapping, within the
/// limit of the control group. Unlimited where the system does not say.
pub fn available_memory_bytes() -> u64 {
    let free = meminfo_bytes("MemAvailable:").unwrap_or(u64::MAX);
    free.min(cgroup_limit_bytes().unwrap_or(u64::MAX))
}

/// Resident set of this process in bytes, where the system says: all, and the part that is memory
/// of its own rather than mapped files.
pub fn resident_bytes() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some((field("VmRSS:")?, field("RssAnon:")?))
}

fn meminfo_bytes(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn cgroup_limit_bytes() -> Option<u64> {
    std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}
