//! Branches, calls, ends.

use super::super::builder::{Result, Signature, Slot, Symbol};
use super::super::dec::Dec;
use crate::exec::inst::{Inst, Kind, nothing};
use crate::exec::mem::special;
use crate::exec::print;
use crate::ptx::ast::{Operand, Type};

/// `bra brx call ret exit trap brkpt nanosleep pmevent`
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    let uniform = matches!(d.base, "bra" | "brx" | "call" | "ret");
    if uniform {
        d.flag("uni");
    }
    match d.base {
        "bra" => {
            d.arity(1)?;
            d.inst.target = label(d, 0)?;
            d.emit(Kind::Branch, nothing)
        }
        "brx" => brx(d),
        "call" => call(d),
        "ret" => {
            d.arity(0)?;
            if d.b.in_kernel() {
                return d.emit(Kind::Exit, nothing);
            }
            d.inst.target = d.b.return_label() as u32;
            d.emit(Kind::Branch, nothing)
        }
        "exit" => d.emit(Kind::Exit, nothing),
        "trap" | "brkpt" => d.emit(Kind::Trap, special::trap),
        "nanosleep" => {
            d.arity(1)?;
            if d.ty()? != Type::U32 {
                return Err(d.unsupported("this type"));
            }
            d.src::<u32>(1, 0)?;
            d.emit(Kind::Memory, special::nanosleep)
        }
        _ => {
            d.mods.clear();
            d.emit(Kind::Plain, nothing)
        }
    }
}

fn label(d: &mut Dec, k: usize) -> Result<u32> {
    let Operand::Name(name) = d.operand(k)? else { return Err(d.invalid("a label is expected")) };
    match d.b.lookup(name) {
        Some(Symbol::Label(l)) => Ok(l as u32),
        _ => Err(d.invalid(format!("`{name}` is no label"))),
    }
}

fn brx(d: &mut Dec) -> Result<()> {
    d.need(".idx", &[("idx", ())])?;
    d.arity(2)?;
    let Operand::Name(name) = d.operand(1)? else { return Err(d.invalid("a list of labels is expected")) };
    let Some(Symbol::Targets(names)) = d.b.lookup(name) else {
        return Err(d.invalid(format!("`{name}` is no list of labels")));
    };
    let mut table = Vec::new();
    for n in &names {
        match d.b.lookup(n) {
            Some(Symbol::Label(l)) => table.push(l as u32),
            _ => return Err(d.invalid(format!("`{n}` is no label"))),
        }
    }
    d.inst.ops[0] = d.read(d.operand(0)?, Type::U32)?;
    d.inst.target = d.b.program.tables.len() as u32;
    d.b.program.tables.push(table);
    d.emit(Kind::BranchIndexed, nothing)
}

/// A name or a list of names.
fn names(d: &Dec, operand: &Operand) -> Result<Vec<Operand>> {
    match operand {
        Operand::List(items) => Ok(items.clone()),
        // A single constant in parentheses.
        Operand::Int(_) => Ok(vec![operand.clone()]),
        _ => Err(d.invalid("a list of parameters is expected")),
    }
}

/// `call {(ret), } f {, (params)} {, prototype}`
fn call(d: &mut Dec) -> Result<()> {
    let operands = &d.ins.operands;
    let mut k = 0;
    let mut returns = Vec::new();
    if let Some(Operand::List(_)) = operands.first() {
        returns = names(d, &operands[0])?;
        k = 1;
    }
    let target = d.operand(k)?;
    let Operand::Name(name) = target else { return Err(d.invalid("a function is expected")) };
    let mut params = Vec::new();
    if let Some(list) = operands.get(k + 1)
        && let Operand::List(_) | Operand::Int(_) = list
    {
        params = names(d, list)?;
    }
    match d.b.lookup(name) {
        Some(Symbol::Function(f)) => {
            let function = &d.b.scope.ast.functions[f];
            if function.body.is_none() {
                return runtime(d, name, &returns, &params);
            }
            let routine = d.b.routine(f)?;
            let (signature, param_regs, return_regs) = d.b.callee(routine);
            let (param_regs, return_regs) = (param_regs.to_vec(), return_regs.to_vec());
            d.b.note_call(Some(routine))?;
            pass(d, &params, &signature.params, &param_regs)?;
            d.inst.target = routine as u32;
            results(d, &returns, &signature.returns, &return_regs)?;
            d.emit(Kind::Call, nothing)
        }
        Some(Symbol::Reg(v, ty)) if ty.bits() == 64 => {
            let last = operands.len() - 1;
            let Some(Operand::Name(prototype)) = operands.get(last).filter(|_| last > k) else {
                return Err(d.invalid("an indirect call without a prototype"));
            };
            let signature = match d.b.lookup(prototype) {
                Some(Symbol::Prototype(s)) => s,
                Some(Symbol::Targets(functions)) => {
                    let first = functions.first().and_then(|f| d.b.lookup(f));
                    let Some(Symbol::Function(f)) = first else {
                        return Err(d.invalid("no functions to call"));
                    };
                    let f = &d.b.scope.ast.functions[f];
                    std::sync::Arc::new(Signature::of(&f.returns, &f.params)?)
                }
                _ => return Err(d.invalid(format!("`{prototype}` is no prototype"))),
            };
            d.b.note_call(None)?;
            let none = vec![None; signature.params.len()];
            pass(d, &params, &signature.params, &none)?;
            d.meta.uses.push(v);
            d.inst.ops[0] = v;
            d.inst.aux[0] = 1;
            let none = vec![None; signature.returns.len()];
            results(d, &returns, &signature.returns, &none)?;
            d.emit(Kind::Call, nothing)
        }
        _ => Err(d.invalid(format!("`{name}` is no function"))),
    }
}

