//! The terms of the model for one launch.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

use super::constants::*;
use super::{KernelFacts, Terms, Traffic};
use crate::counters::{Class, Counters, MmaKind, MmaShape};
use crate::device::{DeviceSpec, Occupancy, SUB_CORES};
use crate::memory::SECTOR_BYTES;

/// An arithmetic pipe of a sub-core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pipe {
    /// None was used.
    #[default]
    None,
    /// Single precision.
    Fp32,
    /// Pairs of halves.
    Half,
    /// Double precision.
    Fp64,
    /// Integers.
    Int32,
    /// Special functions and conversions.
    Special,
    /// Shuffles and votes.
    Shuffle,
}

/// A launch on a card, with the numbers that several terms share.
pub(super) struct Launch<'a> {
    device: &'a DeviceSpec,
    counters: &'a Counters,
    traffic: &'a Traffic,
    /// Clocks of all SMs together per microsecond.
    sm_clocks_per_us: f64,
    clocks_per_us: f64,
    active_ctas: f64,
    /// Work of the busiest SM over the mean.
    pub(super) tail: f64,
    /// Idle sub-cores of an SM that holds a number of warps which is no multiple of four.
    sub_core_tail: f64,
    pub(super) waves: f64,
    /// Machine instructions over all warps.
    pub(super) machine_instructions: f64,
    sass_scale: f64,
}

