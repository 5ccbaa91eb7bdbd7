//! Arithmetic on f16, bf16 and pairs of them.

use super::super::builder::Result;
use super::super::dec::Dec;
use crate::exec::float::f32s::{self, max, max_nan, min, min_nan, xorsign};
use crate::exec::float::half::{self, Format, half_flag};
use crate::exec::inst::Kind;
use crate::exec::lanes;
use crate::ptx::ast::Type;

/// Everything on halves.
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    let (format, scalar) = match ty {
        Type::F16 => (Format::F16, true),
        Type::F16x2 => (Format::F16, false),
        Type::Bf16 => (Format::Bf16, true),
        Type::Bf16x2 => (Format::Bf16, false),
        _ => return Err(d.unsupported("this type")),
    };
    let mut flags = if scalar { half_flag::SCALAR } else { 0 };
    for (word, bit) in [("sat", half_flag::SAT), ("relu", half_flag::RELU), ("ftz", half_flag::FTZ)] {
        if d.flag(word) {
            flags |= bit;
        }
    }
    let allowed = match d.base {
        "add" | "sub" | "mul" => half_flag::SAT | half_flag::FTZ,
        "fma" => half_flag::SAT | half_flag::FTZ | half_flag::RELU,
        _ => half_flag::FTZ,
    };
    if flags & !half_flag::SCALAR & !allowed != 0 {
        return Err(d.unsupported("this modifier with this operation"));
    }
    d.inst.aux[0] = flags;
    let sources = match d.base {
        "add" | "sub" | "mul" | "min" | "max" => 2,
        "fma" => 3,
        _ => 1,
    };
    d.arity(sources + 1)?;
    for k in 1..=sources {
        d.inst.ops[k] = d.read(d.operand(k)?, ty)?;
    }
    d.inst.ops[0] = d.write(d.operand(0)?, ty)?;
    d.flag("rn");
    let exec = match d.base {
        "add" => half::apply::<2, _>(format, |a, b, _| a + b),
        "sub" => half::apply::<2, _>(format, |a, b, _| a - b),
        "mul" => half::apply::<2, _>(format, |a, b, _| a * b),
        "fma" => half::fused(format),
        "min" | "max" => {
            let nan = d.flag("NaN");
            let (x, a) = (d.flag("xorsign"), d.flag("abs"));
            if x != a {
                return Err(d.unsupported(".xorsign and .abs go together"));
            }
            match (d.base, nan, x) {
                ("min", false, false) => half::apply::<2, _>(format, |a, b, _| min(a, b)),
                ("min", true, false) => half::apply::<2, _>(format, |a, b, _| min_nan(a, b)),
                ("min", false, true) => half::apply::<2, _>(format, |a, b, _| xorsign(min, a, b)),
                ("min", true, true) => half::apply::<2, _>(format, |a, b, _| xorsign(min_nan, a, b)),
                (_, false, false) => half::apply::<2, _>(format, |a, b, _| max(a, b)),
                (_, true, false) => half::apply::<2, _>(format, |a, b, _| max_nan(a, b)),
                (_, false, true) => half::apply::<2, _>(format, |a, b, _| xorsign(max, a, b)),
                (_, true, true) => half::apply::<2, _>(format, |a, b, _| xorsign(max_nan, a, b)),
            }
        }
        // These change only the sign, also of NaNs.
        "abs" if flags & half_flag::FTZ == 0 => lanes::un(|a: u32| a & 0x7fff_7fff),
        "neg" if flags & half_flag::FTZ == 0 && scalar => lanes::un(|a: u32| (a ^ 0x8000) & 0xffff),
        "neg" if flags & half_flag::FTZ == 0 => lanes::un(|a: u32| a ^ 0x8000_8000),
        "abs" => half::apply::<1, _>(format, |a, _, _| a.abs()),
        "neg" => half::apply::<1, _>(format, |a, _, _| -a),
        "ex2" | "tanh" => {
            d.need(".approx", &[("approx", ())])?;
            if d.base == "ex2" {
                half::apply::<1, _>(format, |a, _, _| f32s::ex2(a))
            } else {
                half::apply::<1, _>(format, |a, _, _| f32s::tanh(a))
            }
        }
        _ => return Err(d.unsupported("")),
    };
    d.emit(Kind::Plain, exec)
}
