//! `setp` and `set`.

#![allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::double_comparisons,
    reason = "PTX has it so: unordered comparisons are negated ordered ones, and `ne` is false for NaN"
)]

use super::super::builder::{Result, class_of};
use super::super::dec::Dec;
use super::super::program::Class;
use super::int_types;
use crate::exec::float::f32s::ftz;
use crate::exec::float::half::{self, Format, half_flag};
use crate::exec::inst::{ExecFn, Inst, Kind};
use crate::exec::lanes::{self, combine};
use crate::ptx::ast::{Operand, Type};

const OPS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu",
    "num", "nan",
];

fn op(d: &mut Dec) -> Result<&'static str> {
    let choices: Vec<(&str, &'static str)> = OPS.iter().map(|&o| (o, o)).collect();
    d.need("a comparison", &choices)
}

/// The comparison of two values of a type as a function on rows.
fn function(d: &mut Dec, op: &str, ty: Type) -> Result<ExecFn> {
    macro_rules! cmp {
        ($T:ty, |$a:ident, $b:ident| $e:expr) => {
            Ok(lanes::cmp(|$a: $T, $b: $T| $e))
        };
    }
    macro_rules! floats {
        ($T:ty, $f:expr) => {{
            match op {
                "eq" => cmp!($T, |a, b| $f(a) == $f(b)),
                "ne" => cmp!($T, |a, b| $f(a) < $f(b) || $f(a) > $f(b)),
                "lt" => cmp!($T, |a, b| $f(a) < $f(b)),
                "le" => cmp!($T, |a, b| $f(a) <= $f(b)),
                "gt" => cmp!($T, |a, b| $f(a) > $f(b)),
                "ge" => cmp!($T, |a, b| $f(a) >= $f(b)),
                "equ" => cmp!($T, |a, b| !($f(a) < $f(b) || $f(a) > $f(b))),
                "neu" => cmp!($T, |a, b| $f(a) != $f(b)),
                "ltu" => cmp!($T, |a, b| !($f(a) >= $f(b))),
                "leu" => cmp!($T, |a, b| !($f(a) > $f(b))),
                "gtu" => cmp!($T, |a, b| !($f(a) <= $f(b))),
                "geu" => cmp!($T, |a, b| !($f(a) < $f(b))),
                "num" => cmp!($T, |a, b| !a.is_nan() && !b.is_nan()),
                "nan" => cmp!($T, |a, b| a.is_nan() || b.is_nan()),
                _ => Err(d.unsupported(format!(".{op} of floats"))),
            }
        }};
    }
    match ty {
        Type::F32 => {
            if d.flag("ftz") {
                return floats!(f32, ftz);
            }
            return floats!(f32, (|x: f32| x));
        }
        Type::F64 => return floats!(f64, (|x: f64| x)),
        _ => {}
    }
    let signed = ty.signed();
    match op {
        "eq" => {
            int_types!(d, ty, T in [B16 u16, U16 u16, S16 u16, B32 u32, U32 u32, S32 u32, B64 u64, U64 u64, S64 u64] =>
            cmp!(T, |a, b| a == b))
        }
        "ne" => {
            int_types!(d, ty, T in [B16 u16, U16 u16, S16 u16, B32 u32, U32 u32, S32 u32, B64 u64, U64 u64, S64 u64] =>
            cmp!(T, |a, b| a != b))
        }
        // The unsigned names are those of unsigned types only, but bits may be compared by them too.
        "lt" | "lo" if op == "lt" || !signed => {
            int_types!(d, ty, T in [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] => cmp!(T, |a, b| a < b))
        }
        "le" | "ls" if op == "le" || !signed => {
            int_types!(d, ty, T in [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] => cmp!(T, |a, b| a <= b))
        }
        "gt" | "hi" if op == "gt" || !signed => {
            int_types!(d, ty, T in [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] => cmp!(T, |a, b| a > b))
        }
        "ge" | "hs" if op == "ge" || !signed => {
            int_types!(d, ty, T in [U16 u16, S16 i16, U32 u32, S32 i32, U64 u64, S64 i64] => cmp!(T, |a, b| a >= b))
        }
        _ => Err(d.unsupported(format!(".{op} of this type"))),
    }
}

/// The comparison of halves, by the shape of the instruction.
macro_rules! half_function {
    ($d:ident, $by:path, $format:expr, $op:expr) => {
        match $op {
            "eq" => $by($format, |a: f32, b: f32| a == b),
            "ne" => $by($format, |a: f32, b: f32| a < b || a > b),
            "lt" => $by($format, |a: f32, b: f32| a < b),
            "le" => $by($format, |a: f32, b: f32| a <= b),
            "gt" => $by($format, |a: f32, b: f32| a > b),
            "ge" => $by($format, |a: f32, b: f32| a >= b),
            "equ" => $by($format, |a: f32, b: f32| !(a < b || a > b)),
            "neu" => $by($format, |a: f32, b: f32| a != b),
            "ltu" => $by($format, |a: f32, b: f32| !(a >= b)),
            "leu" => $by($format, |a: f32, b: f32| !(a > b)),
            "gtu" => $by($format, |a: f32, b: f32| !(a <= b)),
            "geu" => $by($format, |a: f32, b: f32| !(a < b)),
            "num" => $by($format, |a: f32, b: f32| !a.is_nan() && !b.is_nan()),
            "nan" => $by($format, |a: f32, b: f32| a.is_nan() || b.is_nan()),
            other => return Err($d.unsupported(format!(".{other} of halves"))),
        }
    };
}

