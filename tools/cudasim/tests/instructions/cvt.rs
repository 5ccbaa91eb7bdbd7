//! Conversions between all types, with every rounding mode, saturation and special value.

use crate::harness::{Element, check1, check2, map1, map2, map3};
use crate::random::{EDGES32, EDGES64, Random};
use crate::soft::{self, BF16, F16, F32, F64, Format, Round, TF32, Value};

macro_rules! cast {
    ($values:expr, $t:ty) => {
        $values.iter().map(|&v| v as $t).collect::<Vec<$t>>()
    };
}

fn integers(n: usize, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| {
            let bits = [8, 16, 32, 64][random.below(4) as usize];
            random.integer(bits)
        })
        .collect()
}

fn floats32(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    let mut out: Vec<u32> = (0..n).map(|_| random.f32().to_bits()).collect();
    // Halves and neighbours of integers, and the borders of the integer types.
    for _ in 0..n {
        let base = random.below(1 << 20) as f32 / 2.0 - 1000.0;
        out.push(base.to_bits() ^ random.below(2));
    }
    for power in [7, 8, 10, 15, 16, 23, 24, 31, 32, 52, 63, 64] {
        let edge = 2f32.powi(power);
        for x in [edge, -edge] {
            out.extend([x.to_bits(), x.to_bits() + 1, x.to_bits() - 1]);
        }
    }
    out.extend(EDGES32);
    out
}

fn floats64(n: usize, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    let mut out: Vec<u64> = (0..n).map(|_| random.f64().to_bits()).collect();
    for _ in 0..n {
        out.push((f64::from(random.below(1 << 20)) / 2.0 - 1000.0).to_bits() ^ u64::from(random.below(2)));
        // Near the borders of f32 and f16.
        out.push(f64::from(random.f32()).to_bits().wrapping_add(u64::from(random.below(5))).wrapping_sub(2));
    }
    for power in [7, 8, 15, 16, 31, 32, 63, 64] {
        let edge = 2f64.powi(power);
        for x in [edge, -edge, edge - 0.5, edge - 1.0, -edge - 0.5] {
            out.extend([x.to_bits(), x.to_bits() + 1, x.to_bits() - 1]);
        }
    }
    out.extend(EDGES64);
    out
}

fn halves() -> Vec<u16> {
    (0..=u16::MAX).collect()
}

