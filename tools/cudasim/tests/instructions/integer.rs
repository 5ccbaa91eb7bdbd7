//! Integer arithmetic, logic, shifts and bit fields.

use crate::harness::{check1, check2, check3, map2, map3, map4};
use crate::random::Random;

/// Interesting values of every width.
fn values(bits: u32, n: usize, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.integer(bits)).collect()
}

macro_rules! cast {
    ($values:expr, $t:ty) => {
        $values.iter().map(|&v| v as $t).collect::<Vec<$t>>()
    };
}

macro_rules! binary {
    ($($name:ident: $t:ty, $ptx:literal, $bits:literal;)*) => {$(
        #[test]
        fn $name() {
            let a = cast!(values($bits, 8192, 1), $t);
            let b = cast!(values($bits, 8192, 2), $t);
            let ins = |op: &str| format!("{op}.{} %o, %a, %b;", $ptx);
            check2(&ins("add"), &a, &b, |x: $t, y: $t| x.wrapping_add(y));
            check2(&ins("sub"), &a, &b, |x: $t, y: $t| x.wrapping_sub(y));
            check2(&ins("mul.lo"), &a, &b, |x: $t, y: $t| x.wrapping_mul(y));
            check2(&ins("mul.hi"), &a, &b, |x: $t, y: $t| ((x as i128 * y as i128) >> $bits) as $t);
            check2(&ins("min"), &a, &b, |x: $t, y: $t| x.min(y));
            check2(&ins("max"), &a, &b, |x: $t, y: $t| x.max(y));
            let divisors: Vec<$t> = b.iter().map(|&y| if y == 0 { 1 } else { y }).collect();
            check2(&ins("div"), &a, &divisors, |x: $t, y: $t| x.wrapping_div(y));
            check2(&ins("rem"), &a, &divisors, |x: $t, y: $t| x.wrapping_rem(y));
            let c = cast!(values($bits, 8192, 3), $t);
            check3(&format!("mad.lo.{} %o, %a, %b, %c;", $ptx), &a, &b, &c, |x: $t, y: $t, z: $t| {
                x.wrapping_mul(y).wrapping_add(z)
            });
            check3(&format!("mad.hi.{} %o, %a, %b, %c;", $ptx), &a, &b, &c, |x: $t, y: $t, z: $t| {
                (((x as i128 * y as i128) >> $bits) as $t).wrapping_add(z)
            });
            check3(&format!("sad.{} %o, %a, %b, %c;", $ptx), &a, &b, &c, |x: $t, y: $t, z: $t| {
                z.wrapping_add(x.abs_diff(y) as $t)
            });
        }
    )*};
}

binary! {
    arithmetic_u16: u16, "u16", 16;
    arithmetic_s16: i16, "s16", 16;
    arithmetic_u32: u32, "u32", 32;
    arithmetic_s32: i32, "s32", 32;
    arithmetic_u64: u64, "u64", 64;
    arithmetic_s64: i64, "s64", 64;
}

#[test]
fn wide_products_keep_every_bit() {
    let (a, b) = (values(32, 8192, 4), values(32, 8192, 5));
    let (u, v) = (cast!(a, u32), cast!(b, u32));
    let (s, t) = (cast!(a, i32), cast!(b, i32));
    let (c, d) = (values(64, 8192, 6), cast!(values(64, 8192, 6), i64));
    check2("mul.wide.u32 %o, %a, %b;", &u, &v, |x: u32, y: u32| u64::from(x) * u64::from(y));
    check2("mul.wide.s32 %o, %a, %b;", &s, &t, |x: i32, y: i32| i64::from(x) * i64::from(y));
    check3("mad.wide.u32 %o, %a, %b, %c;", &u, &v, &c, |x: u32, y: u32, z: u64| {
        (u64::from(x) * u64::from(y)).wrapping_add(z)
    });
    check3("mad.wide.s32 %o, %a, %b, %c;", &s, &t, &d, |x: i32, y: i32, z: i64| {
        (i64::from(x) * i64::from(y)).wrapping_add(z)
    });
    let (h, k) = (cast!(a, u16), cast!(b, u16));
    check2("mul.wide.u16 %o, %a, %b;", &h, &k, |x: u16, y: u16| u32::from(x) * u32::from(y));
    let (h, k) = (cast!(a, i16), cast!(b, i16));
    check2("mul.wide.s16 %o, %a, %b;", &h, &k, |x: i16, y: i16| i32::from(x) * i32::from(y));
    check3("mad.wide.s16 %o, %a, %b, %c;", &h, &k, &s, |x: i16, y: i16, z: i32| {
        (i32::from(x) * i32::from(y)).wrapping_add(z)
    });
}

