//! Directed rounding of single precision, through exact double precision.

/// Rounding modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    Near,
    /// To zero.
    Zero,
    /// To minus infinity.
    Down,
    /// To plus infinity.
    Up,
}

/// The mode as a constant, to instantiate for.
pub(crate) trait Mode: Copy + 'static {
    const ROUND: Round;
}
macro_rules! modes {
    ($($name:ident $round:ident),*) => {$(
        #[derive(Clone, Copy)]
        pub(crate) struct $name;
        impl Mode for $name {
            const ROUND: Round = Round::$round;
        }
    )*};
}
modes!(Near Near, Zero Zero, Down Down, Up Up);

/// Rounds the exact value `high + low` to single precision in a directed mode; `|low|` is at most half an ulp of
/// `high`.
#[inline(always)]
pub(crate) fn to_f32<M: Mode>(high: f64, low: f64) -> f32 {
    let near = high as f32;
    let back = f64::from(near);
    // Sign of (exact value - near); `high - back` is exact.
    let d = if high != back { high - back } else { low };
    let up = |x: f32| {
        f32::from_bits(if x > 0.0 {
            x.to_bits() + 1
        } else if x == 0.0 {
            1
        } else {
            x.to_bits() - 1
        })
    };
    let down = |x: f32| {
        f32::from_bits(if x > 0.0 {
            x.to_bits() - 1
        } else if x == 0.0 {
            0x8000_0001
        } else {
            x.to_bits() + 1
        })
    };
    match M::ROUND {
        Round::Near => near,
        Round::Down => {
            if near == f32::INFINITY && high.is_finite() {
                f32::MAX
            } else if d < 0.0 && near > f32::NEG_INFINITY {
                down(near)
            } else {
                near
            }
        }
        Round::Up => {
            if near == f32::NEG_INFINITY && high.is_finite() {
                f32::MIN
            } else if d > 0.0 && near < f32::INFINITY {
                up(near)
            } else {
                near
            }
        }
        Round::Zero => {
            if near.is_infinite() && high.is_finite() {
                f32::MAX.copysign(near)
            } else if d < 0.0 && near > 0.0 {
                down(near)
            } else if d > 0.0 && near < 0.0 {
                up(near)
            } else {
                near
            }
        }
    }
}

/// `a + b` and its rounding error, exactly (Knuth).
#[inline(always)]
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    let e = (a - (s - t)) + (b - t);
    (s, if s.is_finite() { e } else { 0.0 })
}

/// `a + b` in single precision.
#[inline(always)]
pub(crate) fn add<M: Mode>(a: f32, b: f32) -> f32 {
    if M::ROUND == Round::Near {
        return a + b;
    }
    let (s, e) = two_sum(f64::from(a), f64::from(b));
    signed_zero::<M>(to_f32::<M>(s, e), s, e, a, b)
}

/// The sum of opposite numbers is -0 when rounding down.
#[inline(always)]
fn signed_zero<M: Mode>(r: f32, s: f64, e: f64, a: f32, b: f32) -> f32 {
    if M::ROUND == Round::Down
        && s == 0.0
        && e == 0.0
        && !(a == 0.0 && b == 0.0 && a.is_sign_positive() && b.is_sign_positive())
    {
        return -0.0;
    }
    r
}

/// `a * b` in single precision.
#[inline(always)]
pub(crate) fn mul<M: Mode>(a: f32, b: f32) -> f32 {
    if M::ROUND == Round::Near {
        return a * b;
    }
    to_f32::<M>(f64::from(a) * f64::from(b), 0.0)
}

/// `a * b + c` in single precision with one rounding.
#[inline(always)]
pub(crate) fn fma<M: Mode>(a: f32, b: f32, c: f32) -> f32 {
    if M::ROUND == Round::Near {
        return a.mul_add(b, c);
    }
    let p = f64::from(a) * f64::from(b);
    let (s, e) = two_sum(p, f64::from(c));
    let r = to_f32::<M>(s, e);
    if M::ROUND == Round::Down && s == 0.0 && e == 0.0 && (p.is_sign_negative() || c.is_sign_negative()) {
        return -0.0;
    }
    r
}

