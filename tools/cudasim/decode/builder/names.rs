//! Declarations: registers, variables, and which name stands for what.

use super::symbol::Symbol;
use super::{Builder, Result, add_aligned};
use crate::ptx::Pos;
use crate::ptx::ast::{Space, Type, Variable};

/// Most shared memory that declarations may add up to; what a device really has is checked at launch.
const MAX_SHARED_BYTES: u64 = 1 << 20;

impl<'m> Builder<'m> {
    pub(super) fn registers(&mut self, ty: Type, names: &[(String, Option<u32>)], pos: Pos) -> Result<()> {
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

    pub(super) fn variable(&mut self, v: &'m Variable) -> Result<()> {
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

    pub(super) fn name(&mut self, name: &str, symbol: Symbol, pos: Pos) -> Result<()> {
        if let Some(scope) = self.scopes.last_mut()
            && scope.insert(name.to_owned(), symbol).is_some()
        {
            return Err(pos.invalid(format!("`{name}` is declared twice")));
        }
        Ok(())
    }

    /// What a name stands for at this place.
    pub(in crate::decode) fn lookup(&mut self, name: &str) -> Option<Symbol> {
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
}
