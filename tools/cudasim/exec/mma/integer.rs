//! `mma` of 8-, 4- and 1-bit integers.

use super::super::cx::Cx;
use super::super::inst::{ExecFn, Inst};
use super::super::lanes::vectored;
use super::{note_chain, row32};

/// Bits of `aux[1]`.
pub(crate) mod int_flag {
    pub(crate) const A_SIGNED: u8 = 1;
    pub(crate) const B_SIGNED: u8 = 2;
    pub(crate) const SATURATE: u8 = 4;
    /// 16 rows rather than 8.
    pub(crate) const M16: u8 = 8;
    /// Single bits: combine with `and` rather than `xor`.
    pub(crate) const AND: u8 = 16;
}

/// Element `e` of `BITS` bits in a word.
#[inline(always)]
fn element<const BITS: u32>(word: u32, e: u32, signed: bool) -> i32 {
    let up = word << (32 - BITS - BITS * e);
    if signed { (up as i32) >> (32 - BITS) } else { (up >> (32 - BITS)) as i32 }
}

/// `T` registers of A for each 8 rows, and of B; each register covers `32 / BITS` of k.
#[inline(always)]
unsafe fn body<const BITS: u32, const T: usize>(cx: &mut Cx, i: &Inst, mask: u32) {
    let flags = i.aux[1];
    let halves = if flags & int_flag::M16 != 0 { 2 } else { 1 };
    let per = (32 / BITS) as usize;
    // SAFETY: the decoder placed 2 rows of d for each 8 rows, then those of a, b and c, all 32-bit.
    unsafe {
        let fa = 2 * halves;
        let fb = fa + T * halves;
        let fc = fb + T;
        let mut b = [[0i32; 8]; 64];
        for j in 0..T {
            let row = row32(cx, i, fb + j);
            for l in 0..32 {
                for e in 0..per {
                    b[j * 4 * per + (l % 4) * per + e][l / 4] =
                        element::<BITS>(row[l], e as u32, flags & int_flag::B_SIGNED != 0);
                }
            }
        }
        let mut results = [[0u32; 32]; 4];
        for h in 0..halves {
            let mut a = [[0i32; 64]; 8];
            for j in 0..T {
                let row = row32(cx, i, fa + j * halves + h);
                for l in 0..32 {
                    for e in 0..per {
                        a[l / 4][j * 4 * per + (l % 4) * per + e] =
                            element::<BITS>(row[l], e as u32, flags & int_flag::A_SIGNED != 0);
                    }
                }
            }
            // At most 64 products of 16 bits: no overflow here.
            let mut sum = [[0i32; 8]; 8];
            for k in 0..T * 4 * per {
                for r in 0..8 {
                    for n in 0..8 {
                        sum[r][n] += a[r][k] * b[k][n];
                    }
                }
            }
            for c in 0..2 {
                let row = row32(cx, i, fc + 2 * h + c);
                for l in 0..32 {
                    let s = sum[l / 4][2 * (l % 4) + c];
                    let old = row[l] as i32;
                    results[2 * h + c][l] = if flags & int_flag::SATURATE != 0 {
                        old.saturating_add(s) as u32
                    } else {
                        old.wrapping_add(s) as u32
                    };
                }
            }
        }
        let (d, c) = (cx.more(i, 0), cx.more(i, fc));
        for (k, row) in results.iter().enumerate().take(2 * halves) {
            cx.put(cx.more(i, k), row, mask);
        }
        note_chain(cx, d, c);
    }
}

/// Single bits: `T` registers of A for each 8 rows, of 32 bits along k.
#[inline(always)]
unsafe fn bits_body<const T: usize>(cx: &mut Cx, i: &Inst, mask: u32) {
    let flags = i.aux[1];
    let halves = if flags & int_flag::M16 != 0 { 2 } else { 1 };
    // SAFETY: as in `body`.
    unsafe {
        let fa = 2 * halves;
        let fb = fa + T * halves;
        let fc = fb + T;
        let mut results = [[0u32; 32]; 4];
        for h in 0..halves {
            for c in 0..2 {
                let row = row32(cx, i, fc + 2 * h + c);
                for l in 0..32 {
                    let (r, n) = (l / 4, 2 * (l % 4) + c);
                    let mut sum = 0;
                    for j in 0..T {
                        let (a, b) = (row32(cx, i, fa + j * halves + h), row32(cx, i, fb + j));
                        for t in 0..4 {
                            let (x, y) = (a[4 * r + t], b[4 * n + t]);
                            sum += if flags & int_flag::AND != 0 { x & y } else { x ^ y }.count_ones();
                        }
                    }
                    results[2 * h + c][l] = row[l].wrapping_add(sum);
                }
            }
        }
        let (d, c) = (cx.more(i, 0), cx.more(i, fc));
        for (k, row) in results.iter().enumerate().take(2 * halves) {
            cx.put(cx.more(i, k), row, mask);
        }
        note_chain(cx, d, c);
    }
}

vectored!(fn int_of<>[const BITS: u32, const T: usize] = body);
vectored!(fn bits_of<>[const T: usize] = bits_body);

/// The function for elements of `bits` and `t` registers of B.
pub(crate) fn integers(bits: u32, t: usize) -> Option<ExecFn> {
    Some(match (bits, t) {
        (8, 1) => int_of::<8, 1>(),
        (8, 2) => int_of::<8, 2>(),
        (4, 1) => int_of::<4, 1>(),
        (4, 2) => int_of::<4, 2>(),
        (1, 1) => bits_of::<1>(),
        (1, 2) => bits_of::<2>(),
        _ => return None,
    })
}
