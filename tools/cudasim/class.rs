//! Which execution unit a PTX instruction belongs to, decided by its opcode text, and the shapes of `mma`.

use serde::{Deserialize, Serialize};

/// Execution unit or kind of an instruction, for the mix and the pipe bounds of the time model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Single-precision add, multiply, FMA, compare.
    Fp32,
    /// f16, bf16 and their pairs.
    Half,
    /// Double precision.
    Fp64,
    /// 32-bit and narrower integer arithmetic, logic, shifts, compares.
    Int32,
    /// 64-bit integer arithmetic: two or more 32-bit operations.
    Int64,
    /// Special functions: `ex2 lg2 rcp rsqrt sqrt sin cos tanh`.
    Special,
    /// `div`, `rem` and correctly rounded `rcp`/`sqrt`: a sequence or a call in SASS.
    Division,
    /// Type conversions with 32-bit or narrower operands.
    Convert,
    /// Type conversions with a 64-bit operand, float to double included.
    Convert64,
    /// Register moves and selects.
    #[default]
    Move,
    /// `cvta`, `ld.param`, special-register reads and hints that cost at most one issue slot.
    Param,
    /// `shfl`.
    Shuffle,
    /// `vote match activemask redux elect`.
    Vote,
    /// Tensor-core matrix multiply.
    Mma,
    /// Loads from global (or generic) memory.
    LoadGlobal,
    /// Stores to global (or generic) memory.
    StoreGlobal,
    /// Asynchronous copies from global to shared memory.
    CopyAsync,
    /// Atomics and reductions on global memory.
    Atomic,
    /// Loads from shared memory.
    LoadShared,
    /// Stores to shared memory, `stmatrix` included.
    StoreShared,
    /// `ldmatrix`.
    LoadMatrix,
    /// Atomics and reductions on shared memory.
    AtomicShared,
    /// Loads from local memory: arrays and spills.
    LoadLocal,
    /// Stores to local memory.
    StoreLocal,
    /// Branches, calls, returns.
    Control,
    /// Barriers, waits and fences.
    Barrier,
}

impl Class {
    /// Every class, in the order of declaration.
    pub const ALL: [Class; 26] = [
        Class::Fp32,
        Class::Half,
        Class::Fp64,
        Class::Int32,
        Class::Int64,
        Class::Special,
        Class::Division,
        Class::Convert,
        Class::Convert64,
        Class::Move,
        Class::Param,
        Class::Shuffle,
        Class::Vote,
        Class::Mma,
        Class::LoadGlobal,
        Class::StoreGlobal,
        Class::CopyAsync,
        Class::Atomic,
        Class::LoadShared,
        Class::StoreShared,
        Class::LoadMatrix,
        Class::AtomicShared,
        Class::LoadLocal,
        Class::StoreLocal,
        Class::Control,
        Class::Barrier,
    ];

