//! f16 and bf16: conversions of whole rows, and arithmetic with one rounding.
//!
//! Sums and products of two halves are exact or correctly rounded in single precision before the one rounding that
//! counts, since 24 bits are at least twice 11 plus 2. A fused multiply-add is not; it is rounded to odd first.

use super::super::cx::Cx;
use super::super::inst::{ExecFn, Inst};
use super::super::lanes::{conjure, vectored};
use super::f32s::NAN;

/// A 16-bit format.
pub(crate) trait Half16: Copy + 'static {
    /// Eight values widened, exactly.
    ///
    /// # Safety
    ///
    /// The machine is [supported](super::super::lanes::supported).
    unsafe fn widen(h: &[u16; 8]) -> [f32; 8];
    /// Eight values rounded to nearest even; NaNs become 0x7fff.
    ///
    /// # Safety
    ///
    /// As above.
    unsafe fn narrow(f: &[f32; 8]) -> [u16; 8];
    /// `a b + c` in a form that `narrow` rounds correctly.
    fn fused(a: f32, b: f32, c: f32) -> f32;
    /// The least normal value.
    const LEAST: u16;
}

/// f16.
#[derive(Clone, Copy)]
pub(crate) struct F16;
/// bf16.
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

/// f16 → f32, exactly.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let magnitude = u32::from(h & 0x7fff);
    // Exponents are re-biased by a multiplication, which also normalises subnormals.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let bits = if magnitude >= 0x7c00 { 0x7f80_0000 | (magnitude & 0x3ff) << 13 } else { scaled.to_bits() };
    f32::from_bits(bits | sign)
}

/// f32 → f16 to nearest even.
#[inline(always)]
pub(crate) fn f32_to_f16(f: f32) -> u16 {
    let bits = f.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let out = if magnitude > 0x7f80_0000 {
        return 0x7fff;
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Subnormal: adding 0.5 puts the rounding where the last bit of the result is.
        (f32::from_bits(magnitude) + 0.5).to_bits() as u16
    } else {
        let odd = magnitude >> 13 & 1;
        ((magnitude - 0x3800_0000 + 0xfff + odd) >> 13) as u16
    };
    out | sign
}

/// bf16 → f32, exactly.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits(u32::from(h) << 16)
}

/// f32 → bf16 to nearest even.
#[inline(always)]
pub(crate) fn f32_to_bf16(f: f32) -> u16 {
    let bits = f.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if f.is_nan() { 0x7fff } else { rounded }
}

/// `a b + c` rounded to odd in single precision; exact products are required.
#[inline(always)]
fn fused_odd(a: f32, b: f32, c: f32) -> f32 {
    let p = a * b;
    let s = p + c;
    let t = s - p;
    let e = (p - (s - t)) + (c - t);
    let bits = s.to_bits();
    // The neighbour on the side of the error, when it is the odd one.
    let towards = if (e > 0.0) == (s > 0.0) { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    if e != 0.0 && bits & 1 == 0 && s.is_finite() && e.is_finite() { f32::from_bits(towards) } else { s }
}

#[cfg(target_arch = "x86_64")]
impl Half16 for F16 {
    #[inline(always)]
    unsafe fn widen(h: &[u16; 8]) -> [f32; 8] {
        use std::arch::x86_64::*;
        // SAFETY: the caller runs on a machine with F16C and AVX; loads and stores are of whole arrays.
        unsafe {
            let mut out = [0.0; 8];
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(h.as_ptr().cast())));
            out
        }
    }
    #[inline(always)]
    unsafe fn narrow(f: &[f32; 8]) -> [u16; 8] {
        use std::arch::x86_64::*;
        // SAFETY: as above.
        unsafe {
            let v = _mm256_loadu_ps(f.as_ptr());
            let h = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
            let mut out = [0u16; 8];
            _mm_storeu_si128(out.as_mut_ptr().cast(), h);
            for o in &mut out {
                *o = if *o & 0x7fff > 0x7c00 { 0x7fff } else { *o };
            }
            out
        }
    }
    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        fused_odd(a, b, c)
    }
    const LEAST: u16 = 0x0400;
}

#[cfg(not(target_arch = "x86_64"))]
impl Half16 for F16 {
    #[inline(always)]
    unsafe fn widen(h: &[u16; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        for k in 0..8 {
            out[k] = f16_to_f32(h[k]);
        }
        out
    }
    #[inline(always)]
    unsafe fn narrow(f: &[f32; 8]) -> [u16; 8] {
        let mut out = [0; 8];
        for k in 0..8 {
            out[k] = f32_to_f16(f[k]);
        }
        out
    }
    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        fused_odd(a, b, c)
    }
    const LEAST: u16 = 0x0400;
}

