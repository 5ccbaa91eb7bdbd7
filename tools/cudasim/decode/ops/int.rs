//! Integer arithmetic.

use super::super::builder::{Result, class_of};
use super::super::dec::Dec;
use super::super::program::Class;
use super::int_types;
use crate::exec::carry::{self, carry_flag};
use crate::exec::inst::Kind;
use crate::ptx::ast::Type;

/// Everything without a carry.
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    match d.base {
        "add" | "sub" => add_sub(d),
        "mul" => mul(d),
        "mad" => mad(d),
        "mul24" | "mad24" => mul24(d),
        "min" | "max" => min_max(d),
        "div" => {
            let ty = d.ty()?;
            int_types!(d, ty, T in [U16 u16, U32 u32, U64 u64] => d.bin(|a: T, b: T| a.checked_div(b).unwrap_or(T::MAX)),
                else [S16 i16, S32 i32, S64 i64] => d.bin(|a: T, b: T| if b == 0 { -1 } else { a.wrapping_div(b) }))
        }
        "rem" => {
            let ty = d.ty()?;
            int_types!(d, ty, T in [U16 u16, U32 u32, U64 u64, S16 i16, S32 i32, S64 i64] =>
                d.bin(|a: T, b: T| if b == 0 { a } else { a.wrapping_rem(b) }))
        }
        "abs" => {
            let ty = d.ty()?;
            int_types!(d, ty, T in [S16 i16, S32 i32, S64 i64] => d.un(|a: T| a.wrapping_abs()))
        }
        "neg" => {
            let ty = d.ty()?;
            int_types!(d, ty, T in [S16 i16, S32 i32, S64 i64] => d.un(|a: T| a.wrapping_neg()))
        }
        "sad" => {
            let ty = d.ty()?;
            int_types!(d, ty, T in [U16 u16, U32 u32, U64 u64, S16 i16, S32 i32, S64 i64] =>
                d.ter(|a: T, b: T, c: T| c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) })))
        }
        "dp4a" => dot(d, 4),
        "dp2a" => dot(d, 2),
        _ => Err(d.unsupported("")),
    }
}

fn add_sub(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    let add = d.base == "add";
    if d.flag("sat") {
        return match (ty, add) {
            (Type::S32, true) => d.bin(|a: i32, b: i32| a.saturating_add(b)),
            (Type::S32, false) => d.bin(|a: i32, b: i32| a.saturating_sub(b)),
            _ => Err(d.unsupported("saturation of this type")),
        };
    }
    if matches!(ty, Type::U16x2 | Type::S16x2) {
        return if add {
            d.bin(|a: u32, b: u32| (a.wrapping_add(b) & 0xffff) | ((a >> 16).wrapping_add(b >> 16) << 16))
        } else {
            d.bin(|a: u32, b: u32| (a.wrapping_sub(b) & 0xffff) | ((a >> 16).wrapping_sub(b >> 16) << 16))
        };
    }
    // Signed and unsigned sums are the same bits.
    int_types!(d, ty, T in [U16 u16, S16 u16, U32 u32, S32 u32, U64 u64, S64 u64] => if add {
        d.bin(|a: T, b: T| a.wrapping_add(b))
    } else {
        d.bin(|a: T, b: T| a.wrapping_sub(b))
    })
}

/// Which part of a product.
fn part(d: &mut Dec) -> Result<&'static str> {
    d.need(".lo, .hi or .wide", &[("lo", "lo"), ("hi", "hi"), ("wide", "wide")])
}

fn mul(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    match (part(d)?, ty) {
        ("lo", _) => int_types!(d, ty, T in [U16 u16, S16 u16, U32 u32, S32 u32, U64 u64, S64 u64] =>
            d.bin(|a: T, b: T| a.wrapping_mul(b))),
        ("hi", Type::U16) => d.bin(|a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16),
        ("hi", Type::S16) => d.bin(|a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16),
        ("hi", Type::U32) => d.bin(|a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32) as u32),
        ("hi", Type::S32) => d.bin(|a: i32, b: i32| ((i64::from(a) * i64::from(b)) >> 32) as i32),
        ("hi", Type::U64) => d.bin(|a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        ("hi", Type::S64) => d.bin(|a: i64, b: i64| ((i128::from(a) * i128::from(b)) >> 64) as i64),
        ("wide", Type::U16) => d.bin(|a: u16, b: u16| u32::from(a) * u32::from(b)),
        ("wide", Type::S16) => d.bin(|a: i16, b: i16| i32::from(a) * i32::from(b)),
        ("wide", Type::U32) => d.bin(|a: u32, b: u32| u64::from(a) * u64::from(b)),
        ("wide", Type::S32) => d.bin(|a: i32, b: i32| i64::from(a) * i64::from(b)),
        _ => Err(d.unsupported("this type")),
    }
}

