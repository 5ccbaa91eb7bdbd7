//! Counters of memory accesses: sectors, bank conflicts, what passes a small L1.

use super::super::cta::L1_SECTORS;
use super::super::cx::Cx;
use super::super::inst::Inst;
use super::runs::Runs;
use super::{Access, mem_flag};

/// Counts an access to global memory.
#[inline(always)]
pub(super) fn global(cx: &mut Cx, i: &Inst, mask: u32, runs: &Runs, bytes: u32, access: Access) {
    let sectors = runs.sectors();
    let asked = u64::from(mask.count_ones()) * u64::from(bytes);
    let device = cx.allocation().is_none_or(|a| a.on_device());
    let memory = cx.launch.memory;
    if access != Access::Load || !device {
        // Stores, atomics, copies.
    } else {
        cx.cta.warps[cx.warp].global_pending = true;
    }
    let stats = &mut cx.stats;
    let m = &mut stats.insts[cx.pc as usize].memory;
    m.requests += 1;
    m.bytes_asked += asked;
    m.sectors += sectors;
    m.ideal_sectors += runs.bytes().div_ceil(32);
    m.passes += sectors.div_ceil(4).max(1);
    if !device {
        stats.host_bytes += runs.bytes();
        return;
    }
    match access {
        Access::Load | Access::CopyFrom => {
            stats.read_bytes += asked;
            for r in runs.iter() {
                memory.mark_read(r.start, r.end - r.start);
            }
            stats.l2_read +=
                if i.aux[0] & mem_flag::NO_L1 != 0 { sectors } else { missed(&mut cx.cta.l1, runs) };
        }
        Access::Store => {
            stats.written_bytes += asked;
            stats.l2_written += sectors;
            for r in runs.iter() {
                memory.mark_written(r.start, r.end - r.start);
            }
        }
        Access::Atomic => {
            stats.read_bytes += asked;
            stats.written_bytes += asked;
            stats.l2_atomic += sectors;
            for r in runs.iter() {
                memory.mark_read(r.start, r.end - r.start);
                memory.mark_written(r.start, r.end - r.start);
            }
        }
    }
}

/// Sectors that are not in the CTA's direct-mapped L1, which has them afterwards.
fn missed(l1: &mut Vec<u64>, runs: &Runs) -> u64 {
    if l1.is_empty() {
        l1.resize(L1_SECTORS, 0);
    }
    let mut n = 0;
    for r in runs.iter() {
        for sector in r.start / 32..=(r.end - 1) / 32 {
            let slot = &mut l1[sector as usize % L1_SECTORS];
            n += u64::from(*slot != sector);
            *slot = sector;
        }
    }
    n
}

/// Counts an access to local memory: it is laid out so that the same word of all threads is contiguous.
pub(super) fn local(cx: &mut Cx, mask: u32, addr: &[u64; 32], bytes: u32, _access: Access) {
    let m = &mut cx.stats.insts[cx.pc as usize].memory;
    m.requests += 1;
    let lanes = u64::from(mask.count_ones());
    m.bytes_asked += lanes * u64::from(bytes);
    let mut sectors = 0;
    for word in 0..u64::from(bytes.div_ceil(4)) {
        let mut physical = [0u64; 32];
        for l in 0..32 {
            physical[l] = ((addr[l] / 4 + word) * 32 + l as u64) * 4;
        }
        sectors += Runs::of(mask, &physical, 4).sectors();
    }
    m.sectors += sectors;
    m.ideal_sectors += (lanes * u64::from(bytes)).div_ceil(32);
}

/// Counts an access to shared memory: wavefronts with and without bank conflicts.
#[inline(always)]
pub(super) fn shared(cx: &mut Cx, mask: u32, addr: &[u64; 32], bytes: u32, access: Access) {
    if access == Access::Load {
        cx.cta.warps[cx.warp].shared_pending = true;
    }
    let (wavefronts, ideal) = wavefronts(mask, addr, bytes);
    let m = &mut cx.stats.insts[cx.pc as usize].memory;
    m.requests += 1;
    m.bytes_asked += u64::from(mask.count_ones()) * u64::from(bytes);
    m.wavefronts += wavefronts;
    m.ideal_wavefronts += ideal;
}