impl<'a> Launch<'a> {
    pub(super) fn new(
        device: &'a DeviceSpec,
        counters: &'a Counters,
        facts: &KernelFacts,
        occupancy: &Occupancy,
        traffic: &'a Traffic,
    ) -> Launch<'a> {
        let clocks_per_us = device.clock_hz() / 1e6;
        let slots = f64::from(device.sms) * f64::from(occupancy.ctas_per_sm.max(1));
        let ctas = counters.ctas as f64;
        let warps_on_sm =
            (counters.ctas.div_ceil(u64::from(device.sms)) * u64::from(counters.warps_per_cta())).max(1);
        let by_class: f64 =
            counters.instructions.iter().map(|i| i.warp_execs as f64 * sass_per_ptx(i.class)).sum();
        let ptx = counters.warp_instructions() as f64;
        let machine_instructions =
            by_class * facts.sass_per_ptx.map_or(1.0, |ratio| correction(counters, ratio));
        Launch {
            device,
            counters,
            traffic,
            sm_clocks_per_us: clocks_per_us * f64::from(device.sms),
            clocks_per_us,
            active_ctas: ctas.min(slots),
            tail: balance(counters, device.sms),
            sub_core_tail: warps_on_sm.next_multiple_of(SUB_CORES.into()) as f64 / warps_on_sm as f64,
            waves: ctas / slots,
            machine_instructions,
            sass_scale: if ptx > 0.0 { machine_instructions / ptx } else { 1.0 },
        }
    }

    /// Times of the units with their losses.
    pub(super) fn terms(&self) -> Terms {
        let c = self.counters;
        let smem = c.memory(Class::is_shared);
        let lsu = c.memory(|class| class.is_global() || class.is_local());
        let (pipe, pipe_us) = self.pipe_us();
        Terms {
            dram_us: self.dram_bytes() / self.dram_bytes_per_us(),
            l2_us: self.l2_us(),
            host_us: c.host_bytes as f64 / PCIE_BYTES_PER_S.value * 1e6,
            smem_us: smem.wavefronts as f64 / self.sm_clocks_per_us * self.tail,
            lsu_us: (lsu.passes + lsu.collisions) as f64 / self.sm_clocks_per_us * self.tail,
            mma_us: self.mma_peak_us() / MMA_ETA.value * self.tail * self.sub_core_tail,
            pipe_us: pipe_us * self.tail * self.sub_core_tail,
            pipe,
            issue_us: self.issue_peak_us() / ISSUE_ETA.value * self.tail * self.sub_core_tail,
            chain_us: self.chain_us(),
        }
    }

    /// The largest of the times at the peaks of the card, without any loss.
    pub(super) fn peak_us(&self) -> f64 {
        let c = self.counters;
        let l2_bytes = self.l2_sectors() * SECTOR_BYTES as f64;
        [
            self.dram_bytes() / self.device.dram_bytes_per_second() * 1e6,
            l2_bytes / (f64::from(self.device.l2_bytes_per_clock) * self.clocks_per_us),
            c.host_bytes as f64 / PCIE_BYTES_PER_S.value * 1e6,
            c.memory(Class::is_shared).ideal_wavefronts as f64 / self.sm_clocks_per_us,
            self.mma_peak_us(),
            self.pipe_us().1,
            self.issue_peak_us(),
        ]
        .into_iter()
        .fold(0.0, f64::max)
    }

    fn dram_bytes(&self) -> f64 {
        (self.traffic.read_sectors + self.traffic.written_sectors) as f64 * SECTOR_BYTES as f64
    }

    /// Share of the rounds of global loads that wait for a `cp.async` group, and the depth of that pipeline.
    fn async_share(&self) -> (f64, f64) {
        let rounds = self.counters.global_rounds.max(self.counters.async_waits);
        let share = if rounds == 0 { 0.0 } else { self.counters.async_waits as f64 / rounds as f64 };
        (share, self.counters.async_depth().max(1.0))
    }

    /// Bandwidth of DRAM as far as the loads in flight can use it.
    fn dram_bytes_per_us(&self) -> f64 {
        let streaming = dram_eta(self.device) * self.device.dram_bytes_per_second() / 1e6;
        if self.counters.global_rounds == 0 {
            return streaming;
        }
        let (share, depth) = self.async_share();
        let bytes = self.counters.l2_read_sectors as f64 * SECTOR_BYTES as f64;
        let bytes_per_round = bytes / self.counters.global_rounds as f64 * (1.0 - share + share * depth);
        let in_flight = bytes_per_round * self.active_ctas * f64::from(self.counters.warps_per_cta());
        let latency_us = DRAM_LATENCY_CLOCKS.value / self.clocks_per_us;
        if in_flight > 0.0 { streaming.min(in_flight / latency_us) } else { streaming }
    }

    fn l2_sectors(&self) -> f64 {
        let c = self.counters;
        (c.l2_read_sectors + c.l2_written_sectors + c.l2_atomic_sectors) as f64
    }

    fn l2_us(&self) -> f64 {
        let bytes = self.l2_sectors() * SECTOR_BYTES as f64;
        let whole = bytes / (f64::from(self.device.l2_bytes_per_clock) * self.clocks_per_us * L2_ETA.value);
        let port = bytes / (SM_FILL_BYTES.value * self.sm_clocks_per_us) * self.tail;
        whole.max(port)
    }

    fn mma_peak_us(&self) -> f64 {
        let f16_macs: f64 = self
            .counters
            .mma()
            .iter()
            .map(|(shape, n)| *n as f64 * f16_equivalents(self.device, shape))
            .fold(0.0, |sum, macs| sum + macs);
        f16_macs / (f64::from(self.device.mma_f16_macs_per_clock) * self.sm_clocks_per_us)
    }

    fn issue_peak_us(&self) -> f64 {
        self.machine_instructions / (f64::from(SUB_CORES) * self.sm_clocks_per_us)
    }

    /// The busiest arithmetic pipe without imbalance.
    fn pipe_us(&self) -> (Pipe, f64) {
        let mut clocks = [0.0; 7];
        for i in &self.counters.instructions {
            if let Some((pipe, per_warp)) = pipe_clocks(self.device, i.class) {
                clocks[pipe as usize] += i.warp_execs as f64 * per_warp;
            }
        }
        let all = [Pipe::Fp32, Pipe::Half, Pipe::Fp64, Pipe::Int32, Pipe::Special, Pipe::Shuffle];
        let (pipe, most) = all
            .into_iter()
            .map(|p| (p, clocks[p as usize]))
            .fold((Pipe::None, 0.0), |best, p| if p.1 > best.1 { p } else { best });
        (pipe, most / (f64::from(SUB_CORES) * self.sm_clocks_per_us))
    }

    /// Dependent waits of the longest warp, once per wave of CTAs.
    fn chain_us(&self) -> f64 {
        let warp = &self.counters.longest_warp;
        let unique = (self.traffic.read_sectors + self.traffic.hit_sectors) as f64;
        // Repeated reads and what earlier launches left come from L2.
        let repeated = (self.counters.l2_read_sectors as f64).max(unique);
        let missing = if repeated > 0.0 { self.traffic.read_sectors as f64 / repeated } else { 0.0 };
        let latency =
            L2_LATENCY_CLOCKS.value + missing * (DRAM_LATENCY_CLOCKS.value - L2_LATENCY_CLOCKS.value);
        let (share, depth) = self.async_share();
        let rounds = warp.global_rounds as f64 * (1.0 - share + share / depth);
        let busy = (warp.instructions as f64 * self.sass_scale * WARP_ISSUE_CLOCKS.value)
            .max(warp.mma_chain as f64 * MMA_LATENCY_CLOCKS.value)
            .max(warp.shared_rounds as f64 * SHARED_LATENCY_CLOCKS.value);
        let clocks = rounds * latency + warp.barriers as f64 * BARRIER_CLOCKS.value + busy;
        clocks / self.clocks_per_us * self.waves.ceil().max(1.0)
    }
}

