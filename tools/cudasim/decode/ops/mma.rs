//! `mma` and `wmma`.

use super::super::builder::Result;
use super::super::dec::Dec;
use crate::exec::float::half::Format;
use crate::exec::inst::{ExecFn, Kind};
use crate::exec::mma::integer::int_flag;
use crate::exec::mma::{double, float, integer};
use crate::ptx::ast::Type;

/// `m16n8k16` as numbers.
fn shape(d: &mut Dec) -> Result<(u32, u32, u32)> {
    let found = d.mods.iter().find_map(|m| {
        let (m_size, rest) = m.strip_prefix('m')?.split_once('n')?;
        let (n, k) = rest.split_once('k')?;
        Some((*m, m_size.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
    });
    let Some((word, m, n, k)) = found else { return Err(d.unsupported("without a shape")) };
    d.flag(word);
    Ok((m, n, k))
}

/// Numbers of registers of d, a, b and c, and whether they are 64-bit.
struct Registers {
    d: usize,
    a: usize,
    b: usize,
    c: usize,
    ty: Type,
}

/// `mma.sync.aligned.shape.row.col.dtype.atype.btype.ctype d, a, b, c`
pub(super) fn mma(d: &mut Dec) -> Result<()> {
    for word in ["sync", "aligned"] {
        d.need(word, &[(word, ())])?;
    }
    let (m, n, k) = shape(d)?;
    for word in ["row", "col"] {
        d.need(word, &[(word, ())])?;
    }
    let &[dt, at, bt, ct] = &d.types[..] else { return Err(d.unsupported("four types are expected")) };
    let (exec, r) = function(d, (m, n, k), [dt, at, bt, ct])?;
    d.arity(4)?;
    let mut rows = Vec::new();
    for (operand, count) in [(1, r.a), (2, r.b), (3, r.c)] {
        let parts = d.vector(operand)?;
        if parts.len() != count {
            return Err(d.invalid(format!(
                "{} registers in operand {}, expected {count}",
                parts.len(),
                operand + 1
            )));
        }
        for p in parts {
            rows.push(d.read(p, r.ty)?);
        }
    }
    let parts = d.vector(0)?;
    if parts.len() != r.d {
        return Err(d.invalid(format!("{} destinations, expected {}", parts.len(), r.d)));
    }
    let mut all = Vec::new();
    for p in parts {
        all.push(d.write(p, r.ty)?);
    }
    all.extend(rows);
    d.pool(&all)?;
    d.emit(Kind::Collective, exec)
}

fn function(d: &mut Dec, shape: (u32, u32, u32), types: [Type; 4]) -> Result<(ExecFn, Registers)> {
    let [dt, at, bt, ct] = types;
    let unsupported = |d: &Dec| d.unsupported("this shape with these types");
    match (at, bt) {
        (Type::F16, Type::F16) | (Type::Bf16, Type::Bf16) if shape.0 == 16 && shape.1 == 8 => {
            let format = if at == Type::F16 { Format::F16 } else { Format::Bf16 };
            let halves = |t: Type| match t {
                Type::F32 => Some(false),
                Type::F16 if at == Type::F16 => Some(true),
                _ => None,
            };
            let (Some(d_half), Some(c_half)) = (halves(dt), halves(ct)) else { return Err(unsupported(d)) };
            let exec = float::halves(format, shape.2).ok_or_else(|| unsupported(d))?;
            d.inst.aux[1] = u8::from(c_half) | u8::from(d_half) << 1;
            let t = shape.2 as usize / 8;
            let of = |half: bool| if half { 2 } else { 4 };
            Ok((exec, Registers { d: of(d_half), a: 2 * t, b: t, c: of(c_half), ty: Type::B32 }))
        }
        (Type::Tf32, Type::Tf32) if shape.0 == 16 && shape.1 == 8 && dt == Type::F32 && ct == Type::F32 => {
            let exec = float::tf32s(shape.2).ok_or_else(|| unsupported(d))?;
            let t = shape.2 as usize / 4;
            Ok((exec, Registers { d: 4, a: 2 * t, b: t, c: 4, ty: Type::B32 }))
        }
        (Type::F64, Type::F64) if dt == Type::F64 && ct == Type::F64 && shape.1 == 8 => {
            let (halves, t) = match shape {
                (8, _, 4) => (1, 1),
                (16, _, 4) => (2, 1),
                (16, _, 8) => (2, 2),
                (16, _, 16) => (2, 4),
                _ => return Err(unsupported(d)),
            };
            if d.flag("rn") || !["rz", "rm", "rp"].iter().any(|r| d.mods.contains(r)) {
                d.inst.aux[1] = halves as u8;
                d.inst.aux[2] = t as u8;
                return Ok((
                    double::mma,
                    Registers { d: 2 * halves, a: halves * t, b: t, c: 2 * halves, ty: Type::B64 },
                ));
            }
            Err(d.unsupported("this rounding"))
        }
        _ if dt == Type::S32 && ct == Type::S32 && shape.1 == 8 => integers(d, shape, at, bt),
        _ => Err(unsupported(d)),
    }
}

fn integers(d: &mut Dec, shape: (u32, u32, u32), at: Type, bt: Type) -> Result<(ExecFn, Registers)> {
    let bits = at.bits();
    let ok = match (at, bt) {
        (Type::S8 | Type::U8, Type::S8 | Type::U8) | (Type::S4 | Type::U4, Type::S4 | Type::U4) => true,
        (Type::B1, Type::B1) => true,
        _ => false,
    };
    let per_register = 128 / bits;
    let halves = (shape.0 / 8) as usize;
    let t = (shape.2 / per_register) as usize;
    let fits = shape.2 % per_register == 0 && matches!((shape.0, t), (8, 1) | (16, 1 | 2));
    if !ok || !fits {
        return Err(d.unsupported("this shape with these types"));
    }
    let mut flags = 0;
    if at.signed() {
        flags |= int_flag::A_SIGNED;
    }
    if bt.signed() {
        flags |= int_flag::B_SIGNED;
    }
    if d.flag("satfinite") {
        flags |= int_flag::SATURATE;
    }
    if shape.0 == 16 {
        flags |= int_flag::M16;
    }
    if bits == 1 {
        if d.need(".xor or .and", &[("xor", false), ("and", true)])? {
            flags |= int_flag::AND;
        }
        d.need(".popc", &[("popc", ())])?;
    }
    d.inst.aux[1] = flags;
    let exec = integer::integers(bits, t).ok_or_else(|| d.unsupported("this shape with these types"))?;
    Ok((exec, Registers { d: 2 * halves, a: halves * t, b: t, c: 2 * halves, ty: Type::B32 }))
}

/// `wmma`
pub(super) fn wmma(d: &mut Dec) -> Result<()> {
    Err(d.unsupported(""))
}