#[test]
fn products_of_24_bits() {
    let (a, b, c) = (values(32, 8192, 7), values(32, 8192, 8), values(32, 8192, 9));
    let low = |x: u32| u64::from(x & 0xff_ffff);
    let (u, v, w) = (cast!(a, u32), cast!(b, u32), cast!(c, u32));
    check2("mul24.lo.u32 %o, %a, %b;", &u, &v, |x: u32, y: u32| (low(x) * low(y)) as u32);
    check2("mul24.hi.u32 %o, %a, %b;", &u, &v, |x: u32, y: u32| ((low(x) * low(y)) >> 16) as u32);
    check3("mad24.lo.u32 %o, %a, %b, %c;", &u, &v, &w, |x: u32, y: u32, z: u32| {
        ((low(x) * low(y)) as u32).wrapping_add(z)
    });
    let (s, t) = (cast!(a, i32), cast!(b, i32));
    let low = |x: i32| i64::from(x << 8 >> 8);
    check2("mul24.lo.s32 %o, %a, %b;", &s, &t, |x: i32, y: i32| (low(x) * low(y)) as i32);
    check2("mul24.hi.s32 %o, %a, %b;", &s, &t, |x: i32, y: i32| ((low(x) * low(y)) >> 16) as i32);
}

#[test]
fn saturated_sums() {
    let (a, b) = (cast!(values(32, 8192, 10), i32), cast!(values(32, 8192, 11), i32));
    let c = cast!(values(32, 8192, 12), i32);
    check2("add.sat.s32 %o, %a, %b;", &a, &b, |x: i32, y: i32| x.saturating_add(y));
    check2("sub.sat.s32 %o, %a, %b;", &a, &b, |x: i32, y: i32| x.saturating_sub(y));
    check3("mad.hi.sat.s32 %o, %a, %b, %c;", &a, &b, &c, |x: i32, y: i32, z: i32| {
        (((i64::from(x) * i64::from(y)) >> 32) as i32).saturating_add(z)
    });
}

#[test]
fn negation_and_magnitude() {
    let v = values(64, 8192, 13);
    check1("neg.s16 %o, %a;", &cast!(v, i16), |x: i16| x.wrapping_neg());
    check1("neg.s32 %o, %a;", &cast!(v, i32), |x: i32| x.wrapping_neg());
    check1("neg.s64 %o, %a;", &cast!(v, i64), |x: i64| x.wrapping_neg());
    check1("abs.s16 %o, %a;", &cast!(v, i16), |x: i16| x.wrapping_abs());
    check1("abs.s32 %o, %a;", &cast!(v, i32), |x: i32| x.wrapping_abs());
    check1("abs.s64 %o, %a;", &cast!(v, i64), |x: i64| x.wrapping_abs());
}

#[test]
fn logic_of_every_width() {
    let (a, b) = (values(64, 4096, 14), values(64, 4096, 15));
    macro_rules! logic {
        ($t:ty, $suffix:literal) => {
            let (x, y) = (cast!(a, $t), cast!(b, $t));
            check2(concat!("and.", $suffix, " %o, %a, %b;"), &x, &y, |x: $t, y: $t| x & y);
            check2(concat!("or.", $suffix, " %o, %a, %b;"), &x, &y, |x: $t, y: $t| x | y);
            check2(concat!("xor.", $suffix, " %o, %a, %b;"), &x, &y, |x: $t, y: $t| x ^ y);
            check1(concat!("not.", $suffix, " %o, %a;"), &x, |x: $t| !x);
            check1(concat!("cnot.", $suffix, " %o, %a;"), &x, |x: $t| <$t>::from(x == 0));
        };
    }
    logic!(u16, "b16");
    logic!(u32, "b32");
    logic!(u64, "b64");
}

