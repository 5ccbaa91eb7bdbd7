//! What a run did, for people ([`Report::table`]) and for programs ([`Report::to_json`]): per launch, per source line
//! and per kernel.

mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::counters::{Class, Counters, MemoryCount, ratio};
use crate::device::DeviceSpec;
use crate::memory::SECTOR_BYTES;
use crate::model::{Bound, KernelFacts, LaunchKind, Prediction};

/// Version of the JSON form; it changes when a field changes its meaning or goes away.
pub const JSON_VERSION: u32 = 1;

/// All launches of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`JSON_VERSION`] of the writer.
    pub version: u32,
    /// Name of the card, which says that it is simulated.
    pub device: String,
    /// Launches in order.
    pub launches: Vec<LaunchReport>,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchReport {
    /// Name of the kernel.
    pub kernel: String,
    /// How it was launched.
    pub kind: LaunchKind,
    /// Grid in CTAs.
    pub grid: [u32; 3],
    /// Block in threads.
    pub block: [u32; 3],
    /// Static shared memory, bytes per CTA.
    pub static_shared_bytes: u32,
    /// Dynamic shared memory, bytes per CTA.
    pub dynamic_shared_bytes: u32,
    /// CTAs that ran when the launch was sampled and its counters scaled.
    pub sampled_ctas: Option<u64>,
    /// Registers, spills and the ratio of machine to PTX instructions.
    pub facts: KernelFacts,
    /// Warp instructions.
    pub warp_instructions: u64,
    /// Thread instructions.
    pub thread_instructions: u64,
    /// Warp instructions by class, most first; classes that did not occur are left out.
    pub mix: Vec<(Class, u64)>,
    /// Tensor-core instructions.
    pub mma_count: u64,
    /// Multiply-accumulates of these.
    pub mma_macs: u64,
    /// Global memory, `cp.async` and atomics included.
    pub global: MemoryCount,
    /// Shared memory, `ldmatrix` and the writes of `cp.async` included.
    pub shared: MemoryCount,
    /// Local memory: arrays and spills.
    pub local: MemoryCount,
    /// Distinct bytes of device memory read before the launch has written them, in whole sectors.
    pub unique_read_bytes: u64,
    /// Distinct bytes written, in whole sectors.
    pub unique_written_bytes: u64,
    /// Bytes that active lanes asked to read.
    pub read_bytes_asked: u64,
    /// Bytes that active lanes asked to write.
    pub written_bytes_asked: u64,
    /// Bytes over the bus to the host.
    pub host_bytes: u64,
    /// What the model says.
    pub prediction: Prediction,
    /// Counters by source line, in the order of the code.
    pub lines: Vec<LineReport>,
}

/// Everything that came from one source line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LineReport {
    /// Source file; empty without line information, when `line` counts lines of the PTX.
    pub file: String,
    /// Line number, from 1.
    pub line: u32,
    /// Warp instructions.
    pub warp_execs: u64,
    /// Thread instructions.
    pub thread_execs: u64,
    /// Global memory.
    pub global: MemoryCount,
    /// Shared memory.
    pub shared: MemoryCount,
    /// Local memory.
    pub local: MemoryCount,
    /// Opcodes of the line with their warp instructions, in the order of the code.
    pub opcodes: Vec<(String, u64)>,
}

/// All launches of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelSummary {
    /// Name of the kernel.
    pub kernel: String,
    /// Number of launches.
    pub launches: u64,
    /// Sum of the modelled times.
    pub time_us: f64,
    /// Sum of the bounds.
    pub bound_us: f64,
    /// Bytes moved to and from DRAM.
    pub dram_bytes: u64,
    /// Multiply-accumulates of tensor cores.
    pub mma_macs: u64,
    /// Thread instructions.
    pub thread_instructions: u64,
    /// Shared-memory wavefronts beyond the ideal.
    pub bank_conflicts: u64,
    /// Limiter of most of the time.
    pub limiter: Bound,
}

impl Report {
    /// An empty report for a card.
    pub fn new(device: &DeviceSpec) -> Report {
        Report { version: JSON_VERSION, device: device.name.clone(), launches: Vec::new() }
    }

    /// As JSON. Non-finite numbers, which the model does not produce, would become `null`.
    ///
    /// # Errors
    ///
    /// When serialisation fails.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Reads what [`Report::to_json`] wrote.
    ///
    /// # Errors
    ///
    /// When the text is no such JSON or of another version.
    pub fn from_json(text: &str) -> serde_json::Result<Report> {
        let report: Report = serde_json::from_str(text)?;
        if report.version != JSON_VERSION {
            let found = report.version;
            let message = format!("report of version {found}, this program reads version {JSON_VERSION}");
            return Err(serde::de::Error::custom(message));
        }
        Ok(report)
    }

    /// Sum of the modelled times in microseconds.
    pub fn time_us(&self) -> f64 {
        self.launches.iter().map(|l| l.prediction.time_us).sum()
    }

    /// The launches by kernel, the one that takes most time first.
    pub fn kernels(&self) -> Vec<KernelSummary> {
        let mut by_name: BTreeMap<&str, Vec<&LaunchReport>> = BTreeMap::new();
        for launch in &self.launches {
            by_name.entry(&launch.kernel).or_default().push(launch);
        }
        let mut out: Vec<KernelSummary> =
            by_name.into_iter().map(|(name, all)| summary(name, &all)).collect();
        out.sort_by(|a, b| b.time_us.total_cmp(&a.time_us));
        out
    }
}

