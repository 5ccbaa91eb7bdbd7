//! Directed rounding of double precision.
//!
//! The nearest result and the exact sign of its error give every directed one. The error comes from error-free
//! transformations on operands that are scaled so that nothing under- or overflows.

use super::round::{Mode, Round};

/// Moves the nearest result `r` as the sign of the exact error `e = exact - r` and the mode say.
fn directed(mode: Round, r: f64, e: f64) -> f64 {
    match mode {
        Round::Near => r,
        Round::Down if e < 0.0 => r.next_down(),
        Round::Up if e > 0.0 => r.next_up(),
        Round::Zero if e < 0.0 && r > 0.0 => r.next_down(),
        Round::Zero if e > 0.0 && r < 0.0 => r.next_up(),
        _ => r,
    }
}

/// An overflow of finite operands.
fn overflow(mode: Round, r: f64) -> f64 {
    match (mode, r > 0.0) {
        (Round::Zero, true) | (Round::Down, true) => f64::MAX,
        (Round::Zero, false) | (Round::Up, false) => f64::MIN,
        _ => r,
    }
}

/// An exact binary number: `(-1)^negative × magnitude × 2^exponent`, of up to 256 bits.
#[derive(Clone, Copy)]
struct Big {
    negative: bool,
    /// Most significant word first.
    words: [u64; 4],
    exponent: i32,
}

fn decompose(x: f64) -> (bool, u64, i32) {
    let bits = x.to_bits();
    let e = (bits >> 52 & 0x7ff) as i32;
    let f = bits & ((1 << 52) - 1);
    if e == 0 { (x.is_sign_negative(), f, -1074) } else { (x.is_sign_negative(), f | 1 << 52, e - 1075) }
}

impl Big {
    /// A 128-bit magnitude in the upper part.
    fn new(negative: bool, magnitude: u128, exponent: i32) -> Big {
        if magnitude == 0 {
            return Big { negative, words: [0; 4], exponent: i32::MIN / 2 };
        }
        let shift = magnitude.leading_zeros();
        let m = magnitude << shift;
        Big { negative, words: [(m >> 64) as u64, m as u64, 0, 0], exponent: exponent - shift as i32 - 128 }
    }

    fn is_zero(&self) -> bool {
        self.words == [0; 4]
    }

    /// Shifts right by `n`, keeping whether anything was lost in the last bit.
    fn shifted(mut self, n: u32) -> Big {
        let mut lost = false;
        let mut n = n;
        while n > 0 {
            let step = n.min(63);
            let mut carry = 0;
            for w in &mut self.words {
                let next = *w << (64 - step);
                *w = *w >> step | carry;
                carry = next;
            }
            lost |= carry != 0;
            n -= step;
            if self.is_zero() {
                break;
            }
        }
        self.words[3] |= u64::from(lost);
        self
    }

    fn sum(a: Big, b: Big) -> Big {
        if a.is_zero() {
            return b;
        }
        if b.is_zero() {
            return a;
        }
        // One bit of room for the carry.
        let (a, b) = (a.shifted(1), b.shifted(1));
        let (a, b) = if a.exponent >= b.exponent { (a, b) } else { (b, a) };
        let b = b.shifted((a.exponent - b.exponent) as u32);
        let exponent = a.exponent + 1;
        if a.negative == b.negative {
            let mut words = [0; 4];
            let mut carry = false;
            for k in (0..4).rev() {
                let (s, c) = a.words[k].overflowing_add(b.words[k]);
                let (s, d) = s.overflowing_add(u64::from(carry));
                words[k] = s;
                carry = c || d;
            }
            return Big { negative: a.negative, words, exponent };
        }
        let (big, small) = if a.words >= b.words { (a, b) } else { (b, a) };
        let mut words = [0; 4];
        let mut borrow = false;
        for k in (0..4).rev() {
            let (s, c) = big.words[k].overflowing_sub(small.words[k]);
            let (s, d) = s.overflowing_sub(u64::from(borrow));
            words[k] = s;
            borrow = c || d;
        }
        Big { negative: big.negative, words, exponent }
    }

