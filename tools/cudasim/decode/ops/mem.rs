//! Loads, stores, asynchronous copies, fences, matrices, `mbarrier`.

use super::super::builder::{Result, class_of};
use super::super::dec::{AddressInfo, Dec};
use super::super::program::{Class, Fill};
use super::movs::from_const;
use crate::exec::inst::{Kind, NONE, nothing};
use crate::exec::lanes;
use crate::exec::mem::{copies, load, matrix, mbarrier as mb, mem_flag, space, special, store};
use crate::ptx::ast::{Operand, Space, Type};

/// The space constant for a modifier, or generic.
pub(super) fn space_of(d: &mut Dec) -> (u8, Option<Space>) {
    let choices = [
        ("global", space::GLOBAL, Space::Global),
        ("const", space::GLOBAL, Space::Const),
        ("shared", space::SHARED, Space::Shared),
        ("shared::cta", space::SHARED, Space::Shared),
        ("local", space::LOCAL, Space::Local),
        ("param", space::PARAM, Space::Param),
        ("param::entry", space::PARAM, Space::Param),
        ("param::func", space::PARAM, Space::Param),
    ];
    for (word, number, space) in choices {
        if d.flag(word) {
            return (number, Some(space));
        }
    }
    (space::GENERIC, None)
}

/// Reads the modifiers about ordering and caches; returns the bits of `aux[0]` that follow.
pub(super) fn ordering(d: &mut Dec) -> Result<u8> {
    let mut flags = 0;
    let ordered = d.one_of(&[
        ("volatile", Some(0)),
        ("relaxed", Some(0)),
        ("acquire", Some(mem_flag::ACQUIRE)),
        ("release", Some(mem_flag::RELEASE)),
        ("acq_rel", Some(mem_flag::ACQUIRE | mem_flag::RELEASE)),
        ("mmio", Some(0)),
        ("weak", None),
    ]);
    if let Some(more) = ordered.flatten() {
        flags |= more | mem_flag::ORDERED | mem_flag::NO_L1;
    }
    if d.one_of(&[("cta", ()), ("gpu", ()), ("sys", ())]).is_none() && d.flag("cluster") {
        return Err(d.unsupported("clusters"));
    }
    hints(d, &mut flags);
    Ok(flags)
}

/// Claims hints about caches, which change no result.
fn hints(d: &mut Dec, flags: &mut u8) {
    for word in ["ca", "lu", "wb", "wt", "nc"] {
        d.flag(word);
    }
    for word in ["cg", "cs", "cv"] {
        if d.flag(word) && word != "cs" {
            *flags |= mem_flag::NO_L1;
        }
    }
    d.mods.retain(|m| !(m.starts_with("L1::") || m.starts_with("L2::") && *m != "L2::cache_hint"));
}

/// Whether the last operand is a cache policy, which is read and has no effect.
fn policy(d: &mut Dec) -> Result<bool> {
    if !d.flag("L2::cache_hint") {
        return Ok(false);
    }
    let last = d.ins.operands.len().checked_sub(1).ok_or_else(|| d.invalid("no operands"))?;
    d.read(d.operand(last)?, Type::B64)?;
    Ok(true)
}

/// Elements of a vector, and their number.
fn vector_len(d: &mut Dec) -> Result<usize> {
    Ok(d.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1))
}

/// The space of an access: that of the modifier, or of the variable that the address names.
pub(super) fn resolve_space(d: &Dec, number: u8, space: Option<Space>, info: &AddressInfo) -> Result<u8> {
    let named = match info.space {
        None => return Ok(number),
        Some(Space::Global | Space::Const) => space::GLOBAL,
        Some(Space::Shared) => space::SHARED,
        Some(Space::Local) => space::LOCAL,
        Some(Space::Param) => space::PARAM,
        Some(Space::Generic) => space::GENERIC,
    };
    match space {
        // Parameters of functions lie in the frame.
        Some(Space::Param) if named == space::LOCAL => Ok(named),
        None => Ok(named),
        Some(_) if named == number => Ok(named),
        Some(_) => Err(d.invalid("the variable is in another space")),
    }
}

