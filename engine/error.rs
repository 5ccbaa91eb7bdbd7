//! Everything that can go wrong, in one enum.
//!
//! Each message names the file, tensor, field or option, says what was found and what was
//! expected, and what to do about it.

use std::borrow::Cow;
use std::fmt::Write;
use std::path::PathBuf;

/// An error of the engine. Bad input of any kind ends here; a panic is a defect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened, read, mapped or written.
    #[error("cannot {action} {}: {source}", one_line(&path.to_string_lossy()))]
    Io {
        /// The verb: `read`, `map`, `write`, ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file of a checkpoint is missing, malformed, truncated or inconsistent with the others.
    #[error("{}: {problem}; {help}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What was found, and what was expected.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A tensor is missing or has the wrong shape, type or values.
    #[error("{}: tensor {tensor}: found {found}, expected {expected}", path.display())]
    Tensor {
        /// The weight file, or the directory if no file holds the tensor.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What the file holds.
        found: String,
        /// What the configuration asks for.
        expected: String,
    },
    /// `config.json` cannot be used, a picture has an impossible size, or a plan is impossible.
    #[error(transparent)]
    Graph(#[from] qwenvl_graph::Error),
    /// Something this build cannot do.
    #[error("{what} is not supported: {help}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        help: String,
    },
    /// A request is malformed: an unknown key, a wrong type, a value out of range.
    #[error("request: {}: found {}, expected {}", one_line(field), one_line(found), one_line(expected))]
    Request {
        /// Path of the field, as `messages[0].content[1].image`.
        field: String,
        /// What was given.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// An image cannot be fetched, decoded or used.
    #[error("image {}: {}; {}", one_line(name), one_line(problem), one_line(help))]
    Image {
        /// Path or URL, shortened.
        name: String,
        /// What went wrong.
        problem: String,
        /// What to do.
        help: String,
    },
    /// A video file cannot be fetched, decoded or used.
    #[error("video {}: {}; {}", one_line(name), one_line(problem), one_line(help))]
    Video {
        /// Path or URL, shortened.
        name: String,
        /// What went wrong.
        problem: String,
        /// What to do.
        help: String,
    },
    /// The chat template cannot be parsed or rendered.
    #[error("chat template: {problem}")]
    Template {
        /// The template engine's message, with the line.
        problem: String,
    },
    /// The tokenizer cannot be loaded or cannot encode a text.
    #[error("tokenizer: {problem}")]
    Tokenizer {
        /// The library's message.
        problem: String,
    },
    /// The model gave logits that no token can be picked from.
    #[error("logits of token {position}: found {found}, expected {expected}")]
    Logits {
        /// Index in its sequence of the token to be picked.
        position: u64,
        /// What the model gave.
        found: String,
        /// What it should have given.
        expected: String,
    },
    /// The CUDA driver failed.
    #[error("CUDA: {step}: {problem}")]
    Cuda {
        /// What was being done: a step of the plan, or of loading.
        step: String,
        /// The driver's error.
        problem: String,
    },
    /// Prompt and answer do not fit in the context.
    #[error(
        "the prompt has {prompt_tokens} tokens ({visual_tokens} of them visual) and max_tokens is {max_tokens}, \
         together more than the context of {context_tokens}; load with a context of at least {}, shorten the prompt, \
         or lower max_pixels or max_tokens",
        .prompt_tokens.saturating_add(*.max_tokens)
    )]
    Context {
        /// Tokens of the expanded prompt; those that were known of, if it was refused before its pictures were loaded.
        prompt_tokens: usize,
        /// How many of them stand for pictures.
        visual_tokens: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// The limit.
        context_tokens: usize,
    },
    /// A plan needs more memory than there is.
    #[error("the plan needs {needed_bytes} bytes but {available_bytes} are available on {device}; {help}")]
    Memory {
        /// Total of the plan.
        needed_bytes: u64,
        /// What the device has.
        available_bytes: u64,
        /// Its name.
        device: String,
        /// What would fit.
        help: String,
    },
}

impl Error {
    /// Whether the request is at fault, not the checkpoint, the machine or the device: what a service answers with a
    /// status from 400 to 499. Of errors that preparing, submitting and answering give, not of those of loading.
    pub fn is_of_request(&self) -> bool {
        match self {
            Error::Request { .. }
            | Error::Image { .. }
            | Error::Video { .. }
            | Error::Template { .. }
            | Error::Tokenizer { .. }
            | Error::Context { .. }
            | Error::Graph(qwenvl_graph::Error::ImageSize { .. }) => true,
            // Files are read that requests name, and temporary ones written.
            Error::Io { action, .. } => *action == "read",
            Error::Graph(_)
            | Error::Checkpoint { .. }
            | Error::Tensor { .. }
            | Error::Unsupported { .. }
            | Error::Logits { .. }
            | Error::Cuda { .. }
            | Error::Memory { .. } => false,
        }
    }
}

/// `Result` with the engine's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The text with escapes for what would end a line, move a cursor or turn the direction of reading: parts of requests
/// get into logs.
fn one_line(text: &str) -> Cow<'_, str> {
    let hidden = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}
