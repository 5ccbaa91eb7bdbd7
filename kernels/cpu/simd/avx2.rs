//! The vectors on AVX2 with FMA and F16C: sixteen lanes are two registers.

use std::arch::x86_64::*;

use super::{Simd, Weights4};

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// SAFETY (all functions): the features are there and pointers are valid by the contract of
// `Simd`; loads and stores are the unaligned ones.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    type Wide = [__m256; 2];
    type WideI = [__m256i; 2];
    type Dots = [__m256i; 2];

    const TALL: bool = false;

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

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
    unsafe fn load_i(p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut u8, v: __m256i) {
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn add_i(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn transpose(v: [__m256; 8]) -> [__m256; 8] {
        unsafe {
            // Pairs of rows, then quads, then halves.
            let (a0, a1) = (_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
            let (a2, a3) = (_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
            let (a4, a5) = (_mm256_unpacklo_ps(v[4], v[5]), _mm256_unpackhi_ps(v[4], v[5]));
            let (a6, a7) = (_mm256_unpacklo_ps(v[6], v[7]), _mm256_unpackhi_ps(v[6], v[7]));
            let (b0, b1) = (_mm256_shuffle_ps::<0x44>(a0, a2), _mm256_shuffle_ps::<0xee>(a0, a2));
            let (b2, b3) = (_mm256_shuffle_ps::<0x44>(a1, a3), _mm256_shuffle_ps::<0xee>(a1, a3));
            let (b4, b5) = (_mm256_shuffle_ps::<0x44>(a4, a6), _mm256_shuffle_ps::<0xee>(a4, a6));
            let (b6, b7) = (_mm256_shuffle_ps::<0x44>(a5, a7), _mm256_shuffle_ps::<0xee>(a5, a7));
            [
                _mm256_permute2f128_ps::<0x20>(b0, b4),
                _mm256_permute2f128_ps::<0x20>(b1, b5),
                _mm256_permute2f128_ps::<0x20>(b2, b6),
                _mm256_permute2f128_ps::<0x20>(b3, b7),
                _mm256_permute2f128_ps::<0x31>(b0, b4),
                _mm256_permute2f128_ps::<0x31>(b1, b5),
                _mm256_permute2f128_ps::<0x31>(b2, b6),
                _mm256_permute2f128_ps::<0x31>(b3, b7),
            ]
        }
    }

    #[inline(always)]
    unsafe fn wide_splat(x: f32) -> [__m256; 2] {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn wide_load(p: *const f32) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn wide_twice(p: *const f32) -> [__m256; 2] {
        unsafe { [_mm256_loadu_ps(p); 2] }
    }
    #[inline(always)]
    unsafe fn wide_load_f16(p: *const u8) -> [__m256; 2] {
        unsafe { [Self::load_f16(p), Self::load_f16(p.add(16))] }
    }
    #[inline(always)]
    unsafe fn wide_store(p: *mut f32, v: [__m256; 2]) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn wide_mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn wide_fma(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn wide_sums(v: [[__m256; 2]; 8]) -> [__m256; 2] {
        unsafe {
            let mut sums = [[[0.0; 4]; 2]; 2];
            for four in 0..2 {
                for half in 0..2 {
                    let v = &v[4 * four..4 * four + 4];
                    sums[four][half] = Self::sum4([v[0][half], v[1][half], v[2][half], v[3][half]]);
                }
            }
            [Self::load(sums[0].as_ptr().cast()), Self::load(sums[1].as_ptr().cast())]
        }
    }
    #[inline(always)]
    unsafe fn wide_to_f32(v: [__m256i; 2]) -> [__m256; 2] {
        unsafe { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }
    }
    #[inline(always)]
    unsafe fn wide_zero_i() -> [__m256i; 2] {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn wide_splat_i(x: i32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn wide_load_i(p: *const u8) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn wide_store_i(p: *mut u8, v: [__m256i; 2]) {
        unsafe {
            _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(32).cast(), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn wide_splat_pair(p: *const i16) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(p.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn wide_add_i(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn wide_sub_i(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn wide_mul_i(a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn wide_madd16(acc: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            [
                _mm256_add_epi32(acc[0], _mm256_madd_epi16(a[0], b[0])),
                _mm256_add_epi32(acc[1], _mm256_madd_epi16(a[1], b[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn wide_nibbles<const I: i32>(v: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [nibbles::<I>(v[0]), nibbles::<I>(v[1])] }
    }
    #[inline(always)]
    unsafe fn wide_spread(word: u64) -> [__m256i; 2] {
        unsafe { [spread(word as u32), spread((word >> 32) as u32)] }
    }
    #[inline(always)]
    unsafe fn wide_low_bytes(v: [__m256i; 2]) -> [__m256i; 2] {
        unsafe {
            [
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v[0])),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn wide_high_bytes(v: [__m256i; 2]) -> [__m256i; 2] {
        unsafe { [_mm256_srai_epi16::<8>(v[0]), _mm256_srai_epi16::<8>(v[1])] }
    }
    #[inline(always)]
    unsafe fn wide_load_i8(p: *const u8) -> [__m256i; 2] {
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            [_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))]
        }
    }
    #[inline(always)]
    unsafe fn wide_quads(rows: [*const u8; 4]) -> [[__m256i; 2]; 4] {
        unsafe {
            let half = |h: usize| {
                let [a, b, c, d] = rows.map(|p| _mm256_loadu_si256(p.add(32 * h).cast()));
                let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
                let (ab_high, cd_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
                [
                    _mm256_unpacklo_epi16(ab, cd),
                    _mm256_unpackhi_epi16(ab, cd),
                    _mm256_unpacklo_epi16(ab_high, cd_high),
                    _mm256_unpackhi_epi16(ab_high, cd_high),
                ]
            };
            let (first, second) = (half(0), half(1));
            std::array::from_fn(|i| [first[i], second[i]])
        }
    }
    #[inline(always)]
    unsafe fn wide_store_quads(p: *mut u8, v: [[__m256i; 2]; 4]) {
        unsafe {
            for h in 0..2 {
                let [a, b, c, d] = v.map(|v| _mm256_srai_epi32::<22>(v[h]));
                let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                _mm256_storeu_si256(p.add(32 * h).cast(), bytes);
            }
        }
    }
    #[inline(always)]
    unsafe fn wide_pixels(rows: [*const u8; 4]) -> [__m256i; 2] {
        unsafe {
            let [a, b, c, d] = rows.map(|p| _mm_loadu_si128(p.cast()));
            let channels = _mm256_broadcastsi128_si256(channels());
            let two = |low, high| {
                let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
                _mm256_shuffle_epi8(both, channels)
            };
            [two(a, b), two(c, d)]
        }
    }
    #[inline(always)]
    unsafe fn wide_store_pixels(rows: [*mut u8; 4], v: [[__m256i; 2]; 4]) {
        unsafe {
            let order = _mm256_broadcastsi128_si256(three_of_four());
            for h in 0..2 {
                let [a, b, c, d] = v.map(|v| _mm256_srai_epi32::<22>(v[h]));
                let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
                let bytes = _mm256_shuffle_epi8(bytes, order);
                _mm_storeu_si128(rows[2 * h].cast(), _mm256_castsi256_si128(bytes));
                _mm_storeu_si128(rows[2 * h + 1].cast(), _mm256_extracti128_si256::<1>(bytes));
            }
        }
    }
    #[inline(always)]
    unsafe fn wide_dots(x: i32) -> [__m256i; 2] {
        unsafe { Self::wide_splat_i(x) }
    }
    #[inline(always)]
    unsafe fn wide_dots_sum(acc: [__m256i; 2]) -> [__m256i; 2] {
        acc
    }
    #[inline(always)]
    unsafe fn wide_dot4(acc: [__m256i; 2], bytes: [__m256i; 2], weights: &Weights4) -> [__m256i; 2] {
        unsafe {
            let [even, odd] = weights.pairs.map(|digits| digits.map(|d| _mm256_set1_epi32(d)));
            std::array::from_fn(|h| {
                let first = _mm256_and_si256(bytes[h], _mm256_set1_epi16(0xff));
                let second = _mm256_srli_epi16::<8>(bytes[h]);
                let dot = |i: usize| {
                    _mm256_add_epi32(_mm256_madd_epi16(first, even[i]), _mm256_madd_epi16(second, odd[i]))
                };
                _mm256_add_epi32(_mm256_add_epi32(acc[h], dot(1)), _mm256_slli_epi32::<12>(dot(0)))
            })
        }
    }
}

/// See [`Simd::wide_nibbles`].
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn nibbles<const I: i32>(v: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
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

/// See [`Simd::wide_spread`].
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn spread(word: u32) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(word as i32), shifts), _mm256_set1_epi32(15))
    }
}

/// The order that puts the bytes of a channel of four pixels side by side.
#[inline(always)]
pub(super) unsafe fn channels() -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1) }
}

/// The order that leaves out every fourth byte.
#[inline(always)]
pub(super) fn three_of_four() -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1) }
}
