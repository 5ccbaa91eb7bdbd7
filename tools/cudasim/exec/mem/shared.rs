//! Shared memory of a CTA, and who accessed what in it.
//!
//! The race check keeps, for each granule of bytes, the last writer and the readers since. Whether an access is
//! ordered after another is decided by vector clocks of the warps, which barriers, `mbarrier`s and atomics join
//! (Flanagan and Freund, "FastTrack", 2009). Lanes of one warp are ordered by `bar.warp.sync`.

use std::collections::HashMap;

use super::super::cta::Rows;
use super::super::warp::Warp;

/// Lane number that stands for several lanes.
const MANY: u8 = 255;

/// Who accessed a granule.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    write_clock: u32,
    write_pc: u32,
    write_sync: u16,
    write_warp: u8,
    write_lane: u8,
    read_clock: u32,
    read_pc: u32,
    readers: u32,
    read_sync: u16,
    read_lane: u8,
    /// A `cp.async` to it was issued and not waited for.
    pending: bool,
    /// Further readers are in the table.
    more: bool,
    /// The write was atomic or volatile, and races with plain accesses only.
    ordered: bool,
}

/// A thread that accesses shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accessor {
    pub(crate) warp: usize,
    pub(crate) lane: u8,
    pub(crate) clock: u32,
    pub(crate) sync: u16,
    pub(crate) pc: u32,
    /// Up to which clock it is ordered after every other warp.
    pub(crate) floor: u32,
}

/// Two accesses that nothing orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conflict {
    /// A read of what another thread writes: instruction, warp and lane of the write.
    ReadAfterWrite(u32, u8, u8),
    /// Two writes.
    WriteAfterWrite(u32, u8, u8),
    /// A write of what another thread reads: instruction and warp of the read.
    WriteAfterRead(u32, u8),
    /// The destination of a `cp.async` that was not waited for: its instruction.
    Pending(u32),
}

impl Conflict {
    /// Instruction of the earlier access.
    pub(crate) fn other(self) -> u32 {
        match self {
            Conflict::ReadAfterWrite(pc, ..)
            | Conflict::WriteAfterWrite(pc, ..)
            | Conflict::WriteAfterRead(pc, _)
            | Conflict::Pending(pc) => pc,
        }
    }
}

/// Shared memory with its shadows.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    data: Rows,
    pub(crate) bytes: u32,
    /// A bit per byte: written.
    init: Vec<u64>,
    entries: Vec<Entry>,
    granule_shift: u32,
    warps: usize,
    /// `known[v * warps + w]`: up to which clock of warp `w` warp `v` is ordered after.
    known: Vec<u32>,
    /// Least of `known[v * warps..]` over the other warps, for each warp `v`.
    floors: Vec<u32>,
    /// What atomics and `mbarrier`s at an address carry from one warp to the next.
    carried: HashMap<u32, Vec<u32>>,
    more_readers: HashMap<u32, Vec<(u8, u32, u32)>>,
    /// Whether lanes of one warp are checked against each other.
    pub(crate) warp_races: bool,
    /// Entries with clocks up to this one are of earlier CTAs.
    base: u32,
    /// Granules of copies that were issued and have not landed, and of those that were overwritten.
    copies: u64,
}

impl SharedMemory {
    /// Memory of `bytes` for `warps` warps; the race check sees granules of `granule` bytes.
    pub(crate) fn new(bytes: u32, granule: u32, warps: usize) -> SharedMemory {
        SharedMemory {
            data: Rows::new((bytes as usize).div_ceil(4)),
            bytes,
            init: vec![0; (bytes as usize).div_ceil(64) + 1],
            entries: Vec::new(),
            granule_shift: granule.trailing_zeros(),
            warps,
            known: vec![0; warps * warps],
            floors: vec![0; warps],
            carried: HashMap::new(),
            more_readers: HashMap::new(),
            warp_races: false,
            base: 0,
            copies: 0,
        }
    }

    /// Makes it as new, with or without the race check, for a CTA after one whose warps' clocks went up to `last`.
    /// The first `reserved` bytes are zeros, all else is poison.
    pub(crate) fn reset(&mut self, races: bool, warp_races: bool, reserved: u32, last: u32) {
        self.data.words().fill(u32::MAX);
        self.init.fill(0);
        self.data.words()[..reserved as usize / 4].fill(0);
        self.init[..reserved as usize / 64].fill(u64::MAX);
        self.carried.clear();
        self.more_readers.clear();
        self.warp_races = warp_races;
        let n = if races { (self.bytes as usize).div_ceil(1 << self.granule_shift) } else { 0 };
        // Clocks go on where those of the last CTA ended, so that its entries are before everything of this one.
        if self.entries.len() == n && self.copies == 0 && last < u32::MAX / 2 {
            self.base = last;
        } else {
            self.base = 0;
            self.copies = 0;
            self.entries.clear();
            self.entries.resize(n, Entry::default());
        }
        self.known.fill(self.base);
        self.floors.fill(self.base);
    }

