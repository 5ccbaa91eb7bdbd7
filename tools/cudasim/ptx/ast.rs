//! A PTX module as it is written.

use super::error::Pos;

/// Scalar types, with the spelling of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is the type of that name")]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
    E4m3x2,
    E5m2x2,
    S16x2,
    U16x2,
    U4,
    S4,
    B1,
}

impl Type {
    /// The type with this spelling, without the dot.
    pub fn parse(word: &str) -> Option<Type> {
        use Type::*;
        Some(match word {
            "pred" => Pred,
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "b128" => B128,
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "f16" => F16,
            "f16x2" => F16x2,
            "bf16" => Bf16,
            "bf16x2" => Bf16x2,
            "tf32" => Tf32,
            "f32" => F32,
            "f64" => F64,
            "e4m3x2" => E4m3x2,
            "e5m2x2" => E5m2x2,
            "s16x2" => S16x2,
            "u16x2" => U16x2,
            "u4" => U4,
            "s4" => S4,
            "b1" => B1,
            _ => return None,
        })
    }

    /// Width in bits.
    pub fn bits(self) -> u32 {
        use Type::*;
        match self {
            Pred | B1 => 1,
            U4 | S4 => 4,
            B8 | U8 | S8 => 8,
            B16 | U16 | S16 | F16 | Bf16 | E4m3x2 | E5m2x2 => 16,
            B32 | U32 | S32 | F16x2 | Bf16x2 | Tf32 | F32 | S16x2 | U16x2 => 32,
            B64 | U64 | S64 | F64 => 64,
            B128 => 128,
        }
    }

    /// Size of a variable in bytes.
    pub fn bytes(self) -> u32 {
        self.bits().div_ceil(8)
    }

    /// Whether values are signed integers.
    pub fn signed(self) -> bool {
        matches!(self, Type::S8 | Type::S16 | Type::S32 | Type::S64 | Type::S4)
    }

    /// Whether values are floating-point numbers.
    pub fn float(self) -> bool {
        matches!(
            self,
            Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2 | Type::Tf32 | Type::F32 | Type::F64
        )
    }
}

/// Where a variable lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is the space of that name")]
pub enum Space {
    Global,
    Const,
    Shared,
    Local,
    Param,
    Generic,
}

/// A module: one `.ptx` file.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// `.version`, as `(major, minor)`.
    pub version: (u32, u32),
    /// `.target`, first word: `sm_80`.
    pub target: String,
    /// `.file` numbers and names.
    pub files: Vec<(u64, String)>,
    /// Variables of module scope.
    pub variables: Vec<Variable>,
    /// Kernels and functions, declarations included.
    pub functions: Vec<Function>,
}

/// A variable or a parameter.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Name.
    pub name: String,
    /// State space; `None` for a parameter in a register.
    pub space: Option<Space>,
    /// Element type.
    pub ty: Type,
    /// Elements of a vector type, 1 for scalars.
    pub vector: u32,
    /// Alignment in bytes, as declared or natural.
    pub align: u32,
    /// Number of elements; `None` for `name[]`.
    pub count: Option<u64>,
    /// Initial values, flattened.
    pub init: Vec<Init>,
    /// Declared `.extern`.
    pub external: bool,
    /// Where.
    pub pos: Pos,
}

impl Variable {
    /// Size in bytes; 0 for an array without a size.
    pub fn bytes(&self) -> u64 {
        (u64::from(self.ty.bytes()) * u64::from(self.vector)).saturating_mul(self.count.unwrap_or(0))
    }
}

/// One initial value.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// An integer or the bits of a float of the element's type.
    Bits(u64),
    /// A floating-point literal, converted to the element's type when it is placed.
    Float(f64),
    /// The address of a symbol plus an offset.
    Address {
        /// The variable or function.
        symbol: String,
        /// Added to its address.
        offset: i64,
        /// Which byte of the address, for `mask(symbol)` initialisers of byte arrays: the mask.
        mask: Option<u64>,
    },
}

/// A kernel or a device function.
#[derive(Clone, Debug)]
pub struct Function {
    /// Name.
    pub name: String,
    /// `.entry` rather than `.func`.
    pub entry: bool,
    /// Declared `.extern` or without a body.
    pub params: Vec<Variable>,
    /// Return values of a `.func`.
    pub returns: Vec<Variable>,
    /// `.maxntid`.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`.
    pub req_threads: Option<[u32; 3]>,
    /// `.minnctapersm`.
    pub min_ctas: Option<u32>,
    /// `.maxnreg`.
    pub max_registers: Option<u32>,
    /// Statements, unless it is a declaration.
    pub body: Option<Vec<Statement>>,
    /// Where.
    pub pos: Pos,
}

/// A place in a source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Number of the `.file`.
    pub file: u64,
    /// Line in it.
    pub line: u32,
    /// Column in it.
    pub column: u32,
}

/// One statement of a body.
#[derive(Clone, Debug)]
pub enum Statement {
    /// `.reg .b32 %r<8>, x;`
    Reg {
        /// Type of the registers.
        ty: Type,
        /// Names, with the count of `name<count>`.
        names: Vec<(String, Option<u32>)>,
        /// Where.
        pos: Pos,
    },
    /// A variable of this scope.
    Variable(Variable),
    /// `name:`
    Label(String, Pos),
    /// An instruction.
    Instruction(Instruction),
    /// `.loc`: where the following instructions come from.
    Loc {
        /// The place itself.
        at: Place,
        /// Where the function that holds it was inlined.
        inlined_at: Option<Place>,
    },
    /// `{ … }`, a scope of its own.
    Block(Vec<Statement>),
    /// `name: .branchtargets a, b;` or `.calltargets`.
    Targets {
        /// Label of the list.
        name: String,
        /// Labels or functions.
        targets: Vec<String>,
        /// Where.
        pos: Pos,
    },
    /// `name: .callprototype (…) _ (…);`
    Prototype {
        /// Label of the prototype.
        name: String,
        /// Return values.
        returns: Vec<Variable>,
        /// Parameters.
        params: Vec<Variable>,
        /// Where.
        pos: Pos,
    },
}

/// An instruction with its operands.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// `@%p` or `@!%p`: name and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// Opcode with its modifiers.
    pub opcode: String,
    /// Operands in order.
    pub operands: Vec<Operand>,
    /// Where.
    pub pos: Pos,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A register, a special register, a label, a variable or a function.
    Name(String),
    /// An integer constant, in two's complement.
    Int(i64),
    /// A single-precision constant, as bits.
    F32(u32),
    /// A double-precision or decimal constant, as bits.
    F64(u64),
    /// `[base+offset]`; without a base an absolute address.
    Address {
        /// Register or variable.
        base: Option<String>,
        /// Constant offset.
        offset: i64,
    },
    /// `name+offset` outside brackets: the address of a variable.
    Offset(String, i64),
    /// `{a, b, …}`
    Vector(Vec<Operand>),
    /// `a|b`: two destinations.
    Pair(Box<Operand>, Box<Operand>),
    /// `!a`
    Not(Box<Operand>),
    /// `(a, b, …)`: parameters of a call.
    List(Vec<Operand>),
    /// `_`
    Sink,
}
