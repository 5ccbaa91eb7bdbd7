//! The executable form of one kernel with the functions it calls.

use crate::exec::inst::Inst;

/// First address of a function: what `mov.u64 %rd, f` gives. Not canonical, so no load from it can succeed.
pub(crate) const FUNCTION_BASE: u64 = 0xf000_0000_0000_0000;

/// Class of a register: where it lies in the register file of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// One word: a bit per lane.
    Pred,
    /// 32 words.
    W32,
    /// 64 words.
    W64,
    /// Two consecutive 64-bit rows, low half first.
    W128,
}

impl Class {
    /// Words in the register file.
    pub(crate) fn words(self) -> u32 {
        match self {
            Class::Pred => 1,
            Class::W32 => 32,
            Class::W64 => 64,
            Class::W128 => 128,
        }
    }
}

/// Special registers whose value is the same for all lanes of a launch or a CTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Uniform {
    Ntid(u8),
    Nctaid(u8),
    Ctaid(u8),
    Nwarpid,
    Smid,
    Nsmid,
    GridId,
    DynamicShared,
    TotalShared,
    /// Offset of the dynamic part of shared memory, plus a constant.
    DynamicSharedBase(u32),
    /// Half of the address of a cooperative launch's workspace, the upper one for `true`; 0 in other launches.
    GridWorkspace(bool),
}

/// How the words of the constant rows get their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fill {
    /// One word, for constant predicates.
    Word(u32),
    /// An immediate.
    Row32(u32),
    /// An immediate.
    Row64(u64),
    /// `%laneid`
    LaneId,
    /// `%lanemask_eq`, `le`, `lt`, `ge`, `gt`
    LaneMask(u8),
    /// A special register as 32 bits.
    Uniform32(Uniform),
    /// A special register as 64 bits.
    Uniform64(Uniform),
    /// Bytes of the kernel's parameters: offset, size, whether signed, as a 32-bit row.
    Param32(u32, u8, bool),
    /// The same as a 64-bit row.
    Param64(u32, u8, bool),
    /// Address of a module variable plus an offset.
    Global(u32, i64),
}

impl Fill {
    /// Words that it occupies.
    pub(crate) fn words(self) -> u32 {
        match self {
            Fill::Word(_) => 1,
            Fill::Row32(_) | Fill::LaneId | Fill::LaneMask(_) | Fill::Uniform32(_) | Fill::Param32(..) => 32,
            Fill::Row64(_) | Fill::Uniform64(_) | Fill::Param64(..) | Fill::Global(..) => 64,
        }
    }
}

/// Special registers that differ between the lanes of a CTA: rows in the register file of the warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LaneSpecial {
    /// `%tid`, 32 bits.
    Tid(u8),
    /// `%warpid`, 32 bits.
    WarpId,
}

/// What is known of an instruction beside how to execute it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    /// Which unit executes it; set when the kernel is whole.
    pub(crate) class: crate::class::Class,
    /// Line in the PTX.
    pub(crate) ptx_line: u32,
    /// Column in the PTX.
    pub(crate) ptx_column: u32,
    /// Index into [`crate::decode::Module::files`] and line, from `.loc`.
    pub(crate) source: Option<(u32, u32)>,
    /// Opcode with modifiers.
    pub(crate) text: std::sync::Arc<str>,
    /// Registers read, as indices of virtual registers.
    pub(crate) uses: Vec<u32>,
    /// Registers written.
    pub(crate) defs: Vec<u32>,
    /// Loads from global memory or atomics: 1; from shared memory: 2.
    pub(crate) load: u8,
}

/// A contiguous part of the register file that one function uses: what a recursive call saves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Region {
    /// First word of the predicates and their number.
    pub(crate) preds: (u32, u32),
    /// First word of the 32-bit rows and the number of rows.
    pub(crate) w32: (u32, u32),
    /// First word of the 64-bit rows and the number of rows.
    pub(crate) w64: (u32, u32),
}

/// A function of the program.
#[derive(Clone, Debug)]
pub(crate) struct Routine {
    /// First instruction.
    pub(crate) entry: u32,
    /// Row with the base of its frame in local memory.
    pub(crate) frame_row: u32,
    /// Bytes of its frame.
    pub(crate) frame_bytes: u32,
    /// Its registers.
    pub(crate) region: Region,
    /// Index of the function in the module.
    pub(crate) module_index: u32,
}

/// A kernel, ready to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) insts: Vec<Inst>,
    pub(crate) meta: Vec<Meta>,
    /// Further operands of instructions with many.
    pub(crate) pool: Vec<u32>,
    /// Constant rows: word offset and value.
    pub(crate) fills: Vec<(u32, Fill)>,
    pub(crate) const_words: u32,
    /// Words of the register file of one warp.
    pub(crate) warp_words: u32,
    /// Rows of special registers.
    pub(crate) specials: Vec<(u32, LaneSpecial)>,
    /// Registers that may be read before they are written: first word and words.
    pub(crate) poison: Vec<(u32, u32)>,
    /// Routine 0 is the kernel itself.
    pub(crate) routines: Vec<Routine>,
    /// Word offset of the constant all-ones predicate.
    pub(crate) always: u32,
    /// Shared memory that the kernel declares.
    pub(crate) static_shared: u32,
    /// Bytes at the start of shared memory that are not the program's; they are part of `static_shared`.
    pub(crate) reserved_shared: u32,
    /// Asks for the workspace of a cooperative launch.
    pub(crate) uses_workspace: bool,
    /// Whether the kernel refers to dynamic shared memory.
    pub(crate) uses_dynamic_shared: bool,
    /// Alignment of the dynamic shared memory.
    pub(crate) dynamic_shared_align: u32,
    /// Local memory of one thread: the frames of the deepest chain of calls.
    pub(crate) local_bytes: u32,
    /// Whether a function can call itself.
    pub(crate) recursive: bool,
    /// Bytes of shared memory that one entry of the race check covers: the narrowest access.
    pub(crate) shared_granule: u32,
    /// The most 32-bit registers live at once.
    pub(crate) pressure: u32,
    /// Formats and labels that instructions refer to.
    pub(crate) tables: Vec<Vec<u32>>,
}