    /// The clock with which the warps of this CTA begin.
    pub(crate) fn first_clock(&self) -> u32 {
        self.base + 1
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.data.as_mut_ptr().cast()
    }

    /// Whether accesses are recorded.
    pub(crate) fn checks_races(&self) -> bool {
        !self.entries.is_empty()
    }

    // ---- initialisation ----

    /// Notes that bytes were written. The range lies in the memory.
    #[inline]
    pub(crate) fn mark(&mut self, at: u32, bytes: u32) {
        let (word, bit) = ((at / 64) as usize, at % 64);
        if bytes >= 64 || bit + bytes > 64 {
            for b in at..at + bytes {
                self.init[(b / 64) as usize] |= 1 << (b % 64);
            }
        } else {
            self.init[word] |= ((1 << bytes) - 1) << bit;
        }
    }

    /// Whether all of these bytes were written.
    #[inline]
    pub(crate) fn marked(&self, at: u32, bytes: u32) -> bool {
        let (word, bit) = ((at / 64) as usize, at % 64);
        if bytes >= 64 || bit + bytes > 64 {
            (at..at + bytes).all(|b| self.init[(b / 64) as usize] >> (b % 64) & 1 == 1)
        } else {
            let mask = ((1u64 << bytes) - 1) << bit;
            self.init[word] & mask == mask
        }
    }

    /// Whether all bytes of the lanes of a mask were written; accesses are aligned and of at most 64 bytes.
    #[inline(always)]
    pub(crate) fn all_marked(&self, mask: u32, addr: &[u64; 32], bytes: u32) -> bool {
        let ones = (1u64 << (bytes - 1) << 1).wrapping_sub(1);
        let mut missing = 0;
        for l in 0..32 {
            if mask >> l & 1 != 0 {
                missing |= !(self.init[(addr[l] / 64) as usize] >> (addr[l] % 64)) & ones;
            }
        }
        missing == 0
    }

    /// Notes that all bytes of the lanes of a mask were written.
    #[inline(always)]
    pub(crate) fn mark_all(&mut self, mask: u32, addr: &[u64; 32], bytes: u32) {
        let ones = (1u64 << (bytes - 1) << 1).wrapping_sub(1);
        for l in 0..32 {
            if mask >> l & 1 != 0 {
                self.init[(addr[l] / 64) as usize] |= ones << (addr[l] % 64);
            }
        }
    }

    // ---- order ----

    /// A warp arrives at a barrier: what it knows is added to `clocks`, and its clock goes on.
    pub(crate) fn arrives(&mut self, w: usize, warps: &mut [Warp], clocks: &mut Vec<u32>) {
        let n = self.warps;
        clocks.resize(n, 0);
        for (c, &k) in clocks.iter_mut().zip(&self.known[w * n..(w + 1) * n]) {
            *c = (*c).max(k);
        }
        clocks[w] = clocks[w].max(warps[w].clock);
        warps[w].clock += 1;
    }

    /// A warp is ordered after all of `clocks`.
    pub(crate) fn knows(&mut self, w: usize, clocks: &[u32]) {
        let n = self.warps;
        for (k, &c) in self.known[w * n..(w + 1) * n].iter_mut().zip(clocks) {
            *k = (*k).max(c);
        }
        self.find_floor(w);
    }

    fn find_floor(&mut self, w: usize) {
        let known = &self.known[w * self.warps..(w + 1) * self.warps];
        let others = known.iter().enumerate().filter(|&(v, _)| v != w);
        self.floors[w] = others.map(|(_, &k)| k).min().unwrap_or(self.base);
    }

    /// See [`Accessor::floor`].
    #[inline]
    pub(crate) fn floor(&self, w: usize) -> u32 {
        self.floors[w]
    }

    /// A warp publishes what it did before by an atomic or an arrival at `address`.
    pub(crate) fn release(&mut self, w: usize, warp: &mut Warp, address: u32) {
        let n = self.warps;
        if n < 2 {
            return;
        }
        let carried = self.carried.entry(address).or_insert_with(|| vec![0; n]);
        for (c, &k) in carried.iter_mut().zip(&self.known[w * n..(w + 1) * n]) {
            *c = (*c).max(k);
        }
        carried[w] = carried[w].max(warp.clock);
        warp.clock += 1;
    }

    /// A warp sees what others published at `address`.
    pub(crate) fn acquire(&mut self, w: usize, address: u32) {
        let n = self.warps;
        if let Some(carried) = self.carried.get(&address) {
            for (k, &c) in self.known[w * n..(w + 1) * n].iter_mut().zip(carried) {
                *k = (*k).max(c);
            }
            self.find_floor(w);
        }
    }

