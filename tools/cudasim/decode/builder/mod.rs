//! Builds the program of one kernel: symbols, scopes, constants and routines.

mod body;
mod finish;
mod names;
mod symbol;

use std::collections::HashMap;
use std::sync::Arc;

use super::place::Virtual;
use super::program::{Class, Fill, LaneSpecial, Meta, Program, Uniform};
use crate::exec::inst::{CONST, Inst, flag};
use crate::ptx::PtxError;
use crate::ptx::ast::{self, Place, Space, Type, Variable};
pub(in crate::decode) use symbol::{Signature, Slot, Symbol};

pub(in crate::decode) type Result<T, E = PtxError> = std::result::Result<T, E>;

/// Shared memory of a CTA that hardware keeps for itself; cooperative groups have their scratch there.
pub(in crate::decode) const RESERVED_SHARED_BYTES: u32 = 1024;
/// Most local memory per thread, as on hardware.
const MAX_LOCAL_BYTES: u64 = 512 << 10;
/// What all kernels of a module share.
pub(crate) struct ModuleScope<'m> {
    pub(crate) ast: &'m ast::Module,
    pub(in crate::decode) globals: HashMap<&'m str, (u32, Space)>,
    pub(in crate::decode) shared: HashMap<&'m str, &'m Variable>,
    pub(in crate::decode) functions: HashMap<&'m str, usize>,
    /// File numbers of `.loc` → indices of the module's list of files.
    pub(in crate::decode) files: HashMap<u64, u32>,
    /// Bytes that the reserved part of shared memory takes, when the module names it.
    pub(in crate::decode) reserved_shared: u32,
    /// Functions whose address is taken somewhere.
    pub(in crate::decode) addressed: Vec<usize>,
}

/// A routine being built.
struct Pending {
    /// Index in the module's functions.
    function: usize,
    /// Row of the frame's base.
    frame: u32,
    param_regs: Vec<Option<u32>>,
    return_regs: Vec<Option<u32>>,
    signature: Arc<Signature>,
    /// Virtual registers `first..`.
    first_virtual: u32,
    range: std::ops::Range<usize>,
    frame_bytes: u32,
    calls: Vec<usize>,
    calls_indirectly: bool,
    built: bool,
}

/// Builds one kernel.
pub(in crate::decode) struct Builder<'m> {
    pub(in crate::decode) scope: &'m ModuleScope<'m>,
    pub(in crate::decode) program: Program,
    pub(in crate::decode) virtuals: Vec<Virtual>,
    fills: HashMap<Fill, u32>,
    specials: HashMap<LaneSpecial, u32>,
    scopes: Vec<HashMap<String, Symbol>>,
    labels: Vec<Option<u32>>,
    shared_of: HashMap<String, u32>,
    frame: u64,
    pending: Vec<Pending>,
    current: usize,
    return_label: usize,
    source: Option<(u32, u32)>,
    /// Places of inlined functions → where they were inlined, by the last `.loc` that said so.
    inlined: HashMap<Place, Place>,
    texts: HashMap<String, Arc<str>>,
    pub(in crate::decode) kernel_param_bytes: u32,
    carry: Option<u32>,
}

fn add_aligned(at: &mut u64, align: u32, bytes: u64) -> u64 {
    let start = at.next_multiple_of(u64::from(align));
    *at = start.saturating_add(bytes);
    start
}

impl<'m> Builder<'m> {
    /// Builds the program of `kernel`, an entry of the module with a body.
    pub(in crate::decode) fn build(
        scope: &'m ModuleScope<'m>,
        kernel: usize,
    ) -> Result<(Program, Vec<ast::Variable>)> {
        let mut b = Builder {
            scope,
            program: Program {
                dynamic_shared_align: 16,
                shared_granule: 16,
                static_shared: scope.reserved_shared,
                reserved_shared: scope.reserved_shared,
                ..Program::default()
            },
            virtuals: Vec::new(),
            fills: HashMap::new(),
            specials: HashMap::new(),
            scopes: Vec::new(),
            labels: Vec::new(),
            shared_of: HashMap::new(),
            frame: 0,
            pending: Vec::new(),
            current: 0,
            return_label: 0,
            source: None,
            inlined: HashMap::new(),
            texts: HashMap::new(),
            kernel_param_bytes: 0,
            carry: None,
        };
        b.program.always = b.fill(Fill::Word(u32::MAX)) & !CONST;
        b.routine(kernel)?;
        let mut next = 0;
        while next < b.pending.len() {
            b.current = next;
            b.body(next)?;
            next += 1;
        }
        b.finish()?;
        Ok((b.program, scope.ast.functions[kernel].params.clone()))
    }

