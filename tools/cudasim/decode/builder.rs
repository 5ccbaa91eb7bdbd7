//! Builds the program of one kernel: symbols, scopes, constants and routines.

use std::collections::HashMap;
use std::sync::Arc;

use super::flow;
use super::place::{self, Virtual};
use super::program::{Class, Fill, LaneSpecial, Meta, Program, Routine, Uniform};
use crate::exec::inst::{CONST, Inst, Kind, NONE, flag, nothing};
use crate::ptx::ast::{self, Function, Place, Space, Statement, Type, Variable};
use crate::ptx::{Pos, PtxError};

pub(super) type Result<T, E = PtxError> = std::result::Result<T, E>;

/// Local memory of a thread whose functions may call themselves.
const RECURSIVE_STACK_BYTES: u32 = 64 << 10;
/// Most local memory per thread, as on hardware.
const MAX_LOCAL_BYTES: u64 = 512 << 10;
/// Most shared memory that declarations may add up to; what a device really has is checked at launch.
const MAX_SHARED_BYTES: u64 = 1 << 20;

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Symbol {
    /// A register.
    Reg(u32, Type),
    /// A variable in the frame of the routine (`.local`, and `.param` of functions): offset.
    Frame(u32),
    /// A `.shared` variable.
    Shared(u32),
    /// The dynamic part of shared memory.
    DynamicShared,
    /// A parameter of the kernel: offset.
    Param(u32),
    /// A `.global` or `.const` variable of the module: index.
    Global(u32, Space),
    /// A label: index.
    Label(usize),
    /// `.branchtargets` or `.calltargets`: index into the tables being built.
    Targets(Vec<String>),
    /// `.callprototype`.
    Prototype(Arc<Signature>),
    /// A function of the module: index.
    Function(usize),
}

/// Where the parameters and return values of a function lie in its frame.
#[derive(Clone, Debug, Default)]
pub(super) struct Signature {
    pub(super) params: Vec<Slot>,
    pub(super) returns: Vec<Slot>,
    pub(super) bytes: u32,
}

/// One parameter or return value.
#[derive(Clone, Debug)]
pub(super) enum Slot {
    /// Offset in the frame, and bytes.
    Frame(u32, u32),
    /// Declared as a register: its type, and its number once the routine exists.
    Reg(Type),
}

impl Signature {
    pub(super) fn of(returns: &[Variable], params: &[Variable]) -> Result<Signature> {
        let mut out = Signature::default();
        let mut at = 0u64;
        let mut lay = |variables: &[Variable]| -> Result<Vec<Slot>> {
            let mut slots = Vec::new();
            for v in variables {
                if v.space.is_none() {
                    slots.push(Slot::Reg(v.ty));
                    continue;
                }
                at = at.next_multiple_of(u64::from(v.align)) + v.bytes();
                if at > MAX_LOCAL_BYTES {
                    return Err(v.pos.invalid("parameters of a function are too large"));
                }
                slots.push(Slot::Frame((at - v.bytes()) as u32, v.bytes() as u32));
            }
            Ok(slots)
        };
        // Parameters first, so that functions of one type agree on them however they are called.
        out.params = lay(params)?;
        out.returns = lay(returns)?;
        out.bytes = at as u32;
        Ok(out)
    }
}

/// What all kernels of a module share.
pub(crate) struct ModuleScope<'m> {
    pub(crate) ast: &'m ast::Module,
    pub(super) globals: HashMap<&'m str, (u32, Space)>,
    pub(super) shared: HashMap<&'m str, &'m Variable>,
    pub(super) functions: HashMap<&'m str, usize>,
    /// File numbers of `.loc` → indices of the module's list of files.
    pub(super) files: HashMap<u64, u32>,
    /// Functions whose address is taken somewhere.
    pub(super) addressed: Vec<usize>,
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
pub(super) struct Builder<'m> {
    pub(super) scope: &'m ModuleScope<'m>,
    pub(super) program: Program,
    pub(super) virtuals: Vec<Virtual>,
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
    pub(super) kernel_param_bytes: u32,
    carry: Option<u32>,
}

fn add_aligned(at: &mut u64, align: u32, bytes: u64) -> u64 {
    let start = at.next_multiple_of(u64::from(align));
    *at = start.saturating_add(bytes);
    start
}

