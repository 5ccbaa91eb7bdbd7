//! Tokens → [`ast`].

use super::ast::{self, Function, Init, Instruction, Operand, Place, Space, Statement, Type, Variable};
use super::error::{Pos, PtxError};
use super::lexer::{Lexer, Token};

/// Deepest nesting of scopes, expressions and initialisers; more is refused rather than recursed into.
const MAX_DEPTH: u32 = 64;
/// Most registers that one `name<count>` may declare, so that a few bytes cannot ask for all memory.
const MAX_REGISTERS: u64 = 1 << 20;
/// Most elements of an initialiser that are kept.
const MAX_BYTES: u64 = 1 << 40;

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
            Token::Int(i) => {
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

    // ---- variables ----

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
    fn variables(&mut self, external: bool, add: &mut dyn FnMut(Variable)) -> Result<()> {
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
    fn declarator_start(&mut self, external: bool) -> Result<Variable> {
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
    fn declarator(&mut self, v: &mut Variable) -> Result<()> {
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
                            .filter(|&c| c <= MAX_BYTES)
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
    fn trailing_offset(&mut self) -> Result<i64> {
        if self.eat(b'+')? {
            return self.constant();
        }
        if self.at(b'-') {
            return self.constant();
        }
        Ok(0)
    }

    // ---- constant expressions ----

    fn constant(&mut self) -> Result<i64> {
        self.deeper(|p| p.binary(0))
    }

    fn binary(&mut self, level: usize) -> Result<i64> {
        const LEVELS: [&[u8]; 4] = [b"|^", b"&", b"+-", b"*/%"];
        if level == LEVELS.len() {
            return self.unary();
        }
        let mut left = self.binary(level + 1)?;
        while let Token::Punct(op) = self.token {
            if !LEVELS[level].contains(&op) {
                break;
            }
            let pos = self.pos;
            self.advance()?;
            let right = self.binary(level + 1)?;
            left = match op {
                b'|' => left | right,
                b'^' => left ^ right,
                b'&' => left & right,
                b'+' => left.wrapping_add(right),
                b'-' => left.wrapping_sub(right),
                b'*' => left.wrapping_mul(right),
                _ if right == 0 => return Err(pos.invalid("a constant is divided by zero")),
                b'/' => left.wrapping_div(right),
                _ => left.wrapping_rem(right),
            };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<i64> {
        match self.token {
            Token::Int(i) => {
                self.advance()?;
                Ok(i as i64)
            }
            Token::Punct(op @ (b'-' | b'+' | b'~' | b'!')) => {
                self.advance()?;
                let v = self.deeper(|p| p.unary())?;
                Ok(match op {
                    b'-' => v.wrapping_neg(),
                    b'~' => !v,
                    b'!' => i64::from(v == 0),
                    _ => v,
                })
            }
            Token::Punct(b'(') => {
                self.advance()?;
                let v = self.constant()?;
                self.expect(b')')?;
                Ok(v)
            }
            _ => self.unexpected("a constant"),
        }
    }

    // ---- functions ----

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

    fn function(&mut self, entry: bool, pos: Pos) -> Result<Function> {
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

    // ---- instructions ----

    fn instruction(&mut self, guard: Option<(String, bool)>, out: &mut Vec<Statement>) -> Result<()> {
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
        let mut operands = Vec::new();
        if !self.at(b';') {
            loop {
                operands.push(self.operand()?);
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
            Token::Punct(b'(') => {
                // A list of call parameters, or the beginning of a constant expression.
                let (lexer, token, pos) = (self.lexer.clone(), self.token, self.pos);
                self.advance()?;
                let list = self.operand_list(b')')?;
                if let [Operand::Int(_)] = list[..] {
                    (self.lexer, self.token, self.pos) = (lexer, token, pos);
                    Operand::Int(self.sum()?)
                } else {
                    Operand::List(list)
                }
            }
            Token::Punct(b'[') => {
                self.advance()?;
                let address = self.address()?;
                self.expect(b']')?;
                address
            }
            Token::Punct(b'!') => {
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
                    _ => Operand::Int(self.sum()?),
                }
            }
            _ => Operand::Int(self.sum()?),
        })
    }

    /// A constant in which `|` divides destinations and is no operator.
    fn sum(&mut self) -> Result<i64> {
        self.deeper(|p| p.binary(2))
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

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

    fn body(text: &str) -> Vec<Statement> {
        let module = parse(&format!("{HEADER}.visible .entry k(.param .u64 p) {{ {text} }}")).unwrap();
        module.functions[0].body.clone().unwrap()
    }

    fn instruction(text: &str) -> Instruction {
        match &body(text)[0] {
            Statement::Instruction(i) => i.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn operands_of_every_kind() {
        let i = instruction("@!%p1 shfl.sync.down.b32 %r1|%p2, %r2, 0x10, 31, -1;");
        assert_eq!(i.guard, Some(("%p1".into(), true)));
        assert_eq!(i.opcode, "shfl.sync.down.b32");
        assert_eq!(
            i.operands[0],
            Operand::Pair(Box::new(Operand::Name("%r1".into())), Box::new(Operand::Name("%p2".into())))
        );
        assert_eq!(i.operands[4], Operand::Int(-1));
        let i = instruction("st.global.v2.f32 [%rd1+-8], {%f1, 0f3F800000};");
        assert_eq!(i.operands[0], Operand::Address { base: Some("%rd1".into()), offset: -8 });
        assert_eq!(
            i.operands[1],
            Operand::Vector(vec![Operand::Name("%f1".into()), Operand::F32(0x3f80_0000)])
        );
        let i = instruction("call.uni (retval0), f, (param0, param1);");
        assert_eq!(i.operands[0], Operand::List(vec![Operand::Name("retval0".into())]));
    }

    #[test]
    fn scopes_labels_and_lines() {
        let b = body(
            ".reg .b32 %r<4>, x; { .reg .pred p; L: bra L; } .loc 1 7 3, function_name $a, inlined_at 1 2 3\n ret;",
        );
        assert!(
            matches!(&b[0], Statement::Reg { names, .. } if names[0].1 == Some(4) && names[1].1.is_none())
        );
        assert!(
            matches!(&b[1], Statement::Block(inner) if matches!(&inner[1], Statement::Label(n, _) if n == "L"))
        );
        assert!(matches!(&b[2], Statement::Loc { at: Place { file: 1, line: 7, .. }, .. }));
    }

    #[test]
    fn initialisers_with_addresses() {
        let text = format!(
            "{HEADER}.global .align 8 .u64 t[3] = {{generic(a)+8, f, -1}};
             .global .align 8 .b8 b[2] = {{0xFF(a), 0xFF00(a)}}; .const .f32 c = 0f40000000;
             .extern .shared .align 16 .b8 dyn[];"
        );
        let m = parse(&text).unwrap();
        assert_eq!(m.variables[0].init[0], Init::Address { symbol: "a".into(), offset: 8, mask: None });
        assert_eq!(m.variables[0].init[2], Init::Bits(u64::MAX));
        assert_eq!(
            m.variables[1].init[1],
            Init::Address { symbol: "a".into(), offset: 0, mask: Some(0xff00) }
        );
        assert_eq!(m.variables[2].init[0], Init::Float(2.0));
        assert!(m.variables[3].external && m.variables[3].count.is_none());
    }

    #[test]
    fn errors_say_where_and_what() {
        let error = parse(&format!("{HEADER}.visible .entry k() {{\n  add.s32 %r1, ; }}")).unwrap_err();
        assert_eq!(error.to_string(), "5:16: found `;`, expected a constant");
        let error = parse(&format!("{HEADER}.global .texref t;")).unwrap_err();
        assert!(matches!(error, PtxError::Unsupported { line: 4, .. }), "{error}");
        for bad in ["", ".version", ".version 8.0 .target", ".version 8.0 .target sm_80 .entry k( {"] {
            assert!(parse(bad).is_err());
        }
        let deep = format!("{HEADER}.func f {{ {}", "{".repeat(100_000));
        assert!(parse(&deep).is_err());
        let deep = format!("{HEADER}.global .u32 x = {}", "(".repeat(100_000));
        assert!(parse(&deep).is_err());
    }
}