/// `ld`
pub(super) fn ld(d: &mut Dec) -> Result<()> {
    let (number, space) = space_of(d);
    let read_only = d.mods.contains(&"nc");
    let mut flags = ordering(d)?;
    if read_only && !matches!(space, Some(Space::Global)) {
        return Err(d.unsupported(".nc of this space"));
    }
    let hinted = policy(d)?;
    let n = vector_len(d)?;
    d.arity(if hinted { 3 } else { 2 })?;
    let ty = d.ty()?;
    if ty == Type::Pred {
        return Err(d.unsupported("this type"));
    }
    let parts = d.vector(0)?;
    if parts.len() != n {
        return Err(d.invalid(format!("{} destinations for {n} elements", parts.len())));
    }
    let info = d.address(0, 1)?;
    let number = resolve_space(d, number, space, &info)?;
    if let (Some(at), space::PARAM) = (info.param, number)
        && (d.inst.guard == NONE || n == 1)
    {
        return ld_param(d, parts, ty, at);
    }
    flags |= if info.wide { mem_flag::WIDE } else { 0 };
    d.inst.aux[0] = flags;
    d.inst.aux[1] = number;
    note_shared_access(d, number, ty.bytes() * n as u32);
    let element = match ty.bits() {
        8 | 16 if ty.signed() => Type::S32,
        8 | 16 => Type::B32,
        _ => ty,
    };
    for (k, p) in parts.iter().enumerate() {
        let row = load_into(d, p, ty, element)?;
        d.inst.ops[1 + k] = row;
    }
    d.meta.load = match number {
        space::GLOBAL | space::GENERIC => 1,
        space::SHARED => 2,
        _ => 0,
    };
    let exec =
        load::load(ty.bytes(), ty.signed(), n).ok_or_else(|| d.unsupported("a vector of this shape"))?;
    d.emit(Kind::Memory, exec)
}

/// The destination of a loaded element, which may be a wider register.
fn load_into(d: &mut Dec, to: &Operand, ty: Type, element: Type) -> Result<u32> {
    match d.register(to) {
        Some((_, rty)) if class_of(rty) == Class::W64 && class_of(ty) == Class::W32 => d.write_wide(
            to,
            if ty.bits() < 32 {
                element
            } else if ty.signed() {
                Type::S32
            } else {
                Type::B32
            },
        ),
        Some((_, rty)) if rty.bits() < ty.bits() => Err(d.invalid("a destination that is too narrow")),
        Some((_, rty)) if class_of(rty) == class_of(ty) => {
            d.write(to, if ty.bits() < 32 { Type::B8 } else { ty })
        }
        _ => d.write(to, ty),
    }
}

/// Parameters of the kernel at a constant offset are constants of the launch.
fn ld_param(d: &mut Dec, parts: &[Operand], ty: Type, at: i64) -> Result<()> {
    let bytes = ty.bytes();
    let end = at + i64::from(bytes) * parts.len() as i64;
    let whole = end - at;
    if at < 0 || end > i64::from(d.b.kernel_param_bytes) || at % whole != 0 {
        return Err(d.invalid("outside the kernel's parameters, or misaligned"));
    }
    if bytes > 8 {
        return Err(d.unsupported("a 128-bit parameter"));
    }
    d.inst.ops[0] = NONE;
    d.inst.imm = 0;
    for (k, p) in parts.iter().enumerate() {
        let offset = at as u32 + k as u32 * bytes;
        let wide = d.register(p).is_some_and(|(_, rty)| class_of(rty) == Class::W64) || bytes == 8;
        let (row, row_ty) = if wide {
            (d.b.fill(Fill::Param64(offset, bytes as u8, ty.signed())), Type::B64)
        } else {
            (d.b.fill(Fill::Param32(offset, bytes as u8, ty.signed())), Type::B32)
        };
        if let Some((_, rty)) = d.register(p)
            && rty.bits() < ty.bits()
        {
            return Err(d.invalid("a destination that is too narrow"));
        }
        if parts.len() == 1 {
            d.inst.ops[1] = row;
            let narrow = if row_ty == Type::B32 { Type::B8 } else { row_ty };
            d.inst.ops[0] = d.write(p, narrow)?;
            let exec = if wide { lanes::un(|a: u64| a) } else { lanes::un(|a: u32| a) };
            return d.emit(Kind::Plain, exec);
        }
        from_const(d, p, row, row_ty)?;
    }
    d.emit(Kind::Plain, nothing)
}