    /// The routine for a function of the module, declared if it is new.
    pub(in crate::decode) fn routine(&mut self, function: usize) -> Result<usize> {
        if let Some(i) = self.pending.iter().position(|p| p.function == function) {
            return Ok(i);
        }
        let f = &self.scope.ast.functions[function];
        let is_kernel = self.pending.is_empty();
        let signature = Arc::new(Signature::of(&f.returns, if is_kernel { &[] } else { &f.params })?);
        let frame = if is_kernel { self.fill(Fill::Row64(0)) } else { self.pinned(Class::W64) };
        let mut reg = |slot: &Slot| match slot {
            Slot::Reg(ty) => Some(self.pinned(class_of(*ty))),
            Slot::Frame(..) => None,
        };
        let param_regs = signature.params.iter().map(&mut reg).collect();
        let return_regs = signature.returns.iter().map(&mut reg).collect();
        self.pending.push(Pending {
            function,
            frame,
            param_regs,
            return_regs,
            signature,
            first_virtual: 0,
            range: 0..0,
            frame_bytes: 0,
            calls: Vec::new(),
            calls_indirectly: false,
            built: false,
        });
        Ok(self.pending.len() - 1)
    }

    pub(in crate::decode) fn callee(
        &self,
        routine: usize,
    ) -> (Arc<Signature>, &[Option<u32>], &[Option<u32>]) {
        let p = &self.pending[routine];
        (p.signature.clone(), &p.param_regs, &p.return_regs)
    }

    /// Notes a call from the routine that is being built.
    pub(in crate::decode) fn note_call(&mut self, routine: Option<usize>) -> Result<()> {
        match routine {
            Some(r) => self.pending[self.current].calls.push(r),
            None => {
                self.pending[self.current].calls_indirectly = true;
                for f in self.scope.addressed.clone() {
                    if self.scope.ast.functions[f].body.is_some() {
                        self.routine(f)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Row with the base of the current frame.
    pub(in crate::decode) fn frame_row(&self) -> u32 {
        self.pending[self.current].frame
    }

    /// Whether the kernel's own body is being built.
    pub(in crate::decode) fn in_kernel(&self) -> bool {
        self.current == 0
    }

    /// Room in the current frame, at a multiple of 8.
    pub(in crate::decode) fn reserve_frame(&mut self, bytes: u64) -> u32 {
        add_aligned(&mut self.frame, 8, bytes).min(u32::MAX.into()) as u32
    }

    /// A new label without a name.
    pub(in crate::decode) fn new_label(&mut self) -> usize {
        self.labels.push(None);
        self.labels.len() - 1
    }

    /// Puts a label here.
    pub(in crate::decode) fn set_label(&mut self, label: usize) {
        self.labels[label] = Some(self.program.insts.len() as u32);
    }

    /// The label before the return of the current routine.
    pub(in crate::decode) fn return_label(&self) -> usize {
        self.return_label
    }

    /// A new register of a type.
    pub(in crate::decode) fn virtual_of(&mut self, ty: Type) -> u32 {
        self.virtual_reg(class_of(ty))
    }

    /// A new register of a class.
    pub(in crate::decode) fn virtual_reg(&mut self, class: Class) -> u32 {
        self.virtuals.push(Virtual { class, pinned: false });
        self.virtuals.len() as u32 - 1
    }

    fn pinned(&mut self, class: Class) -> u32 {
        self.virtuals.push(Virtual { class, pinned: true });
        self.virtuals.len() as u32 - 1
    }

    /// The operand for constant rows.
    pub(in crate::decode) fn fill(&mut self, fill: Fill) -> u32 {
        if let Some(&at) = self.fills.get(&fill) {
            return at | CONST;
        }
        let words = fill.words();
        let at =
            if words == 1 { self.program.const_words } else { self.program.const_words.next_multiple_of(16) };
        self.program.const_words = at + words;
        self.program.fills.push((at, fill));
        self.fills.insert(fill, at);
        at | CONST
    }

    /// The operand for a uniform special register.
    pub(in crate::decode) fn uniform(&mut self, u: Uniform, class: Class) -> u32 {
        self.fill(if class == Class::W64 { Fill::Uniform64(u) } else { Fill::Uniform32(u) })
    }

    /// The register of a special register that differs between lanes.
    pub(in crate::decode) fn special(&mut self, s: LaneSpecial) -> u32 {
        if let Some(&v) = self.specials.get(&s) {
            return v;
        }
        let v = self.pinned(Class::W32);
        self.specials.insert(s, v);
        v
    }

    /// The carry bit of the current routine.
    pub(in crate::decode) fn carry(&mut self) -> u32 {
        match self.carry {
            Some(v) => v,
            None => {
                let v = self.virtual_reg(Class::Pred);
                self.carry = Some(v);
                v
            }
        }
    }

    pub(in crate::decode) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(t) = self.texts.get(text) {
            return t.clone();
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(text.to_owned(), shared.clone());
        shared
    }

    /// Appends an instruction.
    pub(in crate::decode) fn emit(&mut self, mut inst: Inst, mut meta: Meta, hidden: bool) {
        if hidden {
            inst.flags |= flag::HIDDEN;
        }
        meta.source = self.source;
        self.program.insts.push(inst);
        self.program.meta.push(meta);
    }
}

/// The class of registers of a type.
pub(in crate::decode) fn class_of(ty: Type) -> Class {
    match ty.bits() {
        128 => Class::W128,
        64 => Class::W64,
        1 if ty == Type::Pred => Class::Pred,
        _ => Class::W32,
    }
}
