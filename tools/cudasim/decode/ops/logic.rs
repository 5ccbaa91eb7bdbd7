//! Bitwise logic, shifts, and counting of bits.

use super::super::builder::Result;
use super::super::dec::Dec;
use super::int_types;
use crate::exec::inst::Kind;
use crate::exec::{logic, pred};
use crate::ptx::ast::{Operand, Type};

/// `and or xor not cnot lop3 shf shl shr prmt`
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    match d.base {
        "lop3" => return lop3(d),
        "shf" => return shf(d),
        "prmt" => return prmt(d),
        _ => {}
    }
    let ty = d.ty()?;
    if ty == Type::Pred {
        return predicates(d);
    }
    match d.base {
        "and" => int_types!(d, ty, T in [B16 u16, B32 u32, B64 u64] => d.bin(|a: T, b: T| a & b)),
        "or" => int_types!(d, ty, T in [B16 u16, B32 u32, B64 u64] => d.bin(|a: T, b: T| a | b)),
        "xor" => int_types!(d, ty, T in [B16 u16, B32 u32, B64 u64] => d.bin(|a: T, b: T| a ^ b)),
        "not" => int_types!(d, ty, T in [B16 u16, B32 u32, B64 u64] => d.un(|a: T| !a)),
        "cnot" => int_types!(d, ty, T in [B16 u16, B32 u32, B64 u64] => d.un(|a: T| T::from(a == 0))),
        "shl" => int_types!(d, ty, T in [B16 u16, B32 u32, B64 u64] =>
            d.bin(|a: T, n: u32| if n < T::BITS { a << n } else { 0 })),
        _ => int_types!(d, ty, T in [B16 u16, B32 u32, B64 u64, U16 u16, U32 u32, U64 u64] =>
            d.bin(|a: T, n: u32| if n < T::BITS { a >> n } else { 0 }),
            else [S16 i16, S32 i32, S64 i64] => d.bin(|a: T, n: u32| a >> n.min(T::BITS - 1))),
    }
}

fn predicates(d: &mut Dec) -> Result<()> {
    let exec = match d.base {
        "and" => pred::and(),
        "or" => pred::or(),
        "xor" => pred::xor(),
        "not" => pred::not(),
        _ => return Err(d.unsupported("on predicates")),
    };
    d.arity(if d.base == "not" { 2 } else { 3 })?;
    for k in 1..d.ins.operands.len() {
        d.inst.ops[k] = d.read(d.operand(k)?, Type::Pred)?;
    }
    d.inst.ops[0] = d.write(d.operand(0)?, Type::Pred)?;
    d.emit(Kind::Plain, exec)
}

fn lop3(d: &mut Dec) -> Result<()> {
    if d.ty()? != Type::B32 {
        return Err(d.unsupported("this type"));
    }
    let op = d.one_of(&[("and", 1), ("or", 2), ("xor", 3)]);
    d.arity(if op.is_some() { 6 } else { 5 })?;
    let table = d.constant(4)?;
    if !(0..=255).contains(&table) {
        return Err(d.invalid("a table of more than 8 bits"));
    }
    for k in 1..4 {
        d.inst.ops[k] = d.read(d.operand(k)?, Type::B32)?;
    }
    d.inst.imm = table;
    let Some(op) = op else {
        d.inst.ops[0] = d.write(d.operand(0)?, Type::B32)?;
        return d.emit(Kind::Plain, logic::lop3_of(table as u8));
    };
    let Operand::Pair(value, p) = d.operand(0)? else {
        return Err(d.invalid("without a predicate destination"));
    };
    d.inst.ops[4] = d.read(d.operand(5)?, Type::Pred)?;
    d.inst.aux[1] = op;
    d.inst.ops[0] = d.write(value, Type::B32)?;
    let p = d.write(p, Type::Pred)?;
    d.pool(&[p])?;
    d.emit(Kind::Plain, logic::lop3())
}

fn shf(d: &mut Dec) -> Result<()> {
    if d.ty()? != Type::B32 {
        return Err(d.unsupported("this type"));
    }
    let left = d.need(".l or .r", &[("l", true), ("r", false)])?;
    let wrap = d.need(".wrap or .clamp", &[("wrap", true), ("clamp", false)])?;
    match (left, wrap) {
        (true, true) => d.ter(|a: u32, b: u32, c: u32| (join(a, b) << (c & 31) >> 32) as u32),
        (true, false) => d.ter(|a: u32, b: u32, c: u32| (join(a, b) << c.min(32) >> 32) as u32),
        (false, true) => d.ter(|a: u32, b: u32, c: u32| (join(a, b) >> (c & 31)) as u32),
        (false, false) => d.ter(|a: u32, b: u32, c: u32| (join(a, b) >> c.min(32)) as u32),
    }
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn prmt(d: &mut Dec) -> Result<()> {
    if d.ty()? != Type::B32 {
        return Err(d.unsupported("this type"));
    }
    let mode =
        d.one_of(&[("f4e", 1u8), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)]).unwrap_or(0);
    d.arity(4)?;
    for k in 1..4 {
        d.inst.ops[k] = d.read(d.operand(k)?, Type::B32)?;
    }
    d.inst.ops[0] = d.write(d.operand(0)?, Type::B32)?;
    d.inst.aux[0] = mode;
    if let Operand::Int(s) = d.operand(3)? {
        let s = logic::selector(mode, *s as u32);
        if s & 0x8888 == 0 {
            d.inst.imm = i64::from(s);
            return d.emit(Kind::Plain, logic::prmt_const());
        }
    }
    d.emit(Kind::Plain, logic::prmt())
}