/// Work of the busiest SM over the mean when CTAs go, in launch order, to the SM with the least work so far. Work is
/// the number of instructions when the counters have it per CTA, else every CTA counts the same.
pub fn balance(counters: &Counters, sms: u32) -> f64 {
    let n = u64::from(sms.max(1));
    if counters.ctas == 0 {
        return 1.0;
    }
    if counters.cta_warp_instructions.len() as u64 != counters.ctas {
        return counters.ctas.div_ceil(n) as f64 * n as f64 / counters.ctas as f64;
    }
    let mut sms: BinaryHeap<Reverse<u64>> = (0..n).map(|_| Reverse(0)).collect();
    let (mut total, mut most) = (0u64, 0u64);
    for &work in &counters.cta_warp_instructions {
        let Reverse(least) = sms.pop().unwrap_or_default();
        let now = least + u64::from(work);
        total += u64::from(work);
        most = most.max(now);
        sms.push(Reverse(now));
    }
    if total == 0 { 1.0 } else { most as f64 * n as f64 / total as f64 }
}

/// What the numbers of a class are multiplied with, given the real ratio of the whole kernel. Unrolled loops make the
/// static ratio larger than the dynamic one, so that it is believed within limits.
fn correction(counters: &Counters, ratio: f64) -> f64 {
    let expected: f64 = counters.instructions.iter().map(|i| sass_per_ptx(i.class)).sum();
    let real = ratio * counters.instructions.len() as f64;
    if expected > 0.0 { (real / expected).clamp(SASS_LEAST.value, SASS_MOST.value) } else { 1.0 }
}

/// Machine instructions per PTX instruction of a class, where no cubin tells.
pub(super) fn sass_per_ptx(class: Class) -> f64 {
    match class {
        Class::Move => SASS_MOVE.value,
        Class::Param => SASS_PARAM.value,
        Class::Int32 => SASS_INT32.value,
        Class::Int64 => SASS_INT64.value,
        Class::Division => SASS_DIVISION.value,
        _ => SASS_OTHER.value,
    }
}

/// Pipe of a class and the clocks that one PTX instruction of a warp keeps it busy on its sub-core.
fn pipe_clocks(device: &DeviceSpec, class: Class) -> Option<(Pipe, f64)> {
    let clocks = |lanes: u32| f64::from(crate::device::WARP_SIZE * SUB_CORES) / f64::from(lanes.max(1));
    let machine = sass_per_ptx(class);
    Some(match class {
        Class::Fp32 => (Pipe::Fp32, clocks(device.fp32_lanes)),
        Class::Division => (Pipe::Fp32, clocks(device.fp32_lanes) * machine),
        Class::Half => (Pipe::Half, clocks(device.half2_lanes)),
        Class::Fp64 => (Pipe::Fp64, clocks(device.fp64_lanes)),
        Class::Int32 | Class::Int64 => (Pipe::Int32, clocks(device.int32_lanes) * machine),
        Class::Special => (Pipe::Special, CLOCKS_SPECIAL.value),
        Class::Convert => (Pipe::Special, CLOCKS_CONVERT.value),
        Class::Convert64 => (Pipe::Special, CLOCKS_CONVERT64.value),
        Class::Shuffle => (Pipe::Shuffle, CLOCKS_SHUFFLE.value),
        Class::Vote => (Pipe::Shuffle, CLOCKS_VOTE.value),
        _ => return None,
    })
}

/// Work of one tensor-core instruction in f16 multiply-accumulates.
fn f16_equivalents(device: &DeviceSpec, shape: &MmaShape) -> f64 {
    let rate = match shape.kind {
        MmaKind::F16 | MmaKind::Bf16 => 1.0,
        MmaKind::Tf32 => TF32_RATE.value,
        MmaKind::Int8 | MmaKind::Fp8 => INT8_RATE.value,
        MmaKind::Int4 => INT4_RATE.value,
        MmaKind::Bit => BIT_RATE.value,
        // Cards without f64 tensor cores run them on the f64 pipe.
        MmaKind::F64 => {
            let pipe = f64::from(device.fp64_lanes) / f64::from(device.mma_f16_macs_per_clock.max(1));
            if device.fp64_lanes >= 32 { F64_RATE.value.max(pipe) } else { pipe }
        }
    };
    // Half of a sparse A is zeros that are skipped.
    shape.macs() as f64 / rate * if shape.sparse { 0.5 } else { 1.0 }
}
