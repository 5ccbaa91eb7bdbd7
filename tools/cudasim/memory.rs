//! Global memory of one simulated device.
//!
//! Device pointers are addresses in a range of host address space as large as several times the simulated card, of
//! which the system commits the pages that are written. So an execution core may dereference them directly, once the
//! allocation table has said that they lie inside an allocation. Beside the bytes there are shadows: which bytes were
//! initialised, who wrote a word last, and which sectors the running launch touched.
//!
//! Everything here may be used by several host threads at once. Bytes themselves are unsynchronised, as on a device:
//! that is for the executor (atomics) and the program under test.

mod alloc;
mod sectors;
mod window;
mod writers;

use std::io;
use std::sync::Arc;

use window::{Window, for_words, set_bits};

pub use alloc::{Allocation, AllocationKind, AllocationTable};
pub use sectors::{CHUNK_BYTES, SECTOR_BYTES, SectorTotals};
pub use writers::EarlierWrite;

use alloc::Allocator;
use sectors::SectorMap;
use std::sync::atomic::Ordering;
use writers::WriterMap;

/// Value of bytes that nobody wrote.
pub const POISON: u8 = 0xff;

/// Address space reserved per byte of the card, so that freed addresses are not reused soon.
const WINDOW_FACTOR: u64 = 4;

/// Why a host-side access to device memory was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// Some byte of the range lies in no allocation.
    #[error("{bytes} bytes at {addr:#x} are not inside an allocation{}", near(.nearest))]
    OutOfBounds {
        /// First address asked for.
        addr: u64,
        /// Bytes asked for.
        bytes: u64,
        /// Base and size of the allocation that is closest to `addr`.
        nearest: Option<(u64, u64)>,
    },
    /// The size of the pattern is not 1, 2 or 4 bytes, or the address is not a multiple of it.
    #[error("a fill with a pattern of {pattern_bytes} bytes at {addr:#x} is not aligned")]
    Misaligned {
        /// First address asked for.
        addr: u64,
        /// Size of the pattern.
        pattern_bytes: u64,
    },
}

fn near(nearest: &Option<(u64, u64)>) -> String {
    match nearest {
        Some((base, bytes)) => format!("; the nearest is {base:#x}..{:#x}", base + bytes),
        None => String::new(),
    }
}

/// Memory of one device: the allocations, their bytes and the shadows of them.
pub struct GlobalMemory {
    window: Window,
    /// One bit per byte of the window: set when the byte was written.
    initialised: Window,
    allocator: Allocator,
    sectors: SectorMap,
    writers: WriterMap,
}

impl GlobalMemory {
    /// Memory of a card with `capacity_bytes`; host memory is committed only where it is written.
    ///
    /// # Errors
    ///
    /// When the system refuses to reserve the address space.
    pub fn new(capacity_bytes: u64) -> io::Result<GlobalMemory> {
        let bytes = capacity_bytes.checked_mul(WINDOW_FACTOR).and_then(|b| b.checked_add(64 << 20));
        let bytes = bytes.and_then(|b| usize::try_from(b).ok()).ok_or(io::ErrorKind::OutOfMemory)?;
        let window = Window::new(bytes)?;
        let (base, end) = (window.base(), window.end());
        Ok(GlobalMemory {
            initialised: Window::new(bytes / 8 + 8)?,
            allocator: Allocator::new(base, end, capacity_bytes),
            sectors: SectorMap::new(base, end)?,
            writers: WriterMap::new(base, end)?,
            window,
        })
    }

    /// Allocates device memory at a multiple of 512; `None` when the card is full or `bytes` is 0.
    pub fn alloc(&self, bytes: u64) -> Option<u64> {
        self.allocator.alloc(bytes, AllocationKind::Device)
    }

    /// Allocates the memory of a module's variable, which is named in reports.
    pub fn alloc_variable(&self, name: &str, bytes: u64) -> Option<u64> {
        self.allocator.alloc(bytes, AllocationKind::Variable(name.into()))
    }

    /// Frees what [`GlobalMemory::alloc`] returned; `false` when `addr` is no base of an allocation.
    pub fn free(&self, addr: u64) -> bool {
        let Some(gone) = self.allocator.free(addr) else { return false };
        let (first, bytes) = ((gone.base - self.window.base()) as usize, gone.bytes as usize);
        // SAFETY: the allocation is out of the table, so that nobody is told that the range is valid any more; its
        // neighbours keep their pages, as allocations are at least 512 bytes apart and `clear` is exact.
        unsafe { self.window.clear(first, bytes) };
        let words = self.initialised.words();
        if gone.bytes >= 1 << 20 {
            let (from, to) = (first.next_multiple_of(64), (first + bytes) / 64 * 64);
            // SAFETY: this window is used through its atomic words only.
            unsafe { self.initialised.clear(from / 8, (to - from) / 8) };
        }
        for_words(first as u64, gone.bytes, |i, mask| {
            if words[i].load(Ordering::Relaxed) & mask != 0 {
                words[i].fetch_and(!mask, Ordering::Relaxed);
            }
        });
        true
    }

