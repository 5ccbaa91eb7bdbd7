//! f32 and f64: every rounding mode, `ftz`, `sat`, NaN rules, and how close the approximations are.

use crate::harness::{Element, map1, map2, map3};
use crate::random::{EDGES32, EDGES64, Random};
use crate::soft::{self, F32, F64, Format, Round};

/// Random patterns and all pairs of edges.
fn pairs32(n: usize, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut random = Random::new(seed);
    let mut a: Vec<u32> = (0..n).map(|_| random.f32().to_bits()).collect();
    let mut b: Vec<u32> = (0..n).map(|_| random.f32().to_bits()).collect();
    for &x in &EDGES32 {
        for &y in &EDGES32 {
            a.push(x);
            b.push(y);
        }
    }
    (a, b)
}

fn pairs64(n: usize, seed: u64) -> (Vec<u64>, Vec<u64>) {
    let mut random = Random::new(seed);
    let mut a: Vec<u64> = (0..n).map(|_| random.f64().to_bits()).collect();
    let mut b: Vec<u64> = (0..n).map(|_| random.f64().to_bits()).collect();
    for &x in &EDGES64 {
        for &y in &EDGES64 {
            a.push(x);
            b.push(y);
        }
    }
    (a, b)
}

/// A third operand that cancels the product of the first two half of the time.
fn third32(a: &[u32], b: &[u32], seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    a.iter()
        .zip(b)
        .map(|(&a, &b)| match random.below(2) {
            0 => (-(f32::from_bits(a) * f32::from_bits(b))).to_bits() ^ random.below(4),
            _ => random.f32().to_bits(),
        })
        .collect()
}

fn third64(a: &[u64], b: &[u64], seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    a.iter()
        .zip(b)
        .map(|(&a, &b)| match random.below(2) {
            0 => (-(f64::from_bits(a) * f64::from_bits(b))).to_bits() ^ u64::from(random.below(4)),
            _ => random.f64().to_bits(),
        })
        .collect()
}

/// Fails unless `found` is `wanted`, or some NaN where nothing is wanted.
#[track_caller]
fn same(f: Format, what: &str, operands: &[u64], found: u64, wanted: Option<u64>) {
    let right = match wanted {
        Some(wanted) => found == wanted,
        None => f.is_nan(found),
    };
    assert!(right, "{what}: {operands:x?} gives {found:#x}, not {wanted:x?}");
}

trait Bits: Element {
    fn wide(self) -> u64;
}
impl Bits for u32 {
    fn wide(self) -> u64 {
        self.into()
    }
}
impl Bits for u64 {
    fn wide(self) -> u64 {
        self
    }
}

fn unary<T: Bits>(f: Format, text: &str, a: &[T], expected: impl Fn(u64) -> Option<u64>) {
    for (x, found) in a.iter().zip(map1::<T, T>(text, a)) {
        same(f, text, &[x.wide()], found.wide(), expected(x.wide()));
    }
}

fn binary<T: Bits>(f: Format, text: &str, a: &[T], b: &[T], expected: impl Fn(u64, u64) -> Option<u64>) {
    for ((x, y), found) in a.iter().zip(b).zip(map2::<T, T, T>(text, a, b)) {
        same(f, text, &[x.wide(), y.wide()], found.wide(), expected(x.wide(), y.wide()));
    }
}

fn ternary<T: Bits>(
    f: Format,
    text: &str,
    a: &[T],
    b: &[T],
    c: &[T],
    expected: impl Fn(u64, u64, u64) -> Option<u64>,
) {
    for (((x, y), z), found) in a.iter().zip(b).zip(c).zip(map3::<T, T, T, T>(text, a, b, c)) {
        let (x, y, z) = (x.wide(), y.wide(), z.wide());
        same(f, text, &[x, y, z], found.wide(), expected(x, y, z));
    }
}

/// `sat`: clamped to 0..1, NaN becomes +0, -0 becomes +0.
fn saturate(f: Format, x: Option<u64>) -> Option<u64> {
    let x = x.unwrap_or(0);
    Some(if f.sign(x) { 0 } else { x.min(f.one()) })
}

