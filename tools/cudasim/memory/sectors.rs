//! Which 32-byte sectors a launch touched: bitmaps that remember where they were written, so that a reset costs what
//! the launch touched and not what the card holds.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::window::{Window, for_words, set_bits};
use crate::counters::ChunkTouch;

/// Bytes of one sector, the unit in which L2 and DRAM move data.
pub const SECTOR_BYTES: u64 = 32;
/// Bytes of one chunk, the unit in which the time model follows what stays in L2.
pub const CHUNK_BYTES: u64 = 64 << 10;

const SECTORS_PER_CHUNK: u64 = CHUNK_BYTES / SECTOR_BYTES;
const WORDS_PER_CHUNK: usize = (SECTORS_PER_CHUNK / 64) as usize;

/// Unique sectors fetched and written since the last [`SectorMap::take`].
pub(super) struct SectorMap {
    base: u64,
    end: u64,
    read: Window,
    written: Window,
    /// One bit per chunk that has a bit in `read` or `written`.
    dirty: Vec<AtomicU64>,
    /// No word of `dirty` from this index on was ever set.
    dirty_end: AtomicUsize,
    taking: Mutex<()>,
}

/// What [`super::GlobalMemory::take_sectors`] returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SectorTotals {
    /// Distinct sectors read that the launch had not written before.
    pub read: u64,
    /// Distinct sectors written.
    pub written: u64,
    /// The same by chunk, in ascending order.
    pub chunks: Vec<ChunkTouch>,
}

impl SectorMap {
    /// A map for the addresses `base..end`.
    pub(super) fn new(base: u64, end: u64) -> io::Result<SectorMap> {
        let first = base / CHUNK_BYTES;
        let chunks = end.div_ceil(CHUNK_BYTES) - first;
        let bytes = chunks as usize * WORDS_PER_CHUNK * 8;
        let dirty = (0..chunks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(SectorMap {
            base: first * CHUNK_BYTES,
            end,
            read: Window::new(bytes)?,
            written: Window::new(bytes)?,
            dirty,
            dirty_end: AtomicUsize::new(0),
            taking: Mutex::new(()),
        })
    }

    /// Sets the bits of a range in `window`, but for those that are set in `unless`.
    #[inline]
    fn mark(&self, window: &Window, unless: Option<&Window>, addr: u64, bytes: u64) {
        if addr < self.base || addr >= self.end || bytes == 0 {
            return;
        }
        let last = (addr + (bytes - 1)).min(self.end - 1);
        let first = (addr - self.base) / SECTOR_BYTES;
        let count = (last - self.base) / SECTOR_BYTES - first + 1;
        let words = window.words();
        for_words(first, count, |i, mask| {
            let mask = mask & !unless.map_or(0, |window| window.words()[i].load(Ordering::Relaxed));
            if set_bits(&words[i], mask) > 0 {
                let chunk = i / WORDS_PER_CHUNK;
                if set_bits(&self.dirty[chunk / 64], 1 << (chunk % 64)) > 0 {
                    self.dirty_end.fetch_max(chunk / 64 + 1, Ordering::Relaxed);
                }
            }
        });
    }

    /// What the launch has written before need not be fetched.
    #[inline]
    pub(super) fn mark_read(&self, addr: u64, bytes: u64) {
        self.mark(&self.read, Some(&self.written), addr, bytes);
    }

    #[inline]
    pub(super) fn mark_written(&self, addr: u64, bytes: u64) {
        self.mark(&self.written, None, addr, bytes);
    }

    /// Counts the marks of a range of addresses, read and written.
    pub(super) fn marked_in(&self, start: u64, end: u64) -> (u64, u64) {
        let (start, end) = (start.max(self.base), end.min(self.end));
        if start >= end {
            return (0, 0);
        }
        let (first, last) = ((start - self.base) / SECTOR_BYTES, (end - 1 - self.base) / SECTOR_BYTES);
        let (mut read, mut written) = (0, 0);
        for chunk in first / SECTORS_PER_CHUNK..=last / SECTORS_PER_CHUNK {
            if self.dirty[(chunk / 64) as usize].load(Ordering::Relaxed) >> (chunk % 64) & 1 == 0 {
                continue;
            }
            let from = first.max(chunk * SECTORS_PER_CHUNK);
            let to = last.min((chunk + 1) * SECTORS_PER_CHUNK - 1);
            for_words(from, to - from + 1, |i, mask| {
                let count = |window: &Window| {
                    u64::from((window.words()[i].load(Ordering::Relaxed) & mask).count_ones())
                };
                read += count(&self.read);
                written += count(&self.written);
            });
        }
        (read, written)
    }

    /// Counts the marks and removes them.
    pub(super) fn take(&self) -> SectorTotals {
        let _one_at_a_time = self.taking.lock().unwrap_or_else(|e| e.into_inner());
        let mut totals = SectorTotals::default();
        let (read, written) = (self.read.words(), self.written.words());
        let dirty_end = self.dirty_end.load(Ordering::Relaxed);
        for (i, word) in self.dirty[..dirty_end].iter().enumerate() {
            let mut chunks = word.swap(0, Ordering::Relaxed);
            while chunks != 0 {
                let chunk = i * 64 + chunks.trailing_zeros() as usize;
                chunks &= chunks - 1;
                let take = |words: &[AtomicU64]| -> u32 {
                    words[chunk * WORDS_PER_CHUNK..][..WORDS_PER_CHUNK]
                        .iter()
                        // Most words of a sparse chunk are zero: don't make them dirty in the cache.
                        .filter(|w| w.load(Ordering::Relaxed) != 0)
                        .map(|w| w.swap(0, Ordering::Relaxed).count_ones())
                        .sum()
                };
                let touch = ChunkTouch {
                    chunk: self.base / CHUNK_BYTES + chunk as u64,
                    read_sectors: take(read),
                    written_sectors: take(written),
                };
                totals.read += u64::from(touch.read_sectors);
                totals.written += u64::from(touch.written_sectors);
                totals.chunks.push(touch);
            }
        }
        totals
    }
}