/// Wavefronts of an access, and what they were without conflicts. Accesses of 8 bytes go by half warps, of 16 by
/// quarters.
#[inline(always)]
pub(crate) fn wavefronts(mask: u32, addr: &[u64; 32], bytes: u32) -> (u64, u64) {
    let lanes = match bytes {
        0..=4 => 32,
        8 => 16,
        _ => 8,
    };
    // Lane l at word l: no bank twice.
    let base = addr[0];
    let mut off = 0;
    for l in 0..32 {
        off |= addr[l].wrapping_sub(base.wrapping_add(l as u64 * u64::from(bytes)));
    }
    if mask == u32::MAX && off == 0 {
        let phases = 32 / lanes as u64;
        return (phases, phases);
    }
    let (mut total, mut ideal) = (0, 0);
    for first in (0..32).step_by(lanes) {
        let part = if lanes == 32 { mask } else { mask >> first & ((1 << lanes) - 1) };
        if part != 0 {
            total += phase(part, &addr[first..], bytes);
            ideal += 1;
        }
    }
    (total, ideal)
}

/// The most distinct words that one bank has to deliver.
#[inline(always)]
fn phase(lanes: u32, addr: &[u64], bytes: u32) -> u64 {
    // Aligned accesses of 4, 8 or 16 bytes cover whole groups of banks: 32, 16 or 8 of them.
    let shift = bytes.max(4).trailing_zeros();
    let groups = (128u64 >> shift) - 1;
    let mut used = 0u32;
    let mut rest = lanes;
    while rest != 0 {
        let l = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        used |= 1 << (addr[l] >> shift & groups);
    }
    if used.count_ones() == lanes.count_ones() { 1 } else { conflicts(lanes, addr, shift, groups) }
}

/// The same when some lanes share a group of banks.
#[inline(never)]
fn conflicts(mut lanes: u32, addr: &[u64], shift: u32, groups: u64) -> u64 {
    let mut first = [u64::MAX; 32];
    let mut count = [0u8; 32];
    // Further words of a group.
    let mut more: [(u8, u64); 32] = [(0, 0); 32];
    let mut n_more = 0;
    while lanes != 0 {
        let l = lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        let word = addr[l] >> shift;
        let group = (word & groups) as usize;
        if first[group] == word {
            continue;
        }
        if count[group] == 0 {
            first[group] = word;
            count[group] = 1;
        } else if !more[..n_more].contains(&(group as u8, word)) {
            more[n_more] = (group as u8, word);
            n_more += 1;
            count[group] += 1;
        }
    }
    count.iter().copied().max().map_or(1, |c| u64::from(c.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(f: impl Fn(u64) -> u64) -> [u64; 32] {
        std::array::from_fn(|l| f(l as u64))
    }

    #[test]
    fn bank_conflicts_of_known_patterns() {
        let all = u32::MAX;
        assert_eq!(wavefronts(all, &at(|l| 4 * l), 4), (1, 1));
        assert_eq!(wavefronts(all, &at(|l| 8 * l), 4), (2, 1));
        assert_eq!(wavefronts(all, &at(|l| 128 * l), 4), (32, 1));
        assert_eq!(wavefronts(all, &at(|l| 132 * l), 4), (1, 1));
        assert_eq!(wavefronts(all, &at(|_| 64), 4), (1, 1));
        assert_eq!(wavefronts(all, &at(|l| 2 * l), 2), (1, 1));
        assert_eq!(wavefronts(all, &at(|l| 8 * l), 8), (2, 2));
        assert_eq!(wavefronts(all, &at(|l| 16 * l), 16), (4, 4));
        assert_eq!(wavefronts(all, &at(|l| 128 * l), 16), (32, 4));
        assert_eq!(wavefronts(0xff, &at(|l| 16 * l), 16), (1, 1));
    }
}
