//! sample: launcher of the kernels that pick the next tokens.

use cudarc::driver::CudaStream;

use super::{Address, Kernels, Result, abi, check};

/// How to pick one row's token, on the device. A temperature of zero takes the largest.
pub use super::abi::QwenvlSampleRow as SampleRow;

/// What the kernel writes for a row whose logits cannot be used: NaN, plus infinity, or all minus infinity.
pub const NO_TOKEN: u32 = u32::MAX;

/// The next token of each row.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// `[rows, vocab]` f32.
    pub logits: Address,
    /// `[rows, vocab]` f32, scratch.
    pub scores: Address,
    /// `[rows, history_words]` u32: a bit for each id that occurred. The new ones are added.
    pub history: Address,
    /// Words of a row: at least `vocab / 32`, rounded up.
    pub history_words: usize,
    /// `[rows]` of [`SampleRow`].
    pub params: Address,
    /// `[rows]` u32, or [`NO_TOKEN`].
    pub tokens: Address,
    /// [`best_len`] of u64, scratch.
    pub best: Address,
    /// `[rows]` of [`BINS_BYTES`]: zero before the first launch, and after each.
    pub bins: Address,
    /// `[rows]` u32: zero before the first launch, and after each.
    pub arrivals: Address,
    /// Whether a row may have a temperature above zero; else one launch less is made.
    pub drawn: bool,
    /// Rows.
    pub rows: usize,
    /// Ids.
    pub vocab: usize,
}

/// Bytes of a row of [`Sample::bins`].
pub use qwenvl_graph::cuda::SAMPLE_BINS_BYTES as BINS_BYTES;
const _: () = assert!(BINS_BYTES == 16 * abi::QWENVL_SAMPLE_BINS as usize);

/// Length of [`Sample::best`].
pub const fn best_len(rows: usize, vocab: usize) -> usize {
    rows * (vocab.div_ceil(abi::QWENVL_SAMPLE_SLICE as usize) + 1)
}

impl Kernels {
    /// Launches sampling.
    ///
    /// # Errors
    /// [`super::Error::Shape`] for sizes that the kernel does not take, [`super::Error::Driver`] from the driver.
    ///
    /// # Safety
    /// Addresses name memory of this device as [`Sample`] says.
    pub unsafe fn sample(&self, stream: &CudaStream, s: &Sample) -> Result<()> {
        check("sample", (1..=65535).contains(&s.rows) && (1..1 << 18).contains(&s.vocab), || {
            format!("{} rows of {} logits", s.rows, s.vocab)
        })?;
        check("sample", s.history_words >= s.vocab.div_ceil(32), || {
            format!("{} words of history for {} ids", s.history_words, s.vocab)
        })?;
        let p = abi::QwenvlSample {
            logits: s.logits as *const f32,
            scores: s.scores as *mut f32,
            history: s.history as *mut u32,
            params: s.params as *const SampleRow,
            tokens: s.tokens as *mut u32,
            best: s.best as *mut u64,
            bins: s.bins as *mut u64,
            arrivals: s.arrivals as *mut u32,
            rows: s.rows as u32,
            vocab: s.vocab as u32,
            history_words: s.history_words as u32,
        };
        let slices = p.vocab.div_ceil(abi::QWENVL_SAMPLE_SLICE);
        // SAFETY: the caller's promise.
        unsafe { self.launch(stream, "argmax", (slices, p.rows, 1), 256, &p)? };
        if s.drawn {
            // SAFETY: the caller's promise; argmax is before it on the stream.
            unsafe { self.launch(stream, "sample", (slices.div_ceil(2), p.rows, 1), 1024, &p)? };
        }
        Ok(())
    }
}
