//! int4: 4-bit codes for the kernel of `grouped.rs`.
//!
//! math    15·32767·MAX_GROUP < 2³¹ bounds the sum of a group.
//! layout  for each 8 inputs one u32 per output. Nibble p of a u32 is input p/4 + 2·(p%4): masks of
//!         0x000f000f give pairs of neighbours, which `madd16` multiplies with pairs of X. Zero points are
//!         one u64 per strip and group. 4.15625 bits per weight at group 128, as in the file.
//! bytes   k·n/2 + 2.5·k·n/group once per tile of rows.
//! bound   m <= 2: memory bandwidth at 0.28 instructions per weight.

use std::ops::Range;

use super::grouped::{
    Call, Codes, GroupedMatrix, PREFETCH_BYTES, Packing, STRIP, Source, Unpack, strip_body,
};
use super::simd::Simd;
use super::{Isa, dispatch};

/// 4-bit codes.
pub struct Nibbles;

/// A 4-bit matrix in the layout of this kernel.
pub type Int4Matrix = GroupedMatrix<Nibbles>;

/// Output, within its word of eight, of nibble `i` of an AWQ word.
pub(super) const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
/// Input, within its eight, of nibble `p` of a word of this layout.
const NIBBLE_INPUT: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Codes for Nibbles {
    type Zeros = u64;
    const PER_WORD: usize = 8;
    const MAX_GROUP: usize = 4368;

    fn code(word: u32, i: usize) -> u8 {
        let nibble = NIBBLE_INPUT.iter().position(|&input| input == i).expect("a permutation");
        (word >> (4 * nibble)) as u8 & 15
    }

    fn zero(zeros: &u64, lane: usize) -> u8 {
        (zeros >> (4 * lane)) as u8 & 15
    }

    fn set_zero(zeros: &mut u64, lane: usize, zero: u8) {
        *zeros |= u64::from(zero) << (4 * lane);
    }

    fn repack_codes(source: &Source, k: usize, strips: Range<usize>, out: &mut [u32]) {
        match (source.packing, &source.order) {
            (Packing::Awq, None) => repack_awq(source.qweight, source.n, k, strips, out),
            (Packing::Awq, Some(_)) => unreachable!("AWQ keeps the order of its inputs"),
            (Packing::Gptq { .. }, order) => {
                let (n, words) = (source.n, k / 8);
                let word = |at: usize| Source::word(source.qweight, at);
                for strip in strips.clone() {
                    let outputs = strip * STRIP..n.min((strip + 1) * STRIP);
                    let out = &mut out[(strip - strips.start) * words * STRIP..][..words * STRIP];
                    for (k8, out) in out.chunks_exact_mut(STRIP).enumerate() {
                        match order {
                            None => {
                                for (out, output) in out.iter_mut().zip(outputs.clone()) {
                                    *out = pair_up(word(k8 * n + output));
                                }
                            }
                            Some(order) => {
                                for (p, &i) in NIBBLE_INPUT.iter().enumerate() {
                                    let input = order.inputs()[k8 * 8 + i] as usize;
                                    if input >= source.k {
                                        continue;
                                    }
                                    for (out, output) in out.iter_mut().zip(outputs.clone()) {
                                        let code = word(input / 8 * n + output) >> (4 * (input % 8)) & 15;
                                        *out |= code << (4 * p);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    unsafe fn run(isa: Isa, call: &Call<Nibbles>, strip: usize, c: *mut f32, ldc: usize) {
        // SAFETY: the caller's promise.
        unsafe { run_strip(isa, call, strip, c, ldc) }
    }
}

dispatch!(fn run_strip => nibble_strip(call: &Call<Nibbles>, strip: usize, c: *mut f32, ldc: usize));

#[inline(always)]
unsafe fn nibble_strip<S: Simd>(call: &Call<Nibbles>, strip: usize, c: *mut f32, ldc: usize) {
    // SAFETY: the caller's promise.
    unsafe { strip_body::<S, Nibbles>(call, strip, c, ldc) }
}

/// Nibbles 0 2 4 6 of a word to its low half, 1 3 5 7 to its high half.
fn pair_up(word: u32) -> u32 {
    let even = |x: u32| {
        let x = x & 0x0f0f_0f0f;
        let x = (x | x >> 4) & 0x00ff_00ff;
        (x | x >> 8) & 0x0000_ffff
    };
    even(word) | even(word >> 4) << 16
}

fn repack_awq(qweight: &[u8], n: usize, k: usize, strips: Range<usize>, out: &mut [u32]) {
    let words_per_row = n / 8;
    for k8 in 0..k / 8 {
        for strip in strips.clone() {
            let base = ((strip - strips.start) * (k / 8) + k8) * STRIP;
            for half in 0..STRIP / 8 {
                let column = strip * (STRIP / 8) + half;
                if column >= words_per_row {
                    break;
                }
                let mut block =
                    NIBBLE_INPUT.map(|i| Source::word(qweight, (k8 * 8 + i) * words_per_row + column));
                transpose_nibbles(&mut block);
                for (nibble, &output) in AWQ_ORDER.iter().enumerate() {
                    out[base + half * 8 + output] = block[nibble];
                }
            }
        }
    }
}

/// Nibble `j` of word `i` becomes nibble `i` of word `j`.
fn transpose_nibbles(w: &mut [u32; 8]) {
    let mut swap = |a: usize, b: usize, shift: u32, mask: u32| {
        let t = ((w[a] >> shift) ^ w[b]) & mask;
        w[b] ^= t;
        w[a] ^= t << shift;
    };
    for i in [0, 2, 4, 6] {
        swap(i, i + 1, 4, 0x0f0f_0f0f);
    }
    for i in [0, 1, 4, 5] {
        swap(i, i + 2, 8, 0x00ff_00ff);
    }
    for i in [0, 1, 2, 3] {
        swap(i, i + 4, 16, 0x0000_ffff);
    }
}

// SAFETY: reads and writes are those the trait states.
unsafe impl<S: Simd> Unpack<S> for Nibbles {
    #[inline(always)]
    unsafe fn zeros(zeros: &u64) -> S::WideI {
        // SAFETY: arithmetic on values.
        unsafe { S::wide_spread(*zeros) }
    }

    #[inline(always)]
    unsafe fn direct(codes: *const u8, group: usize, x: *const i16) -> S::WideI {
        // SAFETY: the caller gives group/8 blocks of 64 bytes and `group` inputs.
        unsafe {
            // Two sums: one chain of additions would limit the speed.
            let mut acc = [S::wide_zero_i(); 2];
            for k8 in 0..group / 8 {
                let x = x.add(8 * k8);
                let v = S::wide_load_i(codes.add(64 * k8));
                S::prefetch(codes.wrapping_add(64 * k8 + PREFETCH_BYTES));
                acc[0] = S::wide_madd16(acc[0], S::wide_nibbles::<0>(v), S::wide_splat_pair(x));
                acc[1] = S::wide_madd16(acc[1], S::wide_nibbles::<1>(v), S::wide_splat_pair(x.add(2)));
                acc[0] = S::wide_madd16(acc[0], S::wide_nibbles::<2>(v), S::wide_splat_pair(x.add(4)));
                acc[1] = S::wide_madd16(acc[1], S::wide_nibbles::<3>(v), S::wide_splat_pair(x.add(6)));
            }
            S::wide_add_i(acc[0], acc[1])
        }
    }

    #[inline(always)]
    unsafe fn unpack(codes: *const u8, group: usize, out: *mut u8) {
        // SAFETY: the caller gives group/8 blocks of 64 bytes and room for 16·group i16.
        unsafe {
            for k8 in 0..group / 8 {
                let v = S::wide_load_i(codes.add(64 * k8));
                let to = out.add(256 * k8);
                S::wide_store_i(to, S::wide_nibbles::<0>(v));
                S::wide_store_i(to.add(64), S::wide_nibbles::<1>(v));
                S::wide_store_i(to.add(128), S::wide_nibbles::<2>(v));
                S::wide_store_i(to.add(192), S::wide_nibbles::<3>(v));
            }
        }
    }
}
