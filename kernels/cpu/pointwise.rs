//! pointwise: activations, SwiGLU and sums over rows of f32.
//!
//! order   elementwise.
//! bytes   reads and writes each element once; bandwidth-bound unless fused, as they are in plans.

use qwenvl_graph::Activation;

use super::simd::Simd;
use super::{Isa, Pool, dispatch};

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// eˣ to about 1 ulp: 2ⁿ · p(r) with r = x − n·ln 2, |r| <= 0.35 (Cephes `expf`). Clamped to
/// −87.3..=88.3, so that the result is a normal number; NaN gives NaN.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: arithmetic on values.
    unsafe {
        // Both return their second operand if it is NaN, so that NaN passes through.
        let x = S::min(S::splat(88.3), S::max(S::splat(-87.3), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let nf = S::to_f32(n);
        let r = S::fma(nf, S::splat(-0.693_359_4), x);
        let r = S::fma(nf, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_2e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
            p = S::fma(p, r, S::splat(c));
        }
        let p = S::fma(S::mul(p, r), r, S::add(r, S::splat(1.0)));
        S::mul(p, S::exp2i(n))
    }
}

/// `x / (1 + e^(−scale·x))`.
#[inline(always)]
unsafe fn gated<S: Simd>(x: S::F, scale: f32) -> S::F {
    // SAFETY: arithmetic on values.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-scale))))) }
}

/// [`gated`] in place.
#[inline(always)]
unsafe fn gate_all<S: Simd>(x: &mut [f32], scale: f32) {
    let whole = x.len() / 8 * 8;
    // SAFETY: eights within `x`, and one padded copy of its tail.
    unsafe {
        for i in (0..whole).step_by(8) {
            let p = x.as_mut_ptr().add(i);
            S::store(p, gated::<S>(S::load(p), scale));
        }
        let tail = &mut x[whole..];
        if !tail.is_empty() {
            let mut padded = [0f32; 8];
            padded[..tail.len()].copy_from_slice(tail);
            S::store(padded.as_mut_ptr(), gated::<S>(S::load(padded.as_ptr()), scale));
            tail.copy_from_slice(&padded[..tail.len()]);
        }
    }
}

dispatch!(fn gate => gate_all(x: &mut [f32], scale: f32));

/// Applies `activation` in place.
pub fn activate_slice(isa: Isa, activation: Activation, x: &mut [f32]) {
    match activation {
        // SAFETY: the kernel stays within `x`.
        Activation::QuickGelu => unsafe { gate(isa, x, 1.702) },
        Activation::Gelu => {
            for v in x {
                *v *= 0.5 * (1.0 + libm::erff(*v * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
    }
}

/// `gate = silu(gate) · up`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu_slice(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    // SAFETY: the kernel stays within `gate`.
    unsafe { self::gate(isa, gate, 1.0) };
    for (g, u) in gate.iter_mut().zip(up) {
        *g *= u;
    }
}

/// `out = activation(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn activate(isa: Isa, pool: &mut Pool, activation: Activation, x: &[f32], out: &mut [f32]) {
    each_chunk(pool, x.len(), out, |range, out| {
        out.copy_from_slice(&x[range]);
        activate_slice(isa, activation, out);
    });
}

/// `out = silu(gate) · up`.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(isa: Isa, pool: &mut Pool, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), up.len());
    each_chunk(pool, gate.len(), out, |range, out| {
        out.copy_from_slice(&gate[range.clone()]);
        swiglu_slice(isa, out, &up[range]);
    });
}

/// `out = x + y`, or `out += x` without `y`.
///
/// # Panics
/// If the lengths differ.
pub fn add(pool: &mut Pool, x: &[f32], y: Option<&[f32]>, out: &mut [f32]) {
    each_chunk(pool, x.len(), out, |range, out| {
        if let Some(y) = y {
            out.copy_from_slice(&y[range.clone()]);
        }
        for (o, x) in out.iter_mut().zip(&x[range]) {
            *o += x;
        }
    });
}

fn each_chunk(
    pool: &mut Pool,
    len: usize,
    out: &mut [f32],
    f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) {
    assert_eq!(len, out.len());
    pool.run_on_chunks(out, 1, CHUNK, |first, out| f(first..first + out.len(), out));
}
