//! Extended-precision integer arithmetic with a carry bit per lane.

use super::cx::Cx;
use super::elem::Raw;
use super::inst::{ExecFn, Inst};
use super::lanes::{conjure, vectored};

/// Bits of `aux[0]`.
pub(crate) mod carry_flag {
    /// The carry is added or the borrow subtracted.
    pub(crate) const IN: u8 = 1;
    /// The carry or borrow is kept.
    pub(crate) const OUT: u8 = 2;
}

/// A function of three values and a carry that gives a value and a carry.
pub(crate) trait CarryFn<R>: Fn(R, R, R, bool) -> (R, bool) + Copy + 'static {}
impl<R, F: Fn(R, R, R, bool) -> (R, bool) + Copy + 'static> CarryFn<R> for F {}

/// `ops`: destination, a, b, c and the carry, a predicate.
#[inline(always)]
unsafe fn carry_body<R: Raw, F: CarryFn<R>>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed rows of these classes; c may be the same row as b.
    unsafe {
        let f = conjure::<F>();
        let (a, b, c) = (cx.row::<R>(i.ops[1]), cx.row::<R>(i.ops[2]), cx.row::<R>(i.ops[3]));
        let carry = if i.aux[0] & carry_flag::IN != 0 { cx.pred(i.ops[4]) } else { 0 };
        let mut out = [R::default(); 32];
        let mut carries = 0;
        for l in 0..32 {
            let (v, k) = f(a[l], b[l], c[l], carry >> l & 1 != 0);
            out[l] = v;
            carries |= u32::from(k) << l;
        }
        cx.put(i.ops[0], &out, mask);
        if i.aux[0] & carry_flag::OUT != 0 {
            cx.put_pred(i.ops[4], carries, mask);
        }
    }
}

vectored!(fn carry_of<R: Raw, F: CarryFn<R>> = carry_body);

/// The instruction that a closure describes.
pub(crate) fn carry<R: Raw, F: CarryFn<R>>(_: F) -> ExecFn {
    carry_of::<R, F>()
}
