//! Vectors of eight and of sixteen lanes, once in plain Rust and once per instruction set.
//!
//! Each operation rounds as IEEE 754 says, and `fma` rounds once, so that all implementations give
//! the same bits. Eight lanes are for what is summed across lanes, in one order everywhere; sixteen,
//! a pair of registers or one register of AVX-512, for what has an output in each lane or in each half.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

use super::resample::Weights4;

/// Vectors of `f32`, `i32` and pairs of `i16`.
///
/// # Safety
/// Every function may only be called on a processor with the features of the implementing type.
/// Pointers must be valid for the bytes that the function names; none needs to be aligned.
pub(crate) trait Simd: Copy + 'static {
    /// Eight `f32`.
    type F: Copy;
    /// Eight `i32`.
    type I: Copy;
    /// Sixteen `f32`.
    type Wide: Copy;
    /// Sixteen `i32`, or thirty-two `i16` in the same bits.
    type WideI: Copy;
    /// Sixteen sums of products of bytes with [`Weights4`], maybe apart for the digits of the weights.
    type Dots: Copy;

    /// Whether sixteen lanes are one of 32 registers rather than two of 16: a tile then has twice the
    /// rows.
    const TALL: bool;

    /// Asks for the cache line at `p`, which need not be a valid address.
    unsafe fn prefetch(p: *const u8);

    unsafe fn splat(x: f32) -> Self::F;
    /// Reads 32 bytes.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Writes 32 bytes.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Reads 16 bytes: eight bf16.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// Reads 16 bytes: eight f16.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`: the second operand if either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: the second operand if either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even. The operand must be within `i32`.
    unsafe fn round(v: Self::F) -> Self::I;
    /// Exact for integers within 2²⁴.
    unsafe fn to_f32(v: Self::I) -> Self::F;
    /// 2ⁿ for `n` in -126..=127.
    unsafe fn exp2i(n: Self::I) -> Self::F;
    /// `((l0+l1)+(l2+l3)) + ((l4+l5)+(l6+l7))`.
    unsafe fn sum(v: Self::F) -> f32;
    /// [`Simd::sum`] of each.
    unsafe fn sum4(v: [Self::F; 4]) -> [f32; 4];
    /// The largest lane.
    unsafe fn max_lane(v: Self::F) -> f32;
    /// Columns of an 8 x 8 block become rows: row `i` of the result is lane `i` of each vector.
    unsafe fn transpose(v: [Self::F; 8]) -> [Self::F; 8];

    unsafe fn zero_i() -> Self::I;
    /// Reads 32 bytes.
    unsafe fn load_i(p: *const u8) -> Self::I;
    /// Writes 32 bytes.
    unsafe fn store_i(p: *mut u8, v: Self::I);
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;

    unsafe fn wide_splat(x: f32) -> Self::Wide;
    /// Reads 64 bytes.
    unsafe fn wide_load(p: *const f32) -> Self::Wide;
    /// Reads 32 bytes, into both halves.
    unsafe fn wide_twice(p: *const f32) -> Self::Wide;
    /// Reads 32 bytes: sixteen f16.
    unsafe fn wide_load_f16(p: *const u8) -> Self::Wide;
    /// Writes 64 bytes.
    unsafe fn wide_store(p: *mut f32, v: Self::Wide);
    unsafe fn wide_mul(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// `a · b + c`, rounded once.
    unsafe fn wide_fma(a: Self::Wide, b: Self::Wide, c: Self::Wide) -> Self::Wide;
    /// [`Simd::sum`] of the first halves of the first four, then of their second halves; the same of the last four.
    unsafe fn wide_sums(v: [Self::Wide; 8]) -> [Self::F; 2];
    /// Exact for integers within 2²⁴.
    unsafe fn wide_to_f32(v: Self::WideI) -> Self::Wide;

    unsafe fn wide_zero_i() -> Self::WideI;
    unsafe fn wide_splat_i(x: i32) -> Self::WideI;
    /// Reads 64 bytes.
    unsafe fn wide_load_i(p: *const u8) -> Self::WideI;
    /// Writes 64 bytes.
    unsafe fn wide_store_i(p: *mut u8, v: Self::WideI);
    /// Reads 4 bytes, a pair of i16, into every lane.
    unsafe fn wide_splat_pair(p: *const i16) -> Self::WideI;
    unsafe fn wide_add_i(a: Self::WideI, b: Self::WideI) -> Self::WideI;
    unsafe fn wide_sub_i(a: Self::WideI, b: Self::WideI) -> Self::WideI;
    /// Low 32 bits of the product.
    unsafe fn wide_mul_i(a: Self::WideI, b: Self::WideI) -> Self::WideI;
    /// In each lane, `acc` plus the products of its two pairs of i16.
    unsafe fn wide_madd16(acc: Self::WideI, a: Self::WideI, b: Self::WideI) -> Self::WideI;
    /// `(v >> 4·i) & 0x000f000f`, for `i` in 0..4.
    unsafe fn wide_nibbles<const I: i32>(v: Self::WideI) -> Self::WideI;
    /// Nibble `j` of `word` in lane `j`.
    unsafe fn wide_spread(word: u64) -> Self::WideI;
    /// The low byte of each i16, sign-extended.
    unsafe fn wide_low_bytes(v: Self::WideI) -> Self::WideI;
    /// The high byte of each i16, sign-extended.
    unsafe fn wide_high_bytes(v: Self::WideI) -> Self::WideI;
    /// Reads 16 bytes, sign-extended, one for each lane.
    unsafe fn wide_load_i8(p: *const u8) -> Self::WideI;

    /// Reads 64 bytes of each row. A lane of the result has the four bytes of one place, in an order of places
    /// that [`Simd::wide_store_quads`] undoes.
    unsafe fn wide_quads(rows: [*const u8; 4]) -> [Self::WideI; 4];
    /// Writes 64 bytes, `clamp(lane >> 22, 0, 255)` of each lane.
    unsafe fn wide_store_quads(p: *mut u8, v: [Self::WideI; 4]);
    /// Reads 16 bytes of each row, of which 12 are four pixels. Lane `4·r + c` has the four bytes of channel `c`
    /// of row `r`.
    unsafe fn wide_pixels(rows: [*const u8; 4]) -> Self::WideI;
    /// Writes 16 bytes in each row: three channels of four pixels, each of which is as [`Simd::wide_pixels`] has it,
    /// by the rule of [`Simd::wide_store_quads`], and four bytes of any value.
    unsafe fn wide_store_pixels(rows: [*mut u8; 4], v: [Self::WideI; 4]);
    /// Sums of nothing but `x`.
    unsafe fn wide_dots(x: i32) -> Self::Dots;
    /// Adds in each lane the products of its four bytes with the four weights.
    unsafe fn wide_dot4(acc: Self::Dots, bytes: Self::WideI, weights: &Weights4) -> Self::Dots;
    /// The sums, modulo 2³².
    unsafe fn wide_dots_sum(acc: Self::Dots) -> Self::WideI;
}
