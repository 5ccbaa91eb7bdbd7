//! How many CTAs of a kernel an SM holds at once, by the rules of CUDA's occupancy calculator (`cuda_occupancy.h`)
//! for compute capability 8.x and 9.0.

use serde::{Deserialize, Serialize};

use super::{DeviceSpec, WARP_SIZE};

/// Registers are given to warps in units of this many.
const REGISTER_UNIT: u32 = 256;
/// Sub-cores of an SM, each with a quarter of the registers.
pub(crate) const SUB_CORES: u32 = 4;
/// Shared memory is given to CTAs in units of this many bytes.
const SHARED_UNIT: u32 = 128;
/// Shared memory that the driver keeps in every CTA.
pub(super) const RESERVED_SHARED_BYTES: u32 = 1024;
/// Threads that a CTA may have.
const MAX_THREADS_PER_CTA: u32 = 1024;
/// Registers that a thread may have.
const MAX_REGISTERS: u32 = 256;

/// What a CTA of a kernel needs of an SM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Threads per CTA.
    pub threads: u32,
    /// Registers per thread.
    pub registers: u32,
    /// Static and dynamic shared memory in bytes per CTA.
    pub shared_bytes: u32,
}

/// What keeps more CTAs off an SM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limiter {
    /// Warps that an SM holds.
    Warps,
    /// Registers.
    Registers,
    /// Shared memory.
    SharedMemory,
    /// CTAs that an SM holds.
    Ctas,
}

/// Occupancy of an SM by one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// CTAs per SM; 0 when not even one fits.
    pub ctas_per_sm: u32,
    /// Warps per SM.
    pub warps_per_sm: u32,
    /// Warps that an SM could hold.
    pub max_warps_per_sm: u32,
    /// What limits it; several when they agree.
    pub limiters: Vec<Limiter>,
    /// CTAs per SM by warps alone.
    pub by_warps: u32,
    /// CTAs per SM by registers alone; `u32::MAX` when the kernel uses none.
    pub by_registers: u32,
    /// CTAs per SM by shared memory alone.
    pub by_shared_memory: u32,
}

impl Limiter {
    /// Name as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Limiter::Warps => "warps",
            Limiter::Registers => "registers",
            Limiter::SharedMemory => "shared memory",
            Limiter::Ctas => "CTAs",
        }
    }
}

impl Occupancy {
    /// Resident warps as a share of those that an SM could hold.
    pub fn fraction(&self) -> f64 {
        f64::from(self.warps_per_sm) / f64::from(self.max_warps_per_sm.max(1))
    }
}

impl DeviceSpec {
    /// Occupancy of an SM by CTAs that need `resources`.
    pub fn occupancy(&self, resources: &Resources) -> Occupancy {
        let warps = resources.threads.div_ceil(WARP_SIZE).max(1);
        let by_warps =
            if resources.threads > MAX_THREADS_PER_CTA { 0 } else { self.max_warps_per_sm() / warps };
        let by_registers = self.ctas_by_registers(warps, resources.registers);
        let by_shared_memory = self.ctas_by_shared_memory(resources.shared_bytes);
        let ctas_per_sm = by_warps.min(by_registers).min(by_shared_memory).min(self.max_ctas_per_sm);
        let limiters = [
            (Limiter::Warps, by_warps),
            (Limiter::Registers, by_registers),
            (Limiter::SharedMemory, by_shared_memory),
            (Limiter::Ctas, self.max_ctas_per_sm),
        ];
        Occupancy {
            ctas_per_sm,
            warps_per_sm: ctas_per_sm * warps,
            max_warps_per_sm: self.max_warps_per_sm(),
            limiters: limiters.iter().filter(|l| l.1 == ctas_per_sm).map(|l| l.0).collect(),
            by_warps,
            by_registers,
            by_shared_memory,
        }
    }

