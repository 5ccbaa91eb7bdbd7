//! What a whole launch touches of device memory, judged by a sample of its CTAs.
//!
//! Distinct bytes do not grow with the number of CTAs as instructions do: CTAs share operands. Within an allocation
//! they are taken to grow with the CTAs until all of it is touched, which is right for operands that every CTA walks
//! through as a whole and for those that the CTAs divide among themselves, and an upper bound otherwise.

use std::collections::BTreeMap;

use crate::counters::ChunkTouch;
use crate::memory::{AllocationTable, CHUNK_BYTES, GlobalMemory, SECTOR_BYTES, SectorTotals};

/// The sectors of a whole launch from those that its sample marked; `scale` goes from CTAs that ran to all.
pub(super) fn whole(
    memory: &GlobalMemory,
    table: &AllocationTable,
    scale: impl Fn(u64) -> u64,
) -> SectorTotals {
    let mut out = SectorTotals::default();
    let mut chunks: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for a in table.iter().filter(|a| a.on_device() && a.bytes > 0) {
        let sectors = (a.end() - 1) / SECTOR_BYTES - a.base / SECTOR_BYTES + 1;
        let (read, written) = memory.sectors_of(a);
        if read + written == 0 {
            continue;
        }
        let (read, written) = (scale(read).min(sectors), scale(written).min(sectors));
        out.read += read;
        out.written += written;
        // Spread evenly: where in the allocation they lie is not known.
        let (first, last) = (a.base / CHUNK_BYTES, (a.end() - 1) / CHUNK_BYTES);
        let share = |total: u64, upto: u64| {
            (u128::from(total) * u128::from(upto - a.base) / u128::from(a.bytes)) as u64
        };
        for chunk in first..=last {
            let from = (chunk * CHUNK_BYTES).max(a.base);
            let to = ((chunk + 1) * CHUNK_BYTES).min(a.end());
            let at = chunks.entry(chunk).or_default();
            at.0 += share(read, to) - share(read, from);
            at.1 += share(written, to) - share(written, from);
        }
    }
    out.chunks = chunks
        .into_iter()
        .map(|(chunk, (read, written))| ChunkTouch {
            chunk,
            read_sectors: read as u32,
            written_sectors: written as u32,
        })
        .collect();
    out
}