fn summary(kernel: &str, launches: &[&LaunchReport]) -> KernelSummary {
    let mut by_limiter: Vec<(Bound, f64)> = Vec::new();
    for l in launches {
        let (limiter, time) = (l.prediction.limiter, l.prediction.time_us);
        match by_limiter.iter_mut().find(|b| b.0 == limiter) {
            Some(b) => b.1 += time,
            None => by_limiter.push((limiter, time)),
        }
    }
    let most = by_limiter.iter().copied().fold((Bound::Launch, 0.0), |m, b| if b.1 > m.1 { b } else { m });
    KernelSummary {
        kernel: kernel.into(),
        launches: launches.len() as u64,
        time_us: launches.iter().map(|l| l.prediction.time_us).sum(),
        bound_us: launches.iter().map(|l| l.prediction.bound_us).sum(),
        dram_bytes: launches
            .iter()
            .map(|l| l.prediction.dram_read_bytes + l.prediction.dram_written_bytes)
            .sum(),
        mma_macs: launches.iter().map(|l| l.mma_macs).sum(),
        thread_instructions: launches.iter().map(|l| l.thread_instructions).sum(),
        bank_conflicts: launches.iter().map(|l| l.shared.bank_conflicts()).sum(),
        limiter: most.0,
    }
}

impl LaunchReport {
    /// The report of one launch from its counters and prediction.
    pub fn new(
        counters: &Counters,
        facts: &KernelFacts,
        kind: LaunchKind,
        prediction: Prediction,
    ) -> LaunchReport {
        let mut mix: Vec<(Class, u64)> = Vec::new();
        for class in Class::ALL {
            let n = counters.instructions.iter().filter(|i| i.class == class).map(|i| i.warp_execs).sum();
            if n > 0 {
                mix.push((class, n));
            }
        }
        mix.sort_by_key(|m| std::cmp::Reverse(m.1));
        let mma = counters.mma();
        LaunchReport {
            kernel: counters.kernel.clone(),
            kind,
            grid: counters.grid,
            block: counters.block,
            static_shared_bytes: counters.static_shared_bytes,
            dynamic_shared_bytes: counters.dynamic_shared_bytes,
            sampled_ctas: counters.sampled_ctas,
            facts: *facts,
            warp_instructions: counters.warp_instructions(),
            thread_instructions: counters.thread_instructions(),
            mix,
            mma_count: mma.iter().map(|m| m.1).sum(),
            mma_macs: mma.iter().map(|m| m.0.macs() * m.1).sum(),
            global: counters.memory(Class::is_global),
            shared: counters.memory(Class::is_shared),
            local: counters.memory(Class::is_local),
            unique_read_bytes: counters.unique_read_sectors * SECTOR_BYTES,
            unique_written_bytes: counters.unique_written_sectors * SECTOR_BYTES,
            read_bytes_asked: counters.read_bytes_asked,
            written_bytes_asked: counters.written_bytes_asked,
            host_bytes: counters.host_bytes,
            prediction,
            lines: lines(counters),
        }
    }

    /// Mean share of a warp's lanes that were active.
    pub fn active_lanes(&self) -> f64 {
        ratio(self.thread_instructions, 32 * self.warp_instructions)
    }

    /// Modelled rate of the tensor cores in TFLOP/s.
    pub fn mma_tflops(&self) -> f64 {
        if self.prediction.time_us > 0.0 {
            2.0 * self.mma_macs as f64 / self.prediction.time_us / 1e6
        } else {
            0.0
        }
    }

    /// Modelled rate of device memory in GB/s: bytes moved to and from DRAM over the modelled time.
    pub fn dram_gb_per_s(&self) -> f64 {
        let bytes = self.prediction.dram_read_bytes + self.prediction.dram_written_bytes;
        if self.prediction.time_us > 0.0 { bytes as f64 / self.prediction.time_us / 1e3 } else { 0.0 }
    }
}

/// Joins the instructions of each line, in the order in which the lines first occur.
fn lines(counters: &Counters) -> Vec<LineReport> {
    let mut order: BTreeMap<(Option<u32>, u32), usize> = BTreeMap::new();
    let mut out: Vec<LineReport> = Vec::new();
    for i in counters.instructions.iter().filter(|i| i.warp_execs > 0) {
        let at = *order.entry((i.file, i.line)).or_insert_with(|| {
            let file = i.file.and_then(|f| counters.files.get(f as usize)).cloned().unwrap_or_default();
            out.push(LineReport { file, line: i.line, ..LineReport::default() });
            out.len() - 1
        });
        let line = &mut out[at];
        line.warp_execs += i.warp_execs;
        line.thread_execs += i.thread_execs;
        if let Some(memory) = &i.memory {
            if i.class.is_global() {
                line.global.add(memory);
            }
            if i.class.is_shared() {
                line.shared.add(memory);
            }
            if i.class.is_local() {
                line.local.add(memory);
            }
        }
        match line.opcodes.iter_mut().find(|(text, _)| **text == *i.text) {
            Some((_, n)) => *n += i.warp_execs,
            None => line.opcodes.push((i.text.to_string(), i.warp_execs)),
        }
    }
    out
}

#[cfg(test)]
mod tests;
