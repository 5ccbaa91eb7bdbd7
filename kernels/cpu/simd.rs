//! Eight-lane vectors, once in plain Rust and once per instruction set.
//!
//! Each operation rounds as IEEE 754 says, and `fma` rounds once, so that all implementations give
//! the same bits.

/// Vectors of eight `f32` or eight `i32`.
///
/// # Safety
/// Every function may only be called on a processor with the features of the implementing type.
/// Pointers must be valid for the bytes that the function names; none needs to be aligned.
pub(crate) trait Simd: Copy + 'static {
    /// Eight `f32`.
    type F: Copy;
    /// Eight `i32`, or sixteen `i16` in the same bits.
    type I: Copy;

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

    unsafe fn zero_i() -> Self::I;
    unsafe fn splat_i(x: i32) -> Self::I;
    /// Reads 32 bytes.
    unsafe fn load_i(p: *const u8) -> Self::I;
    /// Writes 32 bytes.
    unsafe fn store_i(p: *mut u8, v: Self::I);
    /// Reads 4 bytes, a pair of i16, into every lane.
    unsafe fn splat_pair(p: *const i16) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sub_i(a: Self::I, b: Self::I) -> Self::I;
    /// Low 32 bits of the product.
    unsafe fn mul_i(a: Self::I, b: Self::I) -> Self::I;
    /// In each lane, the sum of the products of its two i16 pairs.
    unsafe fn madd16(a: Self::I, b: Self::I) -> Self::I;
    /// `(v >> 4·i) & 0x000f000f`, for `i` in 0..4.
    unsafe fn nibbles<const I: i32>(v: Self::I) -> Self::I;
    /// Nibble `j` of `word` in lane `j`.
    unsafe fn spread_nibbles(word: u32) -> Self::I;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map2<T: Copy>(a: [T; 8], b: [T; 8], f: impl Fn(T, T) -> T) -> [T; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn halves(v: i32) -> (i32, i32) {
    (i32::from(v as i16), v >> 16)
}

// SAFETY (all functions): pointers are valid by the contract of `Simd`, and unaligned reads and
// writes are used throughout.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Portable {
    type F = [f32; 8];
    type I = [i32; 8];

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
    unsafe fn splat_i(x: i32) -> [i32; 8] {
        [x; 8]
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
    unsafe fn splat_pair(p: *const i16) -> [i32; 8] {
        let [lo, hi] = unsafe { p.cast::<[i16; 2]>().read_unaligned() };
        [i32::from(lo) & 0xffff | i32::from(hi) << 16; 8]
    }
    #[inline(always)]
    unsafe fn add_i(a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        map2(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn sub_i(a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        map2(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn mul_i(a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        map2(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn madd16(a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        map2(a, b, |a, b| {
            let ((al, ah), (bl, bh)) = (halves(a), halves(b));
            (al * bl).wrapping_add(ah * bh)
        })
    }
    #[inline(always)]
    unsafe fn nibbles<const I: i32>(v: [i32; 8]) -> [i32; 8] {
        v.map(|w| ((w as u32 >> (4 * I)) & 0x000f_000f) as i32)
    }
    #[inline(always)]
    unsafe fn spread_nibbles(word: u32) -> [i32; 8] {
        std::array::from_fn(|j| (word >> (4 * j) & 15) as i32)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    /// AVX2 with FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    // SAFETY (all functions): the features are there and pointers are valid by the contract of
    // `Simd`; loads and stores are the unaligned ones.
    #[allow(clippy::undocumented_unsafe_blocks)]
    impl Simd for Avx2 {
        type F = __m256;
        type I = __m256i;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u8) -> __m256 {
            unsafe {
                let bits = _mm_loadu_si128(p.cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u8) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn round(v: __m256) -> __m256i {
            unsafe { _mm256_cvtps_epi32(v) }
        }
        #[inline(always)]
        unsafe fn to_f32(v: __m256i) -> __m256 {
            unsafe { _mm256_cvtepi32_ps(v) }
        }
        #[inline(always)]
        unsafe fn exp2i(n: __m256i) -> __m256 {
            unsafe {
                let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            }
        }
        #[inline(always)]
        unsafe fn sum(v: __m256) -> f32 {
            unsafe {
                let pairs = _mm256_hadd_ps(v, v);
                let quads = _mm256_hadd_ps(pairs, pairs);
                let high = _mm256_extractf128_ps::<1>(quads);
                _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(quads), high))
            }
        }
        #[inline(always)]
        unsafe fn sum4(v: [__m256; 4]) -> [f32; 4] {
            unsafe {
                let quads = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
                let sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads));
                std::mem::transmute::<__m128, [f32; 4]>(sums)
            }
        }
        #[inline(always)]
        unsafe fn max_lane(v: __m256) -> f32 {
            unsafe {
                let m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
                _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)))
            }
        }
        #[inline(always)]
        unsafe fn zero_i() -> __m256i {
            unsafe { _mm256_setzero_si256() }
        }
        #[inline(always)]
        unsafe fn splat_i(x: i32) -> __m256i {
            unsafe { _mm256_set1_epi32(x) }
        }
        #[inline(always)]
        unsafe fn load_i(p: *const u8) -> __m256i {
            unsafe { _mm256_loadu_si256(p.cast()) }
        }
        #[inline(always)]
        unsafe fn store_i(p: *mut u8, v: __m256i) {
            unsafe { _mm256_storeu_si256(p.cast(), v) }
        }
        #[inline(always)]
        unsafe fn splat_pair(p: *const i16) -> __m256i {
            unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
        }
        #[inline(always)]
        unsafe fn add_i(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_add_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn sub_i(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_sub_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_i(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_mullo_epi32(a, b) }
        }
        #[inline(always)]
        unsafe fn madd16(a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_madd_epi16(a, b) }
        }
        #[inline(always)]
        unsafe fn nibbles<const I: i32>(v: __m256i) -> __m256i {
            unsafe {
                let mask = _mm256_set1_epi32(0x000f_000f);
                match I {
                    0 => _mm256_and_si256(v, mask),
                    1 => _mm256_and_si256(_mm256_srli_epi16::<4>(v), mask),
                    2 => _mm256_and_si256(_mm256_srli_epi16::<8>(v), mask),
                    // A shift within 16-bit lanes leaves nothing to mask.
                    _ => _mm256_srli_epi16::<12>(v),
                }
            }
        }
        #[inline(always)]
        unsafe fn spread_nibbles(word: u32) -> __m256i {
            unsafe {
                let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
                let spread = _mm256_srlv_epi32(_mm256_set1_epi32(word as i32), shifts);
                _mm256_and_si256(spread, _mm256_set1_epi32(15))
            }
        }
    }
}
