//! From logits to the next token.

mod config;
mod philox;
mod token_set;

pub use config::{GenerationConfig, SamplingParams};
pub use philox::philox4x32_10;
pub use token_set::TokenSet;

use crate::{Error, Result};

/// Picks tokens. Owns its scratch memory: after construction nothing is allocated.
///
/// The steps are those of transformers 4.57.6 (`generation/logits_process.py`) in its order:
/// repetition penalty; then, when sampling, temperature, top-k, top-p, softmax, one draw.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// `[vocab]`: scores as the steps change them.
    scores: Vec<f32>,
    /// `[vocab]`: `exp(score - largest)` of the candidates, by candidate; later probabilities by id.
    weights: Vec<f32>,
    /// Ids still in the running, ascending.
    candidates: Vec<u32>,
    /// Scratch of the selections.
    order: Vec<u32>,
}

/// Scores and probabilities after all steps, `[vocab]` each.
#[derive(Clone, Copy, Debug)]
pub struct Processed<'a> {
    /// The scores; minus infinity for what was removed.
    pub scores: &'a [f32],
    /// The probabilities; zero for what was removed.
    pub probs: &'a [f32],
}

impl Sampler {
    /// A sampler for a head with `vocab_size` rows.
    pub fn new(vocab_size: usize) -> Self {
        Sampler {
            scores: vec![0.0; vocab_size],
            weights: vec![0.0; vocab_size],
            candidates: Vec::with_capacity(vocab_size),
            order: Vec::with_capacity(vocab_size),
        }
    }

    /// The next token.
    ///
    /// `logits` is `[vocab_size]`; `history` holds every id of the sequence, prompt included, and
    /// matters only if a repetition penalty is set; `position` is the index of the new token in its
    /// sequence. The draw depends on the seed and `position` alone, so that neither batching nor
    /// earlier draws can change it. Of equal logits, greedy takes the lowest id.
    ///
    /// # Errors
    /// [`Error::Logits`] if a logit is not a number or plus infinity, if all are minus infinity, or
    /// if their number is not `vocab_size`; [`Error::Request`] for parameters out of range.
    pub fn sample(
        &mut self,
        logits: &[f32],
        history: &TokenSet,
        params: &SamplingParams,
        position: u64,
    ) -> Result<u32> {
        params.check()?;
        let best = self.check(logits, position)?;
        if params.is_greedy() {
            if params.repetition_penalty == 1.0 {
                return Ok(best);
            }
            self.scores.copy_from_slice(logits);
            self.penalize(history, params.repetition_penalty);
            return self.check_scores(position);
        }
        self.filter(logits, history, params, position)?;
        let total: f64 = self.weights[..self.candidates.len()].iter().map(|&w| f64::from(w)).sum();
        let target = uniform(params.seed, position) * total;
        let mut sum = 0.0;
        for (&id, &weight) in self.candidates.iter().zip(&self.weights) {
            sum += f64::from(weight);
            if sum > target {
                return Ok(id);
            }
        }
        // `target` is below `total` and the sums are the same, so that the loop has returned.
        unreachable!("a draw of {target} is beyond the total weight {total}")
    }