    /// Rounds to double precision.
    fn round(self, mode: Round) -> f64 {
        let lead = self.words.iter().position(|&w| w != 0);
        let Some(lead) = lead else { return if mode == Round::Down { -0.0 } else { 0.0 } };
        let zeros = lead as i32 * 64 + self.words[lead].leading_zeros() as i32;
        // Exponent of the leading bit, and of the last bit that is kept.
        let top = self.exponent + 255 - zeros;
        let last = (top - 52).max(-1074);
        let drop = last - self.exponent;
        let bit = |n: i32| -> bool {
            (0..256).contains(&n) && self.words[3 - (n / 64) as usize] >> (n % 64) & 1 == 1
        };
        let mut m = 0u64;
        for n in (drop..=drop + 53).rev() {
            m = m << 1 | u64::from(bit(n));
        }
        let half = bit(drop - 1);
        let rest = (0..(drop - 1).clamp(0, 256)).any(bit);
        let inexact = half || rest;
        let up = match mode {
            Round::Near => half && (rest || m & 1 == 1),
            Round::Zero => false,
            Round::Down => inexact && self.negative,
            Round::Up => inexact && !self.negative,
        };
        m += u64::from(up);
        let mut value = compose(m, last);
        if value.is_infinite() {
            let signed = if self.negative { -value } else { value };
            return overflow(mode, signed);
        }
        if self.negative {
            value = -value;
        }
        value
    }
}

/// `m × 2^e` when that is a double or too large for one.
fn compose(m: u64, e: i32) -> f64 {
    if m == 0 {
        return 0.0;
    }
    let top = 63 - m.leading_zeros() as i32 + e;
    if top > 1023 {
        return f64::INFINITY;
    }
    let mut m = m;
    let mut e = e;
    while m >= 1 << 53 {
        m >>= 1;
        e += 1;
    }
    while m < 1 << 52 && e > -1074 {
        m <<= 1;
        e -= 1;
    }
    if m < 1 << 52 {
        f64::from_bits(m)
    } else {
        f64::from_bits(((e + 1075) as u64) << 52 | (m & ((1 << 52) - 1)))
    }
}

/// `a + b`
pub(crate) fn add<M: Mode>(a: f64, b: f64) -> f64 {
    if M::ROUND == Round::Near {
        return a + b;
    }
    fma_in(M::ROUND, a, 1.0, b)
}

/// `a * b`
pub(crate) fn mul<M: Mode>(a: f64, b: f64) -> f64 {
    let r = a * b;
    if M::ROUND == Round::Near || !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return r;
    }
    let ((sa, ma, ea), (sb, mb, eb)) = (decompose(a), decompose(b));
    Big::new(sa != sb, u128::from(ma) * u128::from(mb), ea + eb).round(M::ROUND)
}

/// `a * b + c` with one rounding.
pub(crate) fn fma<M: Mode>(a: f64, b: f64, c: f64) -> f64 {
    if M::ROUND == Round::Near {
        return a.mul_add(b, c);
    }
    fma_in(M::ROUND, a, b, c)
}

fn fma_in(mode: Round, a: f64, b: f64, c: f64) -> f64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return a.mul_add(b, c);
    }
    let ((sa, ma, ea), (sb, mb, eb), (sc, mc, ec)) = (decompose(a), decompose(b), decompose(c));
    let p = Big::new(sa != sb, u128::from(ma) * u128::from(mb), ea + eb);
    let c_big = Big::new(sc, u128::from(mc), ec);
    let s = Big::sum(p, c_big);
    if s.is_zero() {
        let (pn, cn) = (sa != sb, sc);
        let exact_zeros = p.is_zero() && c_big.is_zero();
        return match (exact_zeros && pn == cn, mode) {
            (true, _) if pn => -0.0,
            (false, Round::Down) => -0.0,
            _ => 0.0,
        };
    }
    s.round(mode)
}