/// The race check sees granules of the narrowest access to shared memory.
pub(super) fn note_shared_access(d: &mut Dec, number: u8, bytes: u32) {
    if matches!(number, space::SHARED | space::GENERIC) {
        let g = &mut d.b.program.shared_granule;
        *g = (*g).min(bytes.clamp(1, 16));
    }
}

/// `st`
pub(super) fn st(d: &mut Dec) -> Result<()> {
    let (number, space) = space_of(d);
    let mut flags = ordering(d)?;
    let hinted = policy(d)?;
    let n = vector_len(d)?;
    d.arity(if hinted { 3 } else { 2 })?;
    let ty = d.ty()?;
    if matches!(space, Some(Space::Const)) || ty == Type::Pred {
        return Err(d.unsupported("this space or type"));
    }
    let parts = d.vector(1)?;
    if parts.len() != n {
        return Err(d.invalid(format!("{} values for {n} elements", parts.len())));
    }
    let info = d.address(0, 0)?;
    let number = resolve_space(d, number, space, &info)?;
    if number == space::PARAM {
        return Err(d.unsupported("a store to the kernel's parameters"));
    }
    flags |= if info.wide { mem_flag::WIDE } else { 0 };
    d.inst.aux[0] = flags;
    d.inst.aux[1] = number;
    note_shared_access(d, number, ty.bytes() * n as u32);
    for (k, p) in parts.iter().enumerate() {
        // A narrow value may come from a wider register.
        let read = match d.register(p) {
            Some((_, rty)) if rty.bits() > ty.bits() && class_of(rty) == class_of(ty) => ty,
            _ => ty,
        };
        d.inst.ops[1 + k] = d.read_wide(p, read)?;
    }
    let exec = store::store(ty.bytes(), n).ok_or_else(|| d.unsupported("a vector of this shape"))?;
    d.emit(Kind::Memory, exec)
}

/// `cp.async…`
pub(super) fn cp(d: &mut Dec) -> Result<()> {
    if !d.flag("async") {
        return Err(d.unsupported(""));
    }
    if d.flag("commit_group") {
        d.arity(0)?;
        return d.emit(Kind::Memory, copies::commit);
    }
    if d.flag("wait_all") {
        d.arity(0)?;
        return d.emit(Kind::Memory, copies::wait_all);
    }
    if d.flag("wait_group") {
        d.arity(1)?;
        let n = d.constant(0)?;
        d.inst.imm = i64::from(u32::try_from(n).map_err(|_| d.invalid("a negative number of groups"))?);
        return d.emit(Kind::Memory, copies::wait_group);
    }
    if d.flag("mbarrier") {
        return copy_arrive(d);
    }
    let bypass = match d.one_of(&[("ca", false), ("cg", true)]) {
        Some(b) => b,
        None => return Err(d.unsupported("this form")),
    };
    if !(d.flag("shared") || d.flag("shared::cta")) || !d.flag("global") {
        return Err(d.unsupported("between these spaces"));
    }
    let hinted = policy(d)?;
    let mut flags = if bypass { mem_flag::NO_L1 } else { 0 };
    hints(d, &mut flags);
    let n = d.ins.operands.len() - usize::from(hinted && !d.ins.operands.is_empty());
    if !(3..=4).contains(&n) || !d.types.is_empty() {
        return Err(d.invalid("three or four operands are expected"));
    }
    let bytes = d.constant(2)?;
    let ok = if bypass { bytes == 16 } else { matches!(bytes, 4 | 8 | 16) };
    if !ok {
        return Err(d.invalid(format!("a copy of {bytes} bytes")));
    }
    d.inst.aux[2] = bytes as u8;
    note_shared_access(d, space::SHARED, bytes as u32);
    let from = d.address(1, 1)?;
    let source_offset = d.inst.imm;
    if from.space.is_some_and(|s| !matches!(s, Space::Global | Space::Const)) {
        return Err(d.invalid("the source is not in global memory"));
    }
    let to = d.address(0, 0)?;
    if to.space.is_some_and(|s| s != Space::Shared) {
        return Err(d.invalid("the destination is not in shared memory"));
    }
    let offset = i32::try_from(source_offset).map_err(|_| d.unsupported("an offset of more than 31 bits"))?;
    d.inst.target = offset as u32;
    flags |= if from.wide { mem_flag::WIDE } else { 0 };
    d.inst.aux[0] = flags;
    d.inst.aux[1] = space::GLOBAL;
    d.inst.aux[3] = if to.wide { copies::copy_flag::TO_WIDE } else { 0 };
    if n == 4 {
        let operand = d.operand(3)?;
        let is_pred = match operand {
            Operand::Not(_) => true,
            _ => d.register(operand).is_some_and(|(_, ty)| ty == Type::Pred),
        };
        if is_pred {
            d.inst.ops[2] = d.read(operand, Type::Pred)?;
            d.inst.aux[3] |= copies::copy_flag::IGNORE;
        } else {
            d.inst.ops[2] = d.read(operand, Type::U32)?;
            d.inst.aux[3] |= copies::copy_flag::SIZED;
        }
    }
    d.emit(Kind::Memory, copies::cp_async)
}

