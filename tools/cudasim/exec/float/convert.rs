//! Conversions between number formats.

use super::super::elem::{B, H};
use super::f32s::canon;
use super::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, odd_f32};
use super::round::{Mode, Round, to_f32};

/// Rounds to an integral value.
#[inline(always)]
pub(crate) fn integral<M: Mode>(x: f64) -> f64 {
    match M::ROUND {
        Round::Near => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// Rounds to an integral value.
#[inline(always)]
pub(crate) fn integral32<M: Mode>(x: f32) -> f32 {
    match M::ROUND {
        Round::Near => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

/// An integer of at most 64 bits as a double and what is missing.
#[inline(always)]
fn split(a: i128) -> (f64, f64) {
    let high = a as f64;
    (high, (a - high as i128) as f64)
}

/// Integer → f32.
pub(crate) fn int_to_f32<M: Mode>(a: i128) -> f32 {
    let (high, low) = split(a);
    if M::ROUND == Round::Near { a as f32 } else { to_f32::<M>(high, low) }
}

/// Integer → f64.
pub(crate) fn int_to_f64<M: Mode>(a: i128) -> f64 {
    let (high, low) = split(a);
    match M::ROUND {
        Round::Down if low < 0.0 => high.next_down(),
        Round::Up if low > 0.0 => high.next_up(),
        Round::Zero if low < 0.0 && high > 0.0 => high.next_down(),
        Round::Zero if low > 0.0 && high < 0.0 => high.next_up(),
        _ => high,
    }
}

/// Integer → f16.
pub(crate) fn int_to_f16<M: Mode>(a: i128) -> H {
    let (high, low) = split(a);
    f32_to_f16_in::<M>(odd_f32(high, low))
}

/// Integer → bf16.
pub(crate) fn int_to_bf16<M: Mode>(a: i128) -> B {
    let (high, low) = split(a);
    f32_to_bf16_in::<M>(odd_f32(high, low))
}

/// f64 → f32.
#[inline(always)]
pub(crate) fn f64_to_f32<M: Mode>(a: f64) -> f32 {
    canon(if M::ROUND == Round::Near { a as f32 } else { to_f32::<M>(a, 0.0) })
}

/// Moves a rounded half towards the mode: `back` is the result widened.
#[inline(always)]
fn directed<M: Mode>(h: u16, back: f32, exact: f32, infinity: u16) -> u16 {
    if M::ROUND == Round::Near || !(back != exact) || exact.is_nan() {
        return h;
    }
    let larger = back > exact;
    let negative = h & 0x8000 != 0;
    // Steps of the bit pattern go away from zero.
    let (towards, away) = (h.wrapping_sub(1), h.wrapping_add(1));
    match M::ROUND {
        Round::Down if larger => {
            if negative {
                if h & 0x7fff == infinity { h } else { away }
            } else if h == 0 {
                0x8001
            } else {
                towards
            }
        }
        Round::Up if !larger => {
            if negative {
                if h == 0x8000 { 1 } else { towards }
            } else if h == infinity {
                h
            } else {
                away
            }
        }
        Round::Zero if larger && !negative => towards,
        Round::Zero if !larger && negative => towards,
        _ => h,
    }
}

/// f32 → f16.
#[inline(always)]
pub(crate) fn f32_to_f16_in<M: Mode>(a: f32) -> H {
    let h = f32_to_f16(a);
    if M::ROUND == Round::Near {
        return H(h);
    }
    H(directed::<M>(h, f16_to_f32(h), a, 0x7c00))
}

/// f32 → bf16.
#[inline(always)]
pub(crate) fn f32_to_bf16_in<M: Mode>(a: f32) -> B {
    let h = f32_to_bf16(a);
    if M::ROUND == Round::Near {
        return B(h);
    }
    B(directed::<M>(h, bf16_to_f32(h), a, 0x7f80))
}

/// f64 → f16: through single precision rounded to odd, which keeps all that matters.
#[inline(always)]
pub(crate) fn f64_to_f16<M: Mode>(a: f64) -> H {
    f32_to_f16_in::<M>(odd_f32(a, 0.0))
}

/// f64 → bf16.
#[inline(always)]
pub(crate) fn f64_to_bf16<M: Mode>(a: f64) -> B {
    f32_to_bf16_in::<M>(odd_f32(a, 0.0))
}

/// Negative values become 0, NaNs stay.
#[inline(always)]
pub(crate) fn relu(a: f32) -> f32 {
    if a > 0.0 || a.is_nan() { a } else { 0.0 }
}

/// Two f16, the first in the upper half.
#[inline(always)]
pub(crate) fn f16x2<M: Mode>(high: f32, low: f32) -> u32 {
    u32::from(f32_to_f16_in::<M>(high).0) << 16 | u32::from(f32_to_f16_in::<M>(low).0)
}

/// Two bf16, the first in the upper half.
#[inline(always)]
pub(crate) fn bf16x2<M: Mode>(high: f32, low: f32) -> u32 {
    u32::from(f32_to_bf16_in::<M>(high).0) << 16 | u32::from(f32_to_bf16_in::<M>(low).0)
}

/// tf32 to nearest, ties away from zero.
#[inline(always)]
pub(crate) fn tf32_away(a: f32) -> u32 {
    let bits = a.to_bits();
    if !a.is_finite() { canon(a).to_bits() } else { bits.wrapping_add(0x1000) & 0xffff_e000 }
}

/// tf32 to nearest even.
#[inline(always)]
pub(crate) fn tf32_even(a: f32) -> u32 {
    let bits = a.to_bits();
    if !a.is_finite() {
        canon(a).to_bits()
    } else {
        bits.wrapping_add(0xfff + (bits >> 13 & 1)) & 0xffff_e000
    }
}

/// tf32 towards zero.
#[inline(always)]
pub(crate) fn tf32_zero(a: f32) -> u32 {
    if a.is_nan() { canon(a).to_bits() } else { a.to_bits() & 0xffff_e000 }
}

/// f32 → 8-bit float with `E` exponent bits, to nearest even, clamped to the largest finite value.
fn fp8<const E: u32>(a: f32) -> u8 {
    let mantissa = 7 - E;
    let bias = if E == 4 { 7 } else { 15 };
    let (largest, nan): (f32, u8) = if E == 4 { (448.0, 0x7f) } else { (57344.0, 0x7f) };
    if a.is_nan() {
        return nan;
    }
    let sign = ((a.to_bits() >> 31) as u8) << 7;
    let x = a.abs().min(largest);
    // Spacing of the values around x.
    let exponent = ((x.to_bits() >> 23) as i32 - 127).max(1 - bias);
    let step = f64::from(2f32).powi(exponent - mantissa as i32);
    let value = (f64::from(x) / step).round_ties_even() * step;
    let value = value.min(f64::from(largest));
    let e = if value == 0.0 { 1 - bias } else { ((value as f32).to_bits() >> 23) as i32 - 127 };
    if e < 1 - bias || value < 2f64.powi(1 - bias) {
        return sign | (value / 2f64.powi(1 - bias - mantissa as i32)) as u8;
    }
    let fraction = (value / 2f64.powi(e) - 1.0) * f64::from(1u32 << mantissa);
    sign | ((e + bias) as u8) << mantissa | fraction as u8
}

/// 8-bit float → f32.
fn of_fp8<const E: u32>(b: u8) -> f32 {
    let mantissa = 7 - E;
    let bias = if E == 4 { 7 } else { 15 };
    let sign = if b & 0x80 != 0 { -1.0 } else { 1.0 };
    let e = i32::from(b >> mantissa) & ((1 << E) - 1);
    let f = f32::from(b & ((1 << mantissa) - 1)) / (1u32 << mantissa) as f32;
    if E == 4 && b & 0x7f == 0x7f {
        return f32::NAN;
    }
    if E == 5 && e == 31 {
        return if f == 0.0 { sign * f32::INFINITY } else { f32::NAN };
    }
    sign * if e == 0 { f * 2f32.powi(1 - bias) } else { (1.0 + f) * 2f32.powi(e - bias) }
}

/// Two 8-bit floats, the first in the upper half.
pub(crate) fn fp8x2<const E: u32>(high: f32, low: f32) -> u16 {
    u16::from(fp8::<E>(high)) << 8 | u16::from(fp8::<E>(low))
}

/// A pair of f16 as 8-bit floats.
pub(crate) fn fp8_of_f16x2<const E: u32>(a: u32, clamp_negative: bool) -> u16 {
    let f = |h: u32| {
        let x = f16_to_f32(h as u16);
        if clamp_negative { relu(x) } else { x }
    };
    fp8x2::<E>(f(a >> 16), f(a))
}

/// A pair of 8-bit floats as f16.
pub(crate) fn f16x2_of_fp8<const E: u32>(a: u16, clamp_negative: bool) -> u32 {
    let f = |b: u16| {
        let x = of_fp8::<E>(b as u8);
        u32::from(f32_to_f16(if clamp_negative { relu(x) } else { x }))
    };
    f(a >> 8) << 16 | f(a)
}

#[cfg(test)]
mod tests {
    use super::super::round::{Down, Near, Up, Zero};
    use super::*;

    #[test]
    fn eight_bit_floats_come_back() {
        for b in 0..=255u8 {
            for (back, x) in
                [(fp8::<4>(of_fp8::<4>(b)), of_fp8::<4>(b)), (fp8::<5>(of_fp8::<5>(b)), of_fp8::<5>(b))]
            {
                if x.is_finite() {
                    assert_eq!(back, b, "{x}");
                }
            }
        }
        assert_eq!(fp8::<4>(1000.0), 0x7e);
        assert_eq!(fp8::<5>(-1e9), 0xfb);
        assert_eq!(fp8::<4>(f32::NAN), 0x7f);
    }

    #[test]
    fn directed_halves() {
        let x = 1.0 + 1e-5;
        assert_eq!((f32_to_f16_in::<Down>(x).0, f32_to_f16_in::<Up>(x).0), (0x3c00, 0x3c01));
        assert_eq!((f32_to_f16_in::<Down>(-x).0, f32_to_f16_in::<Up>(-x).0), (0xbc01, 0xbc00));
        assert_eq!(f32_to_f16_in::<Zero>(1e6).0, 0x7bff);
        assert_eq!(f32_to_f16_in::<Near>(1e6).0, 0x7c00);
        assert_eq!(f32_to_f16_in::<Down>(1e6).0, 0x7bff);
        assert_eq!(f32_to_f16_in::<Up>(1e-12).0, 1);
        assert_eq!(f32_to_f16_in::<Down>(1e-12).0, 0);
        assert_eq!(f32_to_f16_in::<Down>(-1e-12).0, 0x8001);
        assert_eq!(f32_to_f16_in::<Up>(-1e-12).0, 0x8000);
        assert_eq!(f32_to_bf16_in::<Zero>(f32::MAX).0, 0x7f7f);
        assert_eq!(f32_to_f16_in::<Zero>(f32::INFINITY).0, 0x7c00);
    }

    #[test]
    fn integers_round_once() {
        // 2^24 + 1 + 2^-inf: a double keeps it, single must decide by the mode.
        let a = (1i128 << 60) + 1;
        assert_eq!(int_to_f32::<Up>(a), (2f32.powi(60)).next_up());
        assert_eq!(int_to_f32::<Down>(a), 2f32.powi(60));
        assert_eq!(int_to_f64::<Up>(a), 2f64.powi(60).next_up());
        assert_eq!(int_to_f16::<Near>(2049).0, 0x6800);
        assert_eq!(int_to_f16::<Near>(2051).0, 0x6802);
    }
}