    // ---- accesses ----

    fn granules(&self, at: u32, bytes: u32) -> std::ops::Range<usize> {
        (at >> self.granule_shift) as usize..((at + bytes - 1) >> self.granule_shift) as usize + 1
    }

    #[inline]
    fn unordered_write(&self, e: &Entry, by: &Accessor) -> bool {
        if e.write_clock <= self.base {
            return false;
        }
        let w = usize::from(e.write_warp);
        if w == by.warp {
            self.warp_races
                && !e.ordered
                && e.write_lane != by.lane
                && e.write_sync == by.sync
                && e.write_pc != by.pc
        } else {
            self.known[by.warp * self.warps + w] < e.write_clock
        }
    }

    /// Whether the granule is the destination of a copy that was issued before, and only a wait is missing. A copy
    /// that another warp issues meanwhile is a race, which no wait would end.
    #[inline]
    fn not_waited_for(&self, e: &Entry, by: &Accessor) -> bool {
        e.pending && (usize::from(e.write_warp) == by.warp || !self.unordered_write(e, by))
    }

    /// Whether the write is ordered before `by` for reasons that take no look at other warps.
    #[inline(always)]
    fn settled(&self, e: &Entry, by: &Accessor) -> bool {
        let own = usize::from(e.write_warp) == by.warp;
        let apart = !self.warp_races
            || e.ordered
            || e.write_lane == by.lane
            || e.write_sync != by.sync
            || e.write_pc == by.pc;
        !e.pending && (e.write_clock <= self.base || if own { apart } else { e.write_clock <= by.floor })
    }

    /// Records a read; the first conflict, if any.
    #[inline]
    pub(crate) fn read(&mut self, at: u32, bytes: u32, by: &Accessor) -> Option<Conflict> {
        let mut conflict = None;
        for g in self.granules(at, bytes) {
            let e = self.entries[g];
            let me = 1u32 << by.warp;
            let alone = e.readers & !me == 0 || e.read_clock <= by.floor;
            if self.settled(&e, by) && (alone || e.read_clock == by.clock) {
                let together = e.readers == me && e.read_sync == by.sync && e.read_clock == by.clock;
                let many = !alone || together && e.read_lane != by.lane;
                let e = &mut self.entries[g];
                e.read_lane = if many { MANY } else { by.lane };
                e.readers = if alone { me } else { e.readers | me };
                e.read_clock = by.clock;
                e.read_sync = by.sync;
                e.read_pc = by.pc;
            } else if let Some(c) = self.read_slowly(g, by) {
                conflict.get_or_insert(c);
            }
        }
        conflict
    }

    #[inline(never)]
    fn read_slowly(&mut self, g: usize, by: &Accessor) -> Option<Conflict> {
        let e = self.entries[g];
        let conflict = if self.not_waited_for(&e, by) {
            Some(Conflict::Pending(e.write_pc))
        } else if self.unordered_write(&e, by) {
            Some(Conflict::ReadAfterWrite(e.write_pc, e.write_warp, e.write_lane))
        } else {
            None
        };
        let me = 1u32 << by.warp;
        let mut new = e;
        if e.readers & !me == 0 {
            let together = e.readers == me && e.read_sync == by.sync && e.read_clock == by.clock;
            new.read_lane = if together && e.read_lane != by.lane { MANY } else { by.lane };
            new.readers = me;
        } else if e.read_clock == by.clock {
            new.readers |= me;
            new.read_lane = MANY;
        } else {
            self.replace_readers(g, &mut new, by);
        }
        new.read_clock = by.clock;
        new.read_sync = by.sync;
        new.read_pc = by.pc;
        self.entries[g] = new;
        conflict
    }

    #[cold]
    fn replace_readers(&mut self, g: usize, e: &mut Entry, by: &Accessor) {
        let mut readers = e.readers & !(1 << by.warp);
        let mut unknown = Vec::new();
        while readers != 0 {
            let w = readers.trailing_zeros() as usize;
            readers &= readers - 1;
            if self.known[by.warp * self.warps + w] < e.read_clock {
                unknown.push((w as u8, e.read_clock, e.read_pc));
            }
        }
        if !unknown.is_empty() {
            e.more = true;
            let list = self.more_readers.entry(g as u32).or_default();
            list.retain(|r| !unknown.iter().any(|u| u.0 == r.0));
            list.extend(unknown);
        }
        e.readers = 1 << by.warp;
        e.read_lane = by.lane;
    }

