//! Binary floating point worked out with integers: the reference for every rounding mode and format. Nothing here
//! uses the host's floating-point unit.

/// Rounding modes by their PTX names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Rn,
    /// Towards zero.
    Rz,
    /// Towards minus infinity.
    Rm,
    /// Towards plus infinity.
    Rp,
}

impl Round {
    pub const ALL: [Round; 4] = [Round::Rn, Round::Rz, Round::Rm, Round::Rp];

    pub fn name(self) -> &'static str {
        match self {
            Round::Rn => "rn",
            Round::Rz => "rz",
            Round::Rm => "rm",
            Round::Rp => "rp",
        }
    }
}

/// A binary format: stored mantissa bits and exponent bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub mantissa: u32,
    pub exponent: u32,
}

pub const F16: Format = Format { mantissa: 10, exponent: 5 };
pub const BF16: Format = Format { mantissa: 7, exponent: 8 };
pub const TF32: Format = Format { mantissa: 10, exponent: 8 };
pub const F32: Format = Format { mantissa: 23, exponent: 8 };
pub const F64: Format = Format { mantissa: 52, exponent: 11 };

/// What a bit pattern means. A number is `magnitude * 2^exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Nan,
    Infinite { negative: bool },
    Finite(Exact),
}

/// A number, exact but for the lowest bit of `magnitude`, which stands for everything below it once bits were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact {
    pub negative: bool,
    pub magnitude: u128,
    pub exponent: i32,
}

impl Format {
    pub fn bits(self) -> u32 {
        1 + self.exponent + self.mantissa
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn exponent_mask(self) -> u64 {
        (1 << self.exponent) - 1
    }

    pub fn sign(self, bits: u64) -> bool {
        bits >> (self.bits() - 1) & 1 == 1
    }

    pub fn is_nan(self, bits: u64) -> bool {
        self.decode(bits) == Value::Nan
    }

    pub fn infinity(self, negative: bool) -> u64 {
        self.with_sign(self.exponent_mask() << self.mantissa, negative)
    }

    pub fn largest(self, negative: bool) -> u64 {
        self.with_sign((self.exponent_mask() << self.mantissa) - 1, negative)
    }

    pub fn with_sign(self, bits: u64, negative: bool) -> u64 {
        let sign = 1 << (self.bits() - 1);
        bits & !sign | if negative { sign } else { 0 }
    }

    pub fn one(self) -> u64 {
        (self.bias() as u64) << self.mantissa
    }

    pub fn is_denormal(self, bits: u64) -> bool {
        bits >> self.mantissa & self.exponent_mask() == 0 && bits & ((1 << self.mantissa) - 1) != 0
    }

    /// `ftz`: denormals become zero with their sign.
    pub fn flush(self, bits: u64) -> u64 {
        if self.is_denormal(bits) { self.with_sign(0, self.sign(bits)) } else { bits }
    }

    pub fn decode(self, bits: u64) -> Value {
        let negative = self.sign(bits);
        let exponent = bits >> self.mantissa & self.exponent_mask();
        let fraction = bits & ((1 << self.mantissa) - 1);
        let lowest = 1 - self.bias() - self.mantissa as i32;
        if exponent == self.exponent_mask() {
            return if fraction == 0 { Value::Infinite { negative } } else { Value::Nan };
        }
        let (magnitude, exponent) = match exponent {
            0 => (fraction, lowest),
            e => (fraction | 1 << self.mantissa, lowest + e as i32 - 1),
        };
        Value::Finite(Exact { negative, magnitude: magnitude.into(), exponent })
    }

    /// Rounds a number to the format; overflow gives infinity or the largest number by the mode.
    pub fn round(self, x: Exact, mode: Round) -> u64 {
        if x.magnitude == 0 {
            return self.with_sign(0, x.negative);
        }
        let lowest = 1 - self.bias() - self.mantissa as i32;
        let top = 128 - x.magnitude.leading_zeros() as i32;
        // Exponent of the last bit that is kept.
        let kept = (x.exponent + top - 1 - self.mantissa as i32).max(lowest);
        let shift = kept - x.exponent;
        let mut rounded = if shift <= 0 {
            x.magnitude << -shift
        } else if shift >= 128 {
            u128::from(up(mode, x.negative))
        } else {
            let whole = x.magnitude >> shift;
            let rest = x.magnitude & ((1 << shift) - 1);
            let half = 1u128 << (shift - 1);
            let more = rest != 0
                && match mode {
                    Round::Rn => rest > half || rest == half && whole & 1 == 1,
                    _ => up(mode, x.negative),
                };
            whole + u128::from(more)
        };
        let mut kept = kept;
        if rounded >> (self.mantissa + 1) != 0 {
            rounded >>= 1;
            kept += 1;
        }
        if rounded >> self.mantissa == 0 {
            return self.with_sign(rounded as u64, x.negative);
        }
        let exponent = kept - lowest + 1;
        if exponent as u64 >= self.exponent_mask() {
            let away = mode == Round::Rn || up(mode, x.negative);
            return if away { self.infinity(x.negative) } else { self.largest(x.negative) };
        }
        let bits = (exponent as u64) << self.mantissa | rounded as u64 & ((1 << self.mantissa) - 1);
        self.with_sign(bits, x.negative)
    }
}

/// Whether a directed mode rounds an inexact magnitude up.
fn up(mode: Round, negative: bool) -> bool {
    match mode {
        Round::Rn | Round::Rz => false,
        Round::Rm => negative,
        Round::Rp => !negative,
    }
}

impl Exact {
    /// Moves the highest bit to bit 124, losing nothing but what the lowest bit then stands for.
    fn normalised(self) -> Exact {
        let top = 127 - self.magnitude.leading_zeros() as i32;
        let shift = 124 - top;
        Exact { magnitude: shifted(self.magnitude, shift), exponent: self.exponent - shift, ..self }
    }
}

fn shifted(x: u128, left: i32) -> u128 {
    match left {
        0..=127 => x << left,
        -127..=-1 => {
            let lost = x & ((1 << -left) - 1) != 0;
            x >> -left | u128::from(lost)
        }
        _ => u128::from(x != 0),
    }
}

/// Sum of two numbers; `None` when it is an exact zero, whose sign depends on the mode.
fn exact_sum(a: Exact, b: Exact) -> Option<Exact> {
    if a.magnitude == 0 {
        return (b.magnitude != 0).then_some(b);
    }
    if b.magnitude == 0 {
        return Some(a);
    }
    let (mut a, mut b) = (a.normalised(), b.normalised());
    if a.exponent < b.exponent {
        (a, b) = (b, a);
    }
    let small = shifted(b.magnitude, b.exponent - a.exponent);
    if a.negative == b.negative {
        return Some(Exact { magnitude: a.magnitude + small, ..a });
    }
    match a.magnitude.cmp(&small) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(Exact { magnitude: a.magnitude - small, ..a }),
        std::cmp::Ordering::Less => {
            Some(Exact { negative: b.negative, magnitude: small - a.magnitude, exponent: a.exponent })
        }
    }
}

