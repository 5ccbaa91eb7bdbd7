//! Decoding of one instruction: modifiers, operands, emission.

use super::builder::RESERVED_SHARED_BYTES;
use super::builder::{Builder, Result, Symbol, class_of};
use super::ops;
use super::program::{Class, Fill, LaneSpecial, Meta, Uniform};
use crate::exec::elem::Elem;
use crate::exec::inst::{CONST, ExecFn, Inst, Kind, NONE, nothing};
use crate::exec::lanes::{self, F1, F2, F3};
use crate::ptx::PtxError;
use crate::ptx::ast::{Instruction, Operand, Space, Type};

/// First address of shared memory in the generic space. Bit 50 is no bit of a host address.
pub(crate) const SHARED_WINDOW: u64 = 1 << 50;
/// First address of local memory in the generic space.
pub(crate) const LOCAL_WINDOW: u64 = 1 << 51;
/// First address of kernel parameters in the generic space.
pub(crate) const PARAM_WINDOW: u64 = 1 << 52;

/// One instruction that is being decoded.
pub(crate) struct Dec<'d, 'm> {
    pub(super) b: &'d mut Builder<'m>,
    pub(super) ins: &'d Instruction,
    /// First word of the opcode.
    pub(super) base: &'d str,
    /// Modifiers that nothing has claimed yet, types excluded.
    pub(super) mods: Vec<&'d str>,
    /// Types in the opcode, in order.
    pub(super) types: Vec<Type>,
    pub(super) inst: Inst,
    pub(super) meta: Meta,
    /// Helpers to run after it.
    after: Vec<(Inst, Vec<u32>, Vec<u32>)>,
    in_place: Vec<Inst>,
    /// A conversion of the source to 64 bits, before the instruction.
    pub(super) widen: Option<ExecFn>,
}

/// Decodes an instruction and appends it to the program.
pub(super) fn decode(b: &mut Builder<'_>, ins: &Instruction) -> Result<()> {
    let mut words = ins.opcode.split('.');
    let base = words.next().unwrap_or("");
    let mut mods = Vec::new();
    let mut types = Vec::new();
    for word in words {
        match Type::parse(word) {
            Some(ty) => types.push(ty),
            None => mods.push(word),
        }
    }
    let mut inst = Inst::new(Kind::Plain, nothing);
    let mut meta = Meta {
        ptx_line: ins.pos.line,
        ptx_column: ins.pos.column,
        text: b.text(&ins.opcode),
        ..Meta::default()
    };
    if let Some((name, negated)) = &ins.guard {
        match b.lookup(name) {
            Some(Symbol::Reg(v, Type::Pred)) => {
                inst.guard = v;
                inst.guard_xor = if *negated { u32::MAX } else { 0 };
                meta.uses.push(v);
            }
            _ => return Err(ins.pos.invalid(format!("guard `{name}` is no predicate"))),
        }
    }
    let mut d =
        Dec { b, ins, base, mods, types, inst, meta, after: Vec::new(), in_place: Vec::new(), widen: None };
    ops::decode(&mut d)
}

impl<'d, 'm> Dec<'d, 'm> {
    // ---- errors ----

    /// The instruction as written, for messages.
    pub(super) fn unsupported(&self, why: impl Into<String>) -> PtxError {
        self.ins.pos.unsupported(self.ins.opcode.clone(), why)
    }

    pub(super) fn invalid(&self, message: impl std::fmt::Display) -> PtxError {
        self.ins.pos.invalid(format!("{}: {message}", self.ins.opcode))
    }

    // ---- modifiers ----

    /// Claims a modifier; whether it was there.
    pub(super) fn flag(&mut self, word: &str) -> bool {
        match self.mods.iter().position(|m| *m == word) {
            Some(i) => {
                self.mods.remove(i);
                true
            }
            None => false,
        }
    }