/// `popc clz bfind fns brev bfe bfi szext bmsk`
pub(super) fn bits(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    match d.base {
        "popc" => int_types!(d, ty, T in [B32 u32, B64 u64] => d.un(|a: T| a.count_ones())),
        "clz" => int_types!(d, ty, T in [B32 u32, B64 u64] => d.un(|a: T| a.leading_zeros())),
        "brev" => int_types!(d, ty, T in [B32 u32, B64 u64] => d.un(|a: T| a.reverse_bits())),
        "bfind" => {
            let shift = d.flag("shiftamt");
            if shift {
                int_types!(d, ty, T in [U32 u32, U64 u64] =>
                d.un(|a: T| if a == 0 { u32::MAX } else { a.leading_zeros() }),
                else [S32 i32, S64 i64] => d.un(|a: T| {
                    let a = if a < 0 { !a } else { a };
                    if a == 0 { u32::MAX } else { a.leading_zeros() }
                }))
            } else {
                int_types!(d, ty, T in [U32 u32, U64 u64] =>
                d.un(|a: T| if a == 0 { u32::MAX } else { T::BITS - 1 - a.leading_zeros() }),
                else [S32 i32, S64 i64] => d.un(|a: T| {
                    let a = if a < 0 { !a } else { a };
                    if a == 0 { u32::MAX } else { T::BITS - 1 - a.leading_zeros() }
                }))
            }
        }
        "fns" if ty == Type::B32 => d.ter(|m: u32, base: u32, offset: i32| logic::fns(m, base, offset)),
        "bfe" => match ty {
            Type::U32 => d.ter(|a: u32, b: u32, c: u32| logic::bfe_u32(a, b, c)),
            Type::S32 => d.ter(|a: i32, b: u32, c: u32| logic::bfe_s32(a, b, c)),
            Type::U64 => d.ter(|a: u64, b: u32, c: u32| logic::bfe_u64(a, b, c)),
            Type::S64 => d.ter(|a: i64, b: u32, c: u32| logic::bfe_s64(a, b, c)),
            _ => Err(d.unsupported("this type")),
        },
        "bfi" => bfi(d, ty),
        "szext" => {
            let wrap = d.need(".wrap or .clamp", &[("wrap", true), ("clamp", false)])?;
            match (ty, wrap) {
                (Type::U32, true) => d.bin(|a: u32, n: u32| logic::bfe_u32(a, 0, n & 31)),
                (Type::U32, false) => d.bin(|a: u32, n: u32| logic::bfe_u32(a, 0, n.min(32))),
                (Type::S32, true) => d.bin(|a: i32, n: u32| logic::bfe_s32(a, 0, n & 31)),
                (Type::S32, false) => d.bin(|a: i32, n: u32| logic::bfe_s32(a, 0, n.min(32))),
                _ => Err(d.unsupported("this type")),
            }
        }
        "bmsk" if ty == Type::B32 => {
            if d.need(".wrap or .clamp", &[("wrap", true), ("clamp", false)])? {
                d.bin(|a: u32, b: u32| logic::field(a & 31, b & 31, 32) as u32)
            } else {
                d.bin(|a: u32, b: u32| logic::field(a.min(32), b.min(32), 32) as u32)
            }
        }
        _ => Err(d.unsupported("this type")),
    }
}

/// `d` = b with the low bits of a at position c, d bits long.
fn bfi(d: &mut Dec, ty: Type) -> Result<()> {
    d.arity(5)?;
    if !matches!(ty, Type::B32 | Type::B64) {
        return Err(d.unsupported("this type"));
    }
    d.inst.ops[1] = d.read(d.operand(1)?, ty)?;
    d.inst.ops[2] = d.read(d.operand(2)?, ty)?;
    d.inst.ops[3] = d.read(d.operand(3)?, Type::U32)?;
    d.inst.ops[4] = d.read(d.operand(4)?, Type::U32)?;
    d.inst.ops[0] = d.write(d.operand(0)?, ty)?;
    let exec = if ty == Type::B64 { logic::bfi::<u64>() } else { logic::bfi::<u32>() };
    d.emit(Kind::Plain, exec)
}
