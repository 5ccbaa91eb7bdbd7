//! PTX text → tokens.

use super::error::{Pos, PtxError};

/// One token, borrowing from the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A name with its dots: `%tid.x`, `ld.global.L2::128B.v4.u32`, `_Z3foo`, `$L__BB0_1`.
    Word(&'a str),
    /// A directive or type: one word after a dot, the dot left out.
    Dot(&'a str),
    /// An integer literal.
    Int(u64),
    /// An integer literal that ends with `U`.
    Unsigned(u64),
    /// A single-precision literal, as bits.
    F32(u32),
    /// A double-precision literal, as bits.
    F64(u64),
    /// A string without its quotes.
    Str(&'a str),
    /// A single punctuation character.
    Punct(u8),
    /// End of the text.
    End,
}

impl Token<'_> {
    /// How an error message shows it.
    pub(super) fn show(&self) -> String {
        match self {
            Token::Word(w) => format!("`{w}`"),
            Token::Dot(w) => format!("`.{w}`"),
            Token::Int(i) | Token::Unsigned(i) => format!("`{i}`"),
            Token::F32(b) => format!("`{}`", f32::from_bits(*b)),
            Token::F64(b) => format!("`{}`", f64::from_bits(*b)),
            Token::Str(s) => format!("{s:?}"),
            Token::Punct(p) => format!("`{}`", *p as char),
            Token::End => "the end of the text".into(),
        }
    }
}

/// Reads tokens one after another.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
    line_start: usize,
}

fn word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%')
}