#[test]
fn every_table_of_lop3() {
    // All eight combinations of the inputs' bits occur.
    let a = vec![0xf0f0_1234u32; 1];
    let b = vec![0xcccc_8765u32; 1];
    let c = vec![0xaaaa_55f1u32; 1];
    for table in 0..256u32 {
        check3(&format!("lop3.b32 %o, %a, %b, %c, {table};"), &a, &b, &c, |a: u32, b: u32, c: u32| {
            (0..32).fold(0, |out, i| {
                let index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1;
                out | (table >> index & 1) << i
            })
        });
    }
}

#[test]
fn lop3_with_a_predicate() {
    let (a, b, c) = (
        cast!(values(32, 1024, 16), u32),
        cast!(values(32, 1024, 17), u32),
        cast!(values(32, 1024, 18), u32),
    );
    for (op, combine) in [("or", 0), ("and", 1)] {
        let text = format!(
            ".reg .pred q, p; setp.lt.u32 q, %a, %b; lop3.{op}.b32 %o|p, %a, %b, %c, 0x80, q; selp.u32 %o, 1, 0, p;"
        );
        let found: Vec<u32> = map3(&text, &a, &b, &c);
        for i in 0..a.len() {
            let (nonzero, q) = (a[i] & b[i] & c[i] != 0, a[i] < b[i]);
            let wanted = if combine == 0 { nonzero || q } else { nonzero && q };
            assert_eq!(found[i] == 1, wanted, "{op} {:x} {:x} {:x}", a[i], b[i], c[i]);
        }
    }
}

#[test]
fn shifts_beyond_the_width_clear_or_fill() {
    let a = values(64, 4096, 19);
    let mut random = Random::new(20);
    let n: Vec<u32> = (0..4096).map(|i| if i % 8 == 0 { random.u32() } else { random.below(80) }).collect();
    macro_rules! shifts {
        ($t:ty, $s:ty, $bits:literal, $w:literal) => {
            let (u, s) = (cast!(a, $t), cast!(a, $s));
            check2(
                concat!("shl.b", $w, " %o, %a, %b;"),
                &u,
                &n,
                |x: $t, n: u32| if n >= $bits { 0 } else { x << n },
            );
            check2(
                concat!("shr.u", $w, " %o, %a, %b;"),
                &u,
                &n,
                |x: $t, n: u32| if n >= $bits { 0 } else { x >> n },
            );
            check2(
                concat!("shr.b", $w, " %o, %a, %b;"),
                &u,
                &n,
                |x: $t, n: u32| if n >= $bits { 0 } else { x >> n },
            );
            check2(concat!("shr.s", $w, " %o, %a, %b;"), &s, &n, |x: $s, n: u32| x >> n.min($bits - 1));
        };
    }
    shifts!(u16, i16, 16, "16");
    shifts!(u32, i32, 32, "32");
    shifts!(u64, i64, 64, "64");
}

#[test]
fn funnel_shifts_clamp_or_wrap() {
    let (a, b) = (cast!(values(32, 4096, 21), u32), cast!(values(32, 4096, 22), u32));
    let mut random = Random::new(23);
    let n: Vec<u32> = (0..4096).map(|i| if i % 8 == 0 { random.u32() } else { random.below(70) }).collect();
    let joined = |lo: u32, hi: u32| u64::from(hi) << 32 | u64::from(lo);
    check3("shf.l.clamp.b32 %o, %a, %b, %c;", &a, &b, &n, |lo, hi, n| {
        (joined(lo, hi) << n.min(32) >> 32) as u32
    });
    check3("shf.l.wrap.b32 %o, %a, %b, %c;", &a, &b, &n, |lo, hi, n: u32| {
        (joined(lo, hi) << (n & 31) >> 32) as u32
    });
    check3("shf.r.clamp.b32 %o, %a, %b, %c;", &a, &b, &n, |lo, hi, n| (joined(lo, hi) >> n.min(32)) as u32);
    check3("shf.r.wrap.b32 %o, %a, %b, %c;", &a, &b, &n, |lo, hi, n: u32| {
        (joined(lo, hi) >> (n & 31)) as u32
    });
}

