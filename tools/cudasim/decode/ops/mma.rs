//! `mma` and `wmma`.

use super::super::builder::Result;
use super::super::dec::Dec;
use crate::exec::float::half::Format;
use crate::exec::inst::{ExecFn, Kind};
use crate::exec::mem::{mem_flag, space};
use crate::exec::mma::integer::int_flag;
use crate::exec::mma::wmma::{self, Kind as Element};
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
    let ok = matches!(
        (at, bt),
        (Type::S8 | Type::U8, Type::S8 | Type::U8)
            | (Type::S4 | Type::U4, Type::S4 | Type::U4)
            | (Type::B1, Type::B1)
    );
    let per_register = 128 / bits;
    let halves = (shape.0 / 8) as usize;
    let t = (shape.2 / per_register) as usize;
    let fits = shape.2.is_multiple_of(per_register) && matches!((shape.0, t), (8, 1) | (16, 1 | 2));
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

/// The format that a type stands for in a fragment.
fn kind(ty: Type) -> Option<Element> {
    Some(match ty {
        Type::F16 => Element::F16,
        Type::Bf16 => Element::Bf16,
        Type::Tf32 => Element::Tf32,
        Type::F32 => Element::F32,
        Type::F64 => Element::F64,
        Type::S8 => Element::S8,
        Type::U8 => Element::U8,
        Type::S4 => Element::S4,
        Type::U4 => Element::U4,
        Type::B1 => Element::B1,
        Type::S32 => Element::S32,
        _ => return None,
    })
}

/// Registers of a fragment: `which` is 0 for a, 1 for b, 2 for the accumulator. `None` for shapes that do not exist.
fn fragment_registers(kind: Element, shape: (u32, u32, u32), which: u32) -> Option<u32> {
    let wide = matches!(shape, (16, 16, 16) | (32, 8, 16) | (8, 32, 16));
    let (m, n, k) = shape;
    let elements = match which {
        0 => m * k,
        1 => k * n,
        _ => m * n,
    };
    let plain = (elements / 32).div_ceil(kind.per_register());
    let fits = match (kind, which) {
        (Element::F16, 0 | 1) => return wide.then_some(8),
        (Element::Bf16 | Element::S8 | Element::U8, 0 | 1) => wide,
        (Element::Tf32, 0 | 1) => shape == (16, 16, 8),
        (Element::F64, _) => shape == (8, 8, 4),
        (Element::S4 | Element::U4, 0 | 1) => shape == (8, 8, 32),
        (Element::B1, 0 | 1) => shape == (8, 8, 128),
        (Element::F16, 2) => wide,
        (Element::F32, 2) => wide || shape == (16, 16, 8),
        (Element::S32, 2) => wide || matches!(shape, (8, 8, 32) | (8, 8, 128)),
        _ => false,
    };
    fits.then_some(plain)
}

/// `wmma.load`, `wmma.store` and `wmma.mma`
pub(super) fn wmma(d: &mut Dec) -> Result<()> {
    let what = d.need("an operation", &[("load", 0), ("store", 1), ("mma", 2)])?;
    if what == 2 {
        return wmma_mma(d);
    }
    let which = match what {
        0 => d.need("a matrix", &[("a", 0), ("b", 1), ("c", 2)])?,
        _ => d.need("a matrix", &[("d", 2)])?,
    };
    for word in ["sync", "aligned"] {
        d.need(word, &[(word, ())])?;
    }
    let shape = shape(d)?;
    let column = d.need("a layout", &[("row", false), ("col", true)])?;
    let (number, space) = super::mem::space_of(d);
    let ty = d.ty()?;
    let kind = kind(ty).ok_or_else(|| d.unsupported("this type"))?;
    let registers =
        fragment_registers(kind, shape, which).ok_or_else(|| d.unsupported("this shape with this type"))?;
    let (m, n, k) = shape;
    let (rows, cols) = match which {
        0 => (m, k),
        1 => (k, n),
        _ => (m, n),
    };
    let sub_byte = kind.bits() < 8;
    // Rows of A and columns of B: where k runs within bytes.
    let fragment = match (sub_byte, which, column) {
        (true, 1, true) => wmma::Fragment { kind, rows: cols, cols: rows, col_major: false },
        (true, 0, false) | (false, _, false) => wmma::Fragment { kind, rows, cols, col_major: false },
        (false, _, true) => wmma::Fragment { kind, rows, cols, col_major: true },
        _ => return Err(d.unsupported("this layout with this type")),
    };
    let (registers_at, address_at) = if what == 0 { (0, 1) } else { (1, 0) };
    if !(2..=3).contains(&d.ins.operands.len()) {
        return Err(d.invalid("two or three operands are expected"));
    }
    let info = d.address(0, address_at)?;
    let number = super::mem::resolve_space(d, number, space, &info)?;
    super::mem::note_shared_access(d, number, (kind.bits() / 8).max(1));
    d.inst.aux[0] = if info.wide { mem_flag::WIDE } else { 0 };
    d.inst.aux[1] = number;
    d.inst.ops[1] = if d.ins.operands.len() == 3 {
        d.read(d.operand(2)?, Type::U32)?
    } else {
        let natural = if fragment.col_major { fragment.rows } else { fragment.cols };
        d.b.fill(super::super::program::Fill::Row32(natural))
    };
    d.inst.target = fragment.pack();
    let parts = d.vector(registers_at)?;
    if parts.len() != registers as usize {
        return Err(d.invalid(format!("{} registers, expected {registers}", parts.len())));
    }
    let register = if kind == Element::F64 { Type::B64 } else { Type::B32 };
    let mut rows = Vec::new();
    for p in parts {
        rows.push(if what == 0 { d.write(p, register)? } else { d.read(p, register)? });
    }
    d.pool(&rows)?;
    if what == 0 {
        d.meta.load = if number == space::SHARED { 2 } else { 1 };
    }
    d.emit(Kind::Collective, if what == 0 { wmma::load } else { wmma::store })
}