#[test]
fn f32_arithmetic_in_every_rounding_mode() {
    let (a, b) = pairs32(60_000, 1);
    let c = third32(&a, &b, 2);
    for mode in Round::ALL {
        let m = mode.name();
        binary(F32, &format!("add.{m}.f32 %o, %a, %b;"), &a, &b, |x, y| soft::add(F32, x, y, mode));
        binary(F32, &format!("sub.{m}.f32 %o, %a, %b;"), &a, &b, |x, y| soft::sub(F32, x, y, mode));
        binary(F32, &format!("mul.{m}.f32 %o, %a, %b;"), &a, &b, |x, y| soft::mul(F32, x, y, mode));
        binary(F32, &format!("div.{m}.f32 %o, %a, %b;"), &a, &b, |x, y| soft::div(F32, x, y, mode));
        ternary(F32, &format!("fma.{m}.f32 %o, %a, %b, %c;"), &a, &b, &c, |x, y, z| {
            soft::fma(F32, x, y, z, mode)
        });
        unary(F32, &format!("sqrt.{m}.f32 %o, %a;"), &a, |x| soft::sqrt(F32, x, mode));
        unary(F32, &format!("rcp.{m}.f32 %o, %a;"), &a, |x| soft::div(F32, F32.one(), x, mode));
    }
}

#[test]
fn f32_without_a_mode_rounds_to_nearest() {
    let (a, b) = pairs32(10_000, 3);
    binary(F32, "add.f32 %o, %a, %b;", &a, &b, |x, y| soft::add(F32, x, y, Round::Rn));
    binary(F32, "sub.f32 %o, %a, %b;", &a, &b, |x, y| soft::sub(F32, x, y, Round::Rn));
    binary(F32, "mul.f32 %o, %a, %b;", &a, &b, |x, y| soft::mul(F32, x, y, Round::Rn));
}

#[test]
fn f32_flushes_denormal_operands_and_results() {
    let (a, b) = pairs32(40_000, 4);
    let c = third32(&a, &b, 5);
    let f = |x| F32.flush(x);
    for mode in Round::ALL {
        let m = mode.name();
        binary(F32, &format!("add.{m}.ftz.f32 %o, %a, %b;"), &a, &b, |x, y| {
            soft::add(F32, f(x), f(y), mode).map(f)
        });
        binary(F32, &format!("mul.{m}.ftz.f32 %o, %a, %b;"), &a, &b, |x, y| {
            soft::mul(F32, f(x), f(y), mode).map(f)
        });
        ternary(F32, &format!("fma.{m}.ftz.f32 %o, %a, %b, %c;"), &a, &b, &c, |x, y, z| {
            soft::fma(F32, f(x), f(y), f(z), mode).map(f)
        });
        binary(F32, &format!("div.{m}.ftz.f32 %o, %a, %b;"), &a, &b, |x, y| {
            soft::div(F32, f(x), f(y), mode).map(f)
        });
        unary(F32, &format!("sqrt.{m}.ftz.f32 %o, %a;"), &a, |x| soft::sqrt(F32, f(x), mode).map(f));
        unary(F32, &format!("rcp.{m}.ftz.f32 %o, %a;"), &a, |x| soft::div(F32, F32.one(), f(x), mode).map(f));
    }
    unary(F32, "neg.ftz.f32 %o, %a;", &a, |x| (!F32.is_nan(x)).then(|| soft::negate(F32, f(x))));
    unary(F32, "abs.ftz.f32 %o, %a;", &a, |x| (!F32.is_nan(x)).then(|| F32.with_sign(f(x), false)));
}

#[test]
fn f32_saturates() {
    let (a, b) = pairs32(40_000, 6);
    let c = third32(&a, &b, 7);
    for mode in Round::ALL {
        let m = mode.name();
        binary(F32, &format!("add.{m}.sat.f32 %o, %a, %b;"), &a, &b, |x, y| {
            saturate(F32, soft::add(F32, x, y, mode))
        });
        binary(F32, &format!("mul.{m}.sat.f32 %o, %a, %b;"), &a, &b, |x, y| {
            saturate(F32, soft::mul(F32, x, y, mode))
        });
        ternary(F32, &format!("fma.{m}.sat.f32 %o, %a, %b, %c;"), &a, &b, &c, |x, y, z| {
            saturate(F32, soft::fma(F32, x, y, z, mode))
        });
    }
    binary(F32, "add.ftz.sat.f32 %o, %a, %b;", &a, &b, |x, y| {
        saturate(F32, soft::add(F32, F32.flush(x), F32.flush(y), Round::Rn).map(|z| F32.flush(z)))
    });
}