impl Half16 for Bf16 {
    #[inline(always)]
    unsafe fn widen(h: &[u16; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        for k in 0..8 {
            out[k] = bf16_to_f32(h[k]);
        }
        out
    }
    #[inline(always)]
    unsafe fn narrow(f: &[f32; 8]) -> [u16; 8] {
        let mut out = [0; 8];
        for k in 0..8 {
            out[k] = f32_to_bf16(f[k]);
        }
        out
    }
    #[inline(always)]
    fn fused(a: f32, b: f32, c: f32) -> f32 {
        // Products and sums leave the range of single precision, but not that of double.
        let p = f64::from(a) * f64::from(b);
        let (s, e) = super::round::two_sum(p, f64::from(c));
        odd_f32(s, e)
    }
    const LEAST: u16 = 0x0080;
}

/// Rounds `s + e` to odd in single precision.
#[inline(always)]
pub(crate) fn odd_f32(s: f64, e: f64) -> f32 {
    let near = s as f32;
    let back = f64::from(near);
    let d = if s != back { s - back } else { e };
    let bits = near.to_bits();
    if d == 0.0 || bits & 1 == 1 || near.is_nan() {
        return near;
    }
    if near.is_infinite() {
        // Infinite only by rounding: the largest number is odd.
        return if s.is_finite() { f32::MAX.copysign(near) } else { near };
    }
    if near == 0.0 {
        return f32::from_bits(1).copysign(d as f32);
    }
    f32::from_bits(if (d > 0.0) == (near > 0.0) { bits + 1 } else { bits - 1 })
}

/// Bits of `aux[0]` of half instructions.
pub(crate) mod half_flag {
    /// Clamp to [0, 1].
    pub(crate) const SAT: u8 = 1;
    /// Negative results become 0.
    pub(crate) const RELU: u8 = 2;
    /// Subnormals become 0.
    pub(crate) const FTZ: u8 = 4;
    /// One value in a row, not two.
    pub(crate) const SCALAR: u8 = 8;
}

/// Values of a row as two halves for each lane.
#[inline(always)]
unsafe fn halves<'r>(cx: &Cx, op: u32) -> &'r [[u16; 8]; 8] {
    // SAFETY: a 32-bit row is 64 halves; the caller's operand is one.
    unsafe { &*cx.ptr(op).cast() }
}

#[inline(always)]
fn flush<H: Half16>(h: &[u16; 8], on: bool) -> [u16; 8] {
    let mut out = *h;
    if on {
        for x in &mut out {
            *x = if *x & 0x7fff < H::LEAST { *x & 0x8000 } else { *x };
        }
    }
    out
}

/// Clamps eight results as the flags say and rounds them.
#[inline(always)]
unsafe fn finish<H: Half16>(flags: u8, mut r: [f32; 8]) -> [u16; 8] {
    if flags & (half_flag::SAT | half_flag::RELU) != 0 {
        for x in &mut r {
            *x = if flags & half_flag::SAT != 0 {
                super::f32s::sat(*x)
            } else if x.is_nan() {
                NAN
            } else if *x > 0.0 {
                *x
            } else {
                0.0
            };
        }
    }
    // SAFETY: passed on to the caller.
    flush::<H>(&unsafe { H::narrow(&r) }, flags & half_flag::FTZ != 0)
}

/// Stores 64 halves in the destination, the upper ones as zero for scalars.
#[inline(always)]
unsafe fn store(cx: &mut Cx, i: &Inst, mask: u32, out: &[[u16; 8]; 8]) {
    // SAFETY: 64 halves are 32 words of the same bytes on a little-endian machine.
    let mut words: [u32; 32] = unsafe { std::mem::transmute_copy(out) };
    if i.aux[0] & half_flag::SCALAR != 0 {
        for w in &mut words {
            *w &= 0xffff;
        }
    }
    // SAFETY: the destination is a 32-bit row.
    unsafe { cx.put(i.ops[0], &words, mask) };
}

/// A function of three values; operations with fewer ignore the rest.
pub(crate) trait HalfFn: Fn(f32, f32, f32) -> f32 + Copy + 'static {}
impl<F: Fn(f32, f32, f32) -> f32 + Copy + 'static> HalfFn for F {}

#[inline(always)]
unsafe fn half_body<H: Half16, F: HalfFn, const N: usize>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed `N` 32-bit rows after the destination.
    unsafe {
        let f = conjure::<F>();
        let flags = i.aux[0];
        let ftz = flags & half_flag::FTZ != 0;
        let mut out = [[0u16; 8]; 8];
        for k in 0..8 {
            let mut x = [[0.0; 8]; 3];
            for n in 0..N {
                x[n] = H::widen(&flush::<H>(&halves(cx, i.ops[1 + n])[k], ftz));
            }
            let mut r = [0.0; 8];
            for e in 0..8 {
                r[e] = f(x[0][e], x[1][e], x[2][e]);
            }
            out[k] = finish::<H>(flags, r);
        }
        store(cx, i, mask, &out);
    }
}