/// `a / b`
pub(crate) fn div<M: Mode>(a: f64, b: f64) -> f64 {
    let q = a / b;
    if M::ROUND == Round::Near || !(a.is_finite() && b.is_finite()) || a == 0.0 || b == 0.0 {
        return q;
    }
    if q.is_infinite() {
        return overflow(M::ROUND, q);
    }
    // Sign of a - q b, exactly; divided by the sign of b it is that of the error.
    let e = residual(a, q, b);
    directed(M::ROUND, q, if b < 0.0 { -e } else { e })
}

/// The square root.
pub(crate) fn sqrt<M: Mode>(a: f64) -> f64 {
    let q = a.sqrt();
    if M::ROUND == Round::Near || !q.is_finite() || a == 0.0 {
        return q;
    }
    directed(M::ROUND, q, residual(a, q, q))
}

/// The sign of `a - q b`, exactly.
fn residual(a: f64, q: f64, b: f64) -> f64 {
    let ((sq, mq, eq), (sb, mb, eb), (sa, ma, ea)) = (decompose(q), decompose(b), decompose(a));
    let p = Big::new(sq == sb, u128::from(mq) * u128::from(mb), eq + eb);
    let r = Big::sum(Big::new(sa, u128::from(ma), ea), p);
    if r.is_zero() {
        0.0
    } else if r.negative {
        -1.0
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::round::{Down, Near, Up, Zero};
    use super::*;

    #[test]
    fn exact_arithmetic_agrees_with_the_hardware_to_nearest() {
        let mut x = 1u64;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            x >> 1
        };
        for n in 0..50_000 {
            let spread = [4, 60, 400, 2046][n % 4];
            let mut value = || {
                let m = next();
                let e = if spread == 2046 { next() % 2047 } else { 1023 - spread / 2 + next() % spread };
                f64::from_bits(m << 63 | (e << 52) | (next() & ((1 << 52) - 1)))
            };
            let (a, b, c) = (value(), value(), value());
            if !a.mul_add(b, c).is_finite() {
                continue;
            }
            let near = a.mul_add(b, c);
            assert_eq!(fma_in(Round::Near, a, b, c), near, "{a:e} {b:e} {c:e}");
            let (down, up, zero) = (fma::<Down>(a, b, c), fma::<Up>(a, b, c), fma::<Zero>(a, b, c));
            assert!(down <= near && near <= up && (down == up || down.next_up() == up), "{a:e} {b:e} {c:e}");
            assert!(zero.abs() == down.abs().min(up.abs()));
            if (a / b).is_finite() && a / b != 0.0 {
                let (down, up) = (div::<Down>(a, b), div::<Up>(a, b));
                assert!(down <= a / b && a / b <= up && (down == up || down.next_up() == up));
            }
            let (down, up) = (sqrt::<Down>(a.abs()), sqrt::<Up>(a.abs()));
            assert!(down == up || down.next_up() == up);
        }
    }

    #[test]
    fn sums_of_very_different_sizes_and_of_opposites() {
        assert_eq!(add::<Up>(1.0, 1e-300), 1.0f64.next_up());
        assert_eq!(add::<Down>(1.0, -1e-300), 1.0f64.next_down());
        assert_eq!(add::<Near>(1.0, 1e-300), 1.0);
        assert!(add::<Down>(1.0, -1.0).is_sign_negative());
        assert!(add::<Up>(1.0, -1.0).is_sign_positive());
        assert_eq!(mul::<Up>(f64::from_bits(1), 0.5), f64::from_bits(1));
        assert_eq!(mul::<Zero>(f64::MAX, 2.0), f64::MAX);
        assert_eq!(mul::<Up>(f64::MAX, 2.0), f64::INFINITY);
        assert_eq!(div::<Down>(1.0, 3.0).next_up(), div::<Up>(1.0, 3.0));
    }
}