#[test]
fn f32_nan_results_are_canonical() {
    let a = [0x7f80_0001u32, 0xffc0_1234, 0x7f80_0000, 0xbf80_0000];
    let b = [0x3f80_0000u32, 0x3f80_0000, 0xff80_0000, 0x3f80_0000];
    for text in ["add.f32 %o, %a, %b;", "fma.rn.f32 %o, %a, %b, %a;", "fma.rn.ftz.f32 %o, %a, %b, %a;"] {
        for (i, found) in map2::<u32, u32, u32>(text, &a, &b).into_iter().enumerate().take(2) {
            assert_eq!(found, 0x7fff_ffff, "{text} {:x}", a[i]);
        }
    }
    let found: Vec<u32> = map2("add.f32 %o, %a, %b;", &a, &b);
    assert_eq!(found[2], 0x7fff_ffff);
    let found: Vec<u32> = map1("sqrt.rn.f32 %o, %a;", &a);
    assert_eq!(found[3], 0x7fff_ffff);
    let found: Vec<u32> = map2("min.NaN.f32 %o, %a, %b;", &a, &b);
    assert_eq!(found[..2], [0x7fff_ffff; 2]);
}

#[test]
fn f64_arithmetic_in_every_rounding_mode() {
    let (a, b) = pairs64(40_000, 8);
    let c = third64(&a, &b, 9);
    for mode in Round::ALL {
        let m = mode.name();
        binary(F64, &format!("add.{m}.f64 %o, %a, %b;"), &a, &b, |x, y| soft::add(F64, x, y, mode));
        binary(F64, &format!("sub.{m}.f64 %o, %a, %b;"), &a, &b, |x, y| soft::sub(F64, x, y, mode));
        binary(F64, &format!("mul.{m}.f64 %o, %a, %b;"), &a, &b, |x, y| soft::mul(F64, x, y, mode));
        binary(F64, &format!("div.{m}.f64 %o, %a, %b;"), &a, &b, |x, y| soft::div(F64, x, y, mode));
        ternary(F64, &format!("fma.{m}.f64 %o, %a, %b, %c;"), &a, &b, &c, |x, y, z| {
            soft::fma(F64, x, y, z, mode)
        });
        unary(F64, &format!("sqrt.{m}.f64 %o, %a;"), &a, |x| soft::sqrt(F64, x, mode));
        unary(F64, &format!("rcp.{m}.f64 %o, %a;"), &a, |x| soft::div(F64, F64.one(), x, mode));
    }
    unary(F64, "neg.f64 %o, %a;", &a, |x| Some(soft::negate(F64, x)));
    unary(F64, "abs.f64 %o, %a;", &a, |x| Some(F64.with_sign(x, false)));
}

/// `min`/`max` by the manual: -0 is below +0; NaN loses, or wins with `.NaN`.
fn extreme(f: Format, x: u64, y: u64, greater: bool, nan: bool) -> Option<u64> {
    match (f.is_nan(x), f.is_nan(y)) {
        (true, true) => return None,
        (true, false) => return if nan { None } else { Some(y) },
        (false, true) => return if nan { None } else { Some(x) },
        _ => {}
    }
    // Order of the patterns as sign and magnitude.
    let key = |v: u64| if f.sign(v) { -((v & !(1 << (f.bits() - 1))) as i128) - 1 } else { v as i128 };
    Some(if (key(x) < key(y)) != greater { x } else { y })
}

#[test]
fn minimum_and_maximum_follow_the_nan_rules() {
    let (a, b) = pairs32(20_000, 10);
    let f = |x| F32.flush(x);
    for (op, greater) in [("min", false), ("max", true)] {
        binary(F32, &format!("{op}.f32 %o, %a, %b;"), &a, &b, |x, y| extreme(F32, x, y, greater, false));
        binary(F32, &format!("{op}.NaN.f32 %o, %a, %b;"), &a, &b, |x, y| extreme(F32, x, y, greater, true));
        binary(F32, &format!("{op}.ftz.f32 %o, %a, %b;"), &a, &b, |x, y| {
            extreme(F32, f(x), f(y), greater, false)
        });
        binary(F32, &format!("{op}.ftz.NaN.f32 %o, %a, %b;"), &a, &b, |x, y| {
            extreme(F32, f(x), f(y), greater, true)
        });
        // The sign is the exclusive or of the signs, the magnitude that of the magnitudes.
        binary(F32, &format!("{op}.xorsign.abs.f32 %o, %a, %b;"), &a, &b, |x, y| {
            let sign = F32.sign(x) ^ F32.sign(y);
            extreme(F32, F32.with_sign(x, false), F32.with_sign(y, false), greater, false)
                .map(|z| F32.with_sign(z, sign))
        });
        let (c, d) = pairs64(20_000, 11);
        binary(F64, &format!("{op}.f64 %o, %a, %b;"), &c, &d, |x, y| extreme(F64, x, y, greater, false));
    }
}