fn mad(d: &mut Dec) -> Result<()> {
    if d.mods.contains(&"cc") {
        return carry(d);
    }
    let ty = d.ty()?;
    let sat = d.flag("sat");
    match (part(d)?, ty) {
        ("hi", Type::S32) if sat => {
            d.ter(|a: i32, b: i32, c: i32| (((i64::from(a) * i64::from(b)) >> 32) as i32).saturating_add(c))
        }
        _ if sat => Err(d.unsupported("saturation of this form")),
        ("lo", _) => int_types!(d, ty, T in [U16 u16, S16 u16, U32 u32, S32 u32, U64 u64, S64 u64] =>
            d.ter(|a: T, b: T, c: T| a.wrapping_mul(b).wrapping_add(c))),
        ("hi", Type::U16) => {
            d.ter(|a: u16, b: u16, c: u16| (((u32::from(a) * u32::from(b)) >> 16) as u16).wrapping_add(c))
        }
        ("hi", Type::S16) => {
            d.ter(|a: i16, b: i16, c: i16| (((i32::from(a) * i32::from(b)) >> 16) as i16).wrapping_add(c))
        }
        ("hi", Type::U32) => {
            d.ter(|a: u32, b: u32, c: u32| (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c))
        }
        ("hi", Type::S32) => {
            d.ter(|a: i32, b: i32, c: i32| (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c))
        }
        ("hi", Type::U64) => {
            d.ter(|a: u64, b: u64, c: u64| (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c))
        }
        ("hi", Type::S64) => {
            d.ter(|a: i64, b: i64, c: i64| (((i128::from(a) * i128::from(b)) >> 64) as i64).wrapping_add(c))
        }
        ("wide", Type::U16) => d.ter(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c)),
        ("wide", Type::S16) => d.ter(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c)),
        ("wide", Type::U32) => d.ter(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c)),
        ("wide", Type::S32) => d.ter(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c)),
        _ => Err(d.unsupported("this type")),
    }
}

/// The low 24 bits, sign-extended.
fn s24(a: i32) -> i64 {
    i64::from(a << 8 >> 8)
}

fn u24(a: u32) -> u64 {
    u64::from(a & 0xff_ffff)
}

fn mul24(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    let hi = d.need(".lo or .hi", &[("lo", false), ("hi", true)])?;
    let sat = d.flag("sat");
    match (d.base == "mad24", ty, hi) {
        (false, Type::U32, false) => d.bin(|a: u32, b: u32| (u24(a) * u24(b)) as u32),
        (false, Type::U32, true) => d.bin(|a: u32, b: u32| ((u24(a) * u24(b)) >> 16) as u32),
        (false, Type::S32, false) => d.bin(|a: i32, b: i32| (s24(a) * s24(b)) as i32),
        (false, Type::S32, true) => d.bin(|a: i32, b: i32| ((s24(a) * s24(b)) >> 16) as i32),
        (true, Type::S32, true) if sat => {
            d.ter(|a: i32, b: i32, c: i32| (((s24(a) * s24(b)) >> 16) as i32).saturating_add(c))
        }
        _ if sat => Err(d.unsupported("saturation of this form")),
        (true, Type::U32, false) => {
            d.ter(|a: u32, b: u32, c: u32| ((u24(a) * u24(b)) as u32).wrapping_add(c))
        }
        (true, Type::U32, true) => {
            d.ter(|a: u32, b: u32, c: u32| (((u24(a) * u24(b)) >> 16) as u32).wrapping_add(c))
        }
        (true, Type::S32, false) => {
            d.ter(|a: i32, b: i32, c: i32| ((s24(a) * s24(b)) as i32).wrapping_add(c))
        }
        (true, Type::S32, true) => {
            d.ter(|a: i32, b: i32, c: i32| (((s24(a) * s24(b)) >> 16) as i32).wrapping_add(c))
        }
        _ => Err(d.unsupported("this type")),
    }
}

