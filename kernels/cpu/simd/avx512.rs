//! The vectors on AVX-512 (F, BW, DQ, VL and VNNI): sixteen lanes are one register, of which there are 32.

use std::arch::x86_64::*;

use super::{Avx2, Simd, Weights4};

/// AVX-512 as of Ice Lake and Zen 4.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Eight lanes are as on AVX2.
macro_rules! as_on_avx2 {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                unsafe { Avx2::$name($($arg),*) }
            }
        )*
    };
}

/// Sums of neighbours: in each quarter, two of `a`, then two of `b`.
#[inline(always)]
unsafe fn add_pairs(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's processor has AVX-512.
    unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xDD>(a, b)) }
}

// SAFETY (all functions): the features are there and pointers are valid by the contract of `Simd`;
// loads and stores are the unaligned ones.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type F = __m256;
    type I = __m256i;
    type Wide = __m512;
    type WideI = __m512i;
    /// The lowest digit first.
    type Dots = [__m512i; 3];

    const TALL: bool = true;

    as_on_avx2! {
        fn prefetch(p: *const u8);
        fn splat(x: f32) -> __m256;
        fn load(p: *const f32) -> __m256;
        fn store(p: *mut f32, v: __m256);
        fn load_bf16(p: *const u8) -> __m256;
        fn load_f16(p: *const u8) -> __m256;
        fn add(a: __m256, b: __m256) -> __m256;
        fn sub(a: __m256, b: __m256) -> __m256;
        fn mul(a: __m256, b: __m256) -> __m256;
        fn div(a: __m256, b: __m256) -> __m256;
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256;
        fn max(a: __m256, b: __m256) -> __m256;
        fn min(a: __m256, b: __m256) -> __m256;
        fn round(v: __m256) -> __m256i;
        fn to_f32(v: __m256i) -> __m256;
        fn exp2i(n: __m256i) -> __m256;
        fn sum(v: __m256) -> f32;
        fn sum4(v: [__m256; 4]) -> [f32; 4];
        fn max_lane(v: __m256) -> f32;
        fn transpose(v: [__m256; 8]) -> [__m256; 8];
        fn zero_i() -> __m256i;
        fn load_i(p: *const u8) -> __m256i;
        fn store_i(p: *mut u8, v: __m256i);
        fn add_i(a: __m256i, b: __m256i) -> __m256i;
    }

    #[inline(always)]
    unsafe fn wide_splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn wide_load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn wide_twice(p: *const f32) -> __m512 {
        unsafe { _mm512_broadcast_f32x8(_mm256_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn wide_load_f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn wide_store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn wide_mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn wide_fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn wide_sums(v: [__m512; 8]) -> [__m256; 2] {
        unsafe {
            // Neighbours, then neighbours of those, within quarters; then quarters.
            let low = add_pairs(add_pairs(v[0], v[1]), add_pairs(v[2], v[3]));
            let high = add_pairs(add_pairs(v[4], v[5]), add_pairs(v[6], v[7]));
            let sums = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x88>(low, high),
                _mm512_shuffle_f32x4::<0xDD>(low, high),
            );
            [_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums)]
        }
    }
    #[inline(always)]
    unsafe fn wide_to_f32(v: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn wide_zero_i() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn wide_splat_i(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn wide_load_i(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn wide_store_i(p: *mut u8, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn wide_splat_pair(p: *const i16) -> __m512i {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn wide_add_i(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn wide_sub_i(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn wide_mul_i(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn wide_madd16(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn wide_nibbles<const I: i32>(v: __m512i) -> __m512i {
        unsafe {
            let mask = _mm512_set1_epi32(0x000f_000f);
            match I {
                0 => _mm512_and_si512(v, mask),
                1 => _mm512_and_si512(_mm512_srli_epi16::<4>(v), mask),
                2 => _mm512_and_si512(_mm512_srli_epi16::<8>(v), mask),
                // A shift within 16-bit lanes leaves nothing to mask.
                _ => _mm512_srli_epi16::<12>(v),
            }
        }
    }
    #[inline(always)]
    unsafe fn wide_spread(word: u64) -> __m512i {
        unsafe {
            let shifts = _mm512_broadcast_i32x8(_mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            let words = _mm512_inserti64x4::<1>(
                _mm512_set1_epi32(word as i32),
                _mm256_set1_epi32((word >> 32) as i32),
            );
            _mm512_and_si512(_mm512_srlv_epi32(words, shifts), _mm512_set1_epi32(15))
        }
    }
    #[inline(always)]
    unsafe fn wide_low_bytes(v: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(v)) }
    }
    #[inline(always)]
    unsafe fn wide_high_bytes(v: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi16::<8>(v) }
    }
    #[inline(always)]
    unsafe fn wide_load_i8(p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn wide_quads(rows: [*const u8; 4]) -> [__m512i; 4] {
        unsafe {
            let [a, b, c, d] = rows.map(|p| _mm512_loadu_si512(p.cast()));
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(ab_high, cd_high),
                _mm512_unpackhi_epi16(ab_high, cd_high),
            ]
        }
    }
    #[inline(always)]
    unsafe fn wide_store_quads(p: *mut u8, v: [__m512i; 4]) {
        unsafe {
            let [a, b, c, d] = v.map(|v| _mm512_srai_epi32::<22>(v));
            let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            _mm512_storeu_si512(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn wide_pixels(rows: [*const u8; 4]) -> __m512i {
        unsafe {
            let [a, b, c, d] = rows.map(|p| _mm_loadu_si128(p.cast()));
            let ab = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
            let cd = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
            let all = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(ab), cd);
            _mm512_shuffle_epi8(all, _mm512_broadcast_i32x4(super::avx2::channels()))
        }
    }
    #[inline(always)]
    unsafe fn wide_store_pixels(rows: [*mut u8; 4], v: [__m512i; 4]) {
        unsafe {
            let [a, b, c, d] = v.map(|v| _mm512_srai_epi32::<22>(v));
            let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            let bytes = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(super::avx2::three_of_four()));
            _mm_storeu_si128(rows[0].cast(), _mm512_castsi512_si128(bytes));
            _mm_storeu_si128(rows[1].cast(), _mm512_extracti32x4_epi32::<1>(bytes));
            _mm_storeu_si128(rows[2].cast(), _mm512_extracti32x4_epi32::<2>(bytes));
            _mm_storeu_si128(rows[3].cast(), _mm512_extracti32x4_epi32::<3>(bytes));
        }
    }
    #[inline(always)]
    unsafe fn wide_dots(x: i32) -> [__m512i; 3] {
        unsafe { [_mm512_set1_epi32(x), _mm512_setzero_si512(), _mm512_setzero_si512()] }
    }
    #[inline(always)]
    unsafe fn wide_dot4(acc: [__m512i; 3], bytes: __m512i, weights: &Weights4) -> [__m512i; 3] {
        let ([low, middle, high], [l, m, h]) = (acc, weights.bytes);
        unsafe {
            [
                _mm512_dpbusd_epi32(low, bytes, _mm512_set1_epi32(l)),
                _mm512_dpbusd_epi32(middle, bytes, _mm512_set1_epi32(m)),
                _mm512_dpbusd_epi32(high, bytes, _mm512_set1_epi32(h)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn wide_dots_sum([low, middle, high]: [__m512i; 3]) -> __m512i {
        unsafe {
            let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), middle);
            _mm512_add_epi32(_mm512_slli_epi32::<8>(upper), low)
        }
    }
}
