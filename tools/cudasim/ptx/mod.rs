//! PTX text → [`ast::Module`]: a hand-written lexer and parser that accept any bytes without panicking.

pub mod ast;
mod error;
mod lexer;
mod parser;

pub use error::{Pos, PtxError};
pub use parser::parse;

pub use crate::decode::{GlobalVar, Kernel, Module, Param};
