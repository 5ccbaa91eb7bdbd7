//! `mma.sync` and `wmma`.
//!
//! Products of f16, bf16 and tf32 values are exact; they are added to the accumulator one after another in ascending
//! k, each addition rounded to nearest in single precision. Hardware adds several products at once with less
//! rounding in between, so results agree only within a tolerance.

pub(crate) mod double;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod wmma;

use super::cx::Cx;
use super::inst::Inst;

/// Notes an `mma` for the longest chain through one accumulator.
pub(crate) fn note_chain(cx: &mut Cx, d: u32, c: u32) {
    let warp = &mut cx.cta.warps[cx.warp];
    let depth = warp.mma_depth.iter().find(|e| e.0 == c).map_or(0, |e| e.1) + 1;
    match warp.mma_depth.iter_mut().find(|e| e.0 == d) {
        Some(e) => e.1 = depth,
        None => warp.mma_depth.push((d, depth)),
    }
    warp.chain.mma_chain = warp.chain.mma_chain.max(u64::from(depth));
}

/// A further operand as a 32-bit row.
///
/// # Safety
///
/// Further operand `k` is a 32-bit row.
#[inline(always)]
pub(crate) unsafe fn row32<'r>(cx: &Cx, i: &Inst, k: usize) -> &'r [u32; 32] {
    // SAFETY: passed on to the caller.
    unsafe { cx.row::<u32>(cx.more(i, k)) }
}
