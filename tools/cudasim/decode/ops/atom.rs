//! `atom` and `red`.

use super::super::builder::Result;
use super::super::dec::Dec;
use super::mem::{ordering, space_of};
use crate::exec::elem::{B, H, Two};
use crate::exec::float::f32s::{canon, ftz};
use crate::exec::float::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::exec::inst::{ExecFn, Kind};
use crate::exec::mem::atom::{Cell16, Cell32, Cell64, atom};
use crate::exec::mem::{mem_flag, space};
use crate::ptx::ast::{Space, Type};

/// `atom{.sem}{.scope}{.space}.op.type d, [a], b{, c}` and `red … [a], b`
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    let returns = d.base == "atom";
    let (number, _) = space_of(d);
    // Some operations share their names with nothing else, so that the order of modifiers does not matter.
    let op = d.need(
        "an operation",
        &[
            ("exch", "exch"),
            ("cas", "cas"),
            ("and", "and"),
            ("or", "or"),
            ("xor", "xor"),
            ("add", "add"),
            ("inc", "inc"),
            ("dec", "dec"),
            ("min", "min"),
            ("max", "max"),
        ],
    )?;
    let flags = ordering(d)?;
    let ty = d.ty()?;
    if !returns && matches!(op, "exch" | "cas") {
        return Err(d.unsupported("red without a reduction"));
    }
    let noftz = d.flag("noftz");
    if d.mods.iter().any(|m| m.starts_with('v')) {
        return Err(d.unsupported("vectors"));
    }
    let operands = 2 + usize::from(returns) + usize::from(op == "cas");
    let hinted = d.flag("L2::cache_hint");
    d.arity(operands + usize::from(hinted))?;
    if hinted {
        d.read(d.operand(operands)?, Type::B64)?;
    }
    let a = usize::from(returns);
    let info = d.address(0, a)?;
    let number = match info.space {
        None => number,
        Some(Space::Global) => space::GLOBAL,
        Some(Space::Shared) => space::SHARED,
        Some(_) => return Err(d.unsupported("atomics on this space")),
    };
    if !matches!(number, space::GLOBAL | space::SHARED | space::GENERIC) {
        return Err(d.unsupported("atomics on this space"));
    }
    d.inst.aux[0] = flags | mem_flag::ORDERED | if info.wide { mem_flag::WIDE } else { 0 };
    d.inst.aux[1] = number;
    d.inst.aux[2] = u8::from(returns);
    if number != space::GLOBAL {
        d.b.program.shared_granule = d.b.program.shared_granule.min(ty.bytes());
    }
    let exec = function(d, op, ty, noftz)?;
    d.inst.ops[2] = d.read(d.operand(a + 1)?, ty)?;
    d.inst.ops[3] = if op == "cas" { d.read(d.operand(a + 2)?, ty)? } else { d.inst.ops[2] };
    if returns {
        d.inst.ops[1] = d.write(d.operand(0)?, ty)?;
        d.meta.load = if number == space::SHARED { 2 } else { 1 };
    }
    d.emit(Kind::Memory, exec)
}

fn each(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

fn add_f16(a: u16, b: u16) -> u16 {
    f32_to_f16(f16_to_f32(a) + f16_to_f32(b))
}

fn add_bf16(a: u16, b: u16) -> u16 {
    f32_to_bf16(bf16_to_f32(a) + bf16_to_f32(b))
}

fn function(d: &mut Dec, op: &str, ty: Type, noftz: bool) -> Result<ExecFn> {
    use Type::*;
    if matches!(ty, F16 | F16x2 | Bf16 | Bf16x2) && op == "add" && !noftz {
        return Err(d.unsupported("without .noftz"));
    }
    Ok(match (op, ty) {
        ("exch", B32 | U32 | S32) => atom::<Cell32, u32, _>(|_, b, _| b),
        ("exch", B64 | U64 | S64) => atom::<Cell64, u64, _>(|_, b, _| b),
        ("cas", B16 | U16) => atom::<Cell16, u16, _>(|a, b, c| if a == b { c } else { a }),
        ("cas", B32 | U32 | S32) => atom::<Cell32, u32, _>(|a, b, c| if a == b { c } else { a }),
        ("cas", B64 | U64 | S64) => atom::<Cell64, u64, _>(|a, b, c| if a == b { c } else { a }),
        ("and", B32 | U32 | S32) => atom::<Cell32, u32, _>(|a, b, _| a & b),
        ("or", B32 | U32 | S32) => atom::<Cell32, u32, _>(|a, b, _| a | b),
        ("xor", B32 | U32 | S32) => atom::<Cell32, u32, _>(|a, b, _| a ^ b),
        ("and", B64 | U64 | S64) => atom::<Cell64, u64, _>(|a, b, _| a & b),
        ("or", B64 | U64 | S64) => atom::<Cell64, u64, _>(|a, b, _| a | b),
        ("xor", B64 | U64 | S64) => atom::<Cell64, u64, _>(|a, b, _| a ^ b),
        ("add", U32 | S32) => atom::<Cell32, u32, _>(|a, b, _| a.wrapping_add(b)),
        ("add", U64 | S64) => atom::<Cell64, u64, _>(|a, b, _| a.wrapping_add(b)),
        // Atomic sums in global memory flush subnormals, those in shared memory do not; a difference of 1e-38.
        ("add", F32) if d.inst.aux[1] == space::GLOBAL => {
            atom::<Cell32, f32, _>(|a, b, _| ftz(canon(ftz(a) + ftz(b))))
        }
        ("add", F32) => atom::<Cell32, f32, _>(|a, b, _| canon(a + b)),
        ("add", F64) => atom::<Cell64, f64, _>(|a, b, _| a + b),
        ("add", F16) => atom::<Cell16, H, _>(|a, b, _| H(add_f16(a.0, b.0))),
        ("add", Bf16) => atom::<Cell16, B, _>(|a, b, _| B(add_bf16(a.0, b.0))),
        ("add", F16x2) => atom::<Cell32, Two, _>(|a, b, _| Two(each(a.0, b.0, add_f16))),
        ("add", Bf16x2) => atom::<Cell32, Two, _>(|a, b, _| Two(each(a.0, b.0, add_bf16))),
        ("inc", U32) => atom::<Cell32, u32, _>(|a, b, _| if a >= b { 0 } else { a + 1 }),
        ("dec", U32) => atom::<Cell32, u32, _>(|a, b, _| if a == 0 || a > b { b } else { a - 1 }),
        ("min", U32) => atom::<Cell32, u32, _>(|a, b, _| a.min(b)),
        ("min", S32) => atom::<Cell32, i32, _>(|a, b, _| a.min(b)),
        ("min", U64) => atom::<Cell64, u64, _>(|a, b, _| a.min(b)),
        ("min", S64) => atom::<Cell64, i64, _>(|a, b, _| a.min(b)),
        ("max", U32) => atom::<Cell32, u32, _>(|a, b, _| a.max(b)),
        ("max", S32) => atom::<Cell32, i32, _>(|a, b, _| a.max(b)),
        ("max", U64) => atom::<Cell64, u64, _>(|a, b, _| a.max(b)),
        ("max", S64) => atom::<Cell64, i64, _>(|a, b, _| a.max(b)),
        _ => return Err(d.unsupported("this operation on this type")),
    })
}
