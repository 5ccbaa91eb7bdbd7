//! Kernels: leaves that know slices and shapes, not requests, plans or files.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use std::ops::Range;

/// One sequence's share of a decoder call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeqRows {
    /// Its tokens among those of the call.
    pub tokens: Range<usize>,
    /// Tokens it had in the cache before.
    pub past: usize,
    /// Its pages, in the table of the call.
    pub pages: Range<usize>,
}
