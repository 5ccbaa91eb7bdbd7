//! The bodies of routines: statements, labels, lines.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::program::Meta;
use super::symbol::{Signature, Slot, Symbol};
use super::{Builder, MAX_LOCAL_BYTES, Result, add_aligned};
use crate::exec::inst::{Inst, Kind, nothing};
use crate::ptx::Pos;
use crate::ptx::ast::{Function, Place, Statement};

impl<'m> Builder<'m> {
    pub(super) fn body(&mut self, routine: usize) -> Result<()> {
        let function = self.pending[routine].function;
        let f: &'m Function = &self.scope.ast.functions[function];
        let Some(body) = &f.body else {
            return Err(f.pos.unsupported(f.name.clone(), "a call of a function without a body"));
        };
        let start = self.program.insts.len();
        let first_virtual = self.virtuals.len() as u32;
        self.source = None;
        self.carry = None;
        self.frame = u64::from(self.pending[routine].signature.bytes);
        self.return_label = self.new_label();
        self.scopes.push(HashMap::new());
        if routine == 0 {
            let mut at = 0;
            for p in &f.params {
                let offset = add_aligned(&mut at, p.align, p.bytes());
                if at > 32 << 10 {
                    return Err(p.pos.invalid("parameters of a kernel are too large"));
                }
                self.name(&p.name, Symbol::Param(offset as u32), p.pos)?;
            }
            self.kernel_param_bytes = at as u32;
        } else {
            let signature = self.pending[routine].signature.clone();
            let regs = (self.pending[routine].param_regs.clone(), self.pending[routine].return_regs.clone());
            for (variables, slots, regs) in
                [(&f.params, &signature.params, &regs.0), (&f.returns, &signature.returns, &regs.1)]
            {
                for ((v, slot), reg) in variables.iter().zip(slots).zip(regs) {
                    let symbol = match (slot, reg) {
                        (Slot::Frame(offset, _), _) => Symbol::Frame(*offset),
                        (Slot::Reg(ty), Some(reg)) => Symbol::Reg(*reg, *ty),
                        (Slot::Reg(_), None) => unreachable!("registers were made for these slots"),
                    };
                    self.name(&v.name, symbol, v.pos)?;
                }
            }
        }
        self.block(body)?;
        self.set_label(self.return_label);
        let end = if routine == 0 { Kind::Exit } else { Kind::Return };
        let meta = Meta { text: self.text("ret"), ..Meta::default() };
        self.emit(Inst::new(end, nothing), meta, true);
        self.scopes.clear();
        let p = &mut self.pending[routine];
        p.first_virtual = first_virtual;
        p.range = start..self.program.insts.len();
        p.frame_bytes = (self.frame as u32).next_multiple_of(16);
        p.built = true;
        if self.frame > MAX_LOCAL_BYTES {
            return Err(f.pos.invalid("more than 512 KiB of local memory"));
        }
        self.patch_labels(start)?;
        Ok(())
    }

    fn patch_labels(&mut self, start: usize) -> Result<()> {
        for pc in start..self.program.insts.len() {
            let inst = &self.program.insts[pc];
            let pos = Pos { line: self.program.meta[pc].ptx_line, column: self.program.meta[pc].ptx_column };
            let resolve = |label: u32| {
                self.labels
                    .get(label as usize)
                    .copied()
                    .flatten()
                    .filter(|&t| t as usize >= start)
                    .ok_or_else(|| pos.invalid("a branch to a label of another function"))
            };
            match inst.kind {
                Kind::Branch => self.program.insts[pc].target = resolve(inst.target)?,
                Kind::BranchIndexed => {
                    let table = inst.target as usize;
                    let targets: Result<Vec<u32>> =
                        self.program.tables[table].iter().map(|&l| resolve(l)).collect();
                    self.program.tables[table] = targets?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn block(&mut self, statements: &'m [Statement]) -> Result<()> {
        self.scopes.push(HashMap::new());
        // Labels may be used before they stand.
        for s in statements {
            match s {
                Statement::Label(name, pos) => {
                    let label = self.new_label();
                    self.name(name, Symbol::Label(label), *pos)?;
                }
                Statement::Targets { name, targets, pos } => {
                    self.name(name, Symbol::Targets(targets.clone()), *pos)?;
                }
                Statement::Prototype { name, returns, params, pos } => {
                    let signature = Signature::of(returns, params)?;
                    self.name(name, Symbol::Prototype(Arc::new(signature)), *pos)?;
                }
                _ => {}
            }
        }
        for s in statements {
            match s {
                Statement::Reg { ty, names, pos } => self.registers(*ty, names, *pos)?,
                Statement::Variable(v) => self.variable(v)?,
                Statement::Label(name, _) => {
                    if let Some(Symbol::Label(l)) = self.lookup(name) {
                        self.set_label(l);
                    }
                }
                Statement::Instruction(i) => crate::decode::dec::decode(self, i)?,
                Statement::Loc { at, inlined_at } => {
                    match inlined_at {
                        Some(outer) => self.inlined.insert(*at, *outer),
                        None => self.inlined.remove(at),
                    };
                    // Line 0 is code that no line stands for; it keeps the line before.
                    if at.line != 0 {
                        let shown = self.shown(*at);
                        self.source = self.scope.files.get(&shown.file).map(|&f| (f, shown.line));
                    }
                }
                Statement::Block(inner) => self.block(inner)?,
                Statement::Targets { .. } | Statement::Prototype { .. } => {}
            }
        }
        self.scopes.pop();
        Ok(())
    }

    /// The place to show for an instruction: of the functions that were inlined around it, the innermost in the file
    /// of the outermost. So a helper of a header is shown where the kernel uses it, and the body of a kernel that is a
    /// template at its own lines.
    fn shown(&self, at: Place) -> Place {
        let chain = std::iter::successors(Some(at), |place| self.inlined.get(place).copied());
        // A line may stand for itself in a circle of inlined copies; no real chain is that long.
        let chain: Vec<Place> = chain.take(64).collect();
        let file = chain.last().map_or(at.file, |outermost| outermost.file);
        chain.into_iter().find(|place| place.file == file).unwrap_or(at)
    }
}
