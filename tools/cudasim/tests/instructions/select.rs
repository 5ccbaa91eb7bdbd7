//! Comparisons, selections, tests and signs.

use std::cmp::Ordering;

use crate::harness::{Element, check2, check3, map1, map2, map3};
use crate::random::{EDGES32, EDGES64, Random};
use crate::soft::{BF16, F16, F32, F64, Format};

macro_rules! cast {
    ($values:expr, $t:ty) => {
        $values.iter().map(|&v| v as $t).collect::<Vec<$t>>()
    };
}

/// Pairs with many equal ones.
fn pairs(bits: u32, n: usize, seed: u64) -> (Vec<u64>, Vec<u64>) {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| {
            let a = random.integer(bits);
            (a, if random.below(4) == 0 { a } else { random.integer(bits) })
        })
        .unzip()
}

fn check_setp<T: Element + std::fmt::Debug>(text: &str, a: &[T], b: &[T], expected: impl Fn(T, T) -> bool) {
    let text = format!(".reg .pred p; {text} selp.u32 %o, 1, 0, p;");
    check2(&text, a, b, |x, y| u32::from(expected(x, y)));
}

/// What a comparison says of an order.
type Says = fn(Ordering) -> bool;

const INTEGER: [(&str, Says); 6] = [
    ("eq", Ordering::is_eq),
    ("ne", Ordering::is_ne),
    ("lt", Ordering::is_lt),
    ("le", Ordering::is_le),
    ("gt", Ordering::is_gt),
    ("ge", Ordering::is_ge),
];

