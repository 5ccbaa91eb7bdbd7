//! The vectors in plain Rust.

use super::{Simd, Weights4};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map2<T: Copy, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> T) -> [T; N] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn halves(v: i32) -> (i32, i32) {
    (i32::from(v as i16), v >> 16)
}

/// A byte of a number with 22 fractional bits.
#[inline(always)]
fn rounded_down(v: i32) -> u8 {
    (v >> 22).clamp(0, 255) as u8
}

// SAFETY (all functions): pointers are valid by the contract of `Simd`, and unaligned reads and
// writes are used throughout.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Portable {
    type F = [f32; 8];
    type I = [i32; 8];
    type Wide = [f32; 16];
    type WideI = [i32; 16];
    type Dots = [i32; 16];

    const TALL: bool = false;

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> [f32; 8] {
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(u16::from_le(b)) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> [f32; 8] {
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        bits.map(|b| half::f16::from_bits(u16::from_le(b)).to_f32())
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(v: [f32; 8]) -> [i32; 8] {
        v.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    unsafe fn to_f32(v: [i32; 8]) -> [f32; 8] {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn exp2i(n: [i32; 8]) -> [f32; 8] {
        n.map(|n| f32::from_bits(((n + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(v: [f32; 8]) -> f32 {
        ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))
    }
    #[inline(always)]
    unsafe fn sum4(v: [[f32; 8]; 4]) -> [f32; 4] {
        v.map(|v| unsafe { Self::sum(v) })
    }
    #[inline(always)]
    unsafe fn max_lane(v: [f32; 8]) -> f32 {
        v.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }
    #[inline(always)]
    unsafe fn zero_i() -> [i32; 8] {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn load_i(p: *const u8) -> [i32; 8] {
        unsafe { p.cast::<[i32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut u8, v: [i32; 8]) {
        unsafe { p.cast::<[i32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add_i(a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        map2(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    unsafe fn transpose(v: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
        std::array::from_fn(|i| std::array::from_fn(|j| v[j][i]))
    }

    #[inline(always)]
    unsafe fn wide_splat(x: f32) -> [f32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn wide_load(p: *const f32) -> [f32; 16] {
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn wide_twice(p: *const f32) -> [f32; 16] {
        let eight = unsafe { Self::load(p) };
        std::array::from_fn(|i| eight[i % 8])
    }
    #[inline(always)]
    unsafe fn wide_load_f16(p: *const u8) -> [f32; 16] {
        let bits = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        bits.map(|b| half::f16::from_bits(u16::from_le(b)).to_f32())
    }
    #[inline(always)]
    unsafe fn wide_store(p: *mut f32, v: [f32; 16]) {
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn wide_mul(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn wide_fma(a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn wide_sums(v: [[f32; 16]; 8]) -> [[f32; 8]; 2] {
        std::array::from_fn(|four| {
            std::array::from_fn(|i| {
                let half = |lane| v[4 * four + i % 4][i / 4 * 8 + lane];
                unsafe { Self::sum(std::array::from_fn(half)) }
            })
        })
    }
    #[inline(always)]
    unsafe fn wide_to_f32(v: [i32; 16]) -> [f32; 16] {
        v.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn wide_zero_i() -> [i32; 16] {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn wide_splat_i(x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn wide_load_i(p: *const u8) -> [i32; 16] {
        unsafe { p.cast::<[i32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn wide_store_i(p: *mut u8, v: [i32; 16]) {
        unsafe { p.cast::<[i32; 16]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn wide_splat_pair(p: *const i16) -> [i32; 16] {
        let [lo, hi] = unsafe { p.cast::<[i16; 2]>().read_unaligned() };
        [i32::from(lo) & 0xffff | i32::from(hi) << 16; 16]
    }
    #[inline(always)]
    unsafe fn wide_add_i(a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn wide_sub_i(a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        map2(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn wide_mul_i(a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        map2(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn wide_madd16(acc: [i32; 16], a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        let products = map2(a, b, |a, b| {
            let ((al, ah), (bl, bh)) = (halves(a), halves(b));
            (al * bl).wrapping_add(ah * bh)
        });
        map2(acc, products, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn wide_nibbles<const I: i32>(v: [i32; 16]) -> [i32; 16] {
        v.map(|w| ((w as u32 >> (4 * I)) & 0x000f_000f) as i32)
    }
    #[inline(always)]
    unsafe fn wide_spread(word: u64) -> [i32; 16] {
        std::array::from_fn(|j| (word >> (4 * j) & 15) as i32)
    }
    #[inline(always)]
    unsafe fn wide_low_bytes(v: [i32; 16]) -> [i32; 16] {
        v.map(|w| (i32::from(w as i8) & 0xffff) | (i32::from((w >> 16) as i8) << 16))
    }
    #[inline(always)]
    unsafe fn wide_high_bytes(v: [i32; 16]) -> [i32; 16] {
        v.map(|w| (i32::from((w >> 8) as i8) & 0xffff) | (w >> 24) << 16)
    }
    #[inline(always)]
    unsafe fn wide_load_i8(p: *const u8) -> [i32; 16] {
        unsafe { p.cast::<[i8; 16]>().read_unaligned() }.map(i32::from)
    }
    #[inline(always)]
    unsafe fn wide_quads(rows: [*const u8; 4]) -> [[i32; 16]; 4] {
        unsafe {
            let rows = rows.map(|p| p.cast::<[u8; 64]>().read_unaligned());
            std::array::from_fn(|i| {
                std::array::from_fn(|j| i32::from_le_bytes(rows.map(|row| row[16 * i + j])))
            })
        }
    }
    #[inline(always)]
    unsafe fn wide_store_quads(p: *mut u8, v: [[i32; 16]; 4]) {
        unsafe { p.cast::<[[u8; 16]; 4]>().write_unaligned(v.map(|v| v.map(rounded_down))) }
    }
    #[inline(always)]
    unsafe fn wide_pixels(rows: [*const u8; 4]) -> [i32; 16] {
        unsafe {
            let rows = rows.map(|p| p.cast::<[u8; 16]>().read_unaligned());
            std::array::from_fn(|j| {
                let (row, c) = (rows[j / 4], j % 4);
                i32::from_le_bytes(std::array::from_fn(|k| row[3 * k + c]))
            })
        }
    }
    #[inline(always)]
    unsafe fn wide_store_pixels(rows: [*mut u8; 4], v: [[i32; 16]; 4]) {
        for (r, p) in rows.into_iter().enumerate() {
            let bytes: [u8; 12] = std::array::from_fn(|i| rounded_down(v[i / 3][4 * r + i % 3]));
            unsafe { p.cast::<[u8; 12]>().write_unaligned(bytes) };
        }
    }
    #[inline(always)]
    unsafe fn wide_dots(x: i32) -> [i32; 16] {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn wide_dots_sum(acc: [i32; 16]) -> [i32; 16] {
        acc
    }
    #[inline(always)]
    unsafe fn wide_dot4(acc: [i32; 16], bytes: [i32; 16], weights: &Weights4) -> [i32; 16] {
        let weights = weights.plain();
        map2(acc, bytes, |acc, bytes| {
            bytes
                .to_le_bytes()
                .iter()
                .zip(weights)
                .fold(acc, |acc, (v, w)| acc.wrapping_add(w * i32::from(*v)))
        })
    }
}
