//! Moves, selections and conversions of addresses.

use super::super::builder::{Result, class_of};
use super::super::dec::{Dec, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use super::super::program::Class;
use crate::exec::inst::{ExecFn, Inst, Kind};
use crate::exec::mem::special;
use crate::exec::{lanes, pred};
use crate::ptx::ast::{Operand, Space, Type};

/// `mov`, with packing and unpacking of vectors.
pub(super) fn mov(d: &mut Dec) -> Result<()> {
    let ty = d.ty()?;
    d.arity(2)?;
    let (to, from) = (d.operand(0)?, d.operand(1)?);
    match (to, from) {
        (Operand::Vector(parts), _) => unpack(d, ty, parts, from),
        (_, Operand::Vector(parts)) => pack(d, ty, parts, to),
        _ if ty == Type::Pred => {
            d.inst.ops[1] = d.read(from, ty)?;
            d.inst.ops[0] = d.write(to, ty)?;
            d.emit(Kind::Plain, pred::mov())
        }
        _ => {
            if let Operand::Name(name) = from
                && let Some(exec) = clock(name)
                && d.b.lookup(name).is_none()
            {
                let wide = matches!(name.as_str(), "%clock64" | "%globaltimer");
                d.inst.ops[0] = d.write(to, if wide { Type::U64 } else { Type::U32 })?;
                return d.emit(Kind::Memory, exec);
            }
            // `mov.u16 %rs, %tid.x` reads the low bits of a special register.
            let read = if ty.bits() < 32
                && matches!(from, Operand::Name(n) if n.starts_with('%') && d.b.lookup(n).is_none())
            {
                Type::U32
            } else {
                ty
            };
            d.inst.ops[1] = d.read(from, read)?;
            d.inst.ops[0] = d.write_wide(to, unsigned(ty))?;
            d.emit(Kind::Plain, copy(ty))
        }
    }
}

fn unsigned(ty: Type) -> Type {
    match ty.bits() {
        8 => Type::B8,
        16 => Type::B16,
        32 => Type::B32,
        64 => Type::B64,
        _ => ty,
    }
}

fn clock(name: &str) -> Option<ExecFn> {
    Some(match name {
        "%clock64" | "%globaltimer" => special::clock64,
        "%clock" | "%globaltimer_lo" => special::clock,
        "%clock_hi" | "%globaltimer_hi" => special::clock_hi,
        _ => return None,
    })
}

/// A copy of a row.
pub(super) fn copy(ty: Type) -> ExecFn {
    match class_of(ty) {
        Class::W32 => lanes::un(|a: u32| a),
        Class::W64 => lanes::un(|a: u64| a),
        _ => crate::exec::wide::copy,
    }
}

/// `{a, b, …} = x`
fn unpack(d: &mut Dec, ty: Type, parts: &[Operand], from: &Operand) -> Result<()> {
    let n = parts.len() as u32;
    let part = part_type(d, ty, n)?;
    if let Some((_, rty)) = d.register(from)
        && rty.bits() != ty.bits()
    {
        return Err(d.invalid(format!("a source of {} bits", rty.bits())));
    }
    d.inst.ops[1] = d.read(from, ty)?;
    for (k, p) in parts.iter().enumerate() {
        d.inst.ops[if k == 0 { 0 } else { k + 1 }] = d.write(p, part)?;
    }
    let exec = match (ty.bits(), n) {
        (32, 2) => crate::exec::wide::unpack::<u32, 16>(2),
        (32, 4) => crate::exec::wide::unpack::<u32, 8>(4),
        (64, 2) => crate::exec::wide::unpack::<u64, 32>(2),
        (64, 4) => crate::exec::wide::unpack::<u64, 16>(4),
        (128, 2) => crate::exec::wide::unpack_128_64(),
        (16, 2) => crate::exec::wide::unpack::<u32, 8>(2),
        _ => return Err(d.unsupported("unpacking of this shape")),
    };
    d.emit(Kind::Plain, exec)
}

/// `x = {a, b, …}`
fn pack(d: &mut Dec, ty: Type, parts: &[Operand], to: &Operand) -> Result<()> {
    let n = parts.len() as u32;
    let part = part_type(d, ty, n)?;
    for (k, p) in parts.iter().enumerate() {
        d.inst.ops[k + 1] = d.read(p, part)?;
    }
    d.inst.ops[0] = d.write(to, ty)?;
    let exec = match (ty.bits(), n) {
        (16, 2) => lanes::bin(|a: u8, b: u8| u16::from(a) | u16::from(b) << 8),
        (32, 2) => lanes::bin(|a: u16, b: u16| u32::from(a) | u32::from(b) << 16),
        (32, 4) => crate::exec::wide::pack::<u32, 8>(4),
        (64, 2) => lanes::bin(|a: u32, b: u32| u64::from(a) | u64::from(b) << 32),
        (64, 4) => crate::exec::wide::pack::<u64, 16>(4),
        (128, 2) => crate::exec::wide::pack_128_64(),
        _ => return Err(d.unsupported("packing of this shape")),
    };
    d.emit(Kind::Plain, exec)
}

fn part_type(d: &Dec, ty: Type, n: u32) -> Result<Type> {
    if !matches!(n, 2 | 4) {
        return Err(d.unsupported(format!("a vector of {n}")));
    }
    Ok(match ty.bits() / n {
        8 => Type::B8,
        16 => Type::B16,
        32 => Type::B32,
        64 => Type::B64,
        _ => return Err(d.unsupported("elements of this size")),
    })
}

/// `cvta`
pub(super) fn cvta(d: &mut Dec) -> Result<()> {
    d.arity(2)?;
    let ty = d.ty()?;
    if ty != Type::U64 && ty != Type::U32 {
        return Err(d.unsupported("this type"));
    }
    let to = d.flag("to");
    let space = d.one_of(&SPACES).ok_or_else(|| d.unsupported("without a space"))?;
    if d.mods.iter().any(|m| m.starts_with("param")) {
        return Err(d.unsupported("this space"));
    }
    let from = d.operand(1)?;
    let source = if ty == Type::U64 { Type::U64 } else { Type::U32 };
    // A variable stands for its address in its own space.
    d.inst.ops[1] = d.read(from, source)?;
    d.inst.ops[0] = d.write(d.operand(0)?, ty)?;
    let exec = match (space, to) {
        (Space::Global | Space::Const, _) => lanes::un(|a: u64| a),
        (Space::Shared, false) => lanes::un(|a: u64| (a & 0xffff_ffff) | SHARED_WINDOW),
        (Space::Local, false) => lanes::un(|a: u64| (a & 0xffff_ffff) | LOCAL_WINDOW),
        (Space::Param, false) => lanes::un(|a: u64| (a & 0xffff_ffff) | PARAM_WINDOW),
        (Space::Shared, true) => lanes::un(|a: u64| a.wrapping_sub(SHARED_WINDOW)),
        (Space::Local, true) => lanes::un(|a: u64| a.wrapping_sub(LOCAL_WINDOW)),
        (_, _) => lanes::un(|a: u64| a.wrapping_sub(PARAM_WINDOW)),
    };
    if ty == Type::U32 {
        return Err(d.unsupported("32-bit generic addresses"));
    }
    d.emit(Kind::Plain, exec)
}

/// Names of spaces in modifiers.
pub(super) const SPACES: [(&str, Space); 8] = [
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("local", Space::Local),
    ("const", Space::Const),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("param::func", Space::Param),
];

/// `selp`
pub(super) fn selp(d: &mut Dec) -> Result<()> {
    d.arity(4)?;
    let ty = d.ty()?;
    d.inst.ops[1] = d.read(d.operand(1)?, ty)?;
    d.inst.ops[2] = d.read(d.operand(2)?, ty)?;
    d.inst.ops[3] = d.read(d.operand(3)?, Type::Pred)?;
    d.inst.ops[0] = d.write(d.operand(0)?, ty)?;
    let exec = match class_of(ty) {
        Class::W32 => lanes::select::<u32>(),
        Class::W64 => lanes::select::<u64>(),
        Class::Pred => pred::select(),
        Class::W128 => return Err(d.unsupported("this type")),
    };
    d.emit(Kind::Plain, exec)
}

/// `slct`: `d = c >= 0 ? a : b`
pub(super) fn slct(d: &mut Dec) -> Result<()> {
    d.arity(4)?;
    let &[ty, cty] = &d.types[..] else { return Err(d.unsupported("two types are expected")) };
    let ftz = d.flag("ftz");
    let c = match cty {
        Type::S32 | Type::F32 => cty,
        _ => return Err(d.unsupported("this type")),
    };
    d.inst.ops[1] = d.read(d.operand(1)?, ty)?;
    d.inst.ops[2] = d.read(d.operand(2)?, ty)?;
    d.inst.ops[3] = d.read(d.operand(3)?, c)?;
    d.inst.ops[0] = d.write(d.operand(0)?, ty)?;
    let exec = match (class_of(ty), c) {
        (Class::W32, Type::S32) => lanes::ter(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
        (Class::W64, Type::S32) => lanes::ter(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
        (Class::W32, _) if ftz => {
            lanes::ter(|a: u32, b: u32, c: f32| if crate::exec::float::f32s::ftz(c) >= 0.0 { a } else { b })
        }
        (Class::W64, _) if ftz => {
            lanes::ter(|a: u64, b: u64, c: f32| if crate::exec::float::f32s::ftz(c) >= 0.0 { a } else { b })
        }
        (Class::W32, _) => lanes::ter(|a: u32, b: u32, c: f32| if c >= 0.0 { a } else { b }),
        (Class::W64, _) => lanes::ter(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
        _ => return Err(d.unsupported("this type")),
    };
    d.emit(Kind::Plain, exec)
}

/// `isspacep`
pub(super) fn isspacep(d: &mut Dec) -> Result<()> {
    d.arity(2)?;
    let space = d.one_of(&SPACES).ok_or_else(|| d.unsupported("without a space"))?;
    d.inst.ops[1] = d.read(d.operand(1)?, Type::U64)?;
    d.inst.ops[2] = d.inst.ops[1];
    d.inst.ops[0] = d.write(d.operand(0)?, Type::Pred)?;
    let exec = match space {
        Space::Shared => lanes::cmp(|a: u64, _: u64| a & !0xffff_ffff == SHARED_WINDOW),
        Space::Local => lanes::cmp(|a: u64, _: u64| a & !0xffff_ffff == LOCAL_WINDOW),
        Space::Param => lanes::cmp(|a: u64, _: u64| a & !0xffff_ffff == PARAM_WINDOW),
        Space::Const => lanes::cmp(|_: u64, _: u64| false),
        _ => lanes::cmp(|a: u64, _: u64| a < SHARED_WINDOW),
    };
    d.emit(Kind::Plain, exec)
}

/// A constant row copied into a destination: `ld.param` of the kernel's own parameters.
pub(super) fn from_const(d: &mut Dec, to: &Operand, row: u32, ty: Type) -> Result<()> {
    let mut inst = Inst::new(Kind::Plain, copy(ty));
    inst.ops[1] = row;
    let before = d.meta.defs.len();
    // A narrow register takes the lower bits.
    inst.ops[0] = d.write(to, if ty == Type::B32 { Type::B8 } else { ty })?;
    let defs = d.meta.defs.split_off(before);
    d.after(inst, Vec::new(), defs);
    Ok(())
}
