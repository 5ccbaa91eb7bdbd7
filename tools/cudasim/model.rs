//! How long a launch would take on the card: a model, calibrated with published numbers (`MODEL.md`) and never
//! compared with a GPU by this project.
//!
//! Each unit of the card gives a time that the launch cannot go below; the launch takes the largest of them, a share
//! of the second busiest side, and what starting and draining it costs. Terms and constants follow the usual bounds:
//!
//! ```text
//! dram    (sectors read from DRAM + dirty sectors written back) x 32 / min(eta x peak, bytes in flight / latency)
//! l2      sectors that missed L1 x 32 / bandwidth of L2, and of the port of one SM
//! smem    wavefronts of shared memory / (SMs x clock)
//! lsu     passes of global requests / (SMs x clock)
//! mma     multiply-accumulates / (rate x SMs x clock)
//! pipe    busiest arithmetic pipe
//! issue   machine instructions / (4 x SMs x clock x eta)
//! chain   waits of the longest warp x waves of CTAs
//! time    launch gap + max(chain, largest other term + overlap loss x second side + ramp)
//! ```

pub mod constants;
mod l2;
mod terms;

use serde::{Deserialize, Serialize};

use crate::counters::Counters;
use crate::device::{DeviceSpec, Occupancy, Resources};
use crate::memory::SECTOR_BYTES;

pub use l2::{L2State, Traffic};
pub use terms::{Pipe, balance};

use constants::*;

/// What is known about a kernel beside its PTX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelFacts {
    /// Registers per thread.
    pub registers: u32,
    /// Whether the registers are estimated from the PTX rather than read from a cubin.
    pub registers_estimated: bool,
    /// Bytes per thread that the compiler spilled or keeps in local memory, when a cubin tells.
    pub local_bytes: Option<u32>,
    /// Machine instructions per PTX instruction, both static, when a cubin tells.
    pub sass_per_ptx: Option<f64>,
}

/// How a kernel was launched, which decides the gap before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaunchKind {
    /// One by one into a stream.
    #[default]
    Stream,
    /// As a node of a replayed graph.
    Graph,
}

/// What a launch waits for most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Starting and draining it.
    #[default]
    Launch,
    /// Device memory.
    Dram,
    /// L2 or the way from it to the SMs.
    L2,
    /// The bus to the host.
    Host,
    /// Shared memory.
    SharedMemory,
    /// Load/store units.
    LoadStore,
    /// Tensor cores.
    TensorCores,
    /// One arithmetic pipe.
    Pipe,
    /// Instruction issue.
    Issue,
    /// Latency of the longest warp.
    Latency,
}

/// The times of the units in microseconds, each as if it were alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Device memory.
    pub dram_us: f64,
    /// L2 and the ports of the SMs.
    pub l2_us: f64,
    /// Bus to the host.
    pub host_us: f64,
    /// Shared memory.
    pub smem_us: f64,
    /// Load/store units.
    pub lsu_us: f64,
    /// Tensor cores.
    pub mma_us: f64,
    /// Busiest arithmetic pipe.
    pub pipe_us: f64,
    /// Which pipe that is.
    pub pipe: Pipe,
    /// Instruction issue.
    pub issue_us: f64,
    /// Dependent waits.
    pub chain_us: f64,
}

/// What the model says about one launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Modelled time from the end of the work before it to its own end.
    pub time_us: f64,
    /// The least time that the card's peaks allow for the work of this launch.
    pub bound_us: f64,
    /// What it waits for most.
    pub limiter: Bound,
    /// The units' times, with the imbalance between SMs.
    pub terms: Terms,
    /// From the end of the work before it to its start.
    pub launch_gap_us: f64,
    /// Filling and draining: half for a kernel that reads, half for one that writes.
    pub ramp_us: f64,
    /// Work of the busiest SM over the mean.
    pub tail: f64,
    /// Occupancy by the CUDA rules.
    pub occupancy: Occupancy,
    /// Rounds of CTAs that an SM runs.
    pub waves: f64,
    /// Bytes read from DRAM.
    pub dram_read_bytes: u64,
    /// Bytes written to DRAM while it ran.
    pub dram_written_bytes: u64,
    /// Distinct bytes that were still in L2.
    pub l2_hit_bytes: u64,
    /// Machine instructions, from a cubin's ratio or the default ones.
    pub machine_instructions: f64,
}

impl Prediction {
    /// The bound as a share of the time: 1 is the speed of light.
    pub fn fraction_of_bound(&self) -> f64 {
        if self.time_us > 0.0 { self.bound_us / self.time_us } else { 0.0 }
    }
}

