//! Kernels and functions: parameters, directives and statements.

use super::super::ast::{Function, Place, Statement, Type, Variable};
use super::super::error::Pos;
use super::super::lexer::Token;
use super::{Parser, Result};

/// Most registers that one `name<count>` may declare, so that a few bytes cannot ask for all memory.
const MAX_REGISTERS: u64 = 1 << 20;

impl Parser<'_> {
    fn params(&mut self) -> Result<Vec<Variable>> {
        let mut out = Vec::new();
        self.expect(b'(')?;
        while !self.eat(b')')? {
            let mut v = self.declarator_start(false)?;
            if self.token == Token::Word("_") || matches!(self.token, Token::Word(_)) {
                self.declarator(&mut v)?;
            }
            out.push(v);
            if !self.eat(b',')? {
                self.expect(b')')?;
                break;
            }
        }
        Ok(out)
    }

    fn three(&mut self) -> Result<[u32; 3]> {
        let mut out = [1; 3];
        for (i, n) in out.iter_mut().enumerate() {
            if i > 0 && !self.eat(b',')? {
                break;
            }
            *n = self.small_int()?;
        }
        Ok(out)
    }

    pub(super) fn function(&mut self, entry: bool, pos: Pos) -> Result<Function> {
        if matches!(self.token, Token::Dot("attribute")) {
            return Err(self.pos.unsupported(".attribute", "attributes of functions"));
        }
        let returns = if !entry && self.at(b'(') { self.params()? } else { Vec::new() };
        let name = self.name()?.to_owned();
        let params = if self.at(b'(') { self.params()? } else { Vec::new() };
        let mut f = Function {
            name,
            entry,
            params,
            returns,
            max_threads: None,
            req_threads: None,
            min_ctas: None,
            max_registers: None,
            body: None,
            pos,
        };
        while let Token::Dot(word) = self.token {
            let at = self.pos;
            self.advance()?;
            match word {
                "maxntid" => f.max_threads = Some(self.three()?),
                "reqntid" => f.req_threads = Some(self.three()?),
                "minnctapersm" | "maxnctapersm" => f.min_ctas = Some(self.small_int()?),
                "maxnreg" => f.max_registers = Some(self.small_int()?),
                "noreturn" | "abi_preserve" | "abi_preserve_control" => {
                    if let Token::Int(_) = self.token {
                        self.advance()?;
                    }
                }
                "pragma" => self.pragma()?,
                _ => return Err(at.unsupported(format!(".{word}"), "this directive of a function")),
            }
        }
        if self.eat(b';')? {
            return Ok(f);
        }
        self.expect(b'{')?;
        f.body = Some(self.block()?);
        Ok(f)
    }

    /// Statements up to and with the closing brace.
    fn block(&mut self) -> Result<Vec<Statement>> {
        self.deeper(|p| {
            let mut out = Vec::new();
            while !p.eat(b'}')? {
                p.statement(&mut out)?;
            }
            Ok(out)
        })
    }

    fn statement(&mut self, out: &mut Vec<Statement>) -> Result<()> {
        let pos = self.pos;
        match self.token {
            Token::Punct(b'{') => {
                self.advance()?;
                let inner = self.block()?;
                out.push(Statement::Block(inner));
            }
            Token::Punct(b';') => {
                self.advance()?;
            }
            Token::Punct(b'@') => {
                self.advance()?;
                let negated = self.eat(b'!')?;
                let name = self.name()?.to_owned();
                self.instruction(Some((name, negated)), out)?;
            }
            Token::Word(word) => {
                let mut ahead = self.lexer.clone();
                let (next, next_pos) = ahead.next()?;
                let after = ahead.next().map(|t| t.0).unwrap_or(Token::End);
                // `name:` and not `L1::…`; an opcode is never followed by a colon.
                let _ = next_pos;
                if next == Token::Punct(b':') && after != Token::Punct(b':') {
                    self.advance()?;
                    self.advance()?;
                    self.labelled(word, pos, out)?;
                } else {
                    self.instruction(None, out)?;
                }
            }
            Token::Dot(word) => self.directive(word, pos, out)?,
            _ => return self.unexpected("a statement"),
        }
        Ok(())
    }

    fn labelled(&mut self, name: &str, pos: Pos, out: &mut Vec<Statement>) -> Result<()> {
        let name = name.to_owned();
        match self.token {
            Token::Dot("branchtargets" | "calltargets") => {
                self.advance()?;
                let mut targets = Vec::new();
                loop {
                    targets.push(self.name()?.to_owned());
                    if !self.eat(b',')? {
                        break;
                    }
                }
                self.expect(b';')?;
                out.push(Statement::Targets { name, targets, pos });
            }
            Token::Dot("callprototype") => {
                self.advance()?;
                let returns = if self.at(b'(') { self.params()? } else { Vec::new() };
                self.name()?;
                let params = if self.at(b'(') { self.params()? } else { Vec::new() };
                while let Token::Dot(word @ ("noreturn" | "abi_preserve" | "abi_preserve_control")) =
                    self.token
                {
                    self.advance()?;
                    if word != "noreturn" {
                        self.int()?;
                    }
                }
                self.expect(b';')?;
                out.push(Statement::Prototype { name, returns, params, pos });
            }
            _ => out.push(Statement::Label(name, pos)),
        }
        Ok(())
    }

    fn directive(&mut self, word: &str, pos: Pos, out: &mut Vec<Statement>) -> Result<()> {
        match word {
            "reg" => {
                self.advance()?;
                self.registers(pos, out)?;
            }
            "loc" => {
                self.advance()?;
                let file = self.int()?;
                let line = self.small_int()?;
                let column = if let Token::Int(_) = self.token { self.small_int()? } else { 0 };
                let mut inlined_at = None;
                while self.eat(b',')? {
                    match self.name()? {
                        "function_name" => {
                            self.name()?;
                            self.trailing_offset()?;
                        }
                        "inlined_at" => {
                            let file = self.int()?;
                            inlined_at =
                                Some(Place { file, line: self.small_int()?, column: self.small_int()? });
                        }
                        _ => return self.unexpected("`function_name` or `inlined_at`"),
                    }
                }
                out.push(Statement::Loc { at: Place { file, line, column }, inlined_at });
            }
            "pragma" => {
                self.advance()?;
                self.pragma()?;
            }
            "local" | "shared" | "param" | "global" | "const" | "extern" => {
                let external = self.eat_dot("extern")?;
                self.variables(external, &mut |v| out.push(Statement::Variable(v)))?;
            }
            _ => return Err(pos.unsupported(format!(".{word}"), "this directive in a function")),
        }
        Ok(())
    }

    fn registers(&mut self, pos: Pos, out: &mut Vec<Statement>) -> Result<()> {
        let at = self.pos;
        let ty = match self.advance()? {
            Token::Dot(word @ ("v2" | "v4")) => {
                return Err(at.unsupported(format!(".reg .{word}"), "registers of vector type"));
            }
            Token::Dot(word) => Type::parse(word).ok_or_else(|| at.invalid(format!("no type .{word}")))?,
            _ => return self.unexpected("a type"),
        };
        let mut names = Vec::new();
        loop {
            let name = self.name()?.to_owned();
            let mut count = None;
            if self.eat(b'<')? {
                let at = self.pos;
                let n = self.int()?;
                if n > MAX_REGISTERS {
                    return Err(at.invalid(format!("{n} registers are too many")));
                }
                count = Some(n as u32);
                self.expect(b'>')?;
            }
            names.push((name, count));
            if !self.eat(b',')? {
                break;
            }
        }
        self.expect(b';')?;
        out.push(Statement::Reg { ty, names, pos });
        Ok(())
    }
}
