//! Instructions in which lanes of a warp exchange values.

use super::cx::Cx;
use super::elem::Raw;
use super::inst::{ExecFn, Inst};
use crate::check::FaultKind;

/// Marks `bar.warp.sync` in `aux[2]`.
pub(crate) const WARP_SYNC: u8 = 0x77;

/// Modes of `shfl`, `aux[0]`.
pub(crate) mod shuffle {
    pub(crate) const UP: u8 = 0;
    pub(crate) const DOWN: u8 = 1;
    pub(crate) const BFLY: u8 = 2;
    pub(crate) const IDX: u8 = 3;
}

/// Modes of `vote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// Functions of this file by name, for the decoder.
pub(crate) mod warp_ops {
    pub(crate) use super::{
        WARP_SYNC, activemask, bar_warp_sync, elect, match_all, match_any, redux, shfl, shuffle, vote,
    };
}

/// `shfl.sync`: `ops` are destination, value, lane operand, clamp and mask, member mask; a predicate destination is
/// the further operand.
pub(crate) unsafe fn shfl(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed 32-bit rows.
    let (a, b, c) = unsafe { (cx.row::<u32>(i.ops[1]), cx.row::<u32>(i.ops[2]), cx.row::<u32>(i.ops[3])) };
    let mut out = [0u32; 32];
    let mut valid = 0u32;
    let mut inactive = None;
    for lane in 0..32u32 {
        let l = lane as usize;
        let (bval, cval, seg) = (b[l] & 31, c[l] & 31, c[l] >> 8 & 31);
        let max = (lane & seg) | (cval & !seg);
        let min = lane & seg;
        let (j, ok) = match i.aux[0] {
            shuffle::UP => {
                let j = lane as i32 - bval as i32;
                (j, j >= max as i32)
            }
            shuffle::DOWN => ((lane + bval) as i32, lane + bval <= max),
            shuffle::BFLY => ((lane ^ bval) as i32, lane ^ bval <= max),
            _ => {
                let j = min | (bval & !seg);
                (j as i32, j <= max)
            }
        };
        let j = if ok { j as usize & 31 } else { l };
        valid |= u32::from(ok) << lane;
        out[l] = a[j];
        if mask >> lane & 1 != 0 && mask >> j & 1 == 0 && inactive.is_none() {
            inactive = Some((lane, j));
        }
    }
    if let (Some((lane, j)), true) = (inactive, cx.launch.options.checks.divergence) {
        cx.warn(FaultKind::InactiveLane, lane, None, || format!("reads lane {j}, which does not take part"));
    }
    // SAFETY: as above; the predicate is there when `aux[1]` says so.
    unsafe {
        cx.put(i.ops[0], &out, mask);
        if i.aux[1] != 0 {
            cx.put_pred(cx.more(i, 0), valid, mask);
        }
    }
}

/// `vote.sync`: `aux[0]` is the [`Vote`].
pub(crate) unsafe fn vote(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed a predicate, and a destination of the mode's class.
    unsafe {
        let p = cx.pred(i.ops[1]) & mask;
        let value = match i.aux[0] {
            x if x == Vote::All as u8 => p == mask,
            x if x == Vote::Any as u8 => p != 0,
            x if x == Vote::Uni as u8 => p == 0 || p == mask,
            _ => {
                cx.put(i.ops[0], &[p; 32], mask);
                return;
            }
        };
        cx.put_pred(i.ops[0], if value { u32::MAX } else { 0 }, mask);
    }
}

unsafe fn match_any_of<R: Raw>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed rows of these classes.
    unsafe {
        let a = cx.row::<R>(i.ops[1]);
        let mut out = [0u32; 32];
        for l in 0..32 {
            for k in 0..32 {
                out[l] |= u32::from(a[k] == a[l]) << k;
            }
            out[l] &= mask;
        }
        cx.put(i.ops[0], &out, mask);
    }
}

/// `match.any.sync`
pub(crate) fn match_any(bits: u32) -> ExecFn {
    if bits == 64 { match_any_of::<u64> } else { match_any_of::<u32> }
}

unsafe fn match_all_of<R: Raw>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed rows of these classes; the predicate is there when `aux[1]` says so.
    unsafe {
        let a = cx.row::<R>(i.ops[1]);
        let first = a[mask.trailing_zeros() as usize & 31];
        let same = (0..32).all(|l| mask >> l & 1 == 0 || a[l] == first);
        cx.put(i.ops[0], &[if same { mask } else { 0 }; 32], mask);
        if i.aux[1] != 0 {
            cx.put_pred(cx.more(i, 0), if same { u32::MAX } else { 0 }, mask);
        }
    }
}

/// `match.all.sync`
pub(crate) fn match_all(bits: u32) -> ExecFn {
    if bits == 64 { match_all_of::<u64> } else { match_all_of::<u32> }
}

/// `redux.sync`: the reduction of a type.
pub(crate) fn redux(op: &str, signed: bool) -> Option<ExecFn> {
    unsafe fn fold(cx: &mut Cx, i: &Inst, mask: u32, f: impl Fn(u32, u32) -> u32) {
        // SAFETY: the decoder placed 32-bit rows.
        unsafe {
            let a = cx.row::<u32>(i.ops[1]);
            let lanes = (0..32).filter(|&l| mask >> l & 1 != 0).map(|l| a[l]);
            let value = lanes.reduce(f).unwrap_or(0);
            cx.put(i.ops[0], &[value; 32], mask);
        }
    }
    macro_rules! of {
        ($f:expr) => {{
            unsafe fn run(cx: &mut Cx, i: &Inst, mask: u32) {
                // SAFETY: passed on to the caller.
                unsafe { fold(cx, i, mask, $f) }
            }
            run
        }};
    }
    Some(match (op, signed) {
        ("add", _) => of!(|a, b| a.wrapping_add(b)),
        ("and", _) => of!(|a, b| a & b),
        ("or", _) => of!(|a, b| a | b),
        ("xor", _) => of!(|a, b| a ^ b),
        ("min", false) => of!(|a, b| a.min(b)),
        ("max", false) => of!(|a, b| a.max(b)),
        ("min", true) => of!(|a, b| (a as i32).min(b as i32) as u32),
        ("max", true) => of!(|a, b| (a as i32).max(b as i32) as u32),
        _ => return None,
    })
}

/// `elect.sync`: the lowest lane is the leader.
pub(crate) unsafe fn elect(cx: &mut Cx, i: &Inst, mask: u32) {
    let leader = mask.trailing_zeros();
    // SAFETY: the decoder placed a 32-bit row and a predicate.
    unsafe {
        cx.put(i.ops[0], &[leader; 32], mask);
        cx.put_pred(i.ops[1], 1 << leader, mask);
    }
}

/// `bar.warp.sync`
pub(crate) unsafe fn bar_warp_sync(cx: &mut Cx, _: &Inst, _: u32) {
    cx.cta.warps[cx.warp].syncs += 1;
}

/// `activemask`
pub(crate) unsafe fn activemask(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed a 32-bit row.
    unsafe { cx.put(i.ops[0], &[mask; 32], mask) };
}