fn format_of(ty: Type) -> Option<(Format, bool)> {
    Some(match ty {
        Type::F16 => (Format::F16, true),
        Type::F16x2 => (Format::F16, false),
        Type::Bf16 => (Format::Bf16, true),
        Type::Bf16x2 => (Format::Bf16, false),
        _ => return None,
    })
}

fn combination(d: &mut Dec) -> u8 {
    d.one_of(&[("and", combine::AND), ("or", combine::OR), ("xor", combine::XOR)]).unwrap_or(combine::NONE)
}

/// `setp.op{.bool}.type p{|q}, a, b{, c}`
pub(super) fn setp(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    let op = op(d)?;
    let combined = combination(d);
    d.arity(if combined == combine::NONE { 3 } else { 4 })?;
    d.inst.aux[0] = combined;
    d.inst.ops[1] = d.read(d.operand(1)?, ty)?;
    d.inst.ops[2] = d.read(d.operand(2)?, ty)?;
    if combined != combine::NONE {
        d.inst.ops[4] = d.read(d.operand(3)?, Type::Pred)?;
    }
    let exec = match format_of(ty) {
        Some((format, scalar)) => {
            d.inst.aux[2] =
                if d.flag("ftz") { half_flag::FTZ } else { 0 } | if scalar { half_flag::SCALAR } else { 0 };
            half_function!(d, half::setp, format, op)
        }
        None => function(d, op, ty)?,
    };
    match d.operand(0)? {
        Operand::Pair(p, q) => {
            d.inst.ops[0] = d.write(p, Type::Pred)?;
            d.inst.ops[3] = d.write(q, Type::Pred)?;
            d.inst.aux[1] = 1;
        }
        p => d.inst.ops[0] = d.write(p, Type::Pred)?,
    }
    d.emit(Kind::Plain, exec)
}

/// `set.op{.bool}.dtype.type d, a, b{, c}`
pub(super) fn set(d: &mut Dec) -> Result<()> {
    let &[to, ty] = &d.types[..] else { return Err(d.unsupported("two types are expected")) };
    let op = op(d)?;
    let combined = combination(d);
    if let Some((format, scalar)) = format_of(ty) {
        if combined != combine::NONE {
            return Err(d.unsupported("combination of halves"));
        }
        d.arity(3)?;
        d.inst.aux[2] =
            if d.flag("ftz") { half_flag::FTZ } else { 0 } | if scalar { half_flag::SCALAR } else { 0 };
        d.inst.aux[3] = match to {
            _ if to == ty => 0,
            Type::U16 | Type::S16 | Type::U32 | Type::S32 => 1,
            Type::F32 if scalar => 2,
            _ => return Err(d.unsupported("this destination type")),
        };
        d.inst.ops[1] = d.read(d.operand(1)?, ty)?;
        d.inst.ops[2] = d.read(d.operand(2)?, ty)?;
        d.inst.ops[0] = d.write(d.operand(0)?, to)?;
        let exec = half_function!(d, half::set, format, op);
        return d.emit(Kind::Plain, exec);
    }
    // A comparison into a predicate, then a selection.
    d.arity(if combined == combine::NONE { 3 } else { 4 })?;
    let exec = function(d, op, ty)?;
    d.inst.aux[0] = combined;
    d.inst.ops[1] = d.read(d.operand(1)?, ty)?;
    d.inst.ops[2] = d.read(d.operand(2)?, ty)?;
    if combined != combine::NONE {
        d.inst.ops[4] = d.read(d.operand(3)?, Type::Pred)?;
    }
    let p = d.b.virtual_reg(Class::Pred);
    d.inst.ops[0] = p;
    let one = match to {
        Type::F32 => u64::from(1.0f32.to_bits()),
        Type::U32 | Type::S32 => u64::from(u32::MAX),
        _ => return Err(d.unsupported("this destination type")),
    };
    debug_assert_eq!(class_of(to), Class::W32);
    let mut choose = Inst::new(Kind::Plain, lanes::select::<u32>());
    choose.ops[1] = d.b.fill(super::super::program::Fill::Row32(one as u32));
    choose.ops[2] = d.b.fill(super::super::program::Fill::Row32(0));
    choose.ops[3] = p;
    let before = d.meta.defs.len();
    choose.ops[0] = d.write(d.operand(0)?, to)?;
    let defs = d.meta.defs.split_off(before);
    d.meta.defs.push(p);
    d.after(choose, vec![p], defs);
    d.emit(Kind::Plain, exec)
}