#[test]
fn counting_bits() {
    let v = values(64, 4096, 24);
    let (a, b) = (cast!(v, u32), v.clone());
    check1("popc.b32 %o, %a;", &a, |x: u32| x.count_ones());
    check1("popc.b64 %o, %a;", &b, |x: u64| x.count_ones());
    check1("clz.b32 %o, %a;", &a, |x: u32| x.leading_zeros());
    check1("clz.b64 %o, %a;", &b, |x: u64| x.leading_zeros());
    check1("brev.b32 %o, %a;", &a, |x: u32| x.reverse_bits());
    check1("brev.b64 %o, %a;", &b, |x: u64| x.reverse_bits());
    let find =
        |x: u64, bits: u32| if x == 0 { u32::MAX } else { bits - 1 - (x << (64 - bits)).leading_zeros() };
    check1("bfind.u32 %o, %a;", &a, |x: u32| find(x.into(), 32));
    check1("bfind.u64 %o, %a;", &b, |x: u64| find(x, 64));
    // Of a negative number the highest bit that differs from the sign.
    check1("bfind.s32 %o, %a;", &cast!(v, i32), |x: i32| find(u64::from((x ^ x >> 31) as u32), 32));
    check1("bfind.s64 %o, %a;", &cast!(v, i64), |x: i64| find((x ^ x >> 63) as u64, 64));
    check1(
        "bfind.shiftamt.u32 %o, %a;",
        &a,
        |x: u32| if x == 0 { u32::MAX } else { 31 - find(x.into(), 32) },
    );
    check1("bfind.shiftamt.s64 %o, %a;", &cast!(v, i64), |x: i64| {
        let d = (x ^ x >> 63) as u64;
        if d == 0 { u32::MAX } else { 63 - find(d, 64) }
    });
}

/// `bfe` by the pseudo-code of the manual.
fn bfe(a: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let msb = bits - 1;
    let (pos, len) = (pos & 0xff, len & 0xff);
    let sign = if !signed || len == 0 { 0 } else { a >> (pos + len - 1).min(msb) & 1 };
    (0..=msb).fold(0, |out, i| {
        let bit = if i < len && pos + i <= msb { a >> (pos + i) & 1 } else { sign };
        out | bit << i
    })
}

#[test]
fn bit_fields_are_taken_and_put() {
    let v = values(64, 8192, 25);
    let w = values(64, 8192, 26);
    let mut random = Random::new(27);
    let mut positions =
        || (0..8192).map(|i| if i % 16 == 0 { random.u32() } else { random.below(72) }).collect::<Vec<u32>>();
    let (pos, len) = (positions(), positions());
    check3("bfe.u32 %o, %a, %b, %c;", &cast!(v, u32), &pos, &len, |a: u32, p, l| {
        bfe(a.into(), p, l, 32, false) as u32
    });
    check3("bfe.s32 %o, %a, %b, %c;", &cast!(v, u32), &pos, &len, |a: u32, p, l| {
        bfe(a.into(), p, l, 32, true) as u32
    });
    check3("bfe.u64 %o, %a, %b, %c;", &v, &pos, &len, |a: u64, p, l| bfe(a, p, l, 64, false));
    check3("bfe.s64 %o, %a, %b, %c;", &v, &pos, &len, |a: u64, p, l| bfe(a, p, l, 64, true));
    let bfi = |a: u64, b: u64, pos: u32, len: u32, bits: u32| {
        let (pos, len) = (pos & 0xff, len & 0xff);
        (0..len)
            .take_while(|i| pos + i < bits)
            .fold(b, |f, i| f & !(1 << (pos + i)) | (a >> i & 1) << (pos + i))
    };
    let found: Vec<u32> = map4("bfi.b32 %o, %a, %b, %c, %d;", &cast!(v, u32), &cast!(w, u32), &pos, &len);
    for i in 0..found.len() {
        let wanted = bfi(v[i] & 0xffff_ffff, w[i] & 0xffff_ffff, pos[i], len[i], 32) as u32;
        assert_eq!(found[i], wanted, "bfi.b32 {:x} {:x} {} {}", v[i], w[i], pos[i], len[i]);
    }
    let found: Vec<u64> = map4("bfi.b64 %o, %a, %b, %c, %d;", &v, &w, &pos, &len);
    for i in 0..found.len() {
        assert_eq!(
            found[i],
            bfi(v[i], w[i], pos[i], len[i], 64),
            "bfi.b64 {:x} {:x} {} {}",
            v[i],
            w[i],
            pos[i],
            len[i]
        );
    }
}

