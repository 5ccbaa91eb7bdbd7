//! Devices that plans are made for: memory, and what their memory and arithmetic can reach.

/// What kind of executor runs on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The host's processor.
    Cpu {
        /// Threads that execute kernels.
        threads: usize,
    },
    /// A CUDA GPU.
    Cuda {
        /// Streaming multiprocessors: work is cut into as many runs.
        multiprocessors: usize,
    },
}

/// A device, as far as planning needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// The name given on the command line: `a100-80g`, `cpu`.
    pub name: String,
    /// What runs on it.
    pub kind: DeviceKind,
    /// Memory that a plan may use, in bytes.
    pub memory_bytes: u64,
    /// Best read bandwidth that kernels are known to reach, bytes/s. 0 if unknown.
    pub read_bytes_per_s: f64,
    /// Matrix arithmetic that large products are known to reach, FLOP/s. 0 if unknown.
    pub flops_per_s: f64,
    /// Matrix arithmetic of the data sheet, FLOP/s; on a CPU as `flops_per_s`.
    pub peak_flops_per_s: f64,
}

const GIB: u64 = 1 << 30;
/// Kept free on a GPU for the driver's context and what other processes hold.
const GPU_RESERVED_BYTES: u64 = GIB;

/// One line of the table of named devices: name, memory (GiB), peak bandwidth (GB/s), dense BF16
/// peak (TFLOP/s with FP32 accumulation), multiprocessors. Sources: the vendor's data sheets.
const GPUS: &[(&str, u64, f64, f64, usize)] = &[
    ("a100-40g", 40, 1555.0, 312.0, 108),
    ("a100-80g", 80, 2039.0, 312.0, 108),
    ("a100-80g-pcie", 80, 1935.0, 312.0, 108),
    ("h100-80g", 80, 3352.0, 989.0, 132),
    ("h200-141g", 141, 4800.0, 989.0, 132),
    ("a10", 24, 600.0, 125.0, 72),
    ("a6000", 48, 768.0, 155.0, 84),
    ("l4", 24, 300.0, 121.0, 58),
    ("l40s", 48, 864.0, 362.0, 142),
    ("rtx3090", 24, 936.0, 71.0, 82),
    ("rtx4090", 24, 1008.0, 165.0, 128),
];

/// What drivers call them, behind the vendor's name.
const PRODUCTS: &[(&str, &str)] = &[
    ("A100-SXM4-40GB", "a100-40g"),
    ("A100-PCIE-40GB", "a100-40g"),
    ("A100-SXM4-80GB", "a100-80g"),
    ("A100-SXM-80GB", "a100-80g"),
    ("A100 80GB PCIe", "a100-80g-pcie"),
    ("H100 80GB HBM3", "h100-80g"),
    ("H200", "h200-141g"),
    ("A10", "a10"),
    ("RTX A6000", "a6000"),
    ("L4", "l4"),
    ("L40S", "l40s"),
    ("GeForce RTX 3090", "rtx3090"),
    ("GeForce RTX 4090", "rtx4090"),
];

/// Share of a GPU's peak bandwidth that the best read kernels reach: 1.80 of 2.039 TB/s on an
/// A100 80 GB (NVIDIA developer forum, thread 339083).
const BANDWIDTH_SHARE: f64 = 1.80e12 / 2.039e12;
/// Share of a GPU's matrix peak that long products reach: 200 of 312 TFLOP/s on an A100.
const FLOPS_SHARE: f64 = 200.0 / 312.0;

impl Device {
    /// The named GPU, or `None`. Names are case-insensitive.
    pub fn gpu(name: &str) -> Option<Device> {
        let &(name, gib, gbs, tflops, multiprocessors) =
            GPUS.iter().find(|g| g.0.eq_ignore_ascii_case(name))?;
        Some(Device {
            name: name.to_string(),
            kind: DeviceKind::Cuda { multiprocessors },
            memory_bytes: gib * GIB - GPU_RESERVED_BYTES,
            read_bytes_per_s: gbs * 1e9 * BANDWIDTH_SHARE,
            flops_per_s: tflops * 1e12 * FLOPS_SHARE,
            peak_flops_per_s: tflops * 1e12,
        })
    }

    /// The named GPU behind a driver's product name, as `NVIDIA A100-SXM4-80GB`, or `None`: also for parts of one.
    pub fn gpu_by_product_name(product: &str) -> Option<Device> {
        let product = product.trim_start_matches("NVIDIA ").trim_end_matches(" (simulated)");
        PRODUCTS.iter().find(|p| p.0 == product).and_then(|p| Device::gpu(p.1))
    }

    /// Names that [`Device::gpu`] knows.
    pub fn gpu_names() -> Vec<&'static str> {
        GPUS.iter().map(|g| g.0).collect()
    }

    /// The host's processor. Bandwidth and arithmetic may be 0 if they were not measured.
    pub fn cpu(threads: usize, memory_bytes: u64, read_bytes_per_s: f64, flops_per_s: f64) -> Device {
        Device {
            name: "cpu".into(),
            kind: DeviceKind::Cpu { threads },
            memory_bytes,
            read_bytes_per_s,
            flops_per_s,
            peak_flops_per_s: flops_per_s,
        }
    }

    /// Shortest time in seconds for moving `bytes` and computing `flops`, if the device's limits
    /// are known.
    pub fn bound_seconds(&self, bytes: u64, flops: u64) -> Option<f64> {
        (self.read_bytes_per_s > 0.0 && self.flops_per_s > 0.0)
            .then(|| (bytes as f64 / self.read_bytes_per_s).max(flops as f64 / self.flops_per_s))
    }
}
