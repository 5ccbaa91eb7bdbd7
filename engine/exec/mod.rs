//! Executors: what runs a plan.

pub mod compare;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use qwenvl_graph::{Plan, Program};

use crate::error::Result;
use crate::kernels::SeqRows;
use crate::sampler::{SamplingParams, TokenSet};
use crate::vision::{Normalize, Visual};

/// One temporal slice of a picture or video.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// The picture.
    pub visual: &'a Visual,
    /// Which of its `grid.t` slices.
    pub t: usize,
}

/// What one call of the vision tower works on.
#[derive(Clone, Copy, Debug)]
pub struct VisionCall<'a> {
    /// At most the plan's `max_patches` together.
    pub slices: &'a [Slice<'a>],
    /// Colour normalisation.
    pub normalize: &'a Normalize,
    /// Where the first visual row goes, of the plan's `max_visual_tokens`.
    pub first_row: usize,
}

/// Which of the decoder's programs to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Over a chunk of prompts.
    Prefill,
    /// Over one new token per sequence.
    Decode,
}

/// What one call of the decoder works on. Slices of one entry per token unless said otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct DecoderCall<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// Rotary positions (t, h, w). Not the places in the cache: see `slots`.
    pub positions: &'a [[u32; 3]],
    /// The visual row that replaces the embedding, or `NO_VISUAL_ROW`.
    pub visual_index: &'a [u32],
    /// Where keys and values go: page · 64 + offset.
    pub slots: &'a [u32],
    /// The sequences that the tokens belong to, in order.
    pub seqs: &'a [SeqRows],
    /// Pages of all sequences.
    pub page_table: &'a [u32],
    /// Tokens of the call whose logits are wanted.
    pub logit_rows: &'a [u32],
}

/// How to pick a token from one row of logits.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow<'a> {
    /// Penalty, temperature, limits, seed.
    pub params: &'a SamplingParams,
    /// Every id of the sequence, prompt included.
    pub history: &'a TokenSet,
    /// Index of the new token in its sequence.
    pub position: u64,
}

/// What a step has just written.
pub struct Written<'a> {
    /// Of which program.
    pub program: &'a Program,
    /// Which of its steps.
    pub step: usize,
    /// The value it wrote, as f32: all columns of the rows of this round. Changes count on the CPU only.
    pub values: &'a mut [f32],
}

/// Is shown what steps write.
pub type Watch = Box<dyn FnMut(Written<'_>) + Send>;

/// Runs a plan on one device. All memory is taken when the executor is made.
///
/// # Panics
/// The calls panic if their slices contradict each other or exceed the plan's bounds: that is a
/// defect of the caller, never of a user's input.
pub trait Executor: Send {
    /// The plan it runs.
    fn plan(&self) -> &Plan;

    /// Runs the vision tower; its rows wait in place for [`Executor::forward`].
    ///
    /// # Errors
    /// Those of the device.
    fn encode(&mut self, call: &VisionCall) -> Result<()>;

    /// Runs the decoder; the logits `[logit_rows, vocab_size]` stay on the device.
    ///
    /// # Errors
    /// Those of the device.
    fn forward(&mut self, phase: Phase, call: &DecoderCall) -> Result<()>;

    /// Picks a token from each row of the last [`Executor::forward`]'s logits, where they are, and appends
    /// them to `tokens`. There are as many `rows` as there were `logit_rows`.
    ///
    /// # Errors
    /// Those of the device. Logits that cannot be used are an error of their row only.
    fn sample(
        &mut self,
        rows: &mut dyn ExactSizeIterator<Item = SampleRow<'_>>,
        tokens: &mut Vec<Result<u32>>,
    ) -> Result<()>;

    /// The logits of the last [`Executor::forward`], `[logit_rows, vocab_size]`.
    ///
    /// # Errors
    /// Those of the device.
    fn logits(&mut self) -> Result<&[f32]>;

    /// Has `watch` shown the output of every step that follows, if it has one, until another takes its place.
    /// Slow, and waits for each step: for comparing executors.
    fn watch(&mut self, watch: Option<Watch>);

    /// Memory bandwidth and arithmetic of the device as measured now.
    fn measure(&mut self) -> Peaks;
}

/// What a device reaches when nothing else limits it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// Reading, bytes/s.
    pub read_bytes_per_s: f64,
    /// Fused multiply-adds in f32, FLOP/s.
    pub fma_flops_per_s: f64,
}