#[inline(always)]
unsafe fn fused_body<H: Half16>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed three 32-bit rows after the destination.
    unsafe {
        let flags = i.aux[0];
        let ftz = flags & half_flag::FTZ != 0;
        let (p, q, s) = (halves(cx, i.ops[1]), halves(cx, i.ops[2]), halves(cx, i.ops[3]));
        let mut out = [[0u16; 8]; 8];
        for k in 0..8 {
            let (a, b, c) = (
                H::widen(&flush::<H>(&p[k], ftz)),
                H::widen(&flush::<H>(&q[k], ftz)),
                H::widen(&flush::<H>(&s[k], ftz)),
            );
            let mut r = [0.0; 8];
            for e in 0..8 {
                r[e] = H::fused(a[e], b[e], c[e]);
            }
            out[k] = finish::<H>(flags, r);
        }
        store(cx, i, mask, &out);
    }
}

/// Compares two rows; the results of the low halves, then those of the high ones.
#[inline(always)]
unsafe fn compare_body<H: Half16, F: Fn(f32, f32) -> bool + Copy + 'static>(
    cx: &mut Cx,
    i: &Inst,
) -> (u32, u32) {
    // SAFETY: the decoder placed two 32-bit rows.
    unsafe {
        let f = conjure::<F>();
        let ftz = i.aux[2] & half_flag::FTZ != 0;
        let (a, b) = (halves(cx, i.ops[1]), halves(cx, i.ops[2]));
        let (mut low, mut high) = (0u32, 0u32);
        for k in 0..8 {
            let (x, y) = (H::widen(&flush::<H>(&a[k], ftz)), H::widen(&flush::<H>(&b[k], ftz)));
            for e in 0..4 {
                low |= u32::from(f(x[2 * e], y[2 * e])) << (4 * k + e);
                high |= u32::from(f(x[2 * e + 1], y[2 * e + 1])) << (4 * k + e);
            }
        }
        (low, high)
    }
}

/// `setp` on halves: one predicate (with combination), or two for pairs.
#[inline(always)]
unsafe fn setp_body<H: Half16, F: Fn(f32, f32) -> bool + Copy + 'static>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed operands of these classes.
    unsafe {
        let (low, high) = compare_body::<H, F>(cx, i);
        if i.aux[2] & half_flag::SCALAR != 0 {
            super::super::lanes::put_comparison(cx, i, low, mask);
        } else {
            use super::super::lanes::combine;
            let combined = |cx: &Cx, r: u32| match i.aux[0] {
                combine::NONE => r,
                combine::AND => r & cx.pred(i.ops[4]),
                combine::OR => r | cx.pred(i.ops[4]),
                _ => r ^ cx.pred(i.ops[4]),
            };
            let (p, q) = (combined(cx, low), combined(cx, high));
            cx.put_pred(i.ops[0], p, mask);
            if i.aux[1] != 0 {
                cx.put_pred(i.ops[3], q, mask);
            }
        }
    }
}

/// `set` on halves: 1.0 in the format (`aux[3]` = 0), all ones (1), or f32 1.0 (2).
#[inline(always)]
unsafe fn set_body<H: Half16, F: Fn(f32, f32) -> bool + Copy + 'static>(cx: &mut Cx, i: &Inst, mask: u32) {
    // SAFETY: the decoder placed operands of these classes.
    unsafe {
        let (low, high) = compare_body::<H, F>(cx, i);
        let one = u32::from(H::narrow(&[1.0; 8])[0]);
        let scalar = i.aux[2] & half_flag::SCALAR != 0;
        let mut out = [0u32; 32];
        for l in 0..32 {
            let (a, b) = (low >> l & 1, high >> l & 1);
            out[l] = match (i.aux[3], scalar) {
                (0, true) => a * one,
                (0, false) => (a * one) | ((b * one) << 16),
                (1, true) => 0u32.wrapping_sub(a),
                (1, false) => (a * 0xffff) | (b * 0xffff) << 16,
                _ => a * 1.0f32.to_bits(),
            };
        }
        cx.put(i.ops[0], &out, mask);
    }
}