impl Bound {
    /// Name as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Launch => "launch",
            Bound::Dram => "dram",
            Bound::L2 => "l2",
            Bound::Host => "host bus",
            Bound::SharedMemory => "shared memory",
            Bound::LoadStore => "load/store",
            Bound::TensorCores => "tensor cores",
            Bound::Pipe => "pipe",
            Bound::Issue => "issue",
            Bound::Latency => "latency",
        }
    }
}

impl Terms {
    /// Times of the memory side.
    fn memory(&self) -> [(Bound, f64); 3] {
        [(Bound::Dram, self.dram_us), (Bound::L2, self.l2_us), (Bound::Host, self.host_us)]
    }

    /// Times of the SMs.
    fn compute(&self) -> [(Bound, f64); 5] {
        [
            (Bound::SharedMemory, self.smem_us),
            (Bound::LoadStore, self.lsu_us),
            (Bound::TensorCores, self.mma_us),
            (Bound::Pipe, self.pipe_us),
            (Bound::Issue, self.issue_us),
        ]
    }
}

fn largest(times: &[(Bound, f64)]) -> (Bound, f64) {
    times.iter().copied().fold((Bound::Launch, 0.0), |best, t| if t.1 > best.1 { t } else { best })
}

/// Predicts the time of a launch, given what earlier ones left in L2, and updates that.
pub fn predict(
    device: &DeviceSpec,
    counters: &Counters,
    facts: &KernelFacts,
    kind: LaunchKind,
    l2: &mut L2State,
) -> Prediction {
    let occupancy = device.occupancy(&Resources {
        threads: counters.threads_per_cta(),
        registers: facts.registers,
        shared_bytes: counters.static_shared_bytes.saturating_add(counters.dynamic_shared_bytes),
    });
    let traffic = l2.launch(counters);
    let at = terms::Launch::new(device, counters, facts, &occupancy, &traffic);
    let terms = at.terms();
    let bound_us = at.peak_us();

    let memory = largest(&terms.memory());
    let compute = largest(&terms.compute());
    // The second busiest unit: on the other side, or the runner-up of the compute side.
    let busy = if memory.1 > compute.1 { memory } else { compute };
    let second = if memory.1 > compute.1 {
        compute.1
    } else {
        let rest = terms.compute().into_iter().filter(|t| t.0 != compute.0);
        rest.map(|t| t.1).fold(memory.1, f64::max)
    };
    let reads = if counters.read_bytes_asked > 0 { 0.5 } else { 0.0 };
    let writes = if counters.written_bytes_asked > 0 { 0.5 } else { 0.0 };
    let ramp_us = RAMP_US.value * (reads + writes);
    let working = busy.1 + OVERLAP_LOSS.value * second + ramp_us;
    let (mut limiter, steady) =
        if terms.chain_us > working { (Bound::Latency, terms.chain_us) } else { (busy.0, working) };
    let launch_gap_us = match kind {
        LaunchKind::Stream => GAP_STREAM_US.value,
        LaunchKind::Graph => GAP_GRAPH_US.value,
    };
    if launch_gap_us > steady || busy.1 < ramp_us && limiter != Bound::Latency {
        limiter = Bound::Launch;
    }
    Prediction {
        time_us: launch_gap_us + steady,
        bound_us,
        limiter,
        terms,
        launch_gap_us,
        ramp_us,
        tail: at.tail,
        waves: at.waves,
        dram_read_bytes: traffic.read_sectors * SECTOR_BYTES,
        dram_written_bytes: traffic.written_sectors * SECTOR_BYTES,
        l2_hit_bytes: traffic.hit_sectors * SECTOR_BYTES,
        machine_instructions: at.machine_instructions,
        occupancy,
    }
}

/// Modelled time of a copy between host and device in microseconds.
pub fn host_copy_us(bytes: u64) -> f64 {
    COPY_GAP_US.value + bytes as f64 / PCIE_BYTES_PER_S.value * 1e6
}

/// Modelled time of a fill (`read` false) or a copy within the device in microseconds.
pub fn device_copy_us(device: &DeviceSpec, bytes: u64, read: bool) -> f64 {
    let moved = bytes as f64 * if read { 2.0 } else { 1.0 };
    GAP_STREAM_US.value + RAMP_US.value + moved / (dram_eta(device) * device.dram_bytes_per_second()) * 1e6
}

#[cfg(test)]
mod tests;
