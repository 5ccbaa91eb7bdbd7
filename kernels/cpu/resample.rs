//! resample: one row of a resized picture, `out[x] = clamp((Σ w[k]·rows[k][x] + 2²¹) >> 22, 0, 255)`.
//!
//! math    i32, exact: the weights of an output add up to less than 1.7·2²² in absolute value.
//! layout  rows of bytes one after the other; blocks of `LANES` sums stay in registers.
//! bound   multiplications: 8 an instruction with AVX2, 16 with AVX-512.

use super::simd::Simd;
use super::{Isa, dispatch};

/// Fractional bits of the weights.
pub const PRECISION_BITS: u32 = 22;
/// Half of the last kept bit: adding it before the shift rounds to nearest.
pub const ROUND: i32 = 1 << (PRECISION_BITS - 1);
/// Values whose sums are kept in registers while the rows go by.
pub const LANES: usize = 48;

/// Makes a row of `out.len()` values from as many source rows as there are weights.
///
/// # Panics
/// If `rows` has not so many rows.
pub fn weighted_rows(isa: Isa, rows: &[u8], weights: &[i32], out: &mut [u8]) {
    assert_eq!(rows.len(), out.len() * weights.len());
    // SAFETY: the body has no contract of its own.
    unsafe { run(isa, rows, weights, out) }
}

dispatch!(fn run => body(rows: &[u8], weights: &[i32], out: &mut [u8]));

/// Plain Rust, which the compiler turns into vectors of each instruction set.
#[inline(always)]
unsafe fn body<S: Simd>(rows: &[u8], weights: &[i32], out: &mut [u8]) {
    let row = out.len();
    let Some(last) = row.checked_sub(LANES) else {
        for (x, out) in out.iter_mut().enumerate() {
            let sum: i32 =
                weights.iter().zip(rows[x..].iter().step_by(row)).map(|(w, v)| w * i32::from(*v)).sum();
            *out = ((sum + ROUND) >> PRECISION_BITS).clamp(0, 255) as u8;
        }
        return;
    };
    // The last block may overlap the one before it.
    for x in (0..row).step_by(LANES).map(|x| x.min(last)) {
        let mut sums = [ROUND; LANES];
        for (k, weight) in weights.iter().enumerate() {
            let from: &[u8; LANES] = rows[k * row + x..][..LANES].try_into().expect("LANES values");
            for (sum, value) in sums.iter_mut().zip(from) {
                *sum += weight * i32::from(*value);
            }
        }
        for (out, sum) in out[x..x + LANES].iter_mut().zip(sums) {
            *out = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
        }
    }
}