fn min_max(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    let min = d.base == "min";
    let relu = d.flag("relu");
    match (ty, relu, min) {
        (Type::S32, true, true) => d.bin(|a: i32, b: i32| a.min(b).max(0)),
        (Type::S32, true, false) => d.bin(|a: i32, b: i32| a.max(b).max(0)),
        (_, true, _) => Err(d.unsupported(".relu of this type")),
        (Type::U16x2, _, true) => {
            d.bin(|a: u32, b: u32| (a & 0xffff).min(b & 0xffff) | (a >> 16).min(b >> 16) << 16)
        }
        (Type::U16x2, _, false) => {
            d.bin(|a: u32, b: u32| (a & 0xffff).max(b & 0xffff) | (a >> 16).max(b >> 16) << 16)
        }
        (Type::S16x2, _, true) => d.bin(|a: u32, b: u32| pairs(a, b, |x, y| x.min(y))),
        (Type::S16x2, _, false) => d.bin(|a: u32, b: u32| pairs(a, b, |x, y| x.max(y))),
        (_, _, true) => int_types!(d, ty, T in [U16 u16, U32 u32, U64 u64, S16 i16, S32 i32, S64 i64] =>
            d.bin(|a: T, b: T| a.min(b))),
        _ => int_types!(d, ty, T in [U16 u16, U32 u32, U64 u64, S16 i16, S32 i32, S64 i64] =>
            d.bin(|a: T, b: T| a.max(b))),
    }
}

fn pairs(a: u32, b: u32, f: impl Fn(i16, i16) -> i16) -> u32 {
    u32::from(f(a as i16, b as i16) as u16) | u32::from(f((a >> 16) as i16, (b >> 16) as i16) as u16) << 16
}

/// Element `n` of 8 bits.
fn byte(word: u32, n: u32, signed: bool) -> i32 {
    let b = (word >> (8 * n)) as u8;
    if signed { i32::from(b as i8) } else { i32::from(b) }
}

fn half_word(word: u32, n: u32, signed: bool) -> i32 {
    let h = (word >> (16 * n)) as u16;
    if signed { i32::from(h as i16) } else { i32::from(h) }
}

fn dot4(a: u32, b: u32, c: u32, sa: bool, sb: bool) -> u32 {
    (0..4).fold(c, |sum, n| sum.wrapping_add((byte(a, n, sa) * byte(b, n, sb)) as u32))
}

fn dot2(a: u32, b: u32, c: u32, high: u32, sa: bool, sb: bool) -> u32 {
    (0..2).fold(c, |sum, n| {
        sum.wrapping_add(half_word(a, n, sa).wrapping_mul(byte(b, n + 2 * high, sb)) as u32)
    })
}

fn dot(d: &mut Dec, n: u32) -> Result<()> {
    let &[at, bt] = &d.types[..] else { return Err(d.unsupported("two types are expected")) };
    let signed = |d: &Dec, t: Type| match t {
        Type::S32 => Ok(true),
        Type::U32 => Ok(false),
        _ => Err(d.unsupported("this type")),
    };
    let (sa, sb) = (signed(d, at)?, signed(d, bt)?);
    if n == 4 {
        return match (sa, sb) {
            (false, false) => d.ter(|a: u32, b: u32, c: u32| dot4(a, b, c, false, false)),
            (false, true) => d.ter(|a: u32, b: u32, c: u32| dot4(a, b, c, false, true)),
            (true, false) => d.ter(|a: u32, b: u32, c: u32| dot4(a, b, c, true, false)),
            (true, true) => d.ter(|a: u32, b: u32, c: u32| dot4(a, b, c, true, true)),
        };
    }
    match (d.need(".lo or .hi", &[("lo", false), ("hi", true)])?, sa, sb) {
        (false, false, false) => d.ter(|a: u32, b: u32, c: u32| dot2(a, b, c, 0, false, false)),
        (false, false, true) => d.ter(|a: u32, b: u32, c: u32| dot2(a, b, c, 0, false, true)),
        (false, true, false) => d.ter(|a: u32, b: u32, c: u32| dot2(a, b, c, 0, true, false)),
        (false, true, true) => d.ter(|a: u32, b: u32, c: u32| dot2(a, b, c, 0, true, true)),
        (true, false, false) => d.ter(|a: u32, b: u32, c: u32| dot2(a, b, c, 1, false, false)),
        (true, false, true) => d.ter(|a: u32, b: u32, c: u32| dot2(a, b, c, 1, false, true)),
        (true, true, false) => d.ter(|a: u32, b: u32, c: u32| dot2(a, b, c, 1, true, false)),
        (true, true, true) => d.ter(|a: u32, b: u32, c: u32| dot2(a, b, c, 1, true, true)),
    }
}

