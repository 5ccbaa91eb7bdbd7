//! Constant expressions, evaluated as the PTX manual says: in 64 bits, unsigned as soon as one operand is.

use super::super::lexer::Token;
use super::{Parser, Result};

/// A constant while it is being computed.
#[derive(Clone, Copy)]
struct Value {
    bits: u64,
    unsigned: bool,
}

impl Value {
    fn signed(value: i64) -> Value {
        Value { bits: value as u64, unsigned: false }
    }
}

/// Operators of two operands by precedence, the weakest first; of those that begin alike, the longest first.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];
/// The weakest operators outside parentheses in an operand, where `|` divides two destinations.
const IN_OPERANDS: usize = 3;

impl Parser<'_> {
    /// A constant expression, in two's complement.
    pub(super) fn constant(&mut self) -> Result<i64> {
        Ok(self.conditional()?.bits as i64)
    }

    /// The same as an operand of an instruction.
    pub(super) fn constant_operand(&mut self) -> Result<i64> {
        Ok(self.deeper(|p| p.binary(IN_OPERANDS))?.bits as i64)
    }

    fn conditional(&mut self) -> Result<Value> {
        self.deeper(|p| {
            let condition = p.binary(0)?;
            if !p.eat(b'?')? {
                return Ok(condition);
            }
            let yes = p.conditional()?;
            p.expect(b':')?;
            let no = p.conditional()?;
            let chosen = if condition.bits != 0 { yes } else { no };
            Ok(Value { bits: chosen.bits, unsigned: yes.unsigned || no.unsigned })
        })
    }

    /// The operator of this level that stands here.
    fn operator(&self, level: usize) -> Result<Option<&'static str>> {
        let Token::Punct(first) = self.token else { return Ok(None) };
        let second = match self.lexer.clone().next()? {
            (Token::Punct(c), pos) if pos.line == self.pos.line && pos.column == self.pos.column + 1 => {
                Some(c)
            }
            _ => None,
        };
        let stands = |operator: &&str| match operator.as_bytes() {
            [a, b] => *a == first && Some(*b) == second,
            [a] => {
                // `&` is no part of `&&`, nor `<` of `<<` or `<=`.
                let longer = LEVELS
                    .iter()
                    .copied()
                    .flatten()
                    .any(|other| matches!(other.as_bytes(), [x, y] if x == a && Some(*y) == second));
                *a == first && !longer
            }
            _ => false,
        };
        Ok(LEVELS[level].iter().find(|operator| stands(operator)).copied())
    }

    fn binary(&mut self, level: usize) -> Result<Value> {
        if level == LEVELS.len() {
            return self.unary();
        }
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = self.operator(level)? {
            let pos = self.pos;
            for _ in 0..operator.len() {
                self.advance()?;
            }
            let right = self.binary(level + 1)?;
            left =
                compute(operator, left, right).ok_or_else(|| pos.invalid("a constant is divided by zero"))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Value> {
        match self.token {
            Token::Int(bits) => {
                self.advance()?;
                Ok(Value { bits, unsigned: bits > i64::MAX as u64 })
            }
            Token::Unsigned(bits) => {
                self.advance()?;
                Ok(Value { bits, unsigned: true })
            }
            Token::Punct(op @ (b'-' | b'+' | b'~' | b'!')) => {
                self.advance()?;
                let v = self.deeper(|p| p.unary())?;
                Ok(match op {
                    b'-' => Value { bits: v.bits.wrapping_neg(), ..v },
                    b'~' => Value { bits: !v.bits, ..v },
                    b'!' => Value::signed(i64::from(v.bits == 0)),
                    _ => v,
                })
            }
            Token::Punct(b'(') => {
                self.advance()?;
                if let Token::Dot(to @ ("s64" | "u64")) = self.token {
                    self.advance()?;
                    self.expect(b')')?;
                    let v = self.deeper(|p| p.unary())?;
                    return Ok(Value { unsigned: to == "u64", ..v });
                }
                let v = self.conditional()?;
                self.expect(b')')?;
                Ok(v)
            }
            _ => self.unexpected("a constant"),
        }
    }
}

/// `None` for a division by zero.
fn compute(operator: &str, left: Value, right: Value) -> Option<Value> {
    let (a, b) = (left.bits, right.bits);
    let (x, y) = (a as i64, b as i64);
    let unsigned = left.unsigned || right.unsigned;
    let truth = |value: bool| Value::signed(i64::from(value));
    let ordered = |unsigned_order: bool, signed_order: bool| {
        truth(if unsigned { unsigned_order } else { signed_order })
    };
    // A shift keeps the type of what is shifted; all bits leave when the distance is too large.
    let shift = |bits: u64| Value { bits, unsigned: left.unsigned };
    let bits = match operator {
        "||" => return Some(truth(a != 0 || b != 0)),
        "&&" => return Some(truth(a != 0 && b != 0)),
        "==" => return Some(truth(a == b)),
        "!=" => return Some(truth(a != b)),
        "<" => return Some(ordered(a < b, x < y)),
        "<=" => return Some(ordered(a <= b, x <= y)),
        ">" => return Some(ordered(a > b, x > y)),
        ">=" => return Some(ordered(a >= b, x >= y)),
        "<<" => return Some(shift(if b > 63 { 0 } else { a << b })),
        ">>" if left.unsigned => return Some(shift(if b > 63 { 0 } else { a >> b })),
        ">>" => return Some(shift((x >> b.min(63)) as u64)),
        "|" => a | b,
        "^" => a ^ b,
        "&" => a & b,
        "+" => a.wrapping_add(b),
        "-" => a.wrapping_sub(b),
        "*" => a.wrapping_mul(b),
        "/" if unsigned => a.checked_div(b)?,
        "%" if unsigned => a.checked_rem(b)?,
        _ if b == 0 => return None,
        "/" => x.wrapping_div(y) as u64,
        _ => x.wrapping_rem(y) as u64,
    };
    Some(Value { bits, unsigned })
}