fn word_part(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$')
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Lexer<'a> {
        Lexer { text, at: 0, line: 1, line_start: 0 }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn pos(&self) -> Pos {
        Pos { line: self.line, column: (self.at - self.line_start + 1) as u32 }
    }

    fn done(&self) -> bool {
        self.at >= self.text.len()
    }

    fn newline(&mut self) {
        self.line += 1;
        self.line_start = self.at;
    }

    fn skip_blank(&mut self) -> Result<(), PtxError> {
        while !self.done() {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.at += 1;
                    self.newline();
                }
                // Drivers get PTX as a C string: it ends at the first NUL.
                (0, _) => self.at = self.text.len(),
                (c, _) if c.is_ascii_whitespace() => self.at += 1,
                (b'/', b'/') => {
                    while !self.done() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    let start = self.pos();
                    self.at += 2;
                    while !(self.peek(0) == b'*' && self.peek(1) == b'/') {
                        if self.done() {
                            return Err(start.syntax("`/*`", "a comment that ends"));
                        }
                        self.at += 1;
                        if self.text.as_bytes()[self.at - 1] == b'\n' {
                            self.newline();
                        }
                    }
                    self.at += 2;
                }
                _ => break,
            }
        }
        Ok(())
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while !self.done() && accept(self.peek(0)) {
            self.at += 1;
        }
        // Only ASCII bytes are accepted, so both ends are character boundaries.
        &self.text[start..self.at]
    }

    /// The next token and where it begins.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, Pos), PtxError> {
        self.skip_blank()?;
        let pos = self.pos();
        if self.done() {
            return Ok((Token::End, pos));
        }
        let c = self.peek(0);
        // `%` alone is the remainder of constants.
        let token = if word_start(c) && (c != b'%' || word_start(self.peek(1))) {
            self.word()
        } else if c == b'.' && word_part(self.peek(1)) {
            self.at += 1;
            Token::Dot(self.take_while(word_part))
        } else if c.is_ascii_digit() {
            self.number(pos)?
        } else if c == b'"' {
            self.string(pos)?
        } else if c.is_ascii_graphic() {
            self.at += 1;
            Token::Punct(c)
        } else {
            let shown = self.text.get(self.at..).and_then(|t| t.chars().next()).unwrap_or('?');
            return Err(pos.syntax(format!("{shown:?}"), "PTX"));
        };
        Ok((token, pos))
    }

    fn word(&mut self) -> Token<'a> {
        let start = self.at;
        self.at += 1;
        loop {
            self.take_while(word_part);
            if self.peek(0) == b'.' && word_part(self.peek(1)) {
                self.at += 1;
            } else if self.peek(0) == b':' && self.peek(1) == b':' && word_part(self.peek(2)) {
                self.at += 2;
            } else {
                return Token::Word(&self.text[start..self.at]);
            }
        }
    }

    fn string(&mut self, pos: Pos) -> Result<Token<'a>, PtxError> {
        self.at += 1;
        let start = self.at;
        while !matches!(self.peek(0), b'"' | b'\n') {
            if self.done() {
                break;
            }
            self.at += if self.peek(0) == b'\\' && self.peek(1) != b'\n' { 2 } else { 1 };
        }
        if self.at >= self.text.len() || self.peek(0) != b'"' {
            self.at = self.at.min(self.text.len());
            return Err(pos.syntax("`\"`", "a string that ends on its line"));
        }
        let end = self.at;
        self.at += 1;
        Ok(Token::Str(self.text.get(start..end).unwrap_or("")))
    }

    fn number(&mut self, pos: Pos) -> Result<Token<'a>, PtxError> {
        let bad = |found: &str| pos.syntax(format!("`{found}`"), "a number");
        let start = self.at;
        if self.peek(0) == b'0' && matches!(self.peek(1), b'f' | b'F' | b'd' | b'D' | b'x' | b'X') {
            let kind = self.peek(1).to_ascii_lowercase();
            self.at += 2;
            let digits = self.take_while(|c| c.is_ascii_hexdigit());
            let value = u64::from_str_radix(digits, 16).map_err(|_| bad(&self.text[start..self.at]))?;
            return match (kind, digits.len()) {
                (b'f', 8) => Ok(Token::F32(value as u32)),
                (b'd', 16) => Ok(Token::F64(value)),
                (b'x', _) => {
                    let unsigned = matches!(self.peek(0), b'U' | b'u');
                    self.at += usize::from(unsigned);
                    Ok(if unsigned { Token::Unsigned(value) } else { Token::Int(value) })
                }
                _ => Err(bad(&self.text[start..self.at])),
            };
        }
        let digits = self.take_while(|c| c.is_ascii_alphanumeric());
        let fraction = self.peek(0) == b'.' && self.peek(1).is_ascii_digit();
        let exponent = !fraction && digits.contains(['e', 'E']);
        if fraction || exponent {
            if fraction {
                self.at += 1;
                self.take_while(|c| c.is_ascii_alphanumeric());
            }
            if self.text[..self.at].ends_with(['e', 'E']) && matches!(self.peek(0), b'+' | b'-') {
                self.at += 1;
                self.take_while(|c| c.is_ascii_digit());
            }
            let text = &self.text[start..self.at];
            return text.parse().map(|v: f64| Token::F64(v.to_bits())).map_err(|_| bad(text));
        }
        let plain = digits.strip_suffix(['U', 'u']).unwrap_or(digits);
        let value = if let Some(binary) = plain.strip_prefix("0b").or(plain.strip_prefix("0B")) {
            u64::from_str_radix(binary, 2)
        } else if plain.len() > 1 && plain.starts_with('0') {
            u64::from_str_radix(&plain[1..], 8)
        } else {
            plain.parse()
        };
        let token = if plain.len() == digits.len() { Token::Int } else { Token::Unsigned };
        value.map(token).map_err(|_| bad(digits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        let mut lexer = Lexer::new(text);
        let mut out = Vec::new();
        loop {
            match lexer.next().unwrap().0 {
                Token::End => return out,
                t => out.push(t),
            }
        }
    }

    #[test]
    fn words_keep_their_dots_and_colons() {
        use Token::*;
        assert_eq!(
            tokens("@%p1 ld.global.L2::128B.v4.u32 {%r1, _}, [%rd1+-16];"),
            [
                Punct(b'@'),
                Word("%p1"),
                Word("ld.global.L2::128B.v4.u32"),
                Punct(b'{'),
                Word("%r1"),
                Punct(b','),
                Word("_"),
                Punct(b'}'),
                Punct(b','),
                Punct(b'['),
                Word("%rd1"),
                Punct(b'+'),
                Punct(b'-'),
                Int(16),
                Punct(b']'),
                Punct(b';')
            ]
        );
        assert_eq!(tokens("$L__BB0_1: bra x;")[..2], [Word("$L__BB0_1"), Punct(b':')]);
    }

    #[test]
    fn numbers_in_every_notation() {
        use Token::*;
        assert_eq!(
            tokens("0 010 0x1fU 0b101 42U 0f3F800000 0d3FF0000000000000 1.5 2e-3 9.0"),
            [
                Int(0),
                Int(8),
                Unsigned(31),
                Int(5),
                Unsigned(42),
                F32(0x3f80_0000),
                F64(0x3ff0_0000_0000_0000),
                F64(1.5f64.to_bits()),
                F64(2e-3f64.to_bits()),
                F64(9.0f64.to_bits())
            ]
        );
        for bad in ["0f3F80", "09", "0x", "12z", "99999999999999999999"] {
            assert!(Lexer::new(bad).next().is_err(), "{bad}");
        }
    }

    #[test]
    fn comments_and_lines() {
        let mut lexer = Lexer::new("// one\n/* two\n */ a");
        assert_eq!(lexer.next().unwrap(), (Token::Word("a"), Pos { line: 3, column: 5 }));
        assert!(Lexer::new("/* open").next().is_err());
        assert!(Lexer::new("\"open\n\"").next().is_err());
        assert!(Lexer::new("\"open\\").next().is_err());
    }
}
