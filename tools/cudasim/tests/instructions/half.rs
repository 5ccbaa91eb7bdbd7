//! f16, bf16 and their pairs: unary operations on every pattern, the others on a large set.

use crate::harness::{map1, map2, map3};
use crate::random::Random;
use crate::soft::{self, BF16, F16, Format, Round};

fn all() -> Vec<u16> {
    (0..=u16::MAX).collect()
}

/// Edges of both formats beside random patterns and ones of like magnitude.
fn sample(n: usize, seed: u64) -> Vec<u16> {
    let mut random = Random::new(seed);
    const EDGES: [u16; 24] = [
        0, 0x8000, 1, 0x8001, 0x03ff, 0x0400, 0x0401, 0x3c00, 0xbc00, 0x3bff, 0x3c01, 0x7bff, 0xfbff, 0x7c00,
        0xfc00, 0x7e00, 0x7c01, 0x7fff, 0x3f80, 0xbf80, 0x7f80, 0xff80, 0x7f7f, 0x0080,
    ];
    (0..n)
        .map(|_| match random.below(4) {
            0 => EDGES[random.below(24) as usize],
            1 => (random.u32() & 0x83ff | (12 + random.below(6)) << 10) as u16,
            _ => random.u32() as u16,
        })
        .collect()
}

#[track_caller]
fn same(f: Format, what: &str, operands: &[u16], found: u16, wanted: Option<u64>) {
    let right = match wanted {
        Some(wanted) => u64::from(found) == wanted,
        None => f.is_nan(found.into()),
    };
    assert!(right, "{what}: {operands:x?} gives {found:#x}, not {wanted:x?}");
}

fn saturate(f: Format, x: Option<u64>) -> Option<u64> {
    let x = x.unwrap_or(0);
    Some(if f.sign(x) { 0 } else { x.min(f.one()) })
}

type Binary = fn(Format, u64, u64, Round) -> Option<u64>;

/// Checks the scalar and the pair form of a binary operation.
fn binary(
    f: Format,
    op: &str,
    scalar: &str,
    a: &[u16],
    b: &[u16],
    expected: impl Fn(u64, u64) -> Option<u64>,
) {
    let text = format!("{op}.{scalar} %o, %a, %b;");
    let found: Vec<u16> = map2(&text, a, b);
    for i in 0..a.len() {
        same(f, &text, &[a[i], b[i]], found[i], expected(a[i].into(), b[i].into()));
    }
    let text = format!("{op}.{scalar}x2 %o, %a, %b;");
    let pair = |v: &[u16]| -> Vec<u32> {
        v.chunks_exact(2).map(|p| u32::from(p[1]) << 16 | u32::from(p[0])).collect()
    };
    let found: Vec<u32> = map2(&text, &pair(a), &pair(b));
    for i in 0..found.len() * 2 {
        let half = (found[i / 2] >> (16 * (i % 2))) as u16;
        same(f, &text, &[a[i], b[i]], half, expected(a[i].into(), b[i].into()));
    }
}

fn ternary(
    f: Format,
    op: &str,
    scalar: &str,
    [a, b, c]: [&[u16]; 3],
    expected: impl Fn(u64, u64, u64) -> Option<u64>,
) {
    let text = format!("{op}.{scalar} %o, %a, %b, %c;");
    let found: Vec<u16> = map3(&text, a, b, c);
    let wanted = |i: usize| expected(a[i].into(), b[i].into(), c[i].into());
    for i in 0..a.len() {
        same(f, &text, &[a[i], b[i], c[i]], found[i], wanted(i));
    }
    let text = format!("{op}.{scalar}x2 %o, %a, %b, %c;");
    let pair = |v: &[u16]| -> Vec<u32> {
        v.chunks_exact(2).map(|p| u32::from(p[1]) << 16 | u32::from(p[0])).collect()
    };
    let found: Vec<u32> = map3(&text, &pair(a), &pair(b), &pair(c));
    for i in 0..found.len() * 2 {
        let half = (found[i / 2] >> (16 * (i % 2))) as u16;
        same(f, &text, &[a[i], b[i], c[i]], half, wanted(i));
    }
}

const N: usize = 200_000;