    /// Makes pinned host memory reachable from kernels at its own address.
    pub fn register_host(&self, addr: u64, bytes: u64) {
        self.allocator.register(addr, bytes);
    }

    /// Undoes [`GlobalMemory::register_host`]; `false` when `addr` was not registered.
    pub fn unregister_host(&self, addr: u64) -> bool {
        self.allocator.unregister(addr)
    }

    /// The allocation that contains `addr`.
    pub fn find(&self, addr: u64) -> Option<Arc<Allocation>> {
        self.allocator.table().find(addr).cloned()
    }

    /// The allocation closest to `addr`, for error messages.
    pub fn nearest(&self, addr: u64) -> Option<Arc<Allocation>> {
        self.allocator.table().nearest(addr).cloned()
    }

    /// All allocations as they are now: what a launch takes once and looks up without a lock.
    pub fn table(&self) -> Arc<AllocationTable> {
        self.allocator.table()
    }

    /// Bytes allocated on the device, each allocation rounded up to 512.
    pub fn used(&self) -> u64 {
        self.allocator.used()
    }

    /// Bytes that the card has.
    pub fn capacity(&self) -> u64 {
        self.allocator.capacity()
    }

    /// Copies from the host to the device.
    ///
    /// # Errors
    ///
    /// [`MemError::OutOfBounds`] when the range is not inside one allocation; nothing is written then.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemError> {
        let n = bytes.len() as u64;
        if n == 0 {
            return Ok(());
        }
        let allocation = self.inside(addr, n)?;
        // SAFETY: `inside` proved that the destination lies in memory of this device (or pinned memory that its owner
        // keeps alive); `copy` allows the source to overlap it.
        unsafe { std::ptr::copy(bytes.as_ptr(), addr as *mut u8, bytes.len()) };
        self.mark_initialised(&allocation, addr, n);
        Ok(())
    }

    /// Copies from the device to the host. Returns how many of the bytes nobody had written; these read as
    /// [`POISON`].
    ///
    /// # Errors
    ///
    /// [`MemError::OutOfBounds`] when the range is not inside one allocation; `out` is unchanged then.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<u64, MemError> {
        let n = out.len() as u64;
        if n == 0 {
            return Ok(0);
        }
        let allocation = self.inside(addr, n)?;
        // SAFETY: as in `write`, with source and destination exchanged.
        unsafe { std::ptr::copy(addr as *const u8, out.as_mut_ptr(), out.len()) };
        if self.is_initialised(&allocation, addr, n) {
            return Ok(0);
        }
        let mut unwritten = 0;
        for (i, byte) in out.iter_mut().enumerate() {
            if !self.byte_initialised(addr + i as u64) {
                *byte = POISON;
                unwritten += 1;
            }
        }
        Ok(unwritten)
    }

    /// Copies within the device (or between it and pinned memory). Bytes that nobody wrote stay so at their new place.
    ///
    /// # Errors
    ///
    /// [`MemError::OutOfBounds`] for either range; nothing is written then.
    pub fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<(), MemError> {
        if bytes == 0 {
            return Ok(());
        }
        let from = self.inside(src, bytes)?;
        let to = self.inside(dst, bytes)?;
        let wholly = self.is_initialised(&from, src, bytes);
        // Read before the bytes move, as the ranges may overlap.
        let unwritten: Vec<u64> = if wholly || !to.on_device() {
            Vec::new()
        } else {
            (0..bytes).filter(|&i| !self.byte_initialised(src + i)).collect()
        };
        // SAFETY: `inside` proved both ranges; `copy` allows them to overlap.
        unsafe { std::ptr::copy(src as *const u8, dst as *mut u8, bytes as usize) };
        if unwritten.is_empty() {
            self.mark_initialised(&to, dst, bytes);
            return Ok(());
        }
        let mut next = 0;
        for gap in unwritten.iter().copied().chain([bytes]) {
            if gap > next {
                self.mark_initialised(&to, dst + next, gap - next);
            }
            next = gap + 1;
        }
        for gap in unwritten {
            self.mark_uninitialised(&to, dst + gap);
        }
        Ok(())
    }

    /// Writes `pattern` (1, 2 or 4 bytes) `n` times from `addr` on.
    ///
    /// # Errors
    ///
    /// [`MemError::Misaligned`] for another size or an address that is no multiple of it, [`MemError::OutOfBounds`]
    /// when the range is not inside one allocation.
    pub fn fill(&self, addr: u64, pattern: &[u8], n: u64) -> Result<(), MemError> {
        let pattern_bytes = pattern.len() as u64;
        if !matches!(pattern_bytes, 1 | 2 | 4) || !addr.is_multiple_of(pattern_bytes) {
            return Err(MemError::Misaligned { addr, pattern_bytes });
        }
        let bytes = n.checked_mul(pattern_bytes).ok_or_else(|| self.out_of_bounds(addr, u64::MAX))?;
        if bytes == 0 {
            return Ok(());
        }
        let allocation = self.inside(addr, bytes)?;
        // SAFETY: `inside` proved the range, of which each part is written once.
        unsafe {
            if pattern.iter().all(|&b| b == pattern[0]) {
                std::ptr::write_bytes(addr as *mut u8, pattern[0], bytes as usize);
            } else {
                for i in 0..n {
                    let to = (addr + i * pattern_bytes) as *mut u8;
                    std::ptr::copy_nonoverlapping(pattern.as_ptr(), to, pattern.len());
                }
            }
        }
        self.mark_initialised(&allocation, addr, bytes);
        Ok(())
    }

    /// Whether all of `addr..addr + bytes` was written. The range must lie in `allocation`.
    #[inline]
    pub fn is_initialised(&self, allocation: &Allocation, addr: u64, bytes: u64) -> bool {
        if allocation.wholly_initialised() {
            return true;
        }
        debug_assert!(allocation.contains(addr, bytes));
        let words = self.initialised.words();
        let mut all = true;
        for_words(addr - self.window.base(), bytes, |i, mask| {
            all &= words[i].load(Ordering::Relaxed) & mask == mask;
        });
        all
    }

    /// Notes that `addr..addr + bytes` was written. The range must lie in `allocation`.
    #[inline]
    pub fn mark_initialised(&self, allocation: &Allocation, addr: u64, bytes: u64) {
        if allocation.wholly_initialised() {
            return;
        }
        debug_assert!(allocation.contains(addr, bytes));
        if bytes == allocation.bytes {
            allocation.set_wholly_initialised();
            return;
        }
        let words = self.initialised.words();
        let mut new = 0;
        for_words(addr - self.window.base(), bytes, |i, mask| new += u64::from(set_bits(&words[i], mask)));
        if new > 0 {
            allocation.count_initialised(new);
        }
    }

    /// Whether the byte at `addr`, which must lie in an allocation on the device, was written.
    #[inline]
    fn byte_initialised(&self, addr: u64) -> bool {
        let bit = addr - self.window.base();
        self.initialised.words()[(bit / 64) as usize].load(Ordering::Relaxed) >> (bit % 64) & 1 == 1
    }

    fn mark_uninitialised(&self, allocation: &Allocation, addr: u64) {
        if !allocation.on_device() {
            return;
        }
        let words = self.initialised.words();
        if allocation.clear_wholly_initialised() {
            for_words(allocation.base - self.window.base(), allocation.bytes, |i, mask| {
                set_bits(&words[i], mask);
            });
            allocation.count_initialised(allocation.bytes - 1);
        } else if self.byte_initialised(addr) {
            allocation.uncount_initialised(1);
        }
        let bit = addr - self.window.base();
        words[(bit / 64) as usize].fetch_and(!(1 << (bit % 64)), Ordering::Relaxed);
    }

    /// Starts the bookkeeping of a launch: writers of earlier launches are forgotten, sector marks removed.
    pub fn begin_launch(&self) {
        self.writers.begin_launch();
        self.sectors.take();
    }

    /// Notes a plain store of one CTA, in an allocation on the device. Returns a store of another CTA to the same
    /// bytes in this launch. Atomics and stores that order memory are not to be noted.
    #[inline]
    pub fn record_write(&self, addr: u64, bytes: u64, cta: u32, instruction: u16) -> Option<EarlierWrite> {
        self.writers.record_write(addr, bytes, EarlierWrite { cta, instruction })
    }

    /// Of the plain stores to these bytes in this launch one that `unordered` says the CTA of: that CTA, and the
    /// instruction. It is called with what `record_write` got as the CTA.
    #[inline]
    pub fn find_writer(
        &self,
        addr: u64,
        bytes: u64,
        unordered: impl Fn(u32) -> Option<u64>,
    ) -> Option<(u64, u16)> {
        self.writers.find(addr, bytes, unordered)
    }

    /// Marks the sectors of `addr..addr + bytes` as read by this launch, but for those that it has written before: they
    /// are in L2. Addresses outside the device are ignored.
    #[inline]
    pub fn mark_read(&self, addr: u64, bytes: u64) {
        self.sectors.mark_read(addr, bytes);
    }

    /// Marks the sectors of `addr..addr + bytes` as written by this launch.
    #[inline]
    pub fn mark_written(&self, addr: u64, bytes: u64) {
        self.sectors.mark_written(addr, bytes);
    }

    /// Counts the sectors of an allocation that were marked since the launch began, read and written.
    pub fn sectors_of(&self, allocation: &Allocation) -> (u64, u64) {
        self.sectors.marked_in(allocation.base, allocation.end())
    }

    /// Counts the sectors marked since the launch began, and removes the marks.
    pub fn take_sectors(&self) -> SectorTotals {
        self.sectors.take()
    }

    fn inside(&self, addr: u64, bytes: u64) -> Result<Arc<Allocation>, MemError> {
        match self.find(addr) {
            Some(a) if a.contains(addr, bytes) => Ok(a),
            _ => Err(self.out_of_bounds(addr, bytes)),
        }
    }

    fn out_of_bounds(&self, addr: u64, bytes: u64) -> MemError {
        MemError::OutOfBounds { addr, bytes, nearest: self.nearest(addr).map(|a| (a.base, a.bytes)) }
    }
}

#[cfg(test)]
mod tests;