#[test]
fn integers_compare_by_their_type() {
    let (a, b) = pairs(64, 4096, 1);
    macro_rules! compare {
        ($($t:ty, $tn:literal);*) => {$(
            let (x, y) = (cast!(a, $t), cast!(b, $t));
            for (op, holds) in INTEGER {
                check_setp(&format!("setp.{op}.{} p, %a, %b;", $tn), &x, &y, |x: $t, y: $t| holds(x.cmp(&y)));
            }
        )*};
    }
    compare!(u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64");
    let (x, y) = (cast!(a, u32), cast!(b, u32));
    for (op, same) in [("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")] {
        let holds = INTEGER.iter().find(|i| i.0 == same).unwrap().1;
        check_setp(&format!("setp.{op}.u32 p, %a, %b;"), &x, &y, |x: u32, y: u32| holds(x.cmp(&y)));
        check_setp(&format!("setp.{op}.u64 p, %a, %b;"), &a, &b, |x: u64, y: u64| holds(x.cmp(&y)));
    }
    check_setp("setp.eq.b32 p, %a, %b;", &x, &y, |x: u32, y: u32| x == y);
    check_setp("setp.ne.b64 p, %a, %b;", &a, &b, |x: u64, y: u64| x != y);
    check_setp("setp.eq.b16 p, %a, %b;", &cast!(a, u16), &cast!(b, u16), |x: u16, y: u16| x == y);
}

/// Order of two floats, `None` when one is NaN.
fn order(f: Format, x: u64, y: u64) -> Option<Ordering> {
    let key = |v: u64| {
        let magnitude = (v & !(1 << (f.bits() - 1))) as i128;
        if f.sign(v) { -magnitude } else { magnitude }
    };
    (!f.is_nan(x) && !f.is_nan(y)).then(|| key(x).cmp(&key(y)))
}

fn check_floats<T: Element + Into<u64> + std::fmt::Debug>(
    f: Format,
    name: &str,
    a: &[T],
    b: &[T],
    flush: bool,
) {
    let prefix = if flush { "ftz." } else { "" };
    let value = |x: T| if flush { f.flush(x.into()) } else { x.into() };
    for (op, holds) in INTEGER {
        check_setp(&format!("setp.{op}.{prefix}{name} p, %a, %b;"), a, b, |x, y| {
            order(f, value(x), value(y)).is_some_and(holds)
        });
        // The unordered forms also hold for NaN.
        check_setp(&format!("setp.{op}u.{prefix}{name} p, %a, %b;"), a, b, |x, y| {
            order(f, value(x), value(y)).is_none_or(holds)
        });
    }
    check_setp(&format!("setp.num.{prefix}{name} p, %a, %b;"), a, b, |x, y| {
        order(f, x.into(), y.into()).is_some()
    });
    check_setp(&format!("setp.nan.{prefix}{name} p, %a, %b;"), a, b, |x, y| {
        order(f, x.into(), y.into()).is_none()
    });
}

fn all_pairs<T: Copy>(edges: &[T], mut more: impl FnMut() -> (T, T)) -> (Vec<T>, Vec<T>) {
    let mut out: Vec<(T, T)> = edges.iter().flat_map(|&x| edges.iter().map(move |&y| (x, y))).collect();
    out.extend((0..4000).map(|_| more()));
    out.into_iter().unzip()
}

#[test]
fn floats_compare_ordered_and_unordered() {
    let mut random = Random::new(2);
    let (a, b) = all_pairs(&EDGES32, || {
        let x = random.f32().to_bits();
        (x, if random.below(3) == 0 { x } else { random.f32().to_bits() })
    });
    check_floats(F32, "f32", &a, &b, false);
    check_floats(F32, "f32", &a, &b, true);
    let (a, b) = all_pairs(&EDGES64, || (random.f64().to_bits(), random.f64().to_bits()));
    check_floats(F64, "f64", &a, &b, false);
    let edges: [u16; 14] =
        [0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x3c00, 0xbc00, 0x7bff, 0x7c00, 0xfc00, 0x7e00, 0x7f80, 0x7fc0];
    let (a, b) = all_pairs(&edges, || (random.u32() as u16, random.u32() as u16));
    check_floats(F16, "f16", &a, &b, false);
    check_floats(F16, "f16", &a, &b, true);
    check_floats(BF16, "bf16", &a, &b, false);
}

#[test]
fn pairs_compare_into_two_predicates() {
    let mut random = Random::new(3);
    let a: Vec<u32> = (0..8192).map(|_| random.u32()).collect();
    let b: Vec<u32> = a.iter().map(|&x| if random.below(3) == 0 { x } else { random.u32() }).collect();
    for (f, name) in [(F16, "f16x2"), (BF16, "bf16x2")] {
        for (op, holds) in INTEGER {
            let text = format!(
                ".reg .pred p, q; .reg .b32 t; setp.{op}.{name} p|q, %a, %b; selp.u32 %o, 1, 0, p; selp.u32 t, 2, 0, q; or.b32 %o, %o, t;"
            );
            check2(&text, &a, &b, |x: u32, y: u32| {
                let low = order(f, (x & 0xffff).into(), (y & 0xffff).into()).is_some_and(holds);
                let high = order(f, (x >> 16).into(), (y >> 16).into()).is_some_and(holds);
                u32::from(low) | u32::from(high) << 1
            });
        }
    }
}

/// How two predicates become one.
type Combine = fn(bool, bool) -> bool;

#[test]
fn a_comparison_combines_with_a_predicate() {
    let (a, b) = pairs(32, 4096, 4);
    let (x, y) = (cast!(a, i32), cast!(b, i32));
    let and: Combine = |a, b| a & b;
    for (op, f) in [("and", and), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)] {
        for (not, negate) in [("", false), ("!", true)] {
            let text = format!(
                ".reg .pred p, q, r; .reg .b32 t; setp.ge.s32 r, %a, 0; setp.lt.{op}.s32 p|q, %a, %b, {not}r; \
                 selp.u32 %o, 1, 0, p; selp.u32 t, 2, 0, q; or.b32 %o, %o, t;"
            );
            check2(&text, &x, &y, |x: i32, y: i32| {
                let r = (x >= 0) ^ negate;
                // The second predicate combines the opposite comparison.
                u32::from(f(x < y, r)) | u32::from(f(x >= y, r)) << 1
            });
        }
    }
}