/// `prefetch`, `discard`, `createpolicy` and their like: nothing that the simulator models.
pub(super) fn hint(d: &mut Dec) -> Result<()> {
    let base = d.base;
    d.mods.clear();
    if base == "createpolicy" {
        d.types.retain(|t| *t == Type::B64);
        d.inst.ops[0] = d.write(d.operand(0)?, Type::B64)?;
        d.inst.ops[1] = d.b.fill(Fill::Row64(0));
        return d.emit(Kind::Plain, lanes::un(|a: u64| a));
    }
    if !d.ins.operands.is_empty() {
        d.address(0, 0)?;
    }
    d.emit(Kind::Plain, nothing)
}

/// `membar` and `fence`
pub(super) fn fence(d: &mut Dec) -> Result<()> {
    let scope = [("cta", ()), ("gpu", ()), ("sys", ()), ("gl", ())];
    if d.base == "membar" {
        d.need("a scope", &scope)?;
    } else {
        if d.flag("proxy") {
            return Err(d.unsupported("proxies"));
        }
        d.one_of(&[("sc", ()), ("acq_rel", ()), ("acquire", ()), ("release", ())]);
        d.need("a scope", &scope)?;
    }
    d.arity(0)?;
    d.emit(Kind::Memory, special::membar)
}

/// `ldmatrix`, `stmatrix`, `movmatrix`
pub(super) fn matrix(d: &mut Dec) -> Result<()> {
    for word in ["sync", "aligned", "m8n8"] {
        d.need(word, &[(word, ())])?;
    }
    if d.ty()? != Type::B16 {
        return Err(d.unsupported("this type"));
    }
    let trans = d.flag("trans");
    if d.base == "movmatrix" {
        if !trans {
            return Err(d.unsupported("without .trans"));
        }
        d.arity(2)?;
        d.src::<u32>(1, 1)?;
        d.dst::<u32>(0, 0)?;
        return d.emit(Kind::Collective, matrix::movmatrix);
    }
    let n = d.need(".x1, .x2 or .x4", &[("x1", 1usize), ("x2", 2), ("x4", 4)])?;
    let (number, space) = space_of(d);
    let load = d.base == "ldmatrix";
    let (registers, address) = if load { (0, 1) } else { (1, 0) };
    d.arity(2)?;
    let parts = d.vector(registers)?;
    if parts.len() != n {
        return Err(d.invalid(format!("{} registers for {n} matrices", parts.len())));
    }
    let info = d.address(0, address)?;
    let number = resolve_space(d, number, space, &info)?;
    if !matches!(number, space::SHARED | space::GENERIC) {
        return Err(d.unsupported("this space"));
    }
    d.inst.aux = [if info.wide { mem_flag::WIDE } else { 0 }, number, n as u8, 0];
    d.inst.pool_len = u8::from(trans);
    for (k, p) in parts.iter().enumerate() {
        d.inst.ops[1 + k] = if load { d.write(p, Type::B32)? } else { d.read(p, Type::B32)? };
    }
    if load {
        d.meta.load = 2;
        d.emit(Kind::Collective, matrix::ldmatrix)
    } else {
        d.emit(Kind::Collective, matrix::stmatrix)
    }
}