#[test]
fn masks_and_sign_extension() {
    let mut random = Random::new(28);
    let a: Vec<u32> = (0..4096).map(|_| random.below(40)).collect();
    let b: Vec<u32> = (0..4096).map(|_| random.below(40)).collect();
    let mask = |a: u32, b: u32| {
        let ones = if b >= 32 { u32::MAX } else { (1 << b) - 1 };
        if a >= 32 { 0 } else { ones << a }
    };
    check2("bmsk.clamp.b32 %o, %a, %b;", &a, &b, mask);
    check2("bmsk.wrap.b32 %o, %a, %b;", &a, &b, |a, b| mask(a & 31, b & 31));
    let v = cast!(values(32, 4096, 29), u32);
    // The number of bits that are kept; the rest repeats the highest of them.
    let extend = |v: u32, n: u32| match n {
        0 => 0,
        32.. => v,
        n => ((v << (32 - n)) as i32 >> (32 - n)) as u32,
    };
    check2("szext.clamp.s32 %o, %a, %b;", &v, &b, extend);
    check2("szext.wrap.s32 %o, %a, %b;", &v, &b, |v, n| extend(v, n & 31));
    check2("szext.clamp.u32 %o, %a, %b;", &v, &b, |v, n| if n >= 32 { v } else { v & ((1 << n) - 1) });
    check2("szext.wrap.u32 %o, %a, %b;", &v, &b, |v, n: u32| v & ((1u32 << (n & 31)) - 1));
}

fn permute(a: u32, b: u32, selectors: [u32; 4]) -> u32 {
    let pool = u64::from(b) << 32 | u64::from(a);
    selectors.iter().rev().fold(0, |out, s| {
        let byte = (pool >> ((s & 7) * 8)) as u8;
        let byte = if s & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
        out << 8 | u32::from(byte)
    })
}

#[test]
fn bytes_are_permuted_by_every_selector_and_mode() {
    let selectors: Vec<u32> = (0..65536).collect();
    let mut random = Random::new(30);
    let a: Vec<u32> = (0..65536).map(|_| random.u32()).collect();
    let b: Vec<u32> = (0..65536).map(|_| random.u32()).collect();
    check3("prmt.b32 %o, %a, %b, %c;", &a, &b, &selectors, |a, b, s: u32| {
        permute(a, b, [s & 15, s >> 4 & 15, s >> 8 & 15, s >> 12 & 15])
    });
    let n: Vec<u32> = (0..4096).map(|_| random.u32() & 15).collect();
    let (a, b) = (&a[..4096], &b[..4096]);
    let check = |mode: &str, selectors: [[u32; 4]; 4]| {
        check3(&format!("prmt.b32.{mode} %o, %a, %b, %c;"), a, b, &n, |a, b, s: u32| {
            permute(a, b, selectors[(s & 3) as usize])
        });
    };
    check("f4e", [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]);
    check("b4e", [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]]);
    check("rc8", [[0; 4], [1; 4], [2; 4], [3; 4]]);
    check("ecl", [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]);
    check("ecr", [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]]);
    check("rc16", [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]);
}