    /// Records a write; the first conflict, if any. `same` says that the write changes nothing, which makes a
    /// conflict with another write harmless.
    #[inline]
    pub(crate) fn write(&mut self, at: u32, bytes: u32, by: &Accessor, same: bool) -> Option<Conflict> {
        let mut conflict = None;
        for g in self.granules(at, bytes) {
            let e = self.entries[g];
            let me = 1u32 << by.warp;
            let read_apart = e.readers & me == 0
                || !self.warp_races
                || e.read_lane == by.lane
                || e.read_sync != by.sync
                || e.read_clock != by.clock
                || e.read_pc == by.pc;
            let others_before = e.readers & !me == 0 || e.read_clock <= by.floor;
            if !(self.settled(&e, by) && read_apart && others_before && !e.more)
                && let Some(c) = self.write_conflict(g, &e, by, same)
            {
                conflict.get_or_insert(c);
            }
            self.record_write(g, by, false);
        }
        conflict
    }

    /// Records an atomic or volatile access: it races with plain accesses of other warps.
    pub(crate) fn ordered(&mut self, at: u32, bytes: u32, by: &Accessor, writes: bool) -> Option<Conflict> {
        let mut conflict = None;
        for g in self.granules(at, bytes) {
            let e = self.entries[g];
            let plain = !e.ordered && usize::from(e.write_warp) != by.warp && self.unordered_write(&e, by);
            if self.not_waited_for(&e, by) {
                conflict.get_or_insert(Conflict::Pending(e.write_pc));
            } else if plain && writes {
                conflict.get_or_insert(Conflict::WriteAfterWrite(e.write_pc, e.write_warp, e.write_lane));
            } else if plain {
                conflict.get_or_insert(Conflict::ReadAfterWrite(e.write_pc, e.write_warp, e.write_lane));
            }
            if !writes {
                continue;
            }
            if let Some(c) = self.reader_elsewhere(g, &e, by) {
                conflict.get_or_insert(c);
            }
            self.record_write(g, by, true);
        }
        conflict
    }

    #[inline]
    fn record_write(&mut self, g: usize, by: &Accessor, ordered: bool) {
        if self.entries[g].more {
            self.more_readers.remove(&(g as u32));
        }
        self.entries[g] = Entry {
            write_clock: by.clock,
            write_pc: by.pc,
            write_sync: by.sync,
            write_warp: by.warp as u8,
            write_lane: by.lane,
            ordered,
            ..Entry::default()
        };
    }

    #[inline(never)]
    fn write_conflict(&self, g: usize, e: &Entry, by: &Accessor, same: bool) -> Option<Conflict> {
        if self.not_waited_for(e, by) {
            return Some(Conflict::Pending(e.write_pc));
        }
        if !same && self.unordered_write(e, by) {
            return Some(Conflict::WriteAfterWrite(e.write_pc, e.write_warp, e.write_lane));
        }
        let me = 1u32 << by.warp;
        if self.warp_races
            && e.readers & me != 0
            && e.read_lane != by.lane
            && e.read_sync == by.sync
            && e.read_clock == by.clock
            && e.read_pc != by.pc
        {
            return Some(Conflict::WriteAfterRead(e.read_pc, by.warp as u8));
        }
        self.reader_elsewhere(g, e, by)
    }

    /// A reader in another warp that nothing orders before `by`.
    fn reader_elsewhere(&self, g: usize, e: &Entry, by: &Accessor) -> Option<Conflict> {
        let me = 1u32 << by.warp;
        let mut others = e.readers & !me;
        while others != 0 {
            let w = others.trailing_zeros() as usize;
            others &= others - 1;
            if self.known[by.warp * self.warps + w] < e.read_clock {
                return Some(Conflict::WriteAfterRead(e.read_pc, w as u8));
            }
        }
        if e.more {
            for &(w, clock, pc) in self.more_readers.get(&(g as u32)).into_iter().flatten() {
                if usize::from(w) != by.warp && self.known[by.warp * self.warps + usize::from(w)] < clock {
                    return Some(Conflict::WriteAfterRead(pc, w));
                }
            }
        }
        None
    }

    /// Records that a `cp.async` to these bytes was issued.
    pub(crate) fn issue_copy(&mut self, at: u32, bytes: u32, by: &Accessor) -> Option<Conflict> {
        let conflict = self.write(at, bytes, by, false);
        for g in self.granules(at, bytes) {
            self.entries[g].pending = true;
            self.copies += 1;
        }
        conflict
    }

    /// Records that a `cp.async` to these bytes was waited for.
    pub(crate) fn land_copy(&mut self, at: u32, bytes: u32, by: &Accessor) {
        for g in self.granules(at, bytes) {
            let e = &mut self.entries[g];
            self.copies -= u64::from(e.pending);
            e.pending = false;
            e.write_clock = by.clock;
            e.write_sync = by.sync;
            e.write_warp = by.warp as u8;
            e.write_lane = by.lane;
        }
    }
}

#[cfg(test)]
mod tests;
