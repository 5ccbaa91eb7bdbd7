//! Ranges of address space that cost nothing until they are written.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Size of a page of host memory; only used to give memory back.
const PAGE_BYTES: usize = 4096;

/// An anonymous, zero-filled mapping whose pages the operating system commits when they are first written.
pub(super) struct Window {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is plain memory that lives as long as the window; who touches which part of it, and how, is up
// to the callers of the methods below, which go through atomics or are unsafe.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Reserves `bytes` of address space, rounded up to whole pages.
    pub(super) fn new(bytes: usize) -> io::Result<Window> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: an anonymous mapping at an address of the system's choice touches no existing memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Window { base: base.cast(), bytes })
    }

    /// First address.
    pub(super) fn base(&self) -> u64 {
        self.base as u64
    }

    /// First address after the window.
    pub(super) fn end(&self) -> u64 {
        self.base as u64 + self.bytes as u64
    }

    /// The window as 64-bit words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, zero-filled, `bytes` long and lives as long as `self`; atomics may be
        // shared between threads.
        unsafe { std::slice::from_raw_parts(self.base.cast(), self.bytes / 8) }
    }

    /// Makes `offset..offset + bytes` zero again and gives its whole pages back to the system.
    ///
    /// # Safety
    ///
    /// No other thread uses that part of the window meanwhile, except through [`Window::words`].
    pub(super) unsafe fn clear(&self, offset: usize, bytes: usize) {
        let end = offset.saturating_add(bytes).min(self.bytes);
        let first_page = offset.next_multiple_of(PAGE_BYTES).min(end);
        let last_page = (end / PAGE_BYTES * PAGE_BYTES).max(first_page);
        // SAFETY: both ranges lie inside the mapping, as `end` is clamped to it; the caller gave exclusive use.
        unsafe {
            if offset < first_page {
                std::ptr::write_bytes(self.base.add(offset), 0, first_page - offset);
            }
            if last_page < end {
                std::ptr::write_bytes(self.base.add(last_page), 0, end - last_page);
            }
            if first_page < last_page {
                let pages = self.base.add(first_page);
                if libc::madvise(pages.cast(), last_page - first_page, libc::MADV_DONTNEED) != 0 {
                    std::ptr::write_bytes(pages, 0, last_page - first_page);
                }
            }
        }
    }

    /// Makes the whole window zero again, without touching pages that are still zero.
    ///
    /// # Safety
    ///
    /// As for [`Window::clear`].
    pub(super) unsafe fn clear_all(&self) {
        // SAFETY: passed on to the caller.
        unsafe { self.clear(0, self.bytes) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `mmap` returned, and nothing can borrow it any more.
        unsafe {
            libc::munmap(self.base.cast(), self.bytes);
        }
    }
}

/// A bitmap over a window: bit `i` is bit `i % 64` of word `i / 64`.
///
/// Calls `f` with each word's index and the mask of the bits `first..first + count` that lie in it.
pub(super) fn for_words(first: u64, count: u64, mut f: impl FnMut(usize, u64)) {
    let end = first + count;
    let mut bit = first;
    while bit < end {
        let n = (64 - bit % 64).min(end - bit);
        let mask = if n == 64 { u64::MAX } else { ((1u64 << n) - 1) << (bit % 64) };
        f((bit / 64) as usize, mask);
        bit += n;
    }
}

/// Sets bits that may be set already; returns how many were not. Reads first, as most often all are set.
#[inline]
pub(super) fn set_bits(word: &AtomicU64, mask: u64) -> u32 {
    if word.load(Ordering::Relaxed) & mask == mask {
        return 0;
    }
    (mask & !word.fetch_or(mask, Ordering::Relaxed)).count_ones()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clearing_leaves_the_neighbours() {
        let window = Window::new(5 * PAGE_BYTES).unwrap();
        for word in window.words() {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        // SAFETY: one thread.
        unsafe { window.clear(PAGE_BYTES - 8, 2 * PAGE_BYTES + 16) };
        let zero: Vec<usize> =
            (0..window.words().len()).filter(|&i| window.words()[i].load(Ordering::Relaxed) == 0).collect();
        let first = PAGE_BYTES / 8 - 1;
        assert_eq!(zero, (first..first + 2 * PAGE_BYTES / 8 + 2).collect::<Vec<_>>());
    }

    #[test]
    fn ranges_of_bits_split_at_words() {
        let mut seen = Vec::new();
        for_words(62, 68, |i, mask| seen.push((i, mask)));
        assert_eq!(seen, [(0, 3 << 62), (1, u64::MAX), (2, 3)]);
    }
}