fn wmma_mma(d: &mut Dec) -> Result<()> {
    for word in ["sync", "aligned"] {
        d.need(word, &[(word, ())])?;
    }
    let shape = shape(d)?;
    // Fragments are row-major inside, so the layouts that they were loaded from do not matter any more.
    d.mods.retain(|m| !matches!(*m, "row" | "col"));
    let types = match d.types[..] {
        [dt, ct] => [dt, Type::F16, Type::F16, ct],
        [dt, at, bt, ct] => [dt, at, bt, ct],
        _ => return Err(d.unsupported("two or four types are expected")),
    };
    let mut kinds = [Element::F32; 4];
    for (k, ty) in kinds.iter_mut().zip(types) {
        *k = kind(ty).ok_or_else(|| d.unsupported("this type"))?;
    }
    let [kd, ka, kb, kc] = kinds;
    let sums = match ka {
        Element::F16 => [Element::F16, Element::F32].as_slice(),
        Element::Bf16 | Element::Tf32 => &[Element::F32],
        Element::F64 => &[Element::F64],
        _ => &[Element::S32],
    };
    if ka != kb || !sums.contains(&kd) || !sums.contains(&kc) {
        return Err(d.unsupported("these types"));
    }
    let saturate = d.flag("satfinite");
    if saturate && kd != Element::S32 {
        return Err(d.unsupported(".satfinite of this type"));
    }
    if d.flag("rz") || d.flag("rm") || d.flag("rp") {
        return Err(d.unsupported("this rounding"));
    }
    d.flag("rn");
    let mut and = false;
    if ka == Element::B1 {
        and = d.need(".xor or .and", &[("xor", false), ("and", true)])?;
        d.need(".popc", &[("popc", ())])?;
    }
    let mut registers = [0; 4];
    for (r, (kind, which)) in registers.iter_mut().zip([(kd, 2), (ka, 0), (kb, 1), (kc, 2)]) {
        *r = fragment_registers(kind, shape, which)
            .ok_or_else(|| d.unsupported("this shape with these types"))?;
    }
    d.arity(4)?;
    let ty = if ka == Element::F64 { Type::B64 } else { Type::B32 };
    let mut sources = Vec::new();
    for operand in 1..4 {
        let parts = d.vector(operand)?;
        if parts.len() != registers[operand] as usize {
            return Err(d.invalid(format!("{} registers in operand {}", parts.len(), operand + 1)));
        }
        for p in parts {
            sources.push(d.read(p, ty)?);
        }
    }
    let parts = d.vector(0)?;
    if parts.len() != registers[0] as usize {
        return Err(d.invalid(format!("{} destinations, expected {}", parts.len(), registers[0])));
    }
    let mut all = Vec::new();
    for p in parts {
        all.push(d.write(p, ty)?);
    }
    all.extend(sources);
    d.pool(&all)?;
    let (m, n, k) = shape;
    d.inst.target = d.b.program.tables.len() as u32;
    d.b.program.tables.push(wmma::Mma { m, n, k, kinds, registers, saturate, and }.pack());
    d.emit(Kind::Collective, wmma::mma)
}