/// Relative error allowed, in units of 2^-23, where the result is normal; denormal results may be flushed.
fn near(text: &str, a: &[u32], bound: f64, exact: impl Fn(f64) -> f64) {
    for (&x, found) in a.iter().zip(map1::<u32, u32>(text, a)) {
        let (x, found) = (f32::from_bits(x), f32::from_bits(found));
        let wanted = exact(f64::from(x));
        let narrow = wanted as f32;
        let right = if narrow.is_nan() {
            found.is_nan()
        } else if narrow.is_infinite() || found.is_infinite() {
            found == narrow || (wanted.abs() > f64::from(f32::MAX) * (1.0 - 1e-6) && found.abs() >= f32::MAX)
        } else if wanted.abs() < f64::from(f32::MIN_POSITIVE) {
            f64::from(found.abs()) <= f64::from(f32::MIN_POSITIVE) * (1.0 + 1e-6)
        } else {
            ((f64::from(found) - wanted) / wanted).abs() <= bound * 2f64.powi(-23)
        };
        assert!(right, "{text}: {x:e} gives {found:e}, exactly {wanted:e}");
    }
}

#[test]
fn approximations_are_as_close_as_the_manual_says() {
    let mut random = Random::new(12);
    let mut any: Vec<u32> = (0..40_000).map(|_| random.f32().to_bits()).collect();
    any.extend_from_slice(&EDGES32);
    let normal: Vec<u32> = any.iter().copied().filter(|&x| !F32.is_denormal(x.into())).collect();
    near("rcp.approx.f32 %o, %a;", &normal, 2.0, |x| 1.0 / x);
    near("rcp.approx.ftz.f32 %o, %a;", &normal, 2.0, |x| 1.0 / x);
    near("sqrt.approx.f32 %o, %a;", &normal, 4.0, f64::sqrt);
    near("sqrt.approx.ftz.f32 %o, %a;", &normal, 4.0, f64::sqrt);
    near("rsqrt.approx.f32 %o, %a;", &normal, 3.0, |x| if x == 0.0 { x.recip() } else { 1.0 / x.sqrt() });
    near("ex2.approx.f32 %o, %a;", &any, 4.0, f64::exp2);
    near("ex2.approx.ftz.f32 %o, %a;", &normal, 4.0, f64::exp2);
    near("tanh.approx.f32 %o, %a;", &normal, 2048.0 * 1.1, f64::tanh);
    // lg2 is bounded absolutely near 1 and relatively elsewhere.
    for (&x, found) in normal.iter().zip(map1::<u32, u32>("lg2.approx.f32 %o, %a;", &normal)) {
        let (x, found) = (f32::from_bits(x), f32::from_bits(found));
        let wanted = f64::from(x).log2();
        let right = if wanted.is_nan() {
            found.is_nan()
        } else if wanted.is_infinite() {
            f64::from(found) == wanted
        } else {
            (f64::from(found) - wanted).abs() <= 2f64.powi(-21) * wanted.abs().max(0.5)
        };
        assert!(right, "lg2 {x:e} gives {found:e}, exactly {wanted:e}");
    }
    // Angles within one turn; absolute error.
    let angles: Vec<u32> =
        (0..10_000).map(|_| ((random.below(1 << 20) as f32 / 1e6 - 0.5) * 6.25).to_bits()).collect();
    for (op, exact) in [("sin", f64::sin as fn(f64) -> f64), ("cos", f64::cos)] {
        let text = format!("{op}.approx.f32 %o, %a;");
        for (&x, found) in angles.iter().zip(map1::<u32, u32>(&text, &angles)) {
            let (x, found) = (f64::from(f32::from_bits(x)), f64::from(f32::from_bits(found)));
            assert!((found - exact(x)).abs() <= 2f64.powi(-20), "{text} {x} gives {found}");
        }
    }
}