    /// Name as in reports.
    pub fn name(self) -> &'static str {
        match self {
            Class::Fp32 => "fp32",
            Class::Half => "half",
            Class::Fp64 => "fp64",
            Class::Int32 => "int32",
            Class::Int64 => "int64",
            Class::Special => "special",
            Class::Division => "division",
            Class::Convert => "convert",
            Class::Convert64 => "convert64",
            Class::Move => "move",
            Class::Param => "param",
            Class::Shuffle => "shuffle",
            Class::Vote => "vote",
            Class::Mma => "mma",
            Class::LoadGlobal => "load_global",
            Class::StoreGlobal => "store_global",
            Class::CopyAsync => "copy_async",
            Class::Atomic => "atomic",
            Class::LoadShared => "load_shared",
            Class::StoreShared => "store_shared",
            Class::LoadMatrix => "load_matrix",
            Class::AtomicShared => "atomic_shared",
            Class::LoadLocal => "load_local",
            Class::StoreLocal => "store_local",
            Class::Control => "control",
            Class::Barrier => "barrier",
        }
    }

    /// Whether it goes through global memory.
    pub fn is_global(self) -> bool {
        matches!(self, Class::LoadGlobal | Class::StoreGlobal | Class::CopyAsync | Class::Atomic)
    }

    /// Whether it goes through shared memory; `cp.async` writes it too.
    pub fn is_shared(self) -> bool {
        matches!(
            self,
            Class::LoadShared
                | Class::StoreShared
                | Class::LoadMatrix
                | Class::AtomicShared
                | Class::CopyAsync
        )
    }

    /// Whether it goes through local memory.
    pub fn is_local(self) -> bool {
        matches!(self, Class::LoadLocal | Class::StoreLocal)
    }

    /// Class of an opcode with its modifiers, for example `fma.rn.f32` or `ld.global.nc.v4.u32`.
    ///
    /// Generic loads, stores and atomics count as global: the execution core, which knows where an access went,
    /// may say otherwise.
    pub fn of(opcode: &str) -> Class {
        let mut parts = opcode.split('.');
        let base = parts.next().unwrap_or("");
        let mods: Vec<&str> = parts.collect();
        let has = |m: &str| mods.contains(&m);
        let shared = mods.iter().any(|m| m.starts_with("shared"));
        match base {
            "ld" | "ldu" if has("param") || has("const") => Class::Param,
            "ld" | "ldu" if shared => Class::LoadShared,
            "ld" | "ldu" if has("local") => Class::LoadLocal,
            "ld" | "ldu" => Class::LoadGlobal,
            "st" if has("param") => Class::Param,
            "st" if shared => Class::StoreShared,
            "st" if has("local") => Class::StoreLocal,
            "st" => Class::StoreGlobal,
            "cp" if has("commit_group") || has("wait_group") || has("wait_all") || has("mbarrier") => {
                Class::Barrier
            }
            "cp" => Class::CopyAsync,
            "atom" | "red" if shared => Class::AtomicShared,
            "atom" | "red" => Class::Atomic,
            "ldmatrix" => Class::LoadMatrix,
            "stmatrix" => Class::StoreShared,
            "mma" => Class::Mma,
            "wmma" if has("mma") => Class::Mma,
            "wmma" if has("load") => {
                if shared {
                    Class::LoadShared
                } else {
                    Class::LoadGlobal
                }
            }
            "wmma" => {
                if shared {
                    Class::StoreShared
                } else {
                    Class::StoreGlobal
                }
            }
            "movmatrix" | "shfl" => Class::Shuffle,
            "vote" | "match" | "activemask" | "redux" | "elect" => Class::Vote,
            "bar" | "barrier" | "membar" | "fence" | "mbarrier" | "nanosleep" => Class::Barrier,
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" => Class::Control,
            "cvta" | "isspacep" | "createpolicy" | "prefetch" | "prefetchu" | "applypriority" | "discard" => {
                Class::Param
            }
            "mov" | "selp" | "slct" => Class::Move,
            "cvt" => convert_class(&mods),
            "ex2" | "lg2" | "sin" | "cos" | "tanh" => Class::Special,
            "rcp" | "sqrt" | "rsqrt" | "div" if has("approx") || has("full") => {
                if has("f64") {
                    Class::Fp64
                } else {
                    Class::Special
                }
            }
            "rcp" | "sqrt" | "rsqrt" | "div" | "rem" => Class::Division,
            _ => arithmetic_class(&mods),
        }
    }
}

/// Class of arithmetic and compares by the operand type, which is the last type among the modifiers.
fn arithmetic_class(mods: &[&str]) -> Class {
    let wide = mods.contains(&"wide");
    for m in mods.iter().rev() {
        match *m {
            "f32" => return Class::Fp32,
            "f16" | "f16x2" | "bf16" | "bf16x2" => return Class::Half,
            "f64" => return Class::Fp64,
            "s64" | "u64" | "b64" => return Class::Int64,
            "s8" | "u8" | "s16" | "u16" | "b16" | "s32" | "u32" | "b32" | "u16x2" | "s16x2" | "pred" => {
                return if wide && matches!(*m, "s32" | "u32") { Class::Int64 } else { Class::Int32 };
            }
            _ => {}
        }
    }
    Class::Int32
}

fn convert_class(mods: &[&str]) -> Class {
    let types: Vec<&str> = mods.iter().copied().filter(|m| is_type(m)).collect();
    if types.iter().all(|t| matches!(*t, "s64" | "u64" | "s32" | "u32" | "s16" | "u16" | "s8" | "u8")) {
        // Widening, narrowing and sign extension of integers are moves, shifts or masks.
        return Class::Int32;
    }
    if types.len() == 2 && types[0] == types[1] {
        // Rounding to an integral value, or `cvt.sat.f32.f32`, which is an add with saturation.
        return if mods.iter().any(|m| m.ends_with('i')) { Class::Convert } else { arithmetic_class(mods) };
    }
    if types.iter().any(|t| matches!(*t, "f64" | "s64" | "u64")) { Class::Convert64 } else { Class::Convert }
}

fn is_type(m: &str) -> bool {
    let digits = m.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    digits.starts_with(|c: char| c.is_ascii_digit()) && !m.starts_with('x') && !m.starts_with('v')
}

/// Multiplicand type of a tensor-core instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MmaKind {
    /// f16 × f16.
    F16,
    /// bf16 × bf16.
    Bf16,
    /// tf32 × tf32.
    Tf32,
    /// f64 × f64.
    F64,
    /// 8-bit integers.
    Int8,
    /// 4-bit integers.
    Int4,
    /// Single bits.
    Bit,
    /// 8-bit floats.
    Fp8,
}

/// Shape and type of a tensor-core instruction: D\[m, n\] = A\[m, k\] · B\[k, n\] + C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MmaShape {
    /// Rows of A and D.
    pub m: u32,
    /// Columns of B and D.
    pub n: u32,
    /// Columns of A, rows of B.
    pub k: u32,
    /// Multiplicand type.
    pub kind: MmaKind,
    /// Whether the multiplicands use 2:4 structured sparsity.
    pub sparse: bool,
}

