//! Copies and fills: rows of bytes between host and device memory.

use std::sync::Arc;

use super::error::{Error, Result};
use super::state::{Device, Driver};
use crate::memory::MemError;

/// Where bytes come from or go to.
#[derive(Clone)]
pub(super) enum Place {
    /// Host memory of the program. It promised that it stays valid until the copy is done.
    Host(usize),
    /// A copy of host memory that the program may change at once.
    Staged(Arc<[u8]>),
    /// Memory of a device.
    Device(Arc<Device>, u64),
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Host(addr) => write!(f, "host {addr:#x}"),
            Place::Staged(bytes) => write!(f, "{} staged bytes", bytes.len()),
            Place::Device(device, addr) => write!(f, "device {} {addr:#x}", device.ordinal),
        }
    }
}

/// Bytes as rows and slices: `width` bytes, `height` rows, `depth` slices, at these distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub width: u64,
    pub height: u64,
    pub depth: u64,
}

/// Distances of rows and slices in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pitch {
    pub row: u64,
    pub slice: u64,
}

/// A copy.
#[derive(Debug, Clone)]
pub(super) struct Copy {
    pub to: Place,
    pub to_pitch: Pitch,
    pub from: Place,
    pub from_pitch: Pitch,
    pub extent: Extent,
}

/// A fill: rows of a pattern of 1, 2 or 4 bytes.
#[derive(Clone)]
pub(super) struct Fill {
    pub device: Arc<Device>,
    pub addr: u64,
    pub pitch: u64,
    pub value: u32,
    pub element_bytes: u32,
    /// Elements in a row.
    pub width: u64,
    pub height: u64,
}

/// Which way a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    HostToDevice,
    DeviceToHost,
    DeviceToDevice,
    Peer,
    HostToHost,
}

impl Copy {
    /// A copy of consecutive bytes.
    pub fn linear(to: Place, from: Place, bytes: u64) -> Copy {
        let extent = Extent { width: bytes, height: 1, depth: 1 };
        Copy { to, to_pitch: Pitch::default(), from, from_pitch: Pitch::default(), extent }
    }

    /// Bytes that move.
    pub fn bytes(&self) -> u64 {
        let Extent { width, height, depth } = self.extent;
        width.saturating_mul(height).saturating_mul(depth)
    }

    /// Which way it goes.
    pub fn direction(&self) -> Direction {
        match (&self.from, &self.to) {
            (Place::Device(from, _), Place::Device(to, _)) if Arc::ptr_eq(from, to) => {
                Direction::DeviceToDevice
            }
            (Place::Device(..), Place::Device(..)) => Direction::Peer,
            (Place::Device(..), _) => Direction::DeviceToHost,
            (_, Place::Device(..)) => Direction::HostToDevice,
            _ => Direction::HostToHost,
        }
    }

    /// Whether an instantiated graph accepts this copy in the other's place: the memory must be on the same devices.
    pub fn may_become(&self, other: &Copy) -> bool {
        let device = |place: &Place| match place {
            Place::Device(device, _) => Some(device.ordinal),
            _ => None,
        };
        device(&self.to) == device(&other.to) && device(&self.from) == device(&other.from)
    }

    /// Checks all addresses without moving anything.
    pub fn check(&self) -> Result {
        if self.bytes() == 0 {
            return Ok(());
        }
        let Extent { width, height, depth } = self.extent;
        for (place, pitch) in [(&self.from, self.from_pitch), (&self.to, self.to_pitch)] {
            if (height > 1 || depth > 1) && pitch.row < width {
                return Err(Error::INVALID_VALUE);
            }
            let last = (depth - 1)
                .checked_mul(pitch.slice)
                .and_then(|slices| slices.checked_add((height - 1).checked_mul(pitch.row)?))
                .and_then(|start| start.checked_add(width))
                .ok_or(Error::INVALID_VALUE)?;
            match place {
                Place::Host(0) => return Err(Error::INVALID_VALUE),
                Place::Host(_) => {}
                Place::Staged(bytes) if (bytes.len() as u64) < last => return Err(Error::INVALID_VALUE),
                Place::Staged(_) => {}
                Place::Device(device, addr) => inside(device, *addr, last)?,
            }
        }
        Ok(())
    }

