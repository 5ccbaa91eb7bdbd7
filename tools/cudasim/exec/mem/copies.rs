//! `cp.async`: copies from global to shared memory that land when they are waited for.
//!
//! The source is read when the copy is issued, which is when it may be read at the earliest; the destination is
//! written when its group is waited for, which is when the program may see it at the latest.

use std::collections::VecDeque;

use super::super::cx::Cx;
use super::super::inst::Inst;
use super::{Access, accessor, in_shared, mem_flag, poison, race, resolve_source, traffic};
use crate::check::FaultKind;

/// One `cp.async` of a warp.
#[derive(Debug)]
struct Copy {
    mask: u32,
    /// Group of each lane: how many it had committed before.
    group: [u32; 32],
    to: [u32; 32],
    bytes: u32,
    data: [[u8; 16]; 32],
}

/// Copies of a warp that have not landed.
#[allow(clippy::vec_box, reason = "they move between the lists, and are large")]
#[derive(Debug, Default)]
pub(crate) struct AsyncCopies {
    pending: VecDeque<Box<Copy>>,
    free: Vec<Box<Copy>>,
    committed: [u32; 32],
}

impl AsyncCopies {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.free.extend(self.pending.drain(..));
        self.committed = [0; 32];
    }
}

/// Bits of `aux[3]`.
pub(crate) mod copy_flag {
    /// The destination address is a 64-bit row.
    pub(crate) const TO_WIDE: u8 = 1;
    /// `ops[2]` holds the number of bytes to read.
    pub(crate) const SIZED: u8 = 2;
    /// `ops[2]` is a predicate: read nothing.
    pub(crate) const IGNORE: u8 = 4;
}

/// `ops`: destination, source, size or predicate; `imm` is the offset of the destination, `target` that of the
/// source; `aux[2]` is the number of bytes.
pub(crate) unsafe fn cp_async(cx: &mut Cx, i: &Inst, mask: u32) {
    let bytes = u32::from(i.aux[2]);
    // SAFETY: the decoder placed rows of these classes.
    let (to, from, size) = unsafe {
        let mut to = cx.row_as_u64(i.ops[0], i.aux[3] & copy_flag::TO_WIDE != 0);
        for t in &mut to {
            *t = if i.aux[3] & copy_flag::TO_WIDE != 0 {
                t.wrapping_add(i.imm as u64)
            } else {
                u64::from((*t as u32).wrapping_add(i.imm as u32))
            };
        }
        let from = cx
            .row_as_u64(i.ops[1], i.aux[0] & mem_flag::WIDE != 0)
            .map(|f| f.wrapping_add(i.target as i32 as i64 as u64));
        let mut size = [bytes; 32];
        if i.aux[3] & copy_flag::SIZED != 0 {
            size = *cx.row::<u32>(i.ops[2]);
        } else if i.aux[3] & copy_flag::IGNORE != 0 {
            let p = cx.pred(i.ops[2]);
            size = std::array::from_fn(|l| if p >> l & 1 != 0 { 0 } else { bytes });
        }
        (to, from, size)
    };
    if !in_shared(cx, mask, &to, bytes, Access::Store) {
        return;
    }
    let mut copy = cx.cta.warps[cx.warp].copies.free.pop().unwrap_or_else(|| {
        Box::new(Copy { mask: 0, group: [0; 32], to: [0; 32], bytes: 0, data: [[0; 16]; 32] })
    });
    copy.mask = mask;
    copy.bytes = bytes;
    copy.group = cx.cta.warps[cx.warp].copies.committed;
    for l in 0..32 {
        copy.to[l] = to[l] as u32;
    }
    let mut rest = mask;
    while rest != 0 {
        let n = size[rest.trailing_zeros() as usize];
        let mut lanes = 0u32;
        for l in 0..32 {
            lanes |= u32::from(size[l] == n) << l;
        }
        lanes &= rest;
        rest &= !lanes;
        if n > bytes {
            cx.fail(
                FaultKind::IllegalInstruction,
                lanes.trailing_zeros(),
                None,
                format!("a cp.async of {bytes} bytes that reads {n}"),
            );
            return;
        }
        if n > 0 {
            if !resolve_source(cx, i, lanes, &from, n, bytes) {
                return;
            }
            if cx.unwritten {
                poison(cx, lanes, n);
            }
        }
        for l in (0..32).filter(|&l| lanes >> l & 1 != 0) {
            let data = &mut copy.data[l];
            if n == 16 {
                // SAFETY: the source was resolved for 16 bytes.
                *data = unsafe { (cx.ptrs[l] as *const [u8; 16]).read() };
            } else {
                *data = [0; 16];
                // SAFETY: the source was resolved for `n` bytes, at most 16.
                unsafe {
                    std::ptr::copy_nonoverlapping(cx.ptrs[l] as *const u8, data.as_mut_ptr(), n as usize)
                };
            }
        }
    }
    if cx.stats.on {
        let (wavefronts, ideal) = traffic::wavefronts(mask, &to, bytes);
        let m = &mut cx.stats.insts[cx.pc as usize].memory;
        m.wavefronts += wavefronts;
        m.ideal_wavefronts += ideal;
    }
    if cx.cta.shared.checks_races() {
        let mut by = accessor(cx, 0);
        let mut found = None;
        for l in (0..32u32).filter(|&l| mask >> l & 1 != 0) {
            by.lane = l as u8;
            let conflict = cx.cta.shared.issue_copy(copy.to[l as usize], bytes, &by);
            if found.is_none() {
                found = conflict.map(|c| (c, l));
            }
        }
        if let Some((conflict, lane)) = found {
            race(cx, conflict, lane, to[lane as usize]);
        }
    }
    cx.cta.warps[cx.warp].copies.pending.push_back(copy);
}