impl MmaShape {
    /// Reads `mma…m16n8k16…f32.f16.f16.f32` or `wmma.mma…`; `None` when a part is missing.
    pub fn parse(opcode: &str) -> Option<MmaShape> {
        let mods: Vec<&str> = opcode.split('.').collect();
        let (m, n, k) = mods.iter().find_map(|s| shape_of(s))?;
        let types: Vec<&str> =
            mods.iter().copied().filter(|s| mma_kind(s).is_some() || *s == "f32" || *s == "s32").collect();
        // mma.<d>.<a>.<b>.<c>; wmma.mma names only d and c when the multiplicands are f16.
        let kind = match types.len() {
            0 | 1 => return None,
            2 => MmaKind::F16,
            _ => mma_kind(types[1])?,
        };
        Some(MmaShape { m, n, k, kind, sparse: mods.iter().any(|s| s.starts_with("sp")) })
    }

    /// Multiply-accumulates of one warp instruction.
    pub fn macs(&self) -> u64 {
        u64::from(self.m) * u64::from(self.n) * u64::from(self.k)
    }
}

fn shape_of(s: &str) -> Option<(u32, u32, u32)> {
    let rest = s.strip_prefix('m')?;
    let (m, rest) = rest.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

fn mma_kind(s: &str) -> Option<MmaKind> {
    Some(match s {
        "f16" => MmaKind::F16,
        "bf16" => MmaKind::Bf16,
        "tf32" => MmaKind::Tf32,
        "f64" => MmaKind::F64,
        "s8" | "u8" => MmaKind::Int8,
        "s4" | "u4" => MmaKind::Int4,
        "b1" => MmaKind::Bit,
        "e4m3" | "e5m2" => MmaKind::Fp8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_belong_to_their_units() {
        for (text, class) in [
            ("fma.rn.f32", Class::Fp32),
            ("fma.rn.f16x2", Class::Half),
            ("add.s64", Class::Int64),
            ("mul.wide.s32", Class::Int64),
            ("mad.lo.s32", Class::Int32),
            ("setp.lt.f32", Class::Fp32),
            ("setp.ge.s64", Class::Int64),
            ("lop3.b32", Class::Int32),
            ("ex2.approx.ftz.f32", Class::Special),
            ("rcp.rn.f32", Class::Division),
            ("rcp.approx.ftz.f32", Class::Special),
            ("div.full.f32", Class::Special),
            ("div.s64", Class::Division),
            ("cvt.s64.s32", Class::Int32),
            ("cvt.rn.f16.f32", Class::Convert),
            ("cvt.rn.f16x2.f32", Class::Convert),
            ("cvt.sat.f32.f32", Class::Fp32),
            ("cvt.rzi.f32.f32", Class::Convert),
            ("cvt.f64.f32", Class::Convert64),
            ("cvt.rn.f32.s64", Class::Convert64),
            ("ld.global.nc.v4.u32", Class::LoadGlobal),
            ("ld.u32", Class::LoadGlobal),
            ("ld.shared.f32", Class::LoadShared),
            ("ld.shared::cta.f32", Class::LoadShared),
            ("ld.param.u64", Class::Param),
            ("st.local.u32", Class::StoreLocal),
            ("cp.async.cg.shared.global.L2::128B", Class::CopyAsync),
            ("cp.async.wait_group", Class::Barrier),
            ("red.global.add.f32", Class::Atomic),
            ("atom.shared.add.u32", Class::AtomicShared),
            ("bar.sync", Class::Barrier),
            ("bra.uni", Class::Control),
            ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", Class::Mma),
            ("wmma.load.a.sync.aligned.row.m16n16k16.shared.f16", Class::LoadShared),
            ("mov.b32", Class::Move),
        ] {
            assert_eq!(Class::of(text), class, "{text}");
        }
    }

    #[test]
    fn every_class_is_listed_once_with_its_serde_name() {
        for (i, class) in Class::ALL.iter().enumerate() {
            assert_eq!(*class as usize, i);
            assert_eq!(serde_json::to_value(class).unwrap(), class.name());
        }
    }

    #[test]
    fn mma_shapes_are_read_from_the_opcode() {
        let shape = |text| MmaShape::parse(text).map(|s| (s.macs(), s.kind));
        assert_eq!(shape("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"), Some((2048, MmaKind::Bf16)));
        assert_eq!(shape("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"), Some((1024, MmaKind::Tf32)));
        assert_eq!(shape("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32"), Some((4096, MmaKind::Int8)));
        assert_eq!(shape("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64"), Some((256, MmaKind::F64)));
        assert_eq!(shape("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32"), Some((4096, MmaKind::F16)));
        assert_eq!(shape("mma.sync.aligned"), None);
    }
}
