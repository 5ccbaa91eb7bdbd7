//! Modelled time of what is not a kernel. Kernels are the business of [`crate::model`].

use super::copy::Direction;
use crate::device::DeviceSpec;

/// Bytes per second over PCIe 4.0 x16 from pinned memory; 26.2 GB/s is what `bandwidthTest` commonly shows of the
/// 31.5 GB/s that the link has. Cards with PCIe 5.0 are given twice that.
const PCIE4_BYTES_PER_SECOND: f64 = 26.2e9;
/// Bytes per second between two cards: over NVLink 3 in one direction (300 GB/s on the link, about 0.9 of it seen).
const PEER_BYTES_PER_SECOND: f64 = 270e9;
/// Start of a copy, from the queue to the first byte.
const COPY_START_NS: f64 = 1500.0;
/// Start of a memset, which is a kernel to the device.
const FILL_START_NS: f64 = 2000.0;
/// Share of the DRAM peak that a memset or a copy within the device reaches.
const STREAMING: f64 = 0.88;

/// Time of a copy in ns.
pub(super) fn copy_ns(spec: &DeviceSpec, direction: Direction, bytes: u64) -> f64 {
    let pcie = if spec.compute_capability[0] >= 9 { 2.0 } else { 1.0 } * PCIE4_BYTES_PER_SECOND;
    let bytes_per_second = match direction {
        Direction::HostToDevice | Direction::DeviceToHost | Direction::HostToHost => pcie,
        Direction::Peer => PEER_BYTES_PER_SECOND,
        // Each byte is read and written.
        Direction::DeviceToDevice => spec.dram_bytes_per_second() * STREAMING / 2.0,
    };
    COPY_START_NS + bytes as f64 / bytes_per_second * 1e9
}

/// Time of a memset in ns.
pub(super) fn fill_ns(spec: &DeviceSpec, bytes: u64) -> f64 {
    FILL_START_NS + bytes as f64 / (spec.dram_bytes_per_second() * STREAMING) * 1e9
}