    fn ctas_by_registers(&self, warps: u32, registers: u32) -> u32 {
        let per_warp = registers.min(MAX_REGISTERS + 1) * WARP_SIZE;
        let per_warp = per_warp.next_multiple_of(REGISTER_UNIT);
        if registers == 0 {
            return u32::MAX;
        }
        // A CTA is admitted as if it had the same number of warps on every sub-core.
        let admitted = u64::from(per_warp) * u64::from(warps.next_multiple_of(SUB_CORES));
        if registers > MAX_REGISTERS || admitted > u64::from(self.registers_per_sm) {
            return 0;
        }
        self.registers_per_sm / SUB_CORES / per_warp * SUB_CORES / warps
    }

    fn ctas_by_shared_memory(&self, shared_bytes: u32) -> u32 {
        if shared_bytes > self.shared_bytes_per_cta_optin {
            return 0;
        }
        self.shared_bytes_per_sm / (shared_bytes + RESERVED_SHARED_BYTES).next_multiple_of(SHARED_UNIT)
    }

    /// Dynamic shared memory that each of `ctas` CTAs on one SM can have, as
    /// `cuOccupancyAvailableDynamicSMemPerBlock`: at most `max_dynamic_bytes`, the limit that the function was given.
    /// `None` when so many CTAs don't fit even without dynamic shared memory.
    ///
    /// `resources.shared_bytes` is the static part. What this returns always fits; the formula in `cuda_occupancy.h`
    /// forgets the driver's own 1 KiB per CTA and returns that much more.
    pub fn available_dynamic_shared(
        &self,
        resources: &Resources,
        max_dynamic_bytes: u32,
        ctas: u32,
    ) -> Option<u32> {
        if ctas == 0 || self.occupancy(resources).ctas_per_sm < ctas {
            return None;
        }
        let static_bytes = resources.shared_bytes + RESERVED_SHARED_BYTES;
        let limit = self.shared_bytes_per_cta_optin + RESERVED_SHARED_BYTES;
        let share = if ctas == 1 { limit } else { self.shared_bytes_per_sm / ctas };
        let share = (share / SHARED_UNIT * SHARED_UNIT).min(limit);
        Some(share.saturating_sub(static_bytes).min(max_dynamic_bytes))
    }