    /// Moves the bytes. Returns how many of those that reached the host nobody had written.
    pub fn run(&self, driver: &Driver) -> std::result::Result<u64, MemError> {
        if self.bytes() == 0 {
            return Ok(0);
        }
        let Extent { width, height, depth } = self.extent;
        let mut unwritten = 0;
        for slice in 0..depth {
            for row in 0..height {
                let to = slice * self.to_pitch.slice + row * self.to_pitch.row;
                let from = slice * self.from_pitch.slice + row * self.from_pitch.row;
                unwritten += self.row(driver, to, from, width)?;
            }
        }
        Ok(unwritten)
    }

    fn row(&self, driver: &Driver, to: u64, from: u64, width: u64) -> std::result::Result<u64, MemError> {
        let staged;
        let source: &[u8] = match &self.from {
            Place::Device(device, addr) => {
                match &self.to {
                    Place::Device(other, target) if Arc::ptr_eq(device, other) => {
                        device.memory.copy(target + to, addr + from, width)?;
                        return Ok(0);
                    }
                    Place::Host(target) => {
                        return device.memory.read(addr + from, host_mut(target + to as usize, width));
                    }
                    _ => {}
                }
                let mut bytes = vec![0; width as usize];
                let unwritten = device.memory.read(addr + from, &mut bytes)?;
                if unwritten > 0 {
                    driver.journal.note(format_args!(
                        "{unwritten} of {width} bytes copied between devices were never written"
                    ));
                }
                staged = bytes;
                &staged
            }
            Place::Staged(bytes) => &bytes[from as usize..(from + width) as usize],
            Place::Host(addr) => host(addr + from as usize, width),
        };
        match &self.to {
            Place::Device(device, addr) => device.memory.write(addr + to, source)?,
            Place::Host(addr) => {
                let target = host_mut(addr + to as usize, width);
                // SAFETY: both are `width` bytes; `copy` allows them to overlap.
                unsafe { std::ptr::copy(source.as_ptr(), target.as_mut_ptr(), target.len()) };
            }
            Place::Staged(_) => {}
        }
        Ok(0)
    }
}

impl Fill {
    /// Whether an instantiated graph accepts this fill in the other's place: one row, the same element size.
    pub fn may_become(&self, other: &Fill) -> bool {
        self.height == 1
            && other.height == 1
            && self.element_bytes == other.element_bytes
            && Arc::ptr_eq(&self.device, &other.device)
    }

    /// Bytes that are written.
    pub fn bytes(&self) -> u64 {
        self.width.saturating_mul(self.element_bytes.into()).saturating_mul(self.height)
    }

    /// Checks all addresses without writing anything.
    pub fn check(&self) -> Result {
        let element = u64::from(self.element_bytes);
        if !matches!(element, 1 | 2 | 4) || !self.addr.is_multiple_of(element) {
            return Err(Error::INVALID_VALUE);
        }
        if self.bytes() == 0 {
            return Ok(());
        }
        let row = self.width.checked_mul(element).ok_or(Error::INVALID_VALUE)?;
        if self.height > 1 && (self.pitch < row || !self.pitch.is_multiple_of(element)) {
            return Err(Error::INVALID_VALUE);
        }
        let last = (self.height - 1).checked_mul(self.pitch).and_then(|start| start.checked_add(row));
        inside(&self.device, self.addr, last.ok_or(Error::INVALID_VALUE)?)
    }

    /// Writes.
    pub fn run(&self) -> std::result::Result<(), MemError> {
        let pattern = &self.value.to_le_bytes()[..self.element_bytes as usize];
        for row in 0..self.height {
            self.device.memory.fill(self.addr + row * self.pitch, pattern, self.width)?;
        }
        Ok(())
    }
}

/// `bytes` at `addr` must lie in one allocation.
fn inside(device: &Device, addr: u64, bytes: u64) -> Result {
    match device.memory.find(addr) {
        Some(found) if found.contains(addr, bytes) => Ok(()),
        _ => Err(Error::INVALID_VALUE),
    }
}

/// Host memory of the program as a slice.
pub(super) fn host<'a>(addr: usize, bytes: u64) -> &'a [u8] {
    // SAFETY: the program passed this range to a copy and promised that it is readable until the copy is done. Bytes
    // have no invalid values.
    unsafe { std::slice::from_raw_parts(addr as *const u8, bytes as usize) }
}

fn host_mut<'a>(addr: usize, bytes: u64) -> &'a mut [u8] {
    // SAFETY: the program passed this range as the target of a copy and promised that it is writable and not used
    // until the copy is done.
    unsafe { std::slice::from_raw_parts_mut(addr as *mut u8, bytes as usize) }
}
