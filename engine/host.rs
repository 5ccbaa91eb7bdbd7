//! What the host offers: processors and memory.

use crate::error::Result;

/// Processors that this process may use.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Whether this build has the CUDA executor and there is a GPU for it.
///
/// # Errors
/// What keeps the first GPU from being used.
pub fn has_gpu() -> Result<bool> {
    #[cfg(feature = "cuda")]
    return crate::exec::cuda::is_usable(0);
    #[cfg(not(feature = "cuda"))]
    Ok(false)
}

/// Memory that a plan may use, in bytes: what the system could give without swapping, within the
/// limit of the control group. Unlimited where the system does not say.
pub fn available_memory_bytes() -> u64 {
    let free = meminfo_bytes("MemAvailable:").unwrap_or(u64::MAX);
    free.min(cgroup_limit_bytes().unwrap_or(u64::MAX))
}

/// Memory of this process that is in the machine's, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// All of it.
    pub total_bytes: u64,
    /// Memory of its own.
    pub anonymous_bytes: u64,
    /// Mapped files: weights, and the program itself.
    pub file_bytes: u64,
    /// The most that `total_bytes` has been.
    pub peak_bytes: u64,
}

/// The resident set of this process, where the system says.
pub fn resident() -> Option<Resident> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Resident {
        total_bytes: field("VmRSS:")?,
        anonymous_bytes: field("RssAnon:")?,
        file_bytes: field("RssFile:")?,
        peak_bytes: field("VmHWM:")?,
    })
}

fn meminfo_bytes(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn cgroup_limit_bytes() -> Option<u64> {
    std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()
}