#[test]
fn set_writes_all_ones_or_one() {
    let mut random = Random::new(5);
    let (a, b) = all_pairs(&EDGES32, || (random.f32().to_bits(), random.f32().to_bits()));
    let less = |x: u32, y: u32| order(F32, x.into(), y.into()).is_some_and(Ordering::is_lt);
    check2("set.lt.u32.f32 %o, %a, %b;", &a, &b, |x: u32, y: u32| if less(x, y) { u32::MAX } else { 0 });
    check2("set.lt.s32.f32 %o, %a, %b;", &a, &b, |x: u32, y: u32| if less(x, y) { u32::MAX } else { 0 });
    check2(
        "set.lt.f32.f32 %o, %a, %b;",
        &a,
        &b,
        |x: u32, y: u32| if less(x, y) { 1f32.to_bits() } else { 0 },
    );
    check2("set.gt.f32.s32 %o, %a, %b;", &cast!(a, i32), &cast!(b, i32), |x: i32, y: i32| {
        if x > y { 1f32.to_bits() } else { 0 }
    });
    check2("set.geu.u32.f32 %o, %a, %b;", &a, &b, |x: u32, y: u32| {
        if order(F32, x.into(), y.into()).is_none_or(Ordering::is_ge) { u32::MAX } else { 0 }
    });
    let (h, k): (Vec<u16>, Vec<u16>) = (0..8192).map(|_| (random.u32() as u16, random.u32() as u16)).unzip();
    let less = |f: Format, x: u32, y: u32| order(f, x.into(), y.into()).is_some_and(Ordering::is_lt);
    check2(
        "set.lt.f16.f16 %o, %a, %b;",
        &h,
        &k,
        |x: u16, y: u16| if less(F16, x.into(), y.into()) { 0x3c00u16 } else { 0 },
    );
    check2(
        "set.lt.u16.f16 %o, %a, %b;",
        &h,
        &k,
        |x: u16, y: u16| {
            if less(F16, x.into(), y.into()) { u16::MAX } else { 0 }
        },
    );
    let pairs =
        |v: &[u16]| -> Vec<u32> { v.chunks(2).map(|p| u32::from(p[0]) | u32::from(p[1]) << 16).collect() };
    let (p, q) = (pairs(&h), pairs(&k));
    check2("set.lt.f16x2.f16x2 %o, %a, %b;", &p, &q, |x: u32, y: u32| {
        (if less(F16, x & 0xffff, y & 0xffff) { 0x3c00 } else { 0u32 })
            | if less(F16, x >> 16, y >> 16) { 0x3c00_0000 } else { 0 }
    });
    check2("set.lt.u32.bf16x2 %o, %a, %b;", &p, &q, |x: u32, y: u32| {
        (if less(BF16, x & 0xffff, y & 0xffff) { 0xffff } else { 0u32 })
            | if less(BF16, x >> 16, y >> 16) { 0xffff_0000 } else { 0 }
    });
}

#[test]
fn selections_of_every_width() {
    let (a, b) = pairs(64, 2048, 6);
    let c: Vec<i32> = b.iter().map(|&v| (v as i32).wrapping_mul(77)).collect();
    macro_rules! select {
        ($t:ty, $($tn:literal),*) => {$(
            let (x, y) = (cast!(a, $t), cast!(b, $t));
            let text = concat!(".reg .pred p; setp.lt.s32 p, %c, 0; selp.", $tn, " %o, %a, %b, p;");
            check3(text, &x, &y, &c, |x: $t, y: $t, c: i32| if c < 0 { x } else { y });
            check3(concat!("slct.", $tn, ".s32 %o, %a, %b, %c;"), &x, &y, &c, |x: $t, y: $t, c: i32| {
                if c >= 0 { x } else { y }
            });
        )*};
    }
    select!(u16, "b16", "u16", "s16");
    select!(u32, "b32", "u32", "s32", "f32");
    select!(u64, "b64", "u64", "s64", "f64");
    let mut floats = EDGES32.to_vec();
    floats.resize(2048, 0x8000_0000);
    let (x, y) = (cast!(a, u32), cast!(b, u32));
    let not_less = |c: u32| order(F32, c.into(), 0).is_some_and(Ordering::is_ge);
    check3(
        "slct.u32.f32 %o, %a, %b, %c;",
        &x,
        &y,
        &floats,
        |x: u32, y: u32, c: u32| if not_less(c) { x } else { y },
    );
    check3("slct.ftz.u32.f32 %o, %a, %b, %c;", &x, &y, &floats, |x: u32, y: u32, c: u32| {
        if not_less(F32.flush(c.into()) as u32) { x } else { y }
    });
}

