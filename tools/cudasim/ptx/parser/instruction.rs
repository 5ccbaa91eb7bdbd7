//! Instructions and their operands.

use super::super::ast::{Instruction, Operand, Statement};
use super::super::lexer::Token;
use super::{Parser, Result};

impl Parser<'_> {
    pub(super) fn instruction(
        &mut self,
        guard: Option<(String, bool)>,
        out: &mut Vec<Statement>,
    ) -> Result<()> {
        let pos = self.pos;
        let mut opcode = self.name()?.to_owned();
        // Modifiers may be set apart by spaces.
        while let Token::Dot(word) = self.token {
            opcode.push('.');
            opcode.push_str(word);
            self.advance()?;
            while self.at(b':') {
                self.expect(b':')?;
                self.expect(b':')?;
                opcode.push_str("::");
                match self.advance()? {
                    Token::Word(w) => opcode.push_str(w),
                    // `128B` is no number: see the lexer; `L2::128B` is one word unless spaces divide it.
                    _ => return self.unexpected("a modifier"),
                }
            }
        }
        // Parentheses are lists of parameters here, and constant expressions elsewhere.
        let call = opcode == "call" || opcode.starts_with("call.");
        let mut operands = Vec::new();
        if !self.at(b';') {
            loop {
                operands.push(if call && self.eat(b'(')? {
                    Operand::List(self.operand_list(b')')?)
                } else {
                    self.operand()?
                });
                if !self.eat(b',')? {
                    break;
                }
            }
        }
        self.expect(b';')?;
        out.push(Statement::Instruction(Instruction { guard, opcode, operands, pos }));
        Ok(())
    }

    fn operand(&mut self) -> Result<Operand> {
        self.deeper(|p| {
            let first = p.single_operand()?;
            if p.eat(b'|')? {
                let second = p.single_operand()?;
                return Ok(Operand::Pair(Box::new(first), Box::new(second)));
            }
            Ok(first)
        })
    }

    fn operand_list(&mut self, close: u8) -> Result<Vec<Operand>> {
        let mut out = Vec::new();
        while !self.eat(close)? {
            out.push(self.operand()?);
            if !self.eat(b',')? {
                self.expect(close)?;
                break;
            }
        }
        Ok(out)
    }

    fn single_operand(&mut self) -> Result<Operand> {
        Ok(match self.token {
            Token::Word("_") => {
                self.advance()?;
                Operand::Sink
            }
            Token::Word(name) => {
                self.advance()?;
                if self.at(b'+') || self.at(b'-') {
                    Operand::Offset(name.to_owned(), self.trailing_offset()?)
                } else {
                    Operand::Name(name.to_owned())
                }
            }
            Token::F32(bits) => {
                self.advance()?;
                Operand::F32(bits)
            }
            Token::F64(bits) => {
                self.advance()?;
                Operand::F64(bits)
            }
            Token::Punct(b'{') => {
                self.advance()?;
                Operand::Vector(self.operand_list(b'}')?)
            }
            Token::Punct(b'[') => {
                self.advance()?;
                let address = self.address()?;
                self.expect(b']')?;
                address
            }
            Token::Punct(b'!') if matches!(self.lexer.clone().next()?.0, Token::Word(_)) => {
                self.advance()?;
                Operand::Not(Box::new(Operand::Name(self.name()?.to_owned())))
            }
            Token::Punct(b'-') => {
                let mut ahead = self.lexer.clone();
                match ahead.next()?.0 {
                    Token::F64(bits) => {
                        self.advance()?;
                        self.advance()?;
                        Operand::F64(bits ^ 1 << 63)
                    }
                    Token::F32(bits) => {
                        self.advance()?;
                        self.advance()?;
                        Operand::F32(bits ^ 1 << 31)
                    }
                    _ => Operand::Int(self.constant_operand()?),
                }
            }
            _ => Operand::Int(self.constant_operand()?),
        })
    }

    fn address(&mut self) -> Result<Operand> {
        if let Token::Word(name) = self.token {
            self.advance()?;
            let mut offset = self.trailing_offset()?;
            // `[name[4]]` is an older way to write an offset.
            if self.eat(b'[')? {
                offset = offset.wrapping_add(self.constant()?);
                self.expect(b']')?;
            }
            return Ok(Operand::Address { base: Some(name.to_owned()), offset });
        }
        Ok(Operand::Address { base: None, offset: self.constant()? })
    }
}
