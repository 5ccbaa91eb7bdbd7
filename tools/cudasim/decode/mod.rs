//! Syntax tree → executable form: what the driver loads.

pub(crate) mod builder;
pub(crate) mod dec;
mod flow;
mod ops;
mod place;
pub(crate) mod program;

use std::collections::HashMap;
use std::sync::Arc;

use crate::exec::GlobalAddresses;
use crate::ptx::ast::{self, Init, Operand, Space, Statement, Type};
use crate::ptx::{Pos, PtxError, parse};
use builder::{Builder, ModuleScope, RESERVED_SHARED_BYTES};
use program::Program;

/// The address that stands for a function of the module.
pub(crate) fn function_address(index: u32) -> u64 {
    dec::function_address(index as usize)
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Name in the PTX.
    pub name: String,
    /// Offset in the parameter buffer.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A kernel, decoded.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Name.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Size of the parameter buffer.
    pub param_bytes: u32,
    /// Shared memory that it declares, bytes per CTA.
    pub static_shared_bytes: u32,
    /// Local memory, bytes per thread.
    pub local_bytes: u32,
    /// `.maxntid`
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`
    pub req_threads: Option<[u32; 3]>,
    /// `.minnctapersm`
    pub min_ctas: Option<u32>,
    /// Registers per thread as a compiler might need them: the most that are live at once, and a few.
    pub registers_estimate: u32,
    pub(crate) program: Program,
    pub(crate) dynamic_shared: bool,
    pub(crate) files: Arc<Vec<String>>,
    pub(crate) global_names: Arc<Vec<String>>,
}

/// A variable in global or constant memory.
#[derive(Clone, Debug, PartialEq)]
pub struct GlobalVar {
    /// Name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Alignment in bytes.
    pub align: u32,
    /// In `.const` rather than `.global`.
    pub constant: bool,
    image: Vec<u8>,
    /// Places in the image that hold addresses.
    relocations: Vec<Relocation>,
}

#[derive(Clone, Debug, PartialEq)]
struct Relocation {
    at: usize,
    bytes: usize,
    target: Target,
    offset: i64,
    mask: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
enum Target {
    Variable(String),
    Function(usize),
}

impl GlobalVar {
    /// The bytes that it starts with, zero where nothing is said.
    pub fn initial_bytes(&self, addresses: &GlobalAddresses) -> Vec<u8> {
        let mut out = self.image.clone();
        out.resize(usize::try_from(self.bytes).unwrap_or(0), 0);
        for r in &self.relocations {
            let base = match &r.target {
                Target::Variable(name) => addresses.get(name).unwrap_or(0),
                Target::Function(f) => dec::function_address(*f),
            };
            let mut value = base.wrapping_add(r.offset as u64);
            if let Some(mask) = r.mask {
                value = (value & mask) >> mask.trailing_zeros().min(63);
            }
            if let Some(to) = out.get_mut(r.at..r.at + r.bytes) {
                to.copy_from_slice(&value.to_le_bytes()[..r.bytes]);
            }
        }
        out
    }
}

/// A module: what a driver loads.
#[derive(Clone, Debug)]
pub struct Module {
    kernels: Vec<Kernel>,
    by_name: HashMap<String, usize>,
    globals: Vec<GlobalVar>,
    files: Arc<Vec<String>>,
    version: (u32, u32),
    target: String,
}

impl Module {
    /// Parses and decodes a PTX text.
    ///
    /// # Errors
    ///
    /// When the text is not PTX, or a kernel (or a function that one calls) has an instruction that this simulator
    /// does not execute. On an x86-64 machine without AVX2, FMA, F16C and BMI nothing can be executed.
    pub fn parse(text: &str) -> Result<Module, PtxError> {
        crate::exec::lanes::supported().map_err(PtxError::Machine)?;
        let ast = parse(text)?;
        let files: Arc<Vec<String>> = Arc::new(ast.files.iter().map(|f| f.1.clone()).collect());
        let variables: Vec<&ast::Variable> =
            ast.variables.iter().filter(|v| matches!(v.space, Some(Space::Global | Space::Const))).collect();
        let mut scope = ModuleScope {
            ast: &ast,
            globals: HashMap::new(),
            shared: HashMap::new(),
            functions: HashMap::new(),
            files: ast.files.iter().enumerate().map(|(i, f)| (f.0, i as u32)).collect(),
            reserved_shared: if text.contains("%reserved_smem_offset_") { RESERVED_SHARED_BYTES } else { 0 },
            addressed: Vec::new(),
        };
        for (i, v) in variables.iter().enumerate() {
            let space = v.space.unwrap_or(Space::Global);
            if scope.globals.insert(&v.name, (i as u32, space)).is_some() {
                return Err(v.pos.invalid(format!("`{}` is declared twice", v.name)));
            }
        }
        for v in ast.variables.iter().filter(|v| v.space == Some(Space::Shared)) {
            scope.shared.insert(&v.name, v);
        }
        for (i, f) in ast.functions.iter().enumerate() {
            // A definition replaces earlier declarations.
            match scope.functions.get(f.name.as_str()) {
                Some(&j) if ast.functions[j].body.is_some() && f.body.is_some() => {
                    return Err(f.pos.invalid(format!("`{}` is defined twice", f.name)));
                }
                Some(&j) if ast.functions[j].body.is_some() => {}
                _ => {
                    scope.functions.insert(&f.name, i);
                }
            }
        }
        scope.addressed = addressed(&ast, &scope);
        let globals = variables.iter().map(|v| global(v, &scope)).collect::<Result<Vec<_>, _>>()?;
        let global_names = Arc::new(globals.iter().map(|g| g.name.clone()).collect::<Vec<_>>());
        let mut kernels: Vec<Kernel> = Vec::new();
        let mut by_name = HashMap::new();
        for (i, f) in ast.functions.iter().enumerate() {
            if !f.entry || f.body.is_none() {
                continue;
            }
            let (program, params) = Builder::build(&scope, i)?;
            by_name.insert(f.name.clone(), kernels.len());
            kernels.push(kernel(f, program, &params, &files, &global_names));
        }
        Ok(Module { kernels, by_name, globals, files, version: ast.version, target: ast.target.clone() })
    }

    /// The kernels in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }

    /// The kernel with this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.by_name.get(name).map(|&i| &self.kernels[i])
    }

    /// Variables in global and constant memory.
    pub fn globals(&self) -> &[GlobalVar] {
        &self.globals
    }

    /// Names of source files, from `.file`.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// `.version`, as `(major, minor)`.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// `.target`
    pub fn target(&self) -> &str {
        &self.target
    }
}

fn kernel(
    f: &ast::Function,
    program: Program,
    params: &[ast::Variable],
    files: &Arc<Vec<String>>,
    global_names: &Arc<Vec<String>>,
) -> Kernel {
    let mut at = 0u64;
    let mut out = Vec::new();
    for p in params {
        let offset = at.next_multiple_of(u64::from(p.align));
        at = offset + p.bytes();
        out.push(Param {
            name: p.name.clone(),
            offset: offset as u32,
            size: p.bytes() as u32,
            align: p.align,
        });
    }
    // What addresses, moves and the calling convention take on top.
    let estimate = (program.pressure + 6).next_multiple_of(2).clamp(16, 255);
    Kernel {
        name: f.name.clone(),
        params: out,
        param_bytes: at as u32,
        static_shared_bytes: program.static_shared - program.reserved_shared,
        local_bytes: program.local_bytes,
        max_threads: f.max_threads,
        req_threads: f.req_threads,
        min_ctas: f.min_ctas,
        registers_estimate: f.max_registers.map_or(estimate, |m| estimate.min(m.max(16))),
        dynamic_shared: program.uses_dynamic_shared,
        program,
        files: files.clone(),
        global_names: global_names.clone(),
    }
}

/// Functions whose address is taken by an instruction or an initial value.
fn addressed(ast: &ast::Module, scope: &ModuleScope) -> Vec<usize> {
    let mut out = Vec::new();
    let mut add = |name: &str| {
        if let Some(&f) = scope.functions.get(name)
            && !ast.functions[f].entry
            && !out.contains(&f)
        {
            out.push(f);
        }
    };
    for v in &ast.variables {
        for i in &v.init {
            if let Init::Address { symbol, .. } = i {
                add(symbol);
            }
        }
    }
    fn walk(statements: &[Statement], add: &mut dyn FnMut(&str)) {
        for s in statements {
            match s {
                Statement::Block(inner) => walk(inner, add),
                Statement::Instruction(i) if !i.opcode.starts_with("call") => {
                    for o in &i.operands {
                        if let Operand::Name(n) = o {
                            add(n);
                        }
                    }
                }
                Statement::Targets { targets, .. } => targets.iter().for_each(|t| add(t)),
                _ => {}
            }
        }
    }
    for f in &ast.functions {
        if let Some(body) = &f.body {
            walk(body, &mut add);
        }
    }
    out
}

/// Lays out the initial value of a variable.
fn global(v: &ast::Variable, scope: &ModuleScope) -> Result<GlobalVar, PtxError> {
    let element = v.ty.bytes() as usize;
    let bytes = v.bytes();
    if (v.init.len() * element) as u64 > bytes {
        return Err(v.pos.invalid(format!("`{}` has more initial values than elements", v.name)));
    }
    let mut image = vec![0; v.init.len() * element];
    let mut relocations = Vec::new();
    for (k, init) in v.init.iter().enumerate() {
        let at = k * element;
        let bits = match init {
            Init::Bits(b) => *b,
            Init::Float(x) => match v.ty {
                Type::F32 => u64::from((*x as f32).to_bits()),
                Type::F64 => x.to_bits(),
                _ => return Err(bad(v.pos, &v.name)),
            },
            Init::Address { symbol, offset, mask } => {
                let target = if scope.globals.contains_key(symbol.as_str()) {
                    Target::Variable(symbol.clone())
                } else if let Some(&f) = scope.functions.get(symbol.as_str()) {
                    Target::Function(f)
                } else {
                    return Err(v.pos.invalid(format!("`{symbol}` is not declared")));
                };
                if element > 8 {
                    return Err(bad(v.pos, &v.name));
                }
                relocations.push(Relocation { at, bytes: element, target, offset: *offset, mask: *mask });
                0
            }
        };
        let raw = bits.to_le_bytes();
        let n = element.min(8);
        image[at..at + n].copy_from_slice(&raw[..n]);
    }
    Ok(GlobalVar {
        name: v.name.clone(),
        bytes,
        align: v.align,
        constant: v.space == Some(Space::Const),
        image,
        relocations,
    })
}

fn bad(pos: Pos, name: &str) -> PtxError {
    pos.invalid(format!("`{name}` has an initial value of another type"))
}