#[test]
fn integers_are_cut_or_extended() {
    let v = integers(2048, 1);
    macro_rules! pair {
        ($a:ty, $an:literal => $($d:ty, $dn:literal);*) => {$(
            check1(concat!("cvt.", $dn, ".", $an, " %o, %a;"), &cast!(v, $a), |x: $a| x as $d);
            // Saturation is only allowed where the source can exceed the destination.
            if i128::from(<$a>::MIN) < i128::from(<$d>::MIN) || i128::from(<$a>::MAX) > i128::from(<$d>::MAX) {
                check1(concat!("cvt.sat.", $dn, ".", $an, " %o, %a;"), &cast!(v, $a), |x: $a| {
                    i128::from(x).clamp(<$d>::MIN.into(), <$d>::MAX.into()) as $d
                });
            }
        )*};
    }
    macro_rules! from {
        ($($a:ty, $an:literal);*) => {$(
            pair!($a, $an => u8, "u8"; i8, "s8"; u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64");
        )*};
    }
    from!(u8, "u8"; i8, "s8"; u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64");
}

#[test]
fn eight_bits_of_wider_registers() {
    // The low byte of a 32-bit register, and a result that is extended to one.
    let v = cast!(integers(2048, 2), u32);
    check1("cvt.s32.s8 %o, %a;", &v, |x: u32| i32::from(x as i8));
    check1("cvt.u32.u8 %o, %a;", &v, |x: u32| u32::from(x as u8));
    check1("cvt.s8.s32 %o, %a;", &v, |x: u32| i32::from(x as i8) as u32);
    check1("cvt.u8.u32 %o, %a;", &v, |x: u32| u32::from(x as u8));
    check1("cvt.s16.s8 %o, %a;", &cast!(v, u16), |x: u16| i16::from(x as i8));
}

/// Float to integer by the manual: clamped, NaN is zero or, with 64 bits on either side, only the highest bit.
fn to_integer(f: Format, x: u64, mode: Round, min: i128, max: i128, bits: u32) -> i128 {
    match f.decode(x) {
        Value::Nan if f == F64 || bits == 64 => {
            let high = 1i128 << (bits - 1);
            if min < 0 { -high } else { high }
        }
        Value::Nan => 0,
        Value::Infinite { negative } => {
            if negative {
                min
            } else {
                max
            }
        }
        Value::Finite(x) => soft::to_integer(x, mode).clamp(min, max),
    }
}

fn check_to_integer<A: Element + Into<u64> + std::fmt::Debug>(f: Format, name: &str, a: &[A]) {
    macro_rules! to {
        ($($t:ty, $tn:literal);*) => {$(
            for mode in Round::ALL {
                let text = format!("cvt.{}i.{}.{name} %o, %a;", mode.name(), $tn);
                check1(&text, a, |x: A| {
                    to_integer(f, x.into(), mode, <$t>::MIN.into(), <$t>::MAX.into(), <$t>::BITS) as $t
                });
            }
        )*};
    }
    to!(u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64");
    to!(u8, "u8"; i8, "s8");
}

#[test]
fn floats_become_integers() {
    check_to_integer(F16, "f16", &halves());
    check_to_integer(F32, "f32", &floats32(10_000, 3));
    check_to_integer(F64, "f64", &floats64(10_000, 4));
    check1("cvt.rzi.ftz.s32.f32 %o, %a;", &floats32(4000, 5), |x: u32| {
        to_integer(F32, F32.flush(x.into()), Round::Rz, i32::MIN.into(), i32::MAX.into(), 32) as i32
    });
    // Here a denormal is rounded away from zero, unless it is flushed.
    check1("cvt.rpi.ftz.s32.f32 %o, %a;", &EDGES32, |x: u32| {
        to_integer(F32, F32.flush(x.into()), Round::Rp, i32::MIN.into(), i32::MAX.into(), 32) as i32
    });
}

#[test]
fn integers_become_floats() {
    let v = integers(8192, 6);
    macro_rules! from {
        ($($a:ty, $an:literal);*) => {$(
            for mode in Round::ALL {
                let m = mode.name();
                let a = cast!(v, $a);
                check1(&format!("cvt.{m}.f32.{} %o, %a;", $an), &a, |x: $a| F32.round(soft::integer(x.into()), mode) as u32);
                check1(&format!("cvt.{m}.f64.{} %o, %a;", $an), &a, |x: $a| F64.round(soft::integer(x.into()), mode));
                check1(&format!("cvt.{m}.f16.{} %o, %a;", $an), &a, |x: $a| F16.round(soft::integer(x.into()), mode) as u16);
            }
        )*};
    }
    from!(u8, "u8"; i8, "s8"; u16, "u16"; i16, "s16"; u32, "u32"; i32, "s32"; u64, "u64"; i64, "s64");
}

/// Checks a conversion between float formats.
fn check_floats<A, O>(from: Format, to: Format, text: &str, a: &[A], expected: impl Fn(u64) -> Option<u64>)
where
    A: Element + Into<u64>,
    O: Element + Into<u64>,
{
    let _ = from;
    for (&x, found) in a.iter().zip(map1::<A, O>(text, a)) {
        let (x, found): (u64, u64) = (x.into(), found.into());
        let wanted = expected(x);
        let right = match wanted {
            Some(wanted) => found == wanted,
            None => to.is_nan(found),
        };
        assert!(right, "{text}: {x:#x} gives {found:#x}, not {wanted:x?}");
    }
}

#[test]
fn floats_are_narrowed_in_every_rounding_mode() {
    let (a, b) = (floats32(20_000, 7), floats64(20_000, 8));
    // Around the denormals and the largest numbers of f16.
    let mut random = Random::new(9);
    let mut near: Vec<u32> = (0..40_000)
        .map(|_| {
            let half =
                soft::convert(F16, F32, u64::from(random.u32() & 0xffff), Round::Rn).unwrap_or(0) as u32;
            half.wrapping_add(random.below(1 << 13)) ^ if random.below(2) == 0 { 0x1000 } else { 0 }
        })
        .collect();
    near.extend(&a);
    for mode in Round::ALL {
        let m = mode.name();
        let to = |from: Format, to: Format| move |x| soft::convert(from, to, x, mode);
        check_floats::<u32, u16>(F32, F16, &format!("cvt.{m}.f16.f32 %o, %a;"), &near, to(F32, F16));
        check_floats::<u64, u16>(F64, F16, &format!("cvt.{m}.f16.f64 %o, %a;"), &b, to(F64, F16));
        check_floats::<u64, u32>(F64, F32, &format!("cvt.{m}.f32.f64 %o, %a;"), &b, to(F64, F32));
        check_floats::<u64, u32>(F64, F32, &format!("cvt.{m}.ftz.f32.f64 %o, %a;"), &b, |x| {
            soft::convert(F64, F32, x, mode).map(|y| F32.flush(y))
        });
    }
    for mode in [Round::Rn, Round::Rz] {
        let m = mode.name();
        check_floats::<u32, u16>(F32, BF16, &format!("cvt.{m}.bf16.f32 %o, %a;"), &near, |x| {
            soft::convert(F32, BF16, x, mode)
        });
        let relu = |x: Option<u64>, f: Format| x.map(|x| if f.sign(x) { 0 } else { x });
        check_floats::<u32, u16>(F32, BF16, &format!("cvt.{m}.relu.bf16.f32 %o, %a;"), &near, |x| {
            relu(soft::convert(F32, BF16, x, mode), BF16)
        });
        check_floats::<u32, u16>(F32, F16, &format!("cvt.{m}.relu.f16.f32 %o, %a;"), &near, |x| {
            relu(soft::convert(F32, F16, x, mode), F16)
        });
    }
    check_floats::<u32, u16>(F32, F16, "cvt.rn.ftz.f16.f32 %o, %a;", &near, |x| {
        soft::convert(F32, F16, F32.flush(x), Round::Rn)
    });
    check_floats::<u32, u16>(F32, F16, "cvt.rn.sat.f16.f32 %o, %a;", &near, |x| {
        let y = soft::convert(F32, F16, x, Round::Rn).unwrap_or(0);
        Some(if F16.sign(y) { 0 } else { y.min(F16.one()) })
    });
}

#[test]
fn every_half_is_widened_exactly() {
    let a = halves();
    let exact = |from: Format, to: Format| move |x| soft::convert(from, to, x, Round::Rn);
    check_floats::<u16, u32>(F16, F32, "cvt.f32.f16 %o, %a;", &a, exact(F16, F32));
    check_floats::<u16, u64>(F16, F64, "cvt.f64.f16 %o, %a;", &a, exact(F16, F64));
    check_floats::<u16, u32>(BF16, F32, "cvt.f32.bf16 %o, %a;", &a, exact(BF16, F32));
    check_floats::<u32, u64>(F32, F64, "cvt.f64.f32 %o, %a;", &floats32(20_000, 10), exact(F32, F64));
    check_floats::<u32, u64>(F32, F64, "cvt.ftz.f64.f32 %o, %a;", &floats32(4000, 11), |x| {
        soft::convert(F32, F64, F32.flush(x), Round::Rn)
    });
}

#[test]
fn pairs_put_the_first_operand_into_the_upper_half() {
    let (a, b) = (floats32(20_000, 12), floats32(20_000, 13));
    for (f, name) in [(F16, "f16x2"), (BF16, "bf16x2")] {
        for mode in [Round::Rn, Round::Rz] {
            for relu in [false, true] {
                let m = mode.name();
                let text = format!("cvt.{m}{}.{name}.f32 %o, %a, %b;", if relu { ".relu" } else { "" });
                let found: Vec<u32> = map2(&text, &a, &b);
                for i in 0..a.len() {
                    for (x, half) in [(a[i], found[i] >> 16), (b[i], found[i] & 0xffff)] {
                        let wanted = soft::convert(F32, f, x.into(), mode)
                            .map(|y| if relu && f.sign(y) { 0 } else { y });
                        let right = wanted.map_or(f.is_nan(half.into()), |w| w == u64::from(half));
                        assert!(right, "{text}: {x:#x} gives {half:#x}, not {wanted:x?}");
                    }
                }
            }
        }
    }
}

#[test]
fn tf32_is_rounded_to_nearest_away() {
    let a = floats32(20_000, 14);
    check_floats::<u32, u32>(F32, F32, "cvt.rna.tf32.f32 %o, %a;", &a, |x| match F32.decode(x) {
        Value::Nan => None,
        Value::Infinite { .. } => Some(x),
        // Ties away from zero: half of the last place added to the magnitude. The low 13 bits are zero.
        Value::Finite(_) => Some((x + 0x1000) & !0x1fff),
    });
    for mode in [Round::Rn, Round::Rz] {
        let text = format!("cvt.{}.tf32.f32 %o, %a;", mode.name());
        check_floats::<u32, u32>(F32, F32, &text, &a, |x| soft::convert(F32, TF32, x, mode).map(|y| y << 13));
    }
}

#[test]
fn floats_are_rounded_to_integral_values() {
    let (a, b) = (floats32(20_000, 15), floats64(20_000, 16));
    for mode in Round::ALL {
        let m = mode.name();
        check_floats::<u32, u32>(F32, F32, &format!("cvt.{m}i.f32.f32 %o, %a;"), &a, |x| {
            soft::integral(F32, x, mode)
        });
        check_floats::<u32, u32>(F32, F32, &format!("cvt.{m}i.ftz.f32.f32 %o, %a;"), &a, |x| {
            soft::integral(F32, F32.flush(x), mode)
        });
        check_floats::<u64, u64>(F64, F64, &format!("cvt.{m}i.f64.f64 %o, %a;"), &b, |x| {
            soft::integral(F64, x, mode)
        });
        check_floats::<u16, u16>(F16, F16, &format!("cvt.{m}i.f16.f16 %o, %a;"), &halves(), |x| {
            soft::integral(F16, x, mode)
        });
    }
    check_floats::<u32, u32>(F32, F32, "cvt.sat.f32.f32 %o, %a;", &a, |x| {
        Some(if F32.is_nan(x) || F32.sign(x) { 0 } else { x.min(F32.one()) })
    });
    check_floats::<u32, u32>(F32, F32, "cvt.ftz.sat.f32.f32 %o, %a;", &a, |x| {
        Some(if F32.is_nan(x) || F32.sign(x) { 0 } else { F32.flush(x).min(F32.one()) })
    });
    check_floats::<u64, u64>(F64, F64, "cvt.sat.f64.f64 %o, %a;", &b, |x| {
        Some(if F64.is_nan(x) || F64.sign(x) { 0 } else { x.min(F64.one()) })
    });
}

#[test]
fn packing_conversions_saturate() {
    let (a, b) = (cast!(integers(4096, 17), i32), cast!(integers(4096, 18), i32));
    check2("cvt.pack.sat.s16.s32 %o, %a, %b;", &a, &b, |x: i32, y: i32| {
        let part = |x: i32| u32::from(x.clamp(-32768, 32767) as u16);
        part(x) << 16 | part(y)
    });
    check2("cvt.pack.sat.u16.s32 %o, %a, %b;", &a, &b, |x: i32, y: i32| {
        let part = |x: i32| x.clamp(0, 65535) as u32;
        part(x) << 16 | part(y)
    });
    let c = cast!(integers(4096, 19), u32);
    for (name, min, max) in [("s8", -128, 127), ("u8", 0, 255)] {
        let text = format!("cvt.pack.sat.{name}.s32.b32 %o, %a, %b, %c;");
        for (i, found) in map3::<i32, i32, u32, u32>(&text, &a, &b, &c).into_iter().enumerate() {
            let part = |x: i32| u32::from(x.clamp(min, max) as u8);
            let wanted = c[i] << 16 | part(a[i]) << 8 | part(b[i]);
            assert_eq!(found, wanted, "{text} {} {} {:x}", a[i], b[i], c[i]);
        }
    }
}