    /// All steps but the draw, also for a greedy `params` without sampling: then only the penalty
    /// is applied. For tests and for showing probabilities.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn process(
        &mut self,
        logits: &[f32],
        history: &TokenSet,
        params: &SamplingParams,
    ) -> Result<Processed<'_>> {
        params.check()?;
        self.check(logits, 0)?;
        let sampled = !params.is_greedy();
        let neutral = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, ..*params };
        self.filter(logits, history, if sampled { params } else { &neutral }, 0)?;
        let n = self.candidates.len();
        let total: f32 = self.weights[..n].iter().sum();
        // From the last candidate on: an id is never below its place among the candidates, so that
        // no weight is overwritten before it is read.
        let mut end = self.scores.len();
        for i in (0..n).rev() {
            let id = self.candidates[i] as usize;
            let probability = self.weights[i] / total;
            self.weights[id + 1..end].fill(0.0);
            self.scores[id + 1..end].fill(f32::NEG_INFINITY);
            self.weights[id] = probability;
            end = id;
        }
        self.weights[..end].fill(0.0);
        self.scores[..end].fill(f32::NEG_INFINITY);
        Ok(Processed { scores: &self.scores, probs: &self.weights })
    }

    /// Leaves the candidates and their weights.
    fn filter(
        &mut self,
        logits: &[f32],
        history: &TokenSet,
        params: &SamplingParams,
        position: u64,
    ) -> Result<()> {
        self.scores.copy_from_slice(logits);
        self.penalize(history, params.repetition_penalty);
        if params.temperature != 1.0 {
            self.scores.iter_mut().for_each(|score| *score /= params.temperature);
        }
        let best = self.check_scores(position)?;
        self.candidates.clear();
        let scores = &self.scores;
        self.candidates
            .extend((0..scores.len() as u32).filter(|&id| scores[id as usize] > f32::NEG_INFINITY));
        self.top_k(params.top_k as usize);
        self.softmax(best);
        if params.top_p < 1.0 {
            self.top_p(f64::from(params.top_p), best);
            self.softmax(best);
        }
        Ok(())
    }

    fn penalize(&mut self, history: &TokenSet, penalty: f32) {
        if penalty == 1.0 {
            return;
        }
        for id in history.iter() {
            if let Some(score) = self.scores.get_mut(id as usize) {
                *score = if *score < 0.0 { *score * penalty } else { *score / penalty };
            }
        }
    }

    /// Keeps the `k` largest and what ties with the last of them.
    fn top_k(&mut self, k: usize) {
        if k == 0 || k >= self.candidates.len() {
            return;
        }
        let scores = &self.scores;
        self.order.clear();
        self.order.extend_from_slice(&self.candidates);
        let (_, &mut kth, _) = self
            .order
            .select_nth_unstable_by(k - 1, |&a, &b| f32::total_cmp(&scores[b as usize], &scores[a as usize]));
        let threshold = scores[kth as usize];
        self.candidates.retain(|&id| scores[id as usize] >= threshold);
    }

    /// Keeps an entry if the probabilities ranked above it sum to less than `p`; always the first.
    /// Ties rank by id. `best` ranks first.
    fn top_p(&mut self, p: f64, best: u32) {
        let scores = &self.scores;
        let rank =
            |&a: &u32, &b: &u32| f32::total_cmp(&scores[b as usize], &scores[a as usize]).then(a.cmp(&b));
        let total: f64 = self.weights[..self.candidates.len()].iter().map(|&w| f64::from(w)).sum();
        let largest = scores[best as usize];
        self.order.clear();
        self.order.extend_from_slice(&self.candidates);
        // The mass is nearly always in the first few: sort them, and only if needed the next.
        let (mut sorted, mut chunk, mut above, mut last) = (0, 256, 0.0, best);
        'all: while sorted < self.order.len() {
            let rest = &mut self.order[sorted..];
            if chunk < rest.len() {
                rest.select_nth_unstable_by(chunk, rank);
            }
            let end = chunk.min(rest.len());
            rest[..end].sort_unstable_by(rank);
            for &id in &rest[..end] {
                if above >= p * total && id != best {
                    break 'all;
                }
                last = id;
                above += f64::from((scores[id as usize] - largest).exp());
            }
            sorted += end;
            chunk *= 4;
        }
        self.candidates.retain(|id| rank(id, &last).is_le());
    }

    /// `exp(score - largest)` of each candidate, not divided by the sum.
    fn softmax(&mut self, best: u32) {
        let largest = self.scores[best as usize];
        for (weight, &id) in self.weights.iter_mut().zip(&self.candidates) {
            *weight = (self.scores[id as usize] - largest).exp();
        }
    }

    /// The id of the largest logit, once all are found to be usable.
    fn check(&self, logits: &[f32], position: u64) -> Result<u32> {
        if logits.len() != self.scores.len() {
            return Err(Error::Logits {
                position,
                found: format!("{} logits", logits.len()),
                expected: format!("{}, the size of the vocabulary", self.scores.len()),
            });
        }
        argmax(logits, position)
    }

    /// The same for scores: a penalty or temperature near zero can take them to infinity.
    fn check_scores(&self, position: u64) -> Result<u32> {
        argmax(&self.scores, position)
    }
}

/// The lowest id of the largest score.
fn argmax(scores: &[f32], position: u64) -> Result<u32> {
    let fail = |found: String| {
        Err(Error::Logits {
            position,
            found,
            expected: "finite numbers; the weights are damaged, or overflow in a 16-bit type".into(),
        })
    };
    let (mut best, mut largest, mut nan) = (None, f32::NEG_INFINITY, 0usize);
    for (id, &score) in scores.iter().enumerate() {
        if score > largest {
            (best, largest) = (Some(id), score);
        }
        nan += usize::from(score.is_nan());
    }
    if nan > 0 {
        return fail(format!("{nan} of {} that are not a number", scores.len()));
    }
    match best {
        Some(_) if largest == f32::INFINITY => fail("plus infinity".into()),
        Some(id) => Ok(id as u32),
        None => fail("none above minus infinity".into()),
    }
}

/// Why no token can be picked from the logits of the token at `position`, which a device could not use.
#[cfg(feature = "cuda")]
pub(crate) fn unusable(logits: &[f32], position: u64) -> Error {
    match argmax(logits, position) {
        Err(error) => error,
        Ok(_) => Error::Logits {
            position,
            found: "scores beyond the range of f32".into(),
            expected: "a larger temperature, or a penalty nearer to 1".into(),
        },
    }
}

/// A number in `0..1`, a multiple of 2^-32: the first word of Philox under `seed` at `position`.
fn uniform(seed: u64, position: u64) -> f64 {
    let word =
        philox4x32_10([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32])
            [0];
    f64::from(word) / 4_294_967_296.0
}