#[test]
fn f16_sums_and_products_are_rounded_once() {
    let (a, b) = (sample(N, 1), sample(N, 2));
    let ops: [(&str, Binary); 3] = [("add", soft::add), ("sub", soft::sub), ("mul", soft::mul)];
    for (op, exact) in ops {
        binary(F16, op, "f16", &a, &b, |x, y| exact(F16, x, y, Round::Rn));
        binary(F16, &format!("{op}.rn"), "f16", &a, &b, |x, y| exact(F16, x, y, Round::Rn));
        binary(F16, &format!("{op}.sat"), "f16", &a, &b, |x, y| saturate(F16, exact(F16, x, y, Round::Rn)));
        binary(F16, &format!("{op}.ftz"), "f16", &a, &b, |x, y| {
            exact(F16, F16.flush(x), F16.flush(y), Round::Rn).map(|z| F16.flush(z))
        });
    }
}

#[test]
fn f16_fma_is_rounded_once() {
    let (a, b) = (sample(N, 3), sample(N, 4));
    let mut random = Random::new(5);
    // Half of the addends nearly cancel the product or sit far below it, where two roundings differ from one.
    let c: Vec<u16> = (0..N)
        .map(|i| match soft::mul(F16, a[i].into(), b[i].into(), Round::Rz) {
            Some(p) if random.below(2) == 0 => (p ^ 0x8000) as u16 ^ random.below(4) as u16,
            Some(p) if random.below(2) == 0 => {
                (p as u16 & 0x7fff).saturating_sub((10 + random.below(4) as u16) << 10)
            }
            _ => random.u32() as u16,
        })
        .collect();
    let abc = [&a[..], &b, &c];
    ternary(F16, "fma.rn", "f16", abc, |x, y, z| soft::fma(F16, x, y, z, Round::Rn));
    ternary(F16, "fma.rn.sat", "f16", abc, |x, y, z| saturate(F16, soft::fma(F16, x, y, z, Round::Rn)));
    ternary(F16, "fma.rn.ftz", "f16", abc, |x, y, z| {
        soft::fma(F16, F16.flush(x), F16.flush(y), F16.flush(z), Round::Rn).map(|r| F16.flush(r))
    });
    ternary(F16, "fma.rn.relu", "f16", abc, |x, y, z| {
        // Negative results become +0; NaN stays NaN.
        soft::fma(F16, x, y, z, Round::Rn).map(|r| if F16.sign(r) { 0 } else { r })
    });
}

#[test]
fn bf16_operations_are_rounded_once() {
    let (a, b) = (sample(N, 6), sample(N, 7));
    let c: Vec<u16> = sample(N, 8);
    ternary(BF16, "fma.rn", "bf16", [&a, &b, &c], |x, y, z| soft::fma(BF16, x, y, z, Round::Rn));
    ternary(BF16, "fma.rn.relu", "bf16", [&a, &b, &c], |x, y, z| {
        soft::fma(BF16, x, y, z, Round::Rn).map(|r| if BF16.sign(r) { 0 } else { r })
    });
    let mut random = Random::new(9);
    let near: Vec<u16> = (0..N)
        .map(|i| match soft::mul(BF16, a[i].into(), b[i].into(), Round::Rz) {
            Some(p) => (p ^ 0x8000) as u16 ^ random.below(4) as u16,
            None => random.u32() as u16,
        })
        .collect();
    ternary(BF16, "fma.rn", "bf16", [&a, &b, &near], |x, y, z| soft::fma(BF16, x, y, z, Round::Rn));
    let ops: [(&str, Binary); 3] = [("add", soft::add), ("sub", soft::sub), ("mul", soft::mul)];
    for (op, exact) in ops {
        binary(BF16, op, "bf16", &a, &b, |x, y| exact(BF16, x, y, Round::Rn));
    }
}

fn extreme(f: Format, x: u64, y: u64, greater: bool, nan: bool) -> Option<u64> {
    match (f.is_nan(x), f.is_nan(y)) {
        (true, true) => return None,
        (true, false) => return if nan { None } else { Some(y) },
        (false, true) => return if nan { None } else { Some(x) },
        _ => {}
    }
    let key = |v: u64| if f.sign(v) { -((v & 0x7fff) as i64) - 1 } else { v as i64 };
    Some(if (key(x) < key(y)) != greater { x } else { y })
}

