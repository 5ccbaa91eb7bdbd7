//! The executable form of an instruction.

use super::cx::Cx;

/// Executes one instruction for the lanes of a mask that is not empty.
///
/// # Safety
///
/// The operands of the instruction must be rows of the register file that the context points to, of the classes that
/// the function reads and writes, and the machine must have the features that the function was compiled for.
pub(crate) type ExecFn = unsafe fn(&mut Cx, &Inst, u32);

/// Marks an unused operand before registers are placed.
pub(crate) const NONE: u32 = 0x7fff_ffff;
/// Set in an operand that lies in the constant rows of the CTA rather than in the registers of the warp.
pub(crate) const CONST: u32 = 1 << 31;

/// What the warp's loop does with an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Calls `exec`; cannot fail.
    Plain,
    /// Calls `exec`, which may leave a fault or ask the warp to yield.
    Memory,
    /// Jumps to `target`; lanes whose guard fails fall through.
    Branch,
    /// Jumps to the label that each lane's index selects.
    BranchIndexed,
    /// Calls a function.
    Call,
    /// Returns from a function; never guarded.
    Return,
    /// Ends the lanes.
    Exit,
    /// A CTA barrier.
    Barrier,
    /// Needs all lanes of its member mask at once.
    Collective,
    /// Stops the kernel.
    Trap,
}

/// Bits of [`Inst::flags`].
pub(crate) mod flag {
    /// Not an instruction of the PTX but a helper of the decoder: not counted.
    pub(crate) const HIDDEN: u8 = 1;
    /// Reads a register that a load from global memory (or an atomic) defines.
    pub(crate) const NEEDS_GLOBAL: u8 = 2;
    /// Reads a register that a load from shared memory defines.
    pub(crate) const NEEDS_SHARED: u8 = 4;
    /// The instruction begins a basic block at which lanes may reconverge.
    pub(crate) const LEADER: u8 = 8;
}

/// One instruction.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub(crate) exec: ExecFn,
    /// Rows, as word offsets into the register file of the warp or, with [`CONST`], into the constants.
    pub(crate) ops: [u32; 5],
    /// Word that holds the guard.
    pub(crate) guard: u32,
    /// All ones when the guard is negated.
    pub(crate) guard_xor: u32,
    /// Address offset, lookup table or other constant.
    pub(crate) imm: i64,
    /// Branch target, function or first word in the operand pool.
    pub(crate) target: u32,
    /// Where lanes that diverge here meet again; [`NONE`] when only at the exit.
    pub(crate) reconverge: u32,
    /// First of the further operands in the program's pool.
    pub(crate) pool: u32,
    /// Number of further operands.
    pub(crate) pool_len: u8,
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    /// Small constants of the instruction.
    pub(crate) aux: [u8; 4],
}

/// Does nothing.
pub(crate) unsafe fn nothing(_: &mut Cx, _: &Inst, _: u32) {}

impl Inst {
    /// An instruction without operands.
    pub(crate) fn new(kind: Kind, exec: ExecFn) -> Inst {
        Inst {
            exec,
            ops: [NONE; 5],
            guard: NONE,
            guard_xor: 0,
            imm: 0,
            target: NONE,
            reconverge: NONE,
            pool: 0,
            pool_len: 0,
            kind,
            flags: 0,
            aux: [0; 4],
        }
    }
}