/// Offset in the current frame of a parameter variable of the caller.
fn frame_offset(d: &mut Dec, operand: &Operand) -> Option<u32> {
    match operand {
        Operand::Name(n) => match d.b.lookup(n) {
            Some(Symbol::Frame(at)) => Some(at),
            _ => None,
        },
        _ => None,
    }
}

/// A copy between a variable of this frame and the frame after it.
fn copy(d: &mut Dec, own: u32, other: u32, bytes: u32, to_callee: bool) -> Inst {
    let mut helper = Inst::new(Kind::Memory, special::copy_local);
    helper.ops[0] = d.b.frame_row();
    helper.pool = bytes;
    // The callee's frame begins where this one ends, which is known when this function is complete.
    (helper.imm, helper.target) = if to_callee { (i64::from(own), other) } else { (i64::from(other), own) };
    helper.aux[0] = if to_callee { 1 } else { 2 };
    helper
}

/// Copies parameters into the callee's frame or registers, before the call.
fn pass(d: &mut Dec, given: &[Operand], slots: &[Slot], regs: &[Option<u32>]) -> Result<()> {
    if given.len() != slots.len() {
        return Err(d.invalid(format!("{} parameters, the function has {}", given.len(), slots.len())));
    }
    for ((operand, slot), reg) in given.iter().zip(slots).zip(regs) {
        match (slot, reg) {
            (Slot::Frame(at, bytes), _) => match frame_offset(d, operand) {
                Some(own) => {
                    let helper = copy(d, own, *at, *bytes, true);
                    let frame = helper.ops[0];
                    d.emit_helper(helper, vec![frame], Vec::new());
                }
                None => return Err(d.unsupported("a parameter that is no .param variable")),
            },
            (Slot::Reg(ty), Some(reg)) => {
                let row = d.read(operand, *ty)?;
                let mut helper = Inst::new(Kind::Plain, super::movs::copy(*ty));
                (helper.ops[0], helper.ops[1]) = (*reg, row);
                d.emit_helper(helper, vec![row], vec![*reg]);
            }
            (Slot::Reg(_), None) => return Err(d.unsupported("register parameters of an indirect call")),
        }
    }
    Ok(())
}

/// Copies return values from the callee's frame or registers, after the call.
fn results(d: &mut Dec, given: &[Operand], slots: &[Slot], regs: &[Option<u32>]) -> Result<()> {
    if given.len() != slots.len() {
        return Err(d.invalid(format!("{} return values, the function has {}", given.len(), slots.len())));
    }
    for ((operand, slot), reg) in given.iter().zip(slots).zip(regs) {
        match (slot, reg) {
            (Slot::Frame(at, bytes), _) => match frame_offset(d, operand) {
                Some(own) => {
                    let helper = copy(d, own, *at, *bytes, false);
                    let frame = helper.ops[0];
                    d.after(helper, vec![frame], Vec::new());
                }
                None => return Err(d.unsupported("a return value that is no .param variable")),
            },
            (Slot::Reg(ty), Some(reg)) => {
                let before = d.meta.defs.len();
                let to = d.write(operand, *ty)?;
                d.meta.defs.truncate(before);
                let mut helper = Inst::new(Kind::Plain, super::movs::copy(*ty));
                (helper.ops[0], helper.ops[1]) = (to, *reg);
                d.after(helper, vec![*reg], vec![to]);
            }
            (Slot::Reg(_), None) => return Err(d.unsupported("register results of an indirect call")),
        }
    }
    Ok(())
}

/// Functions of the device runtime.
fn runtime(d: &mut Dec, name: &str, returns: &[Operand], params: &[Operand]) -> Result<()> {
    let offsets: Option<Vec<u32>> = params.iter().map(|p| frame_offset(d, p)).collect();
    let offsets = offsets.ok_or_else(|| d.unsupported("a parameter that is no .param variable"))?;
    let frame = d.b.frame_row();
    d.inst.ops[0] = frame;
    if !d.b.in_kernel() {
        d.meta.uses.push(frame);
    }
    match (name, &offsets[..]) {
        ("vprintf", [format, arguments]) => {
            d.inst.imm = i64::from(*format);
            d.inst.target = *arguments;
            d.inst.pool = match returns {
                [r] => frame_offset(d, r).ok_or_else(|| d.unsupported("this return value"))?,
                _ => return Err(d.invalid("one return value is expected")),
            };
            d.emit(Kind::Memory, print::vprintf)
        }
        ("__assertfail", [message, file, line, function, size]) => {
            // Copied next to each other, so that the instruction needs one offset.
            let at = d.b.reserve_frame(48);
            for (k, (from, bytes)) in
                [(message, 8), (file, 8), (line, 4), (function, 8), (size, 8)].into_iter().enumerate()
            {
                let mut helper = Inst::new(Kind::Memory, special::copy_local);
                helper.ops[0] = frame;
                helper.pool = bytes;
                helper.imm = i64::from(*from);
                helper.target = at + 8 * k as u32;
                d.emit_helper(helper, vec![frame], Vec::new());
            }
            d.inst.imm = i64::from(at);
            d.emit(Kind::Trap, print::assert_fail)
        }
        _ => Err(d.unsupported(format!("the function `{name}` has no body"))),
    }
}
