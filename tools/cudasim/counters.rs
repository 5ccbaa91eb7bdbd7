//! What one launch did, as a profiler would count it: filled by the execution core, read by the time model and the
//! report.
//!
//! Everything here is exact for the PTX that ran (or scaled from the CTAs that were sampled, see
//! [`Counters::sampled_ctas`]). A *warp instruction* is one instruction issued for one warp with at least one active
//! lane; a *thread instruction* is one active lane of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use crate::class::{Class, MmaKind, MmaShape};

/// Counters of one launch of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Name of the kernel as in the PTX.
    pub kernel: String,
    /// Grid dimensions in CTAs.
    pub grid: [u32; 3],
    /// Block dimensions in threads.
    pub block: [u32; 3],
    /// Shared memory that the kernel declares, bytes per CTA.
    pub static_shared_bytes: u32,
    /// Shared memory asked for by the launch, bytes per CTA.
    pub dynamic_shared_bytes: u32,
    /// CTAs in the grid.
    pub ctas: u64,
    /// CTAs that really ran when the launch was sampled; every other counter is already scaled to the whole grid.
    /// Counts of distinct sectors are then estimates: within an allocation they grow with the CTAs until all of it is
    /// touched, which overestimates the part of an operand that several CTAs share.
    pub sampled_ctas: Option<u64>,
    /// Source files that [`InstructionCount::file`] indexes.
    pub files: Arc<Vec<String>>,
    /// One entry per static instruction of the kernel, in the order of the PTX.
    pub instructions: Vec<InstructionCount>,

    /// 32-byte sectors of device memory read at least once before the launch has written them: the compulsory reads.
    pub unique_read_sectors: u64,
    /// 32-byte sectors of device memory written at least once: the compulsory write-back.
    pub unique_written_sectors: u64,
    /// Bytes that active lanes asked to read from global memory (atomics included).
    pub read_bytes_asked: u64,
    /// Bytes that active lanes asked to write to global memory (atomics included).
    pub written_bytes_asked: u64,
    /// Sectors read from L2: what missed a simple L1, and everything that bypasses it (`.cg`, `cp.async.cg`).
    pub l2_read_sectors: u64,
    /// Sectors written to L2 by stores.
    pub l2_written_sectors: u64,
    /// Sectors touched by atomics and reductions, which are performed in L2.
    pub l2_atomic_sectors: u64,
    /// Bytes moved from or to pinned host memory, over the bus.
    pub host_bytes: u64,

    /// Warp instructions of the warp that ran most, with its dependent waits.
    pub longest_warp: WarpChain,
    /// Sum of [`WarpChain::global_rounds`] over all warps.
    pub global_rounds: u64,
    /// `cp.async` waits that had a group to wait for, over all warps.
    pub async_waits: u64,
    /// Groups in flight when such a wait began, summed over the waits: divided by them, the depth of the pipeline.
    pub async_groups_at_wait: u64,

    /// Warp instructions of each CTA in launch order; empty when it was not kept.
    #[serde(skip)]
    pub cta_warp_instructions: Vec<u32>,
    /// 64 KiB chunks of device memory touched, by ascending address; empty when it was not kept.
    #[serde(skip)]
    pub chunks: Vec<ChunkTouch>,
}

/// What one static instruction of the kernel did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstructionCount {
    /// Index into [`Counters::files`], when the PTX has line information.
    pub file: Option<u32>,
    /// Line in that file; without line information the line of the PTX text.
    pub line: u32,
    /// Opcode with its modifiers, as in the PTX, without guard and operands.
    pub text: Arc<str>,
    /// Which unit executes it.
    pub class: Class,
    /// Warp instructions.
    pub warp_execs: u64,
    /// Thread instructions: active lanes whose guard holds.
    pub thread_execs: u64,
    /// What it did to memory, for instructions that access global, local or shared memory.
    pub memory: Option<MemoryCount>,
}

/// Memory behaviour of one static instruction, summed over its executions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryCount {
    /// Warp-level requests with at least one active lane.
    pub requests: u64,
    /// Bytes that active lanes asked for.
    pub bytes_asked: u64,
    /// Global and local memory: distinct 32-byte sectors, summed over the requests.
    pub sectors: u64,
    /// The fewest sectors that could hold the distinct bytes asked: `ceil(distinct bytes / 32)` per request.
    pub ideal_sectors: u64,
    /// Global memory: passes through the load/store unit, `max(1, ceil(sectors / 4))` per request.
    pub passes: u64,
    /// Shared memory: 128-byte wavefronts, counted with bank conflicts.
    pub wavefronts: u64,
    /// Shared memory: wavefronts of the same accesses had no two of them met in a bank.
    pub ideal_wavefronts: u64,
    /// Atomics: lanes of one request beyond the first on the same address, which are serialised.
    pub collisions: u64,
}