    /// Claims the first of these modifiers that is there.
    pub(super) fn one_of<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(word, _)| self.flag(word)).map(|c| c.1)
    }

    /// Claims a modifier that must be there.
    pub(super) fn need<T: Copy>(&mut self, what: &str, choices: &[(&str, T)]) -> Result<T> {
        self.one_of(choices).ok_or_else(|| self.unsupported(format!("without {what}")))
    }

    /// The only type of the opcode.
    pub(super) fn ty(&self) -> Result<Type> {
        match self.types[..] {
            [ty] => Ok(ty),
            _ => Err(self.unsupported("one type is expected")),
        }
    }

    /// Checks the number of operands.
    pub(super) fn arity(&self, n: usize) -> Result<()> {
        if self.ins.operands.len() == n {
            return Ok(());
        }
        Err(self.invalid(format!("{} operands, expected {n}", self.ins.operands.len())))
    }

    /// Whether every modifier was claimed.
    pub(super) fn all_claimed(&self) -> Result<()> {
        match self.mods.first() {
            None => Ok(()),
            Some(m) => Err(self.unsupported(format!(".{m} is not understood here"))),
        }
    }

    // ---- operands ----

    pub(super) fn operand(&self, k: usize) -> Result<&'d Operand> {
        self.ins.operands.get(k).ok_or_else(|| self.invalid(format!("operand {} is missing", k + 1)))
    }

    /// The register that an operand names, or `None`.
    pub(super) fn register(&mut self, operand: &Operand) -> Option<(u32, Type)> {
        match operand {
            Operand::Name(n) => match self.b.lookup(n) {
                Some(Symbol::Reg(v, ty)) => Some((v, ty)),
                _ => None,
            },
            _ => None,
        }
    }

    fn shown(operand: &Operand) -> String {
        match operand {
            Operand::Name(n) => format!("`{n}`"),
            other => format!("{other:?}"),
        }
    }

    /// Reads an operand of a type: a register, an immediate, a special register or the address of a variable.
    pub(super) fn read(&mut self, operand: &Operand, ty: Type) -> Result<u32> {
        let class = class_of(ty);
        if class == Class::Pred {
            return self.read_pred(operand);
        }
        match operand {
            Operand::Name(name) => match self.b.lookup(name) {
                Some(Symbol::Reg(v, rty)) => {
                    if class_of(rty) == class {
                        if rty.bits() < ty.bits() {
                            return Err(self.invalid(format!(
                                "`{name}` has {} bits, {} are needed",
                                rty.bits(),
                                ty.bits()
                            )));
                        }
                        self.meta.uses.push(v);
                        return Ok(v);
                    }
                    Err(self.invalid(format!("`{name}` does not have {} bits", ty.bits())))
                }
                Some(_) => self.address_of(name, 0, class),
                None => self.special(name, class),
            },
            Operand::Offset(name, offset) => self.address_of(name, *offset, class),
            _ => match self.immediate(operand, ty)? {
                _ if class == Class::W128 => Err(self.unsupported("a 128-bit immediate")),
                bits if class == Class::W64 => Ok(self.b.fill(Fill::Row64(bits))),
                bits => Ok(self.b.fill(Fill::Row32(bits as u32))),
            },
        }
    }

    /// Reads an operand that may be a wider register than its type: the low bits count.
    pub(super) fn read_wide(&mut self, operand: &Operand, ty: Type) -> Result<u32> {
        if let Some((v, rty)) = self.register(operand)
            && class_of(rty) == Class::W64
            && class_of(ty) == Class::W32
        {
            let low = self.b.virtual_reg(Class::W32);
            let mut helper = Inst::new(Kind::Plain, lanes::un(|a: u64| a as u32));
            (helper.ops[0], helper.ops[1]) = (low, v);
            self.emit_helper(helper, vec![v], vec![low]);
            self.meta.uses.push(low);
            return Ok(low);
        }
        self.read(operand, ty)
    }

    /// The bits of an immediate.
    pub(super) fn immediate(&self, operand: &Operand, ty: Type) -> Result<u64> {
        use Type::*;
        Ok(match (operand, ty) {
            (Operand::Int(i), F16 | Bf16) if *i < -0x8000 || *i > 0xffff => {
                return Err(self.invalid("an immediate of more than 16 bits"));
            }
            (Operand::Int(0), F32 | F64) => 0,
            (Operand::Int(_), F32 | F64) => return Err(self.invalid("an integer for a float")),
            (Operand::Int(i), _) => *i as u64,
            (Operand::F32(bits), F32 | B32 | U32 | S32 | Tf32 | F16x2 | Bf16x2) => u64::from(*bits),
            (Operand::F32(bits), F64) => f64::from(f32::from_bits(*bits)).to_bits(),
            (Operand::F64(bits), F64 | B64 | U64 | S64) => *bits,
            (Operand::F64(bits), F32 | B32) => u64::from((f64::from_bits(*bits) as f32).to_bits()),
            (other, _) => {
                return Err(self.invalid(format!("{} is no .{ty:?} operand", Self::shown(other))));
            }
        })
    }

    /// An operand that must be an integer constant.
    pub(super) fn constant(&self, k: usize) -> Result<i64> {
        match self.operand(k)? {
            Operand::Int(i) => Ok(*i),
            other => Err(self.unsupported(format!("{} where a constant is expected", Self::shown(other)))),
        }
    }

    fn read_pred(&mut self, operand: &Operand) -> Result<u32> {
        match operand {
            Operand::Name(n) => match self.b.lookup(n) {
                Some(Symbol::Reg(v, Type::Pred)) => {
                    self.meta.uses.push(v);
                    Ok(v)
                }
                _ => Err(self.invalid(format!("`{n}` is no predicate"))),
            },
            Operand::Not(inner) => {
                let v = self.read_pred(inner)?;
                let not = self.b.virtual_reg(Class::Pred);
                let mut helper = Inst::new(Kind::Plain, crate::exec::pred::not());
                (helper.ops[0], helper.ops[1]) = (not, v);
                self.emit_helper(helper, vec![v], vec![not]);
                self.meta.uses.push(not);
                Ok(not)
            }
            Operand::Int(i) => Ok(self.b.fill(Fill::Word(if *i != 0 { u32::MAX } else { 0 }))),
            other => Err(self.invalid(format!("{} is no predicate", Self::shown(other)))),
        }
    }

    /// The address of a variable or function in its own space.
    pub(super) fn address_of(&mut self, name: &str, offset: i64, class: Class) -> Result<u32> {
        let constant = |d: &mut Self, v: i64| {
            if class == Class::W64 {
                d.b.fill(Fill::Row64(v as u64))
            } else {
                d.b.fill(Fill::Row32(v as u32))
            }
        };
        match self.b.lookup(name) {
            Some(Symbol::Shared(at)) => Ok(constant(self, i64::from(at) + offset)),
            Some(Symbol::DynamicShared) => {
                let u = Uniform::DynamicSharedBase(
                    u32::try_from(offset)
                        .map_err(|_| self.invalid("an offset before the dynamic shared memory"))?,
                );
                Ok(self.b.uniform(u, class))
            }
            Some(Symbol::Param(at)) => Ok(constant(self, i64::from(at) + offset)),
            Some(Symbol::Global(i, _)) if class == Class::W64 => Ok(self.b.fill(Fill::Global(i, offset))),
            Some(Symbol::Function(f)) if class == Class::W64 && offset == 0 => {
                Ok(self.b.fill(Fill::Row64(function_address(f))))
            }
            Some(Symbol::Frame(at)) => {
                let at = i64::from(at) + offset;
                if self.b.in_kernel() {
                    return Ok(constant(self, at));
                }
                let frame = self.b.frame_row();
                let sum = self.b.virtual_reg(class);
                let imm = self.b.fill(Fill::Row64(at as u64));
                let exec = if class == Class::W64 {
                    lanes::bin(|a: u64, b: u64| a.wrapping_add(b))
                } else {
                    lanes::bin(|a: u64, b: u64| a.wrapping_add(b) as u32)
                };
                let mut helper = Inst::new(Kind::Plain, exec);
                (helper.ops[0], helper.ops[1], helper.ops[2]) = (sum, frame, imm);
                self.emit_helper(helper, vec![frame], vec![sum]);
                self.meta.uses.push(sum);
                Ok(sum)
            }
            Some(Symbol::Reg(..)) => Err(self.invalid(format!("an offset to register `{name}`"))),
            Some(_) => Err(self.invalid(format!("`{name}` is no {}-bit address", class.words()))),
            None => Err(self.invalid(format!("`{name}` is not declared"))),
        }
    }

    fn special(&mut self, name: &str, class: Class) -> Result<u32> {
        let axis = |s: &str| match s {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        if name == "WARP_SZ" {
            return Ok(self.b.fill(if class == Class::W64 { Fill::Row64(32) } else { Fill::Row32(32) }));
        }
        let Some(bare) = name.strip_prefix('%') else {
            return Err(self.invalid(format!("`{name}` is not declared")));
        };
        let narrow = |d: &Self, row: u32| {
            if class == Class::W32 { Ok(row) } else { Err(d.invalid(format!("`{name}` has 32 bits"))) }
        };
        if let Some((register, a)) = bare.split_once('.')
            && let Some(a) = axis(a)
        {
            let uniform = match register {
                "tid" => {
                    let v = self.b.special(LaneSpecial::Tid(a));
                    self.meta.uses.push(v);
                    return narrow(self, v);
                }
                "ntid" => Uniform::Ntid(a),
                "ctaid" => Uniform::Ctaid(a),
                "nctaid" => Uniform::Nctaid(a),
                _ => return Err(self.unsupported(format!("special register `{name}`"))),
            };
            return Ok(self.b.uniform(uniform, class));
        }
        let uniform = match bare {
            "laneid" => {
                let row = self.b.fill(Fill::LaneId);
                return narrow(self, row);
            }
            "warpid" => {
                let v = self.b.special(LaneSpecial::WarpId);
                self.meta.uses.push(v);
                return narrow(self, v);
            }
            "nwarpid" => Uniform::Nwarpid,
            "smid" => Uniform::Smid,
            "nsmid" => Uniform::Nsmid,
            "gridid" => Uniform::GridId,
            // What cooperative groups know of the launch: where the grid's barrier is.
            "envreg0" => {
                return Ok(self.b.fill(if class == Class::W64 { Fill::Row64(0) } else { Fill::Row32(0) }));
            }
            "envreg1" | "envreg2" => {
                self.b.program.uses_workspace = true;
                Uniform::GridWorkspace(bare == "envreg1")
            }
            // Scratch of cooperative groups.
            _ if bare.starts_with("reserved_smem_offset_") => {
                let at = match &bare["reserved_smem_offset_".len()..] {
                    "begin" | "0" => 0,
                    "1" => RESERVED_SHARED_BYTES / 2,
                    "end" | "cap" => RESERVED_SHARED_BYTES,
                    _ => return Err(self.unsupported(format!("special register `{name}`"))),
                };
                let row = self.b.fill(Fill::Row32(at));
                return narrow(self, row);
            }
            "dynamic_smem_size" => Uniform::DynamicShared,
            "total_smem_size" => Uniform::TotalShared,
            _ => {
                let masks = ["eq", "le", "lt", "ge", "gt"];
                let kind = bare.strip_prefix("lanemask_").and_then(|m| masks.iter().position(|x| *x == m));
                let Some(kind) = kind else {
                    let numbered = ["envreg", "pm"].iter().any(|family| bare.starts_with(family));
                    if bare.starts_with(|c: char| c.is_ascii_alphabetic())
                        && (numbered || !bare.ends_with(|c: char| c.is_ascii_digit()))
                    {
                        return Err(self.unsupported(format!("special register `{name}`")));
                    }
                    return Err(self.invalid(format!("`{name}` is not declared")));
                };
                let row = self.b.fill(Fill::LaneMask(kind as u8));
                return narrow(self, row);
            }
        };
        Ok(self.b.uniform(uniform, class))
    }

    /// Reads operand `k` as type `A` into `ops[at]`.
    pub(super) fn src<A: Elem>(&mut self, at: usize, k: usize) -> Result<()> {
        let operand = self.operand(k)?;
        self.inst.ops[at] = self.read(operand, A::TY)?;
        Ok(())
    }

    /// Writes an operand of a class: a register of exactly that class, or `_`.
    pub(super) fn write(&mut self, operand: &Operand, ty: Type) -> Result<u32> {
        let class = class_of(ty);
        match operand {
            Operand::Sink => {
                let v = self.b.virtual_reg(class);
                self.meta.defs.push(v);
                Ok(v)
            }
            _ => match self.register(operand) {
                Some((v, rty)) if class_of(rty) == class && rty.bits() >= ty.bits() => {
                    self.meta.defs.push(v);
                    Ok(v)
                }
                Some((_, rty)) => Err(self.invalid(format!(
                    "destination {} has {} bits, the result {}",
                    Self::shown(operand),
                    rty.bits(),
                    ty.bits()
                ))),
                None => Err(self.invalid(format!("destination {} is no register", Self::shown(operand)))),
            },
        }
    }

    /// Writes an operand that may be a wider register than the type: the value is extended as its type says.
    pub(super) fn write_wide(&mut self, operand: &Operand, ty: Type) -> Result<u32> {
        let Some((v, rty)) = self.register(operand) else { return self.write(operand, ty) };
        if rty == Type::Pred || class_of(ty) == Class::W128 || rty.bits() <= ty.bits() {
            return self.write(operand, ty);
        }
        let exec: ExecFn = match (class_of(ty), class_of(rty), ty.bits(), ty.signed()) {
            // Within one row, zero extension is how narrow values lie anyway.
            (Class::W32, Class::W32, _, false) => return self.write(operand, ty),
            (Class::W32, Class::W32, 8, true) => lanes::un(|a: i8| a as i32),
            (Class::W32, Class::W32, _, true) => lanes::un(|a: i16| a as i32),
            (Class::W32, Class::W64, 8, true) => lanes::un(|a: i8| a as i64),
            (Class::W32, Class::W64, 16, true) => lanes::un(|a: i16| a as i64),
            (Class::W32, Class::W64, 32, true) => lanes::un(|a: i32| a as i64),
            (Class::W32, Class::W64, _, false) => lanes::un(|a: u32| a as u64),
            _ => return self.write(operand, ty),
        };
        let narrow = self.b.virtual_reg(class_of(ty));
        self.meta.defs.push(narrow);
        let mut helper = Inst::new(Kind::Plain, exec);
        (helper.ops[0], helper.ops[1]) = (v, narrow);
        self.after.push((helper, vec![narrow], vec![v]));
        Ok(narrow)
    }

    /// Writes operand `k` as type `D` from `ops[at]`.
    pub(super) fn dst<D: Elem>(&mut self, at: usize, k: usize) -> Result<()> {
        let operand = self.operand(k)?;
        self.inst.ops[at] = self.write(operand, D::TY)?;
        Ok(())
    }

    /// Base row and constant offset of the address operand `k` in a space: `ops[at]`, `imm`, and whether the base
    /// is a 64-bit row.
    pub(super) fn address(&mut self, at: usize, k: usize) -> Result<AddressInfo> {
        let (base, offset) = match self.operand(k)? {
            Operand::Address { base, offset } => (base, *offset),
            other => return Err(self.invalid(format!("{} is no address", Self::shown(other)))),
        };
        let mut info = AddressInfo { wide: true, space: None, param: None };
        self.inst.imm = offset;
        let Some(name) = base else {
            self.inst.ops[at] = self.b.fill(Fill::Row64(0));
            return Ok(info);
        };
        match self.b.lookup(name) {
            Some(Symbol::Reg(v, rty)) => {
                info.wide = match class_of(rty) {
                    Class::W64 => true,
                    Class::W32 if rty.bits() == 32 => false,
                    _ => return Err(self.invalid(format!("`{name}` is no address"))),
                };
                self.meta.uses.push(v);
                self.inst.ops[at] = v;
            }
            Some(Symbol::Shared(to)) => {
                info.space = Some(Space::Shared);
                self.inst.imm += i64::from(to);
                self.inst.ops[at] = self.b.fill(Fill::Row64(0));
            }
            Some(Symbol::Param(to)) => {
                info.space = Some(Space::Param);
                info.param = Some(i64::from(to) + offset);
                self.inst.imm += i64::from(to);
                self.inst.ops[at] = self.b.fill(Fill::Row64(0));
            }
            Some(Symbol::Frame(to)) => {
                info.space = Some(Space::Local);
                self.inst.imm += i64::from(to);
                self.inst.ops[at] = self.b.frame_row();
                if !self.b.in_kernel() {
                    self.meta.uses.push(self.inst.ops[at]);
                }
            }
            Some(Symbol::DynamicShared) => {
                info.space = Some(Space::Shared);
                self.inst.ops[at] = self.address_of(name, 0, Class::W64)?;
            }
            Some(Symbol::Global(_, space)) => {
                info.space = Some(space);
                self.inst.ops[at] = self.address_of(name, 0, Class::W64)?;
            }
            Some(_) => return Err(self.invalid(format!("`{name}` is no address"))),
            None => return Err(self.invalid(format!("`{name}` is not declared"))),
        }
        Ok(info)
    }

    // ---- emission ----

    /// Emits a helper before the instruction, for all lanes.
    pub(super) fn emit_helper(&mut self, inst: Inst, uses: Vec<u32>, defs: Vec<u32>) {
        let meta = Meta { uses: registers(&uses), defs, ..self.helper_meta() };
        self.b.emit(inst, meta, true);
    }

    fn helper_meta(&self) -> Meta {
        Meta {
            ptx_line: self.meta.ptx_line,
            ptx_column: self.meta.ptx_column,
            text: self.meta.text.clone(),
            ..Meta::default()
        }
    }

    /// A helper to run after the instruction, under its guard.
    pub(super) fn after(&mut self, inst: Inst, uses: Vec<u32>, defs: Vec<u32>) {
        self.after.push((inst, uses, defs));
    }

    /// A helper that changes the destination in place: its row is known when the destination is written.
    pub(super) fn after_in_place(&mut self, inst: Inst) -> Result<()> {
        self.in_place.push(inst);
        Ok(())
    }

    /// Emits the instruction.
    pub(super) fn emit(&mut self, kind: Kind, exec: ExecFn) -> Result<()> {
        self.all_claimed()?;
        let mut inst = self.inst.clone();
        inst.kind = kind;
        inst.exec = exec;
        let mut meta = self.meta.clone();
        meta.uses = registers(&meta.uses);
        let (guard, guard_xor) = (inst.guard, inst.guard_xor);
        let to = inst.ops[0];
        self.b.emit(inst, meta, false);
        let mut helpers = Vec::new();
        for mut helper in std::mem::take(&mut self.in_place) {
            (helper.ops[0], helper.ops[1]) = (to, to);
            helpers.push((helper, vec![to], vec![to]));
        }
        helpers.append(&mut self.after);
        for (mut helper, mut uses, defs) in helpers {
            (helper.guard, helper.guard_xor) = (guard, guard_xor);
            if guard != NONE {
                uses.push(guard);
            }
            let meta = Meta { uses: registers(&uses), defs, ..self.helper_meta() };
            self.b.emit(helper, meta, true);
        }
        Ok(())
    }

    /// `d = f(a)` on operands 0 and 1.
    pub(super) fn un<A: Elem, D: Elem, F: F1<A, D>>(&mut self, f: F) -> Result<()> {
        self.arity(2)?;
        self.src::<A>(1, 1)?;
        self.dst::<D>(0, 0)?;
        self.emit(Kind::Plain, lanes::un(f))
    }

    /// `d = f(a, b)`
    pub(super) fn bin<A: Elem, B: Elem, D: Elem, F: F2<A, B, D>>(&mut self, f: F) -> Result<()> {
        self.arity(3)?;
        self.src::<A>(1, 1)?;
        self.src::<B>(2, 2)?;
        self.dst::<D>(0, 0)?;
        self.emit(Kind::Plain, lanes::bin(f))
    }

    /// `d = f(a, b, c)`
    pub(super) fn ter<A: Elem, B: Elem, C: Elem, D: Elem, F: F3<A, B, C, D>>(&mut self, f: F) -> Result<()> {
        self.arity(4)?;
        self.src::<A>(1, 1)?;
        self.src::<B>(2, 2)?;
        self.src::<C>(3, 3)?;
        self.dst::<D>(0, 0)?;
        self.emit(Kind::Plain, lanes::ter(f))
    }

    /// Further operands: puts rows into the program's pool.
    pub(super) fn pool(&mut self, rows: &[u32]) -> Result<()> {
        let len = u8::try_from(rows.len()).map_err(|_| self.invalid("too many operands"))?;
        self.inst.pool = self.b.program.pool.len() as u32;
        self.inst.pool_len = len;
        self.b.program.pool.extend_from_slice(rows);
        Ok(())
    }

    /// The elements of a `{…}` operand; a single operand is a vector of one.
    pub(super) fn vector(&self, k: usize) -> Result<&'d [Operand]> {
        Ok(match self.operand(k)? {
            Operand::Vector(v) => v,
            other => std::slice::from_ref(other),
        })
    }
}

/// The virtual registers among operands.
fn registers(ops: &[u32]) -> Vec<u32> {
    ops.iter().copied().filter(|&v| v != NONE && v & CONST == 0).collect()
}

/// What an address operand turned out to be.
pub(super) struct AddressInfo {
    /// The base is a 64-bit row.
    pub(super) wide: bool,
    /// Space of the variable that the address names.
    pub(super) space: Option<Space>,
    /// Constant offset into the kernel's parameters.
    pub(super) param: Option<i64>,
}

/// The value of a function's address.
pub(super) fn function_address(f: usize) -> u64 {
    super::program::FUNCTION_BASE + 16 * f as u64
}