#[test]
fn floats_are_classified() {
    let mut random = Random::new(7);
    let mut a = EDGES32.to_vec();
    a.extend((0..2000).map(|_| random.f32().to_bits()));
    let mut b = EDGES64.to_vec();
    b.extend((0..2000).map(|_| random.f64().to_bits()));
    let classes = |f: Format, x: u64| {
        let magnitude = f.with_sign(x, false);
        let infinite = magnitude == f.infinity(false);
        let nan = f.is_nan(x);
        let subnormal = f.is_denormal(x);
        let zero = magnitude == 0;
        [
            ("finite", !infinite && !nan),
            ("infinite", infinite),
            ("number", !nan),
            ("notanumber", nan),
            ("normal", !infinite && !nan && !subnormal && !zero),
            ("subnormal", subnormal),
        ]
    };
    for i in 0..6 {
        let name = classes(F32, 0)[i].0;
        let text = |t: &str| format!(".reg .pred p; testp.{name}.{t} p, %a; selp.u32 %o, 1, 0, p;");
        for (&x, found) in a.iter().zip(map1::<u32, u32>(&text("f32"), &a)) {
            assert_eq!(found == 1, classes(F32, x.into())[i].1, "testp.{name}.f32 {x:x}");
        }
        for (&x, found) in b.iter().zip(map1::<u64, u32>(&text("f64"), &b)) {
            assert_eq!(found == 1, classes(F64, x)[i].1, "testp.{name}.f64 {x:x}");
        }
    }
}

#[test]
fn the_sign_of_the_first_goes_to_the_second() {
    let mut random = Random::new(8);
    let a: Vec<u32> = (0..2048).map(|_| random.f32().to_bits()).collect();
    let b: Vec<u32> = (0..2048).map(|_| random.f32().to_bits()).collect();
    for i in map2::<u32, u32, u32>("copysign.f32 %o, %a, %b;", &a, &b).into_iter().enumerate() {
        assert_eq!(i.1, a[i.0] & 1 << 31 | b[i.0] & !(1 << 31));
    }
    let a: Vec<u64> = (0..2048).map(|_| random.f64().to_bits()).collect();
    let b: Vec<u64> = (0..2048).map(|_| random.f64().to_bits()).collect();
    for i in map2::<u64, u64, u64>("copysign.f64 %o, %a, %b;", &a, &b).into_iter().enumerate() {
        assert_eq!(i.1, a[i.0] & 1 << 63 | b[i.0] & !(1 << 63));
    }
}

#[test]
fn predicates_have_logic_of_their_own() {
    let a: Vec<u32> = (0..8).collect();
    let text = ".reg .pred p, q, r, s; .reg .b32 t; and.b32 t, %a, 1; setp.ne.u32 p, t, 0; and.b32 t, %a, 2; \
                setp.ne.u32 q, t, 0; and.b32 t, %a, 4; setp.ne.u32 r, t, 0;";
    let run = |op: &str| -> Vec<u32> { map3(&format!("{text} {op} selp.u32 %o, 1, 0, s;"), &a, &a, &a) };
    for x in 0..8usize {
        let (p, q, r) = (x & 1 != 0, x & 2 != 0, x & 4 != 0);
        assert_eq!(run("and.pred s, p, q;")[x] == 1, p & q);
        assert_eq!(run("or.pred s, p, !q;")[x] == 1, p | !q);
        assert_eq!(run("xor.pred s, q, r;")[x] == 1, q ^ r);
        assert_eq!(run("not.pred s, r;")[x] == 1, !r);
        assert_eq!(run("mov.pred s, q;")[x] == 1, q);
        assert_eq!(run("mov.pred s, p; @!q mov.pred s, r;")[x] == 1, if q { p } else { r });
    }
}
