//! Fences, sleeping, clocks, and copies between the frames of a caller and a callee.

use std::sync::atomic::{Ordering, fence};

use super::super::cx::Cx;
use super::super::inst::Inst;
use crate::check::FaultKind;

/// `membar` and `fence`.
pub(crate) unsafe fn membar(cx: &mut Cx, _: &Inst, _: u32) {
    fence(Ordering::SeqCst);
    cx.fence();
}

/// `nanosleep`: others may run.
pub(crate) unsafe fn nanosleep(cx: &mut Cx, _: &Inst, _: u32) {
    let warp = &mut cx.cta.warps[cx.warp];
    if warp.spins > 0 {
        warp.spins = warp.spins.saturating_add(8);
        cx.yield_now = true;
    }
}

/// `%clock64`, `%globaltimer`: instructions of the warp stand for cycles.
pub(crate) unsafe fn clock64(cx: &mut Cx, i: &Inst, mask: u32) {
    let now = tick(cx);
    // SAFETY: the decoder placed a 64-bit row.
    unsafe { cx.put::<u64>(i.ops[0], &[now; 32], mask) };
}

/// `%clock`, `%globaltimer_lo`
pub(crate) unsafe fn clock(cx: &mut Cx, i: &Inst, mask: u32) {
    let now = tick(cx);
    // SAFETY: the decoder placed a 32-bit row.
    unsafe { cx.put::<u32>(i.ops[0], &[now as u32; 32], mask) };
}

/// `%clock_hi`, `%globaltimer_hi`
pub(crate) unsafe fn clock_hi(cx: &mut Cx, i: &Inst, mask: u32) {
    let now = tick(cx);
    // SAFETY: the decoder placed a 32-bit row.
    unsafe { cx.put::<u32>(i.ops[0], &[(now >> 32) as u32; 32], mask) };
}

/// Rises at every read, also within one stretch of instructions.
fn tick(cx: &mut Cx) -> u64 {
    cx.clock += 1 + cx.cta.warps[cx.warp].chain.instructions / 64;
    cx.clock
}

/// Copies `pool` bytes within the local memory of each lane, from `imm` to `target` after the base in `ops[0]`.
pub(crate) unsafe fn copy_local(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the frame's base is a 64-bit row.
    let base = unsafe { *cx.row::<u64>(i.ops[0]) };
    let stride = u64::from(cx.cta.local_bytes);
    let bytes = u64::from(i.pool);
    let memory = cx.cta.local.as_mut_ptr() as u64 + cx.warp as u64 * 32 * stride;
    for l in (0..32).filter(|&l| mask >> l & 1 != 0) {
        let (from, to) = (base[l].wrapping_add(i.imm as u64), base[l].wrapping_add(u64::from(i.target)));
        if from.saturating_add(bytes) > stride || to.saturating_add(bytes) > stride {
            let message = format!("{stride} bytes of local memory per thread are used up");
            cx.fail(FaultKind::StackOverflow, l as u32, None, message);
            return;
        }
        let lane = memory + l as u64 * stride;
        // SAFETY: both ranges lie in the lane's part of the CTA's local memory.
        unsafe { std::ptr::copy((lane + from) as *const u8, (lane + to) as *mut u8, bytes as usize) };
    }
}

/// `trap` and `brkpt`.
pub(crate) unsafe fn trap(cx: &mut Cx, _: &Inst, mask: u32) {
    cx.fail(FaultKind::Trap, mask.trailing_zeros(), None, "");
}