/// `cp.async.commit_group`
pub(crate) unsafe fn commit(cx: &mut Cx, _: &Inst, mask: u32) {
    let committed = &mut cx.cta.warps[cx.warp].copies.committed;
    for (l, c) in committed.iter_mut().enumerate() {
        *c += mask >> l & 1;
    }
}

/// `cp.async.wait_group n`: `imm` groups may stay in flight.
pub(crate) unsafe fn wait_group(cx: &mut Cx, i: &Inst, mask: u32) {
    land(cx, mask, Some(i.imm as u32));
}

/// `cp.async.wait_all`
pub(crate) unsafe fn wait_all(cx: &mut Cx, _: &Inst, mask: u32) {
    land(cx, mask, None);
}

/// Writes the copies of lanes of `mask` to shared memory, but for those of the `keep` groups committed last.
pub(crate) fn land(cx: &mut Cx, mask: u32, keep: Option<u32>) {
    let w = cx.warp;
    let by = accessor(cx, 0);
    let cta = &mut *cx.cta;
    let warp = &mut cta.warps[w];
    let committed = warp.copies.committed;
    if !warp.copies.pending.is_empty() {
        let lane = mask.trailing_zeros() as usize;
        let mut in_flight = 0;
        let mut last = u32::MAX;
        for copy in &warp.copies.pending {
            let g = copy.group[lane];
            if copy.mask >> lane & 1 != 0 && g < committed[lane] && g != last {
                in_flight += 1;
                last = g;
            }
        }
        if in_flight > keep.unwrap_or(0) {
            cx.stats.async_waits += 1;
            cx.stats.async_groups += u64::from(in_flight);
            warp.chain.global_rounds += 1;
        }
    }
    let base = cta.shared.as_mut_ptr();
    let races = cta.shared.checks_races();
    let uninitialised = cx.launch.options.checks.uninitialised;
    for copy in &mut warp.copies.pending {
        let mut lanes = copy.mask & mask;
        if let Some(keep) = keep {
            for l in 0..32 {
                // Groups 0..committed are complete; the last `keep` of them may be in flight.
                lanes &= !(u32::from(copy.group[l].saturating_add(keep) >= committed[l]) << l);
            }
        }
        copy.mask &= !lanes;
        while lanes != 0 {
            let l = lanes.trailing_zeros() as usize;
            lanes &= lanes - 1;
            let to = copy.to[l];
            // SAFETY: `in_shared` proved the destination when the copy was issued; the size of shared memory does not
            // change while a CTA runs.
            unsafe {
                let to = base.add(to as usize);
                if copy.bytes == 16 {
                    to.cast::<[u8; 16]>().write(copy.data[l]);
                } else {
                    std::ptr::copy_nonoverlapping(copy.data[l].as_ptr(), to, copy.bytes as usize);
                }
            }
            if uninitialised {
                cta.shared.mark(to, copy.bytes);
            }
            if races {
                cta.shared.land_copy(to, copy.bytes, &super::shared::Accessor { lane: l as u8, ..by });
            }
        }
    }
    while warp.copies.pending.front().is_some_and(|c| c.mask == 0) {
        if let Some(done) = warp.copies.pending.pop_front() {
            warp.copies.free.push(done);
        }
    }
}
