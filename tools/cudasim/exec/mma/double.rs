//! `mma` of double precision: m8n8k4, and m16n8k4, k8, k16.

use super::super::cx::Cx;
use super::super::inst::Inst;
use super::note_chain;

/// `aux[1]` is the number of groups of 8 rows, `aux[2]` k divided by 4.
pub(crate) unsafe fn mma(cx: &mut Cx, i: &Inst, mask: u32) {
    let (halves, t) = (usize::from(i.aux[1]), usize::from(i.aux[2]));
    let (fa, fb) = (2 * halves, 2 * halves + halves * t);
    let fc = fb + t;
    // SAFETY: the decoder placed the rows of d, a, b and c, all 64-bit.
    unsafe {
        let row =
            |cx: &Cx, k: usize| -> &[f64; 32] { &*std::ptr::from_ref(cx.row::<u64>(cx.more(i, k))).cast() };
        let mut results = [[0u64; 32]; 4];
        for h in 0..halves {
            for c in 0..2 {
                for l in 0..32 {
                    let (r, n) = (l / 4, 2 * (l % 4) + c);
                    let mut sum = row(cx, fc + 2 * h + c)[l];
                    for k in 0..4 * t {
                        let a = row(cx, fa + (k / 4) * halves + h)[4 * r + k % 4];
                        let b = row(cx, fb + k / 4)[4 * n + k % 4];
                        sum = a.mul_add(b, sum);
                    }
                    results[2 * h + c][l] = sum.to_bits();
                }
            }
        }
        let (d, c) = (cx.more(i, 0), cx.more(i, fc));
        for (k, out) in results.iter().enumerate().take(2 * halves) {
            cx.put(cx.more(i, k), out, mask);
        }
        note_chain(cx, d, c);
    }
}
