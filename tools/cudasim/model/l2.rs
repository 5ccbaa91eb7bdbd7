//! What earlier launches left in L2: an approximation that depends on nothing but the launches and their order.
//!
//! Device memory is followed in chunks of 64 KiB. A launch touches its chunks in ascending order of address; a chunk
//! that is still there gives hits for the sectors that it holds, others are loaded and push out the least recently
//! touched ones. So data that is used again soon and fits is free, and a working set larger than the cache, walked
//! through again and again, hits nothing, as with a real LRU. Which sectors of a chunk are there is only counted, and
//! within one launch every distinct sector is loaded at most once: both are optimistic.

use std::collections::{BTreeMap, HashMap};

use crate::counters::Counters;
use crate::device::DeviceSpec;
use crate::memory::SECTOR_BYTES;

use super::constants::L2_RESIDENT;

/// Contents of L2 between launches.
#[derive(Clone, Debug)]
pub struct L2State {
    capacity_sectors: u64,
    used_sectors: u64,
    clock: u64,
    chunks: HashMap<u64, Chunk>,
    /// Chunk by the time of its last touch.
    by_age: BTreeMap<u64, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Chunk {
    sectors: u32,
    dirty: u32,
    touched: u64,
}

/// What one launch moved between L2 and DRAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sectors read from DRAM.
    pub read_sectors: u64,
    /// Dirty sectors written back to DRAM while it ran.
    pub written_sectors: u64,
    /// Distinct sectors read that were in L2 already.
    pub hit_sectors: u64,
}

impl L2State {
    /// An empty cache of the card.
    pub fn new(device: &DeviceSpec) -> L2State {
        L2State {
            capacity_sectors: (device.l2_bytes as f64 * L2_RESIDENT.value) as u64 / SECTOR_BYTES,
            used_sectors: 0,
            clock: 0,
            chunks: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    /// Runs a launch through the cache. Counters without chunks count as cold and leave nothing behind.
    pub fn launch(&mut self, counters: &Counters) -> Traffic {
        if counters.chunks.is_empty() {
            return Traffic {
                read_sectors: counters.unique_read_sectors,
                written_sectors: counters.unique_written_sectors,
                hit_sectors: 0,
            };
        }
        let mut traffic = Traffic::default();
        for touch in &counters.chunks {
            let old = self.remove(touch.chunk);
            let hits = touch.read_sectors.min(old.sectors);
            traffic.hit_sectors += u64::from(hits);
            traffic.read_sectors += u64::from(touch.read_sectors - hits);
            let chunk = Chunk {
                sectors: old.sectors.max(touch.read_sectors).max(touch.written_sectors),
                dirty: old.dirty.max(touch.written_sectors),
                touched: self.clock,
            };
            self.insert(touch.chunk, chunk);
            traffic.written_sectors += self.evict();
        }
        traffic
    }

    /// Forgets everything, as when a benchmark flushes the cache between runs.
    pub fn flush(&mut self) {
        self.chunks.clear();
        self.by_age.clear();
        self.used_sectors = 0;
    }

    fn remove(&mut self, chunk: u64) -> Chunk {
        let Some(old) = self.chunks.remove(&chunk) else { return Chunk::default() };
        self.by_age.remove(&old.touched);
        self.used_sectors -= u64::from(old.sectors);
        old
    }

    fn insert(&mut self, chunk: u64, state: Chunk) {
        self.clock += 1;
        self.used_sectors += u64::from(state.sectors);
        self.by_age.insert(state.touched, chunk);
        self.chunks.insert(chunk, state);
    }

    /// Drops the oldest chunks beyond the capacity; returns the dirty sectors among them.
    fn evict(&mut self) -> u64 {
        let mut written = 0;
        while self.used_sectors > self.capacity_sectors {
            let Some((_, &oldest)) = self.by_age.first_key_value() else { break };
            written += u64::from(self.remove(oldest).dirty);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::ChunkTouch;

    fn launch(chunks: std::ops::Range<u64>, read: u32, written: u32) -> Counters {
        let chunks = chunks.map(|chunk| ChunkTouch { chunk, read_sectors: read, written_sectors: written });
        Counters { chunks: chunks.collect(), ..Counters::default() }
    }

    #[test]
    fn a_second_launch_finds_what_the_first_left() {
        let mut l2 = L2State::new(&DeviceSpec::default());
        assert_eq!(l2.launch(&launch(0..10, 2048, 0)).read_sectors, 20480);
        let again = l2.launch(&launch(5..15, 2048, 0));
        assert_eq!((again.hit_sectors, again.read_sectors), (10240, 10240));
        l2.flush();
        assert_eq!(l2.launch(&launch(0..10, 2048, 0)).hit_sectors, 0);
    }

    #[test]
    fn a_cyclic_walk_through_more_than_the_cache_hits_nothing() {
        let mut l2 = L2State::new(&DeviceSpec::default());
        // 40 MiB x 0.75 is 480 chunks.
        for _ in 0..3 {
            assert_eq!(l2.launch(&launch(0..481, 2048, 0)).hit_sectors, 0);
        }
        l2.launch(&launch(0..480, 2048, 0));
        assert_eq!(l2.launch(&launch(0..480, 2048, 0)).read_sectors, 0);
    }

    #[test]
    fn dirty_sectors_are_written_back_when_they_leave() {
        let mut l2 = L2State::new(&DeviceSpec::default());
        assert_eq!(l2.launch(&launch(0..100, 0, 2048)).written_sectors, 0);
        assert_eq!(l2.launch(&launch(1000..1480, 2048, 0)).written_sectors, 100 * 2048);
        // A result larger than the cache leaves while it is written.
        l2.flush();
        assert_eq!(l2.launch(&launch(0..1000, 0, 2048)).written_sectors, 520 * 2048);
    }

    #[test]
    fn without_chunks_a_launch_is_cold() {
        let counters = Counters { unique_read_sectors: 5, unique_written_sectors: 3, ..Counters::default() };
        let traffic = L2State::new(&DeviceSpec::default()).launch(&counters);
        assert_eq!(traffic, Traffic { read_sectors: 5, written_sectors: 3, hit_sectors: 0 });
    }
}
