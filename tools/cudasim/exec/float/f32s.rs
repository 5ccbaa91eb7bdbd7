//! Single-precision rules of PTX beside rounding: NaNs, subnormals, saturation.

/// The NaN that every operation gives.
pub(crate) const NAN: f32 = f32::from_bits(0x7fff_ffff);

/// A NaN becomes the canonical one. On the bits, as compilers do not promise which NaN a selection of floats gives.
#[inline(always)]
pub(crate) fn canon(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { NAN.to_bits() } else { bits })
}

/// A subnormal becomes zero of its sign.
#[inline(always)]
pub(crate) fn ftz(x: f32) -> f32 {
    if x.to_bits() & 0x7f80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// `.sat`: clamps to [0, 1], NaN becomes 0.
#[inline(always)]
pub(crate) fn sat(x: f32) -> f32 {
    // The comparisons are false for a NaN.
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

/// [`sat`] of a double.
#[inline(always)]
pub(crate) fn sat64(x: f64) -> f64 {
    if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 }
}

/// Minimum: a NaN loses, -0 is below +0.
#[inline(always)]
pub(crate) fn min(a: f32, b: f32) -> f32 {
    let least = if a < b || (a == b && a.is_sign_negative()) { a } else { b };
    if b.is_nan() {
        canon(a)
    } else if a.is_nan() {
        b
    } else {
        least
    }
}

/// Maximum: a NaN loses, -0 is below +0.
#[inline(always)]
pub(crate) fn max(a: f32, b: f32) -> f32 {
    let most = if a > b || (a == b && a.is_sign_positive()) { a } else { b };
    if b.is_nan() {
        canon(a)
    } else if a.is_nan() {
        b
    } else {
        most
    }
}

/// `.NaN`: a NaN wins.
#[inline(always)]
pub(crate) fn min_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { NAN } else { min(a, b) }
}

/// `.NaN`: a NaN wins.
#[inline(always)]
pub(crate) fn max_nan(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { NAN } else { max(a, b) }
}

/// `.xorsign.abs`: of the magnitudes, with the product of the signs.
#[inline(always)]
pub(crate) fn xorsign(f: impl Fn(f32, f32) -> f32, a: f32, b: f32) -> f32 {
    let r = f(a.abs(), b.abs());
    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
    f32::from_bits(r.to_bits() & 0x7fff_ffff | sign)
}

/// `ex2.approx`, correctly rounded.
pub(crate) fn ex2(x: f32) -> f32 {
    canon(f64::from(x).exp2() as f32)
}

/// `lg2.approx`, correctly rounded.
pub(crate) fn lg2(x: f32) -> f32 {
    canon(f64::from(x).log2() as f32)
}

/// `sin.approx`
pub(crate) fn sin(x: f32) -> f32 {
    canon(f64::from(x).sin() as f32)
}

/// `cos.approx`
pub(crate) fn cos(x: f32) -> f32 {
    canon(f64::from(x).cos() as f32)
}

/// `tanh.approx`
pub(crate) fn tanh(x: f32) -> f32 {
    canon(f64::from(x).tanh() as f32)
}

/// `rsqrt.approx`
#[inline(always)]
pub(crate) fn rsqrt(x: f32) -> f32 {
    if x == 0.0 {
        return f32::INFINITY.copysign(x);
    }
    canon((1.0 / f64::from(x).sqrt()) as f32)
}
