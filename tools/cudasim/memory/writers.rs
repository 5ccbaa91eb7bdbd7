//! Who wrote each word of global memory last, to find two CTAs of one launch that write the same bytes.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::window::Window;

/// A store that another CTA of the same launch made to the same bytes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlierWrite {
    /// Linear index of the CTA, modulo 2^32.
    pub cta: u32,
    /// Index of its instruction, as given to [`super::GlobalMemory::record_write`].
    pub instruction: u16,
}

/// One 64-bit record per 4-byte word: epoch of the launch, CTA, instruction and which of the four bytes.
///
/// Two CTAs may each write their own bytes of one word. Such words move to an exact table, marked by a record with
/// no byte.
///
/// Streaming stores write whole lines of 128 bytes. They have a record of their own, with [`WHOLE`] and [`PARTS`] in
/// place of the bytes, so that the words need not be touched.
pub(super) struct WriterMap {
    base: u64,
    shadow: Window,
    lines: Window,
    /// 1 to 4095; 0 is the epoch of words never written.
    epoch: AtomicU64,
    mixed: Vec<Mutex<HashMap<u64, [Option<EarlierWrite>; 4]>>>,
}

const LINE_BYTES: u64 = 128;
/// The line was written as a whole, by the writer of the record.
const WHOLE: u64 = 1;
/// Words of the line have records.
const PARTS: u64 = 2;

const EPOCHS: u64 = 1 << 12;
const MIXED_SHARDS: usize = 16;

fn record(epoch: u64, writer: EarlierWrite, mask: u64) -> u64 {
    epoch << 52 | u64::from(writer.cta) << 20 | u64::from(writer.instruction) << 4 | mask
}

fn writer_of(record: u64) -> EarlierWrite {
    EarlierWrite { cta: (record >> 20) as u32, instruction: (record >> 4) as u16 }
}

impl WriterMap {
    /// A map for the addresses `base..end`; `base` is a multiple of 4.
    pub(super) fn new(base: u64, end: u64) -> io::Result<WriterMap> {
        let bytes = usize::try_from((end - base) * 2).map_err(|_| io::ErrorKind::OutOfMemory)?;
        Ok(WriterMap {
            base,
            shadow: Window::new(bytes)?,
            lines: Window::new(((end - base) / LINE_BYTES + 2) as usize * 8)?,
            epoch: AtomicU64::new(1),
            mixed: (0..MIXED_SHARDS).map(|_| Mutex::default()).collect(),
        })
    }

    /// Forgets all writers.
    pub(super) fn begin_launch(&self) {
        for shard in &self.mixed {
            shard.lock().unwrap_or_else(|e| e.into_inner()).clear();
        }
        if self.epoch.fetch_add(1, Ordering::Relaxed) + 1 >= EPOCHS {
            // SAFETY: the windows are used through their atomic words only.
            unsafe {
                self.shadow.clear_all();
                self.lines.clear_all();
            }
            self.epoch.store(1, Ordering::Relaxed);
        }
    }

