//! Picks tokens where the logits are: sends how, reads ids.

use std::ops::Range;

use cudarc::driver::PinnedHostSlice;
use qwenvl_graph::cuda::{SAMPLE_ROW_WORDS, history_words};

use super::gpu::{Gpu, Staging};
use super::inputs::Inputs;
use crate::error::Result;
use crate::exec::SampleRow;
use crate::kernels::cuda::Kernels;
use crate::kernels::cuda::sample::{NO_TOKEN, Sample};
use crate::sampler::SamplingParams;

/// What sampling works with, taken at bind.
pub(super) struct Sampling {
    /// Parameters of all rows, then, if any has a penalty, the ids that occurred in each.
    inputs: Inputs,
    /// Where the ids arrive.
    tokens: PinnedHostSlice<u32>,
    vocab: usize,
    /// Device memory: see [`Sample`].
    scores: u64,
    best: u64,
    bins: u64,
    arrivals: u64,
    picked: u64,
}

/// Device memory of the sampler.
pub(super) struct Places {
    pub(super) inputs: Range<u64>,
    pub(super) scores: u64,
    pub(super) best: u64,
    pub(super) bins: u64,
    pub(super) arrivals: u64,
    pub(super) picked: u64,
}

impl Sampling {
    pub(super) fn new(gpu: &Gpu, places: Places, max_rows: usize, vocab: usize) -> Result<Sampling> {
        let step = "preparing the sampler";
        // Cached, unlike what the host only writes.
        // SAFETY: an id is read only after the copy that brought it.
        let tokens =
            unsafe { gpu.context.alloc_pinned_with_flags::<u32>(max_rows, 0) }.map_err(gpu.failed(step))?;
        // The kernel notes its token in the history of a row, whether that was sent or not.
        gpu.zero(step, places.inputs.start, places.inputs.end - places.inputs.start)?;
        Ok(Sampling {
            inputs: Inputs::new(places.inputs),
            tokens,
            vocab,
            scores: places.scores,
            best: places.best,
            bins: places.bins,
            arrivals: places.arrivals,
            picked: places.picked,
        })
    }

    /// Picks a token from each row of `logits`. A row whose logits cannot be used has [`NO_TOKEN`]; one whose
    /// parameters are out of range has their error. Waits for the ids, and reads nothing else.
    pub(super) fn sample(
        &mut self,
        (gpu, kernels, staging): (&Gpu, &Kernels, &mut Staging),
        logits: u64,
        rows: &mut dyn ExactSizeIterator<Item = SampleRow<'_>>,
        tokens: &mut Vec<Result<u32>>,
    ) -> Result<()> {
        let (n, first) = (rows.len(), tokens.len());
        let words = history_words(self.vocab);
        let histories = n * SAMPLE_ROW_WORDS;
        self.inputs.clear();
        let params = self.inputs.padded([], 0, histories);
        let (mut drawn, mut penalised) = (false, false);
        for (at, row) in rows.enumerate() {
            let usable = row.params.check();
            // Its token is not kept.
            let default = SamplingParams::default();
            let p = if usable.is_ok() { row.params } else { &default };
            tokens.push(usable.map(|()| NO_TOKEN));
            let temperature = if p.is_greedy() { 0.0 } else { p.temperature };
            drawn |= temperature > 0.0;
            let place = self.inputs.words_mut();
            place[at * SAMPLE_ROW_WORDS..][..SAMPLE_ROW_WORDS].copy_from_slice(&[
                p.seed as u32,
                (p.seed >> 32) as u32,
                row.position as u32,
                (row.position >> 32) as u32,
                temperature.to_bits(),
                p.top_p.to_bits(),
                p.repetition_penalty.to_bits(),
                p.top_k,
            ]);
            if p.repetition_penalty != 1.0 {
                if !penalised {
                    self.inputs.padded([], 0, n * words);
                    penalised = true;
                }
                let place = &mut self.inputs.words_mut()[histories + at * words..][..words];
                for (pair, word) in place.chunks_exact_mut(2).zip(row.history.words()) {
                    pair.copy_from_slice(&[*word as u32, (word >> 32) as u32]);
                }
            }
        }
        self.inputs.send(gpu, staging)?;
        let sample = Sample {
            logits,
            scores: self.scores,
            history: params + 4 * histories as u64,
            history_words: words,
            params,
            tokens: self.picked,
            best: self.best,
            bins: self.bins,
            arrivals: self.arrivals,
            drawn,
            rows: n,
            vocab: self.vocab,
        };
        let step = "sampling";
        // SAFETY: the plan has room for as many rows as there are logits; all is written on this stream.
        unsafe { kernels.sample(&gpu.stream, &sample) }.map_err(|e| gpu.kernel_error(step, e))?;
        gpu.launched(step, None);
        let ids = &mut self.tokens.as_mut_slice().map_err(gpu.failed(step))?[..n];
        gpu.read(step, self.picked, ids)?;
        for (token, id) in tokens[first..].iter_mut().zip(ids) {
            if let Ok(token) = token {
                *token = *id;
            }
        }
        Ok(())
    }

    /// The position that row `at` of the last call had in its sequence.
    pub(super) fn position(&mut self, at: usize) -> u64 {
        let row = &self.inputs.words_mut()[at * SAMPLE_ROW_WORDS..];
        u64::from(row[2]) | u64::from(row[3]) << 32
    }
}