/// The dependent waits of one warp, which no amount of parallelism hides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WarpChain {
    /// Warp instructions issued.
    pub instructions: u64,
    /// CTA barriers waited at.
    pub barriers: u64,
    /// Rounds of dependent global loads: one each time a value of a global load (or a `cp.async` group) that was
    /// issued since the last round is needed.
    pub global_rounds: u64,
    /// The same for shared-memory loads and `ldmatrix`.
    pub shared_rounds: u64,
    /// Longest chain of `mma` through one accumulator.
    pub mma_chain: u64,
}

/// Sectors of one 64 KiB chunk of device memory that a launch touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkTouch {
    /// Address of the chunk divided by 64 KiB.
    pub chunk: u64,
    /// Distinct sectors read.
    pub read_sectors: u32,
    /// Distinct sectors written.
    pub written_sectors: u32,
}

impl WarpChain {
    fn zip(&self, other: &WarpChain, f: impl Fn(u64, u64) -> u64) -> WarpChain {
        WarpChain {
            instructions: f(self.instructions, other.instructions),
            barriers: f(self.barriers, other.barriers),
            global_rounds: f(self.global_rounds, other.global_rounds),
            shared_rounds: f(self.shared_rounds, other.shared_rounds),
            mma_chain: f(self.mma_chain, other.mma_chain),
        }
    }

    /// What was done since `other`.
    pub(crate) fn minus(&self, other: &WarpChain) -> WarpChain {
        self.zip(other, u64::saturating_sub)
    }

    /// Adds another chain to this one.
    pub(crate) fn add(&mut self, other: &WarpChain) {
        *self = self.zip(other, |a, b| a + b);
    }
}

impl MemoryCount {
    /// Adds another count to this one.
    pub fn add(&mut self, other: &MemoryCount) {
        self.requests += other.requests;
        self.bytes_asked += other.bytes_asked;
        self.sectors += other.sectors;
        self.ideal_sectors += other.ideal_sectors;
        self.passes += other.passes;
        self.wavefronts += other.wavefronts;
        self.ideal_wavefronts += other.ideal_wavefronts;
        self.collisions += other.collisions;
    }

    /// Sectors per request, 0 without requests.
    pub fn sectors_per_request(&self) -> f64 {
        ratio(self.sectors, self.requests)
    }

    /// Shared-memory wavefronts beyond the ideal ones.
    pub fn bank_conflicts(&self) -> u64 {
        self.wavefronts.saturating_sub(self.ideal_wavefronts)
    }
}

impl InstructionCount {
    /// Shape and type of an `mma`, read from the text; `None` for other instructions.
    pub fn mma(&self) -> Option<MmaShape> {
        if self.class == Class::Mma { MmaShape::parse(&self.text) } else { None }
    }
}

impl Counters {
    /// Warps in the grid.
    pub fn warps(&self) -> u64 {
        self.ctas * u64::from(self.warps_per_cta())
    }

    /// Threads of one CTA.
    pub fn threads_per_cta(&self) -> u32 {
        self.block.iter().fold(1u32, |n, &d| n.saturating_mul(d))
    }

    /// Warps of one CTA.
    pub fn warps_per_cta(&self) -> u32 {
        self.threads_per_cta().div_ceil(32)
    }

    /// Warp instructions over the whole launch.
    pub fn warp_instructions(&self) -> u64 {
        self.instructions.iter().map(|i| i.warp_execs).sum()
    }

    /// Thread instructions over the whole launch.
    pub fn thread_instructions(&self) -> u64 {
        self.instructions.iter().map(|i| i.thread_execs).sum()
    }

    /// Memory counts of all instructions of the classes that `wanted` accepts.
    pub fn memory(&self, wanted: impl Fn(Class) -> bool) -> MemoryCount {
        let mut sum = MemoryCount::default();
        for i in self.instructions.iter().filter(|i| wanted(i.class)) {
            if let Some(memory) = &i.memory {
                sum.add(memory);
            }
        }
        sum
    }

    /// Tensor-core instructions by shape and type with their number.
    pub fn mma(&self) -> Vec<(MmaShape, u64)> {
        let mut out: Vec<(MmaShape, u64)> = Vec::new();
        for i in &self.instructions {
            let Some(shape) = i.mma() else { continue };
            match out.iter_mut().find(|(s, _)| *s == shape) {
                Some((_, n)) => *n += i.warp_execs,
                None if i.warp_execs > 0 => out.push((shape, i.warp_execs)),
                None => {}
            }
        }
        out
    }

    /// Depth of the `cp.async` pipeline: mean number of groups in flight when a warp begins to wait.
    pub fn async_depth(&self) -> f64 {
        ratio(self.async_groups_at_wait, self.async_waits)
    }
}

/// `a / b`, 0 when `b` is 0.
pub(crate) fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}