    /// The block size that fills an SM best and the grid that fills the card with it, as
    /// `cuOccupancyMaxPotentialBlockSize`: of equally good sizes the largest, at most `limit` threads (0: no limit).
    /// `shared_bytes` gives static and dynamic shared memory for a number of threads.
    ///
    /// Returns (grid, block); `(0, 0)` when no size fits.
    pub fn best_block(&self, registers: u32, limit: u32, shared_bytes: impl Fn(u32) -> u32) -> (u32, u32) {
        let limit = if limit == 0 { MAX_THREADS_PER_CTA } else { limit.min(MAX_THREADS_PER_CTA) };
        let mut best = (0, 0, 0);
        // Whole warps from above, then the odd size that the limit is.
        let sizes = (1..=limit.div_ceil(WARP_SIZE)).rev().map(|warps| (warps * WARP_SIZE).min(limit));
        for threads in sizes {
            let resources = Resources { threads, registers, shared_bytes: shared_bytes(threads) };
            let ctas = self.occupancy(&resources).ctas_per_sm;
            if ctas * threads > best.0 {
                best = (ctas * threads, threads, ctas);
            }
            if best.0 == self.max_threads_per_sm {
                break;
            }
        }
        (best.2 * self.sms, best.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occupancy(device: &str, threads: u32, registers: u32, shared_bytes: u32) -> Occupancy {
        DeviceSpec::preset(device).unwrap().occupancy(&Resources { threads, registers, shared_bytes })
    }

    #[test]
    fn the_limiter_is_named() {
        use Limiter::*;
        for (device, threads, registers, shared, ctas, limiters) in [
            // 2048 threads / 256; 32 registers are just what 64 warps can have.
            ("a100-80g", 256, 32, 0, 8, vec![Warps, Registers]),
            ("a100-80g", 256, 24, 0, 8, vec![Warps]),
            // 33 registers are given as 40: 1280 a warp, 12 warps of 16384 a sub-core, 48 warps.
            ("a100-80g", 256, 33, 0, 6, vec![Registers]),
            // 255 registers: 8192 a warp, 2 warps a sub-core, 8 warps.
            ("a100-80g", 128, 255, 0, 2, vec![Registers]),
            ("a100-80g", 256, 255, 0, 1, vec![Registers]),
            // 9 warps of 8192 exceed 65536 as a whole, and 65 to 128 registers of 1024 threads too.
            ("a100-80g", 288, 255, 0, 0, vec![Registers]),
            ("a100-80g", 1024, 64, 0, 1, vec![Registers]),
            ("a100-80g", 1024, 65, 0, 0, vec![Registers]),
            // 1 warp a CTA: 32 CTAs though 64 warps would fit.
            ("a100-80g", 32, 16, 0, 32, vec![Ctas]),
            // 164 KiB / (40 + 1) = 4; / (16 + 1) = 9.6.
            ("a100-80g", 128, 32, 40 << 10, 4, vec![SharedMemory]),
            ("a100-80g", 128, 32, 16 << 10, 9, vec![SharedMemory]),
            ("a100-80g", 128, 32, 163 << 10, 1, vec![SharedMemory]),
            ("a100-80g", 128, 32, (163 << 10) + 1, 0, vec![SharedMemory]),
            // 1536 threads: one CTA of 1024, three of 512.
            ("rtx4090", 1024, 32, 0, 1, vec![Warps]),
            ("rtx4090", 512, 32, 0, 3, vec![Warps]),
            ("rtx4090", 32, 32, 0, 24, vec![Ctas]),
            ("rtx4090", 128, 32, 48 << 10, 2, vec![SharedMemory]),
            ("h100", 128, 168, 0, 3, vec![Registers]),
            ("h100", 128, 32, 227 << 10, 1, vec![SharedMemory]),
            ("a100-80g", 1025, 32, 0, 0, vec![Warps]),
        ] {
            let o = occupancy(device, threads, registers, shared);
            assert_eq!(
                (o.ctas_per_sm, &o.limiters),
                (ctas, &limiters),
                "{device} {threads} {registers} {shared}"
            );
        }
    }

    #[test]
    fn a_warp_of_an_odd_block_counts_whole() {
        let o = occupancy("a100-80g", 33, 16, 0);
        assert_eq!((o.ctas_per_sm, o.warps_per_sm), (32, 64));
        assert_eq!(o.fraction(), 1.0);
        // 5 warps a CTA at 48 registers: 10 warps a sub-core, 40 of them, 8 CTAs.
        assert_eq!(occupancy("a100-80g", 160, 48, 0).ctas_per_sm, 8);
    }

    #[test]
    fn absurd_needs_do_not_fit_and_do_not_overflow() {
        let o = occupancy("a100-80g", u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(o.ctas_per_sm, 0);
    }

    #[test]
    fn dynamic_shared_memory_is_shared_out() {
        let d = DeviceSpec::default();
        let r = Resources { threads: 128, registers: 32, shared_bytes: 0 };
        assert_eq!(d.available_dynamic_shared(&r, 163 << 10, 1), Some(163 << 10));
        assert_eq!(d.available_dynamic_shared(&r, 163 << 10, 2), Some(81 << 10));
        assert_eq!(d.available_dynamic_shared(&r, 48 << 10, 2), Some(48 << 10));
        assert_eq!(d.available_dynamic_shared(&r, 163 << 10, 17), None);
        assert_eq!(d.available_dynamic_shared(&r, 163 << 10, 0), None);
    }

    #[test]
    fn the_best_block_fills_the_card() {
        let d = DeviceSpec::default();
        assert_eq!(d.best_block(32, 0, |_| 0), (2 * 108, 1024));
        assert_eq!(d.best_block(40, 0, |_| 0), (2 * 108, 768));
        assert_eq!(d.best_block(32, 100, |_| 0), (32 * 108, 64));
        assert_eq!(d.best_block(32, 0, |_| u32::MAX), (0, 0));
    }
}
