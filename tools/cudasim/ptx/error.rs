//! What is wrong with a PTX text.

/// Why a PTX text was refused, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PtxError {
    /// The text is not PTX.
    #[error("{line}:{column}: found {found}, expected {expected}")]
    Syntax {
        /// Line, from 1.
        line: u32,
        /// Column in bytes, from 1.
        column: u32,
        /// What stands there.
        found: String,
        /// What should stand there.
        expected: String,
    },
    /// The text is PTX, but means nothing: an unknown name, a wrong operand, a size that does not fit.
    #[error("{line}:{column}: {message}")]
    Invalid {
        /// Line, from 1.
        line: u32,
        /// Column in bytes, from 1.
        column: u32,
        /// What is wrong.
        message: String,
    },
    /// An instruction, a modifier or a directive that this simulator does not execute.
    #[error("{line}:{column}: not supported: {text}{}", reason(.why))]
    Unsupported {
        /// Line, from 1.
        line: u32,
        /// Column in bytes, from 1.
        column: u32,
        /// The instruction or directive as written.
        text: String,
        /// Which part of it, when that is known.
        why: String,
    },
    /// This machine cannot execute any.
    #[error("this simulator needs a machine with {0}")]
    Machine(&'static str),
}

fn reason(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}

/// A place in the PTX text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pos {
    /// Line, from 1.
    pub line: u32,
    /// Column in bytes, from 1.
    pub column: u32,
}

impl Pos {
    /// A [`PtxError::Invalid`] here.
    pub fn invalid(self, message: impl Into<String>) -> PtxError {
        PtxError::Invalid { line: self.line, column: self.column, message: message.into() }
    }

    /// A [`PtxError::Unsupported`] here.
    pub fn unsupported(self, text: impl Into<String>, why: impl Into<String>) -> PtxError {
        PtxError::Unsupported { line: self.line, column: self.column, text: text.into(), why: why.into() }
    }

    /// A [`PtxError::Syntax`] here.
    pub fn syntax(self, found: impl Into<String>, expected: impl Into<String>) -> PtxError {
        PtxError::Syntax {
            line: self.line,
            column: self.column,
            found: found.into(),
            expected: expected.into(),
        }
    }
}