impl<'m> Builder<'m> {
    /// Builds the program of `kernel`, an entry of the module with a body.
    pub(super) fn build(scope: &'m ModuleScope<'m>, kernel: usize) -> Result<(Program, Vec<ast::Variable>)> {
        let mut b = Builder {
            scope,
            program: Program { dynamic_shared_align: 16, shared_granule: 16, ..Program::default() },
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
    pub(super) fn routine(&mut self, function: usize) -> Result<usize> {
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

    pub(super) fn callee(&self, routine: usize) -> (Arc<Signature>, &[Option<u32>], &[Option<u32>]) {
        let p = &self.pending[routine];
        (p.signature.clone(), &p.param_regs, &p.return_regs)
    }

    /// Notes a call from the routine that is being built.
    pub(super) fn note_call(&mut self, routine: Option<usize>) -> Result<()> {
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
    pub(super) fn frame_row(&self) -> u32 {
        self.pending[self.current].frame
    }

    /// Whether the kernel's own body is being built.
    pub(super) fn in_kernel(&self) -> bool {
        self.current == 0
    }

    /// Room in the current frame, at a multiple of 8.
    pub(super) fn reserve_frame(&mut self, bytes: u64) -> u32 {
        add_aligned(&mut self.frame, 8, bytes).min(u32::MAX.into()) as u32
    }

    /// A new label without a name.
    pub(super) fn new_label(&mut self) -> usize {
        self.labels.push(None);
        self.labels.len() - 1
    }

    /// Puts a label here.
    pub(super) fn set_label(&mut self, label: usize) {
        self.labels[label] = Some(self.program.insts.len() as u32);
    }

    /// The label before the return of the current routine.
    pub(super) fn return_label(&self) -> usize {
        self.return_label
    }

    fn body(&mut self, routine: usize) -> Result<()> {
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
                Statement::Instruction(i) => super::dec::decode(self, i)?,
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

    fn registers(&mut self, ty: Type, names: &[(String, Option<u32>)], pos: Pos) -> Result<()> {
        for (name, count) in names {
            match count {
                None => {
                    let reg = self.virtual_of(ty);
                    self.name(name, Symbol::Reg(reg, ty), pos)?;
                }
                Some(n) => {
                    if self.virtuals.len() + *n as usize > 1 << 22 {
                        return Err(pos.invalid("too many registers"));
                    }
                    for i in 0..*n {
                        let reg = self.virtual_of(ty);
                        self.name(&format!("{name}{i}"), Symbol::Reg(reg, ty), pos)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn variable(&mut self, v: &'m Variable) -> Result<()> {
        let symbol = match v.space {
            Some(Space::Local | Space::Param) => {
                Symbol::Frame(add_aligned(&mut self.frame, v.align, v.bytes()).min(u32::MAX.into()) as u32)
            }
            Some(Space::Shared) => self.shared(v)?,
            _ => {
                return Err(v.pos.unsupported(v.name.clone(), "a variable of this space in a function"));
            }
        };
        self.name(&v.name, symbol, v.pos)
    }

    fn shared(&mut self, v: &Variable) -> Result<Symbol> {
        if v.count.is_none() || v.bytes() == 0 {
            self.program.uses_dynamic_shared = true;
            self.program.dynamic_shared_align = self.program.dynamic_shared_align.max(v.align);
            return Ok(Symbol::DynamicShared);
        }
        let mut at = u64::from(self.program.static_shared);
        let start = add_aligned(&mut at, v.align, v.bytes());
        if at > MAX_SHARED_BYTES {
            return Err(v.pos.invalid("too much shared memory"));
        }
        self.program.static_shared = at as u32;
        Ok(Symbol::Shared(start as u32))
    }

    fn name(&mut self, name: &str, symbol: Symbol, pos: Pos) -> Result<()> {
        if let Some(scope) = self.scopes.last_mut()
            && scope.insert(name.to_owned(), symbol).is_some()
        {
            return Err(pos.invalid(format!("`{name}` is declared twice")));
        }
        Ok(())
    }

    /// What a name stands for at this place.
    pub(super) fn lookup(&mut self, name: &str) -> Option<Symbol> {
        for scope in self.scopes.iter().rev() {
            if let Some(s) = scope.get(name) {
                return Some(s.clone());
            }
        }
        if let Some(&(i, space)) = self.scope.globals.get(name) {
            return Some(Symbol::Global(i, space));
        }
        if let Some(&f) = self.scope.functions.get(name) {
            return Some(Symbol::Function(f));
        }
        let v: &'m Variable = self.scope.shared.get(name)?;
        if let Some(&at) = self.shared_of.get(name) {
            return Some(Symbol::Shared(at));
        }
        let symbol = self.shared(v).ok()?;
        if let Symbol::Shared(at) = symbol {
            self.shared_of.insert(name.to_owned(), at);
        }
        Some(symbol)
    }

    /// A new register of a type.
    pub(super) fn virtual_of(&mut self, ty: Type) -> u32 {
        self.virtual_reg(class_of(ty))
    }

    /// A new register of a class.
    pub(super) fn virtual_reg(&mut self, class: Class) -> u32 {
        self.virtuals.push(Virtual { class, pinned: false });
        self.virtuals.len() as u32 - 1
    }

    fn pinned(&mut self, class: Class) -> u32 {
        self.virtuals.push(Virtual { class, pinned: true });
        self.virtuals.len() as u32 - 1
    }

    /// The operand for constant rows.
    pub(super) fn fill(&mut self, fill: Fill) -> u32 {
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
    pub(super) fn uniform(&mut self, u: Uniform, class: Class) -> u32 {
        self.fill(if class == Class::W64 { Fill::Uniform64(u) } else { Fill::Uniform32(u) })
    }

    /// The register of a special register that differs between lanes.
    pub(super) fn special(&mut self, s: LaneSpecial) -> u32 {
        if let Some(&v) = self.specials.get(&s) {
            return v;
        }
        let v = self.pinned(Class::W32);
        self.specials.insert(s, v);
        v
    }

    /// The carry bit of the current routine.
    pub(super) fn carry(&mut self) -> u32 {
        match self.carry {
            Some(v) => v,
            None => {
                let v = self.virtual_reg(Class::Pred);
                self.carry = Some(v);
                v
            }
        }
    }

    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(t) = self.texts.get(text) {
            return t.clone();
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(text.to_owned(), shared.clone());
        shared
    }

    /// Appends an instruction.
    pub(super) fn emit(&mut self, mut inst: Inst, mut meta: Meta, hidden: bool) {
        if hidden {
            inst.flags |= flag::HIDDEN;
        }
        meta.source = self.source;
        self.program.insts.push(inst);
        self.program.meta.push(meta);
    }

    /// Checks that the calls make sense, finds reconvergence points, places registers.
    fn finish(&mut self) -> Result<()> {
        let addressed: Vec<usize> = (0..self.pending.len())
            .filter(|&r| self.scope.addressed.contains(&self.pending[r].function))
            .collect();
        for p in &mut self.pending {
            if p.calls_indirectly {
                p.calls.extend(&addressed);
            }
        }
        self.frames()?;
        self.place_calls();
        let n = self.virtuals.len();
        let mut place = vec![NONE; n];
        let mut start = 0;
        // Registers that belong to no routine alone.
        let loose: Vec<usize> = (0..n).filter(|&v| self.virtuals[v].pinned).collect();
        for class in [Class::Pred, Class::W32, Class::W64, Class::W128] {
            if class == Class::W32 {
                start = u32::next_multiple_of(start, 16);
            }
            for &v in loose.iter().filter(|&&v| self.virtuals[v].class == class) {
                place[v] = start;
                start += class.words();
            }
        }
        self.mark_loads();
        let tables = std::mem::take(&mut self.program.tables);
        for r in 0..self.pending.len() {
            let (range, first) = (self.pending[r].range.clone(), self.pending[r].first_virtual);
            let last = self.pending.get(r + 1).map_or(n as u32, |p| p.first_virtual);
            let blocks = flow::blocks(&self.program.insts, range, &tables);
            flow::reconverge(&mut self.program.insts, &blocks);
            let own: Vec<Virtual> = self.virtuals[first as usize..last as usize]
                .iter()
                .map(|v| Virtual { pinned: false, ..*v })
                .collect();
            let saved: Vec<(usize, u32)> = loose
                .iter()
                .filter(|&&v| (first..last).contains(&(v as u32)))
                .map(|&v| (v, place[v]))
                .collect();
            let placed = place::place(
                &blocks,
                &self.program.insts,
                &self.program.meta,
                &own,
                first,
                start,
                &mut place,
            );
            // Pinned registers made while this routine was decoded keep their own places.
            for (v, at) in saved {
                place[v] = at;
            }
            start = placed.region.end();
            self.program.poison.extend(placed.poison.iter().filter(|p| p.0 != NONE));
            self.program.pressure = self.program.pressure.max(placed.pressure);
            self.program.routines.push(Routine {
                entry: self.pending[r].range.start as u32,
                frame_row: self.pending[r].frame,
                frame_bytes: self.pending[r].frame_bytes,
                region: placed.region,
                module_index: self.pending[r].function as u32,
            });
        }
        self.program.tables = tables;
        // A pinned register that lanes may read before it is written: special registers are always set.
        let special: Vec<u32> = self.specials.values().map(|&v| place[v as usize]).collect();
        self.program.poison.retain(|p| !special.contains(&p.0));
        self.program.specials = self.specials.iter().map(|(&s, &v)| (place[v as usize], s)).collect();
        self.program.specials.sort_by_key(|s| s.0);
        self.program.warp_words = start.max(16);
        let at = |op: u32| {
            if op == NONE || op & CONST != 0 { op } else { place[op as usize] }
        };
        for inst in &mut self.program.insts {
            for op in &mut inst.ops {
                *op = at(*op);
            }
            inst.guard = if inst.guard == NONE { self.program.always | CONST } else { at(inst.guard) };
        }
        for op in &mut self.program.pool {
            *op = at(*op);
        }
        for routine in &mut self.program.routines {
            routine.frame_row = at(routine.frame_row);
        }
        if self.program.const_words > 1 << 26 || self.program.warp_words > 1 << 24 {
            return Err(Pos { line: 1, column: 1 }.invalid("a kernel with too many registers or constants"));
        }
        Ok(())
    }

    /// Copies to and from a callee's frame: it begins where the caller's ends.
    fn place_calls(&mut self) {
        for p in &self.pending {
            for inst in &mut self.program.insts[p.range.clone()] {
                if inst.flags & flag::HIDDEN != 0 && inst.kind == Kind::Memory {
                    match inst.aux[0] {
                        1 => inst.target += p.frame_bytes,
                        2 => inst.imm += i64::from(p.frame_bytes),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Local memory: the deepest chain of calls.
    fn frames(&mut self) -> Result<()> {
        let n = self.pending.len();
        let mut need = vec![0u64; n];
        let mut stable = false;
        // A chain without recursion has at most n links.
        for _ in 0..=n {
            stable = true;
            for r in 0..n {
                let p = &self.pending[r];
                let deepest = p.calls.iter().map(|&c| need[c]).max().unwrap_or(0);
                let new = u64::from(p.frame_bytes) + deepest;
                if new != need[r] {
                    stable = false;
                    need[r] = new;
                }
            }
            if stable {
                break;
            }
        }
        // Functions without frames still must not recurse unnoticed.
        let mut depth = vec![0usize; n];
        let mut cyclic = false;
        for _ in 0..=n {
            let mut changed = false;
            for r in 0..n {
                let new = self.pending[r].calls.iter().map(|&c| depth[c] + 1).max().unwrap_or(0);
                if new != depth[r] {
                    depth[r] = new.min(n + 1);
                    changed = true;
                }
            }
            cyclic = changed;
            if !changed {
                break;
            }
        }
        self.program.recursive = cyclic || !stable;
        let bytes = if self.program.recursive { u64::from(RECURSIVE_STACK_BYTES) } else { need[0] };
        if bytes > MAX_LOCAL_BYTES {
            return Err(Pos { line: 1, column: 1 }.invalid("more than 512 KiB of local memory per thread"));
        }
        self.program.local_bytes = (bytes as u32).next_multiple_of(16);
        Ok(())
    }

    /// Marks instructions that read what a load defined: where a warp waits.
    fn mark_loads(&mut self) {
        let mut loaded = vec![0u8; self.virtuals.len()];
        for meta in self.program.meta.iter().filter(|m| m.load != 0) {
            for &d in &meta.defs {
                loaded[d as usize] |= meta.load;
            }
        }
        for (inst, meta) in self.program.insts.iter_mut().zip(&self.program.meta) {
            let waits = meta.uses.iter().fold(0, |m, &u| m | loaded[u as usize]);
            if waits & 1 != 0 {
                inst.flags |= flag::NEEDS_GLOBAL;
            }
            if waits & 2 != 0 {
                inst.flags |= flag::NEEDS_SHARED;
            }
        }
    }
}

/// The class of registers of a type.
pub(super) fn class_of(ty: Type) -> Class {
    match ty.bits() {
        128 => Class::W128,
        64 => Class::W64,
        1 if ty == Type::Pred => Class::Pred,
        _ => Class::W32,
    }
}