#[test]
fn minimum_and_maximum_of_halves() {
    let (a, b) = (sample(N, 10), sample(N, 11));
    for (f, name) in [(F16, "f16"), (BF16, "bf16")] {
        for (op, greater) in [("min", false), ("max", true)] {
            binary(f, op, name, &a, &b, |x, y| extreme(f, x, y, greater, false));
            binary(f, &format!("{op}.NaN"), name, &a, &b, |x, y| extreme(f, x, y, greater, true));
            binary(f, &format!("{op}.xorsign.abs"), name, &a, &b, |x, y| {
                let sign = f.sign(x) ^ f.sign(y);
                extreme(f, x & 0x7fff, y & 0x7fff, greater, false).map(|z| f.with_sign(z, sign))
            });
        }
    }
    binary(F16, "max.ftz", "f16", &a, &b, |x, y| extreme(F16, F16.flush(x), F16.flush(y), true, false));
}

#[test]
fn signs_of_every_half() {
    let a = all();
    for (f, name) in [(F16, "f16"), (BF16, "bf16")] {
        let text = format!("neg.{name} %o, %a;");
        for (&x, found) in a.iter().zip(map1::<u16, u16>(&text, &a)) {
            same(f, &text, &[x], found, (!f.is_nan(x.into())).then(|| u64::from(x ^ 0x8000)));
        }
        let text = format!("abs.{name} %o, %a;");
        for (&x, found) in a.iter().zip(map1::<u16, u16>(&text, &a)) {
            same(f, &text, &[x], found, (!f.is_nan(x.into())).then(|| u64::from(x & 0x7fff)));
        }
        let text = format!("neg.{name}x2 %o, %a;");
        let pairs: Vec<u32> = a.iter().map(|&x| u32::from(x) << 16 | u32::from(!x)).collect();
        for (&x, found) in pairs.iter().zip(map1::<u32, u32>(&text, &pairs)) {
            for shift in [0, 16] {
                let half = (x >> shift) as u16;
                same(
                    f,
                    &text,
                    &[half],
                    (found >> shift) as u16,
                    (!f.is_nan(half.into())).then(|| u64::from(half ^ 0x8000)),
                );
            }
        }
    }
}

/// The value of a half as f64, which holds it exactly.
fn value(f: Format, bits: u16) -> f64 {
    let wide = soft::convert(f, soft::F64, bits.into(), Round::Rn);
    wide.map_or(f64::NAN, f64::from_bits)
}

/// The exact function.
type Exact = fn(f64) -> f64;

#[test]
fn exponential_and_tangent_of_every_half_are_close() {
    let a = all();
    // Maximum relative error by the manual, and its absolute floor where results are denormal.
    let cases: [(&str, Format, Exact, f64); 4] = [
        ("ex2.approx.f16", F16, f64::exp2, 2f64.powf(-9.9)),
        ("tanh.approx.f16", F16, f64::tanh, 2f64.powf(-10.987) + 2f64.powi(-11)),
        ("ex2.approx.ftz.bf16", BF16, f64::exp2, 2f64.powi(-7)),
        ("tanh.approx.bf16", BF16, f64::tanh, 2f64.powi(-8) + 2f64.powi(-9)),
    ];
    for (op, f, exact, bound) in cases {
        let text = format!("{op} %o, %a;");
        let tiny = if f == F16 { 2f64.powi(-14) } else { 2f64.powi(-126) };
        let largest = value(f, f.largest(false) as u16);
        for (&x, found) in a.iter().zip(map1::<u16, u16>(&text, &a)) {
            let (x, found) = (value(f, x), value(f, found));
            let wanted = exact(x);
            let right = if wanted.is_nan() {
                found.is_nan()
            } else if wanted > largest {
                found >= largest
            } else if wanted.abs() < tiny {
                found.abs() <= tiny * 1.01
            } else {
                (found - wanted).abs() <= bound * wanted.abs()
            };
            assert!(right, "{text} {x:e} gives {found:e}, exactly {wanted:e}");
        }
    }
}

#[test]
fn nan_results_are_canonical() {
    let (a, b) = ([0x7c01u16, 0xfe00, 0x7c00], [0x3c00u16, 0x3c00, 0xfc00]);
    assert_eq!(map2::<u16, u16, u16>("add.f16 %o, %a, %b;", &a, &b), [0x7fff; 3]);
    assert_eq!(map2::<u16, u16, u16>("fma.rn.f16 %o, %a, %b, %b;", &a, &b)[..2], [0x7fff; 2]);
    let (a, b) = ([0x7f81u16, 0xffc0], [0x3f80u16, 0x3f80]);
    assert_eq!(map2::<u16, u16, u16>("fma.rn.bf16 %o, %a, %b, %b;", &a, &b), [0x7fff; 2]);
}