#[test]
fn approximations_of_special_values() {
    let values = [0u32, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xbf80_0000];
    let run = |text: &str| -> Vec<u32> { map1(text, &values) };
    let (zero, minus_zero, inf, minus_inf, nan) =
        (0u32, 0x8000_0000u32, 0x7f80_0000u32, 0xff80_0000u32, u32::MAX);
    let table: [(&str, [u32; 6]); 7] = [
        ("rcp.approx.f32 %o, %a;", [inf, minus_inf, zero, minus_zero, nan, 0xbf80_0000]),
        ("rsqrt.approx.f32 %o, %a;", [inf, minus_inf, zero, nan, nan, nan]),
        ("sqrt.approx.f32 %o, %a;", [zero, minus_zero, inf, nan, nan, nan]),
        ("ex2.approx.f32 %o, %a;", [0x3f80_0000, 0x3f80_0000, inf, zero, nan, 0x3f00_0000]),
        ("lg2.approx.f32 %o, %a;", [minus_inf, minus_inf, inf, nan, nan, nan]),
        ("tanh.approx.f32 %o, %a;", [zero, minus_zero, 0x3f80_0000, 0xbf80_0000, nan, u32::MAX - 1]),
        ("sin.approx.f32 %o, %a;", [zero, minus_zero, nan, nan, nan, u32::MAX - 1]),
    ];
    for (text, wanted) in table {
        for ((found, wanted), value) in run(text).into_iter().zip(wanted).zip(values) {
            match wanted {
                u32::MAX => assert!(F32.is_nan(found.into()), "{text} {value:x} gives {found:x}"),
                w if w == u32::MAX - 1 => {}
                w => assert_eq!(found, w, "{text} {value:x}"),
            }
        }
    }
}

#[test]
fn approximate_division_is_close() {
    let mut random = Random::new(13);
    let mut one = || ((random.f64().abs().log2() / 40.0).exp2() as f32, random.u32());
    let a: Vec<u32> = (0..20_000)
        .map(|_| one())
        .map(|(x, s)| if x.is_normal() { x } else { 1.5 }.to_bits() ^ s & 1 << 31)
        .collect();
    let b: Vec<u32> =
        (0..20_000).map(|_| one()).map(|(x, _)| if x.is_normal() { x } else { 0.75 }.to_bits()).collect();
    for text in ["div.approx.f32 %o, %a, %b;", "div.full.f32 %o, %a, %b;", "div.approx.ftz.f32 %o, %a, %b;"] {
        for ((&x, &y), found) in a.iter().zip(&b).zip(map2::<u32, u32, u32>(text, &a, &b)) {
            let exact = f64::from(f32::from_bits(x)) / f64::from(f32::from_bits(y));
            let error = ((f64::from(f32::from_bits(found)) - exact) / exact).abs();
            assert!(error <= 2f64.powi(-22), "{text} {x:x} {y:x}: {error:e}");
        }
    }
}

#[test]
fn approximations_of_f64_keep_the_upper_bits() {
    let mut random = Random::new(14);
    let a: Vec<u64> = (0..10_000)
        .map(|_| {
            (1.0 + random.below(1 << 30) as f64 / 2f64.powi(30)) * 2f64.powi(random.below(600) as i32 - 300)
        })
        .map(f64::to_bits)
        .collect();
    for (text, exact) in [
        ("rcp.approx.ftz.f64 %o, %a;", (|x| 1.0 / x) as fn(f64) -> f64),
        ("rsqrt.approx.ftz.f64 %o, %a;", |x| 1.0 / x.sqrt()),
        ("rsqrt.approx.f64 %o, %a;", |x| 1.0 / x.sqrt()),
    ] {
        for (&x, found) in a.iter().zip(map1::<u64, u64>(text, &a)) {
            let wanted = exact(f64::from_bits(x));
            let error = ((f64::from_bits(found) - wanted) / wanted).abs();
            assert!(error <= 2f64.powi(-20), "{text} {x:x}: {error:e}");
        }
    }
}

#[test]
fn literals_are_exact() {
    let a = [0u32; 1];
    let run = |text: &str| -> u32 { map1::<u32, u32>(text, &a)[0] };
    assert_eq!(run("mov.f32 %o, 0f3F800001;"), 0x3f80_0001);
    assert_eq!(run("mov.f32 %o, 0fFF800000;"), 0xff80_0000);
    assert_eq!(run("mov.f32 %o, 0F7fffffff;"), 0x7fff_ffff);
    assert_eq!(run("mov.f32 %o, 0.1;"), 0.1f32.to_bits());
    assert_eq!(run("mov.f32 %o, 1.5e3;"), 1500f32.to_bits());
    assert_eq!(run("mov.b32 %o, 0f40490FDB;"), 0x4049_0fdb);
    let run = |text: &str| -> u64 { map1::<u64, u64>(text, &[0u64])[0] };
    assert_eq!(run("mov.f64 %o, 0d3FF0000000000001;"), 0x3ff0_0000_0000_0001);
    assert_eq!(run("mov.f64 %o, 0.1;"), 0.1f64.to_bits());
}