#[test]
fn dot_products_of_bytes() {
    let (a, b, c) = (
        cast!(values(32, 4096, 31), u32),
        cast!(values(32, 4096, 32), u32),
        cast!(values(32, 4096, 33), u32),
    );
    let byte = |x: u32, i: u32, signed: bool| {
        let byte = (x >> (8 * i)) as u8;
        if signed { i64::from(byte as i8) } else { i64::from(byte) }
    };
    let half = |x: u32, i: u32, signed: bool| {
        let half = (x >> (16 * i)) as u16;
        if signed { i64::from(half as i16) } else { i64::from(half) }
    };
    for (ta, sa) in [("u32", false), ("s32", true)] {
        for (tb, sb) in [("u32", false), ("s32", true)] {
            check3(&format!("dp4a.{ta}.{tb} %o, %a, %b, %c;"), &a, &b, &c, |a, b, c: u32| {
                (0..4).fold(c, |sum, i| sum.wrapping_add((byte(a, i, sa) * byte(b, i, sb)) as u32))
            });
            for (mode, first) in [("lo", 0), ("hi", 2)] {
                check3(&format!("dp2a.{mode}.{ta}.{tb} %o, %a, %b, %c;"), &a, &b, &c, |a, b, c: u32| {
                    (0..2)
                        .fold(c, |sum, i| sum.wrapping_add((half(a, i, sa) * byte(b, first + i, sb)) as u32))
                });
            }
        }
    }
}

#[test]
fn carries_travel_through_chains() {
    let (a, b) = (values(64, 8192, 34), values(64, 8192, 35));
    let split = ".reg .b32 al, ah, bl, bh, cl, ch; mov.b64 {al, ah}, %a; mov.b64 {bl, bh}, %b;";
    check2(
        &format!("{split} add.cc.u32 cl, al, bl; addc.u32 ch, ah, bh; mov.b64 %o, {{cl, ch}};"),
        &a,
        &b,
        |x: u64, y: u64| x.wrapping_add(y),
    );
    check2(
        &format!("{split} sub.cc.u32 cl, al, bl; subc.u32 ch, ah, bh; mov.b64 %o, {{cl, ch}};"),
        &a,
        &b,
        |x: u64, y: u64| x.wrapping_sub(y),
    );
    // The carry out of the second word.
    check2(
        &format!(
            "{split} add.cc.u32 cl, al, bl; addc.cc.u32 ch, ah, bh; addc.u32 cl, 0, 0; cvt.u64.u32 %o, cl;"
        ),
        &a,
        &b,
        |x: u64, y: u64| u64::from(x.checked_add(y).is_none()),
    );
    check2(
        &format!(
            "{split} sub.cc.u32 cl, al, bl; subc.cc.u32 ch, ah, bh; subc.u32 cl, 0, 0; cvt.u64.u32 %o, cl;"
        ),
        &a,
        &b,
        |x: u64, y: u64| if y > x { 0xffff_ffffu64 } else { 0 },
    );
    check2("add.cc.u64 %o, %a, %b; addc.u64 %o, 0, 0;", &a, &b, |x: u64, y: u64| {
        u64::from(x.checked_add(y).is_none())
    });
    // 64 x 64 to the high 64 bits by 32-bit multiply-adds, as compilers write it.
    check2(
        &format!(
            "{split} .reg .b32 r1, r2, r3; mul.lo.u32 cl, al, bl; mul.hi.u32 r1, al, bl; \
             mad.lo.cc.u32 r1, al, bh, r1; madc.hi.u32 r2, al, bh, 0; \
             mad.lo.cc.u32 r1, ah, bl, r1; madc.hi.cc.u32 r2, ah, bl, r2; addc.u32 r3, 0, 0; \
             mad.lo.cc.u32 r2, ah, bh, r2; madc.hi.u32 r3, ah, bh, r3; mov.b64 %o, {{r2, r3}};"
        ),
        &a,
        &b,
        |x: u64, y: u64| ((u128::from(x) * u128::from(y)) >> 64) as u64,
    );
}

