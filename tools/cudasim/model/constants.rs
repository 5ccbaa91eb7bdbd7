//! Every number of the time model that is not a property of one card in [`crate::device`], with where it comes from
//! and how sure it is. None was measured by this project: it has no GPU.

use crate::device::DeviceSpec;

/// How sure a constant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Taken from a published measurement or document, which the source names.
    Read,
    /// General knowledge about the hardware, not checked against a document.
    Recalled,
    /// Calculated from other constants, or chosen so that the model meets a published measurement.
    Derived,
    /// An assumption that nothing here supports but plausibility.
    Assumed,
}

/// A number of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constant {
    /// What it is.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// Unit, empty for a ratio.
    pub unit: &'static str,
    /// How sure it is.
    pub status: Status,
    /// Where it comes from.
    pub source: &'static str,
}

macro_rules! constants {
    ($($ident:ident = $value:expr, $unit:literal, $status:ident, $name:literal, $source:literal;)*) => {
        $(
            #[doc = $name]
            pub const $ident: Constant =
                Constant { name: $name, value: $value, unit: $unit, status: Status::$status, source: $source };
        )*
        /// All constants, in the order of the table in `MODEL.md`.
        pub const ALL: &[Constant] = &[$($ident),*];
    };
}

constants! {
    DRAM_ETA_SM80 = 0.88, "", Read, "share of the DRAM peak that streaming kernels reach, A100",
        "best read seen on an A100 80GB: 1.80 of 2.04 TB/s (NVIDIA developer forum, thread 339083)";
    DRAM_ETA_SM89 = 0.92, "", Read, "the same, RTX 4090",
        "calm: 923 of 1008 GB/s end to end with fp16 weights (zeux/calm, README)";
    DRAM_ETA_SM90 = 0.90, "", Recalled, "the same, H100", "STREAM-like copies at about 3.0 of 3.35 TB/s";
    L2_ETA = 0.62, "", Recalled, "share of the L2 peak that is reached", "4 to 5 of 7.2 TB/s on an A100";
    L2_RESIDENT = 0.75, "", Assumed, "share of L2 that keeps data of earlier launches",
        "an A100's L2 is two halves which may hold copies of one line";
    MMA_ETA = 0.90, "", Derived, "share of the tensor-core peak in the steady state of a good main loop",
        "cuBLAS reaches 0.80 to 0.88 of 312 TFLOP/s in whole GEMMs (recalled), tails and ramps not counted";
    ISSUE_ETA = 0.80, "", Assumed, "share of the issue slots that a busy scheduler fills", "the study's section 4";
    OVERLAP_LOSS = 0.20, "", Derived, "share of the second busiest side (memory or compute) that is not hidden",
        "between perfect overlap (0) and none (1): a compromise of large GEMMs and FlashAttention-2's forward pass";
    DRAM_LATENCY_CLOCKS = 530.0, "clocks", Recalled, "latency of a load from DRAM", "470 to 570 on an A100";
    L2_LATENCY_CLOCKS = 230.0, "clocks", Recalled, "latency of a load from L2", "200 to 260 on an A100";
    SHARED_LATENCY_CLOCKS = 26.0, "clocks", Recalled, "latency of a load from shared memory",
        "23 to 30; accel-sim's A100 trace configuration has 28";
    BARRIER_CLOCKS = 30.0, "clocks", Recalled, "a CTA barrier", "the study's section 4";
    MMA_LATENCY_CLOCKS = 30.0, "clocks", Recalled, "dependent mma.m16n8k16", "25 to 33 on an A100";
    WARP_ISSUE_CLOCKS = 2.0, "clocks", Assumed, "clocks per instruction of a warp that is alone on its scheduler",
        "4 to 5 for dependent instructions, 1 for independent ones";
    SM_FILL_BYTES = 64.0, "B/clock", Recalled, "bandwidth from L2 into one SM", "microbenchmarks of V100 and A100";
    RAMP_US = 1.5, "us", Derived, "first load to last store beyond the steady state",
        "one DRAM latency to fill, one to drain, the start of the CTAs; the study has 1, the first anchor asks for more";
    GAP_STREAM_US = 2.1, "us", Read, "from one kernel to the next in a stream",
        "Hazy Research, H100: about 2.1 us per stream launch";
    GAP_GRAPH_US = 1.3, "us", Read, "from one node of a graph to a dependent one",
        "Hazy Research, H100: about 1.3 us per kernel inside a CUDA graph";
    PCIE_BYTES_PER_S = 25e9, "B/s", Recalled, "pinned copies over PCIe 4.0 x16", "24 to 26 GB/s";
    COPY_GAP_US = 4.0, "us", Recalled, "start of a copy over the bus", "about 4 to 10 us as seen by events";
    CLOCKS_SPECIAL = 8.0, "clocks", Recalled, "sub-core clocks of one ex2, lg2, rcp, rsqrt, sin, cos or tanh",
        "CUDA C++ Programming Guide, throughput table: 16 results per clock and SM";
    CLOCKS_CONVERT = 8.0, "clocks", Recalled, "sub-core clocks of one conversion", "16 results per clock and SM";
    CLOCKS_CONVERT64 = 8.0, "clocks", Recalled, "sub-core clocks of one conversion with 64-bit operands",
        "16 results per clock and SM";
    CLOCKS_SHUFFLE = 4.0, "clocks", Recalled, "sub-core clocks of one shuffle", "32 results per clock and SM";
    CLOCKS_VOTE = 2.0, "clocks", Recalled, "sub-core clocks of one vote", "64 results per clock and SM";
    TF32_RATE = 0.5, "", Recalled, "tf32 multiply-accumulates relative to f16", "A100: 156 of 312 TFLOP/s";
    INT8_RATE = 2.0, "", Recalled, "int8 and fp8 relative to f16", "A100: 624 of 312 TOP/s";
    INT4_RATE = 4.0, "", Recalled, "int4 relative to f16", "A100: 1248 of 312 TOP/s";
    BIT_RATE = 16.0, "", Recalled, "single bits relative to f16", "A100: 4992 of 312 TOP/s";
    F64_RATE = 0.0625, "", Recalled, "f64 tensor cores relative to f16", "A100: 19.5 of 312 TFLOP/s";
    SASS_MOVE = 0.3, "", Assumed, "machine instructions per PTX mov or selp", "most are removed by ptxas";
    SASS_PARAM = 0.3, "", Assumed, "machine instructions per parameter load or cvta",
        "parameters are operands in constant memory";
    SASS_INT32 = 0.8, "", Assumed, "machine instructions per 32-bit integer operation",
        "lop3, lea and imad join several";
    SASS_INT64 = 1.4, "", Assumed, "machine instructions per 64-bit integer operation",
        "two for an addition, one imad.wide for address arithmetic";
    SASS_DIVISION = 20.0, "", Assumed, "machine instructions per division or correctly rounded rcp or sqrt",
        "8 to 12 for f32 on the fast path, about 20 for 32-bit and 70 for 64-bit integers";
    SASS_OTHER = 1.0, "", Assumed, "machine instructions per other PTX instruction",
        "checked on 26 kernels of this crate's tests, whose machine code has 1.0 to 2.4 times the estimate where loops are \
         unrolled or code is short, 0.95 to 1.05 for pipelines and GEMMs";
    SASS_LEAST = 0.5, "", Assumed, "least correction of the estimate by a cubin's static ratio", "see the next";
    SASS_MOST = 1.5, "", Assumed, "largest correction of the estimate by a cubin's static ratio",
        "a larger one comes from loops that ptxas unrolled, which do not run more instructions";
}

/// The share of the DRAM peak that streaming kernels reach on a card.
pub fn dram_eta(device: &DeviceSpec) -> f64 {
    match device.compute_capability {
        [8, 0] => DRAM_ETA_SM80.value,
        [8, _] => DRAM_ETA_SM89.value,
        _ => DRAM_ETA_SM90.value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_constant_is_positive_and_has_a_source() {
        for c in ALL {
            assert!(c.value > 0.0 && !c.source.is_empty() && !c.name.is_empty(), "{c:?}");
        }
        for preset in DeviceSpec::PRESETS {
            assert!((0.8..1.0).contains(&dram_eta(&DeviceSpec::preset(preset).unwrap())));
        }
    }
}
