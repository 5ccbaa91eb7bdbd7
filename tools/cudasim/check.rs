//! What a launch did wrong: kinds of faults and the reports of them.

use std::fmt;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// An access outside every allocation, of shared memory, local memory or the parameters. Stops the kernel.
    OutOfBounds,
    /// An access at no multiple of its size. Stops the kernel.
    Misaligned,
    /// An instruction with operands that it must not have. Stops the kernel.
    IllegalInstruction,
    /// `trap`. Stops the kernel.
    Trap,
    /// A failed `assert`. Stops the kernel.
    Assert,
    /// Nothing can make progress any more. Stops the kernel.
    Deadlock,
    /// The kernel ran longer than the watchdog allows. Stops the kernel.
    Watchdog,
    /// More local memory than there is, by calls of functions. Stops the kernel.
    StackOverflow,
    /// The launch itself does not fit the kernel: parameters, block size. Nothing ran.
    BadLaunch,
    /// A read of global memory that nobody wrote.
    UninitialisedGlobal,
    /// A read of shared memory that nobody wrote.
    UninitialisedShared,
    /// Two threads access the same bytes of shared memory, one writes, and no barrier orders them.
    SharedRace,
    /// An access to the destination of a `cp.async` that was not waited for.
    MissingAsyncWait,
    /// A barrier that not all threads of the warp reach together, or that warps reach at different places.
    DivergentBarrier,
    /// `shfl`, `vote`, `mma` and the like read or need lanes that do not take part.
    InactiveLane,
    /// Two CTAs write the same bytes in one launch without atomics.
    WriteConflict,
    /// A plain load of what another CTA wrote in this launch and did not publish, or this one did not acquire: fences
    /// or orders of atomics are missing.
    UnorderedRead,
}

impl FaultKind {
    /// Whether the kernel stops there, as on hardware.
    pub fn fatal(self) -> bool {
        self < FaultKind::UninitialisedGlobal
    }

    /// A few words.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::OutOfBounds => "out of bounds",
            FaultKind::Misaligned => "misaligned address",
            FaultKind::IllegalInstruction => "illegal instruction",
            FaultKind::Trap => "trap",
            FaultKind::Assert => "assertion failed",
            FaultKind::Deadlock => "deadlock",
            FaultKind::Watchdog => "watchdog",
            FaultKind::StackOverflow => "stack overflow",
            FaultKind::BadLaunch => "bad launch",
            FaultKind::UninitialisedGlobal => "uninitialised read of global memory",
            FaultKind::UninitialisedShared => "uninitialised read of shared memory",
            FaultKind::SharedRace => "race in shared memory",
            FaultKind::MissingAsyncWait => "missing cp.async wait",
            FaultKind::DivergentBarrier => "divergent barrier",
            FaultKind::InactiveLane => "inactive lane",
            FaultKind::WriteConflict => "two CTAs write the same bytes",
            FaultKind::UnorderedRead => "nothing orders a read after another CTA's write",
        }
    }
}

/// One fault: what, where in the code, and which thread met it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What.
    pub kind: FaultKind,
    /// Name of the kernel.
    pub kernel: String,
    /// Source file, when the PTX has line information.
    pub file: Option<String>,
    /// Line in that file, or else in the PTX.
    pub line: u32,
    /// Opcode with its modifiers.
    pub instruction: String,
    /// Index of the instruction in the program, to tell reports apart.
    pub pc: u32,
    /// CTA.
    pub block: [u32; 3],
    /// Thread of the CTA.
    pub thread: [u32; 3],
    /// Address of the access, in the space that the message names.
    pub address: Option<u64>,
    /// Details: the allocation that was missed, the other thread of a race, the lanes that are missing.
    pub message: String,
    /// How often it happened.
    pub count: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_deref().unwrap_or("ptx");
        write!(f, "{}: kernel {} at {file}:{}", self.kind.name(), self.kernel, self.line)?;
        if !self.instruction.is_empty() {
            write!(f, " ({})", self.instruction)?;
        }
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(f, ", block ({bx}, {by}, {bz}) thread ({tx}, {ty}, {tz})")?;
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        if self.count > 1 {
            write!(f, " ({} times)", self.count)?;
        }
        Ok(())
    }
}

/// Which checks run beside the ones that hardware makes (bounds and alignment, which always run).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Reads of memory that nobody wrote.
    pub uninitialised: bool,
    /// Races in shared memory between warps, and accesses to `cp.async` destinations before the wait.
    pub races: bool,
    /// Races in shared memory between lanes of one warp without `bar.warp.sync`.
    pub warp_races: bool,
    /// Two CTAs writing the same bytes, or one reading what another wrote, with nothing that orders them.
    pub write_conflicts: bool,
    /// Divergent barriers and inactive lanes.
    pub divergence: bool,
}

impl Checks {
    /// Every check.
    pub const ALL: Checks = Checks {
        uninitialised: true,
        races: true,
        warp_races: true,
        write_conflicts: true,
        divergence: true,
    };
    /// Only what hardware checks.
    pub const NONE: Checks = Checks {
        uninitialised: false,
        races: false,
        warp_races: false,
        write_conflicts: false,
        divergence: false,
    };
}

impl Default for Checks {
    fn default() -> Checks {
        Checks::ALL
    }
}
