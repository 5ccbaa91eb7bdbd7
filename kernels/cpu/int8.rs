//! int8: 8-bit codes for the kernel of `grouped.rs`.
//!
//! math    codes and zero points 0..=255 are held less 128, which leaves their difference alone:
//!         |q − z| ≤ 255, and 255·32767·MAX_GROUP < 2³¹ bounds the sum of a group. The two sums it is the
//!         difference of are bounded by 128·32767·MAX_GROUP < 2³⁰.
//! layout  for each 4 inputs one u32 per output, bytes in the order 0 2 1 3: the low and the high bytes of
//!         its halves, sign-extended, are pairs of neighbours, which `madd16` multiplies with pairs of X.
//!         Zero points are 16 bytes per strip and group. 8.1875 bits per weight at group 128.
//! bytes   k·n + 3·k·n/group once per tile of rows.
//! bound   m <= 2: memory bandwidth at 0.14 instructions per weight.

use std::ops::Range;

use super::grouped::{Call, Codes, GroupedMatrix, PREFETCH_BYTES, STRIP, Source, Unpack, strip_body};
use super::simd::Simd;
use super::{Isa, dispatch};

/// 8-bit codes.
pub struct Bytes;

/// An 8-bit matrix in the layout of this kernel.
pub type Int8Matrix = GroupedMatrix<Bytes>;

/// Turns 0..=255 into -128..=127 and back.
const SIGN: u8 = 0x80;
/// Input, within its four, of byte `p` of a word of this layout. Its own inverse.
const BYTE_INPUT: [usize; 4] = [0, 2, 1, 3];

impl Codes for Bytes {
    type Zeros = [u8; STRIP];
    const PER_WORD: usize = 4;
    const MAX_GROUP: usize = 256;

    fn code(word: u32, i: usize) -> u8 {
        word.to_le_bytes()[BYTE_INPUT[i]] ^ SIGN
    }

    fn zero(zeros: &[u8; STRIP], lane: usize) -> u8 {
        zeros[lane] ^ SIGN
    }

    fn set_zero(zeros: &mut [u8; STRIP], lane: usize, zero: u8) {
        zeros[lane] = zero ^ SIGN;
    }

    fn repack_codes(source: &Source, k: usize, strips: Range<usize>, out: &mut [u32]) {
        let (n, words) = (source.n, k / 4);
        let word = |at: usize| Source::word(source.qweight, at);
        for strip in strips.clone() {
            let outputs = strip * STRIP..n.min((strip + 1) * STRIP);
            let out = &mut out[(strip - strips.start) * words * STRIP..][..words * STRIP];
            for (k4, out) in out.chunks_exact_mut(STRIP).enumerate() {
                let Some(order) = &source.order else {
                    for (out, output) in out.iter_mut().zip(outputs.clone()) {
                        let bytes = word(k4 * n + output).to_le_bytes();
                        *out = u32::from_le_bytes(BYTE_INPUT.map(|i| bytes[i] ^ SIGN));
                    }
                    continue;
                };
                for (p, &i) in BYTE_INPUT.iter().enumerate() {
                    let input = order.inputs()[k4 * 4 + i] as usize;
                    if input >= source.k {
                        continue;
                    }
                    for (out, output) in out.iter_mut().zip(outputs.clone()) {
                        let code = (word(input / 4 * n + output) >> (8 * (input % 4))) as u8;
                        *out |= u32::from(code ^ SIGN) << (8 * p);
                    }
                }
            }
        }
    }

    unsafe fn run(isa: Isa, call: &Call<Bytes>, strip: usize, c: *mut f32, ldc: usize) {
        // SAFETY: the caller's promise.
        unsafe { run_strip(isa, call, strip, c, ldc) }
    }
}

dispatch!(fn run_strip => byte_strip(call: &Call<Bytes>, strip: usize, c: *mut f32, ldc: usize));

#[inline(always)]
unsafe fn byte_strip<S: Simd>(call: &Call<Bytes>, strip: usize, c: *mut f32, ldc: usize) {
    // SAFETY: the caller's promise.
    unsafe { strip_body::<S, Bytes>(call, strip, c, ldc) }
}

// SAFETY: reads and writes are those the trait states.
unsafe impl<S: Simd> Unpack<S> for Bytes {
    #[inline(always)]
    unsafe fn zeros(zeros: &[u8; STRIP]) -> S::WideI {
        // SAFETY: 16 bytes.
        unsafe { S::wide_load_i8(zeros.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn direct(codes: *const u8, group: usize, x: *const i16) -> S::WideI {
        // SAFETY: the caller gives group/4 blocks of 64 bytes and `group` inputs.
        unsafe {
            // Two sums: one chain of additions would limit the speed.
            let mut acc = [S::wide_zero_i(); 2];
            for k4 in 0..group / 4 {
                let x = x.add(4 * k4);
                let v = S::wide_load_i(codes.add(64 * k4));
                S::prefetch(codes.wrapping_add(64 * k4 + PREFETCH_BYTES));
                acc[0] = S::wide_madd16(acc[0], S::wide_low_bytes(v), S::wide_splat_pair(x));
                acc[1] = S::wide_madd16(acc[1], S::wide_high_bytes(v), S::wide_splat_pair(x.add(2)));
            }
            S::wide_add_i(acc[0], acc[1])
        }
    }

    #[inline(always)]
    unsafe fn unpack(codes: *const u8, group: usize, out: *mut u8) {
        // SAFETY: the caller gives group/4 blocks of 64 bytes and room for 16·group i16.
        unsafe {
            for k4 in 0..group / 4 {
                let v = S::wide_load_i(codes.add(64 * k4));
                let to = out.add(128 * k4);
                S::wide_store_i(to, S::wide_low_bytes(v));
                S::wide_store_i(to.add(64), S::wide_high_bytes(v));
            }
        }
    }
}
