//! Shapes whose row counts are known only when a request runs.

use std::fmt;

/// The row count of a value, as a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// One row per patch of the images in a vision call.
    Patches,
    /// One row per visual token: patches divided by this many.
    MergedPatches(usize),
    /// One row per token in a decoder call.
    Tokens,
    /// One row per sequence whose next token is wanted.
    LogitRows,
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rows::Patches => f.write_str("patches"),
            Rows::MergedPatches(per) => write!(f, "patches/{per}"),
            Rows::Tokens => f.write_str("tokens"),
            Rows::LogitRows => f.write_str("logit_rows"),
        }
    }
}

/// A matrix shape, row-major: symbolic rows, constant columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Number of rows.
    pub rows: Rows,
    /// Number of columns.
    pub cols: usize,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.cols)
    }
}

/// Values of the symbols, and the sums that attention costs depend on: either those of one call,
/// or the upper bounds that a plan is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Patches in a vision call.
    pub patches: usize,
    /// Σ over temporal slices of (patches of the slice)²: query-key pairs of one vision head.
    pub patch_pairs: u64,
    /// Tokens in a decoder call.
    pub tokens: usize,
    /// Σ over tokens of the keys each one sees: query-key pairs of one decoder head.
    pub token_pairs: u64,
    /// Σ over sequences of their context: entries of the KV cache that are read.
    pub kv_tokens: u64,
    /// Rows of logits wanted from a decoder call.
    pub logit_rows: usize,
}

impl Sizes {
    /// The number of rows that a symbol stands for.
    pub fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Patches => self.patches,
            Rows::MergedPatches(per) => self.patches.div_ceil(per),
            Rows::Tokens => self.tokens,
            Rows::LogitRows => self.logit_rows,
        }
    }

    /// A vision call over one image of `patches` patches in `slices` equal temporal slices.
    pub fn vision(patches: usize, slices: usize) -> Sizes {
        let per_slice = (patches / slices.max(1)) as u64;
        Sizes { patches, patch_pairs: per_slice * per_slice * slices as u64, ..Sizes::default() }
    }

    /// One sequence's `tokens` new tokens after `past` cached ones, logits of the last one.
    pub fn prefill(tokens: usize, past: usize) -> Sizes {
        let (new, old) = (tokens as u64, past as u64);
        Sizes {
            tokens,
            token_pairs: new * old + new * (new + 1) / 2,
            kv_tokens: new + old,
            logit_rows: 1,
            ..Sizes::default()
        }
    }

    /// One new token for each of `seqs` sequences with `context` tokens, the new one included.
    pub fn decode(seqs: usize, context: usize) -> Sizes {
        let kv_tokens = seqs as u64 * context as u64;
        Sizes { tokens: seqs, token_pairs: kv_tokens, kv_tokens, logit_rows: seqs, ..Sizes::default() }
    }
}
