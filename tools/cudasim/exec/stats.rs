//! What one host thread counts.

use crate::counters::{MemoryCount, WarpChain};

/// Counters of one static instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InstStats {
    pub(crate) warp: u64,
    pub(crate) threads: u64,
    pub(crate) memory: MemoryCount,
}

/// Counters of one host thread, summed over the threads at the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    /// Whether anything beside instructions is counted.
    pub(crate) on: bool,
    pub(crate) insts: Vec<InstStats>,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) l2_read: u64,
    pub(crate) l2_written: u64,
    pub(crate) l2_atomic: u64,
    pub(crate) host_bytes: u64,
    pub(crate) longest: WarpChain,
    pub(crate) global_rounds: u64,
    pub(crate) async_waits: u64,
    pub(crate) async_groups: u64,
    /// Reports already made by this thread: kind and instructions, with how often.
    pub(crate) seen: std::collections::HashMap<(crate::check::FaultKind, u32, u32), u64>,
}

impl Stats {
    pub(crate) fn new(insts: usize, on: bool) -> Stats {
        Stats { on, insts: vec![InstStats::default(); insts], ..Stats::default() }
    }

    /// Adds the counters of another thread.
    pub(crate) fn add(&mut self, other: &Stats) {
        for (a, b) in self.insts.iter_mut().zip(&other.insts) {
            a.warp += b.warp;
            a.threads += b.threads;
            a.memory.add(&b.memory);
        }
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.l2_read += other.l2_read;
        self.l2_written += other.l2_written;
        self.l2_atomic += other.l2_atomic;
        self.host_bytes += other.host_bytes;
        self.longest_of(&other.longest);
        self.global_rounds += other.global_rounds;
        self.async_waits += other.async_waits;
        self.async_groups += other.async_groups;
    }

    /// Keeps the chain of the warp that ran most. Ties are broken by the other counts, so that the order in which
    /// warps finish does not matter.
    pub(crate) fn longest_of(&mut self, chain: &WarpChain) {
        let key = |c: &WarpChain| (c.instructions, c.global_rounds, c.barriers, c.shared_rounds, c.mma_chain);
        if key(chain) > key(&self.longest) {
            self.longest = *chain;
        }
    }
}