/// `None` stands for NaN in all that follows.
pub fn add(f: Format, a: u64, b: u64, mode: Round) -> Option<u64> {
    sum(f, f.decode(a), f.decode(b), mode)
}

fn sum(f: Format, a: Value, b: Value, mode: Round) -> Option<u64> {
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => None,
        (Value::Infinite { negative: x }, Value::Infinite { negative: y }) => (x == y).then(|| f.infinity(x)),
        (Value::Infinite { negative }, _) | (_, Value::Infinite { negative }) => Some(f.infinity(negative)),
        (Value::Finite(x), Value::Finite(y)) => Some(match exact_sum(x, y) {
            Some(sum) => f.round(sum, mode),
            None if x.magnitude == 0 && y.magnitude == 0 && x.negative == y.negative => {
                f.with_sign(0, x.negative)
            }
            None => f.with_sign(0, mode == Round::Rm),
        }),
    }
}

pub fn negate(f: Format, a: u64) -> u64 {
    a ^ 1 << (f.bits() - 1)
}

pub fn sub(f: Format, a: u64, b: u64, mode: Round) -> Option<u64> {
    add(f, a, negate(f, b), mode)
}

fn product(a: Value, b: Value) -> Value {
    let infinite_and = |negative: bool, other: Value| match other {
        Value::Nan => Value::Nan,
        Value::Finite(x) if x.magnitude == 0 => Value::Nan,
        Value::Finite(x) => Value::Infinite { negative: negative ^ x.negative },
        Value::Infinite { negative: other } => Value::Infinite { negative: negative ^ other },
    };
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => Value::Nan,
        (Value::Infinite { negative }, other) | (other, Value::Infinite { negative }) => {
            infinite_and(negative, other)
        }
        (Value::Finite(x), Value::Finite(y)) => Value::Finite(Exact {
            negative: x.negative ^ y.negative,
            magnitude: x.magnitude * y.magnitude,
            exponent: x.exponent + y.exponent,
        }),
    }
}

fn encode(f: Format, v: Value, mode: Round) -> Option<u64> {
    match v {
        Value::Nan => None,
        Value::Infinite { negative } => Some(f.infinity(negative)),
        Value::Finite(x) => Some(f.round(x, mode)),
    }
}

pub fn mul(f: Format, a: u64, b: u64, mode: Round) -> Option<u64> {
    encode(f, product(f.decode(a), f.decode(b)), mode)
}

pub fn fma(f: Format, a: u64, b: u64, c: u64, mode: Round) -> Option<u64> {
    sum(f, product(f.decode(a), f.decode(b)), f.decode(c), mode)
}