/// The address of an `mbarrier` object.
fn barrier_address(d: &mut Dec, k: usize) -> Result<()> {
    let (number, space) = space_of(d);
    let info = d.address(0, k)?;
    d.inst.aux[1] = resolve_space(d, number, space, &info)?;
    if !matches!(d.inst.aux[1], space::SHARED | space::GENERIC) {
        return Err(d.unsupported("this space"));
    }
    d.inst.aux[0] = if info.wide { mem_flag::WIDE } else { 0 } | mem_flag::ORDERED;
    Ok(())
}

/// `cp.async.mbarrier.arrive{.noinc}`
fn copy_arrive(d: &mut Dec) -> Result<()> {
    d.need(".arrive", &[("arrive", ())])?;
    d.arity(1)?;
    let no_inc = d.flag("noinc");
    d.types.clear();
    barrier_address(d, 0)?;
    d.inst.aux[2] = if no_inc { mb::op::COPY_ARRIVE_NO_INC } else { mb::op::COPY_ARRIVE };
    d.emit(Kind::Memory, mb::mbarrier)
}

/// `mbarrier.…`
pub(super) fn mbarrier(d: &mut Dec) -> Result<()> {
    let op = d.need(
        "an operation",
        &[
            ("init", "init"),
            ("inval", "inval"),
            ("arrive", "arrive"),
            ("arrive_drop", "arrive_drop"),
            ("test_wait", "test_wait"),
            ("try_wait", "test_wait"),
            ("pending_count", "pending_count"),
        ],
    )?;
    d.one_of(&[("release", ()), ("acquire", ()), ("relaxed", ())]);
    d.flag("cta");
    match op {
        "pending_count" => return d.un(|token: u64| mb::pending_count(token)),
        "init" => {
            d.arity(2)?;
            barrier_address(d, 0)?;
            d.inst.ops[2] = d.read(d.operand(1)?, Type::U32)?;
            d.inst.aux[2] = mb::op::INIT;
            d.inst.aux[3] = 2;
        }
        "inval" => {
            d.arity(1)?;
            barrier_address(d, 0)?;
            d.inst.aux[2] = mb::op::INVAL;
        }
        "test_wait" => {
            let parity = d.flag("parity");
            // A time limit of try_wait is a hint.
            if d.ins.operands.len() != 4 {
                d.arity(3)?;
            }
            barrier_address(d, 1)?;
            d.inst.ops[2] = d.read(d.operand(2)?, if parity { Type::U32 } else { Type::B64 })?;
            d.inst.ops[1] = d.write(d.operand(0)?, Type::Pred)?;
            d.inst.aux[2] = if parity { mb::op::TEST_WAIT_PARITY } else { mb::op::TEST_WAIT };
        }
        _ => {
            let no_complete = d.flag("noComplete");
            let n = d.ins.operands.len();
            if !(2..=3).contains(&n) {
                return Err(d.unsupported("this form"));
            }
            barrier_address(d, 1)?;
            if n == 3 {
                d.inst.ops[2] = d.read(d.operand(2)?, Type::U32)?;
                d.inst.aux[3] |= 2;
            }
            d.inst.ops[1] = d.write(d.operand(0)?, Type::B64)?;
            d.inst.aux[3] |= 1;
            d.inst.aux[2] = match (op, no_complete) {
                ("arrive", false) => mb::op::ARRIVE,
                ("arrive", true) => mb::op::ARRIVE_NO_COMPLETE,
                (_, false) => mb::op::ARRIVE_DROP,
                (_, true) => mb::op::ARRIVE_DROP_NO_COMPLETE,
            };
        }
    }
    d.types.clear();
    d.emit(Kind::Memory, mb::mbarrier)
}
