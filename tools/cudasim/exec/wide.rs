//! Packing, unpacking and copying of 128-bit registers and vectors.

use super::cx::Cx;
use super::elem::Raw;
use super::inst::{ExecFn, Inst};
use super::lanes::vectored;

/// `ops[0], ops[2..]` = parts of `ops[1]`, of `BITS` bits each, `aux`-free: `N` parts.
#[inline(always)]
unsafe fn unpack_body<R: Raw, const BITS: u32, const N: usize>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed a row of `R` and `N` 32-bit rows.
    unsafe {
        let a = *cx.row::<R>(i.ops[1]);
        for n in 0..N {
            let mut out = [0u32; 32];
            for l in 0..32 {
                let part = a[l].to_u64() >> (BITS * n as u32);
                out[l] = (part & ((1u64 << BITS) - 1)) as u32;
            }
            cx.put(i.ops[if n == 0 { 0 } else { n + 1 }], &out, mask);
        }
    }
}

/// `ops[0]` = parts in `ops[1..]`.
#[inline(always)]
unsafe fn pack_body<R: Raw, const BITS: u32>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed a row of `R` and four 32-bit rows.
    unsafe {
        let mut out = [R::default(); 32];
        for l in 0..32 {
            let mut v = 0u64;
            for n in 0..4 {
                let part = u64::from(cx.row::<u32>(i.ops[1 + n])[l]) & ((1u64 << BITS) - 1);
                v |= part << (BITS * n as u32);
            }
            out[l] = R::of_u64(v);
        }
        cx.put(i.ops[0], &out, mask);
    }
}

vectored!(fn unpack_of<R: Raw>[const BITS: u32, const N: usize] = unpack_body);
vectored!(fn pack_of<R: Raw>[const BITS: u32] = pack_body);

/// Unpacks `n` parts of `BITS` bits.
pub(crate) fn unpack<R: Raw, const BITS: u32>(n: usize) -> ExecFn {
    if n == 2 { unpack_of::<R, BITS, 2>() } else { unpack_of::<R, BITS, 4>() }
}

/// Packs four parts of `BITS` bits.
pub(crate) fn pack<R: Raw, const BITS: u32>(_: usize) -> ExecFn {
    pack_of::<R, BITS>()
}

/// `{low, high} = x` of 128 bits.
pub(crate) fn unpack_128_64() -> ExecFn {
    unsafe fn run(cx: &mut Cx, i: &Inst, mask: u32) {
        // SAFETY: the decoder placed a 128-bit row and two 64-bit rows.
        unsafe {
            let (low, high) = (*cx.row::<u64>(i.ops[1]), *cx.row::<u64>(i.ops[1] + 64));
            cx.put(i.ops[0], &low, mask);
            cx.put(i.ops[2], &high, mask);
        }
    }
    run
}

/// `x = {low, high}` of 128 bits.
pub(crate) fn pack_128_64() -> ExecFn {
    unsafe fn run(cx: &mut Cx, i: &Inst, mask: u32) {
        // SAFETY: the decoder placed a 128-bit row and two 64-bit rows.
        unsafe {
            let (low, high) = (*cx.row::<u64>(i.ops[1]), *cx.row::<u64>(i.ops[2]));
            cx.put(i.ops[0], &low, mask);
            cx.put(i.ops[0] + 64, &high, mask);
        }
    }
    run
}

/// Copies a 128-bit register.
pub(crate) unsafe fn copy(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed 128-bit rows.
    unsafe {
        let (low, high) = (*cx.row::<u64>(i.ops[1]), *cx.row::<u64>(i.ops[1] + 64));
        cx.put(i.ops[0], &low, mask);
        cx.put(i.ops[0] + 64, &high, mask);
    }
}
