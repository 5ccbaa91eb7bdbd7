//! Tokens → [`ast`].

mod constant;
mod function;
mod instruction;
#[cfg(test)]
mod tests;
mod variable;

use super::ast;
use super::error::{Pos, PtxError};
use super::lexer::{Lexer, Token};

/// Deepest nesting of scopes, expressions and initialisers; more is refused rather than recursed into.
const MAX_DEPTH: u32 = 64;

/// Parses a whole module.
///
/// # Errors
///
/// When the text is not PTX, or uses a directive that this simulator does not know.
pub fn parse(text: &str) -> Result<ast::Module, PtxError> {
    let mut parser = Parser::new(text)?;
    let mut module = ast::Module::default();
    parser.header(&mut module)?;
    while parser.token != Token::End {
        parser.top_level(&mut module)?;
    }
    Ok(module)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    pos: Pos,
    depth: u32,
}

type Result<T, E = PtxError> = std::result::Result<T, E>;

#[derive(Default)]
struct Linkage {
    external: bool,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Parser<'a>> {
        let mut lexer = Lexer::new(text);
        let (token, pos) = lexer.next()?;
        Ok(Parser { lexer, token, pos, depth: 0 })
    }

    fn advance(&mut self) -> Result<Token<'a>> {
        let old = self.token;
        (self.token, self.pos) = self.lexer.next()?;
        Ok(old)
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T> {
        Err(self.pos.syntax(self.token.show(), expected))
    }

    fn at(&self, punct: u8) -> bool {
        self.token == Token::Punct(punct)
    }

    fn eat(&mut self, punct: u8) -> Result<bool> {
        let found = self.at(punct);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn expect(&mut self, punct: u8) -> Result<()> {
        if self.eat(punct)? { Ok(()) } else { self.unexpected(&format!("`{}`", punct as char)) }
    }

    fn eat_dot(&mut self, word: &str) -> Result<bool> {
        let found = self.token == Token::Dot(word);
        if found {
            self.advance()?;
        }
        Ok(found)
    }

    fn name(&mut self) -> Result<&'a str> {
        match self.token {
            Token::Word(w) => {
                self.advance()?;
                Ok(w)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn int(&mut self) -> Result<u64> {
        match self.token {
            Token::Int(i) | Token::Unsigned(i) => {
                self.advance()?;
                Ok(i)
            }
            _ => self.unexpected("an integer"),
        }
    }

    fn small_int(&mut self) -> Result<u32> {
        let pos = self.pos;
        let i = self.int()?;
        u32::try_from(i).map_err(|_| pos.syntax(format!("`{i}`"), "an integer below 2^32"))
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return self.unexpected("less nesting");
        }
        self.depth += 1;
        let out = f(self);
        self.depth -= 1;
        out
    }

    // ---- module scope ----

    fn header(&mut self, module: &mut ast::Module) -> Result<()> {
        if !self.eat_dot("version")? {
            return self.unexpected("`.version`");
        }
        match self.advance()? {
            Token::F64(bits) => {
                let v = f64::from_bits(bits);
                module.version = (v as u32, ((v - v.floor()) * 10.0).round() as u32);
            }
            Token::Int(major) => module.version = (major as u32, 0),
            _ => return self.unexpected("a version such as `8.0`"),
        }
        if !self.eat_dot("target")? {
            return self.unexpected("`.target`");
        }
        module.target = self.name()?.to_owned();
        while self.eat(b',')? {
            let word = self.name()?;
            if word.starts_with("texmode") || word == "debug" || word.starts_with("map_f64") {
                continue;
            }
            return self.unexpected("`debug`");
        }
        if self.eat_dot("address_size")? {
            let pos = self.pos;
            if self.int()? != 64 {
                return Err(pos.unsupported(".address_size", "only 64-bit addresses"));
            }
        }
        Ok(())
    }

    fn top_level(&mut self, module: &mut ast::Module) -> Result<()> {
        let mut linkage = Linkage::default();
        loop {
            let Token::Dot(word) = self.token else { return self.unexpected("a directive") };
            let pos = self.pos;
            match word {
                "visible" | "weak" | "common" => {
                    self.advance()?;
                }
                "extern" => {
                    linkage.external = true;
                    self.advance()?;
                }
                "file" => {
                    self.advance()?;
                    return self.file(module);
                }
                "section" => {
                    self.advance()?;
                    return self.section();
                }
                "pragma" => {
                    self.advance()?;
                    return self.pragma();
                }
                "entry" | "func" => {
                    self.advance()?;
                    let function = self.function(word == "entry", pos)?;
                    module.functions.push(function);
                    return Ok(());
                }
                "global" | "const" | "shared" | "local" => {
                    self.variables(linkage.external, &mut |v| module.variables.push(v))?;
                    return Ok(());
                }
                _ => return Err(pos.unsupported(format!(".{word}"), "this directive at module scope")),
            }
        }
    }

    fn file(&mut self, module: &mut ast::Module) -> Result<()> {
        let number = self.int()?;
        let Token::Str(name) = self.token else { return self.unexpected("a file name") };
        self.advance()?;
        module.files.push((number, name.to_owned()));
        // Optional time stamp and size.
        for _ in 0..2 {
            if self.eat(b',')? {
                self.int()?;
            }
        }
        Ok(())
    }

    /// Debugging information: skipped up to the closing brace, there are no nested ones.
    fn section(&mut self) -> Result<()> {
        match self.advance()? {
            Token::Dot(_) | Token::Word(_) => {}
            _ => return self.unexpected("a section name"),
        }
        self.expect(b'{')?;
        while !self.eat(b'}')? {
            if self.token == Token::End {
                return self.unexpected("`}`");
            }
            self.advance()?;
        }
        Ok(())
    }

    fn pragma(&mut self) -> Result<()> {
        loop {
            match self.advance()? {
                Token::Str(_) => {}
                _ => return self.unexpected("a string"),
            }
            if !self.eat(b',')? {
                return self.expect(b';');
            }
        }
    }
}