/// `a / b` in single precision.
#[inline(always)]
pub(crate) fn div<M: Mode>(a: f32, b: f32) -> f32 {
    if M::ROUND == Round::Near {
        return a / b;
    }
    let (x, y) = (f64::from(a), f64::from(b));
    let q = x / y;
    // Sign of the exact remainder decides where the quotient lies. A zero from an infinite divisor is exact.
    let r = (-q).mul_add(y, x);
    let low = if q.is_finite() && y.is_finite() && r != 0.0 {
        f64::MIN_POSITIVE * if (r > 0.0) == (y > 0.0) { 1.0 } else { -1.0 }
    } else {
        0.0
    };
    to_f32::<M>(q, low)
}

/// The square root in single precision.
#[inline(always)]
pub(crate) fn sqrt<M: Mode>(a: f32) -> f32 {
    if M::ROUND == Round::Near {
        return a.sqrt();
    }
    let x = f64::from(a);
    let q = x.sqrt();
    let r = (-q).mul_add(q, x);
    let low = if q.is_finite() && r != 0.0 { f64::MIN_POSITIVE * r.signum() } else { 0.0 };
    to_f32::<M>(q, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directed results enclose the exact value and are neighbours or equal.
    fn check(down: f32, near: f32, up: f32, zero: f32) {
        assert!(down <= near && near <= up, "{down} {near} {up}");
        assert!(down == up || down.next_up() == up, "{down} {up}");
        assert!(zero == if near > 0.0 { down } else { up } || near == 0.0);
    }

    #[test]
    fn directed_results_enclose_the_nearest() {
        let mut x = 12345u32;
        let mut next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits((x >> 9) | (100 + (x % 50)) << 23 | (x & 1) << 31)
        };
        for _ in 0..20_000 {
            let (a, b, c) = (next(), next(), next());
            check(add::<Down>(a, b), add::<Near>(a, b), add::<Up>(a, b), add::<Zero>(a, b));
            check(mul::<Down>(a, b), mul::<Near>(a, b), mul::<Up>(a, b), mul::<Zero>(a, b));
            check(fma::<Down>(a, b, c), fma::<Near>(a, b, c), fma::<Up>(a, b, c), fma::<Zero>(a, b, c));
            check(div::<Down>(a, b), div::<Near>(a, b), div::<Up>(a, b), div::<Zero>(a, b));
            let a = a.abs();
            check(sqrt::<Down>(a), sqrt::<Near>(a), sqrt::<Up>(a), sqrt::<Zero>(a));
        }
    }

    #[test]
    fn overflow_and_zeros() {
        assert_eq!(add::<Zero>(f32::MAX, f32::MAX), f32::MAX);
        assert_eq!(add::<Down>(f32::MAX, f32::MAX), f32::MAX);
        assert_eq!(add::<Up>(f32::MAX, f32::MAX), f32::INFINITY);
        assert_eq!(add::<Up>(f32::MIN, f32::MIN), f32::MIN);
        assert_eq!(mul::<Up>(f32::from_bits(1), 0.5), f32::from_bits(1));
        assert_eq!(mul::<Down>(f32::from_bits(1), -0.5), -f32::from_bits(1));
        assert!(add::<Down>(1.0, -1.0).is_sign_negative());
        assert!(add::<Up>(1.0, -1.0).is_sign_positive());
        assert_eq!(add::<Down>(f32::INFINITY, 1.0), f32::INFINITY);
        assert_eq!(fma::<Up>(1.0, 1.0, 2f32.powi(-60)), 1.0f32.next_up());
        assert_eq!(fma::<Down>(1.0, 1.0, -2f32.powi(-60)), 1.0f32.next_down());
        // expf: a magic constant is added with fma.rm.
        assert_eq!(fma::<Down>(0.5, 252.0, 12_582_913.0), 12_583_039.0);
    }
}