    /// Notes a store of `bytes` at `addr`; `None` when no other CTA wrote any of these bytes in this launch.
    #[inline]
    pub(super) fn record_write(&self, addr: u64, bytes: u64, writer: EarlierWrite) -> Option<EarlierWrite> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let (mut at, end) = (addr - self.base, addr - self.base + bytes);
        let mut conflict = None;
        while at < end {
            let line = at / LINE_BYTES;
            let next = ((line + 1) * LINE_BYTES).min(end);
            let whole = next - at == LINE_BYTES;
            let Some(slot) = self.lines.words().get(line as usize) else { break };
            let found = self.record_line(slot, epoch, writer, whole, at, next);
            conflict = conflict.or(found);
            at = next;
        }
        conflict
    }

    /// See [`super::GlobalMemory::find_writer`].
    #[inline]
    pub(super) fn find(
        &self,
        addr: u64,
        bytes: u64,
        unordered: impl Fn(u32) -> Option<u64>,
    ) -> Option<(u64, u16)> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let (mut at, end) = (addr - self.base, addr - self.base + bytes);
        while at < end {
            let line = at / LINE_BYTES;
            let next = ((line + 1) * LINE_BYTES).min(end);
            let record = self.lines.words().get(line as usize)?.load(Ordering::Relaxed);
            if record >> 52 == epoch
                && let Some(found) = self.find_in_line(record, epoch, at, next, &unordered)
            {
                return Some(found);
            }
            at = next;
        }
        None
    }

    /// The same for the bytes `at..end` of one line with its record.
    fn find_in_line(
        &self,
        line: u64,
        epoch: u64,
        mut at: u64,
        end: u64,
        unordered: &impl Fn(u32) -> Option<u64>,
    ) -> Option<(u64, u16)> {
        let asked = |writer: EarlierWrite| unordered(writer.cta).map(|cta| (cta, writer.instruction));
        if line & WHOLE != 0
            && let Some(found) = asked(writer_of(line))
        {
            return Some(found);
        }
        let mut last = None;
        while line & PARTS != 0 && at < end {
            let (word, first) = (at / 4, at % 4);
            let n = (4 - first).min(end - at);
            let mask = (0xf >> (4 - n)) << first;
            at += n;
            let record = self.shadow.words().get(word as usize)?.load(Ordering::Relaxed);
            if record >> 52 != epoch || record & 0xf != 0 && record & mask == 0 || last == Some(record) {
                continue;
            }
            last = Some(record);
            let found = if record & 0xf == 0 {
                let table =
                    self.mixed[word as usize % MIXED_SHARDS].lock().unwrap_or_else(|e| e.into_inner());
                let owners = table.get(&word).copied().unwrap_or_default();
                drop(table);
                let of_bytes = owners.into_iter().enumerate().filter(|(byte, _)| mask >> byte & 1 == 1);
                of_bytes.filter_map(|(_, owner)| owner).find_map(asked)
            } else {
                asked(writer_of(record))
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Notes a store to the bytes `at..end` of one line.
    #[inline]
    fn record_line(
        &self,
        slot: &AtomicU64,
        epoch: u64,
        writer: EarlierWrite,
        whole: bool,
        at: u64,
        end: u64,
    ) -> Option<EarlierWrite> {
        let mut conflict = None;
        let mut old = slot.load(Ordering::Relaxed);
        loop {
            let known = old >> 52 == epoch;
            let new = match (known, whole) {
                (false, true) => record(epoch, writer, WHOLE),
                (false, false) => record(epoch, writer, PARTS),
                (true, true) => record(epoch, writer, WHOLE | (old & PARTS)),
                (true, false) => old | PARTS,
            };
            if known && old & WHOLE != 0 && writer_of(old).cta != writer.cta {
                conflict = Some(writer_of(old));
            }
            if new == old {
                break;
            }
            match slot.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        if whole && !(old >> 52 == epoch && old & PARTS != 0) {
            return conflict;
        }
        conflict.or(self.record_words(epoch, writer, at, end))
    }

    fn record_words(&self, epoch: u64, writer: EarlierWrite, mut at: u64, end: u64) -> Option<EarlierWrite> {
        let words = self.shadow.words();
        let mut conflict = None;
        while at < end {
            let (word, first) = (at / 4, at % 4);
            let n = (4 - first).min(end - at);
            let mask = (0xf >> (4 - n)) << first;
            at += n;
            let Some(slot) = words.get(word as usize) else { break };
            let new = record(epoch, writer, mask);
            let old = slot.load(Ordering::Relaxed);
            if old == new {
                continue;
            }
            let found = self.replace(slot, word, old, new);
            conflict = conflict.or(found);
        }
        conflict
    }

    fn replace(&self, slot: &AtomicU64, word: u64, mut old: u64, new: u64) -> Option<EarlierWrite> {
        let writer = writer_of(new);
        loop {
            let same_launch = old >> 52 == new >> 52;
            let (old_mask, new_mask) = (old & 0xf, new & 0xf);
            if same_launch
                && (old_mask == 0 || (writer_of(old).cta != writer.cta && old_mask & new_mask == 0))
            {
                return self.record_mixed(slot, word, old, new);
            }
            let merged = if same_launch && writer_of(old).cta == writer.cta { new | old_mask } else { new };
            match slot.compare_exchange_weak(old, merged, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if same_launch && writer_of(old).cta != writer.cta => return Some(writer_of(old)),
                Ok(_) => return None,
                Err(now) => old = now,
            }
        }
    }

    /// The exact path for a word whose bytes belong to several CTAs.
    fn record_mixed(&self, slot: &AtomicU64, word: u64, old: u64, new: u64) -> Option<EarlierWrite> {
        let mut table = self.mixed[word as usize % MIXED_SHARDS].lock().unwrap_or_else(|e| e.into_inner());
        // Under the lock, so that whoever sees the mark finds the owners in the table. A record that changed since
        // `old` was read is merged as it is now.
        let now = slot.swap(new & !0xf, Ordering::Relaxed);
        let owners = table.entry(word).or_default();
        for record in [old, now] {
            for (byte, owner) in owners.iter_mut().enumerate() {
                if record >> byte & 1 == 1 && record & 0xf != 0 && owner.is_none() {
                    *owner = Some(writer_of(record));
                }
            }
        }
        let writer = writer_of(new);
        let mut conflict = None;
        for (byte, owner) in owners.iter_mut().enumerate() {
            if new >> byte & 1 == 1 {
                let earlier = owner.replace(writer);
                conflict = conflict.or(earlier.filter(|w| w.cta != writer.cta));
            }
        }
        conflict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(cta: u32) -> EarlierWrite {
        EarlierWrite { cta, instruction: 7 }
    }

    #[test]
    fn two_ctas_on_one_word_conflict_once_per_launch() {
        let map = WriterMap::new(0x1000, 0x2000).unwrap();
        assert_eq!(map.record_write(0x1000, 16, by(1)), None);
        assert_eq!(map.record_write(0x1000, 16, by(1)), None);
        assert_eq!(map.record_write(0x100c, 8, by(2)), Some(by(1)));
        map.begin_launch();
        assert_eq!(map.record_write(0x100c, 8, by(3)), None);
    }

    #[test]
    fn ctas_may_share_a_word_but_not_its_bytes() {
        let map = WriterMap::new(0x1000, 0x2000).unwrap();
        assert_eq!(map.record_write(0x1000, 2, by(1)), None);
        assert_eq!(map.record_write(0x1002, 2, by(2)), None);
        assert_eq!(map.record_write(0x1000, 2, by(1)), None);
        assert_eq!(map.record_write(0x1002, 2, by(2)), None);
        assert_eq!(map.record_write(0x1001, 1, by(3)), Some(by(1)));
        assert_eq!(map.record_write(0x1000, 4, by(2)), Some(by(1)));
    }

    #[test]
    fn one_cta_may_write_the_parts_of_a_word_and_then_all_of_it() {
        let map = WriterMap::new(0, 64).unwrap();
        assert_eq!(map.record_write(0, 1, by(5)), None);
        assert_eq!(map.record_write(1, 1, by(5)), None);
        assert_eq!(map.record_write(0, 4, by(5)), None);
        assert_eq!(map.record_write(1, 1, by(6)), Some(by(5)));
    }

    #[test]
    fn whole_lines_and_parts_of_them_meet() {
        let map = WriterMap::new(0, 1024).unwrap();
        assert_eq!(map.record_write(0, 512, by(1)), None);
        assert_eq!(map.record_write(0, 512, by(1)), None);
        assert_eq!(map.record_write(4, 4, by(2)), Some(by(1)));
        assert_eq!(map.record_write(130, 2, by(1)), None);
        assert_eq!(map.record_write(256, 128, by(3)), Some(by(1)));
        assert_eq!(map.record_write(512, 4, by(4)), None);
        assert_eq!(map.record_write(512, 128, by(5)), Some(by(4)));
        map.begin_launch();
        assert_eq!(map.record_write(0, 1024, by(9)), None);
    }

    #[test]
    fn epochs_wrap_without_old_records() {
        let map = WriterMap::new(0, 64).unwrap();
        map.record_write(0, 4, by(1));
        for _ in 0..2 * EPOCHS {
            map.begin_launch();
            assert_eq!(map.record_write(4, 4, by(2)), None);
        }
        assert_eq!(map.record_write(0, 4, by(2)), None);
    }
}