/// `add.cc addc sub.cc subc mad.cc madc`
pub(super) fn carry(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    let reads = matches!(d.base, "addc" | "subc" | "madc");
    let writes = d.flag("cc");
    let mad = matches!(d.base, "mad" | "madc");
    d.arity(if mad { 4 } else { 3 })?;
    let wide = match ty {
        Type::U32 | Type::S32 | Type::B32 => false,
        Type::U64 | Type::S64 | Type::B64 => true,
        _ => return Err(d.unsupported("this type")),
    };
    debug_assert_eq!(class_of(ty) == Class::W64, wide);
    let signed = ty.signed();
    let exec = match d.base {
        "add" | "addc" if wide => carry::carry(|a: u64, b: u64, _: u64, k: bool| a.carrying(b, k)),
        "add" | "addc" => carry::carry(|a: u32, b: u32, _: u32, k: bool| a.carrying(b, k)),
        "sub" | "subc" if wide => carry::carry(|a: u64, b: u64, _: u64, k: bool| a.borrowing(b, k)),
        "sub" | "subc" => carry::carry(|a: u32, b: u32, _: u32, k: bool| a.borrowing(b, k)),
        _ => {
            let hi = d.need(".lo or .hi", &[("lo", false), ("hi", true)])?;
            match (hi, wide, signed) {
                (false, false, _) => {
                    carry::carry(|a: u32, b: u32, c: u32, k: bool| a.wrapping_mul(b).carrying(c, k))
                }
                (false, true, _) => {
                    carry::carry(|a: u64, b: u64, c: u64, k: bool| a.wrapping_mul(b).carrying(c, k))
                }
                (true, false, false) => carry::carry(|a: u32, b: u32, c: u32, k: bool| {
                    (((u64::from(a) * u64::from(b)) >> 32) as u32).carrying(c, k)
                }),
                (true, false, true) => carry::carry(|a: u32, b: u32, c: u32, k: bool| {
                    (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).carrying(c, k)
                }),
                (true, true, false) => carry::carry(|a: u64, b: u64, c: u64, k: bool| {
                    (((u128::from(a) * u128::from(b)) >> 64) as u64).carrying(c, k)
                }),
                (true, true, true) => carry::carry(|a: u64, b: u64, c: u64, k: bool| {
                    (((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64).carrying(c, k)
                }),
            }
        }
    };
    let cc = d.b.carry();
    for k in 1..d.ins.operands.len() {
        d.inst.ops[k] = d.read(d.operand(k)?, ty)?;
    }
    if !mad {
        d.inst.ops[3] = d.inst.ops[2];
    }
    d.inst.ops[4] = cc;
    d.inst.aux[0] = if reads { carry_flag::IN } else { 0 } | if writes { carry_flag::OUT } else { 0 };
    if reads {
        d.meta.uses.push(cc);
    }
    if writes {
        d.meta.defs.push(cc);
    }
    d.inst.ops[0] = d.write(d.operand(0)?, ty)?;
    d.emit(Kind::Plain, exec)
}

/// Sums and differences with a carry.
trait Carrying: Sized {
    fn carrying(self, other: Self, carry: bool) -> (Self, bool);
    fn borrowing(self, other: Self, borrow: bool) -> (Self, bool);
}

macro_rules! carrying {
    ($($t:ty),*) => {$(
        impl Carrying for $t {
            #[inline(always)]
            fn carrying(self, other: $t, carry: bool) -> ($t, bool) {
                let (s, a) = self.overflowing_add(other);
                let (s, b) = s.overflowing_add(<$t>::from(carry));
                (s, a | b)
            }
            #[inline(always)]
            fn borrowing(self, other: $t, borrow: bool) -> ($t, bool) {
                let (s, a) = self.overflowing_sub(other);
                let (s, b) = s.overflowing_sub(<$t>::from(borrow));
                (s, a | b)
            }
        }
    )*};
}
carrying!(u32, u64);