pub fn div(f: Format, a: u64, b: u64, mode: Round) -> Option<u64> {
    let sign = f.sign(a) ^ f.sign(b);
    match (f.decode(a), f.decode(b)) {
        (Value::Nan, _) | (_, Value::Nan) => None,
        (Value::Infinite { .. }, Value::Infinite { .. }) => None,
        (Value::Infinite { .. }, _) => Some(f.infinity(sign)),
        (_, Value::Infinite { .. }) => Some(f.with_sign(0, sign)),
        (Value::Finite(x), Value::Finite(y)) => match (x.magnitude, y.magnitude) {
            (0, 0) => None,
            (0, _) => Some(f.with_sign(0, sign)),
            (_, 0) => Some(f.infinity(sign)),
            (_, divisor) => {
                let x = x.normalised();
                let magnitude = ((x.magnitude / divisor) << 1) | u128::from(x.magnitude % divisor != 0);
                let exponent = x.exponent - y.exponent - 1;
                Some(f.round(Exact { negative: sign, magnitude, exponent }, mode))
            }
        },
    }
}

pub fn sqrt(f: Format, a: u64, mode: Round) -> Option<u64> {
    match f.decode(a) {
        Value::Nan | Value::Infinite { negative: true } => None,
        Value::Infinite { negative: false } => Some(a),
        Value::Finite(x) if x.magnitude == 0 => Some(a),
        Value::Finite(x) if x.negative => None,
        Value::Finite(x) => {
            let mut x = x.normalised();
            if x.exponent % 2 != 0 {
                x = Exact { magnitude: x.magnitude << 1, exponent: x.exponent - 1, ..x };
            }
            let root = x.magnitude.isqrt();
            let magnitude = root << 1 | u128::from(root * root != x.magnitude);
            Some(f.round(Exact { negative: false, magnitude, exponent: x.exponent / 2 - 1 }, mode))
        }
    }
}

/// Rounds a number of one format to another.
pub fn convert(from: Format, to: Format, bits: u64, mode: Round) -> Option<u64> {
    encode(to, from.decode(bits), mode)
}

/// Rounds to an integral value of the same format, with the sign kept for zero.
pub fn integral(f: Format, bits: u64, mode: Round) -> Option<u64> {
    match f.decode(bits) {
        Value::Nan => None,
        Value::Infinite { .. } => Some(bits),
        Value::Finite(x) if x.exponent >= 0 => Some(bits),
        Value::Finite(x) => {
            let whole = to_integer(x, mode);
            Some(f.round(
                Exact { negative: x.negative, magnitude: whole.unsigned_abs(), exponent: 0 },
                Round::Rz,
            ))
        }
    }
}

/// Rounds to an integer, clamped far outside every integer type.
pub fn to_integer(x: Exact, mode: Round) -> i128 {
    let magnitude = if x.exponent >= 0 {
        if x.exponent > 64 { u128::from(x.magnitude != 0) << 100 } else { x.magnitude << x.exponent }
    } else {
        let shift = -x.exponent as u32;
        let (whole, rest_is) = if shift > 127 {
            (0, if x.magnitude == 0 { 0 } else { 1 })
        } else {
            let whole = x.magnitude >> shift;
            let rest = x.magnitude & ((1 << shift) - 1);
            let half = 1u128 << (shift - 1);
            // 0: exact, 1: below half, 2: half, 3: above half.
            (whole, if rest == 0 { 0 } else { 2 + rest.cmp(&half) as i32 })
        };
        let more = match mode {
            Round::Rn => rest_is == 3 || rest_is == 2 && whole & 1 == 1,
            _ => rest_is != 0 && up(mode, x.negative),
        };
        whole + u128::from(more)
    };
    if x.negative { -(magnitude as i128) } else { magnitude as i128 }
}

/// An integer as a number.
pub fn integer(x: i128) -> Exact {
    Exact { negative: x < 0, magnitude: x.unsigned_abs(), exponent: 0 }
}

#[test]
fn the_reference_agrees_with_the_host_where_that_is_defined() {
    let mut random = crate::random::Random::new(1);
    for _ in 0..200_000 {
        let [a, b, c] = [random.f32(), random.f32(), random.f32()];
        let check = |found: Option<u64>, host: f32| {
            assert_eq!(found, (!host.is_nan()).then(|| host.to_bits().into()), "{a:e} {b:e} {c:e}");
        };
        let [x, y, z] = [a, b, c].map(|v| u64::from(v.to_bits()));
        check(add(F32, x, y, Round::Rn), a + b);
        check(mul(F32, x, y, Round::Rn), a * b);
        check(div(F32, x, y, Round::Rn), a / b);
        check(fma(F32, x, y, z, Round::Rn), a.mul_add(b, c));
        check(sqrt(F32, x, Round::Rn), a.sqrt());
        let [a, b, c] = [random.f64(), random.f64(), random.f64()];
        let check = |found: Option<u64>, host: f64| {
            assert_eq!(found, (!host.is_nan()).then(|| host.to_bits()), "{a:e} {b:e} {c:e}");
        };
        let [x, y, z] = [a, b, c].map(f64::to_bits);
        check(add(F64, x, y, Round::Rn), a + b);
        check(mul(F64, x, y, Round::Rn), a * b);
        check(div(F64, x, y, Round::Rn), a / b);
        check(fma(F64, x, y, z, Round::Rn), a.mul_add(b, c));
        check(sqrt(F64, x, Round::Rn), a.sqrt());
        let narrow = convert(F64, F32, x, Round::Rn);
        assert_eq!(narrow, (!a.is_nan()).then(|| (a as f32).to_bits().into()));
    }
}
