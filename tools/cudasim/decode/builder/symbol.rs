//! What names stand for, and how functions are called.

use std::sync::Arc;

use super::{MAX_LOCAL_BYTES, Result};
use crate::ptx::ast::{Space, Type, Variable};

/// What a name stands for.
#[derive(Clone, Debug)]
pub(in crate::decode) enum Symbol {
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
pub(in crate::decode) struct Signature {
    pub(in crate::decode) params: Vec<Slot>,
    pub(in crate::decode) returns: Vec<Slot>,
    pub(in crate::decode) bytes: u32,
}

/// One parameter or return value.
#[derive(Clone, Debug)]
pub(in crate::decode) enum Slot {
    /// Offset in the frame, and bytes.
    Frame(u32, u32),
    /// Declared as a register: its type, and its number once the routine exists.
    Reg(Type),
}

impl Signature {
    pub(in crate::decode) fn of(returns: &[Variable], params: &[Variable]) -> Result<Signature> {
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
