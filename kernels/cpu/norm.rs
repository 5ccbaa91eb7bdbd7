//! norm: RMSNorm and LayerNorm over rows of f32.
//!
//! order   statistics in eight partial sums (column mod 8), joined by the tree of `Simd::sum`.
//! bytes   reads and writes each row once; a row stays in L1 between its passes.

use super::simd::Simd;
use super::{Isa, Pool, dispatch};

/// `out = x / sqrt(mean(x²) + eps) · weight`, rows of `weight.len()` columns.
///
/// # Panics
/// If the lengths do not match.
pub fn rms_norm(isa: Isa, pool: &mut Pool, x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]) {
    each_row(pool, x, weight.len(), out, |x, out| {
        // SAFETY: the row kernel reads and writes rows of one length.
        unsafe { rms_row(isa, x, weight, eps, out) }
    });
}

/// `out = (x − mean) / sqrt(var + eps) · weight + bias`, rows of `weight.len()` columns.
///
/// # Panics
/// If the lengths do not match.
pub fn layer_norm(
    isa: Isa,
    pool: &mut Pool,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f64,
    out: &mut [f32],
) {
    assert_eq!(weight.len(), bias.len());
    each_row(pool, x, weight.len(), out, |x, out| {
        // SAFETY: the row kernel reads and writes rows of one length.
        unsafe { layer_row(isa, x, weight, bias, eps, out) }
    });
}

fn each_row(pool: &mut Pool, x: &[f32], cols: usize, out: &mut [f32], f: impl Fn(&[f32], &mut [f32]) + Sync) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(cols));
    pool.run_on_chunks(out, cols, (8192 / cols).max(1), |first, out| {
        for (x, out) in x[first * cols..].chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            f(x, out);
        }
    });
}

dispatch!(fn rms_row => rms_body(x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]));
dispatch!(fn layer_row => layer_body(x: &[f32], weight: &[f32], bias: &[f32], eps: f64, out: &mut [f32]));

/// Σ x, or Σ x² with `SQUARE`.
#[inline(always)]
unsafe fn sum_of<S: Simd, const SQUARE: bool>(x: &[f32]) -> f32 {
    let whole = x.len() / 8 * 8;
    // SAFETY: eights within `x`.
    let mut sum = unsafe {
        let mut acc = S::splat(0.0);
        for i in (0..whole).step_by(8) {
            let v = S::load(x.as_ptr().add(i));
            acc = S::add(acc, if SQUARE { S::mul(v, v) } else { v });
        }
        S::sum(acc)
    };
    for v in &x[whole..] {
        sum += if SQUARE { v * v } else { *v };
    }
    sum
}

#[inline(always)]
unsafe fn rms_body<S: Simd>(x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]) {
    // SAFETY: `sum_of` stays within `x`.
    let square = unsafe { sum_of::<S, true>(x) };
    let scale = 1.0 / (square / x.len() as f32 + eps as f32).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

#[inline(always)]
unsafe fn layer_body<S: Simd>(x: &[f32], weight: &[f32], bias: &[f32], eps: f64, out: &mut [f32]) {
    // SAFETY: `sum_of` stays within its slice.
    let mean = unsafe { sum_of::<S, false>(x) } / x.len() as f32;
    for (o, x) in out.iter_mut().zip(x) {
        *o = x - mean;
    }
    // SAFETY: `sum_of` stays within its slice.
    let variance = unsafe { sum_of::<S, true>(out) } / x.len() as f32;
    let scale = 1.0 / (variance + eps as f32).sqrt();
    for ((o, w), b) in out.iter_mut().zip(weight).zip(bias) {
        *o = *o * scale * w + b;
    }
}