/// Closures that compare two values.
pub(crate) trait CompareFn: Fn(f32, f32) -> bool + Copy + 'static {}
impl<F: Fn(f32, f32) -> bool + Copy + 'static> CompareFn for F {}

vectored!(fn half_of<H: Half16, F: HalfFn>[const N: usize] = half_body);
vectored!(fn fused_of<H: Half16> = fused_body);
vectored!(fn setp_of<H: Half16, F: CompareFn> = setp_body);
vectored!(fn set_of<H: Half16, F: CompareFn> = set_body);

/// Which 16-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    F16,
    Bf16,
}

/// `d = f(a, …)` with `N` sources.
pub(crate) fn apply<const N: usize, F: HalfFn>(format: Format, _: F) -> ExecFn {
    match format {
        Format::Bf16 => half_of::<Bf16, F, N>(),
        Format::F16 => half_of::<F16, F, N>(),
    }
}

/// `d = a b + c` with one rounding.
pub(crate) fn fused(format: Format) -> ExecFn {
    match format {
        Format::Bf16 => fused_of::<Bf16>(),
        Format::F16 => fused_of::<F16>(),
    }
}

/// `setp`
pub(crate) fn setp<F: CompareFn>(format: Format, _: F) -> ExecFn {
    match format {
        Format::Bf16 => setp_of::<Bf16, F>(),
        Format::F16 => setp_of::<F16, F>(),
    }
}

/// `set`
pub(crate) fn set<F: CompareFn>(format: Format, _: F) -> ExecFn {
    match format {
        Format::Bf16 => set_of::<Bf16, F>(),
        Format::F16 => set_of::<F16, F>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_widens_and_narrows() {
        for h in 0..=u16::MAX {
            let f = f16_to_f32(h);
            let reference = half::f16::from_bits(h).to_f32();
            assert!(f.to_bits() == reference.to_bits() || f.is_nan() && reference.is_nan());
            assert_eq!(f32_to_f16(f), if f.is_nan() { 0x7fff } else { h });
            let b = bf16_to_f32(h);
            assert_eq!(f32_to_bf16(b), if b.is_nan() { 0x7fff } else { h });
        }
    }

    #[test]
    fn narrowing_rounds_as_the_half_crate_does() {
        let mut x = 1u32;
        for _ in 0..2_000_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let f = f32::from_bits(x);
            if f.is_nan() {
                continue;
            }
            assert_eq!(f32_to_f16(f), half::f16::from_f32(f).to_bits(), "{f:e}");
            assert_eq!(f32_to_bf16(f), half::bf16::from_f32(f).to_bits(), "{f:e}");
        }
    }

    #[test]
    fn fused_multiply_add_rounds_once() {
        // a b = 1 + 2^-11 + tiny: to single and then to half would round to even.
        let cases = [(0x3c01u16, 0x3c01u16, 0x0001u16), (0x3bff, 0x3c01, 0x8001), (0x0001, 0x0001, 0x3c00)];
        for (a, b, c) in cases {
            let (x, y, z) = (f16_to_f32(a), f16_to_f32(b), f16_to_f32(c));
            let exact = f64::from(x) * f64::from(y) + f64::from(z); // fits 53 bits here
            let odd = odd_f32(exact, 0.0);
            assert_eq!(f32_to_f16(F16::fused(x, y, z)), f32_to_f16(odd));
        }
        let mut s = 7u64;
        for _ in 0..500_000 {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (a, b, c) = ((s >> 16) as u16, (s >> 32) as u16, (s >> 48) as u16);
            let (x, y, z) = (f16_to_f32(a), f16_to_f32(b), f16_to_f32(c));
            let (sum, e) = super::super::round::two_sum(f64::from(x) * f64::from(y), f64::from(z));
            let want = f32_to_f16(odd_f32(sum, e));
            assert_eq!(f32_to_f16(F16::fused(x, y, z)), want, "{a:x} {b:x} {c:x}");
        }
    }
}
