//! Modelled time of what is not a kernel, in ns.

use super::copy::Direction;
use crate::device::DeviceSpec;
use crate::model;

/// Time of a copy. Copies between devices are staged through the bus, as peer access is off.
pub(super) fn copy_ns(spec: &DeviceSpec, direction: Direction, bytes: u64) -> f64 {
    let us = match direction {
        Direction::HostToDevice | Direction::DeviceToHost | Direction::HostToHost => {
            model::host_copy_us(bytes)
        }
        Direction::Peer => 2.0 * model::host_copy_us(bytes),
        Direction::DeviceToDevice => model::device_copy_us(spec, bytes, true),
    };
    us * 1e3
}

/// Time of a memset.
pub(super) fn fill_ns(spec: &DeviceSpec, bytes: u64) -> f64 {
    model::device_copy_us(spec, bytes, false) * 1e3
}