#[test]
fn the_nth_set_bit_is_found() {
    let mut random = Random::new(36);
    let n = 8192;
    let mask: Vec<u32> = (0..n).map(|_| random.integer(32) as u32).collect();
    let base: Vec<u32> = (0..n).map(|_| random.below(32)).collect();
    let offset: Vec<i32> = (0..n).map(|_| random.below(12) as i32 - 6).collect();
    check3("fns.b32 %o, %a, %b, %c;", &mask, &base, &offset, |mask: u32, base: u32, offset: i32| {
        // From the base upwards (or downwards for negative offsets), both including it.
        let set = |i: &u32| mask >> i & 1 == 1;
        match offset {
            0 => {
                if set(&base) {
                    base
                } else {
                    u32::MAX
                }
            }
            1.. => (base..32).filter(set).nth(offset as usize - 1).unwrap_or(u32::MAX),
            _ => (0..=base).rev().filter(set).nth(-offset as usize - 1).unwrap_or(u32::MAX),
        }
    });
}

#[test]
fn immediate_operands_have_their_type() {
    let a = cast!(values(32, 512, 37), u32);
    check1("add.s32 %o, %a, -5;", &a, |x: u32| x.wrapping_sub(5));
    check1("mul.lo.u32 %o, %a, 0xffffffff;", &a, |x: u32| x.wrapping_neg());
    check1("xor.b32 %o, %a, 0b1010;", &a, |x: u32| x ^ 10);
    check1("or.b32 %o, %a, 017;", &a, |x: u32| x | 15);
    check1("and.b32 %o, %a, ~3;", &a, |x: u32| x & !3);
    check1("add.u32 %o, %a, (2 + 3) * 4 - 1;", &a, |x: u32| x.wrapping_add(19));
    check1("mad.wide.s32 %o, %a, -2, 0x100000000;", &cast!(a, i32), |x: i32| i64::from(x) * -2 + (1 << 32));
}

#[test]
fn packing_moves_put_parts_in_order() {
    let (a, b) = (values(64, 512, 38), values(64, 512, 39));
    check2("mov.b64 %o, {%a, %b};", &cast!(a, u32), &cast!(b, u32), |x: u32, y: u32| {
        u64::from(y) << 32 | u64::from(x)
    });
    check2("mov.b32 %o, {%a, %b};", &cast!(a, u16), &cast!(b, u16), |x: u16, y: u16| {
        u32::from(y) << 16 | u32::from(x)
    });
    check1(".reg .b16 p, q, r, s; mov.b64 {p, q, r, s}, %a; mov.b64 %o, {s, r, q, p};", &a, |x: u64| {
        x >> 48 | (x >> 32 & 0xffff) << 16 | (x >> 16 & 0xffff) << 32 | x << 48
    });
    check1(".reg .b32 p, q; mov.b64 {p, q}, %a; mov.b64 %o, {q, p};", &a, |x: u64| x.rotate_left(32));
    let found: Vec<u32> =
        map2(".reg .b16 p; mov.b32 {_, p}, %a; cvt.u32.u16 %o, p;", &cast!(a, u32), &cast!(b, u32));
    for (x, y) in a.iter().zip(found) {
        assert_eq!(y, *x as u32 >> 16);
    }
}

#[test]
fn registers_wider_than_the_type_are_extended() {
    let v = values(64, 1024, 40);
    // A load into a wider register extends by the type of the load.
    let a = cast!(v, i32);
    check1(".reg .b64 t; cvt.s64.s32 t, %a; mov.b64 %o, t;", &a, |x: i32| i64::from(x));
    check1("cvt.u64.u32 %o, %a;", &cast!(v, u32), |x: u32| u64::from(x));
    check1("cvt.s32.s16 %o, %a;", &cast!(v, i16), |x: i16| i32::from(x));
    check1("cvt.u32.u16 %o, %a;", &cast!(v, u16), |x: u16| u32::from(x));
}
