//! What each mnemonic means: operands, modifiers and the function that executes it.

mod atom;
mod compare;
mod convert;
mod float;
mod flow;
mod half;
mod int;
mod logic;
mod mem;
mod mma;
mod movs;
mod warp;

use super::builder::Result;
use super::dec::Dec;

/// Decodes and emits one instruction.
pub(super) fn decode(d: &mut Dec) -> Result<()> {
    match d.base {
        "mov" => movs::mov(d),
        "cvta" => movs::cvta(d),
        "selp" => movs::selp(d),
        "slct" => movs::slct(d),
        "isspacep" => movs::isspacep(d),
        "add" | "sub" | "mul" | "fma" | "mad" | "min" | "max" | "abs" | "neg" | "div" => arithmetic(d),
        "addc" | "subc" | "madc" => int::carry(d),
        "rem" | "mul24" | "mad24" | "sad" | "dp4a" | "dp2a" => int::decode(d),
        "sqrt" | "rsqrt" | "rcp" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign" | "testp" => {
            float::decode(d)
        }
        "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shf" | "shl" | "shr" | "prmt" => logic::decode(d),
        "popc" | "clz" | "bfind" | "fns" | "brev" | "bfe" | "bfi" | "szext" | "bmsk" => logic::bits(d),
        "setp" => compare::setp(d),
        "set" => compare::set(d),
        "cvt" => convert::decode(d),
        "ld" | "ldu" => mem::ld(d),
        "st" => mem::st(d),
        "atom" | "red" => atom::decode(d),
        "cp" => mem::cp(d),
        "prefetch" | "prefetchu" | "applypriority" | "discard" | "createpolicy" => mem::hint(d),
        "membar" | "fence" => mem::fence(d),
        "ldmatrix" | "stmatrix" | "movmatrix" => mem::matrix(d),
        "mbarrier" => mem::mbarrier(d),
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" | "pmevent" => {
            flow::decode(d)
        }
        "bar" | "barrier" => warp::bar(d),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => warp::decode(d),
        "mma" => mma::mma(d),
        "wmma" => mma::wmma(d),
        _ => Err(d.unsupported("")),
    }
}

/// Mnemonics that integers and floats share.
fn arithmetic(d: &mut Dec) -> Result<()> {
    use crate::ptx::ast::Type::*;
    match d.types.last() {
        Some(F16 | F16x2 | Bf16 | Bf16x2) => half::decode(d),
        Some(F32 | F64) => float::decode(d),
        Some(_) if d.mods.contains(&"cc") => int::carry(d),
        Some(_) => int::decode(d),
        None => Err(d.unsupported("without a type")),
    }
}

/// Runs an expression for the integer type that a `Type` names.
macro_rules! int_types {
    ($d:ident, $ty:expr, $T:ident in [$($variant:ident $rust:ty),*] => $e:expr) => {
        match $ty {
            $(crate::ptx::ast::Type::$variant => {
                #[allow(dead_code, reason = "expressions of one type only do not name it")]
                type $T = $rust;
                $e
            })*
            other => Err($d.unsupported(format!("type .{other:?}"))),
        }
    };
    ($d:ident, $ty:expr, $T:ident in [$($variant:ident $rust:ty),*] => $e:expr,
        else [$($variant2:ident $rust2:ty),*] => $e2:expr) => {
        match $ty {
            $(crate::ptx::ast::Type::$variant => {
                type $T = $rust;
                $e
            })*
            $(crate::ptx::ast::Type::$variant2 => {
                type $T = $rust2;
                $e2
            })*
            other => Err($d.unsupported(format!("type .{other:?}"))),
        }
    };
}
pub(super) use int_types;
