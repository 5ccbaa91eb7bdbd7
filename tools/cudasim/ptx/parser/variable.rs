//! Variables: declarations, sizes and initial values.

use super::super::ast::{Init, Space, Type, Variable};
use super::super::lexer::Token;
use super::{Parser, Result};

/// Most elements of an array.
const MAX_ELEMENTS: u64 = 1 << 40;

impl Parser<'_> {
    fn space(word: &str) -> Option<Space> {
        Some(match word {
            "global" => Space::Global,
            "const" => Space::Const,
            "shared" => Space::Shared,
            "local" => Space::Local,
            "param" => Space::Param,
            _ => return None,
        })
    }

    /// `.space [.align n] [.v4] .type name[n] = {…}, name…;`
    pub(super) fn variables(&mut self, external: bool, add: &mut dyn FnMut(Variable)) -> Result<()> {
        let first = self.declarator_start(external)?;
        let mut next = first.clone();
        loop {
            self.declarator(&mut next)?;
            add(next);
            if !self.eat(b',')? {
                break;
            }
            next = first.clone();
        }
        self.expect(b';')
    }

    /// The part before the name.
    pub(super) fn declarator_start(&mut self, external: bool) -> Result<Variable> {
        let pos = self.pos;
        let mut v = Variable {
            name: String::new(),
            space: None,
            ty: Type::B8,
            vector: 1,
            align: 0,
            count: Some(1),
            init: Vec::new(),
            external,
            pos,
        };
        let mut typed = false;
        while let Token::Dot(word) = self.token {
            let at = self.pos;
            self.advance()?;
            if let Some(space) = Self::space(word) {
                // `.ptr .global` of a parameter follows its own space and type.
                if v.space.is_none() {
                    v.space = Some(space);
                }
            } else if let Some(ty) = Type::parse(word) {
                v.ty = ty;
                typed = true;
            } else {
                match word {
                    "reg" | "ptr" | "weak" | "visible" | "extern" => {}
                    "align" => {
                        let align = self.small_int()?;
                        if !align.is_power_of_two() || align > 1 << 16 {
                            return Err(at.invalid(format!("alignment {align} is not a small power of two")));
                        }
                        // The alignment after `.ptr` is that of what it points to.
                        if v.align == 0 && !typed {
                            v.align = align;
                        }
                    }
                    "v2" => v.vector = 2,
                    "v4" => v.vector = 4,
                    "attribute" => {
                        self.expect(b'(')?;
                        match self.advance()? {
                            Token::Dot("managed") => {}
                            _ => return Err(at.unsupported(".attribute", "only .managed")),
                        }
                        self.expect(b')')?;
                    }
                    _ => {
                        return Err(
                            at.unsupported(format!(".{word}"), "this directive or type in a declaration")
                        );
                    }
                }
            }
        }
        if !typed {
            return self.unexpected("a type");
        }
        if v.ty.bits() < 8 && v.ty != Type::Pred {
            return Err(pos.invalid("a variable has no type of less than 8 bits"));
        }
        if v.align == 0 {
            v.align = (v.ty.bytes() * v.vector).max(1);
        }
        Ok(v)
    }

    /// Name, dimensions and initial value.
    pub(super) fn declarator(&mut self, v: &mut Variable) -> Result<()> {
        v.pos = self.pos;
        v.name = self.name()?.to_owned();
        let mut first = true;
        while self.eat(b'[')? {
            if self.eat(b']')? {
                if !first {
                    return self.unexpected("a size");
                }
                v.count = None;
            } else {
                let pos = self.pos;
                let n = self.constant()?;
                let n = u64::try_from(n).map_err(|_| pos.invalid("a negative size"))?;
                v.count = match v.count {
                    None => None,
                    Some(have) => Some(
                        have.checked_mul(n)
                            .filter(|&c| c <= MAX_ELEMENTS)
                            .ok_or_else(|| pos.invalid("the array is too large"))?,
                    ),
                };
                self.expect(b']')?;
            }
            first = false;
        }
        if self.eat(b'=')? {
            let mut init = Vec::new();
            self.initializer(&mut init)?;
            v.init = init;
            if v.count.is_none() {
                v.count = Some((v.init.len() as u64).div_ceil(u64::from(v.vector)));
            }
        }
        Ok(())
    }

    fn initializer(&mut self, out: &mut Vec<Init>) -> Result<()> {
        if self.eat(b'{')? {
            while !self.eat(b'}')? {
                self.deeper(|p| p.initializer(out))?;
                if !self.eat(b',')? {
                    self.expect(b'}')?;
                    break;
                }
            }
            return Ok(());
        }
        out.push(self.initial_value()?);
        Ok(())
    }

    fn initial_value(&mut self) -> Result<Init> {
        match self.token {
            Token::F32(bits) => {
                self.advance()?;
                return Ok(Init::Float(f64::from(f32::from_bits(bits))));
            }
            Token::F64(bits) => {
                self.advance()?;
                return Ok(Init::Float(f64::from_bits(bits)));
            }
            Token::Punct(b'-') => {
                let mut ahead = self.lexer.clone();
                if let (Token::F64(bits), _) = ahead.next()? {
                    self.advance()?;
                    self.advance()?;
                    return Ok(Init::Float(-f64::from_bits(bits)));
                }
            }
            Token::Word("generic") => {
                self.advance()?;
                self.expect(b'(')?;
                let init = self.symbol_address(None)?;
                self.expect(b')')?;
                return match init {
                    Init::Address { symbol, offset, mask } => {
                        Ok(Init::Address { symbol, offset: offset + self.trailing_offset()?, mask })
                    }
                    other => Ok(other),
                };
            }
            Token::Word(_) => return self.symbol_address(None),
            _ => {}
        }
        let value = self.constant()?;
        if self.eat(b'(')? {
            let generic = self.token == Token::Word("generic");
            if generic {
                self.advance()?;
                self.expect(b'(')?;
            }
            let init = self.symbol_address(Some(value as u64))?;
            self.expect(b')')?;
            if generic {
                self.expect(b')')?;
            }
            return Ok(init);
        }
        Ok(Init::Bits(value as u64))
    }

    fn symbol_address(&mut self, mask: Option<u64>) -> Result<Init> {
        let symbol = self.name()?.to_owned();
        let offset = self.trailing_offset()?;
        Ok(Init::Address { symbol, offset, mask })
    }

    /// `+ n` or `- n` if it is there.
    pub(super) fn trailing_offset(&mut self) -> Result<i64> {
        if self.eat(b'+')? {
            return self.constant();
        }
        if self.at(b'-') {
            return self.constant();
        }
        Ok(0)
    }
}
